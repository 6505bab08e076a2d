"""The work of one process of an exploration."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from tests.model.explore import Explorer
from tests.model.mutants import MUTANTS
from tests.model.scenarios import SCENARIOS
from tests.model.world import installed


def explore(names: list[str], first: int, count: int, step: int, seed: int, told: Any) -> None:
    """Try schedules `first`, `first + step` and so on of all scenarios in turn."""
    scenarios = [SCENARIOS[name] for name in names]
    with installed():
        explorer = Explorer()
        try:
            kept: Counter[tuple[str, str]] = Counter()
            for number in range(first, count, step):
                scenario = scenarios[number // step % len(scenarios)]
                found = explorer.random(scenario, f"{seed}-{number}")
                if found.problems:
                    kept[found.key] += 1
                    if kept[found.key] <= 2:
                        found = explorer.shrink(scenario, found)
                    told.put((number, found))
                elif number // step % 200 == 0:
                    told.put((number, None))
            told.put((-1, explorer.steps))
        finally:
            explorer.close()


def seek_mutants(first: int, step: int, told: Any) -> None:
    """Try to detect each seeded fault; report how many schedules that took, 0 if not detected."""
    with installed():
        for number in range(first, len(MUTANTS), step):
            mutant = MUTANTS[number]
            caught = mutant.caught_by(mutant.schedules)
            if caught is None:
                told.put((number, 0, ""))
            else:
                told.put((number, caught[0], f"{caught[1].scenario}: {caught[1].problems[0]}"))
    told.put(None)


class Search(NamedTuple):
    """A complete search: all schedules of a scenario to a depth, with a number of faults."""

    scenario: str
    depth: int
    faults: int


SEARCHES = (
    Search("deep_retry", 5, 1), Search("deep_early", 5, 1), Search("deep_parked", 5, 1),
    Search("deep_flow", 5, 1), Search("deep_beat", 8, 1),
)  # fmt: skip
