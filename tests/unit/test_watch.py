"""The thread beside the hub: when it renews, when it rings, and when it calls the hub blocked."""

from __future__ import annotations

import logging
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from greenq.errors import OperationalError, ServerError, TransportTimeout
from greenq.transport.leases import Renewal
from greenq.watch import Watch
from greenq.worker_state import WorkerState

LEASE_S = 3.0
BLOCKED_AFTER_S = 1.0


class World:
    """A clock, a server and a hub that do as they are told."""

    connected = True
    incarnation = "own"

    def __init__(self) -> None:
        self.now_s = 100.0
        self.answer: Renewal | OperationalError = renewal()
        self.connection = self
        self.rung = 0
        self.due, self.promote_takes_s = 0, 0.01
        # Of the hub.
        self.answers = True
        self.asked_s = self.moved_s = self.lag_s = 0.0
        self.watch = Watch(
            self,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            WorkerState(),
            lease_s=LEASE_S,
            visibility_timeout_s=3600.0,
            blocked_after_s=BLOCKED_AFTER_S,
            blocking_task=lambda _: "proj.add[id]",
            held=lambda: (set(), 1),
            look=lambda: None,
            paused=lambda _: None,
            clock=lambda: self.now_s,
        )
        self.watch._thread = SimpleNamespace(  # type: ignore[assignment]
            hub_thread=threading.get_ident(), wake=lambda: None, runs_here=lambda: True
        )

    # As leases and their connection.
    def renew(self) -> Renewal:
        if isinstance(self.answer, OperationalError):
            raise self.answer
        return self.answer

    def renew_scores(self, _tags: list[str]) -> None: ...

    def others(self) -> list[Any]:
        return []

    def recover_overdue(self, _living: list[str]) -> int:
        return 0

    def close(self) -> None: ...

    def promote(self) -> int:
        self.now_s += self.promote_takes_s
        self.due, moved = max(0, self.due - 1000), min(self.due, 1000)
        return moved

    # As a hub.
    def ping(self) -> None:
        self.asked_s = self.now_s
        self.move()

    def move(self) -> None:
        if self.answers:
            self.moved_s, self.lag_s = self.now_s, self.now_s - self.asked_s

    def spawn_soon(self, run: object, *, name: str) -> None:
        assert run is self.watch._look
        assert name
        self.rung += 1

    def run(self, seconds: float) -> list[float]:
        """Look whenever it is due, for so long; return the moments."""
        end_s, looks = self.now_s + seconds, []
        while (due_s := max(self.now_s, self.watch._look_at_s)) <= end_s:
            self.now_s = due_s
            looks.append(due_s)
            self.watch._look_at_hub()
        self.now_s = end_s
        return looks


def renewal(*, work: bool = False) -> Renewal:
    return Renewal(held=True, server_time=0.0, work=work, next_due=None, expired=[])


@pytest.mark.parametrize(
    ("answer", "rings"),
    [
        (renewal(), 0),
        (renewal(work=True), 1),
        (TransportTimeout("silent"), 1),
        # What refuses or hangs up is noticed by itself.
        (ServerError("EVALSHA", "OOM"), 0),
    ],
)
def test_consumer_is_rung_when_there_is_work_or_the_server_is_silent(
    answer: Renewal | OperationalError, rings: int
) -> None:
    world = World()
    world.answer = answer

    world.watch._renew()

    assert world.rung == rings


def test_all_etas_that_are_due_are_moved_in_one_go_but_no_other_duty_waits_for_them() -> None:
    world = World()
    world.watch._renew()
    world.watch._look_at_s = world.now_s + 0.5

    world.due = 10_000
    world.watch._promote()

    # What is due next, a renewal tells.
    assert (world.due, world.watch._renew_at_s) == (0, world.now_s)

    world.watch._renew()
    renew_at_s = world.watch._renew_at_s
    world.watch._look_at_s = world.now_s + 0.5
    world.due, world.promote_takes_s = 1_000_000, 0.1
    world.watch._promote()

    assert world.now_s <= world.watch._look_at_s + world.promote_takes_s
    assert world.due > 0
    assert world.watch._renew_at_s == renew_at_s


@pytest.mark.parametrize("lease_s", [3.0, 10.0, 60.0])
def test_a_renewal_on_a_dead_connection_leaves_time_for_another(lease_s: float) -> None:
    world = World()
    world.watch._renew_every_s *= lease_s / LEASE_S
    world.watch._renew()
    renewed_s = world.now_s
    world.now_s = world.watch._renew_at_s
    # The limit of a worker's connection for this.
    world.answer = TransportTimeout("silent")
    world.watch._renew()

    again_s = world.watch._renew_at_s + lease_s / 3

    assert again_s < renewed_s + lease_s


def test_an_idle_hub_is_asked_twice_a_second_and_never_called_blocked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()

    looks = world.run(60.0)

    assert len(looks) == pytest.approx(2 * 60, abs=1)
    assert not caplog.records


@pytest.mark.parametrize(("blocked_s", "said"), [(0.9, 0), (1.5, 1), (20.0, 1)])
def test_a_blocked_hub_is_named_once_and_so_is_its_end(
    blocked_s: float, said: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    world = World()
    world.run(10.0)

    world.answers = False
    world.run(blocked_s)
    world.answers = True
    world.move()
    world.run(10.0)

    assert world.watch.blocked_count == said
    texts = [record.getMessage() for record in caplog.records]
    assert [text.split(" by ")[0] for text in texts[:1]] == [
        f"the hub has been blocked for {BLOCKED_AFTER_S:.1f} s"
    ] * said
    assert len(texts) == 2 * said
    if said:
        assert "by proj.add[id] at " in texts[0]
        assert "the hub moves again; it was blocked for" in texts[1]
