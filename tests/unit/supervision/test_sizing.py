"""How many processes a group gets: the decision by table, and over simulated time."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from greenq.supervision.sizing import GroupSample, Rules, SizeChange, decide, lasted

RULES = Rules(most=4, least=1, grow_after_s=10.0, keepalive_s=60.0)
CALM = GroupSample(at_s=0.0, workers=1, coming=0, busy=0.1, backlog=0, age_s=0.0)
BUSY = replace(CALM, busy=0.95, backlog=100)


def over(seconds: float, sample: GroupSample, every_s: float = 2.0) -> list[GroupSample]:
    """Return samples of one load over some time."""
    return [replace(sample, at_s=n * every_s) for n in range(round(seconds / every_s) + 1)]


@pytest.mark.parametrize(
    ("samples", "change", "reason"),
    [
        (over(0, CALM), 0, "steady"),
        (over(100, CALM), 0, "steady"),
        (over(8, BUSY), 0, "steady"),
        (over(10, BUSY), 1, "hubs busy for 95% of the time over 10 s, 100 waiting"),
        (over(100, replace(BUSY, backlog=0)), 0, "steady"),
        (over(100, replace(BUSY, busy=0.7)), 0, "steady"),
        (over(10, replace(BUSY, workers=2, busy=1.7)), 1, "hubs busy for 85%"),
        (over(10, replace(BUSY, workers=2, busy=1.5)), 0, "steady"),
        (over(10, replace(BUSY, coming=1)), 0, "has not reported yet"),
        (over(10, replace(BUSY, workers=4, busy=4.0)), 0, "at the maximum"),
        ([*over(8, BUSY), replace(CALM, at_s=9), replace(BUSY, at_s=11)], 0, "steady"),
        ([*over(10, BUSY)[:-1], replace(BUSY, at_s=10, workers=2, busy=1.9)], 0, "steady"),
        (
            over(60, replace(CALM, workers=2)),
            -1,
            "one process fewer would have been enough for 60 s",
        ),
        (over(58, replace(CALM, workers=2)), 0, "steady"),
        (over(60, replace(CALM, workers=2, busy=0.6)), 0, "steady"),
        (over(60, replace(CALM, workers=3, busy=0.9)), -1, "one process fewer"),
        (over(60, replace(CALM, workers=2, age_s=30)), 0, "steady"),
        (over(0, replace(CALM, workers=5)), -1, "at most 4"),
        (over(0, replace(CALM, workers=0)), 0, "at least 1 soon"),
        (over(10, replace(CALM, workers=0)), 1, "0 processes: at least 1"),
        (over(10, replace(CALM, workers=0, coming=1)), 0, "has not reported yet"),
    ],
)
def test_decide(samples: list[GroupSample], change: int, reason: str) -> None:
    decision = decide(samples, RULES)

    assert decision.change == change
    assert reason in decision.reason


def test_lasted_counts_back_from_the_last_sample() -> None:
    samples = [*over(10, BUSY), replace(CALM, at_s=12), *(replace(BUSY, at_s=t) for t in (14, 20))]

    assert lasted(samples, lambda each: each.backlog > 0) == 6
    assert lasted(samples, lambda each: each.backlog == 0) == -1


class Group:
    """Processes that start, report and drain with some delay, under a load in cores."""

    def __init__(self, rules: Rules = RULES) -> None:
        self.rules = rules
        self.workers, self.coming_at = 1, -1.0
        self.now_s, self.backlog = 0.0, 0.0
        self.counts: list[int] = []
        self.samples: list[GroupSample] = []

    def run(self, seconds: float, load: Callable[[float], float], every_s: float = 2.0) -> None:
        for _ in range(round(seconds / every_s)):
            self.now_s += every_s
            if 0 <= self.coming_at <= self.now_s:
                self.workers, self.coming_at = self.workers + 1, -1.0
            # In seconds of work of one core.
            self.backlog += load(self.now_s) * every_s
            done = min(self.backlog, self.workers * every_s)
            self.backlog -= done
            self.samples.append(
                GroupSample(
                    at_s=self.now_s,
                    workers=self.workers,
                    coming=int(self.coming_at >= 0),
                    busy=done / every_s,
                    backlog=round(self.backlog * 500),
                    age_s=self.backlog / self.workers,
                )
            )
            self._act(decide(self.samples, self.rules))
            self.counts.append(self.workers)

    def _act(self, decision: SizeChange) -> None:
        if decision.change:
            self.samples.clear()
        if decision.change > 0:
            assert self.coming_at < 0
            self.coming_at = self.now_s + 3
        self.workers -= decision.change < 0

    @property
    def turns(self) -> int:
        moves = [b - a for a, b in itertools.pairwise(self.counts) if a != b]
        return sum((a > 0) != (b > 0) for a, b in itertools.pairwise(moves))


@pytest.mark.parametrize("load", [0.05, 0.45, 0.55, 0.79, 0.85, 1.0, 1.2, 1.6, 1.9, 2.4, 3.3, 3.9])
def test_steady_load_is_carried_and_never_oscillates(load: float) -> None:
    group = Group()

    group.run(3600, lambda _now: load)

    assert group.turns <= 1
    assert group.backlog <= 3
    assert group.workers >= load


def test_too_much_load_gets_the_maximum_and_no_more() -> None:
    group = Group()

    group.run(600, lambda _now: 9.0)

    assert max(group.counts) == 4
    assert group.counts[-1] == 4


def test_burst_gets_more_processes_and_gives_them_back() -> None:
    group = Group()

    group.run(900, lambda now: 3.0 if now < 120 else 0.1)

    assert max(group.counts) == 4
    assert group.counts[-1] == 1
    assert group.turns == 1


def test_short_peaks_start_nothing() -> None:
    group = Group()

    group.run(1200, lambda now: 1.5 if now % 60 < 4 else 0.2)

    assert set(group.counts) == {1}


@pytest.mark.parametrize("period_s", [40, 100])
def test_a_sawtooth_shorter_than_the_keepalive_does_not_move_it_to_and_fro(period_s: int) -> None:
    group = Group()

    group.run(3600, lambda now: 2.0 * (now % period_s) / period_s)

    # Processes are kept for the next tooth.
    assert group.turns <= 2
    assert group.counts[-1] == max(group.counts)


def test_random_load_never_leaves_the_limits() -> None:
    numbers = random.Random(7)
    group = Group()

    group.run(7200, lambda _now: numbers.choice([0.0, 0.3, 1.0, 2.5, 6.0]))

    assert set(group.counts) <= {1, 2, 3, 4}
