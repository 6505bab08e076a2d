"""The continuation of a task: its links, its errbacks, the next step, its part of a chord.

The continuation is computed here and written by the call that stores the state and acknowledges the
message (`greenq.transport.continuation`), so a crash neither loses nor repeats a step.

    succeeded    links and the next step are sent; the part of a chord is counted
    failed       errbacks are called; whatever can no longer run also fails, and so do the chords
                 that wait for it
    completed    the part was the last of its chord; its worker reads the other parts, and settles
                 the message again, together with the body
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from greenq.canvas.plan import follow, ids_of, kind, listed, members
from greenq.errors import (
    ChordError,
    EncodeError,
    GreenqError,
    OperationalError,
    RemoteError,
    TaskRevokedError,
)
from greenq.hub import sleep, spawn
from greenq.protocol.message import UNREADABLE, TaskMessage
from greenq.protocol.serialize import saferepr
from greenq.running.outcome import takes_error
from greenq.sending.context import Context
from greenq.states import FAILURE, PROPAGATE_STATES, REVOKED, SUCCESS
from greenq.transport.continuation import (
    Addition,
    ChordClaim,
    Continuation,
    MessagePush,
    Seal,
)
from greenq.transport.settle import Settlement
from greenq.utils.backoff import Backoff
from greenq.utils.log import OutageLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from greenq.app import Task, TaskRegistry
    from greenq.canvas.plan import Never, WorkflowPlan
    from greenq.config.settings import TaskConfig
    from greenq.execution.workflow_index import WorkflowIndex
    from greenq.sending.producer import Outgoing, Producer
    from greenq.transport.continuation import ChordPart, Noted, StateWrite
    from greenq.transport.fetch import Delivery
    from greenq.transport.outbox import Outbox
    from greenq.transport.transport import Transport

_log = logging.getLogger(__name__)

# The messages sent when a task ends may be this many times as large as the largest body. A limit is
# needed because a chord's body is written into each message of its header, so a small message could
# cause a huge push.
_MOST_BODIES = 16

# The traceback of a failure is stored with each step that can no longer run, unless all copies
# together would be longer than this.
_MOST_TRACEBACK_CHARS = 1 << 20

# How many messages are written before other greenlets get a turn.
_TURN = 200

_RETRY_FIRST_S = 0.05
_RETRY_MAX_S = 1.0

# The bodies of chords, by the keys of their groups.
_Bodies = dict[str, "Mapping[str, Any]"]


class Failure(NamedTuple):
    """How a task failed: its state, its exception, and the traceback as text."""

    state: str
    error: BaseException
    traceback: str | None = None


class EndingStep:
    """A workflow's message that is ending, with the options that its successors inherit.

    Attributes:
        delivery: the reserved message.
        message: the decoded message.
        priority: the priority of its successors, or None if they have their own.
    """

    __slots__ = ("delivery", "message", "priority")

    def __init__(
        self, delivery: Delivery, message: TaskMessage, priority: int | None = None
    ) -> None:
        """Store the delivery, the message and the priority."""
        self.delivery = delivery
        self.message = message
        self.priority = priority

    @property
    def inherited(self) -> dict[str, Any]:
        """The options that its successors inherit."""
        message = self.message
        options: dict[str, Any] = {
            "parent_id": message.id, "root_id": message.root_id or message.id,
        }  # fmt: skip
        if message.stamps:
            options["stamps"] = message.stamps
        if self.priority is not None:
            options["priority"] = self.priority
        return options


class Handover:
    """Computes the continuations of one worker's tasks, in the worker's hub."""

    def __init__(
        self,
        *,
        config: TaskConfig,
        transport: Transport,
        registry: TaskRegistry,
        producer: Producer,
        outbox: Outbox,
        hostname: str,
        index: WorkflowIndex | None = None,
    ) -> None:
        """Use the parts of one worker; `hostname` is its node name.

        `index` writes entries for the index of workflows; None means no entries.
        """
        self.index = index
        self._transport = transport
        self._signer = transport.signer
        self._keys = transport.keys
        self._registry = registry
        self._producer = producer
        self._outbox = outbox
        self._hostname = hostname
        self._most_bytes = _MOST_BODIES * config.task_max_body_bytes
        self._outage = OutageLog(_log)

    # --- how a step ends --------------------------------------------------------------------------

    def succeeded(self, step: EndingStep, value: object) -> tuple[Continuation, list[Any]]:
        """Return the continuation of a success, and the handles of the tasks that it sends.

        Raises:
            Exception: a message cannot be sent, for example because a value cannot be encoded.
        """
        message = step.message
        if message.chord and not (message.callbacks or message.chain) and step.delivery.tag:
            return self._counted(step, value), []
        flow = _Flow()
        handles = [
            self._send(flow, follow(link, value, **step.inherited))
            for link in message.callbacks or ()
        ]
        if message.chain:
            *rest, following = message.chain
            given: dict[str, Any] = {"chain": rest} if rest else {}
            handles.append(self._send(flow, follow(following, value, **step.inherited, **given)))
        self._count(flow, message, SUCCESS, value)
        return self._finished(flow, step), handles

    def failed(
        self,
        step: EndingStep,
        failure: Failure,
        request: Context | None = None,
        *,
        calls: bool = True,
    ) -> Continuation:
        """Return the continuation of a failure. Switches: yes, if errbacks run here.

        Args:
            request: the run that failed, for errbacks.
            calls: whether errbacks are called; False if the task was revoked, has expired or was
                ignored.
        """
        message, flow = step.message, _Flow()
        if calls and message.errbacks:
            root = message.root_id or message.id
            context = request or Context(message, hostname=self._hostname)
            self._call_errbacks(flow, message.errbacks, message.id, root, context, failure)
        self._fail_all(flow, reversed(message.chain or ()), failure)
        self._count(flow, message, failure.state, failure.error)
        return self._finished(flow, step)

    def surely_failed(self, step: EndingStep, failure: Failure) -> Continuation:
        """Return the continuation of a failure, without errbacks; on an error, an empty one."""
        try:
            return self.failed(step, failure, calls=False)
        except Exception:
            _log.critical(
                "could not fail the tasks that follow task %s", step.message.id, exc_info=True
            )
            return Continuation()

    def replaced(self, step: EndingStep, plan: WorkflowPlan) -> Continuation:
        """Return the continuation that replaces a message: a different task with the same id."""
        flow = _Flow()
        self._send(flow, plan)
        return self._finished(flow, step)

    def added(
        self, workflow: Continuation, step: EndingStep, plans: Iterable[WorkflowPlan]
    ) -> None:
        """Add tasks that join the chord of a step's message."""
        flow = _Flow()
        group = self._keys.group(step.message.group or "")
        seconds = self._transport.backend.chord_seconds
        for plan in plans:
            self._send(flow, plan)
            flow.adds += [Addition(group, task_id, seconds) for task_id in _ends(plan.handle)]
        workflow.adds = [*workflow.adds, *flow.adds]
        workflow.pushes = [*workflow.pushes, *flow.pushes]
        workflow.states = [*workflow.states, *flow.states]
        workflow.seals = [*workflow.seals, *flow.seals]
        workflow.index = [*workflow.index, *flow.index]
        workflow.written = [*workflow.written, *flow.written]

    def _counted(self, step: EndingStep, value: object) -> Continuation:
        """Return the continuation of a chord part that only has to be counted, as most do."""
        message = step.message
        refused = partial(self._refused, step)
        if not (message.group and self._transport.stores_results):
            return Continuation(refused=refused)
        part = self._transport.backend.part(
            message.group, message.group_index, message.id, SUCCESS, value
        )
        complete = partial(self._complete_soon, step, None)
        return Continuation(parts=(part,), complete=complete, refused=refused)

    def _finished(self, flow: _Flow, step: EndingStep) -> Continuation:
        if not step.delivery.tag:
            # A broadcast runs in many workers, so it cannot be part of a chord.
            flow.parts.clear()
        elif flow.parts:
            flow.complete = partial(self._complete_soon, step, flow.bodies)
        flow.refused = partial(self._refused, step)
        if self.index is not None:
            flow.index += self.index.never(step.message, flow.never)
        return flow

    # --- sending ----------------------------------------------------------------------------------

    def _send(self, flow: _Flow, plan: WorkflowPlan) -> Any:
        """Write the messages of a plan; return its handle. Switches: yes, if there are many."""
        for number, call in enumerate(plan.calls, 1):
            task = self._registry.get(call.task)
            options = call.options if task is None else task.send_options(call.options)
            for message in self._producer.prepare_each(call.task, call.args, call.kwargs, options):
                self._push(flow, message)
            if flow.bytes > self._most_bytes:
                raise EncodeError(
                    f"the messages of the successors exceed {self._most_bytes:,} bytes in total: "
                    "send smaller groups, or raise task_max_body_bytes"
                )
            if number % _TURN == 0:
                sleep(0)
        if self.index is not None:
            flow.index += self.index.sent(plan.calls)
        backend = self._transport.backend
        for chord in plan.chords:
            seconds = self._chord_seconds()
            flow.seals.append(Seal(self._keys.group(chord.group_id), chord.size, seconds))
            if chord.saved is not None and self._transport.stores_results:
                flow.states.append(backend.saved_group(chord.group_id, chord.saved))
        return plan.handle

    def _push(self, flow: _Flow, message: Outgoing) -> None:
        queue, text = message["queue"], message["text"]
        if self._signer is not None:
            text = self._signer.seal("message", queue, text)
        if message["channel"]:
            flow.pushes.append(MessagePush(message["channel"], "all", text))
        else:
            key = self._keys.queue(queue, self._keys.step_of(message["priority"]))
            flow.pushes.append(MessagePush(key, "last", text))
        flow.bytes += len(text)
        if message["announced"] is not None:
            flow.written.append(message["announced"].sent)

    def _chord_seconds(self) -> int:
        return self._transport.backend.chord_seconds if self._transport.stores_results else 0

    # --- chords -----------------------------------------------------------------------------------

    def _count(self, flow: _Flow, message: TaskMessage, state: str, value: object) -> None:
        if message.chord and message.group:
            self._add_part(
                flow, message.chord, message.group, message.group_index, message.id, state, value
            )

    def _add_part(
        self,
        flow: _Flow,
        body: Mapping[str, Any],
        group_id: str,
        index: int | None,
        task_id: str,
        state: str,
        value: object,
    ) -> None:
        """Add a part of a chord whose body is `body`."""
        if not self._transport.stores_results:
            return
        backend = self._transport.backend
        part = backend.part(group_id, index, task_id, state, value)
        flow.parts.append(part)
        flow.bodies[part.group] = body

    def _complete_soon(self, step: EndingStep, bodies: _Bodies | None, entry: Settlement) -> None:
        if bodies is None:
            assert entry.workflow is not None
            assert step.message.chord is not None
            bodies = {entry.workflow.parts[0].group: step.message.chord}
        spawn(self._complete, step, bodies, entry, name="chord")

    def _complete(self, step: EndingStep, bodies: _Bodies, entry: Settlement) -> None:
        """Settle a message whose part was the last of its chord. Switches: yes."""
        pauses = Backoff(_RETRY_FIRST_S, _RETRY_MAX_S)
        while True:
            try:
                self._outbox.put(self._completion(step, bodies, entry))
            except OperationalError as exc:
                self._outage.failed("a chord is waiting until its results can be read", exc)
                sleep(pauses.next_s())
            except Exception as exc:
                _log.critical("could not complete a chord of %s", step.message.id, exc_info=True)
                self._refused(step, entry, f"its chord could not be completed: {exc}")
                return
            else:
                self._outage.recovered("chords are completed again")
                return

    def _completion(self, step: EndingStep, bodies: _Bodies, first: Settlement) -> Settlement:
        """Return the final settlement, with the bodies of the chords that `first` completes."""
        assert first.workflow is not None
        flow = _Flow.after(first.workflow)
        claims: dict[str, set[str]] = {}
        for part in first.workflow.parts:
            claims.setdefault(part.group, set()).add(part.claim)
        for group, own in claims.items():
            claim, parts, saved = self._read(group)
            if claim in own and bodies[group] is UNREADABLE:
                _log.error(
                    "chord %s cannot end yet: the message of its last part, task %s, is a dead "
                    "letter that cannot be read; once it can be read, replay it with `greenq dead`",
                    step.message.group, step.message.id,
                )  # fmt: skip
            elif claim in own:
                flow.clears.append(ChordClaim(group, claim))
                self._end_chord(flow, step, bodies[group], parts, saved)
            elif len(claims) == 1:
                if claim is None:
                    # The results server has lost the chord, so count the existing parts again.
                    return first
                # Another worker has completed the chord, so nothing is sent, and the message is
                # acknowledged.
                flow.clears.append(ChordClaim(group, min(own)))
        workflow = self._finished(flow, step)
        return Settlement(
            first.tag, first.action, move=first.move, about=first.about, workflow=workflow
        )

    def _read(self, group: str) -> tuple[str | None, list[tuple[str, str, Any]] | Exception, Any]:
        """Read a chord; if its parts cannot be read, return the reason instead."""
        try:
            return self._transport.backend.read_chord(group)
        except OperationalError:
            raise
        except Exception as exc:
            claim = self._transport.backend.read_claim(group)
            return claim, exc, None

    def _end_chord(
        self,
        flow: _Flow,
        step: EndingStep,
        body: Mapping[str, Any],
        parts: list[tuple[str, str, Any]] | Exception,
        saved: Any,
    ) -> None:
        """Add the body of a chord whose header has ended, or the body's failure."""
        try:
            if isinstance(parts, Exception):
                raise ChordError(f"Join error: {parts!r}") from parts
            values = _values(parts, saved)
            sent = _Flow()
            try:
                self._send(sent, follow(body, values, **step.inherited))
            except Exception as exc:
                raise ChordError(f"Callback error: {exc!r}") from exc
            flow.add(sent)
        except ChordError as error:
            if self.index is not None and self.index.is_cancelled(step.message):
                self._fail_all(flow, [body], Failure(REVOKED, TaskRevokedError("revoked")))
                return
            _log.error("the body of a chord cannot run: %s", error)
            self._fail_body(flow, step, body, Failure(FAILURE, error))

    def _fail_body(
        self, flow: _Flow, step: EndingStep, body: Mapping[str, Any], failure: Failure
    ) -> None:
        """Fail the body of a chord, and call the errbacks of the tasks that would have begun it."""
        root = step.message.root_id or step.message.id
        for sig in _beginnings(body):
            task_id = sig["options"].get("task_id") or ""
            errbacks = sig["options"].get("link_error")
            if errbacks and task_id:
                message = TaskMessage(
                    task=sig["task"], id=task_id, args=sig["args"], kwargs=sig["kwargs"],
                    errbacks=listed(errbacks), root_id=root, parent_id=step.message.id,
                )  # fmt: skip
                context = Context(message, hostname=self._hostname)
                self._call_errbacks(flow, listed(errbacks), task_id, root, context, failure)
        self._fail_all(flow, [body], failure)

    # --- failures ---------------------------------------------------------------------------------

    def _fail_all(
        self, flow: _Flow, signatures: Iterable[Mapping[str, Any]], failure: Failure
    ) -> None:
        """Fail every task that can no longer run, and the chords that wait for one of them."""
        nevers: dict[str, Never] = {}
        for signature in signatures:
            for never in _nevers(signature):
                nevers.setdefault(never.task_id, never)
        trace = failure.traceback
        if trace is not None and len(trace) * len(nevers) > _MOST_TRACEBACK_CHARS:
            trace = None
        stores = self._transport.stores_results
        flow.never += ((task_id, failure.state) for task_id in nevers)
        for never in nevers.values():
            if stores:
                state = self._transport.backend.stored(
                    never.task_id,
                    failure.state,
                    failure.error,
                    traceback=trace,
                    group_id=never.group_id,
                )
                flow.states.append(state.of_unrun())
            if never.chord and never.group_id:
                self._add_part(
                    flow, never.chord, never.group_id, never.group_index, never.task_id,
                    failure.state, failure.error,
                )  # fmt: skip

    def _call_errbacks(
        self,
        flow: _Flow,
        errbacks: Sequence[Any],
        task_id: str,
        root_id: str,
        request: Context,
        failure: Failure,
    ) -> None:
        """Call errbacks that take the error; send other errbacks with the id of the failed task."""
        for errback in errbacks:
            try:
                task = None if kind(errback) != "task" else self._registry.get(errback["task"])
                if task is not None and takes_error(task):
                    _call(task, errback, request, failure)
                else:
                    sent = _Flow()
                    self._send(sent, follow(errback, task_id, parent_id=task_id, root_id=root_id))
                    flow.add(sent)
            except Exception:
                _log.exception("errback %s of task %s failed", errback.get("task"), task_id)

    def _refused(self, step: EndingStep, entry: Settlement, reason: str) -> None:
        """Settle a message whose outcome the server refuses: it becomes a dead letter.

        The tasks that depend on it fail, unless the server refuses that, too.
        """
        _log.error("the tasks that follow task %s cannot be sent: %s", step.message.id, reason)
        move = self._transport.broker.bury(
            *step.delivery, reason=reason, worker=self._hostname, now=datetime.now(UTC)
        )
        again = entry.move is not None and entry.move.key == move.key
        failure = Failure(FAILURE, GreenqError(reason))
        workflow = Continuation() if again else self.surely_failed(step, failure)
        if self.index is not None:
            workflow = self.index.ended(step.delivery, step.message, FAILURE, workflow) or workflow
        self._outbox.put(Settlement.moving(move, None, workflow))


class _Flow(Continuation):
    """A continuation that is being computed.

    Attributes:
        bodies: the bodies of the chords whose parts it contains.
        bytes: the total size of the messages so far.
        never: the tasks that can no longer run, and their states.
    """

    __slots__ = ("bodies", "bytes", "never")

    def __init__(self) -> None:
        super().__init__()
        self.adds: list[Addition] = []
        self.parts: list[ChordPart] = []
        self.states: list[StateWrite] = []
        self.pushes: list[MessagePush] = []
        self.seals: list[Seal] = []
        self.clears: list[ChordClaim] = []
        self.index: list[Noted] = []
        self.written: list[Callable[[], object]] = []
        self.bodies: _Bodies = {}
        self.bytes = 0
        self.never: list[tuple[str, str]] = []

    @classmethod
    def after(cls, first: Continuation) -> _Flow:
        """Return a flow that begins with a withheld continuation, whose parts were counted."""
        flow = cls()
        flow.add(first)
        flow.clears += first.clears
        return flow

    def add(self, other: Continuation) -> None:
        """Add everything that another continuation sends and stores."""
        self.states += other.states
        self.pushes += other.pushes
        self.seals += other.seals
        self.index += other.index
        self.written += other.written


def _call(
    task: Task[Any, Any], errback: Mapping[str, Any], request: Context, failure: Failure
) -> None:
    """Call an errback in this worker. Switches: yes."""
    own = errback.get("args") or ()
    args = own if errback.get("immutable") else (request, failure.error, failure.traceback, *own)
    try:
        task(*args, **errback.get("kwargs") or {})
    except BaseException as exc:
        # User code runs here; whatever it raises, the failed task still ends.
        raise GreenqError(f"{type(exc).__name__}: {exc}") from exc


def _values(parts: list[tuple[str, str, Any]], saved: Any) -> list[Any]:
    """Return the results of a chord's header, nested as its groups were.

    Raises:
        ChordError: a part has failed; the message names the first one in order.
    """
    for task_id, state, value in parts:
        if state in PROPAGATE_STATES:
            shown = str(value) if isinstance(value, RemoteError) else saferepr(value)
            raise ChordError(f"Dependency {task_id} raised {shown}")
    values = [value for _task_id, _state, value in parts]
    if saved is None:
        return values
    try:
        return [_arranged(each, {part[0]: part[2] for part in parts}) for each in saved[1]]
    except (KeyError, TypeError, IndexError, ValueError, RecursionError):
        # A member was added later, or is not among the saved ones.
        return values


def _ends(handle: Any) -> list[str]:
    """Return the ids of the last tasks of the workflow that a handle stands for."""
    (task_id, _parent), inner = handle
    return [task_id] if inner is None else [each for part in inner for each in _ends(part)]


def _arranged(handle: Any, values: Mapping[str, Any]) -> Any:
    (task_id, _parent), inner = handle
    return values[task_id] if inner is None else [_arranged(each, values) for each in inner]


def _nevers(signature: Mapping[str, Any]) -> Iterator[Never]:
    """Yield each task that a signature and its successors would have run."""
    for never in ids_of(signature):
        yield never
        for later in reversed(never.options.get("chain") or ()):
            yield from _nevers(later)
    if kind(signature) != "task":
        for later in reversed(signature["options"].get("chain") or ()):
            yield from _nevers(later)


def _beginnings(signature: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the first parts of a signature that can fail: tasks, and bodies of chords."""
    what = kind(signature)
    errbacks = listed(signature["options"].get("link_error"))
    if what == "task":
        yield signature
    elif what == "chain":
        tasks = signature["kwargs"]["tasks"]
        ends = {"task_id": signature["options"].get("task_id")}
        for first in tasks[:1]:
            for sig in _beginnings(first):
                yield _with_errbacks(sig, errbacks, ends if ends["task_id"] else {})
    else:
        inner = members(signature) if what == "group" else [signature["kwargs"]["body"]]
        for each in inner:
            for sig in _beginnings(each):
                yield _with_errbacks(sig, errbacks, {})


def _with_errbacks(
    signature: Mapping[str, Any], errbacks: list[Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    own = listed(signature["options"].get("link_error"))
    found = own + [each for each in errbacks if each not in own]
    return {**signature, "options": {**signature["options"], **options, "link_error": found}}
