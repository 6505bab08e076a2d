"""The time that each running request has held the hub."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gevent
import greenlet
import pytest

from greenq.diagnostics.hub_time import HubTime
from greenq.pool import Pool

DEADLINE_S = 5.0


class Clock:
    """Stands still until a task takes its time."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class FakeRequest:
    """Stands for a request; its task takes what `steps` says, and gives way after each."""

    def __init__(self, *steps: float) -> None:
        self.steps = steps
        self.hub_s = 0.0
        self.started_s: float | None = None
        self.greenlet: Any = None
        self.ran = False

    def throw(self, *exc: Any) -> None:
        self.greenlet.throw(*exc)


class Lab:
    """A pool whose tasks take time on a fake clock."""

    def __init__(self, size: int = 10) -> None:
        self.clock = Clock()
        self.pool = Pool(size, self.run)  # type: ignore[arg-type]
        self.hub_time = HubTime(self.pool._greenlets.greenlet_class, clock=self.clock)
        self.greenlets: set[object] = set()

    def run(self, request: FakeRequest) -> None:
        request.started_s = self.clock()
        self.greenlets.add(request.greenlet)
        for step in request.steps:
            self.clock.now_s += step
            if step != request.steps[-1]:
                gevent.sleep(0)
        request.ran = True

    def all(self, *requests: FakeRequest) -> None:
        """Run requests to their ends."""
        for request in requests:
            self.pool.submit(request)  # type: ignore[arg-type]
        with gevent.Timeout(DEADLINE_S):
            while not all(request.ran for request in requests) or self.pool.running:
                gevent.sleep(0)


@pytest.fixture
def lab() -> Iterator[Lab]:
    made = Lab()
    yield made
    made.hub_time.stop()
    made.pool.stop()
    assert greenlet.gettrace() is None


def test_a_request_has_the_time_that_its_own_greenlet_has_run(lab: Lab) -> None:
    short, long = FakeRequest(0.25, 0.5, 0), FakeRequest(2, 4, 0)
    lab.hub_time.start()

    lab.all(short, long)

    assert short.hub_s == pytest.approx(0.75)
    assert long.hub_s == pytest.approx(6)


def test_a_request_that_runs_now_counts_up_to_now(lab: Lab) -> None:
    seen: list[float] = []

    def run(request: FakeRequest) -> None:
        request.started_s = lab.clock()
        lab.clock.now_s += 1
        gevent.sleep(0)
        lab.clock.now_s += 2
        seen.append(lab.hub_time.hub_s_of(request))  # type: ignore[arg-type]
        request.ran = True

    lab.pool._run = run  # type: ignore[assignment]
    lab.hub_time.start()

    lab.all(FakeRequest())

    assert seen == [pytest.approx(3)]


def test_a_request_that_waits_does_not_count_on(lab: Lab) -> None:
    request = FakeRequest(1, 2, 0)
    lab.hub_time.start()
    lab.pool.submit(request)  # type: ignore[arg-type]
    with gevent.Timeout(DEADLINE_S):
        while request.started_s is None:
            gevent.sleep(0)
    counted_s = lab.hub_time.hub_s_of(request)  # type: ignore[arg-type]
    assert counted_s == request.hub_s >= 1

    lab.clock.now_s += 50

    assert lab.hub_time.hub_s_of(request) == counted_s  # type: ignore[arg-type]


def test_requests_in_one_greenlet_without_a_switch_do_not_inherit_time() -> None:
    # Given one slot, so that one greenlet runs all; the first never gives way
    lab = Lab(size=1)
    first, second = FakeRequest(7), FakeRequest(1, 2, 0)
    lab.hub_time.start()

    lab.all(first, second)

    lab.hub_time.stop()
    lab.pool.stop()
    assert len(lab.greenlets) == 1
    assert second.hub_s == pytest.approx(3)


def test_what_ran_before_the_start_and_after_the_stop_is_not_counted(lab: Lab) -> None:
    before, after = FakeRequest(1, 2, 0), FakeRequest(1, 2, 0)
    lab.all(before)
    lab.hub_time.start()
    lab.hub_time.stop()
    lab.all(after)

    assert (before.hub_s, after.hub_s) == (0, 0)
    assert not lab.hub_time.on


def test_a_tracer_that_was_there_is_called_and_comes_back(lab: Lab) -> None:
    events: list[str] = []

    def other(event: str, _greenlets: tuple[Any, Any]) -> None:
        events.append(event)

    greenlet.settrace(other)
    try:
        lab.hub_time.start()
        request = FakeRequest(1, 0)
        lab.all(request)
        assert "switch" in events
        assert request.hub_s == pytest.approx(1)
        lab.hub_time.stop()
        assert greenlet.gettrace() is other
    finally:
        greenlet.settrace(None)


def test_a_tracer_that_was_set_later_stays_and_nothing_is_counted_twice(lab: Lab) -> None:
    lab.hub_time.start()
    ours = greenlet.gettrace()

    def later(event: str, greenlets: tuple[Any, Any]) -> None:
        ours(event, greenlets)

    greenlet.settrace(later)
    try:
        lab.hub_time.stop()
        assert greenlet.gettrace() is later
        ended = FakeRequest(1, 0)
        lab.all(ended)
        assert ended.hub_s == 0

        lab.hub_time.start()
        request = FakeRequest(1, 2, 0)
        lab.all(request)
        assert request.hub_s == pytest.approx(3)
    finally:
        lab.hub_time.stop()
        greenlet.settrace(None)


def test_greenlets_that_have_no_request_do_not_end_the_tracing(lab: Lab) -> None:
    lab.hub_time.start()
    trace = greenlet.gettrace()
    # Given one of the pool's that never began, as if it were left, and one of somebody else
    trace("throw", (lab.pool._greenlets.greenlet_class(print), gevent.get_hub()))
    gevent.spawn(gevent.sleep, 0).join()

    assert greenlet.gettrace() is trace
    request = FakeRequest(1, 0)
    lab.all(request)
    assert request.hub_s == pytest.approx(1)


def test_times_tell_the_loop_from_the_greenlets() -> None:
    """The loop waits in its own greenlet; everything else counts as busy."""
    clock = Clock()
    loop = greenlet.greenlet(lambda: wait(4.0))
    times = HubTime(FakeRequest, hub=loop, clock=clock)

    def wait(seconds: float) -> None:
        clock.now_s += seconds

    def work() -> None:
        clock.now_s += 1.5

    times.start()
    try:
        for each in (loop, greenlet.greenlet(work)):
            each.switch()
        assert times.times() == (5.5, 1.5)
    finally:
        times.stop()


def test_time_in_which_another_tracer_sees_the_switches_does_not_count() -> None:
    clock = Clock()
    times = HubTime(FakeRequest, hub=object(), clock=clock)

    def work() -> None:
        clock.now_s += 1.0

    times.start()
    try:
        clock.now_s += 1.0
        greenlet.greenlet(work).switch()
        assert times.times() == (2.0, 2.0)
        greenlet.settrace(lambda *_switch: None)
        greenlet.greenlet(work).switch()
        assert times.times() == (3.0, 2.0)
    finally:
        greenlet.settrace(None)
