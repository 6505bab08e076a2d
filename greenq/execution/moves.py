"""Where a message goes when its run does not simply acknowledge it.

Its next run after a retry, its queue again after a rejection, or the dead letters.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from greenq.errors import Reject
from greenq.protocol.serialize import saferepr
from greenq.sending.retry import expiration, following
from greenq.states import FAILURE, REJECTED

if TYPE_CHECKING:
    from greenq.config.settings import TaskConfig
    from greenq.errors import Retry
    from greenq.execution.state import WorkerState
    from greenq.running.outcome import Outcome
    from greenq.running.request import Request
    from greenq.sending.context import Context
    from greenq.sending.producer import Outgoing, Producer
    from greenq.task import BaseTask
    from greenq.transport.broker import Broker
    from greenq.transport.settle import Move


class Moves:
    """Builds the moves of messages whose run has ended."""

    def __init__(
        self,
        config: TaskConfig,
        broker: Broker,
        producer: Producer,
        state: WorkerState,
        hostname: str,
    ) -> None:
        """Move messages on `broker` for the node `hostname`; `producer` writes the next runs."""
        self._config = config
        self._broker = broker
        self._producer = producer
        self._state = state
        self._hostname = hostname
        self._zone = ZoneInfo(config.timezone)

    def choose(self, request: Request, outcome: Outcome) -> Move | None:
        """Return where the message goes; None if it is acknowledged."""
        tag, queue, raw = request.delivery
        broker = self._broker
        if outcome.state == REJECTED and outcome.value.requeue:
            return broker.requeue(tag, queue, raw, "last")
        if outcome.state != FAILURE or not request.acks_late:
            # Even if it fails, a message that was acknowledged early does not become a dead letter.
            return None
        reason = None
        if isinstance(outcome.value, Reject):
            reason = f"rejected by the task: {outcome.value.reason}"
        elif not self._acks_failure(request.task):
            reason = f"failed, and acks_on_failure_or_timeout is off: {saferepr(outcome.value)}"
        return None if reason is None else self.bury(request, reason)

    def bury(self, request: Request, reason: str) -> Move:
        """Return the move that makes the message a dead letter."""
        return self._broker.bury(
            *request.delivery, reason=reason, worker=self._hostname, now=datetime.now(UTC)
        )

    def _acks_failure(self, task: BaseTask[..., Any]) -> bool:
        own = task.acks_on_failure_or_timeout
        return self._config.task_acks_on_failure_or_timeout if own is None else own

    def next_run(self, request: Request, context: Context, retry: Retry) -> Move | None:
        """Return the move that replaces this message with the next run's message."""
        if retry.next_run is None:
            return None
        written = self._retry_message(request, retry)
        context.announced = written["announced"]
        keys = self._broker.keys
        key = keys.queue(written["queue"], keys.step_of(written["priority"]))
        return self._broker.move(request.delivery.tag, key, written["text"])

    def _retry_message(self, request: Request, retry: Retry) -> Outgoing:
        """Build the next run's message."""
        assert retry.next_run is not None
        args, kwargs, options = retry.next_run
        message, properties = request.message, request.properties
        next_message = following(
            message,
            args,
            kwargs,
            options,
            zone=self._zone,
            clock_offset_s=self._state.clock_offset_s,
        )
        task = request.task
        queue = options.get("queue") or options.get("routing_key") or request.delivery.queue
        priority = options.get("priority", properties.get("priority") or 0)
        extra = {"delivery_mode": options["delivery_mode"]} if "delivery_mode" in options else {}
        written = self._producer.write(
            next_message,
            queue=queue,
            priority=priority,
            expiration=expiration(options, next_message.expires, properties.get("expiration")),
            serializer=options.get("serializer") or task.serializer,
            compression=options.get("compression") or task.compression,
            correlation_id=options.get("correlation_id")
            or properties.get("correlation_id")
            or message.id,
            reply_to=options.get("reply_to") or properties.get("reply_to"),
            origin=message.origin,
            **extra,
        )
        if self._broker.signer is not None:
            written["text"] = self._broker.signer.seal("message", queue, written["text"])
        return written
