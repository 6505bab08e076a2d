"""A worker whose clock is an hour off runs ETAs, expiries and retries by the server's clock."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from greenq.config.settings import TaskConfig
from greenq.consumer.tasks import Tasks
from greenq.execution.executor import Executor
from greenq.execution.state import WorkerState
from greenq.protocol.keys import Keys
from greenq.protocol.message import TaskMessage
from greenq.running.request import Request
from greenq.sending.producer import Producer
from greenq.sending.retry import following
from greenq.timer import Timer
from greenq.transport.broker import Broker
from greenq.transport.fetch import Delivery
from greenq.transport.leases import Renewal
from greenq.watchdog.hooks import Holdings, HubCalls, Rescue, WatchLimits
from greenq.watchdog.hub_thread import HubThread
from greenq.watchdog.thread import Watch

HOUR_S = 3600.0
CONFIG = TaskConfig()


class FakeLeases:
    """A server whose clock is `ahead_s` before this machine's."""

    connected = True
    incarnation = "own"

    def __init__(self, ahead_s: float) -> None:
        self.connection = self
        self._ahead_s = ahead_s

    def renew(
        self, _news: object = None, *, would_relay: bool = False, lead: object = None
    ) -> Renewal:
        return Renewal(
            held=True,
            server_time=time.time() + self._ahead_s,
            work=False,
            next_due=None,
            expired=[],
            first_unused=1,
        )

    def renew_scores(self, _tags: list[str]) -> None: ...

    def others(self) -> list[Any]:
        return []

    def overdue(self) -> list[str]:
        return []

    @property
    def recovery(self) -> Any:
        return SimpleNamespace(busy=False, add=bool, add_overdue=bool, close=bool)


class FakePool:
    def __init__(self) -> None:
        self.submitted: list[Request] = []

    def submit(self, request: Request) -> None:
        self.submitted.append(request)


class FakeOutbox(list[Any]):
    put = list.append


class FakeTask:
    name = "proj.add"
    acks_late = True
    rate_limit = None


class Scene:
    """The parts of a worker that look at the clock, after one renewal of its lease."""

    def __init__(self, ahead_s: float) -> None:
        self.state = WorkerState()
        self._received = 0
        watch = Watch(
            FakeLeases(ahead_s),  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            self.state,
            HubThread(lambda _: None),
            limits=WatchLimits(lease_s=3.0, visibility_timeout_s=HOUR_S, blocked_after_s=1.0),
            holdings=Holdings(
                unsettled=lambda: (set(), 1),
                first_unused=lambda: 1,
                is_waiting=lambda: False,
                unwritten=list,
            ),
            calls=HubCalls(look=lambda: None, paused=lambda _: None, forgotten=lambda: None),
            rescue=Rescue(give_away=lambda _: None),
        )
        watch.renew()
        self.pool, self.timer, self.outbox = FakePool(), Timer(clock=lambda: 0.0), FakeOutbox()
        broker = Broker(None, Keys())  # type: ignore[arg-type]
        fields = {"stores_results": False, "broker": broker, "signer": None}
        transport: Any = type("FakeTransport", (), fields)()
        parts: dict[str, Any] = {
            "config": CONFIG,
            "transport": transport,
            "outbox": self.outbox,
            "state": self.state,
            "hostname": "node",
            "handover": SimpleNamespace(index=None),
        }
        self.tasks = Tasks(
            **parts,
            registry={"proj.add": FakeTask()},  # type: ignore[arg-type]
            fetcher=None,  # type: ignore[arg-type]
            pool=self.pool,  # type: ignore[arg-type]
            timer=self.timer,
            left_behind=lambda: None,
        )
        self.executor = Executor(**parts, producer=None)  # type: ignore[arg-type]
        self.server_now = datetime.now(UTC) + timedelta(seconds=ahead_s)

    def receive(self, **options: Any) -> None:
        outgoing = Producer(None, CONFIG).prepare("proj.add", (), {}, options)  # type: ignore[arg-type]
        self._received += 1
        self.tasks.admission.receive(
            Delivery(f"own:{self._received}", "celery", outgoing["text"].encode())
        )


@pytest.fixture(params=[HOUR_S, -HOUR_S], ids=["an hour slow", "an hour fast"])
def scene(request: pytest.FixtureRequest) -> Scene:
    return Scene(request.param)


def test_eta_waits_for_the_server_s_clock(scene: Scene) -> None:
    scene.receive(eta=scene.server_now + timedelta(seconds=20))

    assert not scene.pool.submitted
    assert scene.timer._heap[0].due_s == pytest.approx(20, abs=1)


def test_etas_are_parked_when_many_are_held(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greenq.consumer.waiting._ETAS_HELD", 2)
    soon = scene.server_now + timedelta(seconds=20)
    for _ in range(4):
        scene.receive(eta=soon)
    scene.receive(eta=scene.server_now - timedelta(seconds=1))

    assert (len(scene.timer._heap), len(scene.outbox), len(scene.pool.submitted)) == (2, 2, 1)
    parked = scene.outbox[0].move
    assert parked.key == "greenq.eta.celery"
    assert parked.side == pytest.approx(soon.timestamp())


def test_eta_that_has_come_by_the_server_s_clock_runs_at_once(scene: Scene) -> None:
    scene.receive(eta=scene.server_now - timedelta(seconds=1))

    assert len(scene.pool.submitted) == 1


@pytest.mark.parametrize(("left_s", "runs"), [(60, True), (-1, False)])
def test_expiry_is_by_the_server_s_clock(scene: Scene, left_s: float, runs: bool) -> None:
    scene.receive(expires=scene.server_now + timedelta(seconds=left_s))

    assert len(scene.pool.submitted) == runs
    # What has expired is acknowledged.
    assert len(scene.outbox) == (not runs)


def test_eta_of_a_retry_is_by_the_server_s_clock(scene: Scene) -> None:
    message = TaskMessage(task="add", id="x", args=[], kwargs={})
    offset_s = scene.state.clock_offset_s

    later = following(message, [], {}, {"countdown": 10}, zone=UTC, clock_offset_s=offset_s)

    assert later.eta is not None
    left = datetime.fromisoformat(later.eta) - scene.server_now
    assert left.total_seconds() == pytest.approx(10, abs=1)
