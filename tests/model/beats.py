"""The world of the beats: real schedulers on one server, and the people who change entries.

When the explorer chooses a beat's sleep, it ends at the time until which it was to last; so the
world's time goes on, and a beat that is not chosen is late. Nobody takes the messages: a run ends
when the explorer says so.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import greenlet
import hiredis

import greenq.beat.scheduler
from greenq.beat.entries import write_entry
from greenq.beat.scheduler import Scheduler
from greenq.errors import OperationalError
from greenq.transport.schedule_store import LEAD_S, ScheduleStore
from tests.model.kernel import Op, sim_sleep
from tests.model.net import pack
from tests.model.scenarios import BeatScenario, Periodic
from tests.model.world import _MODULES, T0, Site, World, _new_id

# The clock may be nearly a second ahead until its beat asks for the server's time again.
_JUMP_S = 0.9


class _BeatTime:
    """Stands in for the module `time` in a beat's loop."""

    @staticmethod
    def sleep(seconds: float) -> None:
        actor = greenlet.getcurrent()
        op = Op(actor, "sleep")
        op.fused = True
        op.value = actor.kernel.world.now + seconds
        actor.kernel.park(op)


_MODULES.append((greenq.beat.scheduler, {"time": _BeatTime, "new_id": _new_id}))


class SimBeat:
    """One beat: the real scheduler, on its own clock."""

    frozen = stopping = stopped = blocked = guarded = gives_away = False
    has_lease = alive = True
    lost_step = -1

    def __init__(self, world: BeatWorld, name: str, entries: Mapping[str, Periodic]) -> None:
        self.world = world
        self.name = name
        self.entries = entries
        # Each machine was started at a different time, and their clocks differ by hours.
        self.offset_s = 1000.0 * (ord(name[0]) - 60)
        self.skew_s = 3600.0 * (ord(name[0]) - ord("B"))
        # The steps in which it read results.
        self.reads: list[int] = []
        app = world.site.app
        app.periodic_tasks = {each: plan.fields(each) for each, plan in entries.items()}
        self.scheduler = Scheduler(app, clock=self.clock, name=name)

    def clock(self) -> float:
        return self.world.now - T0 + self.offset_s

    def start(self) -> None:
        self.world.kernel.spawn(self, "beat", self._run)

    def _run(self) -> None:
        self.scheduler.run()
        self.stopped = True
        self.alive = False


class Person:
    """Someone who changes entries, and repeats a command whose answer was lost."""

    name = "P"
    offset_s = 0.0
    frozen = blocked = False
    alive = True

    def __init__(self, world: BeatWorld) -> None:
        self._world = world
        transport = world.site.transport
        self.store = ScheduleStore(transport.client, transport.keys, transport.signer)

    def do(self, call: Callable[..., object], *args: Any) -> None:
        self._world.kernel.spawn(self, "person", self._insist, call, *args)

    @staticmethod
    def _insist(call: Callable[..., object], *args: Any) -> None:
        while True:
            try:
                call(*args)
                return
            except OperationalError:
                sim_sleep()


@dataclass
class Claimed:
    """A claim, with the script's answer."""

    name: str
    due: int
    ready: int
    task_id: str
    said: str
    state: str


@dataclass
class Ledger:
    """What the server has accepted, in that order; the promises are checked against it.

    B1 each due time is sent once; B2 none is sent too early, or left out contrary to its entry's
    policy; B3 nothing is sent for a paused or removed entry; B4 runs do not overlap contrary to the
    policy; B5 nothing but a claim or a resume changes how far an entry has got.

    Attributes:
        last: how far each entry has got, as its last due time in microseconds.
        added, paused: the entries added at run time, and the paused ones.
        sent: how many times each due time was sent, and when it was last sent, with the version.
        runs: the task ids of each entry, in order; and those that have ended, with the step.
    """

    world: BeatWorld
    last: dict[str, int] = field(default_factory=dict)
    added: dict[str, Periodic] = field(default_factory=dict)
    paused: set[str] = field(default_factory=set)
    sent: dict[tuple[str, int], tuple[int, float, int]] = field(default_factory=dict)
    runs: dict[str, list[str]] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)
    queued: int = 0
    # Due times before a loss of data, and the texts that have been put.
    lost: dict[str, int] = field(default_factory=dict)
    # How far a beat knew an entry to be when the answer to its next claim was lost. If the server
    # then loses its data, nobody knows of that claim, and its message is lost, too.
    unsure: dict[str, int] = field(default_factory=dict)
    # True while a claim is carried out whose answer is lost.
    answer_is_lost: bool = False
    known: dict[str, Periodic] = field(default_factory=dict)

    def problem(self, text: str) -> None:
        self.world.problem(text)

    def entry(self, name: str, owner: Any) -> Periodic | None:
        return self.added.get(name) or (
            owner.entries.get(name) if isinstance(owner, SimBeat) else None
        )

    # --- what the server has done -----------------------------------------------------------------

    def note(self, op: Op, answers: list[Any]) -> None:
        if op.commands is None or isinstance(answers[0], hiredis.ReplyError):
            return
        command, keys = op.commands[0], self.world.site.keys
        if op.script:
            names, args = command[3 : 3 + command[2]], command[3 + command[2] :]
            if op.script == "beat_claim":
                self._note_claims(op, args, answers[0])
            elif op.script == "beat_begin" and not answers[0]:
                pass
            elif op.script == "beat_begin" and len(names) == 2:
                self._note_begun(args[1:], answers[0])
            elif op.script == "beat_begin":
                self.paused.discard(args[1])
                self.last[args[1]] = self.world.now_us
                self._expect_state(args[1], answers[0][0])
            elif op.script == "beat_set" and names[0] == keys.beat_paused:
                self.paused.add(args[0])
            elif op.script == "beat_set":
                self.added[args[0]] = self.known[args[1]]
        elif command[0] == "MULTI":
            name = op.commands[1][2]
            self.added.pop(name, None)
            self.paused.discard(name)
            self.last.pop(name, None)
        elif command[0] in ("GET", "MGET") and isinstance(op.actor.owner, SimBeat):
            op.actor.owner.reads.append(self.world.step)

    def forget(self) -> None:
        """Note that the server has lost its data."""
        for name, due in self.last.items():
            self.lost[name] = max(due, self.lost.get(name, 0))
        self.last.clear()
        self.added.clear()
        self.paused.clear()
        self.queued = 0

    def _note_begun(self, args: Any, states: list[bytes]) -> None:
        for name, state in zip(args[::2], states, strict=True):
            due = int(state.split(b" ")[0])
            if name in self.last:
                self._expect_state(name, state)
            elif due not in (self.world.now_us, self.lost.get(name), self.unsure.get(name)):
                self.problem(f"B5 {name} begins in the past ({due}, {self.lost.get(name)})")
            self.last[name] = due

    def _expect_state(self, name: str, state: bytes) -> None:
        due = int(state.split(b" ")[0])
        if due != self.last[name]:
            self.problem(f"B5 {name} has got elsewhere ({due}, not {self.last[name]})")

    def _note_claims(self, op: Op, args: Any, answer: list[bytes]) -> None:
        claims: list[Claimed] = []
        at, number = 1, 1
        while at < len(args):
            name, seen, due, ready, task_id = args[at : at + 5]
            said, state = answer[number].decode(), answer[number + 1].decode()
            if said in ("sent", "skipped"):
                if not self.answer_is_lost:
                    self.unsure.pop(name, None)
                elif seen:
                    self.unsure[name] = int(str(seen).split()[0])
            claims.append(Claimed(name, int(due), int(ready), task_id, said, state))
            at += 7 + 4 * args[at + 6]
            number += 2
        new = self.world.new_messages()
        ids = sorted(each.task_id for each in claims if each.said == "sent")
        if sorted(new) != ids:
            self.problem(f"B1 the answer says {ids} were sent, but the queue has got {sorted(new)}")
        for claim in claims:
            if claim.said == "sent":
                self._note_sent(op, claim, new.get(claim.task_id, 0))
            elif claim.said == "skipped":
                self._note_skipped(op, claim)

    def _note_sent(self, op: Op, claim: Claimed, version: int) -> None:
        name, due, now = claim.name, claim.due, self.world.now_us
        plan = self._advance(op, claim)
        count = self.sent.get((name, due), (0, 0.0, 0))[0]
        if count and name not in self.lost:
            self.problem(f"B1 {name} is sent again for the same due time")
        self.sent[name, due] = count + 1, self.world.now, version
        if max(due, claim.ready) > now:
            self.problem(f"B2 {name} is sent too early ({now})")
        if name in self.paused:
            self.problem(f"B3 {name} is sent although it is paused")
        runs = self.runs.setdefault(name, [])
        if plan is not None and plan.overlap != "allow" and runs and runs[-1] not in self.ended:
            was_told = any(runs[-1] in _opened(each[2]) for each in self.world.published)
            if plan.overlap != "cancel" or not was_told:
                self.problem(f"B4 {name} is sent although its last run has not ended")
        runs.append(claim.task_id)
        if self.world.healing:
            self.world.end_run(name)

    def _note_skipped(self, op: Op, claim: Claimed) -> None:
        plan = self._advance(op, claim)
        if plan is None:
            return
        runs = self.runs.get(claim.name)
        if plan.overlap == "skip":
            assert op.began is not None
            read = max((each for each in op.actor.owner.reads if each <= op.began[0]), default=-1)
            if not runs or self.ended.get(runs[-1], self.world.step + 1) < read:
                self.problem(f"B4 {claim.name} is skipped although its last run has ended")
        elif not plan.missed.startswith("skip"):
            self.problem(f"B2 {claim.name} is skipped against its policy")
        else:
            # The beat decides by its own clock, which may have jumped ahead.
            late_s = self.world.now - claim.ready / 1e6
            if late_s <= plan.skip_after_s - 2 * _JUMP_S:
                self.problem(f"B2 {claim.name} is skipped although it is {late_s:.3f} s late")

    def _advance(self, op: Op, claim: Claimed) -> Periodic | None:
        """Note how far an entry has got, and check that it is the next step."""
        name, due, owner = claim.name, claim.due, op.actor.owner
        last = self.last.get(name)
        plan = self.entry(name, owner)
        if last is None or plan is None:
            self.problem(f"B3 {name} is sent although it was removed")
            return None
        if due <= last:
            self.problem(f"B1 {name} is sent for a due time that was settled before")
        # An entry that was changed may be sent in its old form for a moment.
        forms = {plan.every, *(each.every for each in self.known.values() if each.name == name)}
        if name in owner.entries:
            forms.add(owner.entries[name].every)
        if not any((due - last) % (every * 1_000_000) == 0 for every in forms):
            self.problem(f"B2 {name} is sent for {due}, which is no due time of it")
        if plan.missed == "run_all" and len(forms) == 1 and due != last + plan.every * 1_000_000:
            self.problem(f"B2 {name} leaves out due times before {due}")
        self.last[name] = due
        self._expect_state(name, claim.state.encode())
        return plan


class BeatWorld(World):
    """One schedule's run of some beats."""

    scenario: BeatScenario

    def __init__(self, site: Site, scenario: BeatScenario) -> None:
        self.ledger = Ledger(self)
        self.beats: dict[str, SimBeat] = {}
        self._leads: dict[str, float] = {}
        super().__init__(site, scenario)

    def _begin(self) -> None:
        self.site.server.past.begin()
        for each in self.site.server.links:
            each.forget()
        self.link.later(pack(("FLUSHDB",)))
        self.site.transport.backend._reads._reset()
        self.person = Person(self)
        zone = Scheduler(self.site.app, clock=lambda: 0.0)._zone
        self.texts = {
            name: write_entry(plan.name, plan.fields(plan.name), zone)
            for name, plan in self.scenario.puts.items()
        }
        for name, plan in self.scenario.puts.items():
            self.ledger.known[self.texts[name]] = plan
        for name, entries in self.scenario.beats.items():
            self.add_beat(name, entries)
        self.kernel.run_ready()

    def add_beat(self, name: str, entries: tuple[str, ...]) -> SimBeat:
        plans = {each: self.scenario.entries[each] for each in entries}
        beat = self.beats[name] = SimBeat(self, name, plans)
        any_workers: Any = self.workers
        any_workers[name] = beat
        beat.start()
        return beat

    @property
    def now_us(self) -> int:
        return int(self.now) * 1_000_000 + round(self.now % 1 * 1e6)

    # --- steps ------------------------------------------------------------------------------------

    def do_op(self, op: Op, fate: str, label: str) -> None:
        if op.fused and op.value is not None:
            self.now = max(self.now, op.value)
        super().do_op(op, fate, label)

    def _go(self, op: Op, fate: str) -> None:
        self.ledger.answer_is_lost = fate == "lost"
        super()._go(op, fate)
        self.ledger.answer_is_lost = False

    def do_late(self, op: Op, label: str) -> None:
        self.ledger.answer_is_lost = True
        super().do_late(op, label)
        self.ledger.answer_is_lost = False

    def carry_out(self, op: Op) -> list[Any]:
        for key, until in list(self._leads.items()):
            if until <= self.now:
                self.link.later(pack(("DEL", key)))
                del self._leads[key]
        answers = super().carry_out(op)
        if op.script == "beat_lead" and answers[0][1]:
            self._leads[op.commands[0][3]] = self.now + LEAD_S
        elif op.commands is not None and op.commands[0][0] == "DEL":
            self._leads.pop(op.commands[0][1], None)
        self.ledger.note(op, answers)
        return answers

    def new_messages(self) -> dict[str, int]:
        """Return the task ids of the messages pushed since the last call, with their versions."""
        (listed,) = self.link.call(pack(("LRANGE", "q", 0, -1)), 1)
        if isinstance(listed, hiredis.ReplyError):
            return {}
        new = listed[: len(listed) - self.ledger.queued]
        self.ledger.queued = len(listed)
        return {json.loads(each)["headers"]["id"]: _version(each) for each in new}

    def end_run(self, name: str) -> None:
        """Let the last run of an entry end."""
        task_id = self.ledger.runs[name][-1]
        self.ledger.ended[task_id] = self.step
        state = json.dumps({"status": "SUCCESS", "result": None, "task_id": task_id})
        self.link.later(pack(("SETEX", self.site.keys.result(task_id), 86400, state)))

    def pass_time(self, seconds: float, but: Any = None) -> None:
        self.now += seconds

    # --- the environment --------------------------------------------------------------------------

    def _may(self, label: str) -> bool:
        subject, _, verb = label.partition("!")
        verb, _, argument = verb.partition(":")
        if label in self.scenario.is_fault and self.faults_left <= 0 and not self.is_replay:
            return False
        ledger = self.ledger
        if subject == "*":
            if verb == "resume":
                return argument in ledger.paused
            if verb == "done":
                runs = ledger.runs.get(argument)
                return bool(runs) and runs[-1] not in ledger.ended
            return verb != "remove" or argument in ledger.added
        beat = self.beats.get(subject)
        if beat is None or verb == "restart":
            return beat is not None and not beat.alive and f"{subject}2" not in self.beats
        if not beat.alive or (beat.frozen and verb not in ("thaw", "kill")):
            return False
        return beat.frozen if verb == "thaw" else verb != "stop" or not beat.stopping

    def env_restart(self, beat: Any, _argument: str) -> None:
        self.add_beat(f"{beat.name}2", tuple(beat.entries))

    def env_kill(self, worker: Any, how: str) -> None:
        super().env_kill(worker, how)
        self.kernel.run_ready()

    def env_stop(self, worker: Any, _argument: str) -> None:
        worker.stopping = True
        worker.scheduler.stop()

    def env_jump(self, beat: SimBeat, _argument: str) -> None:
        """Let its clock jump ahead by less than the time between two questions."""
        beat.offset_s += _JUMP_S

    def env_suspend(self, worker: Any, _argument: str) -> None:
        """Suspend its machine: its clock stops, while the server's goes on."""
        worker.offset_s -= LEAD_S * 1.1
        self.pass_time(LEAD_S * 1.1)

    def env_pause(self, _worker: None, queue: str) -> None:
        self.person.do(self.person.store.pause, queue, {"by": "P"})

    def env_resume(self, _worker: None, queue: str) -> None:
        self.person.do(self.person.store.resume, queue)

    def env_put(self, _worker: None, argument: str) -> None:
        plan = self.scenario.puts[argument]
        self.person.do(self.person.store.put, plan.name, self.texts[argument])

    def env_remove(self, _worker: None, name: str) -> None:
        self.person.do(self.person.store.remove, name)

    def env_done(self, _worker: None, name: str) -> None:
        self.end_run(name)

    def env_refuse(self, _worker: None, _argument: str) -> None:
        """Turn the queue's key into one of another type, so that each push is refused."""
        if self.ledger.queued:
            self.link.later(pack(("RENAME", "q", "q.away")))
        self.link.later(pack(("SET", "q", "no list")))
        self.env["*!accept"] += 1

    def env_accept(self, _worker: None, _argument: str) -> None:
        self.link.later(pack(("DEL", "q")))
        if self.ledger.queued:
            self.link.later(pack(("RENAME", "q.away", "q")))

    def env_flush(self, _worker: None, _argument: str) -> None:
        self._leads.clear()
        self.link.later(pack(("FLUSHDB",)))
        self.ledger.forget()

    def fingerprint(self) -> Any:
        """Everything that determines how this world continues."""
        keys = self.site.keys
        names = (keys.beat_states, keys.beat_entries, keys.beat_paused)
        data = b"".join(pack(("HGETALL", key)) for key in names)
        return (
            round(self.now, 6), self.link.call(data, len(names)), sorted(self._leads.items()),
            sorted((op.name, op.state, str(op.value)) for op in self.kernel.pending),
            sorted(op.name for op in self.late), sorted(self.env.items()), self.faults_left,
            [
                (
                    beat.name, beat.alive, beat.frozen, beat.stopping, beat.offset_s,
                    beat.scheduler.leads, beat.scheduler._heap, beat.scheduler._offset,
                    beat.scheduler._polled_s, beat.scheduler._changes,
                    [(name, slot.seen) for name, slot in beat.scheduler._slots.items()],
                )
                for beat in self.beats.values()
            ],
        )  # fmt: skip


def _opened(text: str | bytes) -> str:
    """Return the body of a broadcast command."""
    return b64decode(json.loads(text)["body"]).decode()


def _version(message: bytes) -> int:
    """Return the version of the entry for which a message was sent."""
    version: int = json.loads(b64decode(json.loads(message)["body"]))[0][1]
    return version
