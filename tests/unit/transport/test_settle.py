"""What the script that settles messages is told: all keys it touches, and what to do in order."""

from __future__ import annotations

from greenq.protocol.keys import Keys
from greenq.transport.dead import DEAD_LIMIT
from greenq.transport.settle import Move, Publication, Stored, settle_arguments

KEYS = Keys(prefix="p-")


def test_results_come_first_then_moves_then_news_then_acknowledgements() -> None:
    names, arguments = settle_arguments(
        KEYS,
        [Stored("r1", "60", b"one"), Stored("r2", "!0", "two")],
        [Move("a:3", "q1", "next", "three"), Move("", "z1", 12.5, b"four")],
        ["a:5", "a:6"],
        [Publication("channel", "told")],
    )

    assert names == ["r1", "r2", "p-unacked", "p-unacked_index", "q1", "z1"]
    assert arguments == [
        *(2, 2, 1, DEAD_LIMIT),
        *("60", b"one"),
        *("!0", "two"),
        *("a:3", 1, "next", "three"),
        *("", 2, "12.500000", b"four"),
        *("channel", "told"),
        *("a:5", "a:6"),
    ]


def test_each_goal_is_named_once() -> None:
    goals = ["q1", "q2", "q1", "q3", "q2"]
    moves = [Move(f"a:{number}", goal, "last", "text") for number, goal in enumerate(goals)]

    names, arguments = settle_arguments(KEYS, moves=moves)

    assert names[2:] == ["q1", "q2", "q3"]
    assert [names[1 + number] for number in arguments[5::4]] == goals


def test_results_alone_name_no_key_of_the_broker() -> None:
    names, arguments = settle_arguments(KEYS, [Stored("r1", "60", "one")])

    assert names == ["r1"]
    assert arguments == [1, 0, 0, DEAD_LIMIT, "60", "one"]


def test_acknowledgements_alone_name_the_records() -> None:
    assert settle_arguments(KEYS, acks=["a:1"]) == (
        ["p-unacked", "p-unacked_index"],
        [0, 0, 0, DEAD_LIMIT, "a:1"],
    )


def test_score_keeps_its_microseconds() -> None:
    _, arguments = settle_arguments(KEYS, moves=[Move("a:1", "z", 1924992000.123456, "text")])

    assert arguments[6] == "1924992000.123456"
