"""The timer calls what is due, by a clock that the test sets."""

from __future__ import annotations

import logging

import gevent
import pytest
from gevent.event import Event

from greenq.timer import Timer

DEADLINE_S = 5.0


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timer(clock: Clock) -> Timer:
    return Timer(clock)


def test_calls_come_in_the_order_they_are_due_and_equal_ones_in_the_order_they_were_asked(
    timer: Timer, clock: Clock
) -> None:
    called: list[str] = []
    for name, delay_s in (("b1", 2), ("a", 1), ("b2", 2), ("later", 9)):
        timer.call_after(delay_s, lambda name=name: called.append(name))

    assert timer.run_due() == 1.0
    assert called == []
    clock.now_s += 2
    assert timer.run_due() == 7.0

    assert called == ["a", "b1", "b2"]
    assert len(timer) == 1


def test_nothing_is_due_when_nothing_is_left(timer: Timer, clock: Clock) -> None:
    timer.call_after(1, lambda: None)
    clock.now_s += 1

    assert timer.run_due() is None
    assert timer.run_due() is None


@pytest.mark.parametrize("delay_s", [float("nan"), float("inf"), 10**400])
def test_no_time_at_all_is_later_than_every_other(
    timer: Timer, clock: Clock, delay_s: float
) -> None:
    calls: list[int] = []
    for number in (3, 1, 2):
        timer.call_after(delay_s, lambda: calls.append(0))
        timer.call_after(number, lambda number=number: calls.append(number))
    clock.now_s += 3

    timer.run_due()

    assert calls == [1, 2, 3]


def test_cancelled_call_is_passed_over(timer: Timer, clock: Clock) -> None:
    called: list[int] = []
    timer.call_after(1, lambda: called.append(1)).cancel()
    timer.call_after(1, lambda: called.append(2))
    clock.now_s += 1

    timer.run_due()

    assert called == [2]


def test_repeated_call_comes_once_when_it_is_late_by_several_turns(
    timer: Timer, clock: Clock
) -> None:
    called: list[float] = []
    timer.call_repeatedly(10, lambda: called.append(clock.now_s))

    clock.now_s = 1035
    assert timer.run_due() == 10.0
    clock.now_s = 1045
    timer.run_due()

    assert called == [1035, 1045]


def test_repeated_call_may_cancel_itself(timer: Timer, clock: Clock) -> None:
    called: list[int] = []

    def call() -> None:
        called.append(1)
        entry.cancel()

    entry = timer.call_repeatedly(1, call)
    clock.now_s += 1

    assert timer.run_due() is None
    assert called == [1]


def test_failing_call_is_logged_and_keeps_no_other_from_its_turn(
    timer: Timer, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    called: list[int] = []

    def fail() -> None:
        raise ValueError("broken call")

    timer.call_repeatedly(1, fail)
    timer.call_after(1, lambda: called.append(1))
    clock.now_s += 1

    with caplog.at_level(logging.ERROR):
        timer.run_due()

    assert called == [1]
    assert "broken call" in caplog.text
    assert len(timer) == 1


def test_call_made_by_a_call_is_seen(timer: Timer, clock: Clock) -> None:
    timer.call_after(1, lambda: timer.call_after(3, lambda: None))
    clock.now_s += 1

    assert timer.run_due() == 3.0


def test_started_timer_wakes_for_an_earlier_call() -> None:
    timer, called = Timer(), Event()
    timer.call_after(3600, lambda: None)
    timer.start()
    try:
        # It rests until the distant one is due.
        gevent.sleep(0)
        timer.call_after(0, called.set)
        assert called.wait(DEADLINE_S)
    finally:
        timer.stop()


def test_stop_forgets_what_is_not_due_and_is_safe_at_any_time() -> None:
    timer = Timer()
    timer.stop()
    timer.call_after(3600, lambda: None)
    timer.start()

    timer.stop()
    timer.stop()

    assert len(timer) == 0
