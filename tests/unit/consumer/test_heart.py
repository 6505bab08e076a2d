"""Heart: online, heartbeats through the watchdog thread, offline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from greenq import __version__
from greenq.consumer.event_sender import EventsStep
from greenq.consumer.heart import Heart
from greenq.execution.state import WorkerState
from greenq.protocol.clock import LamportClock
from greenq.protocol.event import read_events
from greenq.protocol.keys import Keys
from greenq.signals import heartbeat_sent
from greenq.watchdog.heartbeat import Heartbeat
from greenq.watchdog.hub_thread import Blocker

# What monitors read: wire format, section 10.
FIELDS = {"freq", "active", "processed", "loadavg", "sw_ident", "sw_ver", "sw_sys"}
BEAT = "/0.celeryev/worker.heartbeat"


class World:
    """A heart, the watch that beats for it, and a pool."""

    running = 3

    def __init__(self, **options: Any) -> None:
        self.beats: list[Heartbeat | None] = []
        self.state = WorkerState()
        events = EventsStep(self, Keys(), "me@host", LamportClock(), tasks=False)  # type: ignore[arg-type]
        self.heart = Heart(events, self, self, self.state, **options)  # type: ignore[arg-type]
        self.sent: list[tuple[str, dict[str, Any]]] = []
        events.send = lambda kind, fields: self.sent.append((kind, dict(fields)))  # type: ignore[method-assign]

    # As an outbox and as a watch.
    def wake(self) -> None: ...

    def beat(self, beat: Heartbeat | None) -> None:
        self.beats.append(beat)

    def publish(self, blocker: Blocker | None = None) -> dict[str, Any]:
        """Return what the watch publishes when a beat is due."""
        beat = self.beats[-1]
        assert beat is not None
        channel, text = beat.write(blocker)
        assert channel == BEAT
        (event,) = read_events(text, frozenset({"application/json"}))
        return event


def test_a_worker_comes_online_and_begins_to_beat() -> None:
    world = World()

    world.heart.start()

    ((kind, fields),) = world.sent
    assert kind == "worker-online"
    assert set(fields) == FIELDS
    assert [beat.every_s for beat in world.beats if beat] == [2.0]


def test_a_worker_that_stops_beats_no_more_and_says_good_bye() -> None:
    world = World()
    world.heart.start()

    world.heart.stop()

    assert world.beats[-1] is None
    assert world.sent[-1][0] == "worker-offline"
    assert set(world.sent[-1][1]) == FIELDS


@pytest.mark.parametrize("interval_s", [0.5, 30.0])
def test_the_interval_is_told_and_kept(interval_s: float) -> None:
    world = World(interval_s=interval_s)
    world.heart.start()

    assert world.beats[0] is not None
    assert world.beats[0].every_s == world.publish()["freq"] == interval_s


def test_each_beat_tells_of_this_moment() -> None:
    world = World()
    world.heart.start()
    first = world.publish()
    world.running, world.state.total["add"], world.state.total["mul"] = 7, 40, 2

    second = world.publish()

    assert (first["active"], first["processed"]) == (3, 0)
    assert (second["active"], second["processed"]) == (7, 42)
    assert second["clock"] > first["clock"]
    assert (second["sw_ident"], second["sw_ver"]) == ("greenq", __version__)
    assert len(second["loadavg"]) == 3
    assert (second["hostname"], second["type"]) == ("me@host", "worker-heartbeat")
    assert "blocked" not in second


def test_a_beat_of_a_blocked_worker_says_what_blocks_it() -> None:
    world = World()
    world.heart.start()
    blocker = Blocker(at=1.0, for_s=4.2, by="proj.add[t1]", where="proj.py:7")

    assert world.publish(blocker)["blocked"] == asdict(blocker)


def test_a_beat_that_is_asked_for_comes_at_once_and_those_after_it_go_on() -> None:
    world = World()
    world.heart.start()

    world.heart.beat()

    # Given anew, the watch publishes it at once.
    assert len(world.beats) == 2
    assert world.publish()["type"] == "worker-heartbeat"


def test_heartbeat_sent_is_called_elsewhere_and_not_again_while_it_runs() -> None:
    spawned: list[Callable[[], object]] = []
    world = World(spawn_soon=lambda run, name: spawned.append(run))
    seen: list[object] = []

    def receive(sender: object, **_: Any) -> None:
        seen.append(sender)

    world.heart.start()
    world.publish()
    assert not spawned
    heartbeat_sent.connect(receive)
    world.publish()
    world.publish()
    assert len(spawned) == 1
    assert not seen
    spawned[0]()
    assert seen == [world.heart]
    world.publish()
    assert len(spawned) == 2
    heartbeat_sent.disconnect(receive)
