"""Actors: plain greenlets that stop at each round trip until a scheduler resumes them.

Nothing here really waits: an event wakes its waiters through the kernel's queue, and a sleep and
the timeout of a wait are steps that the scheduler chooses. So the same choices make the same run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import greenlet

Killed = greenlet.GreenletExit


class Op:
    """The operation at which an actor has stopped.

    Labels are made from `kind`. A `fused` op only resumes its actor, whose next round trip belongs
    to the same step; a `timeout` is the end of a wait that might otherwise never end.
    """

    __slots__ = (
        "actor", "began", "body", "commands", "connection", "count", "data", "done", "fates",
        "fused", "kind", "name", "script", "state", "timeout", "value", "wait",
    )  # fmt: skip

    def __init__(self, actor: Actor, kind: str) -> None:
        self.actor = actor
        self.kind = kind
        self.name = f"{actor.owner.name}.{kind}"
        self.fused = self.timeout = self.done = False
        self.commands: Any = None
        # When it was begun: the step, and the time.
        self.began: tuple[int, float] | None = None
        self.connection: Any = None
        self.data = b""
        self.count = 0
        self.script = ""
        # For a wait on a list: "new", "blocked" or "served"; otherwise "".
        self.state = ""
        self.value: Any = None
        self.wait: Any = None
        self.body: Any = None
        self.fates: tuple[str, ...] = ()


class Actor(greenlet.greenlet):
    """A greenlet with a role in a worker or a sender."""

    def __init__(self, kernel: Kernel, owner: Any, role: str, run: Callable[..., Any], *args: Any):
        super().__init__(None, kernel.main)
        self.kernel = kernel
        self.owner = owner
        self.role = role
        self.call = run
        self.args = args
        self.op: Op | None = None
        # When the server last confirmed that the message is reserved for it.
        self.checked = 0

    def run(self) -> None:
        kernel = self.kernel
        try:
            self.call(*self.args)
        except Killed:
            pass
        except BaseException as exc:
            kernel.crashed(self, exc)
        finally:
            kernel.actors.discard(self)

    def kill(self, *_args: Any, **_options: Any) -> None:
        """End it where it stopped. What it had under way may still arrive."""
        if self.dead:
            return
        kernel, me = self.kernel, greenlet.getcurrent()
        op = self.op
        if op is not None:
            kernel.forget(op)
        if not self:
            # Not begun yet.
            self.call = _do_nothing
            self.args = ()
            return
        if me is not kernel.main:
            kernel.ready.append((me, None))
        self.throw(Killed)

    def join(self, *_args: Any) -> None:
        raise NotImplementedError


def _do_nothing() -> None:
    pass


class Kernel:
    """The actors of one run, and their pending ops."""

    def __init__(self) -> None:
        self.main = greenlet.getcurrent()
        self.ready: deque[tuple[Any, Any]] = deque()
        self.pending: list[Op] = []
        self.actors: set[Actor] = set()
        self.closing = False
        self.errors: list[str] = []

    def spawn(self, owner: Any, role: str, run: Callable[..., Any], *args: Any) -> Actor:
        actor = Actor(self, owner, role, run, *args)
        self.actors.add(actor)
        self.ready.append((actor, None))
        return actor

    def crashed(self, actor: Actor, exc: BaseException) -> None:
        if not self.closing:
            self.errors.append(f"{actor.owner.name}.{actor.role} crashed: {exc!r}")

    def park(self, op: Op) -> Any:
        """Stop until the scheduler resumes the actor. Called in an actor."""
        if self.closing:
            raise Killed
        actor = op.actor
        actor.op = op
        self.pending.append(op)
        try:
            return self.main.switch()
        finally:
            actor.op = None

    def forget(self, op: Op) -> None:
        """Drop an op: it will not happen."""
        op.done = True
        if op in self.pending:
            self.pending.remove(op)

    def run_ready(self) -> None:
        """Run all actors until all have stopped."""
        ready = self.ready
        while ready:
            actor, value = ready.popleft()
            if not actor.dead:
                actor.switch(value) if actor else actor.switch()

    def close(self) -> None:
        """End all remaining actors."""
        self.closing = True
        self.ready.clear()
        while self.actors:
            actor = self.actors.pop()
            tries = 0
            while actor and not actor.dead and tries < 5:
                actor.throw(Killed)
                tries += 1


class _Wait:
    __slots__ = ("actor", "done", "op")

    def __init__(self, actor: Actor) -> None:
        self.actor = actor
        self.done = False
        self.op: Op | None = None


class SimEvent:
    """`greenq.hub.Event` for actors."""

    __slots__ = ("_set", "_waits")

    def __init__(self) -> None:
        self._set = False
        self._waits: list[_Wait] = []

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        waits, self._waits = self._waits, []
        for wait in waits:
            if not wait.done:
                wait.done = True
                kernel = wait.actor.kernel
                if wait.op is not None:
                    kernel.forget(wait.op)
                kernel.ready.append((wait.actor, True))

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        if self._set:
            return True
        actor = greenlet.getcurrent()
        kernel = actor.kernel
        if kernel.closing:
            raise Killed
        wait = _Wait(actor)
        self._waits.append(wait)
        if timeout is not None:
            op = wait.op = Op(actor, f"{actor.role}~")
            op.timeout = op.fused = True
            op.wait = wait
            actor.op = op
            kernel.pending.append(op)
        answer: bool = kernel.main.switch()
        actor.op = None
        return answer


def sim_sleep(_seconds: float = 0.0) -> None:
    """`greenq.hub.sleep`: ends when the scheduler chooses."""
    actor = greenlet.getcurrent()
    op = Op(actor, f"{actor.role}~")
    op.fused = True
    actor.kernel.park(op)


def sim_spawn(run: Callable[..., Any], *args: Any, name: str, lasts: bool = False) -> Actor:
    """`greenq.hub.spawn`."""
    actor = greenlet.getcurrent()
    role = name.split()[0]
    if isinstance(actor, Actor):
        return actor.kernel.spawn(actor.owner, role, run, *args)
    raise AssertionError("only actors start greenlets")


def sim_run_all(calls: Any) -> list[Any]:
    """`greenq.hub.run_all`."""
    actor = greenlet.getcurrent()
    kernel, answers, errors, left = actor.kernel, {}, [], [len(calls)]
    over = SimEvent()

    def carry_out(number: int, call: Callable[[], Any]) -> None:
        try:
            answers[number] = call()
        except Killed:
            raise
        except BaseException as exc:
            errors.append(exc)
            over.set()
        left[0] -= 1
        if not left[0]:
            over.set()

    started = [
        kernel.spawn(actor.owner, actor.role, carry_out, number, call)
        for number, (_name, call) in enumerate(calls)
    ]
    over.wait()
    if errors:
        for each in started:
            each.kill()
        raise errors[0]
    return [answers[number] for number in range(len(calls))]
