"""The end of a schedule of beats: all faults end, and then each due time is sent once, on time."""

from __future__ import annotations

from greenq.transport.schedule_store import LEAD_S
from tests.model.beats import BeatWorld
from tests.model.kernel import Op
from tests.model.scenarios import Periodic

_MOST_STEPS = 900

# Within this time after the faults have ended, another beat leads, and has sent what was missed.
_TAKEOVER_S = LEAD_S + 3.0

# How late a due time may be sent when nothing goes wrong.
_LATE_S = 0.3

# A sending that was refused, and an entry whose last run has not ended, are tried again after a
# second.
_AGAIN_S = 1.0


def check_beats(world: BeatWorld) -> None:
    """Remove all faults, and note the broken promises."""
    world.healing = True
    for beat in world.beats.values():
        beat.frozen = False
    if world.env["*!accept"] > 0:
        world.do_env("*!accept")
    for name, runs in world.ledger.runs.items():
        if runs and runs[-1] not in world.ledger.ended:
            world.end_run(name)
    _run(world, 0.0)
    if not any(beat.alive and not beat.stopping for beat in world.beats.values()):
        world.add_beat("Z", tuple(world.scenario.entries))
        world.kernel.run_ready()
    _run(world, _TAKEOVER_S)
    _check_period(world, 6.0)
    if world.late:
        # Whatever is still under way arrives at the very end.
        for op in list(world.late):
            world.do_late(op, f"+~{op.name}")
            _run(world, 0.0)
        _run(world, _TAKEOVER_S)
        _check_period(world, 3.0)
    for name in sorted(world.ledger.paused):
        world.do_env(f"*!resume:{name}")
    _run(world, _AGAIN_S + 1.0)
    _check_period(world, 6.0)
    _check_states(world)


def _run(world: BeatWorld, seconds: float) -> None:
    """Run for some time without faults."""
    until, steps = world.now + seconds, 0
    while not world.problems:
        op = _next(world, until)
        if op is None:
            break
        world.do_op(op, "", f"+{op.name}")
        steps += 1
        if steps > _MOST_STEPS:
            world.problem(f"B0 it does not settle: {world.labels[-6:]}")
    world.now = max(world.now, until)


def _next(world: BeatWorld, until: float) -> Op | None:
    sleepers: list[Op] = []
    for op in world.kernel.pending:
        if not world.stands(op):
            if not op.fused:
                return op
            sleepers.append(op)
    first = min(sleepers, key=_ends, default=None)
    return first if first is not None and _ends(first) <= until else None


def _ends(sleeper: Op) -> float:
    return 0.0 if sleeper.value is None else float(sleeper.value)


def _check_period(world: BeatWorld, seconds: float) -> None:
    """Check that during this time, each due time is sent once, in the entry's current form."""
    if world.problems:
        return
    ledger, began = world.ledger, world.now
    plans = _plans(world)
    for name, plan in plans.items():
        if name not in ledger.last:
            world.problem(f"B2 no beat has begun with {name}")
            return
        if began - ledger.last[name] / 1e6 > plan.every + plan.jitter_s + _LATE_S:
            late_s = began - ledger.last[name] / 1e6
            world.problem(f"B2 {name} is left out ({late_s:.3f} s)")
    before = dict(ledger.last), dict(ledger.sent)
    _run(world, seconds)
    for name, plan in plans.items():
        first, last = before[0][name], world.now - plan.jitter_s - _LATE_S
        count = int((last - first / 1e6) // plan.every)
        for number in range(1, count + 1):
            due = first + number * plan.every * 1_000_000
            times, at, version = ledger.sent.get((name, due), (0, 0.0, 0))
            times -= before[1].get((name, due), (0, 0.0, 0))[0]
            if times != 1:
                world.problem(f"B1 {name} is not sent once ({times} times for {due})")
            elif version != plan.version:
                world.problem(f"B2 version {version} of {name} is sent, not {plan.version}")
            elif at - due / 1e6 > plan.jitter_s + _LATE_S:
                world.problem(f"B2 {name} is sent late ({at - due / 1e6:.3f} s)")
    for name in ledger.last.keys() - plans.keys():
        if ledger.last[name] != before[0].get(name, ledger.last[name]):
            world.problem(f"B3 {name} is sent although it is paused or removed")


def _plans(world: BeatWorld) -> dict[str, Periodic]:
    """Return the entries to be sent now."""
    ledger = world.ledger
    found: dict[str, Periodic] = {}
    for beat in world.beats.values():
        if beat.alive and not beat.stopping:
            found.update(beat.entries)
    found.update(ledger.added)
    return {name: plan for name, plan in found.items() if name not in ledger.paused}


def _check_states(world: BeatWorld) -> None:
    """Check that the server and the beats agree with what has happened."""
    if world.problems:
        return
    answer = world.link.one("HGETALL", world.site.keys.beat_states)
    states = dict(zip(answer[::2], answer[1::2], strict=True))
    for name, last in world.ledger.last.items():
        due, _sent, task_id, runs = states[name.encode()].decode().split(" ")
        ids = world.ledger.runs.get(name, [])
        if int(due) != last:
            world.problem(f"B5 {name} has got elsewhere ({due}, not {last})")
        was_reset = world.ledger.lost or world.scenario.puts
        if not was_reset and (int(runs) != len(ids) or task_id != (ids[-1] if ids else "-")):
            world.problem(f"B5 {name} has {runs} runs, not {len(ids)}")
