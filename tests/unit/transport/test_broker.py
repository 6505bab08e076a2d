"""The commands that move and acknowledge messages, as they go to the server."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from greenq.protocol import envelope
from greenq.protocol.keys import Keys
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


def test_acknowledgement_names_all_tags_in_two_commands(broker: Broker) -> None:
    assert broker.ack_commands(["a:1", "a:2"]) == [
        ("ZREM", "p-unacked_index", "a:1", "a:2"),
        ("HDEL", "p-unacked", "a:1", "a:2"),
    ]


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


def test_moves_share_one_script_call_and_name_each_list_once(broker: Broker) -> None:
    moves = [
        broker.move("a:1", "q1", "one"),
        broker.move("a:2", "q2", "two"),
        broker.move("a:3", "q1", "three"),
    ]

    name, _, count, *rest = broker.move_command(moves)

    assert (name, count) == ("EVALSHA", 4)
    assert rest == [
        *("p-unacked", "p-unacked_index", "q1", "q2"),
        *("a:1", 1, "last", "one"),
        *("a:2", 2, "last", "two"),
        *("a:3", 1, "last", "three"),
    ]


def test_only_dead_letter_lists_are_bounded(broker: Broker) -> None:
    moves = [
        broker.move("a:1", "q1", "one"),
        broker.bury("a:2", "mail", b"x", reason="r", worker="w", now=NOW),
        broker.bury("a:3", "mail", b"y", reason="r", worker="w", now=NOW),
    ]

    (command,) = broker.bound_commands(moves)

    assert command[:2] == ("LTRIM", "p-greenq.dead.mail")
