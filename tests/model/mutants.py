"""Seeded faults: breaking any line of a script that a promise depends on must be detected."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tests.model.explore import Explorer, Found
from tests.model.scenarios import SCENARIOS

_FOUND = Path(__file__).with_name("found")


class Mutant(NamedTuple):
    """A script with one text replaced, the scenarios that detect it, and within how many
    schedules."""

    script: str
    old: str
    new: str
    note: str
    scenarios: tuple[str, ...]
    schedules: int = 1500
    # A replay that detects it, if random schedules take too long.
    found: str = ""

    def caught_by(self, most: int) -> tuple[int, Found] | None:
        """Return the number of schedules tried and the one that breaks a promise with this
        fault."""
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

# Left out, since no promise depends on them: the order of a move and an acknowledgement (a script
# is one step), TTLs (a schedule is shorter), what guards against users with partial permissions (no
# schedule has them), a lease of a worker that has left (it ends by itself, and holds nothing), an
# early promotion (whoever takes the message waits for its ETA).
# Proved by tests of the script alone (test_settle_workflows.py), since no schedule has two copies
# of one message, a part with another value, or a Celery worker with a chord: `is_void`, that a part
# counts once, that a chord claimed by someone else is left to them, and `frees`.
# Left out, too: that a claim is for a later due time than the last (its state is compared before
# that), that a workflow ends once (its calls are removed), and what only limits sizes.
# Not detected by any scenario in some thousand schedules, so not proved: `closed` (take.lua,
# leave.lua: only a take that arrives between two calls of a stop would show it), that a lease which
# ended but was not removed answers "not held" (lease.lua), that a worker which has lost a message
# stores no failure where there is no state yet (settle.lua).

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
        "a worker that is back is recovered anyway", ("back",), 6000,
    ),
    Mutant(
        "settle", "if held and not move(", "if not move(",
        "a message is moved by a worker that does not hold it", ("retry", "recovery", "plain"),
    ),
    Mutant(
        "settle", "if not held then reply[#reply + 1] = number end", "",
        "an early acknowledgement that is too late is not reported", ("early",), 3000,
    ),
    Mutant(
        "settle", "local held = tag == '' or is_record or is_stub",
        "local held = tag == '' or is_record", "a task acknowledged early has no outcome",
        ("early_retry",),
    ),
    Mutant(
        "settle", "redis.call('SADD', begun, tag)", "",
        "a task acknowledged early is forgotten", ("early_retry",),
    ),
    Mutant(
        "settle",
        "HDEL', unacked, tag)\n    redis.call('ZREM', index, tag)\n    taken[tag] = true\n  end\n",
        "HLEN', unacked)\n  end\n", "a moved message stays reserved", ("retry", "stop"),
    ),
    Mutant(
        "settle", "redis.call('SREM', begun, tag)\n  if not is_stub then", "if not is_stub then",
        "a retry after an early acknowledgement is pushed twice", ("early_retry",), 3000,
    ),
    Mutant(
        "settle", "redis.call('HDEL', unacked, unpack(acks, first, last))", "",
        "an acknowledged message stays reserved", ("plain",),
    ),
    Mutant(
        "settle", "redis.call('HSET', owner, 'alone', tag)", "redis.call('HLEN', owner)",
        "the message that runs alone is not recorded", ("suspects",),
    ),
    Mutant(
        "settle", "if what == 98 then", "if true then",
        "an early acknowledgement in a workflow leaves no record", ("chain_early", "chord_early"),
        3000,
    ),
    Mutant(
        "settle", "ending.withheld = true", "",
        "the last part of a chord sends no body", ("chord", "chord_alone"),
    ),
    Mutant(
        "settle", "not (is_failure and held_back[number])", "true",
        "the failed last part of a chord is retried while its message is held", ("flow_retry",),
        found="f11_last_part_retried_while_held",
    ),
    Mutant(
        "settle", "if not claim or claim == own then", "if not claim then",
        "a chord is completed only if the first answer arrives", ("chord_alone", "chord"), 3000,
    ),
    Mutant(
        "settle", "elseif ending.held then", "else",
        "who does not hold a message sends what follows it", ("chain", "chain_retry"),
    ),
    Mutant(
        "settle", "taken[tag] = true\n    redis.call('HDEL', unacked, tag)", "taken[tag] = true",
        "a step whose successor is sent stays reserved", ("chain",),
    ),
    Mutant(
        "settle",
        "store(KEYS[ending.first_key + i], string.sub(rule, 1, 1), string.sub(rule, 2), "
        "ARGV[p + 1], '', true)",
        "local _ = i .. rule", "what can no longer run has no state", ("chain", "chord"), 3000,
    ),
    Mutant(
        "settle", "  push_all(ending)\n", "",
        "what follows is not sent", ("chain", "chord_alone"),
    ),
    Mutant(
        "take", "elseif number <= tonumber(owner[2]) then", "elseif false then",
        "an old take takes", ("send", "one", "drain"), 4000,
    ),
    Mutant(
        "take",
        "if not lease or tonumber(lease) < tonumber(now[1]) + tonumber(now[2]) / 1000000 then",
        "if false then",
        "a worker without a lease takes", ("revoke", "eta", "plain"), 4000,
    ),
    Mutant(
        "take", "if first < unused then", "if false then",
        "messages reserved by a take with a lost answer are skipped", ("one", "plain"),
    ),
    Mutant(
        "take", "redis.call('HSET', KEYS[3], 'call', number, 'next', first + #tags)",
        "redis.call('HSET', KEYS[3], 'call', number)", "tags are used twice", ("plain", "one"),
    ),
    Mutant(
        "take", "redis.call('ZADD', KEYS[2], unpack(scores, i, last))", "",
        "taken messages are not in the index", _DEATHS,
    ),
    Mutant(
        "lease", "for _, member in ipairs(expired) do", "for _, member in ipairs({}) do",
        "ended leases are not reported", _DEATHS,
    ),
    Mutant(
        "lease", "due and string.format('%.6f', due) or ''", "''",
        "due ETAs are not reported", ("parked", "eta"),
    ),
    Mutant(
        "lease", "tonumber(owner[1] or 0),", "1,",
        "the server's loss of data is not reported", ("flush",),
    ),
    Mutant(
        "claim", "if tonumber(score) >= now then return {} end", "",
        "a living worker is recovered", _DEATHS, 4000,
    ),
    Mutant(
        "claim", "return {score, owner[3] or ''}", "return {score, ''}",
        "a claim does not return what ran alone", ("suspects",),
    ),
    Mutant(
        "register", "if redis.call('HEXISTS', KEYS[3], 'next') == 1 then return 0 end", "",
        "a late registration resets the numbers", ("send", "flush", "plain"), 4000,
    ),
    Mutant(
        "register", "redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])", "",
        "messages in hand are not registered again", ("flush",), 3000,
    ),
    Mutant(
        "register", "or redis.call('HGET', KEYS[3], 'asks') ~= ARGV[5] then", "then",
        "a registration from before the loss counts", ("flush",), found="n5_late_registration",
    ),
    Mutant(
        "promote", "redis.call('ZREM', KEYS[1], due[i])", "",
        "due messages stay parked", ("parked",),
    ),
    Mutant(
        "promote", "tonumber(time[2]) / 1000000)", "tonumber(time[2]) / 1000000 - 3600)",
        "ETAs are late", ("parked",),
    ),
    Mutant(
        "relay", "redis.call('LMOVE', KEYS[i], KEYS[first], 'RIGHT', 'RIGHT')",
        "redis.call('RPUSH', KEYS[first], redis.call('LINDEX', KEYS[i], -1))",
        "a relayed message also stays where it was", ("relay",),
    ),
    Mutant(
        "publish_once", "if is_queued(ARGV[#ARGV]) then return 0 end", "",
        "a message on its queue is sent again", ("send",),
    ),
    Mutant(
        "publish_once",
        "if redis.call('LPOS', KEYS[3], ARGV[i], 'MAXLEN', 1000) then return 0 end", "",
        "a message in an inbox is sent again", ("send",), 4000,
    ),
    Mutant(
        "publish_once", "if redis.call('HLEN', KEYS[4]) <= 1000 then", "if false then",
        "a reserved message is sent again", ("send",), 3000,
    ),
    Mutant(
        "publish_once",
        "if #KEYS > 5 and redis.call('EXISTS', unpack(KEYS, 6)) > 0 then", "if false then",
        "a finished task is sent again", ("send",), 3000,
    ),
    Mutant(
        "publish_once", "or KEYS[2] ~= KEYS[1] and is_in(KEYS[2], text)", "",
        "a relayed message is sent again", ("relay",), found="n10_relayed_and_pushed_again",
    ),
    Mutant(
        "settle", "redis.call('SREM', begun, tag)\n  if not is_stub then",
        "if is_stub then\n    redis.call('SREM', begun, tag)\n  else",
        "the stub of a moved step stays", ("chord_early",), found="w3_record_and_stub_of_a_step",
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
    Mutant(
        "beat_claim", "if state == '' or state ~= seen then", "if state == '' then",
        "a claim does not see that another beat was first", ("beat_skip", "beat_queue_one"), 4000,
    ),
    Mutant(
        "beat_claim", "elseif tonumber(ready) > now or tonumber(due) > now then",
        "elseif false then", "a beat's clock decides", ("beat", "beat_one"), 3000,
    ),
    Mutant(
        "beat_claim", "elseif any_paused and redis.call('HEXISTS', KEYS[2], name) == 1 then",
        "elseif false then", "a paused entry is sent", ("beat_pause",),
    ),
    Mutant(
        "beat_claim", "redis.call('HSET', KEYS[1], name, new)", "",
        "a sent due time is not recorded", ("beat", "beat_one"),
    ),
    Mutant(
        "beat_claim", "redis.call('HSET', KEYS[1], name, state)\n        said = refusal",
        "said = refusal", "a refused due time counts as sent", ("beat_refused",),
    ),
    Mutant(
        "beat_claim", "redis.call('HSET', KEYS[1], name, state)\n    else", "else",
        "a skipped due time is not recorded", ("beat_skip", "beat_cancel"), 3000,
    ),
    Mutant(
        "beat_begin", "redis.call('HSETNX', KEYS[1]", "redis.call('HSET', KEYS[1]",
        "a second beat lets entries count from its own begin", ("beat", "beat_three"), 4000,
    ),
    Mutant(
        "beat_begin", "(redis.call('GET', KEYS[2]) or '0') ~= ARGV[1]", "false",
        "an entry that was just removed begins again", ("beat_added",), 3000,
    ),
    Mutant(
        "beat_begin", "redis.call('HSET', KEYS[1], ARGV[2], now .. (rest or ' 0 - 0'))",
        "local _ = rest", "due times during a pause are sent after it", ("beat_pause",),
    ),
    Mutant(
        "beat_set", "redis.call('INCR', KEYS[2])", "",
        "no beat learns of a new entry", ("beat_added", "beat_change"),
    ),
    Mutant(
        "beat_lead", "if not leader or leader == ARGV[1] then", "if leader == ARGV[1] then",
        "nobody takes over", ("beat",),
    ),
    Mutant(
        "settle", "for i = 4, #reply do\n      if type(reply[i]) == 'number' then lost",
        "for i = 4, 3 do\n      if type(reply[i]) == 'number' then lost",
        "what was not held is noted in the index",
        ("flow_pause_chain", "flow_cancel", "flow_retry"), 4000,
    ),
    Mutant(
        "settle", "if was then count(before, -1) else room = room - 1 end", "",
        "a node counts in all of its states", ("flow_retry",),
    ),
    Mutant(
        "settle", "return before ~= 's'", "return true",
        "a success does not stay in the index", ("flow_cancel", "flow_cancel_chain"), 4000,
    ),
    Mutant(
        "settle", "state = (before == 'f' or before == 'v') and before or string.lower(state)",
        "state = string.lower(state)", "a task that cannot run replaces its end in the index",
        ("flow_cancel", "flow_cancel_chain"),
    ),
    Mutant(
        "settle", "redis.call('HSET', name .. '.failed', id, kept)", "local _ = kept",
        "the message of a failed task is not kept", ("flow_retry",),
    ),
    Mutant(
        "settle", "redis.call('DEL', name .. '.calls')", "",
        "a call is sent at each end", ("flow_calls",),
    ),
    Mutant(
        "settle", "if when == 'e' or when == how then", "if when == 'e' then",
        "what is to be called after a success or a failure is not", ("flow_calls",),
    ),
    Mutant(
        "settle",
        "for _, ending in ipairs(keys) do redis.call('EXPIRE', name .. ending, seconds) end",
        "", "the index never expires", ("flow_cancel",),
    ),
    Mutant(
        "workflow_stop", "redis.call('HINCRBY', KEYS[2], '', 1)", "",
        "no worker learns of a cancel", ("flow_cancel",),
    ),
    Mutant(
        "workflow_stop", "redis.call('HDEL', KEYS[2], ARGV[1])", "",
        "a resumed workflow stays on the list", ("flow_pause",),
    ),
    Mutant(
        "workflow_release", "redis.call('LPOP', KEYS[2])", "",
        "a released message is released again", ("flow_pause",),
    ),
    Mutant(
        "workflow_call", "return redis.call('LPUSH', string.sub(ARGV[2], from, from + size - 1), "
        "string.sub(ARGV[2], from + size))", "return 1",
        "a call after the end is not sent", ("flow_calls", "flow_calls_ok"), 3000,
    ),
    Mutant(
        "workflow_reset", "if is_failed(node) then", "if node then",
        "a retry sends what has not failed", ("flow_retry", "flow_cancel_retry"), 3000,
    ),
    Mutant(
        "workflow_reset", "redis.call('HDEL', KEYS[3], id)", "",
        "a retried message stays kept", ("flow_retry", "flow_cancel_retry"), 3000,
    ),
    Mutant(
        "workflow_reset", "return -1", "break",
        "a retry overlooks what has failed again", ("flow_cancel_retry",),
        found="f5_failed_again_while_retried",
    ),
    Mutant(
        "workflow_reopen", "< tonumber(ARGV[1]) then return claim end", "< 0 then return claim end",
        "a retry loses parts that end meanwhile", ("flow_apart", "flow_retry"), 4000,
    ),
    Mutant(
        "workflow_reopen", "if claim and claim ~= 'done' then return claim end", "",
        "a chord is reopened while it is completed", ("flow_apart", "flow_retry"), 6000,
    ),
    Mutant(
        "workflow_reopen", "redis.call('SREM', name .. '.d', ARGV[i])", "",
        "a failed part is not counted again", ("flow_retry", "flow_cancel_retry"), 3000,
    ),
    Mutant(
        "settle", "and (claim or is_last) then", "and claim then",
        "a chord prepared for a retry is cleared", ("flow_apart",),
        found="f10_cleared_after_prepared",
    ),
    Mutant(
        "workflow_forget", "~= 'SUCCESS'", "~= ''",
        "a retry removes a success", ("flow_cancel_retry",),
        found="f7_success_forgotten_by_a_retry",
    ),
    Mutant(
        "settle", "else let_go(name) end", "end",
        "what is put aside after a resume stays there", ("flow_pause_chain",),
        found="f1_put_aside_after_the_resume",
    ),
]  # fmt: skip
