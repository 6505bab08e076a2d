"""Seeded faults: each line of a script that a promise hangs on, broken, must be noticed."""

from __future__ import annotations

from typing import NamedTuple

from tests.model.explore import Explorer, Found
from tests.model.scenarios import SCENARIOS


class Mutant(NamedTuple):
    """A script with one text replaced, and which scenarios should notice within how many schedules."""

    script: str
    old: str
    new: str
    note: str
    scenarios: tuple[str, ...]
    schedules: int = 1500

    def caught_by(self, most: int) -> Found | None:
        """Return a schedule that breaks a promise with this fault, None if none is found."""
        explorer = Explorer((self.script, self.old, self.new))
        try:
            for number in range(most):
                name = self.scenarios[number % len(self.scenarios)]
                found = explorer.random(SCENARIOS[name], f"mutant-{number}")
                if found.problems:
                    return found
        finally:
            explorer.close()
        return None


# To be written against the scripts as they are; see README.md in this folder.
MUTANTS: list[Mutant] = []
