"""Sends the signals of a task's run and end; called only when they have receivers.

When a signal is sent, the task has already been settled, or its code has not run at all, so an
error in a receiver is only logged.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from greenq.protocol.message import headers_of
from greenq.running.outcome import Run
from greenq.signals import (
    after_task_publish,
    task_failure,
    task_internal_error,
    task_postrun,
    task_retry,
    task_revoked,
    task_success,
)
from greenq.states import FAILURE, RETRY, SUCCESS
from greenq.task import ExceptionInfo

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from greenq.sending.context import AnnouncedMessage, Context
    from greenq.signals import Signal

_log = logging.getLogger(__name__)


class MessageRun(Run, Protocol):
    """A run of a message."""

    @property
    def properties(self) -> Mapping[str, Any]:
        """The properties of its envelope."""

    @property
    def delivery_info(self) -> Mapping[str, Any]:
        """Where the message was sent."""


# The signal for each of these outcomes; it is sent after the matching hook of the task's class.
END_SIGNALS = {SUCCESS: task_success, RETRY: task_retry, FAILURE: task_failure}


def tell_end(
    request: Run,
    context: Context | None,
    outcome: tuple[str, Any, str | None],
    info: ExceptionInfo | None,
    runtime_s: float,
) -> None:
    """Send task_success, task_retry or task_failure. Switches: if the receivers do."""
    state, value, _trace = outcome
    message = request.message
    if state == SUCCESS:
        _send(task_success, request, result=value, runtime=runtime_s)
    elif state == RETRY:
        _send(task_retry, request, request=context, reason=value, einfo=info)
    else:
        _send(
            task_failure,
            request,
            task_id=message.id,
            exception=value,
            args=message.args,
            kwargs=message.kwargs,
            traceback=value.__traceback__,
            einfo=info,
        )


def tell_postrun(request: Run, outcome: tuple[str, Any, str | None] | None) -> None:
    """Send task_postrun. Switches: if the receivers do.

    If there is no outcome, for example because another worker runs the task again, the value and
    the state are None.
    """
    state, value, _trace = outcome or (None, None, None)
    message = request.message
    _send(
        task_postrun,
        request,
        task_id=message.id,
        task=request.task,
        args=message.args,
        kwargs=message.kwargs,
        retval=value,
        state=state,
    )


def tell_revoked(
    request: Run,
    context: Context | None,
    *,
    terminated: bool,
    signum: int | str | None,
    expired: bool,
) -> None:
    """Send task_revoked. Switches: if the receivers do."""
    _send(
        task_revoked,
        request,
        request=context,
        terminated=terminated,
        signum=signum,
        expired=expired,
    )


def tell_internal_error(
    request: MessageRun, error: BaseException, trace: str, *, hostname: str
) -> None:
    """Send task_internal_error. Switches: if the receivers do."""
    message = request.message
    properties = request.properties
    fields = headers_of(message) | {
        "correlation_id": properties.get("correlation_id"),
        "delivery_info": request.delivery_info,
        "hostname": hostname,
        "reply_to": properties.get("reply_to"),
    }
    _send(
        task_internal_error,
        request,
        task_id=message.id,
        args=message.args,
        kwargs=message.kwargs,
        request=fields,
        exception=error,
        traceback=error.__traceback__,
        einfo=ExceptionInfo(error, trace),
    )


def tell_published(request: Run, announced: AnnouncedMessage) -> None:
    """Send after_task_publish for a message sent at a task's end. Switches: if receivers do."""
    with _contained(after_task_publish, request):
        announced.sent()


def _send(signal: Signal, about: Run, /, **named: Any) -> None:
    with _contained(signal, about):
        signal.send(about.task, **named)


@contextmanager
def _contained(signal: Signal, about: Run) -> Iterator[None]:
    try:
        yield
    except BaseException:
        # A receiver's own timeout or exit must not end the greenlet.
        _log.exception("a receiver of signal %s failed for task %s", signal.name, about)
