"""The adaptive limit of the pool, over simulated time with a downstream service."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.simulation import SCENARIOS, STEP_S, Downstream, World, long_tailed, svg
from greenq.upkeep.adaptive import Adaptive, PoolSnapshot

# Serves 80 at once; every further call costs a little of its capacity.
SATURATED = Downstream(80, 0.002)

DURATIONS: dict[str, Callable[[random.Random], float]] = {
    "all alike": lambda _numbers: 1.0,
    "0.5 to 1.5 s": lambda numbers: numbers.uniform(0.5, 1.5),
    "exponential": lambda numbers: numbers.expovariate(1.0),
}

BEGUN_S = 150.0


def full(seconds: float = 600.0, **given: Any) -> World:
    """Return a world with more work than can be done."""
    world = World(**given)
    world.run(seconds, lambda _at_s: 1200.0)
    return world


def sizes(world: World, since_s: float = BEGUN_S) -> list[int]:
    return [point.size for point in world.points if point.at_s > since_s]


@pytest.mark.parametrize("name", DURATIONS)
def test_a_saturated_service_gets_no_more_than_it_answers(name: str) -> None:
    world = full(adaptive=True, downstream=SATURATED, duration=DURATIONS[name])
    at_100 = full(most=100, least=100, downstream=SATURATED, duration=DURATIONS[name])
    at_500 = full(downstream=SATURATED, duration=DURATIONS[name])

    found = sorted(sizes(world))
    assert 80 <= found[len(found) // 2] <= 120
    # Trials are larger or smaller now and then.
    assert found[len(found) // 10] >= 70
    assert found[-len(found) // 10] <= 120
    assert world.rate(BEGUN_S) >= 0.97 * at_100.rate(BEGUN_S)
    assert at_500.rate(BEGUN_S) < 0.7 * at_100.rate(BEGUN_S)


def test_tasks_all_alike_get_at_least_the_rate_of_a_fixed_hundred() -> None:
    world = full(adaptive=True, downstream=SATURATED)
    at_100 = full(most=100, least=100, downstream=SATURATED)

    assert world.rate(BEGUN_S) >= at_100.rate(BEGUN_S)
    assert all(80 <= size <= 120 for size in sizes(world))


@pytest.mark.parametrize("name", [*DURATIONS, "long-tailed"])
def test_a_service_that_is_not_saturated_costs_no_throughput(name: str) -> None:
    duration = DURATIONS.get(name, long_tailed)

    rates = [full(300, adaptive=on, duration=duration).rate(0) for on in (True, False)]

    assert rates[0] >= 0.97 * rates[1]


def test_a_service_that_recovers_is_used_again() -> None:
    world = full(adaptive=True, downstream=SATURATED)
    assert world.size <= 120

    world.downstream = Downstream(10**9)
    world.run(300, lambda _at_s: 1200.0)

    assert world.size == 500


def test_a_service_that_gets_slower_later_is_noticed() -> None:
    world = full(120, adaptive=True)
    assert world.size == 500

    world.downstream = SATURATED
    world.run(300, lambda _at_s: 1200.0)

    assert world.size <= 120


def test_tasks_that_take_longer_are_not_mistaken_for_a_slow_service() -> None:
    length = [1.0]
    world = World(adaptive=True, duration=lambda _numbers: length[0])
    world.run(60, lambda _at_s: 5.0)

    length[0] = 3.0
    world.run(200, lambda _at_s: 400.0)

    assert world.size == 500
    assert world.rate(200) >= 0.95 * 500 / 3


@pytest.mark.parametrize("scenario", SCENARIOS[:4], ids=lambda each: each.title)
def test_loads_that_saturate_nothing_are_treated_as_before(scenario: Any) -> None:
    worlds = [World(adaptive=on, duration=scenario.duration) for on in (True, False)]
    for world in worlds:
        world.run(scenario.seconds, scenario.arrivals)

    adaptive, before = worlds
    assert adaptive.ended >= 0.98 * before.ended


def test_a_burst_is_worked_off_in_seven_seconds_either_way() -> None:
    for adaptive in (False, True):
        world = World(adaptive=adaptive)
        world.run(8, lambda at_s: 3000 / STEP_S if at_s <= STEP_S else 0.0)

        done = next(point.at_s for point in world.points if point.ended >= 3000)
        assert next(p.at_s for p in world.points if p.running >= 490) <= 1.0
        # In the simulation the first tick is late by half a second, and each task by a step.
        assert done <= 8.0


def test_a_sawtooth_does_not_move_the_pool_to_and_fro() -> None:
    scenario = next(each for each in SCENARIOS if "sawtooth" in each.title)
    for adaptive in (False, True):
        world = World(adaptive=adaptive)
        world.run(300, scenario.arrivals)

        found = sizes(world, 60)
        assert max(found) - min(found) <= 10


def test_what_was_found_is_in_the_history(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        world = full(adaptive=True, downstream=SATURATED)

    said = [each.reason for each in world.scaler.history if "at once finish" in each.reason]
    assert "500 at once finish 43.5 tasks a second, 11.50 s each; 350 at once" in said[0]
    assert "pool limited to" in caplog.text


def test_a_limit_stays_within_the_limits_of_the_pool() -> None:
    adaptive = Adaptive()
    assert adaptive.limit(500, 10) == 500

    world = full(adaptive=True, downstream=Downstream(2), least=30, most=40)
    assert all(30 <= size <= 40 for size in sizes(world, 0))


def test_a_pool_in_which_nothing_ends_decides_nothing() -> None:
    adaptive = Adaptive()

    for at_s in range(1000):
        assert adaptive.look(PoolSnapshot(float(at_s), 500, 500, 9, 0, 0.0), 500, 10) is None
    assert adaptive.limit(500, 10) == 500


def test_the_picture_has_a_chart_for_each_load() -> None:
    drawn = svg()

    assert drawn.count('class="title"') == len(SCENARIOS)
    assert drawn.count('class="adaptive"') == drawn.count('class="fixed"') == len(SCENARIOS)
