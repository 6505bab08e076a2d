"""What the script that settles messages is told: all keys it touches, and what to do in order."""

from __future__ import annotations

import re
from typing import Any, get_args

import pytest

from greenq.protocol.keys import Keys
from greenq.transport import continuation
from greenq.transport import settle as settling
from greenq.transport.dead_letters import DEAD_LIMIT
from greenq.transport.settle import (
    BEGIN,
    KEEP,
    RUN_ALONE,
    Action,
    Fence,
    Move,
    Publication,
    Settled,
    Settlement,
    StateWrite,
    settle,
    settle_arguments,
)

KEYS = Keys(prefix="p-")
OWN = Fence("a", "a|node|")

# What comes before the goals, and before the results.
NAMES = ["p-unacked", "p-unacked_index", "p-greenq.owner.a", "p-greenq.begun.a", "p-greenq.leases"]


def test_the_tags_come_first_then_states_and_moves_and_the_news_come_last() -> None:
    names, arguments = settle_arguments(
        KEYS,
        [
            Settlement("a:5"),
            Settlement(
                "a:3", result=StateWrite("r1", "s60", b"one"), move=Move("a:3", "q1", "next", "3")
            ),
            Settlement("a:4", BEGIN),
            Settlement("a:6", KEEP, result=StateWrite("r2", "n0", "two")),
            Settlement.moving(Move("", "z1", 12.5, b"four")),
            Settlement("", RUN_ALONE),
        ],
        [Publication("channel", "told")],
        fence=OWN,
    )

    assert names == [*NAMES, "q1", "z1", "r1", "r2"]
    assert arguments == [
        *(6, 2, 1, DEAD_LIMIT, "own", "a|node|"),
        *("a:5", "a:3", "a:4", "a:6", "", ""),
        "a-",
        *("ms60", b"one", 1, "next", "3"),
        "b-",
        *("kn0", "two"),
        *("m-", 2, "12.500000", b"four"),
        "l-",
        *("channel", "told"),
    ]


def test_each_goal_is_named_once() -> None:
    goals = ["q1", "q2", "q1", "q3", "q2"]
    moves = [Move(f"a:{number}", goal, "last", "text") for number, goal in enumerate(goals)]

    names, arguments = settle_arguments(KEYS, list(map(Settlement.moving, moves)), fence=OWN)

    assert names[5:] == ["q1", "q2", "q3"]
    assert [names[4 + number] for number in arguments[6 + len(goals) + 1 :: 4]] == goals


def test_states_alone_name_no_key_of_the_broker() -> None:
    names, arguments = settle_arguments(
        KEYS, [Settlement("", KEEP, result=StateWrite("r1", "s60", "one"))], fence=None
    )

    assert names == ["r1"]
    assert arguments == [1, -1, 0, DEAD_LIMIT, "", "", "", "ks60", "one"]


@pytest.mark.parametrize(
    ("fence", "asks"),
    [
        (Fence("a"), "own"),
        (Fence(""), "any"),
        (Fence("a", "a|node|", "9.75"), "9.75"),
        # A guard process has ended this lease.
        (Fence("a", "a|node|", "0"), "0"),
    ],
)
def test_script_is_told_on_whose_behalf_it_acts(fence: Fence, asks: str) -> None:
    names, arguments = settle_arguments(KEYS, [Settlement("a:1")], fence=fence)

    assert names[2] == f"p-greenq.owner.{fence.incarnation}"
    assert arguments[4:] == [asks, fence.member, "a:1", "a-"]


def test_letters_have_the_names_that_the_script_gives_them() -> None:
    named = {
        name: value
        for module in (settling, continuation)
        for name, value in vars(module).items()
        if isinstance(value, str) and len(value) == 1 and name.isupper() and name[0] != "_"
    }

    source = settling.SETTLE.source
    actions = re.findall(r"^--   (\w) +(\d+)  ([A-Z_]+) ", source, re.MULTILINE)
    kinds = re.findall(r"^--   (\w) +(KIND_\w+) ", source, re.MULTILINE)
    rules = re.findall(r"(\w) \((PARTS_\w+):", source)

    listed = {name: letter for letter, _byte, name in actions}
    assert listed | {name: letter for letter, name in kinds + rules} == named
    assert {letter for letter, _byte, _name in actions} == set(get_args(Action))
    assert all(int(byte) == ord(letter) for letter, byte, _name in actions)


def test_score_keeps_its_microseconds() -> None:
    move = Settlement.moving(Move("a:1", "z", 1924992000.123456, "text"))

    _, arguments = settle_arguments(KEYS, [move], fence=OWN)

    assert arguments[9] == "1924992000.123456"


class Answering:
    """A server that answers what it is told to."""

    def __init__(self, *answers: list[Any]) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[list[str], list[Any]]] = []

    def script(self, _script: object, names: list[str], arguments: list[Any]) -> list[Any]:
        self.calls.append((names, arguments))
        return self.answers.pop(0)


def test_answer_names_what_was_not_held_by_its_position() -> None:
    server: Any = Answering([b"NOPERM", b"WRONGTYPE", b"", 1, -2, 3])

    settled = settle(server, KEYS, [Settlement(f"a:{number}") for number in range(3)], fence=OWN)

    assert settled == Settled(frozenset({0, 2}), "NOPERM", "WRONGTYPE", frozenset({1}))


def test_states_on_a_server_of_their_own_follow_what_the_broker_holds() -> None:
    broker: Any = Answering([b"", b"", b"", 2], [b"", b"", b"", 3])
    results: Any = Answering([b"", b"", b""])
    entries = [
        Settlement("a:1"),
        Settlement("a:2", result=StateWrite("r2", "f60", "two")),
        Settlement("a:3", result=StateWrite("r3", "s60", "three")),
        Settlement("", KEEP, result=StateWrite("r4", "n60", "four")),
    ]

    settled = settle(broker, KEYS, entries, fence=OWN, results=results)

    assert settled.not_held == {2}
    looks = [Settlement("a:2", KEEP), Settlement("a:3", KEEP), Settlement("", KEEP)]
    rest = [Settlement("a:1"), Settlement("a:2"), Settlement("a:3"), Settlement("", KEEP)]
    assert broker.calls == [
        settle_arguments(KEYS, looks, fence=OWN),
        settle_arguments(KEYS, rest, fence=OWN),
    ]
    states = [
        Settlement("", KEEP, result=StateWrite("r2", "f60", "two")),
        # Of what is somebody else's: no tag is like this one.
        Settlement("-", KEEP, result=StateWrite("r3", "s60", "three")),
        Settlement("", KEEP, result=StateWrite("r4", "n60", "four")),
    ]
    assert results.calls == [settle_arguments(KEYS, states, fence=None)]
