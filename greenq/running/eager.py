"""Run tasks in this process, without a worker: `Task.apply` and ``task_always_eager``."""

from __future__ import annotations

import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from greenq.canvas.plan import listed
from greenq.canvas.signature import maybe_signature
from greenq.protocol.ids import new_id
from greenq.protocol.message import TaskMessage
from greenq.protocol.serialize import dumps, loads
from greenq.result import EagerResult, denied_join_result, join_as_here
from greenq.running.outcome import Outcome, call, call_hooks, takes_error
from greenq.running.task_signals import END_SIGNALS, tell_end, tell_postrun
from greenq.sending.context import Context, current_context
from greenq.signals import task_postrun, task_prerun
from greenq.states import FAILURE, IGNORED, REJECTED, RETRY, SUCCESS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from greenq.task import BaseTask, ExceptionInfo


class _EagerDelivery(NamedTuple):
    """A stand-in for a message's delivery."""

    delivery_info: Mapping[str, Any]
    properties: Mapping[str, Any]


class EagerContext(Context):
    """`Task.request` of a task that runs in this process without a worker."""

    __slots__ = ("stores",)

    is_eager = True

    def __init__(self, message: TaskMessage, options: Mapping[str, Any], *, stores: bool) -> None:
        """Show `message` as if it had been delivered; if `stores` is true, states are stored."""
        info = {name: options.get(name) for name in ("exchange", "routing_key", "priority")}
        super().__init__(
            message,
            hostname=socket.gethostname(),
            delivered=_EagerDelivery({"is_eager": True, **info}, {}),
        )
        self.stores = stores


class _EagerRun(NamedTuple):
    task: BaseTask[..., Any]
    message: TaskMessage

    def __str__(self) -> str:
        return f"{self.message.task}[{self.message.id}]"


def run_here(
    task: BaseTask[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    throw: bool | None = None,
    retries: int = 0,
    **options: Any,
) -> EagerResult[Any]:
    """Run a task with all its hooks and, without delay, its retries; return how it ended.

    Args:
        throw: raise the exception of a task that fails; None means the setting
            ``task_eager_propagates``.
        retries: the number of earlier retries.
        options: the send options that `Task.request` shows.

    Raises:
        BaseException: the task raised an exception that is not an `Exception`, such as
            KeyboardInterrupt.
    """
    app = task.app
    config = app.config.task
    own = task.store_eager_result
    stores = config.task_store_eager_result if own is None else own
    message = _message(task, args, kwargs, retries, options)
    while True:
        context = EagerContext(message, options, stores=stores and not message.ignore_result)
        outcome = _run(task, context, message)
        next_run = _next_run(context, outcome)
        if next_run is None:
            break
        args, kwargs = next_run
        message = replace(
            message, args=list(args), kwargs=dict(kwargs), retries=message.retries + 1
        )
    state, value, trace = outcome
    if context.stores and state not in (IGNORED, REJECTED):
        app.backend.store(message.id, state, value, traceback=trace)
    _go_on(task, context, outcome, options)
    if state == FAILURE and (config.task_eager_propagates if throw is None else throw):
        raise value
    return EagerResult(message.id, value, state, trace, task.name, app=app)


def run_as_sent(
    task: BaseTask[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any],
) -> EagerResult[Any]:
    """Run a task in this process instead of sending it, but encode and decode its arguments.

    As in a worker, the task must not wait for the results of other tasks.

    Raises:
        EncodeError: an argument cannot be serialized.
    """
    name = options.get("serializer") or task.serializer or task.app.config.task.task_serializer
    written = dumps((args, kwargs), name)
    args, kwargs = loads(*written, accept=frozenset([written.content_type]))
    with denied_join_result():
        return run_here(task, args, kwargs, **options)


def _message(
    task: BaseTask[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    retries: int,
    options: Mapping[str, Any],
) -> TaskMessage:
    """Return the message that would have been sent, with only the fields that the task can see."""
    parent = current_context.get()
    task_id = options.get("task_id") or new_id()
    ignored = options.get("ignore_result")
    return TaskMessage(
        task=task.name,
        id=task_id,
        args=list(args),
        kwargs=dict(kwargs),
        retries=retries,
        root_id=options.get("root_id") or (task_id if parent is None else parent.root_id),
        parent_id=options.get("parent_id") or (None if parent is None else parent.id),
        group=options.get("group_id"),
        group_index=options.get("group_index"),
        shadow=options.get("shadow"),
        timelimit=(task.time_limit, task.soft_time_limit),
        headers=options.get("headers") or {},
        ignore_result=task.ignore_result if ignored is None else ignored,
    )


def _run(task: BaseTask[..., Any], context: EagerContext, message: TaskMessage) -> Outcome:
    """Call the task and the hooks of its class."""
    run = _EagerRun(task, message)
    named = {"args": message.args, "kwargs": message.kwargs}
    with join_as_here():
        before = current_context.set(context)
        began_s = time.monotonic()
        try:
            if task_prerun.receivers:
                task_prerun.send(task, task_id=message.id, task=task, **named)
            outcome = call(task, message.id, message.args, message.kwargs)
            state, value, _ = outcome
            if state == FAILURE and not isinstance(value, Exception):
                raise value
            if state not in (IGNORED, REJECTED):
                _end(run, context, outcome, time.monotonic() - began_s)
            if task_postrun.receivers:
                tell_postrun(run, outcome)
        finally:
            current_context.reset(before)
    return outcome


def _end(run: _EagerRun, context: EagerContext, outcome: Outcome, runtime_s: float) -> None:
    """Call the hooks of the task's class, and send the signal for its end."""

    def tell(info: ExceptionInfo | None) -> None:
        if END_SIGNALS[outcome.state].receivers:
            tell_end(run, context, outcome, info, runtime_s)

    call_hooks(run, outcome, tell)


def _go_on(
    task: BaseTask[..., Any], context: EagerContext, outcome: Outcome, options: Mapping[str, Any]
) -> None:
    """Run the signatures linked to the task."""
    state, value, trace = outcome
    if state == SUCCESS:
        for callback in listed(options.get("link")):
            maybe_signature(callback, task.app).apply((value,))
    elif state == FAILURE:
        for errback in listed(options.get("link_error")):
            sig = maybe_signature(errback, task.app)
            if takes_error(sig.type):
                sig(context, value, trace)
            else:
                sig.apply((context.id,))


def _next_run(context: EagerContext, outcome: Outcome) -> tuple[Any, Any] | None:
    """Return the arguments of the retry that the task has requested, or None."""
    retry = outcome.value if outcome.state == RETRY else context.retried
    return None if retry is None or retry.next_run is None else retry.next_run[:2]
