"""Beats are killed, cut off and doubled on a simulated clock: each due time is sent exactly once.

The scripts are those of the package, run by a real server; only their clock is the test's.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter
from typing import Any

import pytest

from greenq import Greenq
from greenq.beat import scheduler
from greenq.beat.entries import from_us, make_entry, to_us
from greenq.beat.scheduler import Scheduler
from greenq.errors import ConnectionLost
from greenq.transport import schedule_store
from greenq.transport.client import Script
from tests.servers import Server

_SCRIPTS = ("claim", "begin", "lead")
_TIME = "redis.call('TIME')"
_CLOCK = "redis.call('HMGET', 'sim.clock', 's', 'us')"
_START = 1_800_000_000 * 1_000_000

ENTRIES: dict[str, dict[str, Any]] = {
    "each7": {"task": "t", "schedule": 7.0, "missed": "run_all"},
    "minutely": {"task": "t", "schedule": "* * * * *", "missed": "run_all", "jitter": 5},
    "refused": {
        **{"task": "t", "schedule": 11.0, "missed": "run_all"},
        "options": {"queue": "refused"},
    },
    "once13": {"task": "t", "schedule": 13.0},
}


class Killed(BaseException):
    """The process of a beat ends here."""


class Faulty:
    """A store whose calls may get lost before or after they arrive, or kill the beat there."""

    def __init__(self, store: Any, sim: Sim) -> None:
        self._store, self._sim = store, sim

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._store, name)
        fates = self._sim.fates

        def made(*args: Any) -> Any:
            fate = self._sim.random.choices(list(fates), list(fates.values()))[0]
            self._sim.met[name, fate] += 1
            self._sim.pass_time(0.005)
            if fate == "kill_before":
                raise Killed
            if fate == "lost_before":
                raise ConnectionLost("lost before it arrived")
            answer = call(*args)
            if fate == "kill_after":
                raise Killed
            if fate == "lost_after":
                raise ConnectionLost("the answer is lost")
            return answer

        return made


class Sim:
    """Some beats of one app, on one server, in a time of their own."""

    def __init__(self, server: Server, seed: str, entries: dict[str, Any] = ENTRIES) -> None:
        self.random = random.Random(seed)
        self.redis = server.client
        self.app = Greenq("sim", broker=server.url, set_as_current=False, beat_schedule=entries)
        self.now_us = _START
        self.met: Counter[tuple[str, str]] = Counter()
        self.fates = dict.fromkeys(
            ("kill_before", "kill_after", "lost_before", "lost_after"), 3
        ) | {"ok": 40}
        self.kept: list[bytes] = []
        self.pass_time(0)
        self.beats = [self.beat() for _ in range(3)]

    def beat(self) -> Scheduler:
        # Each machine's clock is off by up to an hour.
        offset_s = self.random.uniform(-3600, 3600)
        beat = Scheduler(self.app, clock=lambda: self.now_us / 1e6 + offset_s)
        beat._store = Faulty(beat._store, self)  # type: ignore[assignment]
        return beat

    def pass_time(self, most_s: float) -> None:
        self.now_us += int(self.random.uniform(0, most_s) * 1e6)
        seconds, micros = divmod(self.now_us, 1_000_000)
        self.redis.hset("sim.clock", mapping={"s": seconds, "us": micros})

    def refuse(self, refused: bool) -> None:
        """Make the queue of one entry a key that nothing can be pushed to, or a list again."""
        if self.redis.type("refused") == b"list":
            self.kept += self.redis.lrange("refused", 0, -1)
        self.redis.delete("refused")
        if refused:
            self.redis.set("refused", "not a list")

    def step(self) -> None:
        self.pass_time(self.random.choice((0.2, 2, 5)))
        chance = self.random.random()
        if chance < 0.1:
            # Its time has run out, whether its beat lives or not.
            for key in self.redis.keys("greenq.beat.leader.*"):
                self.redis.delete(key)
        elif chance < 0.13:
            self.refuse(self.random.random() < 0.5)
        number = self.random.randrange(len(self.beats))
        try:
            self.beats[number].try_tick()
        except Killed:
            self.beats[number] = self.beat()

    def finish(self) -> None:
        """Have one beat send what is left, undisturbed."""
        self.fates = {"ok": 1}
        self.refuse(False)
        for key in self.redis.keys("greenq.beat.leader.*"):
            self.redis.delete(key)
        last = self.beat()
        for _ in range(60):
            self.pass_time(1)
            last.try_tick()
        self.refuse(False)

    def sent(self) -> dict[str, list[int]]:
        """Return the due times that were sent, by entry, as the history has them."""
        found: dict[str, list[int]] = {name: [] for name in ENTRIES}
        for line in reversed(self.redis.lrange("greenq.beat.history", 0, -1)):
            due, at, _task_id, name = line.decode().split(" ", 3)
            assert int(at) >= int(due), f"{name} was sent before it was due"
            found[name].append(int(due))
        return found

    def problems(self, begun: dict[str, int]) -> list[str]:
        """Return which promises are broken."""
        said = []
        messages = [*self.redis.lrange("celery", 0, -1), *self.kept]
        ids = [json.loads(each)["headers"]["id"] for each in messages]
        lines = self.redis.lrange("greenq.beat.history", 0, -1)
        if sorted(ids) != sorted(line.decode().split(" ")[2] for line in lines):
            said.append(
                f"{len(ids)} messages, {len(set(ids))} of them different, {len(lines)} sent"
            )
        for name, sent in self.sent().items():
            entry = make_entry(name, ENTRIES[name], from_us(0).tzinfo)  # type: ignore[arg-type]
            due, expected = entry.next_due(begun[name]), []
            while due is not None and entry.ready(due) <= self.now_us - 1_500_000:
                expected.append(due)
                due = entry.next_due(due)
            if len(set(sent)) != len(sent):
                said.append(f"{name}: a due time was sent twice")
            if entry.missed == "run_all" and not set(expected) <= set(sent):
                said.append(f"{name}: {len(set(expected) - set(sent))} due times were not sent")
            if entry.missed == "run_once" and sent[-1] < expected[-1]:
                said.append(f"{name}: the latest due time was not sent")
            if sent != sorted(sent):
                said.append(f"{name}: not in order")
        return said


def run(server: Server, seed: str, steps: int) -> tuple[list[str], Counter[tuple[str, str]]]:
    """Return which promises a schedule breaks, and what has happened in it."""
    server.flush()
    sim = Sim(server, seed)
    try:
        first = sim.beat()
        first._store = first._store._store  # type: ignore[attr-defined]
        first.tick()
        begun = {
            name.decode(): int(state.split(b" ")[0])
            for name, state in sim.redis.hgetall("greenq.beat.states").items()
        }
        for _ in range(steps):
            sim.step()
        sim.finish()
        return sim.problems(begun), sim.met
    finally:
        sim.app.close()


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in _SCRIPTS:
        script: Script = getattr(schedule_store, f"_{name.upper()}")
        assert _TIME in script.source
        replace(monkeypatch, name, _TIME, _CLOCK)
    return monkeypatch


def replace(monkeypatch: pytest.MonkeyPatch, name: str, old: str, new: str) -> None:
    script: Script = getattr(schedule_store, f"_{name.upper()}")
    assert old in script.source, f"{name} has no {old!r}"
    source = script.source.replace(old, new)
    sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
    changed = Script(script.name, source, sha)
    monkeypatch.setattr(schedule_store, f"_{name.upper()}", changed)


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_each_due_time_is_sent_exactly_once_over_all_kills(
    server: Server, simulated: pytest.MonkeyPatch, seed: int
) -> None:
    problems, met = run(server, f"kills-{seed}", 2200)

    assert problems == []
    kills = sum(count for (_, fate), count in met.items() if fate.startswith("kill"))
    assert kills > 200
    for fate in ("kill_before", "kill_after", "lost_before", "lost_after"):
        assert met["claim", fate] >= 5


MUTANTS = {
    "a claim that comes second sends again": [
        ("claim", "state ~= seen", "false"),
        ("claim", "tonumber(last_due) >= tonumber(due)", "false"),
    ],
    "what was sent is not recorded": [
        ("claim", "redis.call('HSET', KEYS[1], name, new)", "redis.call('HLEN', KEYS[1])"),
    ],
    "a refused push counts as sent": [
        (
            "claim",
            "redis.call('HSET', KEYS[1], name, state)\n        said = refusal",
            "said = refusal",
        ),
    ],
    "each start counts from now": [("begin", "'HSETNX'", "'HSET'")],
}


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_script_with_a_line_broken_is_detected(
    server: Server, simulated: pytest.MonkeyPatch, mutant: str
) -> None:
    for name, old, new in MUTANTS[mutant]:
        replace(simulated, name, old, new)
    if mutant == "each start counts from now":
        # Nothing but the script keeps a beat that does not see the states from beginning again.
        simulated.setattr(schedule_store.ScheduleStore, "states", lambda _self: {})
    if mutant == "a claim that comes second sends again":
        # Nothing but the script stops a beat that has not noticed that another one led meanwhile.
        simulated.setattr(scheduler, "LEAD_S", math.inf)

    assert run(server, "mutant", 200)[0] != []


def test_nothing_is_sent_before_the_servers_time(
    server: Server, simulated: pytest.MonkeyPatch
) -> None:
    sim = Sim(server, "early", {"each7": ENTRIES["each7"]})
    sim.fates = {"ok": 1}
    beat = sim.beat()
    beat.tick()
    state = sim.redis.hget("greenq.beat.states", "each7").decode()
    due = int(state.split(" ")[0]) + 7_000_000
    store = schedule_store.ScheduleStore(sim.app.transport.client, sim.app.transport.keys)
    claim = schedule_store.DueClaim("each7", state, due, due, "id", ("{}",), ("celery",))

    assert store.claim([claim])[1][0].said == "early"
    assert sim.redis.llen("celery") == 0
    assert to_us(from_us(due)) == due
    sim.app.close()
