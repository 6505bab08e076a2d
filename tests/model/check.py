"""The end of a schedule: all faults end, and then the promises must hold.

I1 nothing is lost; I2 nothing runs twice while its owner is alive, connected and has its lease (a
task acknowledged early never runs twice); I3 nothing is stuck; I4 a final state is not replaced by
an older one; I5 no ETA is early; I6 pausing and draining strand nothing; I8 a retry has one
successor; I10 whatever belongs to a workflow ends, and its successors follow from its end. I2, I4,
I5 and I8 are checked during the run, in world.py.
"""

from __future__ import annotations

import json
from typing import Any

from greenq.transport.recovery import is_suspect
from tests.model.beats import BeatWorld
from tests.model.celery import VISIBILITY_S
from tests.model.check_beats import check_beats
from tests.model.flows import FlowWorld
from tests.model.kernel import Op
from tests.model.net import pack
from tests.model.world import FINAL, LEASE_S, World

_MOST_STEPS = 400
_ROUNDS = 8
_MOST_RETRIES = 5


class Dump:
    """The contents of the server."""

    def __init__(self, world: World) -> None:
        scenario, keys = world.scenario, world.site.keys
        commands: list[Any] = [
            ("HGETALL", keys.unacked),
            ("ZRANGE", keys.unacked_index, 0, -1),
            ("ZRANGE", keys.leases, 0, -1, "WITHSCORES"),
        ]
        for queue in scenario.queues:
            commands += [
                *(("LRANGE", key, 0, -1) for key in keys.queue_steps(queue)),
                ("LRANGE", keys.inbox(queue), 0, -1),
                ("ZRANGE", keys.eta(queue), 0, -1),
                ("LRANGE", keys.dead(queue), 0, -1),
            ]
        data, count = b"".join(map(pack, commands)), len(commands)
        same = world.result_link is world.link
        if same:
            data += world._look
        answers = world.link.call(data, count + same)
        states = answers.pop() if same else world.result_link.call(world._look, 1)[0]
        world.note_states(states)
        self.states = dict(zip(world._ids, states, strict=True))
        self.held = dict(zip(answers[0][::2], answers[0][1::2], strict=True))
        self.index: list[bytes] = answers[1]
        self.leases = dict(zip(answers[2][::2], map(float, answers[2][1::2]), strict=True))
        lists, places = len(keys.steps), answers[3:]
        step = lists + 3
        self.queued: list[bytes] = [
            raw for n in range(lists) for each in places[n::step] for raw in each
        ]
        self.inbox: list[bytes] = [raw for each in places[lists::step] for raw in each]
        self.parked: list[bytes] = [raw for each in places[lists + 1 :: step] for raw in each]
        self.dead: list[bytes] = [raw for each in places[lists + 2 :: step] for raw in each]

    @property
    def is_clear(self) -> bool:
        return not (self.held or self.index or self.queued or self.inbox or self.parked)

    def text(self) -> str:
        places = ("held", "index", "queued", "inbox", "parked")
        shown = [
            f"{len(getattr(self, name))} {name}" for name in places if len(getattr(self, name))
        ]
        tags = ", ".join(sorted(tag.decode() for tag in self.held))
        return " ".join(shown) + (f" ({tags})" if tags else "")


def run_quiet(world: World) -> None:
    """Run without faults until nothing is under way."""
    steps = sleeps = 0
    while True:
        op = _next(world)
        if op is None:
            return
        if op.fused:
            # An actor that keeps retrying needs its lease.
            sleeps += 1
            if sleeps % 4 == 0:
                op = _watch_of(world, op) or op
        world.do_op(op, "", f"+{op.name}")
        steps += 1
        if steps > _MOST_STEPS:
            world.problem(f"I3 it does not settle: {world.labels[-6:]}")
            return


def _next(world: World) -> Op | None:
    """Return the next op to continue: round trips before sleeps."""
    sleeper = None
    for op in world.kernel.pending:
        if op.kind not in ("watch", "look") and not op.timeout and not world.stands(op):
            if not op.fused:
                return op
            sleeper = sleeper or op
    return sleeper


def _watch_of(world: World, op: Op) -> Op | None:
    for other in world.kernel.pending:
        if other.kind == "watch" and other.actor.owner is op.actor.owner:
            return other
    return None


def heal(world: World) -> Dump:
    """End all faults, let time pass, and let a new worker take what is left."""
    scenario = world.scenario
    world.healing = True
    for worker in world.workers.values():
        worker.frozen = worker.blocked = worker.gives_away = False
    for queue in scenario.pausable:
        world.env_resume(None, queue)
    world.kernel.run_ready()
    run_quiet(world)
    _turn(world)
    dump = _until_clear(world)
    if world.late and not world.problems:
        # What is still under way arrives at the very end.
        for op in list(world.late):
            world.do_late(op, f"+~{op.name}")
            run_quiet(world)
        _turn(world)
        dump = _until_clear(world)
    return dump


def _until_clear(world: World) -> Dump:
    dump = Dump(world)
    for number in range(_ROUNDS):
        if (dump.is_clear and _are_ended(world)) or world.problems:
            return dump
        if not any(worker.takes for worker in world.workers.values()):
            world.add_worker(f"Z{number}", 4, tuple(world.scenario.queues))
            run_quiet(world)
        if number and world.scenario.overdue and dump.held:
            world.do_env(f"*!time:{VISIBILITY_S + 100:g}")
        elif number and any(due > world.now for due in world.etas.values()):
            world.do_env(f"*!time:{max(world.etas.values()) - world.now + 0.1:.3f}")
            run_quiet(world)
        else:
            world.do_env(f"*!time:{LEASE_S * 1.05:g}")
        _fire_timeouts(world)
        run_quiet(world)
        _turn(world)
        dump = Dump(world)
    return dump


def _are_ended(world: World) -> bool:
    return all(world.states.get(each) in FINAL for each in world.sent | _successors(world))


def _successors(world: World) -> set[str]:
    """Return what must end because everything before it has been sent."""
    found: set[str] = set()
    for message in world.scenario.messages:
        if message.after and all(each in world.sent | found for each in message.after):
            found.add(message.id)
    return found


def _turn(world: World) -> None:
    """Run each worker's watchdog once, and let it look for stopped workflows."""
    for op in list(world.kernel.pending):
        if op.kind in ("watch", "look") and op in world.kernel.pending:
            world.do_op(op, "", f"+{op.name}")
            run_quiet(world)


def _fire_timeouts(world: World) -> None:
    for op in list(world.kernel.pending):
        if op.timeout and op in world.kernel.pending:
            world.do_op(op, "", f"+{op.name}")


def check(world: World) -> None:
    """Heal, and note the broken promises."""
    if isinstance(world, BeatWorld):
        if not world.problems:
            check_beats(world)
    elif isinstance(world, FlowWorld):
        if not world.problems:
            _check_flow(world)
    elif not world.problems:
        dump = heal(world)
        if not world.problems:
            _check_end(world, dump)
    for error in world.kernel.errors:
        world.problem(f"I0 {error}")


def _check_flow(world: FlowWorld) -> None:
    """Heal, and check a workflow in the index; then run again what has failed, as far as it may."""
    world.healing = True
    for _ in range(_MOST_RETRIES):
        run_quiet(world)
        if world.stop == "paused":
            world.do_env("*!resume")
            run_quiet(world)
        dump = heal(world)
        if not world.problems:
            if not dump.is_clear:
                world.problem(f"I3 left after healing: {dump.text()}")
            world.check_index(dump.states)
        if world.problems or not world.may_retry():
            break
        world.do_env("*!retry")
    else:
        world.problem("W4 it fails however often it is run again")
    if not world.problems:
        world.check_calls()


def _check_end(world: World, dump: Dump) -> None:
    if not dump.is_clear:
        kind = "I6" if world.scenario.pausable else "I3"
        world.problem(f"{kind} left after healing: {dump.text()}")
    buried = _buried_ids(dump)
    gone = world.rolled_back
    for task_id in sorted(world.sent | _successors(world)):
        state = world.states.get(task_id) if dump.states[task_id] is not None else None
        if state in FINAL:
            continue
        runs = [run for (each, _n), found in world.runs.items() if each == task_id for run in found]
        if task_id in buried:
            if not gone:
                world.problem(f"I4 {task_id} is buried and its state is {state}")
            continue
        flows = world.scenario.by_id[task_id]
        if flows.after or flows.chain or flows.chord:
            if dump.is_clear:
                world.problem(f"I10 {task_id} belongs to a workflow, and its state is {state}")
            continue
        if runs and runs[-1].early and not runs[-1].worker.alive:
            # At most once: it began, and its worker died during the run.
            continue
        if not runs and world.was_killed and world.scenario.by_id[task_id].task == "early":
            # Its worker died between the acknowledgement and the start.
            continue
        if gone and not _survives(world, task_id):
            continue
        if dump.is_clear:
            if state is None:
                how = "its outcome is lost" if runs else "it never ran"
                world.problem(f"I1 {task_id} is nowhere: {how}")
            else:
                world.problem(f"I4 {task_id} has ended, and its state is {state}")
    _check_guilt(world, buried)
    _check_successors(world)
    if not gone:
        for task_id, count in _copies(world).items():
            if count > 1:
                world.problem(f"I2 {task_id} was put on its queue {count} times")


def _check_successors(world: World) -> None:
    """Check that what follows has run if all before it succeeded, and has failed otherwise."""
    states = world.states
    for message in world.scenario.messages:
        if not message.after or world.problems:
            continue
        before = [states.get(each) for each in message.after]
        ran = any(task_id == message.id for task_id, _number in world.runs)
        # The success of a worker that had lost the message stays, though another run decides.
        is_plain = all(
            run.outcome != "fail" and not run.excused
            for (task_id, _number), runs in world.runs.items()
            if task_id in message.after
            for run in runs
        )
        if is_plain and all(each == "SUCCESS" for each in before) and not ran:
            world.problem(f"I10 {message.id} never ran, although all before it succeeded")
        # All runs have ended by themselves.
        faultless = not (world.was_killed or world.scenario.run_fates or world.revoked) and all(
            run.outcome and not run.excused for runs in world.runs.values() for run in runs
        )
        is_plain = is_plain and not any(_was_given_up(world, each) for each in message.after)
        if faultless and is_plain and states.get(message.id) == "FAILURE":
            world.problem(f"I10 {message.id} has failed, although nothing before it did")
        if "REVOKED" in before and ran:
            world.problem(f"I10 {message.id} ran, although one before it was revoked")


def _was_given_up(world: World, task_id: str) -> bool:
    """Tell whether a task that must not run twice has failed before its run, or one before it has.

    That is what happens to it when its worker's lease ends.
    """
    message = world.scenario.by_id[task_id]
    ran = any(each == task_id for each, _number in world.runs)
    if message.task in ("once", "early") and not ran:
        return True
    return any(_was_given_up(world, each) for each in message.after)


def _check_guilt(world: World, buried: set[str]) -> None:
    """Check that exactly the tasks that kill their workers are buried, at the right death."""
    guilty = {task_id for task_id, plan in world.scenario.plans.items() if plan[0] == "die"}
    if not guilty:
        return
    most = world.site.app.config.task.task_max_deliveries
    for task_id in buried - guilty:
        world.problem(f"I9 {task_id} is buried although it killed no worker")
    for task_id in guilty:
        deaths = world.deaths.get(task_id, [])
        # A death beside others counts until the task is a suspect; then only one alone counts, and
        # only such a one buries it.
        counted: list[bool] = []
        for alone in deaths:
            if alone or not is_suspect(len(counted), most):
                counted.append(alone)
        enough = counted[most - 1 :]
        if task_id not in buried or enough.count(True) != 1 or not enough[-1]:
            world.problem(f"I9 {task_id} has killed {len(deaths)} workers of {most}: {deaths}")


def _survives(world: World, task_id: str) -> bool:
    """Return whether a worker had it in hand: that survives even a server that loses all data."""
    return task_id in world.survivors


def _copies(world: World) -> dict[str, int]:
    """Count the distinct messages that have run as each task's first attempt."""
    return {
        task_id: len({run.text_tag for run in runs})
        for (task_id, retries), runs in world.runs.items()
        if not retries
    }


def _buried_ids(dump: Dump) -> set[str]:
    return {json.loads(letter).get("task_id") for letter in dump.dead}
