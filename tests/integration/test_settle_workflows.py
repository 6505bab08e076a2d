"""What the settling script does with workflows, on a real server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from greenq.protocol.keys import Keys
from greenq.transport.client import Client
from greenq.transport.continuation import (
    Addition,
    ChordClaim,
    ChordPart,
    Continuation,
    MessagePush,
    Seal,
    chord_rule,
)
from greenq.transport.settle import (
    ACKNOWLEDGE,
    BEGIN_STEP,
    REQUEUE,
    Fence,
    Move,
    Settled,
    Settlement,
    StateWrite,
    settle,
)
from tests.integration.test_settle import OWN, Desk, final, success
from tests.servers import Server

pytestmark = pytest.mark.smoke

WAIT_S = 5
KEYS = Keys()
G = KEYS.group("g")
RULE = chord_rule(True, 1000, 0)


def part(task_id: str, place: int | str, value: object = None, group: str = G) -> ChordPart:
    encoded = json.dumps([1, task_id, "SUCCESS", value])
    return ChordPart(group, f"{task_id}:{place}", str(place), encoded, RULE)


def ending(tag: str, **lists: object) -> Settlement:
    return Settlement(tag, ACKNOWLEDGE, success(f"r{tag}"), workflow=Continuation(**lists))  # type: ignore[arg-type]


def body(text: str = "body") -> MessagePush:
    return MessagePush("queue", "last", text)


class Apart(Desk):
    """The same desk with results in a database of their own."""

    def __init__(self, server: Server) -> None:
        self.results_client = Client(f"{server.url.rpartition('/')[0]}/3")
        super().__init__(server, Client(server.url).connection())
        self.results = self.results_client.connection()
        self.results.call("FLUSHDB")

    def settle(self, *entries: Settlement, fence: Fence | None = OWN, **_: object) -> Settled:  # type: ignore[override]
        return settle(self.connection, KEYS, entries, fence=fence, results=self.results)

    def chord(self, *command: object) -> object:
        return self.results.call(*command)


class Together(Desk):
    def __init__(self, server: Server) -> None:
        super().__init__(server, Client(server.url).connection())

    def chord(self, *command: object) -> object:
        return self.connection.call(*command)


@pytest.fixture(params=[Together, Apart])
def desk(server: Server, request: pytest.FixtureRequest) -> Iterator[Desk]:
    make: Callable[[Server], Desk] = request.param
    made = make(server)
    with closing(made.connection):
        made.reserve()
        yield made


def values(desk: Desk, group: str = G) -> list[object]:
    return [json.loads(text)[3] for text in desk.chord("ZRANGE", f"{group}.j", 0, -1)]  # type: ignore[attr-defined]


def test_a_step_stores_acknowledges_and_sends_in_one_call(desk: Desk) -> None:
    desk.reserve("a:1")
    desk.client.set("other", "x")

    settled = desk.settle(
        ending(
            "a:1",
            pushes=[MessagePush("queue", "last", "next step"), MessagePush("q2", "next", "link")],
        )
    )

    assert settled == Settled(frozenset(), "", "")
    assert desk.texts("queue") == ["next step"]
    assert desk.texts("q2") == ["link"]
    assert not desk.reserved()


def test_an_ending_repeated_sends_nothing_twice(desk: Desk) -> None:
    desk.reserve("a:1")
    entry = ending("a:1", pushes=[body()], parts=[part("x", 0)])

    desk.settle(entry)
    again = desk.settle(entry)

    assert again.not_held == {0}
    assert desk.texts("queue") == ["body"]
    assert desk.chord("ZCARD", f"{G}.j") == 1


def test_a_message_that_is_not_held_sets_nothing_in_motion(desk: Desk) -> None:
    desk.settle(
        ending(
            "a:1", pushes=[body()], parts=[part("x", 0)], seals=[Seal(KEYS.group("n"), 3, 10)],
            states=[StateWrite("later", "u60", "F")], adds=[Addition(G, "n", 10)],
        )
    )  # fmt: skip

    assert desk.texts("queue") == []
    for key in (f"{G}.j", f"{G}.d", f"{G}.t", f"{KEYS.group('n')}.s", "later"):
        assert desk.chord("EXISTS", key) == 0


def test_all_parts_but_the_last_are_acknowledged_and_the_last_is_withheld(desk: Desk) -> None:
    desk.reserve("a:1", "a:2", "a:3")
    desk.chord("SET", f"{G}.s", 3)

    assert desk.settle(ending("a:1", parts=[part("x", 0, "X")])).withheld == frozenset()
    settled = desk.settle(
        ending("a:2", parts=[part("y", 1, "Y")]), ending("a:3", parts=[part("z", 2, "Z")])
    )

    assert settled.withheld == {1}
    assert desk.reserved() == {"a:3"}
    assert desk.chord("GET", f"{G}.c") == b"greenq z:2"
    assert desk.chord("TTL", f"{G}.c") > 900  # type: ignore[operator]
    assert desk.chord("TTL", f"{G}.j") > 900  # type: ignore[operator]
    assert values(desk) == ["X", "Y", "Z"]
    # The state of the withheld one is known already.
    assert desk.chord("EXISTS", "ra:3") == 1


def test_the_withheld_ending_is_withheld_again_until_the_body_is_sent(desk: Desk) -> None:
    desk.reserve("a:1")
    desk.chord("SET", f"{G}.s", 1)
    first = ending("a:1", parts=[part("x", 0)], pushes=[MessagePush("queue", "last", "link")])

    assert desk.settle(first).withheld == {0}
    assert desk.settle(first).withheld == {0}
    assert desk.texts("queue") == []

    second = Continuation(pushes=[body()], clears=[ChordClaim(G, part("x", 0).claim)])
    assert desk.settle(Settlement("a:1", workflow=second)) == Settled(frozenset(), "", "")

    assert desk.texts("queue") == ["body"]
    assert not desk.reserved()
    assert desk.chord("GET", f"{G}.c") == b"done"
    assert 0 < desk.chord("TTL", f"{G}.c") <= 300  # type: ignore[operator]
    assert desk.chord("EXISTS", f"{G}.j", f"{G}.s", f"{G}.d", f"{G}.t") == 0


def test_a_part_counts_once_whatever_message_brings_it(desk: Desk) -> None:
    desk.reserve("a:1", "a:2", "b:1")
    desk.chord("SET", f"{G}.s", 2)

    settled = desk.settle(
        ending("a:1", parts=[part("x", 0, "first")]), ending("a:2", parts=[part("x", 0, "again")])
    )

    assert settled.withheld == frozenset()
    assert values(desk) == ["first"]
    assert desk.settle(ending("b:1", parts=[part("x", 0, "third")])).withheld == frozenset()
    assert values(desk) == ["first"]


def test_two_copies_of_the_last_part_send_the_body_once(desk: Desk) -> None:
    desk.reserve("a:1", "a:2")
    desk.chord("SET", f"{G}.s", 1)
    for tag in ("a:1", "a:2"):
        assert desk.settle(ending(tag, parts=[part("x", 0)])).withheld == {0}
    second = {"pushes": [body()], "clears": [ChordClaim(G, part("x", 0).claim)]}

    for tag in ("a:1", "a:2"):
        desk.settle(ending(tag, **second))

    assert desk.texts("queue") == ["body"]
    assert not desk.reserved()


def test_a_copy_that_is_late_does_not_begin_the_chord_again(desk: Desk) -> None:
    desk.reserve("a:1")
    desk.chord("SET", f"{G}.c", "done")

    assert desk.settle(ending("a:1", parts=[part("x", 0)])).withheld == frozenset()

    assert not desk.reserved()
    assert desk.chord("EXISTS", f"{G}.j", f"{G}.d") == 0


def test_a_chord_that_a_celery_worker_completes_is_left_to_it(desk: Desk) -> None:
    desk.reserve("a:1")
    desk.chord("SET", f"{G}.s", 1)
    desk.chord("SET", f"{G}.c", "0123abc")

    assert desk.settle(ending("a:1", parts=[part("x", 0)])).withheld == frozenset()

    assert not desk.reserved()
    assert values(desk) == [None]


def test_what_joins_a_chord_is_waited_for(desk: Desk) -> None:
    desk.reserve("a:1", "a:2")
    desk.chord("SET", f"{G}.s", 1)

    settled = desk.settle(
        ending(
            "a:1", parts=[part("x", 0)], adds=[Addition(G, "n", 1000)],
            pushes=[MessagePush("queue", "last", "added")],
        )
    )  # fmt: skip

    assert settled.withheld == frozenset()
    assert desk.texts("queue") == ["added"]
    assert desk.settle(ending("a:2", parts=[part("n", "+inf")])).withheld == {0}


def test_an_addition_repeated_counts_once(desk: Desk) -> None:
    desk.reserve("a:1", "a:2")
    for tag in ("a:1", "a:2"):
        desk.settle(ending(tag, adds=[Addition(G, "n", 1000)]))

    assert desk.chord("GET", f"{G}.t") == b"1"


def test_a_chord_that_begins_has_its_size_before_its_header_is_sent(desk: Desk) -> None:
    desk.reserve("a:1")
    desk.chord("SET", f"{G}.c", "done")

    desk.settle(ending("a:1", seals=[Seal(G, 2, 1000)], pushes=[body("h1"), body("h2")]))

    assert desk.chord("GET", f"{G}.s") == b"2"
    assert desk.chord("EXISTS", f"{G}.c") == 0
    assert desk.texts("queue") == ["h2", "h1"]


def test_the_states_of_what_never_runs_replace_no_final_one(desk: Desk) -> None:
    desk.reserve("a:1")
    desk.chord("SET", "ran", '{"status": "SUCCESS", "result": 1}')
    later = [StateWrite("ran", "u60", "F"), StateWrite("later", "u60", "F")]

    desk.settle(Settlement("a:1", ACKNOWLEDGE, final(), workflow=Continuation(states=later)))

    assert desk.chord("GET", "ran") == b'{"status": "SUCCESS", "result": 1}'
    assert desk.chord("GET", "later") == b"F"


def test_a_recovered_message_frees_the_chord_that_its_part_had_completed(desk: Desk) -> None:
    desk.reserve("a:1")
    desk.chord("SET", f"{G}.s", 1)
    desk.settle(ending("a:1", parts=[part("x", 0)]))

    desk.settle(
        Settlement(
            "a:1", ACKNOWLEDGE, workflow=Continuation(frees=[ChordClaim(G, part("x", 0).claim)])
        )
    )

    assert desk.chord("EXISTS", f"{G}.c") == 0
    assert desk.chord("EXISTS", f"{G}.j") == 1


def test_another_claim_is_not_freed(desk: Desk) -> None:
    desk.reserve("a:1")
    desk.chord("SET", f"{G}.c", "0123abc")

    desk.settle(
        Settlement(
            "a:1", ACKNOWLEDGE, workflow=Continuation(frees=[ChordClaim(G, part("x", 0).claim)])
        )
    )

    assert desk.chord("GET", f"{G}.c") == b"0123abc"


def test_a_dead_letter_can_be_the_last_part(desk: Desk) -> None:
    desk.reserve("a:1")
    desk.chord("SET", f"{G}.s", 1)

    def buried(**lists: object) -> Settlement:
        return Settlement.moving(Move("a:1", "dead", "last", "letter"), None, Continuation(**lists))  # type: ignore[arg-type]

    assert desk.settle(buried(parts=[part("x", 0)])).withheld == {0}
    assert desk.texts("dead") == []
    desk.settle(buried(clears=[ChordClaim(G, part("x", 0).claim)]))

    assert desk.texts("dead") == ["letter"]
    assert not desk.reserved()


def test_a_message_acknowledged_early_keeps_its_record_until_its_end(desk: Desk) -> None:
    desk.reserve("a:1")

    desk.settle(Settlement("a:1", BEGIN_STEP))
    assert (desk.reserved(), desk.begun()) == ({"a:1"}, {"a:1"})
    desk.settle(ending("a:1", pushes=[body()]))

    assert (desk.reserved(), desk.begun()) == (set(), set())
    assert desk.texts("queue") == ["body"]


def test_a_part_acknowledged_early_leaves_neither_record_nor_stub(desk: Desk) -> None:
    desk.reserve("a:1", "a:2")
    desk.chord("SET", f"{G}.s", 3)
    desk.settle(Settlement("a:1", "e"))

    again = [ending(f"a:{n}", parts=[part("x", n)]) for n in (1, 2)]
    assert desk.settle(*again).not_held == frozenset()

    assert (desk.reserved(), desk.begun()) == (set(), set())
    assert desk.settle(*again).not_held == {0, 1}


def test_a_goal_of_another_type_keeps_the_message_and_sends_nothing(desk: Desk) -> None:
    desk.reserve("a:1", "a:2")
    desk.client.set("q2", "not a list")

    settled = desk.settle(
        ending("a:1", pushes=[body(), MessagePush("q2", "last", "x")]),
        ending("a:2", pushes=[body("y")]),
    )

    assert settled.stuck == {0}
    assert desk.reserved() == {"a:1"}
    assert desk.texts("queue") == ["y"]


def test_an_unordered_chord_has_a_list(desk: Desk) -> None:
    desk.reserve("a:1", "a:2")
    desk.chord("SET", f"{G}.s", 2)
    rule = chord_rule(False, 1000, 0)
    for tag, name in (("a:1", "y"), ("a:2", "x")):
        last = desk.settle(ending(tag, parts=[ChordPart(G, f"{name}:0", "0", name, rule)]))

    assert last.withheld == {0}
    assert desk.chord("LRANGE", f"{G}.j", 0, -1) == [b"y", b"x"]


def test_many_parts_and_pushes_of_one_call(desk: Desk) -> None:
    tags = [f"a:{n}" for n in range(2500)]
    desk.reserve(*tags)
    desk.chord("SET", f"{G}.s", 2500)

    settled = desk.settle(
        *(ending(tag, parts=[part(tag, n, n)], pushes=[body(tag)]) for n, tag in enumerate(tags))
    )

    assert settled.withheld == {2499}
    assert values(desk) == list(range(2500))
    assert desk.texts("queue") == tags[:-1][::-1]
    assert desk.reserved() == {"a:2499"}


def test_what_was_begun_meanwhile_is_not_given_back(desk: Desk) -> None:
    desk.reserve("a:1", "a:2")
    desk.settle(Settlement("a:1", BEGIN_STEP))
    desk.client.zadd("greenq.leases", {"a|n|p": 7})

    settled = desk.settle(
        *(Settlement(tag, REQUEUE, move=Move(tag, "queue", "next", tag)) for tag in ("a:1", "a:2")),
        fence=Fence("a", "a|n|p", "7"),
    )

    assert settled.not_held == {0}
    assert desk.texts("queue") == ["a:2"]
    assert desk.reserved() == {"a:1"}


def test_a_broadcast_is_published_and_kept_nowhere(desk: Desk, server: Server) -> None:
    desk.reserve("a:1")
    listener = server.client.pubsub()
    listener.subscribe("/0.news")
    assert listener.get_message(timeout=WAIT_S)

    desk.settle(
        ending("a:1", pushes=[body("first"), MessagePush("/0.news", "all", "told"), body()])
    )

    heard = listener.get_message(timeout=WAIT_S)
    assert heard is not None
    assert heard["data"] == b"told"
    assert desk.texts("queue") == ["body", "first"]
    assert desk.client.keys("*news*") == []
    listener.close()
