"""Group commit: what is written together, in which order, and what is written again."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import gevent
import gevent.event
import pytest

from greenq.errors import (
    AccessRefused,
    ConnectionLost,
    OperationalError,
    ServerError,
    TransportTimeout,
)
from greenq.protocol.keys import Keys
from greenq.transport.client import Script
from greenq.transport.continuation import Continuation, MessagePush
from greenq.transport.outbox import Outbox
from greenq.transport.settle import (
    BEGIN,
    KEEP,
    SETTLE,
    Fence,
    Move,
    Publication,
    Settlement,
    StateWrite,
    settle_arguments,
)

DEADLINE_S = 5.0

Call = tuple[list[str], list[Any]]

OWN = Fence("tag")


class FakeConnection:
    """Notes what is settled; fails or refuses as the test says, one behaviour for each write."""

    def __init__(self) -> None:
        self.written: list[Call] = []
        self.tried: list[Call] = []
        self.behaviours: list[OperationalError | None] = []
        # Set by a test that wants to see what gathers during one write.
        self.gate: gevent.event.Event | None = None
        # What the script says that could not be published, or moved, and what was not held.
        self.unheard = self.misplaced = b""
        # How often it was looked whether the server has hung up meanwhile.
        self.checked = 0
        # It has not been used for a long time.
        self.used_at = -math.inf
        self.not_held: list[int] = []

    def connection(self) -> FakeConnection:
        return self

    def script(self, script: Script, keys: list[str], args: list[Any]) -> list[Any]:
        assert script is SETTLE
        self.tried.append((keys, args))
        if self.gate is not None:
            gate, self.gate = self.gate, None
            assert gate.wait(DEADLINE_S)
        behaviour = self.behaviours.pop(0) if self.behaviours else None
        if behaviour is not None:
            raise behaviour
        self.written.append((keys, args))
        return [self.unheard, self.misplaced, b"", *self.not_held]

    def check_rested(self) -> None:
        self.checked += 1

    def close(self) -> None:
        pass


class FakeTransport:
    def __init__(self, *, own_results: bool = False) -> None:
        self.client = FakeConnection()
        self.result_client = FakeConnection() if own_results else self.client
        self.keys = Keys()


def make(*, own_results: bool = False) -> tuple[Outbox, FakeTransport]:
    transport = FakeTransport(own_results=own_results)
    return Outbox(transport, "tag", flush_timeout_s=DEADLINE_S), transport  # type: ignore[arg-type]


def result(number: int) -> StateWrite:
    return StateWrite(f"result-{number}", "s60", f"state {number}")


def done(number: int) -> Settlement:
    """Return a task's usual end: its state, its acknowledgement."""
    return Settlement(f"tag:{number}", result=result(number))


def settled(*entries: Settlement, publications: tuple[Publication, ...] = ()) -> Call:
    return settle_arguments(Keys(), entries, publications, fence=OWN)


def test_one_entry_is_written_at_once() -> None:
    outbox, transport = make()
    told: list[bool] = []
    outbox.start()

    outbox.put(Settlement("tag:1", result=result(1), written=told.append))
    outbox.stop()

    assert transport.client.written == [settled(done(1))]
    assert told == [True]
    assert len(outbox) == 0


def test_what_comes_during_a_write_goes_out_together() -> None:
    outbox, transport = make()
    transport.client.gate = gate = gevent.event.Event()
    outbox.start()
    outbox.put(done(0))
    gevent.sleep(0)
    batch = [
        Settlement("tag:1"),
        Settlement.moving(Move("tag:2", "queue", "next", "text"), result(2)),
        Settlement("tag:4", BEGIN),
        done(3),
    ]

    for entry in batch:
        outbox.put(entry)
    gate.set()
    outbox.stop()

    assert transport.client.written == [settled(done(0)), settled(*batch)]


def test_who_wants_to_know_is_told_where_a_write_pushes_to() -> None:
    outbox, _transport = make()
    outbox.start()
    step = Continuation(
        pushes=[MessagePush("queue", "last", "x"), MessagePush("channel", "all", "y")]
    )

    outbox.put(Settlement("tag:1", workflow=step))
    assert outbox.wait_written(DEADLINE_S)
    told = outbox.pushed_to = set()
    outbox.put(Settlement("tag:2"))
    outbox.put(Settlement("tag:3", workflow=step))
    gevent.sleep(0)

    assert told == {"queue", "channel"}
    outbox.pushed_to = None
    outbox.stop()


def test_news_goes_out_behind_the_outcomes_that_were_there_when_it_was_fetched() -> None:
    outbox, transport = make()
    waiting = [Publication("channel", "first"), Publication("channel", "second")]
    outbox.collect = lambda: [waiting.pop(0)] if waiting else []
    outbox.start()

    outbox.put(Settlement("tag:1"))
    outbox.wake()
    assert outbox.wait_written(DEADLINE_S)
    outbox.wake()
    outbox.stop()

    assert transport.client.written == [
        settled(Settlement("tag:1"), publications=(Publication("channel", "first"),)),
        settled(publications=(Publication("channel", "second"),)),
    ]


def test_news_that_the_server_refuses_is_said_once_and_stops_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outbox, transport = make()
    transport.client.unheard = b"NOPERM this user has no permissions to access one of the channels"
    outbox.collect = lambda: [Publication("channel", "text")]
    outbox.start()

    for number in range(3):
        outbox.put(Settlement(f"tag:{number}"))
        assert outbox.wait_written(DEADLINE_S)
    outbox.stop()

    said = [record for record in caplog.records if "events are not published" in record.message]
    assert len([record for record in said if record.levelname == "WARNING"]) == 1
    assert len(transport.client.written) == 3


def test_tags_are_those_of_what_is_not_written_yet() -> None:
    outbox, _ = make()
    outbox.put(Settlement("tag:1"))
    outbox.put(Settlement.moving(Move("tag:2", "queue", "next", "text")))
    outbox.put(Settlement("tag:3", BEGIN))
    # What was published to all has none.
    outbox.put(Settlement("", KEEP, result=result(4)))

    assert outbox.tags() == {"tag:1", "tag:2", "tag:3"}

    outbox.start()
    outbox.stop()
    assert outbox.tags() == set()


REFUSALS = [
    "OOM", "READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "MISCONF", "FORGOTTEN",
]  # fmt: skip


@pytest.mark.parametrize(
    "error",
    [
        ConnectionLost("gone"),
        TransportTimeout("slow"),
        AccessRefused("no rights"),
        *(ServerError("EVALSHA", f"{code} not now") for code in REFUSALS),
    ],
    ids=str,
)
def test_failed_write_is_written_again_with_the_same_content(
    error: OperationalError, caplog: pytest.LogCaptureFixture
) -> None:
    outbox, transport = make()
    transport.client.behaviours = [error]
    told: list[bool] = []
    outbox.start()

    with caplog.at_level(logging.WARNING):
        outbox.put(Settlement("tag:1", result=result(1), written=told.append))
        outbox.stop()

    # The result and its acknowledgement are never parted.
    assert transport.client.tried == [settled(done(1))] * 2
    assert told == [True]
    assert "1 outcomes are waiting to be written" in caplog.text


def test_refusal_for_good_is_logged_and_the_rest_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outbox, transport = make()
    transport.client.behaviours = [ServerError("EVALSHA", "WRONGTYPE no list")]
    outbox.start()

    with caplog.at_level(logging.ERROR):
        refused = gevent.event.Event()
        outbox.put(Settlement("tag:1", written=lambda _held: refused.set()))
        assert refused.wait(DEADLINE_S)
        outbox.put(done(2))
        outbox.stop()

    assert "refused an outcome permanently: WRONGTYPE no list" in caplog.text
    assert transport.client.written == [settled(done(2))]


def test_state_that_is_refused_for_good_costs_no_other_entry_anything(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Given a batch, one state of which no server takes.
    outbox, transport = make()
    script = transport.client.script

    def refuse(made: Script, keys: list[str], args: list[Any]) -> Any:
        if "result-2" in keys:
            raise ServerError("EVALSHA", "ERR invalid expire time in 'setex' command")
        return script(made, keys, args)

    transport.client.script = refuse  # type: ignore[method-assign]
    for number in (1, 2, 3):
        outbox.put(done(number))

    with caplog.at_level(logging.ERROR):
        outbox.start()
        outbox.stop()

    # Then its message is acknowledged without it, and the others as always.
    assert transport.client.written == [
        settled(done(1)),
        settled(Settlement("tag:2")),
        settled(done(3)),
    ]
    assert "refused an outcome permanently: ERR invalid expire time" in caplog.text


def test_results_of_another_server_are_stored_before_the_acknowledgement() -> None:
    outbox, transport = make(own_results=True)
    transport.result_client.behaviours = [
        ServerError("EVALSHA", "OOM no memory"),
        ConnectionLost("gone"),
    ]
    written_when_stored: list[list[Call]] = []
    store = transport.result_client.script

    def note(script: Script, keys: list[str], args: list[Any]) -> Any:
        written_when_stored.append(list(transport.client.written))
        return store(script, keys, args)

    transport.result_client.script = note  # type: ignore[method-assign]
    move = Move("tag:2", "queue", "next", "text")
    outbox.put(done(1))
    outbox.put(Settlement.moving(move, result(2)))
    outbox.start()
    outbox.stop()

    # It was tried three times, and until then the broker was only asked what is held.
    look = settled(Settlement("tag:1", KEEP), Settlement("tag:2", KEEP))
    assert written_when_stored == [[look] * times for times in (1, 2, 3)]
    states = [Settlement("", KEEP, result=result(number)) for number in (1, 2)]
    assert transport.result_client.written == [settle_arguments(Keys(), states, fence=None)]
    assert transport.client.written[3:] == [settled(Settlement("tag:1"), Settlement.moving(move))]


def test_without_results_their_own_server_is_not_asked() -> None:
    outbox, transport = make(own_results=True)
    outbox.start()

    outbox.put(Settlement("tag:1"))
    outbox.stop()

    assert transport.result_client.tried == []
    assert transport.client.written == [settled(Settlement("tag:1"))]


# --- what was not held any more -------------------------------------------------------------------


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]


def test_who_waits_hears_whether_the_message_was_held() -> None:
    outbox, transport = make()
    told: list[tuple[str, bool]] = []
    transport.client.not_held = [2, 3]
    for action in ("a", "b", "k"):
        outbox.put(
            Settlement("tag:1", action, written=lambda held, name=action: told.append((name, held)))  # type: ignore[misc]
        )

    outbox.start()
    outbox.stop()

    assert told == [("a", True), ("b", False), ("k", False)]


@pytest.mark.parametrize(
    ("rule", "fate"),
    [
        (None, "runs twice"),
        ("s60", "; its success is stored unless the other run has ended"),
        ("f60", "; the other run determines its state"),
        ("n60", "; the other run determines its state"),
    ],
)
def test_outcome_of_what_others_run_is_said(
    rule: str | None, fate: str, caplog: pytest.LogCaptureFixture
) -> None:
    outbox, transport = make()
    transport.client.not_held = [1]
    state = None if rule is None else StateWrite("result", rule, "state")

    outbox.put(Settlement("tag:1", result=state, about="proj.add[id]"))
    outbox.start()
    outbox.stop()

    (said,) = warnings_of(caplog)
    assert said.startswith("proj.add[id] was given to another worker while it ran here")
    assert said.endswith(fate)


def test_what_nobody_waits_for_is_given_up_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    outbox, transport = make()
    transport.client.not_held = [1]

    outbox.put(Settlement("tag:1", KEEP, result=result(1)))
    outbox.start()
    outbox.stop()

    assert warnings_of(caplog) == []


def test_what_is_not_held_when_it_is_written_again_was_written_before(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Only an early acknowledgement leaves something that tells it apart: its stub.
    outbox, transport = make()
    transport.client.behaviours = [ConnectionLost("the answer got lost")]
    transport.client.not_held = [1, 2, 3]
    told: list[tuple[str, bool]] = []
    move = Move("tag:2", "queue", "next", "text")

    outbox.put(Settlement("tag:1", about="1", written=lambda held: told.append(("a", held))))
    outbox.put(
        Settlement("tag:2", move=move, about="2", written=lambda held: told.append(("m", held)))
    )
    outbox.put(Settlement("tag:3", BEGIN, written=lambda held: told.append(("b", held))))
    outbox.start()
    outbox.stop()

    assert told == [("a", True), ("m", True), ("b", False)]
    assert [text for text in warnings_of(caplog) if "was given to" in text] == []


def test_what_a_refused_call_had_settled_already_is_not_taken_for_somebody_elses(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outbox, transport = make()
    transport.client.behaviours = [ServerError("EVALSHA", "ERR of the last one")]
    transport.client.not_held = [1]
    told: list[tuple[str, bool]] = []
    for action in ("a", "b"):
        outbox.put(
            Settlement(
                "tag:1", action, about=action, written=lambda held, a=action: told.append((a, held))
            )  # type: ignore[misc]
        )

    outbox.start()
    outbox.stop()

    assert told == [("a", True), ("b", False)]
    assert [text[:2] for text in warnings_of(caplog) if "was given to" in text] == ["b "]


def test_what_cannot_be_moved_is_said(caplog: pytest.LogCaptureFixture) -> None:
    outbox, transport = make()
    transport.client.misplaced = b"WRONGTYPE queue is no list but a string"

    outbox.put(Settlement.moving(Move("tag:1", "queue", "next", "text")))
    outbox.start()
    outbox.stop()

    assert "messages stay reserved because they cannot be moved: WRONGTYPE queue" in caplog.text


def test_stop_says_what_could_not_be_written(caplog: pytest.LogCaptureFixture) -> None:
    transport = FakeTransport()
    transport.client.behaviours = [ConnectionLost("gone") for _ in range(1000)]
    outbox = Outbox(transport, "tag", flush_timeout_s=0.0)  # type: ignore[arg-type]
    outbox.start()
    outbox.put(Settlement("tag:1"))
    gevent.sleep(0)

    with caplog.at_level(logging.ERROR):
        outbox.stop()
        outbox.stop()

    assert caplog.text.count("1 outcomes could not be written") == 1


def test_stop_waits_as_long_as_the_worker_s_grace_and_no_longer_when_that_is_called_off() -> None:
    transport = FakeTransport()
    transport.client.behaviours = [ConnectionLost("gone") for _ in range(3)]
    outbox = Outbox(transport, "tag", flush_timeout_s=0.0)  # type: ignore[arg-type]
    outbox.until_s = time.monotonic() + DEADLINE_S
    outbox.start()
    outbox.put(Settlement("tag:1"))
    outbox.stop()
    # It was tried until the server was back.
    assert len(transport.client.written) == 1

    transport.client.behaviours = [ConnectionLost("gone") for _ in range(1000)]
    outbox.until_s = time.monotonic() + 3600
    outbox.start()
    outbox.put(Settlement("tag:2"))
    stopping = gevent.spawn(outbox.stop)
    gevent.sleep(0)
    assert not stopping.dead
    outbox.until_s = 0.0
    stopping.get(timeout=DEADLINE_S)
    assert len(transport.client.written) == 1


def test_connection_that_rested_is_looked_at_before_each_write() -> None:
    transport = FakeTransport()
    outbox = Outbox(transport, "tag")  # type: ignore[arg-type]
    outbox.start()
    outbox.put(Settlement("tag:1"))
    outbox.stop()

    assert transport.client.checked == 1


def test_write_that_takes_too_long_is_written_in_smaller_parts() -> None:
    outbox, transport = make()
    transport.client.behaviours = [TransportTimeout("slow"), TransportTimeout("slow")]
    outbox._batch = 8
    entries = [done(number) for number in range(8)]
    for each in entries:
        outbox.put(each)

    outbox.start()
    outbox.stop()

    assert transport.client.written == [
        settled(*entries[:2]),
        settled(*entries[2:6]),
        settled(*entries[6:]),
    ]
