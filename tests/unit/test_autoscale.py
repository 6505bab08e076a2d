"""The autoscaler's decision by table, and its behaviour over simulated time."""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from greenq.autoscale import SATURATED_LAG_S, Autoscaler, Load, decide, needed

STEPS_PER_S = 10
KEEPALIVE_S = 30.0


def load(**fields: Any) -> Load:
    usual = {"size": 10, "running": 0, "backlog": 0, "recent_need": 10, "least": 10, "most": 500}
    return Load(**(usual | fields))


@pytest.mark.parametrize(
    ("given", "size", "reason"),
    [
        (load(), 10, "steady"),
        (load(backlog=3000, running=10), 500, "3000 waiting"),
        (load(backlog=1, running=10), 11, "1 waiting"),
        (load(backlog=5, running=3), 10, "steady"),
        (load(size=500, recent_need=500), 500, "steady"),
        (load(size=500, recent_need=10), 10, "at most 10 needed"),
        (load(size=500, recent_need=40, running=100), 100, "at most 100 needed"),
        (load(size=500, recent_need=10, running=480, backlog=500), 500, "steady"),
        (load(size=5), 10, "below the minimum"),
        (load(size=600, running=600, backlog=9), 500, "above the maximum"),
        (load(backlog=99, running=10, lag_s=SATURATED_LAG_S), 10, "late: not growing"),
        (load(size=99, lag_s=9.0), 10, "at most 10 needed"),
    ],
)
def test_decide(given: Load, size: int, reason: str) -> None:
    decision = decide(given)

    assert decision.size == size
    assert reason in decision.reason


def test_need_and_decision_stay_within_the_limits() -> None:
    numbers = random.Random(1)
    for _ in range(2000):
        least = numbers.randint(1, 50)
        given = load(
            least=least,
            most=least + numbers.randint(0, 500),
            size=numbers.randint(1, 700),
            running=numbers.randint(0, 700),
            backlog=numbers.choice([0, 1, 10, 100_000]),
            recent_need=numbers.randint(least, least + 500),
            lag_s=numbers.choice([0.0, 1.0]),
        )
        given = load(**_fields(given) | {"recent_need": min(given.recent_need, given.most)})
        assert given.least <= needed(given) <= given.most
        assert given.least <= decide(given).size <= given.most


def _fields(given: Load) -> dict[str, Any]:
    return {name: getattr(given, name) for name in Load.__slots__}


class World:
    """A queue, a pool and a hub that follow a clock of their own; tasks take one second."""

    def __init__(self, *, most: int = 500, least: int = 10) -> None:
        # Counted in whole steps, so that a second is a second.
        self._steps = 0
        self.lag_s = 0.0
        self.queued = 0
        self.size = least
        self.sizes: list[int] = []
        self._ends: deque[int] = deque()
        self._tick: Callable[[], object] = lambda: None
        # How often the scaler was called, and whether the worker holds no messages.
        self.ticks = self.scheduled = 0
        self.is_empty = False
        self.scaler = Autoscaler(
            self,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            most=most,
            least=least,
            keepalive_s=KEEPALIVE_S,
            interval_s=1.0,
            backlog=lambda: self.queued,
            is_empty=lambda: self.is_empty,
            clock=lambda: self._steps / STEPS_PER_S,
        )
        self.scaler.start()

    # As a pool.
    @property
    def running(self) -> int:
        return len(self._ends)

    def resize(self, size: int) -> None:
        self.size = size

    # As a timer.
    def call_repeatedly(self, every_s: float, call: Callable[[], object]) -> object:
        assert every_s == 1.0
        self.scheduled += 1

        def tick() -> None:
            self.ticks += 1
            call()

        self._tick = tick
        return self

    def cancel(self) -> None:
        self._tick = lambda: None

    def run(self, seconds: float, arrivals: Callable[[], int] = lambda: 0) -> None:
        """Let time pass: tasks arrive, start, end, and the scaler ticks."""
        for _ in range(round(seconds * STEPS_PER_S)):
            self._steps += 1
            self.queued += arrivals()
            while self._ends and self._ends[0] <= self._steps:
                self._ends.popleft()
            started = max(0, min(self.size - self.running, self.queued))
            self.queued -= started
            self._ends.extend([self._steps + STEPS_PER_S] * started)
            if self._steps % STEPS_PER_S == 0:
                self._tick()
            self.sizes.append(self.size)

    @property
    def turns(self) -> int:
        """How often the size changed its direction."""
        moves = [b - a for a, b in itertools.pairwise(self.sizes) if a != b]
        return sum(1 for a, b in itertools.pairwise(moves) if (a > 0) != (b > 0))


def test_burst_reaches_the_maximum_at_the_first_tick_and_is_worked_off_in_seconds() -> None:
    world = World()
    world.queued = 3000

    world.run(1.0)
    assert world.size == 500
    world.run(8.0)

    assert (world.queued, world.running) == (0, 0)


def test_idle_pool_shrinks_to_the_minimum_after_the_keepalive_and_not_before() -> None:
    world = World()
    world.queued = 3000
    world.run(9.0)

    world.run(KEEPALIVE_S - 9.0)
    assert world.size == 500
    world.run(KEEPALIVE_S)

    assert world.size == 10
    assert world.turns == 1


@pytest.mark.parametrize("per_step", [1, 5, 20, 45])
def test_steady_load_changes_the_direction_once_at_most(per_step: int) -> None:
    world = World()

    world.run(300, lambda: per_step)

    assert world.turns <= 1
    assert world.queued <= 2 * per_step
    assert world.size >= world.running


def test_load_that_varies_moves_the_size_seldom() -> None:
    numbers = random.Random(2)
    world = World()

    world.run(300, lambda: numbers.randint(0, 40))

    # Each turn takes a keepalive without such a need at least.
    assert world.turns <= 2 * 300 / KEEPALIVE_S


@pytest.mark.parametrize(("most", "least"), [(500, 10), (50, 1), (7, 7)])
def test_size_never_leaves_the_limits(most: int, least: int) -> None:
    numbers = random.Random(3)
    world = World(most=most, least=least)

    world.run(200, lambda: numbers.choice([0, 0, 0, 1, 500]))

    assert all(least <= size <= most for size in world.sizes)


def test_saturated_hub_stops_the_growth_and_a_free_one_lets_it_go_on() -> None:
    world = World()
    world.queued, world.lag_s = 3000, 1.0

    world.run(2.0)
    assert world.size == 10
    world.lag_s = 0.0
    world.run(1.0)

    assert world.size == 500


def test_new_limits_act_at_once() -> None:
    world = World()
    world.queued = 3000
    world.run(1.0)

    world.scaler.set_limits(100, 20)
    assert world.size == 100

    assert world.scaler.info()["max"] == 100
    world.scaler.set_limits(1000, 20)
    assert world.size == 1000


def test_history_keeps_each_change_of_mind_once() -> None:
    world = World()
    world.queued = 3000

    world.run(60.0)

    told = [(record.size, record.reason) for record in world.scaler.history]
    assert all(now != next_one for now, next_one in itertools.pairwise(told))
    assert told[0] == (500, "2990 waiting")
    assert told[-1] == (10, "steady")


def test_an_idle_pool_of_the_smallest_size_decides_nothing_until_there_are_messages() -> None:
    world = World()
    world.is_empty = True
    world.queued = 100
    world.scaler.resume()
    world.run(2 * KEEPALIVE_S)
    assert world.size == 10
    assert world.ticks > KEEPALIVE_S
    rested = world.ticks

    world.run(600.0)
    assert world.ticks == rested

    # It may be told more often than necessary.
    for _ in range(3):
        world.scaler.resume()
    world.queued = 3000
    world.run(1.0)
    assert world.size == 500
    assert world.scheduled == 2


def test_a_pool_with_messages_for_later_goes_on_deciding() -> None:
    world = World()
    world.run(100.0)
    assert world.ticks == 100


def test_a_resting_scaler_follows_new_limits_and_stays_stopped() -> None:
    world = World()
    world.is_empty = True
    world.run(5.0)
    assert world.ticks == 1

    world.scaler.set_limits(100, 20)
    world.run(1.0)
    assert world.size == 20

    world.scaler.stop()
    ticks = world.ticks
    world.scaler.resume()
    world.run(5.0)
    assert world.ticks == ticks
