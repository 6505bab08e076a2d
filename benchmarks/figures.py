"""The figures of one run: medians, spreads and ratios."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


class NotMeasured(LookupError):
    """A figure is missing from a run; the text names the figure."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some rounds, with the smallest and the largest value."""

    median: float
    least: float
    most: float
    rounds: int


@dataclass(frozen=True, slots=True)
class Ratio:
    """How two contenders compare.

    Attributes:
        value: the ratio of their medians.
        by_round: the median of the ratios of each round.
    """

    value: float
    by_round: float


class Results:
    """The results of one run."""

    def __init__(self, record: dict[str, Any]) -> None:
        """Use a record written by `benchmarks.run`."""
        self.record = record
        self._rounds: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
        for made in record["rounds"]:
            if "figures" in made:
                rounds = self._rounds.setdefault((made["workload"], made["contender"]), {})
                rounds[made["round"]] = made["figures"]

    @classmethod
    def read(cls, file: Path) -> Results:
        """Read a file of figures."""
        return cls(json.loads(file.read_text("utf-8")))

    @property
    def failures(self) -> list[str]:
        """A line for each turn that failed."""
        return [
            f"{made['workload']}, {made['contender']}, round {made['round']}: "
            f"{made['failed'].splitlines()[0]}"
            for made in self.record["rounds"]
            if "failed" in made
        ]

    def contenders(self, workload: str) -> list[str]:
        """Return the contenders of a workload, in the order of the run."""
        return [contender for each, contender in self._rounds if each == workload]

    def names(self, workload: str) -> set[str]:
        """Return the names of a workload's figures."""
        return {
            name
            for (each, _), rounds in self._rounds.items()
            if each == workload
            for figures in rounds.values()
            for name in figures
        }

    def spread(self, workload: str, contender: str, figure: str) -> Spread:
        """Return one figure of all rounds."""
        values = list(self._by_round(workload, contender, figure).values())
        return Spread(statistics.median(values), min(values), max(values), len(values))

    def median(self, workload: str, contender: str, figure: str) -> float:
        """Return the median of one figure."""
        return self.spread(workload, contender, figure).median

    def ratio(self, workload: str, ours: str, theirs: str, figure: str = "rate") -> Ratio:
        """Compare two contenders of one workload."""
        return self._ratio((workload, ours), (workload, theirs), figure)

    def own_ratio(self, one: str, other: str, contender: str, figure: str = "rate") -> Ratio:
        """Compare a contender in one workload with itself in another."""
        return self._ratio((one, contender), (other, contender), figure)

    def _ratio(self, one: tuple[str, str], beside: tuple[str, str], figure: str) -> Ratio:
        mine, other = self._by_round(*one, figure), self._by_round(*beside, figure)
        both = [mine[number] / other[number] for number in mine.keys() & other.keys()]
        value = statistics.median(mine.values()) / statistics.median(other.values())
        return Ratio(value, statistics.median(both) if both else value)

    def _by_round(self, workload: str, contender: str, figure: str) -> dict[int, float]:
        rounds = self._rounds.get((workload, contender), {})
        values = {number: each[figure] for number, each in rounds.items() if figure in each}
        if not values:
            raise NotMeasured(f"{figure} of {contender} in {workload}")
        return values
