"""Probes: red only for what a restart mends, and each reason in a sentence."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from greenq.errors import ConnectFailed
from greenq.monitoring.health import LEAST_WATCH_S, Health
from greenq.watchdog.hub_thread import Blocker
from tests.unit.node import NODE, Node

LIMIT_S = 30.0


class Rig:
    """The health of a worker that takes messages, and ways to break it."""

    def __init__(self, node: Node) -> None:
        self.now_s = 1000.0
        self.node = node
        self.parts = node.parts
        self.consumer = node.worker.consumer
        self.health = Health(self.parts, self.consumer, clock=lambda: self.now_s)
        self.consumer.has_started = self.consumer.is_consuming = True
        self.parts.watch.turned_s = self.now_s

    def block(self, monkeypatch: pytest.MonkeyPatch, for_s: float) -> None:
        def blocking(patience_s: float = 0.5) -> Blocker | None:
            return (
                Blocker(1.0, for_s, "proj.report[id]", "report.py:41")
                if (for_s >= patience_s)
                else None
            )

        monkeypatch.setattr(self.parts.watch.monitor, "blocking", blocking)


@pytest.fixture
def rig() -> Iterator[Rig]:
    node = Node(settings={"worker_hub_blocked_limit": LIMIT_S})
    yield Rig(node)
    node.close()


def test_a_worker_that_takes_messages_is_well(rig: Rig) -> None:
    for report in (rig.health.live(), rig.health.ready(), rig.health.started()):
        assert report.ok
        shown = report.as_json()
        assert (shown["status"], shown["reasons"], shown["notes"]) == ("ok", [], [])
        assert (shown["node"], shown["queues"], shown["blocked"]) == (NODE, ["celery"], None)


def test_a_short_block_is_a_note_only(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.block(monkeypatch, 0.6)
    assert rig.health.ready().ok
    assert rig.health.live().notes == ["the hub is blocked by proj.report[id]"]


def test_a_blocked_worker_takes_nothing_but_lives(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.block(monkeypatch, LIMIT_S - 0.1)
    assert rig.health.live().ok
    assert rig.health.ready().reasons == [
        "the hub has been blocked for 29.9 s by proj.report[id] at report.py:41"
    ]


def test_a_hub_that_is_blocked_beyond_every_limit_is_dead(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.block(monkeypatch, LIMIT_S)
    (reason,) = rig.health.live().reasons
    assert "longer than worker_hub_blocked_limit (30 s)" in reason


def test_without_a_limit_no_block_is_deadly(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(settings={"worker_hub_blocked_limit": 0})
    rig = Rig(node)
    rig.block(monkeypatch, 1e6)
    rig.now_s += 1e6
    assert rig.health.live().ok
    node.close()


def test_a_dead_watchdog_thread_is_deadly_but_not_one_that_waits(rig: Rig) -> None:
    rig.now_s += LEAST_WATCH_S - 1
    assert rig.health.live().ok
    rig.now_s += 1
    assert rig.health.live().reasons == ["the watchdog thread has not run for 60 s"]


def test_a_watchdog_thread_that_has_not_started_is_not_dead(rig: Rig) -> None:
    rig.parts.watch.turned_s = math.inf
    assert rig.health.live().ok


def test_without_a_server_a_worker_lives_and_is_not_ready(rig: Rig) -> None:
    rig.parts.state.lease_until_s = rig.parts.state.now_s() - 1
    rig.parts.watch.lease.problem = ConnectFailed("cannot reach redis://x")
    rig.consumer.is_consuming = False
    rig.consumer.problem = ConnectFailed("cannot reach redis://x")
    assert rig.health.live().ok
    assert rig.health.started().ok
    assert rig.health.ready().reasons == [
        "the worker holds no lease: cannot reach redis://x",
        "no messages are taken: cannot reach redis://x",
    ]


@pytest.mark.parametrize(
    ("attribute", "reason"), [("starting", "the worker is starting"),
    ("stopping", "the worker is stopping")],
)  # fmt: skip
def test_the_beginning_and_the_end_are_named(rig: Rig, attribute: str, reason: str) -> None:
    rig.consumer.has_started = attribute != "starting"
    rig.consumer.is_stopping = attribute == "stopping"
    assert rig.health.ready().reasons == [reason]
    assert rig.health.started().ok == (attribute == "stopping")
    assert rig.health.live().ok


def test_what_is_paused_on_purpose_is_ready(rig: Rig) -> None:
    rig.parts.state.paused = frozenset(("celery", "another"))
    rig.parts.tasks.draining = True
    report = rig.health.ready()
    assert report.ok
    assert report.notes == [
        "queue celery is paused", "draining: no messages are taken, as requested",
    ]  # fmt: skip
