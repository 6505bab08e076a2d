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
from greenq.transport.broker import Broker, Move
from greenq.transport.outbox import Entry, Outbox

DEADLINE_S = 5.0


class FakeConnection:
    """Notes transactions; fails or refuses as the test says, one behaviour for each write."""

    def __init__(self) -> None:
        self.written: list[list[tuple[Any, ...]]] = []
        self.loaded = 0
        self.open = False
        self.behaviours: list[OperationalError | list[Any]] = []
        # Set by a test that wants to see what gathers during one write.
        self.gate: gevent.event.Event | None = None

    def connection(self) -> FakeConnection:
        return self

    def connect(self) -> bool:
        was_open, self.open = self.open, True
        return not was_open

    def call(self, *command: Any) -> None:
        assert command[:2] == ("SCRIPT", "LOAD")
        self.loaded += 1

    def try_transaction(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        if self.gate is not None:
            gate, self.gate = self.gate, None
            assert gate.wait(DEADLINE_S)
        behaviour = self.behaviours.pop(0) if self.behaviours else []
        if isinstance(behaviour, ConnectionLost):
            self.open = False
        if isinstance(behaviour, OperationalError):
            raise behaviour
        self.written.append(list(commands))
        return behaviour or [1] * len(commands)

    def close(self) -> None:
        self.open = False


class FakeTransport:
    def __init__(self, *, own_results: bool = False) -> None:
        self.client = FakeConnection()
        self.result_client = FakeConnection() if own_results else self.client
        client: Any = self.client
        self.broker = Broker(client, Keys())


def make(*, own_results: bool = False) -> tuple[Outbox, FakeTransport]:
    transport = FakeTransport(own_results=own_results)
    return Outbox(transport, flush_timeout_s=DEADLINE_S), transport  # type: ignore[arg-type]


def result(number: int) -> tuple[str, str]:
    return ("SET", f"result-{number}")


def names(commands: list[tuple[Any, ...]]) -> list[str]:
    return [command[0] for command in commands]


def test_one_entry_is_written_at_once() -> None:
    outbox, transport = make()
    told: list[int] = []
    outbox.start()

    outbox.put(Entry([result(1)], ack="tag:1", written=lambda: told.append(1)))
    outbox.stop()

    assert transport.client.written == [
        [result(1), ("ZREM", "unacked_index", "tag:1"), ("HDEL", "unacked", "tag:1")]
    ]
    assert told == [1]
    assert len(outbox) == 0


def test_what_comes_during_a_write_goes_out_together_results_first() -> None:
    outbox, transport = make()
    transport.client.gate = gate = gevent.event.Event()
    outbox.start()
    outbox.put(Entry([result(0)]))
    gevent.sleep(0)

    outbox.put(Entry(ack="tag:1"))
    outbox.put(Entry([result(2)], move=Move("tag:2", "queue", "next", "text")))
    outbox.put(Entry([result(3)], ack="tag:3"))
    gate.set()
    outbox.stop()

    first, second = transport.client.written
    assert first == [result(0)]
    assert names(second) == ["SET", "SET", "EVALSHA", "ZREM", "HDEL"]
    assert second[-1] == ("HDEL", "unacked", "tag:1", "tag:3")


@pytest.mark.parametrize(
    "error",
    [
        ConnectionLost("gone"),
        AccessRefused("no rights"),
        ServerError("SET", "OOM command not allowed"),
        ServerError("SET", "READONLY You can't write"),
        ServerError("EXEC", "EXECABORT Transaction discarded"),
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
        outbox.put(Entry([result(1)], ack="tag:1", written=lambda: told.append(1)))
        outbox.stop()

    (written,) = transport.client.written
    assert names(written) == ["SET", "ZREM", "HDEL"]
    assert told == [1]
    assert "1 outcomes wait to be written" in caplog.text


@pytest.mark.parametrize("code", ["OOM", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN"])
def test_refusal_that_passes_is_tried_again(code: str) -> None:
    outbox, transport = make()
    transport.client.behaviours = [[ServerError("SET", f"{code} not now"), 1, 1]]
    outbox.start()

    outbox.put(Entry([result(1)], ack="tag:1"))
    outbox.stop()

    first, again = transport.client.written
    assert first == again


def test_scripts_are_loaded_for_each_new_connection_and_when_they_were_forgotten() -> None:
    outbox, transport = make()
    transport.client.behaviours = [
        ConnectionLost("gone"),
        [ServerError("EVALSHA", "NOSCRIPT No matching script")],
    ]
    outbox.start()

    outbox.put(Entry(move=Move("tag:1", "queue", "next", "text")))
    outbox.stop()

    # Twice for connections, once for the answer.
    assert transport.client.loaded == 3
    assert names(transport.client.written[-1]) == ["EVALSHA"]


def test_refusal_for_good_is_logged_and_the_rest_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outbox, transport = make()
    transport.client.behaviours = [[ServerError("SET", "WRONGTYPE no string"), 1, 1]]
    outbox.start()

    with caplog.at_level(logging.ERROR):
        refused = gevent.event.Event()
        outbox.put(Entry([result(1)], ack="tag:1", written=refused.set))
        assert refused.wait(DEADLINE_S)
        outbox.put(Entry([result(2)]))
        outbox.stop()

    assert "refused SET of result-1 for good: WRONGTYPE" in caplog.text
    assert transport.client.written[1:] == [[result(2)]]


def test_results_of_another_server_are_stored_before_the_acknowledgement() -> None:
    outbox, transport = make(own_results=True)
    transport.result_client.behaviours = [ServerError("SET", "OOM no memory")]
    acknowledged_first: list[bool] = []
    outbox.start()

    outbox.put(
        Entry(
            [result(1)],
            ack="tag:1",
            written=lambda: acknowledged_first.append(not transport.result_client.written),
        )
    )
    outbox.stop()

    assert transport.result_client.written == [[result(1)]]
    assert [names(each) for each in transport.client.written] == [["ZREM", "HDEL"]]
    assert acknowledged_first == [False]


def test_stop_says_what_could_not_be_written(caplog: pytest.LogCaptureFixture) -> None:
    transport = FakeTransport()
    transport.client.behaviours = [ConnectionLost("gone")] * 1000
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
    for number in range(8):
        outbox.put(Entry([result(number)]))

    outbox.start()
    outbox.stop()

    assert [len(commands) for commands in transport.client.written] == [2, 4, 2]
    written = [command for commands in transport.client.written for command in commands]
    assert written == [result(number) for number in range(8)]
