"""What is published to a worker: heard by one thread, dealt with by another, in order."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from greenq.errors import AccessRefused
from greenq.transport.client import Published
from greenq.watchdog import subscriber
from greenq.watchdog.subscriber import Subscriber
from tests.unit.rig import DEADLINE_S, settle


class World:
    """A connection and a hub that note what is asked of them."""

    def __init__(self) -> None:
        self.subscriptions: list[tuple[str, list[str], list[str]]] = []
        self.published: list[Published] = []
        self.refuses = False
        self.sent_for: list[Callable[[], object]] = []
        self.changes = 0
        self.subscriber = Subscriber(self, changed=self._change)  # type: ignore[arg-type]

    def _change(self) -> None:
        self.changes += 1

    # As a connection.
    def subscribe(self, channels: list[str], patterns: list[str]) -> None:
        self.subscriptions.append(("+", channels, patterns))
        if self.refuses:
            raise AccessRefused("not there")

    def unsubscribe(self, channels: list[str], patterns: list[str]) -> None:
        self.subscriptions.append(("-", channels, patterns))

    def messages(self) -> list[Published]:
        heard, self.published = self.published, []
        return heard

    # As a hub.
    def spawn_soon(self, run: Callable[[], object], *, name: str) -> None:
        assert name
        self.sent_for.append(run)

    def attend(self) -> bool:
        return self.subscriber.poll(self)  # type: ignore[arg-type]

    def move_hub(self) -> None:
        for run in self.sent_for:
            run()
        self.sent_for.clear()


@pytest.mark.parametrize("refuses", [False, True])
def test_start_waits_until_the_server_knows_what_is_listened_to(refuses: bool) -> None:
    world = World()
    world.refuses = refuses
    world.subscriber.subscribe("a", print)
    waiting = gevent.spawn(world.subscriber.wait_heard, DEADLINE_S)
    settle()
    assert not waiting.ready()

    with suppress(AccessRefused):
        world.attend()
    world.subscriber.subscribe("b", print)
    world.move_hub()
    settle()
    assert not waiting.ready(), "what was told of is not what is waited for"

    with suppress(AccessRefused):
        world.attend()
    world.move_hub()
    waiting.join(DEADLINE_S)
    assert waiting.successful()


def test_subscriptions_follow_what_is_listened_to() -> None:
    world = World()
    world.subscriber.subscribe("/0.celery.pidbox", print)
    world.subscriber.subscribe("/0.celeryev/worker.*", print)

    world.attend()
    world.attend()
    world.subscriber.unsubscribe("/0.celery.pidbox")
    world.attend()

    assert world.subscriptions == [
        ("+", ["/0.celery.pidbox"], ["/0.celeryev/worker.*"]),
        ("-", ["/0.celery.pidbox"], []),
    ]
    assert world.changes >= 3


def test_a_new_connection_gets_all_subscriptions_again() -> None:
    world = World()
    world.subscriber.subscribe("channel", print)
    world.attend()

    world.subscriber.reconnected()
    world.attend()

    assert world.subscriptions == [("+", ["channel"], [])] * 2


def test_what_may_not_be_listened_to_is_asked_for_once() -> None:
    world = World()
    world.refuses = True
    world.subscriber.subscribe("channel", print)

    with pytest.raises(AccessRefused):
        world.attend()
    world.attend()

    assert len(world.subscriptions) == 1


def test_messages_reach_their_handlers_in_order_even_when_one_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.ERROR)
    world, got = World(), []

    def exact(data: bytes) -> None:
        got.append(("exact", data))
        raise RuntimeError("of the handler")

    world.subscriber.subscribe("events/one", exact)
    world.subscriber.subscribe("events/*", lambda data: got.append(("pattern", data)))
    world.published = [
        Published("events/one", b"1"),
        Published("events/two", b"2"),
        Published("others", b"3"),
    ]

    world.attend()
    assert got == []
    world.move_hub()

    assert got == [("exact", b"1"), ("pattern", b"1"), ("pattern", b"2")]
    assert "events/one" in caplog.text


def test_handlers_may_know_what_is_unheard_and_how_late_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, now_s, late_s = World(), 100.0, []
    monkeypatch.setattr(subscriber, "time", SimpleNamespace(monotonic=lambda: now_s))
    world.subscriber.subscribe("channel", lambda _data: late_s.append(world.subscriber.late_s))
    world.subscriber.subscribe("other", print)
    assert not world.subscriber.has_waiting("channel")

    world.published = [Published("channel", b"1")]
    world.attend()
    assert world.subscriber.has_waiting("channel")
    assert not world.subscriber.has_waiting("other")
    now_s += 3
    world.move_hub()

    assert late_s == [3.0]
    assert not world.subscriber.has_waiting("channel")


def test_a_handler_that_waits_is_not_overtaken() -> None:
    world, got = World(), []

    def handle(data: bytes) -> None:
        got.append(data)
        if data == b"1":
            # As when the handler switches: the hub runs what came meanwhile.
            world.published = [Published("channel", b"2")]
            world.attend()
            world.sent_for.pop()()
            assert got == [b"1"]

    world.subscriber.subscribe("channel", handle)
    world.published = [Published("channel", b"1")]
    world.attend()
    world.move_hub()

    assert got == [b"1", b"2"]


class TestUrgent:
    """What the thread answers while the hub does not."""

    @pytest.fixture
    def world(self, monkeypatch: pytest.MonkeyPatch) -> World:
        world = World()
        world.now_s = 100.0  # type: ignore[attr-defined]
        monkeypatch.setattr("greenq.watchdog.subscriber.time.monotonic", lambda: world.now_s)  # type: ignore[attr-defined]
        self.handled: list[bytes] = []
        self.answered: list[bytes] = []
        self.offered: list[bytes] = []
        world.subscriber.subscribe("channel", self.handled.append, urgent=self.urgent)
        return world

    def urgent(self, data: bytes) -> Callable[[Any], object] | None:
        self.offered.append(data)
        if data == b"ping":
            return lambda _connection: self.answered.append(data)
        return None

    def hear(self, world: World, *texts: bytes) -> None:
        world.published = [Published("channel", text) for text in texts]
        assert world.attend()

    def test_nothing_is_urgent_while_the_hub_moves(self, world: World) -> None:
        self.hear(world, b"ping")
        world.move_hub()

        assert world.subscriber.oldest_s == float("inf")
        world.subscriber.answer_urgent(world)  # type: ignore[arg-type]
        assert (self.offered, self.handled) == ([], [b"ping"])

    def test_a_blocked_hub_is_answered_for_and_the_rest_waits_for_it(self, world: World) -> None:
        self.hear(world, b"stats", b"ping")
        assert world.subscriber.oldest_s == 100.0

        world.subscriber.answer_urgent(world)  # type: ignore[arg-type]
        world.subscriber.answer_urgent(world)  # type: ignore[arg-type]

        assert self.answered == [b"ping"]
        # Each is looked at once.
        assert self.offered == [b"stats", b"ping"]
        assert world.subscriber.oldest_s == float("inf")
        world.move_hub()
        assert self.handled == [b"stats"]

    def test_what_the_hub_has_begun_with_is_not_answered_twice(self, world: World) -> None:
        self.hear(world, b"ping")
        # The hub takes it between the thread's look and its answer.
        original = self.urgent

        def late(data: bytes) -> Callable[[Any], object] | None:
            world.move_hub()
            return original(data)

        next(iter(world.subscriber._waiting)).channel.urgent = late
        world.subscriber.answer_urgent(world)  # type: ignore[arg-type]

        assert (self.handled, self.answered) == ([b"ping"], [])


def test_a_flood_keeps_the_newest() -> None:
    world, got = World(), []
    world.subscriber.subscribe("channel", got.append)
    world.published = [Published("channel", b"%d" % number) for number in range(10_050)]

    world.attend()
    world.move_hub()

    assert (len(got), got[-1]) == (10_000, b"10049")
