"""Seeded faults: each line of a script that a promise hangs on, broken, must be noticed."""

from __future__ import annotations

from typing import NamedTuple

from tests.model.explore import Explorer, Found
from tests.model.scenarios import SCENARIOS


class Mutant(NamedTuple):
    """A script with one text replaced, and which scenarios notice it within how many schedules."""

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


_DEATHS = ("recovery", "plain", "outcome")

MUTANTS: list[Mutant] = [
    Mutant(
        "settle", "if state == 'SUCCESS' then return end", "",
        "a success is replaced", ("two_servers",), 4000,
    ),
    Mutant(
        "settle", "if redis.call('HEXISTS', owner, 'next') == 0 then", "if false then",
        "a server that has lost its data takes outcomes", ("flush",),
    ),
    Mutant(
        "settle", "redis.call('ZSCORE', KEYS[5], ARGV[6]) ~= asks then", "false then",
        "who is back is recovered all the same", ("back",), 6000,
    ),
    Mutant(
        "settle", "if held then move(", "if true then move(",
        "a message is moved by who does not have it", ("retry", "recovery", "plain"),
    ),
    Mutant(
        "settle", "if not held then reply[#reply + 1] = number end", "",
        "nobody is told that an early acknowledgement came too late", ("early",), 3000,
    ),
    Mutant(
        "take", "elseif number <= tonumber(owner[2]) then", "elseif false then",
        "an old take takes", ("send", "one", "drain"), 4000,
    ),
    Mutant(
        "take",
        "if not lease or tonumber(lease) < tonumber(now[1]) + tonumber(now[2]) / 1000000 then",
        "if false then",
        "who has no lease takes", ("revoke", "eta", "plain"), 4000,
    ),
    Mutant(
        "take", "if first < unused then", "if false then",
        "what a lost answer has reserved is passed over", ("one", "plain"),
    ),
    Mutant(
        "claim", "if tonumber(score) >= now then return {} end", "",
        "one who lives is recovered", _DEATHS, 4000,
    ),
    Mutant(
        "register", "if redis.call('HEXISTS', KEYS[3], 'next') == 1 then return 0 end", "",
        "a late registration resets the numbers", ("send", "flush", "plain"), 4000,
    ),
]  # fmt: skip
