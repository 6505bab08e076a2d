"""Seeded faults: each line of a script that a promise hangs on, broken, must be noticed."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tests.model.explore import Explorer, Found
from tests.model.scenarios import SCENARIOS

_FOUND = Path(__file__).with_name("found")


class Mutant(NamedTuple):
    """A script with one text replaced, and which scenarios notice it within how many schedules."""

    script: str
    old: str
    new: str
    note: str
    scenarios: tuple[str, ...]
    schedules: int = 1500
    # A replay that notices it, where chance takes too long.
    found: str = ""

    def caught_by(self, most: int) -> tuple[int, Found] | None:
        """Return a schedule that breaks a promise with this fault, and how many it took."""
        explorer = Explorer((self.script, self.old, self.new))
        try:
            if self.found:
                lines = (_FOUND / f"{self.found}.txt").read_text("utf-8").splitlines()
                found = explorer.replay(SCENARIOS[lines[1]], lines[2].split())
                return (1, found) if found.problems else None
            for number in range(most):
                name = self.scenarios[number % len(self.scenarios)]
                found = explorer.random(SCENARIOS[name], f"mutant-{number}")
                if found.problems:
                    return number + 1, found
        finally:
            explorer.close()
        return None


_DEATHS = ("recovery", "plain", "outcome")

# Left out, since no promise hangs on it: the order in which a move and an acknowledgement are done
# (a script is one step), TTLs (a schedule is shorter), what guards against users who may do only
# half (no schedule has them), a lease for who has left (it ends by itself, and holds nothing).
# Not noticed yet by any scenario in some thousand schedules, so not proved: `closed` (take.lua,
# leave.lua: only a take that arrives between two calls of a stop would show it), that a lease which
# ended but was not removed answers "not held" (lease.lua), that who has lost a message stores no
# failure where no state is yet (settle.lua).

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
        "settle", "if held and not move(", "if not move(",
        "a message is moved by who does not have it", ("retry", "recovery", "plain"),
    ),
    Mutant(
        "settle", "if not held then reply[#reply + 1] = number end", "",
        "nobody is told that an early acknowledgement came too late", ("early",), 3000,
    ),
    Mutant(
        "settle", "local held = tag == '' or is_record or is_stub",
        "local held = tag == '' or is_record", "what has begun early has no outcome",
        ("early_retry",),
    ),
    Mutant(
        "settle", "redis.call('SADD', begun, tag)", "",
        "what has begun early is forgotten", ("early_retry",),
    ),
    Mutant(
        "settle",
        "HDEL', unacked, tag)\n    redis.call('ZREM', index, tag)\n    taken[tag] = true\n  end\n",
        "HLEN', unacked)\n  end\n", "what is moved stays reserved", ("retry", "stop"),
    ),
    Mutant(
        "settle", "redis.call('SREM', begun, tag)\n  else", "else",
        "a retry of what has begun early is pushed twice", ("early_retry",), 3000,
    ),
    Mutant(
        "settle", "redis.call('HDEL', unacked, unpack(acks, first, last))", "",
        "what is acknowledged stays reserved", ("plain",),
    ),
    Mutant(
        "settle", "redis.call('HSET', owner, 'alone', tag)", "redis.call('HLEN', owner)",
        "nobody knows what runs alone", ("suspects",),
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
        "take", "redis.call('HSET', KEYS[3], 'call', number, 'next', first + #tags)",
        "redis.call('HSET', KEYS[3], 'call', number)", "tags are used twice", ("plain", "one"),
    ),
    Mutant(
        "take", "redis.call('ZADD', KEYS[2], unpack(scores, i, last))", "",
        "what is taken is in no index", _DEATHS,
    ),
    Mutant(
        "lease", "for _, member in ipairs(expired) do", "for _, member in ipairs({}) do",
        "nobody hears of ended leases", _DEATHS,
    ),
    Mutant(
        "lease", "due and string.format('%.6f', due) or ''", "''",
        "nobody hears when an ETA is due", ("parked", "eta"),
    ),
    Mutant(
        "lease", "tonumber(owner[1] or 0),", "1,",
        "nobody hears that the server has lost its data", ("flush",),
    ),
    Mutant(
        "claim", "if tonumber(score) >= now then return {} end", "",
        "one who lives is recovered", _DEATHS, 4000,
    ),
    Mutant(
        "claim", "return {score, owner[3] or ''}", "return {score, ''}",
        "a claim does not tell what ran alone", ("suspects",),
    ),
    Mutant(
        "register", "if redis.call('HEXISTS', KEYS[3], 'next') == 1 then return 0 end", "",
        "a late registration resets the numbers", ("send", "flush", "plain"), 4000,
    ),
    Mutant(
        "register", "redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])", "",
        "what is in hand is not there again", ("flush",), 3000,
    ),
    Mutant(
        "register", "or redis.call('HGET', KEYS[3], 'asks') ~= ARGV[5] then", "then",
        "a registration of before the loss counts", ("flush",), found="n5_late_registration",
    ),
    Mutant(
        "promote", "redis.call('ZREM', KEYS[1], due[i])", "",
        "what is due stays parked", ("parked",),
    ),
    Mutant(
        "promote", "tonumber(time[2]) / 1000000)", "tonumber(time[2]) / 1000000 + 30)",
        "ETAs are early", ("parked",), 3000,
    ),
    Mutant(
        "relay", "redis.call('LMOVE', KEYS[i], KEYS[first], 'RIGHT', 'RIGHT')",
        "redis.call('RPUSH', KEYS[first], redis.call('LINDEX', KEYS[i], -1))",
        "what is handed on stays where it was", ("relay",),
    ),
    Mutant(
        "publish_once", "if is_queued(ARGV[#ARGV]) then return 0 end", "",
        "what lies on its queue is sent again", ("send",),
    ),
    Mutant(
        "publish_once",
        "if redis.call('LPOS', KEYS[2], ARGV[i], 'MAXLEN', 1000) then return 0 end", "",
        "what lies in an inbox is sent again", ("send",), 4000,
    ),
    Mutant(
        "publish_once", "if redis.call('HLEN', KEYS[3]) <= 1000 then", "if false then",
        "what is reserved is sent again", ("send",), 3000,
    ),
    Mutant(
        "publish_once",
        "if #KEYS > 4 and redis.call('EXISTS', unpack(KEYS, 5)) > 0 then", "if false then",
        "what has ended is sent again", ("send",), 3000,
    ),
    Mutant(
        "extend", "if not ends or tonumber(ends) < now then return 0 end", "",
        "an ended lease is prolonged", ("guard",), 3000,
    ),
    Mutant(
        "extend", "now + tonumber(ARGV[2])", "now",
        "a guard prolongs nothing", ("guard",), 3000,
    ),
    Mutant(
        "end_lease", "redis.call('ZADD', KEYS[1], 0, ARGV[1])",
        "redis.call('ZADD', KEYS[1], ends, ARGV[1])",
        "a dead worker's lease goes on", ("guard",), 3000,
    ),
]  # fmt: skip
