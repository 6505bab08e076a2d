"""Calls the code of a task, and turns every way in which it can end into an `Outcome`."""

from __future__ import annotations

import inspect
import logging
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from greenq.errors import Ignore, Reject, Retry
from greenq.states import FAILURE, IGNORED, REJECTED, RETRY, SUCCESS
from greenq.task import BaseTask, ExceptionInfo, classes

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.protocol.message import TaskMessage

_log = logging.getLogger(__name__)

# The methods that a task's class inherits unless it overrides them.
_PLAIN_CALL, _NO_START = BaseTask.__call__, BaseTask.before_start


class Run(Protocol):
    """A run, which is a delivery in a worker or an eager call; its text names the task."""

    @property
    def task(self) -> BaseTask[..., Any]:
        """The task."""

    @property
    def message(self) -> TaskMessage:
        """The message, with the task's id and arguments."""


_cause_of = vars(BaseException)["__cause__"].__get__
_context_of = vars(BaseException)["__context__"].__get__


class Outcome(NamedTuple):
    """How a run ended: its state, its value or exception, and the traceback as text."""

    state: str
    value: Any
    traceback: str | None = None


def call(task: BaseTask[..., Any], task_id: str, args: Any, kwargs: Any) -> Outcome:
    """Call the task, and turn every way in which it can end into an outcome."""
    try:
        if type(task).before_start is not _NO_START or "before_start" in vars(task):
            task.before_start(task_id, args, kwargs)
        # A class's own `__call__` wraps the code.
        code = task.run if type(task).__call__ is _PLAIN_CALL else task
        return Outcome(SUCCESS, code(*args, **kwargs))
    except BaseException as exc:
        # User code runs here. SystemExit, KeyboardInterrupt, GreenletExit and the task's own
        # gevent.Timeout fail the task like any exception, and the worker keeps running.
        try:
            return _outcome_of(task, exc)
        except BaseException as worse:
            # One of the task's options is invalid; `exc` is the error's context.
            return Outcome(FAILURE, worse, trace_of(worse))


def _outcome_of(task: BaseTask[..., Any], exc: BaseException) -> Outcome:
    """Return the outcome for an exception from the task's code."""
    if isinstance(exc, Retry):
        return Outcome(RETRY, exc, trace_of(exc))
    if isinstance(exc, Ignore):
        return Outcome(IGNORED, exc)
    if isinstance(exc, Reject):
        return Outcome(REJECTED if exc.requeue else FAILURE, exc)
    again = bool(task.autoretry_for) and isinstance(exc, classes(task.autoretry_for))
    if again and not isinstance(exc, classes(task.dont_autoretry_for)):
        return _retry_by_itself(task, exc)
    return Outcome(FAILURE, exc, trace_of(exc))


def _retry_by_itself(task: BaseTask[..., Any], exc: BaseException) -> Outcome:
    """Request the retry that ``autoretry_for`` promises."""
    try:
        options = dict(task.retry_kwargs)
        delay_s = task.retry_delay(task.request.retries)
        if delay_s is not None:
            options["countdown"] = delay_s
        task.retry(exc=exc, **options)
    except Retry as retry:
        return Outcome(RETRY, retry, trace_of(retry))
    except BaseException as last:
        # No retries are left (`exc` itself or MaxRetriesExceededError), or one of the task's
        # options is invalid.
        return Outcome(FAILURE, last, trace_of(last))
    # The task's class overrides `retry` with a method that has raised nothing.
    return Outcome(FAILURE, exc, trace_of(exc))


def call_hooks(
    request: Run,
    outcome: Outcome,
    between: Callable[[ExceptionInfo | None], object] | None = None,
) -> None:
    """Call the hooks of the task's class; an error in a hook is logged and has no other effect.

    `between` is called, with the exception info that hooks get, just before ``after_return``.
    """
    task, message = request.task, request.message
    state, value, trace = outcome
    task_id, args, kwargs = message.id, message.args, message.kwargs
    info: ExceptionInfo | None = None
    if state != SUCCESS and isinstance(value, BaseException):
        cause = value.exc or value if isinstance(value, Retry) else value
        info = ExceptionInfo(cause, trace or trace_of(value))
    try:
        if state == SUCCESS:
            task.on_success(value, task_id, args, kwargs)
        elif info is not None and state == RETRY:
            task.on_retry(info.exception, task_id, args, kwargs, info)
        elif info is not None:
            task.on_failure(value, task_id, args, kwargs, info)
    except BaseException:
        _log.exception("a hook of task %s failed", request)
    if between is not None:
        between(info)
    if state == RETRY:
        return
    try:
        task.after_return(state, value, task_id, args, kwargs, info)
    except BaseException:
        _log.exception("after_return of task %s failed", request)


def trace_of(exc: BaseException) -> str:
    """Return the traceback as text, without the worker's own frame at its top."""
    try:
        top = exc.__traceback__.tb_next if exc.__traceback__ is not None else None
        return "".join(traceback.format_exception(type(exc), exc, top))
    except Exception as error:
        # The exception's own methods may raise any exception.
        return f"{type(exc).__name__} (its traceback cannot be shown: {type(error).__name__})\n"


def forget_runs(exc: BaseException) -> None:
    """Drop the tracebacks of an exception that has been handled, and of those that led to it.

    A traceback refers to the frames of the run, which in turn refer to the exception, so the task's
    arguments would stay in memory until the garbage collector found this cycle.
    """
    seen: set[int] = set()
    todo: list[BaseException | None] = [exc]
    while todo:
        each = todo.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        # Do not use the exception's own attributes, which its class may have replaced.
        BaseException.with_traceback(each, None)
        todo += [_cause_of(each), _context_of(each)]
        if isinstance(each, Retry):
            todo.append(each.exc)
        elif isinstance(each, BaseExceptionGroup):
            todo += each.exceptions


def text_of(exc: BaseException) -> str:
    """Return an exception's text, or the name of its class if reading the text fails."""
    try:
        return str(exc)
    except Exception:
        return type(exc).__name__


def takes_error(task: BaseTask[Any, Any]) -> bool:
    """Return whether a task is an errback that takes the request, the error and the traceback.

    As in Celery, such an errback takes more than one positional argument.
    """
    try:
        found = inspect.signature(task.function).parameters.values()
    except (TypeError, ValueError):
        return False
    kinds = [each.kind for each in found]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return True
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(each in positional for each in kinds) - task.is_bound > 1
