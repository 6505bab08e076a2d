"""OpenTelemetry: one trace from the sender through the queue to the task and the tasks it sends.

    from greenq.contrib.opentelemetry import instrument

    instrument()

Call `instrument` once in each process that sends or runs tasks, after the tracer provider has been
set up. The context travels in the message's headers, in the form that Celery's instrumentation
writes and reads, so a trace also continues through Celery's clients and workers. The
instrumentation uses greenq's signals, so it costs nothing until `instrument` is called.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from greenq.signals import (
    after_task_publish,
    before_task_publish,
    task_failure,
    task_postrun,
    task_prerun,
    task_retry,
)
from greenq.states import SUCCESS
from greenq.task import classes
from greenq.utils.version import __version__

try:
    from opentelemetry import context as contexts
    from opentelemetry import metrics, propagate, trace
    from opentelemetry.propagators.textmap import Getter
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode
except ModuleNotFoundError as exc:
    raise ImportError(
        "greenq.contrib.opentelemetry needs OpenTelemetry: pip install 'greenq[otel]'"
    ) from exc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextvars import Token

_SYSTEM: Final = "redis"

# The upper bounds of the histogram's buckets, in seconds, as the semantic conventions recommend.
_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)

# The maximum number of open spans of messages being sent. No signal reports that a send has failed,
# so beyond this number, the oldest span is ended whenever a new one starts.
_MOST_SENDING: Final = 1000

_UID: Final = "greenq.contrib.opentelemetry"


class _TracedRun(NamedTuple):
    """A run of a task: its span, the token that detaches its context, and its monotonic start."""

    span: Span
    token: Token[Any]
    began_s: float


# The run in the current greenlet; each run has its own context.
_current: ContextVar[_TracedRun | None] = ContextVar("greenq_otel_run", default=None)


class _HeaderGetter(Getter[Any]):
    """Reads the trace's context from a task's request, ignoring headers that are not text."""

    def get(self, carrier: Any, key: str) -> list[str] | None:
        value = carrier.get(key)
        return [value] if isinstance(value, str) else None

    def keys(self, carrier: Any) -> list[str]:
        return [name for name in carrier.headers or () if isinstance(name, str)]


class _Instrumentation:
    """The receivers of the signals."""

    def __init__(self, tracer_provider: Any, meter_provider: Any) -> None:
        self._tracer = trace.get_tracer(_UID, __version__, tracer_provider)
        meter = metrics.get_meter(_UID, __version__, meter_provider)
        self._duration = meter.create_histogram(
            "messaging.process.duration",
            unit="s",
            description="Duration of processing a message.",
            explicit_bucket_boundaries_advisory=_BUCKETS,
        )
        self._sent = meter.create_counter(
            "messaging.client.sent.messages",
            unit="{message}",
            description="Number of messages sent.",
        )
        self._sending: OrderedDict[tuple[str, int], Span] = OrderedDict()
        self._getter = _HeaderGetter()

    def signals(self) -> Iterator[tuple[Any, Any]]:
        """Yield each signal with its receiver."""
        yield before_task_publish, self.sending
        yield after_task_publish, self.sent
        yield task_prerun, self.starts
        yield task_failure, self.failed
        yield task_retry, self.retried
        yield task_postrun, self.ended

    # --- sending ----------------------------------------------------------------------------------

    def sending(self, sender: str, headers: dict[str, Any], routing_key: str, **_: Any) -> None:
        """Start a message's span, and put its context into the headers."""
        task_id = str(headers.get("id"))
        span = self._tracer.start_span(
            f"send {routing_key}",
            kind=SpanKind.PRODUCER,
            attributes=_attributes("send", routing_key, task_id, sender)
            | {"celery.action": "apply_async"},
        )
        propagate.inject(headers, trace.set_span_in_context(span))
        self._sending[task_id, id(headers)] = span
        if len(self._sending) > _MOST_SENDING:
            _key, lost = self._sending.popitem(last=False)
            lost.set_status(Status(StatusCode.ERROR, "not sent"))
            lost.end()

    def sent(self, sender: str, headers: dict[str, Any], routing_key: str, **_: Any) -> None:
        """End the span of a message."""
        span = self._sending.pop((str(headers.get("id")), id(headers)), None)
        if span is not None:
            span.end()
            self._sent.add(1, _dimensions("send", routing_key, sender))

    # --- a run ------------------------------------------------------------------------------------

    def starts(self, task: Any, task_id: str, **_: Any) -> None:
        """Start the span of a run, in the trace context from the message."""
        request = task.request
        queue = (request.delivery_info or {}).get("routing_key") or ""
        attributes = _attributes("process", queue, task_id, task.name) | {"celery.action": "run"}
        if request.retries:
            attributes["celery.retries"] = request.retries
        span = self._tracer.start_span(
            f"process {queue}" if queue else f"process {task.name}",
            context=propagate.extract(request, getter=self._getter),
            kind=SpanKind.CONSUMER,
            attributes=attributes,
        )
        token = contexts.attach(trace.set_span_in_context(span))
        _current.set(_TracedRun(span, token, time.monotonic()))

    def failed(self, sender: Any, exception: BaseException, **_: Any) -> None:
        """Record why a run failed; an expected exception does not make the span an error."""
        run = _current.get()
        if run is None:
            return
        run.span.record_exception(exception)
        if not isinstance(exception, classes(sender.throws)):
            run.span.set_attribute("error.type", type(exception).__qualname__)
            run.span.set_status(Status(StatusCode.ERROR, str(exception)))

    def retried(self, reason: object, **_: Any) -> None:
        """Record why a run will be retried."""
        run = _current.get()
        if run is not None:
            run.span.set_attribute("celery.retry.reason", str(reason))

    def ended(self, task: Any, state: str | None, **_: Any) -> None:
        """End the span of a run."""
        run = _current.get()
        if run is None:
            return
        _current.set(None)
        request = task.request
        queue = (request.delivery_info or {}).get("routing_key") or ""
        dimensions = _dimensions("process", queue, task.name)
        if state is not None:
            run.span.set_attribute("celery.state", state)
            if state != SUCCESS:
                dimensions["celery.state"] = state
        contexts.detach(run.token)
        run.span.end()
        self._duration.record(time.monotonic() - run.began_s, dimensions)


_active: _Instrumentation | None = None


def instrument(*, tracer_provider: Any = None, meter_provider: Any = None) -> None:
    """Trace what this process sends and runs; calling it again replaces the providers.

    Args:
        tracer_provider, meter_provider: None means the global ones.
    """
    global _active
    uninstrument()
    _active = _Instrumentation(tracer_provider, meter_provider)
    for signal, receiver in _active.signals():
        signal.connect(receiver, weak=False, dispatch_uid=_UID)


def uninstrument() -> None:
    """Stop tracing."""
    global _active
    if _active is not None:
        for signal, _receiver in _active.signals():
            signal.disconnect(dispatch_uid=_UID)
        _active = None


def _attributes(operation: str, queue: str, task_id: str, task: str) -> dict[str, Any]:
    """Return a span's attributes, named as in the semantic conventions and in Celery's spans."""
    return {
        "messaging.operation.type": operation,
        "messaging.message.id": task_id,
        "celery.task_name": task,
        **_dimensions(operation, queue, task),
    }


def _dimensions(operation: str, queue: str, task: str) -> dict[str, Any]:
    """Return the attributes of a metric."""
    found: dict[str, Any] = {
        "messaging.system": _SYSTEM,
        "messaging.operation.name": operation,
        "celery.task_name": task,
    }
    if queue:
        found["messaging.destination.name"] = queue
    return found
