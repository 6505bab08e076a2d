"""Group commit: what is written together, in which order, and what is written again."""

from __future__ import annotations

import logging
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
from greenq.transport.outbox import Entry, Outbox
from greenq.transport.settle import SETTLE, Move, Publication, Stored, settle_arguments

DEADLINE_S = 5.0

Call = tuple[list[str], list[Any]]


class FakeConnection:
    """Notes what is settled; fails or refuses as the test says, one behaviour for each write."""

    def __init__(self) -> None:
        self.written: list[Call] = []
        self.tried: list[Call] = []
        self.behaviours: list[OperationalError | None] = []
        # Set by a test that wants to see what gathers during one write.
        self.gate: gevent.event.Event | None = None
        # What the script says that could not be published.
        self.unheard = b""

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
        return [0, self.unheard]

    def close(self) -> None:
        pass


class FakeTransport:
    def __init__(self, *, own_results: bool = False) -> None:
        self.client = FakeConnection()
        self.result_client = FakeConnection() if own_results else self.client
        self.keys = Keys()


def make(*, own_results: bool = False) -> tuple[Outbox, FakeTransport]:
    transport = FakeTransport(own_results=own_results)
    return Outbox(transport, flush_timeout_s=DEADLINE_S), transport  # type: ignore[arg-type]


def result(number: int) -> Stored:
    return Stored(f"result-{number}", "60", f"state {number}")


def settled(
    *results: Stored,
    moves: tuple[Move, ...] = (),
    acks: tuple[str, ...] = (),
    news: tuple[Publication, ...] = (),
) -> tuple[list[str], list[Any]]:
    return settle_arguments(Keys(), results, moves, acks, news)


def test_one_entry_is_written_at_once() -> None:
    outbox, transport = make()
    told: list[int] = []
    outbox.start()

    outbox.put(Entry(result(1), ack="tag:1", written=lambda: told.append(1)))
    outbox.stop()

    assert transport.client.written == [settled(result(1), acks=("tag:1",))]
    assert told == [1]
    assert len(outbox) == 0


def test_what_comes_during_a_write_goes_out_together() -> None:
    outbox, transport = make()
    transport.client.gate = gate = gevent.event.Event()
    outbox.start()
    outbox.put(Entry(result(0)))
    gevent.sleep(0)
    move = Move("tag:2", "queue", "next", "text")

    outbox.put(Entry(ack="tag:1"))
    outbox.put(Entry(result(2), move=move))
    outbox.put(Entry(result(3), ack="tag:3"))
    gate.set()
    outbox.stop()

    assert transport.client.written == [
        settled(result(0)),
        settled(result(2), result(3), moves=(move,), acks=("tag:1", "tag:3")),
    ]


def test_news_goes_out_behind_the_outcomes_that_were_there_when_it_was_fetched() -> None:
    outbox, transport = make()
    waiting = [Publication("channel", "first"), Publication("channel", "second")]
    outbox.news = lambda: [waiting.pop(0)] if waiting else []
    outbox.start()

    outbox.put(Entry(ack="tag:1"))
    outbox.stir()
    assert outbox.wait_written(DEADLINE_S)
    outbox.stir()
    outbox.stop()

    assert transport.client.written == [
        settled(acks=("tag:1",), news=(Publication("channel", "first"),)),
        settled(news=(Publication("channel", "second"),)),
    ]


def test_news_that_the_server_refuses_is_said_once_and_stops_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outbox, transport = make()
    transport.client.unheard = b"NOPERM this user has no permissions to access one of the channels"
    outbox.news = lambda: [Publication("channel", "text")]
    outbox.start()

    for number in range(3):
        outbox.put(Entry(ack=f"tag:{number}"))
        assert outbox.wait_written(DEADLINE_S)
    outbox.stop()

    said = [record for record in caplog.records if "events are not published" in record.message]
    assert len([record for record in said if record.levelname == "WARNING"]) == 1
    assert len(transport.client.written) == 3


def test_entry_with_nothing_to_write_is_told_of_without_a_write() -> None:
    outbox, transport = make()
    told = gevent.event.Event()
    outbox.start()

    outbox.put(Entry(written=told.set))

    assert told.wait(DEADLINE_S)
    outbox.stop()
    assert transport.client.tried == []


def test_tags_are_those_of_what_is_not_written_yet() -> None:
    outbox, _ = make()
    outbox.put(Entry(ack="tag:1"))
    outbox.put(Entry(move=Move("tag:2", "queue", "next", "text")))
    # What was acknowledged before has no tag any more.
    outbox.put(Entry(result(3), move=Move("", "queue", "last", "text")))

    assert outbox.tags() == {"tag:1", "tag:2"}

    outbox.start()
    outbox.stop()
    assert outbox.tags() == set()


REFUSALS = ["OOM", "READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "MISCONF"]


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
    told: list[int] = []
    outbox.start()

    with caplog.at_level(logging.WARNING):
        outbox.put(Entry(result(1), ack="tag:1", written=lambda: told.append(1)))
        outbox.stop()

    # The result and its acknowledgement are never parted.
    whole = settled(result(1), acks=("tag:1",))
    assert transport.client.tried == [whole, whole]
    assert told == [1]
    assert "1 outcomes wait to be written" in caplog.text


def test_refusal_for_good_is_logged_and_the_rest_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outbox, transport = make()
    transport.client.behaviours = [ServerError("EVALSHA", "WRONGTYPE no list")]
    outbox.start()

    with caplog.at_level(logging.ERROR):
        refused = gevent.event.Event()
        outbox.put(Entry(result(1), ack="tag:1", written=refused.set))
        assert refused.wait(DEADLINE_S)
        outbox.put(Entry(result(2)))
        outbox.stop()

    assert "refused an outcome for good: WRONGTYPE no list" in caplog.text
    assert transport.client.written == [settled(result(2))]


def test_state_that_is_refused_for_good_costs_no_other_entry_anything(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Given a batch, one state of which no server takes.
    outbox, transport = make()
    script = transport.client.script

    def refuse(made: Script, keys: list[str], args: list[Any]) -> int:
        if "result-2" in keys:
            raise ServerError("EVALSHA", "ERR invalid expire time in 'setex' command")
        return script(made, keys, args)

    transport.client.script = refuse  # type: ignore[method-assign]
    for number in (1, 2, 3):
        outbox.put(Entry(result(number), ack=f"tag:{number}"))

    with caplog.at_level(logging.ERROR):
        outbox.start()
        outbox.stop()

    # Then its message is acknowledged without it, and the others as always.
    assert transport.client.written == [
        settled(result(1), acks=("tag:1",)),
        settled(acks=("tag:2",)),
        settled(result(3), acks=("tag:3",)),
    ]
    assert "refused an outcome for good: ERR invalid expire time" in caplog.text


def test_results_of_another_server_are_stored_before_the_acknowledgement() -> None:
    outbox, transport = make(own_results=True)
    transport.result_client.behaviours = [
        ServerError("EVALSHA", "OOM no memory"),
        ConnectionLost("gone"),
    ]
    tried_when_stored: list[int] = []
    store = transport.result_client.script

    def note(script: Script, keys: list[str], args: list[Any]) -> int:
        tried_when_stored.append(len(transport.client.tried))
        return store(script, keys, args)

    transport.result_client.script = note  # type: ignore[method-assign]
    move = Move("tag:2", "queue", "next", "text")
    outbox.put(Entry(result(1), ack="tag:1"))
    outbox.put(Entry(result(2), move=move))
    outbox.start()
    outbox.stop()

    # It was tried three times, and until then nothing was sent to the broker.
    assert tried_when_stored == [0, 0, 0]
    assert transport.result_client.written == [settled(result(1), result(2))]
    assert transport.client.written == [settled(moves=(move,), acks=("tag:1",))]


def test_results_alone_ask_nothing_of_the_broker_when_they_have_another_server() -> None:
    outbox, transport = make(own_results=True)
    outbox.start()

    outbox.put(Entry(result(1)))
    outbox.stop()

    assert transport.result_client.written == [settled(result(1))]
    assert transport.client.tried == []


def test_stop_says_what_could_not_be_written(caplog: pytest.LogCaptureFixture) -> None:
    transport = FakeTransport()
    transport.client.behaviours = [ConnectionLost("gone") for _ in range(1000)]
    outbox = Outbox(transport, flush_timeout_s=0.0)  # type: ignore[arg-type]
    outbox.start()
    outbox.put(Entry(ack="tag:1"))
    gevent.sleep(0)

    with caplog.at_level(logging.ERROR):
        outbox.stop()
        outbox.stop()

    assert caplog.text.count("1 outcomes could not be written") == 1


def test_write_that_takes_too_long_is_written_in_smaller_parts() -> None:
    outbox, transport = make()
    transport.client.behaviours = [TransportTimeout("slow"), TransportTimeout("slow")]
    outbox._batch = 8
    results = [result(number) for number in range(8)]
    for each in results:
        outbox.put(Entry(each))

    outbox.start()
    outbox.stop()

    assert transport.client.written == [
        settled(*results[:2]),
        settled(*results[2:6]),
        settled(*results[6:]),
    ]
