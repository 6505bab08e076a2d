"""Senders tell of what they have sent, when asked to, and it never costs a sending."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from greenq import Greenq
from greenq.protocol.event import read_events
from greenq.protocol.serialize import accepted
from greenq.transport.client import Client
from tests.servers import Server
from tests.support import wait_until
from tests.vectors import load

pytestmark = pytest.mark.smoke

FIELDS = (
    *("hostname", "utcoffset", "pid", "clock", "uuid", "root_id", "parent_id", "name", "args"),
    *("kwargs", "retries", "eta", "expires", "queue", "exchange", "routing_key", "timestamp"),
    "type",
)


class Ear:
    """Hears all events of tasks."""

    def __init__(self, server: Server) -> None:
        self.connection = Client(server.url).connection(pushes=True)
        self.connection.subscribe(patterns=["/0.celeryev/task.*"])

    def hear(self, count: int) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []

        def enough() -> bool:
            for message in self.connection.messages():
                events.extend(read_events(message.data, accepted(["json"])))
            return len(events) >= count

        wait_until(enough)
        return events


@pytest.fixture
def ear(server: Server) -> Ear:
    return Ear(server)


def test_one_event_tells_of_one_task(server: Server, ear: Ear) -> None:
    app = Greenq("sender", broker=server.url, task_send_sent_event=True)

    sent = app.send_task(
        "proj.add", (1, 2), {"z": "3"}, queue="mail", countdown=60, root_id="r", parent_id="p"
    )

    (event,) = ear.hear(1)
    assert tuple(event) == FIELDS
    assert event["type"] == "task-sent"
    told = {name: event[name] for name in ("uuid", "name", "args", "kwargs", "queue")}
    assert told == {
        "uuid": sent.id,
        "name": "proj.add",
        "args": "(1, 2)",
        "kwargs": "{'z': '3'}",
        "queue": "mail",
    }
    assert (event["root_id"], event["parent_id"], event["retries"]) == ("r", "p", 0)
    assert (event["exchange"], event["routing_key"], event["expires"]) == ("", "mail", None)
    message = json.loads(server.client.lindex("mail", 0))
    assert event["eta"] == message["headers"]["eta"]
    app.close()


def test_it_has_the_fields_that_celery_sends() -> None:
    recorded = [
        event
        for command in load.commands("events_life")
        if command.args[0].upper() == b"PUBLISH" and b"celeryev/task.sent" in command.args[1]
        for event in read_events(command.args[2], accepted(["json"]))
    ]

    assert recorded
    assert {tuple(event) for event in recorded} == {FIELDS}


def test_a_push_of_many_is_told_in_one_message(server: Server, ear: Ear) -> None:
    app = Greenq("sender", broker=server.url, task_send_sent_event=True)

    sent = app.send_task_many("proj.add", [((number,), {}) for number in range(250)])

    events = ear.hear(250)
    assert [event["uuid"] for event in events] == list(map(str, sent))
    assert [event["args"] for event in events] == [f"({number},)" for number in range(250)]
    app.close()


def test_nothing_is_told_unless_it_is_asked_for(server: Server, ear: Ear) -> None:
    app = Greenq("sender", broker=server.url)
    app.send_task("proj.add")
    asking = Greenq("asker", broker=server.url, task_send_sent_event=True)
    last = asking.send_task("proj.add")

    assert [event["uuid"] for event in ear.hear(1)] == [last.id]
    app.close()
    asking.close()


def test_who_may_not_publish_sends_all_the_same(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    server.client.acl_setuser(
        "mute", enabled=True, passwords=["+pw"], commands=["+@all"], keys=["*"], reset_channels=True
    )
    app = Greenq(
        "sender", broker=server.url.replace("://", "://mute:pw@"), task_send_sent_event=True
    )

    for _ in range(3):
        app.send_task("proj.add")

    assert server.client.llen("celery") == 3
    assert len([each for each in caplog.records if "events" in each.message]) == 1
    app.close()
