"""The whole life of a task, from a free slot to a stored state and an acknowledgement.

    begin    skip revoked tasks; acknowledge early, if wanted, and wait for the confirmation; store
             STARTED, if tracked
    run      call hooks and user code; whatever they raise becomes an outcome
    settle   write state and notification, acknowledge or move the message: one outbox entry
    report   send one event, write one log line, call the hooks of the task's class

Each way in which a task can end is a branch of `_call` or `_override`, and after each branch the
message is settled.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from typing import TYPE_CHECKING, Any

from greenq.errors import (
    GreenqError,
    OperationalError,
    Reject,
    Retry,
    TaskRevokedError,
    TaskTerminated,
)
from greenq.execution.handover import EndingStep, Failure, Handover
from greenq.execution.moves import Moves
from greenq.execution.results import STORED_CHARS, ResultWriter
from greenq.execution.time_limits import run_limited
from greenq.hub import Event, sleep
from greenq.protocol.event import NullEventSender
from greenq.protocol.serialize import saferepr
from greenq.running.outcome import Outcome, call, call_hooks, forget_runs, text_of, trace_of
from greenq.running.task_signals import (
    END_SIGNALS,
    tell_end,
    tell_internal_error,
    tell_postrun,
    tell_published,
    tell_revoked,
)
from greenq.sending.context import Context, current_context
from greenq.signals import task_internal_error, task_postrun, task_prerun, task_revoked
from greenq.states import FAILURE, IGNORED, REJECTED, RETRY, REVOKED, STARTED, SUCCESS
from greenq.task import BaseTask, classes
from greenq.transport.continuation import Continuation
from greenq.transport.settle import ACKNOWLEDGE, BEGIN, BEGIN_STEP, KEEP, Settlement

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

    from greenq.config.settings import TaskConfig
    from greenq.execution.state import WorkerState
    from greenq.protocol.event import EventSender
    from greenq.running.request import Request
    from greenq.sending.producer import Producer
    from greenq.task import ExceptionInfo
    from greenq.transport.outbox import Outbox
    from greenq.transport.settle import Action, Move, StateWrite
    from greenq.transport.transport import Transport

    # The outcome of a step, its state, and its continuation.
    _Handed = tuple[Outcome, StateWrite | None, Continuation]

_log = logging.getLogger(__name__)

# The outcomes of a run that requested a retry and continued (``retry(throw=False)``).
_WITH_NEXT_RUN = frozenset({SUCCESS, FAILURE, IGNORED})

# The outcomes after which a message may be moved elsewhere instead of being acknowledged.
_MAY_MOVE = frozenset({FAILURE, REJECTED})

# How long to wait before asking the server again whether a message is still reserved here.
_ASK_AGAIN_S = 0.25

# The hooks that a task's class inherits unless it overrides them.
_NO_SUCCESS, _NO_RETURN = BaseTask.on_success, BaseTask.after_return


class Executor:
    """Runs requests; the pool calls it for each request, in a greenlet. Switches: yes."""

    def __init__(
        self,
        *,
        config: TaskConfig,
        transport: Transport,
        producer: Producer,
        outbox: Outbox,
        state: WorkerState,
        hostname: str,
        handover: Handover,
        events: EventSender | None = None,
        end_hooks: Sequence[Callable[[], object]] = (),
    ) -> None:
        """Run tasks with the parts of one worker.

        `hostname` is the worker's node name, `handover` computes the continuations, `events` sends
        the task events, and `end_hooks` are called after each task.
        """
        self._config = config
        self._broker = transport.broker
        self._results = ResultWriter(config, transport, hostname)
        self._moves = Moves(config, transport.broker, producer, state, hostname)
        self._outbox = outbox
        self._state = state
        self._revoked = state.revoked
        self._hostname = hostname
        self._handover = handover
        self._index = handover.index
        self._events = events or NullEventSender()
        self._end_hooks = end_hooks

    def __call__(self, request: Request) -> None:
        """Run a request to its end, even if its code, its hooks or log handlers raise errors."""
        if not surely_holds(self._state, request) and not self._is_still_ours(request):
            return
        context = Context(request.message, hostname=self._hostname, delivered=request)
        current_context.set(context)
        request.started_s = time.monotonic()
        outcome: Outcome | None = None
        try:
            if self._revoked.any and self._revoked.matches(request.message):
                # The task may have been revoked while it waited for a slot.
                outcome = Outcome(REVOKED, TaskRevokedError("revoked"))
            elif self._begin(request):
                outcome = self._run(request)
            else:
                return
            settled = self._settle(request, context, outcome)
        except BaseException as exc:
            if request.in_code is None and not isinstance(exc, Exception):
                # The worker is ending before the code has begun, and the message has been requeued.
                raise
            settled = self._settle_fault(request, exc)
        finally:
            self._state.reserved.pop(request.delivery.tag, None)
        if settled is None:
            _log.info("Task %s ended after its message had been requeued: no outcome", request)
        else:
            self._report(request, context, settled)
        if task_postrun.receivers and request.in_code is not None:
            tell_postrun(request, settled)
        if self._end_hooks and request.in_code is not None:
            self._call_end_hooks(request)
        if settled is None or settled.state != SUCCESS:
            _forget_exceptions(outcome, settled)

    # --- begin ------------------------------------------------------------------------------------

    def _begin(self, request: Request) -> bool:
        """Acknowledge early and store STARTED if wanted; send the event. Switches: yes.

        Return False if the task must not start because another worker now has its message.
        """
        if not request.acks_late and not self._ack_early(request):
            return False
        if self._tracks_start(request.task):
            self._store_started(request)
        if self._index is not None:
            began = self._index.began(request)
            if began is not None:
                self._outbox.put(began)
        if self._events.tasks:
            self._events.started(request.message.id)
        return True

    def _is_still_ours(self, request: Request) -> bool:
        """Return whether a message is still reserved here; ask the server until it replies."""
        tag, broker = request.delivery.tag, self._broker
        if not tag:
            return True
        while not request.settled:
            try:
                if not broker.is_taken_away(tag):
                    return True
                request.settle()
                _log.warning(
                    "%s does not start here: the lease expired, and the task was requeued", request
                )
            except OperationalError as exc:
                _log.debug(
                    "%s is waiting for the server to confirm its reservation: %s", request, exc
                )
                sleep(_ASK_AGAIN_S)
        self._state.reserved.pop(tag, None)
        return False

    def _ack_early(self, request: Request) -> bool:
        """Acknowledge before the code starts, and wait until the server has confirmed this.

        Return False if there was nothing to acknowledge, because another worker has the message.
        """
        if not request.settle():
            # The message was requeued, unless it never had a reservation.
            return not request.delivery.tag
        # Tasks that depend on a step must fail if its worker dies, so the step's record is kept.
        action: Action = BEGIN_STEP if request.is_step else BEGIN
        confirmed = Event()
        answers: list[bool] = []

        def written(held: bool) -> None:
            answers.append(held)
            confirmed.set()

        self._outbox.put(Settlement(request.delivery.tag, action, written=written))
        try:
            confirmed.wait()
        except BaseException:
            # The worker is ending before the code has begun, so undo the acknowledgement.
            move = self._broker.requeue(*request.delivery, "next")
            self._outbox.put(Settlement.moving(move))
            raise
        if not answers[0]:
            _log.warning("%s does not start here: another worker now has it", request)
        return answers[0]

    def _tracks_start(self, task: BaseTask[..., Any]) -> bool:
        own = task.track_started
        return self._config.task_track_started if own is None else own

    def _store_started(self, request: Request) -> None:
        meta = {"pid": os.getpid(), "hostname": self._hostname}
        result = self._results.write_plain(request.message.id, STARTED, meta)
        if result is not None:
            self._outbox.put(Settlement(request.delivery.tag, KEEP, result=result))

    # --- run --------------------------------------------------------------------------------------

    def _run(self, request: Request) -> Outcome:
        """Run the task's code within its time limits. Switches: yes."""
        task, config = request.task, self._config
        killed = request.killed
        if killed is not None:
            return Outcome(REVOKED, killed.reason)
        # Check this here, since a check in `time_limits` would cost a call for every task.
        hard_s, soft_s = request.message.timelimit
        is_limited = (
            (hard_s or task.time_limit or config.task_time_limit)
            or (soft_s or task.soft_time_limit or config.task_soft_time_limit)
        )  # fmt: skip
        request.in_code = True
        outcome = run_limited(request, config, _call) if is_limited else _call(request)
        request.in_code = False
        return outcome if request.killed is None else _override(request.killed, outcome)

    # --- settle -----------------------------------------------------------------------------------

    def _settle(self, request: Request, context: Context, outcome: Outcome) -> Outcome | None:
        """Write the outcome and acknowledge or move the message; return the final outcome.

        Return None if the message has been requeued in the meantime, since then another run
        determines the result.
        """
        move: Move | None = None
        workflow: Continuation | None = None
        tag = request.delivery.tag
        goes_on = context.replacement is not None or context.retried is not None
        if outcome.state == SUCCESS and not (request.is_step or goes_on):
            children = _children(context) if context.sent else ()
            outcome, result = self._results.write(request, outcome, children)
        else:
            outcome, result, move, workflow = self._conclude(request, context, outcome)
        # A message that was acknowledged early has left a stub, to which the outcome belongs.
        if tag and move is None and outcome.state in _MAY_MOVE:
            move = self._moves.choose(request, outcome)
        if request.acks_late and not request.settle():
            return None
        if self._index is not None:
            workflow = self._enter_end(request, context, outcome.state, move, workflow)
        if tag or result is not None or workflow is not None:
            self._outbox.put(Settlement(tag, ACKNOWLEDGE, result, move, None, request, workflow))
        if context.announced is not None:
            tell_published(request, context.announced)
        return outcome

    def _conclude(
        self, request: Request, context: Context, outcome: Outcome
    ) -> tuple[Outcome, StateWrite | None, Move | None, Continuation | None]:
        """Return the final outcome, its state, the move to the next run, and the continuation."""
        move: Move | None = None
        tag = request.delivery.tag
        if not tag and outcome.state in (RETRY, REJECTED):
            # A broadcast has no message to replace or requeue.
            outcome = Outcome(FAILURE, outcome.value, outcome.traceback)
        if outcome.state == RETRY:
            outcome, move = self._prepare_retry(request, context, outcome, outcome.value)
        elif context.retried is not None and tag and outcome.state in _WITH_NEXT_RUN:
            outcome, move = self._prepare_retry(request, context, outcome, context.retried)
        if request.is_step or context.replacement is not None:
            outcome, result, workflow = self._hand_over(request, context, outcome, move)
            return outcome, result, move, workflow
        if outcome.state in (IGNORED, REJECTED):
            return outcome, None, move, None
        outcome, result = self._results.write(request, outcome, _children(context))
        return outcome, result, move, None

    def _hand_over(
        self, request: Request, context: Context, outcome: Outcome, move: Move | None
    ) -> _Handed:
        """Return the outcome of a step, its state, and its continuation.

        If something cannot be sent or stored, the step fails, along with everything that depends on
        it.
        """
        step = self._step(request)
        if move is not None or outcome.state == REJECTED:
            return self._hand_over_later(request, context, outcome, step)
        try:
            if context.replacement is not None and outcome.state == IGNORED:
                return outcome, None, self._handover.replaced(step, context.replacement)
            if outcome.state == SUCCESS:
                encoded, result, workflow = self._hand_over_value(request, context, outcome, step)
                if encoded.state == SUCCESS:
                    return encoded, result, workflow
                outcome = encoded
        except Exception as exc:
            if outcome.state == SUCCESS:
                exc.add_note(f"raised while the successors of task {request} were being sent")
            outcome = Outcome(FAILURE, exc, trace_of(exc))
        return self._hand_over_failure(request, context, outcome, step)

    def _hand_over_later(
        self, request: Request, context: Context, outcome: Outcome, step: EndingStep
    ) -> _Handed:
        """Return the end of a run whose successors a later run will send."""
        result = None
        if outcome.state != REJECTED:
            outcome, result = self._results.write(request, outcome, _children(context))
        workflow = Continuation()
        if context.additions:
            self._handover.added(workflow, step, context.additions)
        return outcome, result, workflow

    def _hand_over_value(
        self, request: Request, context: Context, outcome: Outcome, step: EndingStep
    ) -> _Handed:
        """Return a success with its successors, or a failure if its value cannot be stored."""
        workflow, sent = self._handover.succeeded(step, outcome.value)
        if context.additions:
            self._handover.added(workflow, step, context.additions)
        outcome, result = self._results.write(request, outcome, _children(context, sent))
        return outcome, result, workflow

    def _hand_over_failure(
        self, request: Request, context: Context, outcome: Outcome, step: EndingStep
    ) -> _Handed:
        """Return the end of a step that has no value to hand over; tasks that wait for it fail."""
        state = FAILURE if outcome.state == IGNORED else outcome.state
        failure = Failure(state, outcome.value, outcome.traceback)
        calls = outcome.state == FAILURE
        workflow = self._handover.failed(step, failure, context, calls=calls)
        if outcome.state == IGNORED:
            return outcome, None, workflow
        outcome, result = self._results.write(request, outcome, _children(context))
        return outcome, result, workflow

    def _enter_end(
        self,
        request: Request,
        context: Context | None,
        state: str,
        move: Move | None,
        workflow: Continuation | None,
    ) -> Continuation | None:
        """Return the continuation, with a note of the task's end for the index of workflows."""
        assert self._index is not None
        is_replaced = context is not None and context.replacement is not None
        goes_on = (
            state == RETRY
            or (state != FAILURE and move is not None)
            or (state == IGNORED and is_replaced)
        )
        ran_s = None if request.started_s is None else time.monotonic() - request.started_s
        return self._index.ended(
            request.delivery,
            request.message,
            state,
            workflow,
            began_s=None if ran_s is None else time.time() - ran_s,
            children=[] if context is None else [each.id for each in context.sent or ()],
            goes_on=goes_on,
        )

    def _step(self, request: Request) -> EndingStep:
        inherits = self._config.task_inherit_parent_priority
        priority = request.properties.get("priority") if inherits else None
        return EndingStep(request.delivery, request.message, priority)

    def _prepare_retry(
        self, request: Request, context: Context, outcome: Outcome, retry: Retry
    ) -> tuple[Outcome, Move | None]:
        """Return the outcome and the move that sends the next run, or a failure without a move."""
        try:
            return outcome, self._moves.next_run(request, context, retry)
        except Exception as exc:
            # The retry's options are invalid, so the task cannot run again; it has failed.
            exc.add_note(f"raised while the retry of task {request} was being sent")
            return Outcome(FAILURE, exc, trace_of(exc)), None

    def _settle_fault(self, request: Request, exc: BaseException) -> Outcome | None:
        """Settle a task whose own outcome could not be settled: it fails, and the reason is stored.

        If even that cannot be stored, its message becomes a dead letter.
        """
        trace, tag = trace_of(exc), request.delivery.tag
        what = (
            f"the outcome of {request} could not be settled: {type(exc).__name__}: {text_of(exc)}"
        )
        _log.critical("%s\n%s", what, trace)
        outcome = Outcome(
            FAILURE, GreenqError(_storable(what)[:STORED_CHARS]), _storable(trace)[-STORED_CHARS:]
        )
        result, move = None, None
        try:
            result = self._results.write_plain(request.message.id, *outcome)
        except Exception:
            _log.critical("cannot store any state of %s", request, exc_info=True)
            if tag and request.acks_late:
                move = self._moves.bury(request, _storable(what))
        workflow = None
        if request.is_step:
            failure = Failure(FAILURE, outcome.value, outcome.traceback)
            workflow = self._handover.surely_failed(self._step(request), failure)
        if request.acks_late and not request.settle():
            return None
        if self._index is not None:
            workflow = self._enter_end(request, None, FAILURE, move, workflow)
        if tag or result is not None:
            self._outbox.put(
                Settlement(tag, result=result, move=move, about=request, workflow=workflow)
            )
        if task_internal_error.receivers:
            tell_internal_error(request, exc, trace, hostname=self._hostname)
        return outcome

    # --- report -----------------------------------------------------------------------------------

    def _report(self, request: Request, context: Context, outcome: Outcome) -> None:
        """Report a task's end: event, counts, log, the class's hooks and the signal. Switches: yes.

        The message has already been settled, so an error here is only logged.
        """
        assert request.started_s is not None
        runtime_s = time.monotonic() - request.started_s
        try:
            if self._events.tasks:
                self._send_event(request, outcome, runtime_s)
        except Exception:
            _log.exception("could not send the event for the end of task %s", request)
        try:
            self._note(request, outcome, runtime_s)
        except Exception:
            _log.exception("could not log the end of task %s", request)
        if outcome.state not in (REVOKED, IGNORED, REJECTED):
            tell = None
            if END_SIGNALS[outcome.state].receivers:

                def tell(info: ExceptionInfo | None) -> None:
                    tell_end(request, context, outcome, info, runtime_s)

            if tell is not None or outcome.state != SUCCESS or _hears_success(request.task):
                call_hooks(request, outcome, tell)
        elif outcome.state == REVOKED and task_revoked.receivers:
            signum = _signum(request)
            is_killed = request.killed is not None
            tell_revoked(request, context, terminated=is_killed, signum=signum, expired=False)

    def _note(self, request: Request, outcome: Outcome, runtime_s: float) -> None:
        """Count and log an outcome."""
        state, value, trace = outcome
        if self._state.tally is not None:
            self._state.tally.ended(request, state, value, runtime_s)
        if state == SUCCESS:
            self._state.succeeded += 1
            if _log.isEnabledFor(logging.INFO):
                _log.info("Task %s succeeded in %.6fs: %s", request, runtime_s, saferepr(value))
        elif state == RETRY:
            self._state.retried += 1
            _log.info("Task %s retry: %s", request, text_of(value))
        elif state == IGNORED:
            _log.info("Task %s ignored", request)
        elif state == REJECTED:
            _log.info("Task %s rejected, requeue=%s", request, value.requeue)
        elif state == REVOKED:
            if request.killed is None:
                _log.info("Discarding revoked task %s", request)
            else:
                _log.warning("Task %s was terminated (%s)", request, request.killed.signum)
        elif isinstance(value, Reject) and request.acks_late:
            self._state.failed += 1
            _log.info("Task %s rejected: %s; it is now a dead letter", request, value.reason)
        else:
            self._state.failed += 1
            expected = isinstance(value, classes(request.task.throws))
            level, how = (logging.INFO, "expected") if expected else (logging.ERROR, "unexpected")
            shown = f"\n{trace}" if trace and not expected else ""
            _log.log(level, "Task %s raised %s: %s%s", request, how, saferepr(value), shown)

    def _call_end_hooks(self, request: Request) -> None:
        """Call the app's task end hooks. Switches: yes."""
        for hook in self._end_hooks:
            try:
                hook()
            except BaseException:
                # The task has ended: an exception from a hook, even a late timeout, does not affect
                # it.
                _log.exception("hook %r failed at the end of task %s", hook, request)

    def _send_event(self, request: Request, outcome: Outcome, runtime_s: float) -> None:
        """Send the event for an outcome; an ignored task has no event."""
        state, value, trace = outcome
        task_id, send = request.message.id, self._events.send
        if state == SUCCESS:
            self._events.succeeded(task_id, saferepr(value), runtime_s)
        elif state == REJECTED:
            send("task-rejected", {"uuid": task_id, "requeue": bool(value.requeue)})
        elif state == REVOKED:
            terminated = request.killed is not None
            how = {"terminated": terminated, "signum": _signum(request), "expired": False}
            send("task-revoked", {"uuid": task_id, **how})
        elif state != IGNORED:
            if isinstance(value, Reject):
                send("task-rejected", {"uuid": task_id, "requeue": bool(value.requeue)})
            why = {"exception": saferepr(value), "traceback": trace or trace_of(value)}
            send("task-retried" if state == RETRY else "task-failed", {"uuid": task_id, **why})


def surely_holds(state: WorkerState, request: Request) -> bool:
    """Return whether the lease has held without interruption since `request` was taken.

    The lease may have ended while this process was frozen or could not reach the server. This
    worker's messages may then belong to another worker.
    """
    return state.now_s() < state.lease_until_s and request.taken_s > state.lease_lost_s


def running_task(frame: FrameType | None) -> str | None:
    """Return the name and id of the task that a frame belongs to, or None.

    The watchdog thread needs this, since only the frames tell it which greenlet is running.
    """
    while frame is not None:
        if frame.f_code is Executor.__call__.__code__:
            return str(frame.f_locals["request"])
        frame = frame.f_back
    return None


def _override(killed: TaskTerminated, outcome: Outcome) -> Outcome:
    """Return the outcome of a terminated task, however its code reacted."""
    state = REVOKED if isinstance(killed.reason, TaskRevokedError) else FAILURE
    return Outcome(state, killed.reason, outcome.traceback)


def _call(request: Request) -> Outcome:
    """Call the task's code, after the receivers of task_prerun."""
    task, message = request.task, request.message
    if task_prerun.receivers:
        try:
            task_prerun.send(
                task, task_id=message.id, task=task, args=message.args, kwargs=message.kwargs
            )
        except BaseException as exc:
            return Outcome(FAILURE, exc, trace_of(exc))
    return call(task, message.id, message.args, message.kwargs)


def _hears_success(task: BaseTask[..., Any]) -> bool:
    """Return whether the task has a hook that is called on success; few tasks have one."""
    cls, own = type(task), vars(task)
    return (
        cls.on_success is not _NO_SUCCESS
        or cls.after_return is not _NO_RETURN
        or "on_success" in own
        or "after_return" in own
    )


def _forget_exceptions(*outcomes: Outcome | None) -> None:
    """Release the frames that the exceptions of outcomes keep alive."""
    for outcome in outcomes:
        if outcome is not None and isinstance(outcome.value, BaseException):
            forget_runs(outcome.value)


def _children(context: Context, sent: Sequence[Any] = ()) -> tuple[object, ...]:
    return (*(child.as_tuple() for child in context.sent or ()), *sent)


def _storable(text: str) -> str:
    """Return text that can be encoded: lone surrogates are escaped."""
    return text.encode(errors="backslashreplace").decode()


def _signum(request: Request) -> int | str | None:
    """Return the number of the signal that ended a request, in the form used by events.

    Return None if no signal ended it; an unknown name is returned unchanged.
    """
    name = None if request.killed is None else request.killed.signum
    if not name:
        return None
    try:
        return signal.Signals[f"SIG{name.removeprefix('SIG')}"].value
    except KeyError:
        return int(name) if name.isdecimal() else name
