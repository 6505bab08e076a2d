"""The world of one workflow in the index: its workers, and a person who stops or retries it.

The promises: W1 nothing begins in a worker that knows that the workflow is cancelled; W2 nothing
begins that got its slot while the worker knew that the workflow was paused; W3 the index agrees
with what happened, and ends; W4 a retry runs exactly what had failed; W5 each call is sent
once; W6 each key expires.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import greenlet
import hiredis

import greenq.workflow
from greenq.canvas.index import noted
from greenq.canvas.nodes import PLANNED, WAITING, Following, of_call
from greenq.canvas.plan import Call
from greenq.errors import GreenqError, OperationalError
from greenq.states import FAILURE, REVOKED, SUCCESS
from greenq.transport.continuation import Continuation
from greenq.transport.settle import Settlement, settle_arguments
from greenq.workflow import Workflow
from tests.model.kernel import Actor, Op, sim_sleep
from tests.model.net import pack
from tests.model.world import _MODULES, SimWorker, World, _Time

_ENDED = {"s": SUCCESS, "f": FAILURE, "v": REVOKED}


class _FlowTime(_Time):
    """Stands in for the module `time` for the person who stops or retries the workflow."""

    @staticmethod
    def sleep(seconds: float) -> None:
        op = Op(greenlet.getcurrent(), "sleep")
        op.fused = True
        op.value = seconds
        op.actor.kernel.park(op)


# A chord that stays "being completed" is soon given up.
_MODULES.append((greenq.workflow, {"time": _FlowTime, "_COMPLETED_S": 0.2}))


class Person:
    """Someone who stops the workflow or runs it again, doing one thing after another.

    A command whose answer was lost is repeated, except for a sending, which would then happen
    twice.
    """

    name = "P"
    offset_s = 0.0
    frozen = blocked = False
    alive = True

    def __init__(self, world: FlowWorld) -> None:
        self.world = world
        self.busy = self.sends = False

    def do(self, call: Callable[..., object], *args: Any, sends: bool = False) -> None:
        self.busy, self.sends = True, sends
        self.world.kernel.spawn(self, "person", self._do, call, *args)

    def _do(self, call: Callable[..., object], *args: Any) -> None:
        while True:
            try:
                call(*args)
            except OperationalError:
                if not self.sends:
                    sim_sleep()
                    continue
            except GreenqError as exc:
                self.world.refusals.append(str(exc))
            break
        self.busy = self.sends = False


class FlowWorld(World):
    """One schedule's run of a workflow in the index."""

    def _prepare(self) -> None:
        site, root = self.site, self.scenario.flow
        self.workflow = Workflow(site.app, root)
        self.person = Person(self)
        self.refusals: list[str] = []
        self.name = site.keys.workflow(root)
        self.stop = ""
        # How many times a retry has sent each task again.
        self.again: Counter[str] = Counter()
        # Calls that wait for the end, and how many times each is to be sent.
        self.calls: list[tuple[str, str]] = []
        self.called: Counter[str] = Counter()
        self.is_over = False
        # Tags of requests that got their slot while their worker knew that the workflow was paused.
        self._paused: set[str] = set()
        self.members = {m.id for m in self.scenario.messages} - self.scenario.calls.keys()
        self._note_members()
        site.transport.backend._reads._reset()

    def _note_members(self) -> None:
        """Enter the workflow into the index, as its sender does."""
        root, seconds = self.scenario.flow, self.site.transport.workflows.seconds
        items, following = [], Following()
        for message in self.scenario.messages:
            if not message.later:
                call = Call(message.task, (), {}, self.scenario.options(message))
                items += noted(root, seconds, WAITING, [of_call(call)])
                items += noted(root, seconds, PLANNED, following.call(call))
        entry = Settlement("", "k", workflow=Continuation(index=items))
        names, args = settle_arguments(self.site.keys, [entry], fence=None)
        self.link.later(self._clock(self.now))
        command = ("EVALSHA", self.site.server.shas["settle"], len(names), *names, *args)
        self.link.later(pack(command))

    # --- what is checked on the way ---------------------------------------------------------------

    def attempt(self, task_id: str, retries: int) -> int:
        return retries + self.again[task_id]

    def note_taken_up(self, worker: SimWorker, request: Any) -> None:
        if worker.state.revoked.workflows.get(self.scenario.flow) == "paused":
            self._paused.add(request.delivery.tag)

    def begin(
        self,
        actor: Actor,
        tag: str,
        text_tag: str,
        task_id: str,
        retries: int,
        *,
        early: bool = False,
    ) -> None:
        if task_id in self.members:
            known = actor.owner.state.revoked.workflows.get(self.scenario.flow)
            if known == "cancelled":
                self.problem(
                    f"W1 {task_id} begins in {actor.owner.name}, which knows of the cancel"
                )
            if tag in self._paused:
                self.problem(f"W2 {task_id} begins in {actor.owner.name}, which knows of the pause")
        super().begin(actor, tag, text_tag, task_id, retries, early=early)

    def fates(self, op: Op) -> tuple[str, ...]:
        if op.actor.owner is self.person and self.person.sends:
            return ()
        return super().fates(op)

    def do_op(self, op: Op, fate: str, label: str) -> None:
        if op.fused and op.value is not None:
            self.pass_time(op.value)
        super().do_op(op, fate, label)

    def carry_out(self, op: Op) -> list[Any]:
        again = self._failed_among(op) if op.script == "workflow_reset" else []
        answers = super().carry_out(op)
        if op.commands is None or isinstance(answers[0], hiredis.ReplyError):
            return answers
        command = op.commands[0]
        if op.script == "workflow_stop":
            self.stop = command[3 + command[2] + 1]
        elif op.script == "workflow_reset":
            self._note_reset(again, answers[0])
        elif op.script == "workflow_call":
            self._note_call(command)
        elif op.script == "workflow_forget":
            for message in self.scenario.messages:
                (there,) = op.connection.link.call(
                    pack(("EXISTS", self.site.keys.result(message.id))), 1
                )
                if not there:
                    self.states.pop(message.id, None)
        if op.script in ("settle", "workflow_reset"):
            self._note_over()
        return answers

    def _failed_among(self, op: Op) -> list[str]:
        """Return the tasks that a retry is to send."""
        command = op.commands[0]
        ids = command[3 + command[2] :: 2]
        data = pack(("HMGET", f"{self.name}.nodes", *ids))
        data += pack(("HMGET", f"{self.name}.failed", *ids))
        nodes, kept = self.link.call(data, 2)
        return [
            task_id
            for task_id, node, message in zip(ids, nodes, kept, strict=True)
            if node is not None and node[:1] in b"fv" and message is not None
        ]

    def _note_reset(self, again: list[str], count: int) -> None:
        if count < 0:
            return
        if count != len(again):
            self.problem(f"W4 a retry sends {count} tasks, but {again} have failed")
        for task_id in again:
            self.again[task_id] += 1
            self.states.pop(task_id, None)
            for key in [key for key in self.runs if key[0] == task_id and key[1] >= 0]:
                # They belong to the time before the retry.
                runs = self.runs.pop(key)
                self.runs.setdefault((task_id, -self.again.total()), []).extend(runs)

    def _how(self) -> tuple[bool, str]:
        over, failed, revoked = self.link.one("HMGET", self.name, "over", "n.f", "n.v")
        return over is not None, "f" if int(failed or 0) + int(revoked or 0) else "s"

    def _note_over(self) -> None:
        is_over, how = self._how()
        if is_over and not self.is_over:
            for when, task_id in self.calls:
                self.called[task_id] += when in ("e", how)
            self.calls.clear()
        self.is_over = is_over

    def _note_call(self, command: Any) -> None:
        when, text = command[3 + command[2]], command[3 + command[2] + 1]
        (task_id,) = (each for each in self.scenario.calls if f'"id": "{each}"'.encode() in text)
        is_over, how = self._how()
        if is_over:
            self.called[task_id] += when in ("e", how)
        else:
            self.calls.append((when, task_id))

    # --- the environment --------------------------------------------------------------------------

    def _may(self, label: str) -> bool:
        subject, _, verb = label.partition("!")
        if subject == "*":
            if self.person.busy:
                return False
            if verb == "resume":
                return self.stop == "paused"
            if verb == "pause":
                return self.stop == ""
        return super()._may(label)

    def env_cancel(self, _worker: None, _argument: str) -> None:
        self.person.do(self.workflow.cancel)

    def env_pause(self, _worker: None, _argument: str) -> None:
        self.person.do(self.workflow.pause)

    def env_resume(self, _worker: None, _argument: str) -> None:
        self.person.do(self.workflow.resume)

    def env_retry(self, _worker: None, _argument: str) -> None:
        self.person.do(self.workflow.retry)

    def env_call(self, _worker: None, task_id: str) -> None:
        call = getattr(self.workflow, f"on_{self.scenario.calls[task_id]}")
        options = self.scenario.options(self.scenario.by_id[task_id])
        self.person.do(call, self.site.app.signature("late", options=options), sends=True)

    def env_add(self, _worker: None, _argument: str) -> None:
        options = {"task_id": "a", "queue": "q"}
        self.sent.add("a")
        self.person.do(
            self.workflow.add, self.site.app.signature("late", options=options), sends=True
        )

    # --- the end ----------------------------------------------------------------------------------

    def may_retry(self) -> bool:
        """Return whether something has failed that may run again."""
        if "*!retry" not in self.scenario.env:
            return False
        return any(node[:1] in b"fv" for node in self._nodes().values())

    def _nodes(self) -> dict[str, bytes]:
        answer = self.link.one("HGETALL", f"{self.name}.nodes")
        return {key.decode(): value for key, value in zip(answer[::2], answer[1::2], strict=True)}

    def fingerprint(self) -> Any:
        """Everything about the index that determines how this world continues."""
        return (
            sorted((task_id, node[:1]) for task_id, node in self._nodes().items()),
            self.link.one("HKEYS", f"{self.name}.failed"),
            self.link.one("LRANGE", f"{self.name}.held", 0, -1),
            self.stop, self.is_over, self.person.busy, sorted(self.again.items()), self.calls,
            [sorted(w.state.revoked.workflows.items()) for w in self.workers.values()],
        )  # fmt: skip

    def check_index(self, states: dict[str, bytes | None]) -> None:
        """Check that the index agrees with what has happened."""
        answer = self.link.one("HGETALL", self.name)
        record = {key.decode(): value for key, value in zip(answer[::2], answer[1::2], strict=True)}
        nodes = self._nodes()
        letters = Counter(node[:1].decode() for node in nodes.values())
        counts = {key[2:]: int(value) for key, value in record.items() if key[:2] == "n."}
        if {key: count for key, count in counts.items() if count} != letters:
            self.problem(f"W3 the index counts wrong ({counts}, {dict(letters)})")
        for task_id in sorted(self.members & (self.sent | nodes.keys())):
            letter = nodes.get(task_id, b"?")[:1].decode()
            state = self.states.get(task_id) if states.get(task_id) is not None else None
            runs = [
                run for (each, _), found in self.runs.items() if each == task_id for run in found
            ]
            if letter not in _ENDED:
                self.problem(f"W3 {task_id} never ends in the index ({letter}, {state})")
            elif state is None:
                self.problem(f"W3 {task_id} has ended, and has no state ({letter})")
            elif _ENDED[letter] != state and not any(run.excused for run in runs):
                self.problem(f"W3 {task_id} is {state}, and {letter} in the index")
        if "over" not in record:
            self.problem("W3 the index does not know that it is over")
        for link in {self.link, self.result_link}:
            for key in link.one("KEYS", "*"):
                is_ours = b"greenq.workflow" in key or b"celery-task" in key
                if is_ours and link.one("TTL", key) < 0:
                    self.problem(f"W6 {key.decode()} never expires")
        for worker in self.workers.values():
            if (
                worker.takes
                and worker.state.revoked.workflows.get(self.scenario.flow, "") != self.stop
            ):
                self.problem(f"W1 {worker.name} does not know that it is {self.stop!r}")

    def check_calls(self) -> None:
        for task_id in self.scenario.calls:
            ran = any(each == task_id for each, _number in self.runs)
            if self.called[task_id] > 1:
                self.problem(f"W5 {task_id} was to be called {self.called[task_id]} times")
            elif ran != bool(self.called[task_id]):
                self.problem(f"W5 {task_id} was {'' if ran else 'not '}called")
