"""Events: gathered for the outbox, those of tasks in one message, and never too many."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

from greenq.consumer import event_sender as events_module
from greenq.consumer.event_sender import EventsStep
from greenq.errors import EncodeError
from greenq.protocol.clock import LamportClock
from greenq.protocol.event import read_events
from greenq.protocol.keys import Keys
from greenq.protocol.message import TaskMessage

NODE = "me@host"
MULTI = "/0.celeryev/task.multi"


class World:
    """Events and the outbox that they go through."""

    def __init__(self, keys: Keys | None = None) -> None:
        self.woken = 0
        self.collect: Any = None
        self.clock = LamportClock(10)
        self.events = EventsStep(self, keys or Keys(), NODE, self.clock, tasks=True)  # type: ignore[arg-type]

    # As an outbox.
    def wake(self) -> None:
        self.woken += 1

    def written(self) -> list[tuple[str, list[dict[str, Any]]]]:
        """Return what the next write publishes: channels, and the events on each."""
        published = self.collect()
        accept = frozenset({"application/json"})
        return [(each.channel, read_events(each.text, accept)) for each in published]


@pytest.fixture
def world() -> World:
    return World()


def message(task_id: str, **fields: Any) -> TaskMessage:
    return TaskMessage(id=task_id, task="proj.add", args=[1, 2], kwargs={"k": "v"}, **fields)


def test_nothing_is_published_when_nothing_has_happened(world: World) -> None:
    assert world.written() == []
    assert world.woken == 0


def test_events_of_tasks_go_in_one_message_in_their_order(world: World) -> None:
    world.events.received(message("t1"))
    world.events.started("t1")
    world.events.succeeded("t1", "3", 0.5)
    world.events.send("task-failed", {"uuid": "t2", "exception": "E()", "traceback": "…"})

    ((channel, told),) = world.written()

    assert channel == MULTI
    kinds = ["task-received", "task-started", "task-succeeded", "task-failed"]
    assert [event["type"] for event in told] == kinds
    assert [event["clock"] for event in told] == [11, 12, 13, 14]
    assert world.written() == []


def test_events_have_the_fields_that_monitors_read(world: World) -> None:
    before = time.time()
    world.events.received(message("t1", root_id="r", parent_id="p", retries=2))
    world.events.started("t1")
    world.events.succeeded("t1", "3", 0.5)

    ((_channel, (received, started, succeeded)),) = world.written()

    for event in (received, started, succeeded):
        assert (event["hostname"], event["pid"], event["uuid"]) == (NODE, os.getpid(), "t1")
        assert before <= event["timestamp"] <= time.time()
        assert event["utcoffset"] == -time.localtime().tm_gmtoff / 3600
    assert {"name", "args", "kwargs", "root_id", "parent_id", "retries", "eta", "expires"} <= set(
        received
    )
    assert (received["args"], received["kwargs"]) == ("[1, 2]", "{'k': 'v'}")
    assert (received["root_id"], received["parent_id"], received["retries"]) == ("r", "p", 2)
    assert (succeeded["result"], succeeded["runtime"]) == ("3", 0.5)


@pytest.mark.parametrize("kind", ["worker-online", "worker-elect-ack", "shop-sold"])
def test_any_other_event_goes_by_itself_on_its_own_channel(world: World, kind: str) -> None:
    world.events.started("t1")
    world.events.send(kind, {"n": 1})

    told = dict(world.written())

    own = f"/0.celeryev/{kind.replace('-', '.')}"
    assert set(told) == {MULTI, own}
    assert (told[own][0]["type"], told[own][0]["n"]) == (kind, 1)


def test_the_outbox_is_stirred_once_for_what_it_writes_at_once(world: World) -> None:
    for number in range(5):
        world.events.started(f"t{number}")
    assert world.woken == 1

    world.written()
    world.events.started("t6")

    assert world.woken == 2


def test_a_write_stays_short_and_the_next_one_goes_on(world: World) -> None:
    for number in range(2500):
        world.events.started(f"t{number}")

    counts, woken = [], []
    while told := world.written():
        counts.append(len(told[0][1]))
        woken.append(world.woken)

    assert counts == [1000, 1000, 500]
    # The outbox was told that there is more, but not after the last one.
    assert woken == [2, 3, 3]


def test_while_the_server_is_away_the_newest_are_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "_KEPT", 20)
    world = World()
    for number in range(50):
        world.events.started(f"t{number}")
        world.events.send("worker-note", {"number": number})

    told = world.written()

    batch = next(events for channel, events in told if channel == MULTI)
    notes = [events[0]["number"] for channel, events in told if channel != MULTI]
    assert [event["uuid"] for event in batch] == [f"t{number}" for number in range(30, 50)]
    assert notes == list(range(30, 50))


def test_a_field_that_has_no_form_in_json_is_refused_at_once(world: World) -> None:
    with pytest.raises(EncodeError):
        world.events.send("shop-sold", {"what": object()})

    assert world.written() == []


def test_a_text_that_cannot_be_encoded_does_not_keep_the_others_back(world: World) -> None:
    world.events.send("task-failed", {"uuid": "t1", "exception": "\ud800", "traceback": None})
    world.events.started("t2")

    ((_channel, told),) = world.written()

    assert [event["uuid"] for event in told] == ["t1", "t2"]
    assert told[0]["exception"] == "\ud800"


def test_channels_have_the_database_and_the_prefix_in_their_names() -> None:
    world = World(Keys(prefix="app1.", db=3))
    world.events.started("t1")

    ((channel, _told),) = world.written()

    assert channel == "app1./3.celeryev/task.multi" == world.events.channel("task-multi")
