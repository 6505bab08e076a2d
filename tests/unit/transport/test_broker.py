"""The moves of messages: from which record, to which place, and with what text."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from greenq.protocol import envelope
from greenq.protocol.keys import Keys
from greenq.sending.routing import worker_direct
from greenq.transport.broker import Broker

NOW = datetime(2031, 1, 2, tzinfo=UTC)


@pytest.fixture
def broker() -> Broker:
    nowhere: Any = None
    return Broker(nowhere, Keys(prefix="p-"))


def text(**headers: Any) -> bytes:
    return envelope.wrap(
        b"[]",
        content_type="application/json",
        content_encoding="utf-8",
        headers=headers,
        properties={"priority": 6, "delivery_info": {}},
    ).encode()


def test_requeued_message_keeps_its_priority_and_is_marked(broker: Broker) -> None:
    move = broker.requeue("a:1", "mail", text(), "next")

    assert (move.tag, move.key, move.side) == ("a:1", "p-mail\x06\x166", "next")
    assert json.loads(move.text)["properties"]["delivery_info"]["redelivered"] is True


def test_bytes_that_are_no_message_are_requeued_as_they_are(broker: Broker) -> None:
    move = broker.requeue("a:1", "mail", b"\xff", "last")

    assert (move.key, move.text) == ("p-mail", b"\xff")


@pytest.mark.parametrize(
    ("raw", "task_id", "task"),
    [
        (text(id="id-1", task="proj.add"), "id-1", "proj.add"),
        (text(id=5, task=None), None, None),
        (b"\xff", None, None),
    ],
)
def test_buried_message_keeps_its_bytes_and_the_reason(
    broker: Broker, raw: bytes, task_id: str | None, task: str | None
) -> None:
    move = broker.bury("a:1", "mail", raw, reason="poison", worker="w@h", now=NOW)

    record = json.loads(move.text)
    assert move.key == "p-greenq.dead.mail"
    assert base64.b64decode(record.pop("raw")) == raw
    assert record == {
        "reason": "poison",
        "buried_at": "2031-01-02T00:00:00+00:00",
        "worker": "w@h",
        "task_id": task_id,
        "task": task,
    }


def test_buried_message_goes_to_a_list_that_is_cut(broker: Broker) -> None:
    move = broker.bury("a:1", "mail", b"x", reason="r", worker="w", now=NOW)

    assert (move.tag, move.side.split()[0]) == ("a:1", "dead")


def test_parked_message_is_put_by_its_time_with_the_number_of_its_list(broker: Broker) -> None:
    move = broker.park("a:1", "mail", b"message", 6, 1924992000.25)

    assert move == ("a:1", "p-greenq.eta.mail", 1924992000.25, b"3|message")


def test_new_message_takes_the_place_of_a_reserved_one_as_the_last(broker: Broker) -> None:
    assert broker.move("a:1", "p-mail", "text") == ("a:1", "p-mail", "last", "text")


@pytest.mark.parametrize(
    ("queue", "exchange", "routing_key"),
    [
        ("mail", "mail", "mail"),
        (worker_direct("w1@host"), "C.dq2", "w1@host"),
        # Of no node.
        ("mail.dq2", "mail.dq2", "mail.dq2"),
        ("@", "@", "@"),
    ],
)
def test_queue_is_bound_to_its_exchange_and_the_queue_of_a_worker_to_that_of_all(
    broker: Broker, queue: str, exchange: str, routing_key: str
) -> None:
    member = f"{routing_key}\x06\x16\x06\x16{queue}"

    assert broker.declare_commands(queue) == [
        ("SADD", f"p-_kombu.binding.{exchange}", member),
        ("SADD", f"p-_kombu.binding_permanent.{exchange}", member),
    ]
