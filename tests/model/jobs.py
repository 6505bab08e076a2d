"""What one process of an exploration does."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tests.model.explore import Explorer
from tests.model.scenarios import SCENARIOS
from tests.model.world import installed


def explore(names: list[str], first: int, count: int, step: int, seed: int, told: Any) -> None:
    """Try schedules `first`, `first + step` and so on of all scenarios, by turns."""
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
