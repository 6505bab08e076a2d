"""Rate limits: how often a token comes, who waits in line."""

from __future__ import annotations

from typing import Any

import pytest

from greenq.execution.rate_limit import RateLimitedQueue, TokenBucket
from greenq.timer import Timer


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_token_comes_back_at_the_rate_and_there_is_never_more_than_one() -> None:
    clock = Clock()
    bucket = TokenBucket(4.0, clock)

    assert bucket.wait_s() == 0
    assert [bucket.take(), bucket.take()] == [True, False]
    assert bucket.wait_s() == pytest.approx(0.25)
    clock.now_s += 0.2
    assert not bucket.take()
    clock.now_s += 0.06
    assert bucket.take()
    # After a long rest there is one, not many.
    clock.now_s += 100
    assert [bucket.take(), bucket.take()] == [True, False]


class Begun:
    """A line, and when what began."""

    def __init__(self, a_second: float | None) -> None:
        self.clock = Clock()
        self.timer = Timer(self.clock)
        self.begun: list[tuple[float, str]] = []
        self.line = RateLimitedQueue(a_second, self.timer, self._begin)

    def _begin(self, request: Any) -> None:
        self.begun.append((round(self.clock.now_s - 100, 3), request))

    def add(self, *requests: Any) -> None:
        for request in requests:
            self.line.add(request)

    def pass_time(self, seconds: float) -> None:
        end_s = self.clock.now_s + seconds
        while (wait_s := self.timer.run_due()) is not None and self.clock.now_s + wait_s <= end_s:
            self.clock.now_s += wait_s
        self.clock.now_s = end_s
        self.timer.run_due()


def test_line_lets_its_requests_begin_in_order_at_the_rate() -> None:
    it = Begun(2.0)

    it.add("a", "b", "c")
    assert it.begun == [(0, "a")]
    assert it.line.waiting() == ["b", "c"]
    it.pass_time(0.6)
    it.add("d")
    it.pass_time(5)

    assert it.begun == [(0, "a"), (0.5, "b"), (1.0, "c"), (1.5, "d")]
    assert len(it.line) == 0


def test_new_rate_holds_for_what_waits() -> None:
    it = Begun(1 / 3600)
    it.add("a", "b", "c")

    it.line.set_rate(10.0)
    it.pass_time(1)

    # A new rate is no new token.
    assert it.begun == [(0, "a"), (0.1, "b"), (0.2, "c")]


def test_lower_rate_holds_for_what_waits() -> None:
    it = Begun(10.0)
    it.add("a", "b", "c")

    it.line.set_rate(0.5)
    it.pass_time(10)

    assert it.begun == [(0, "a"), (2.0, "b"), (4.0, "c")]


def test_line_is_called_once_for_its_next_one_however_often_its_rate_has_changed() -> None:
    it = Begun(1.0)
    it.add("a", "b", "c")

    for _ in range(20):
        it.line.set_rate(0.001)

    assert len([entry for entry in it.timer._heap if entry.call is not None]) == 1


def test_line_without_a_limit_lets_all_begin_at_once() -> None:
    it = Begun(1 / 3600)
    it.add("a", "b", "c")

    it.line.set_rate(None)
    it.add("d")

    assert [each for _, each in it.begun] == ["a", "b", "c", "d"]


def test_what_is_taken_out_does_not_begin_and_costs_no_token() -> None:
    it = Begun(1.0)
    it.add("a", "b1", "c", "b2")

    taken: Any = it.line.take_out(lambda request: str(request).startswith("b"))
    it.pass_time(10)

    assert taken == ["b1", "b2"]
    assert it.begun == [(0, "a"), (1.0, "c")]


def test_line_that_was_emptied_goes_on() -> None:
    it = Begun(1.0)
    it.add("a", "b")
    it.line.take_out(lambda _request: True)
    it.pass_time(5)

    it.add("c", "d")
    it.pass_time(5)

    assert it.begun == [(0, "a"), (5.0, "c"), (6.0, "d")]


def test_what_there_is_no_place_for_comes_back_in_turn_but_soon() -> None:
    it = Begun(0.1)
    it.add("runs", "b", "c")

    # Two are before it, ten seconds each; then those that were put aside before.
    assert [round(it.line.put_aside_s()) for _ in range(3)] == [30, 40, 50]
    assert [it.line.put_aside_s() for _ in range(100)][-1] == 600
