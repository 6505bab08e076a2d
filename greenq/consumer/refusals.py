"""Messages that must not run: dead letters, and tasks that are revoked or have expired."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from greenq.errors import DecodeError, NotRegistered, TaskRevokedError
from greenq.execution.handover import EndingStep, Failure
from greenq.execution.results import ResultWriter
from greenq.hub import spawn
from greenq.protocol.envelope import Envelope, without_refusal
from greenq.protocol.limits import KEY
from greenq.protocol.message import has_successors
from greenq.protocol.serialize import saferepr
from greenq.running.outcome import Outcome
from greenq.running.task_signals import tell_revoked
from greenq.sending.context import Context
from greenq.signals import task_rejected, task_revoked, task_unknown
from greenq.states import FAILURE, REVOKED
from greenq.transport.settle import Settlement

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.app import TaskRegistry
    from greenq.config.settings import TaskConfig
    from greenq.execution.handover import Handover
    from greenq.execution.state import WorkerState
    from greenq.protocol.event import EventSender
    from greenq.protocol.message import TaskMessage
    from greenq.running.request import Request
    from greenq.transport.fetch import Delivery
    from greenq.transport.outbox import Outbox
    from greenq.transport.settle import StateWrite
    from greenq.transport.transport import Transport

_log = logging.getLogger(__name__)

# The property with which another worker has marked a message that must not run.
_REFUSED = b'"refused"'


class RefusedMessage(NamedTuple):
    """A message as receivers of task_unknown and task_rejected see it.

    Attributes:
        body: the serialized body, as received; empty if the message cannot be read at all.
        raw: the list element.
    """

    body: bytes
    content_type: str
    content_encoding: str
    headers: dict[str, Any]
    properties: dict[str, Any]
    delivery_tag: str
    queue: str
    raw: bytes

    @property
    def delivery_info(self) -> dict[str, Any]:
        """The exchange and the routing key."""
        info: dict[str, Any] = self.properties.get("delivery_info", {})
        return info


class Refusals:
    """Settles messages that must not run; a caller waiting for the result gets the reason."""

    def __init__(
        self,
        config: TaskConfig,
        transport: Transport,
        registry: TaskRegistry,
        outbox: Outbox,
        state: WorkerState,
        events: EventSender,
        hostname: str,
        unwrap: Callable[[bytes], Envelope],
        handover: Handover,
    ) -> None:
        """Use a worker's parts, its node name, and the reader of a message's envelope."""
        self._handover = handover
        self._broker = transport.broker
        self._results = ResultWriter(config, transport, hostname)
        self._registry = registry
        self._outbox = outbox
        self._state = state
        self._events = events
        self._hostname = hostname
        self._unwrap = unwrap
        # The sender of the signals: the consumer, which is built later.
        self.sender: object = None

    def discard(self, request: Request, why: Literal["revoked", "expired"]) -> None:
        """Settle a revoked or expired task; a caller waiting for its result gets the reason."""
        _log.info("Discarding %s task %s", why, request)
        if self._state.tally is not None:
            self._state.tally.discarded(request)
        message = request.message
        self._state.reserved.pop(request.delivery.tag, None)
        if request.settle():
            revoked = Outcome(REVOKED, TaskRevokedError(why))
            _outcome, result = self._results.write(request, revoked)
            entry = Settlement(request.delivery.tag, result=result)
            self._put(entry, request.delivery, message, Failure(REVOKED, revoked.value))
        if self._events.tasks:
            how = {"terminated": False, "signum": None, "expired": why == "expired"}
            self._events.send("task-revoked", {"uuid": message.id, **how})
        if task_revoked.receivers:
            context = Context(message, hostname=self._hostname, delivered=request)
            is_late = why == "expired"
            tell_revoked(request, context, terminated=False, signum=None, expired=is_late)

    def hold(self, request: Request) -> None:
        """Keep the message of a paused workflow until the workflow is resumed."""
        self._state.reserved.pop(request.delivery.tag, None)
        if not request.settle():
            return
        assert self._handover.index is not None
        self._outbox.put(self._handover.index.held(request))

    def bury(
        self,
        delivery: Delivery,
        error: Exception,
        task_id: object,
        message: TaskMessage | None = None,
    ) -> None:
        """Move a message that cannot run to the dead letters; a waiting caller gets the reason.

        If the decoded `message` is given, its chord and the tasks after it also get the reason.
        """
        reason = str(error)
        if isinstance(error, NotRegistered):
            _log.error(
                "Received unregistered task %r, id %s%s: it %s; import its module in the worker",
                reason, task_id, self._registry.nearest(reason), _fate(delivery),
            )  # fmt: skip
            reason = f"unregistered task {error}"
        else:
            _log.error(
                "A message of queue %s (task id %s) cannot run: %s; it %s",
                delivery.queue, task_id, reason, _fate(delivery),
            )  # fmt: skip
        if delivery.tag:
            self._bury(delivery, error, task_id, reason, message)
        self._send_signal(delivery, error, task_id)

    def _bury(
        self,
        delivery: Delivery,
        error: Exception,
        task_id: object,
        reason: str,
        message: TaskMessage | None,
    ) -> None:
        result: StateWrite | None = None
        if KEY.takes(task_id):
            result = self._results.write_plain(task_id, FAILURE, error)
            result = result and result.of_unrun()
        kept = delivery
        if _REFUSED in delivery.raw:
            plain = without_refusal(delivery.raw).decode()
            text = self._broker.resealed(delivery.queue, delivery.raw, plain)
            kept = delivery._replace(raw=text.encode() if isinstance(text, str) else text)
        move = self._broker.bury(*kept, reason=reason, worker=self._hostname, now=datetime.now(UTC))
        # `kept` has no mark, so a retry of the workflow also sends the message without the mark.
        self._put(Settlement.moving(move, result), kept, message, Failure(FAILURE, error))
        if self._events.tasks and isinstance(error, NotRegistered):
            why = {"exception": saferepr(error)}
            self._events.send("task-failed", {"uuid": task_id, **why})

    def _put(
        self, entry: Settlement, delivery: Delivery, message: TaskMessage | None, failure: Failure
    ) -> None:
        """Settle a message, together with its continuation. Switches: no."""
        index = self._handover.index
        if message is not None and index is not None:
            index.adopt(message)
        if message is None or not has_successors(message):
            if message is not None and index is not None:
                entry.workflow = index.ended(
                    delivery, message, failure.state, None, has_run=failure.state != FAILURE
                )
            self._outbox.put(entry)
            return
        self._outbox.expect(entry.tag)
        spawn(
            self._put_with_successors, entry, EndingStep(delivery, message), failure, name="refusal"
        )

    def _put_with_successors(self, entry: Settlement, step: EndingStep, failure: Failure) -> None:
        """Settle a message after computing its continuation; errbacks may run. Switches: yes."""
        calls = failure.state == FAILURE
        try:
            entry.workflow = self._handover.failed(step, failure, calls=calls)
        except Exception:
            _log.exception("could not call the errbacks of task %s", step.message.id)
            entry.workflow = self._handover.surely_failed(step, failure)
        if self._handover.index is not None:
            entry.workflow = self._handover.index.ended(
                step.delivery, step.message, failure.state, entry.workflow, has_run=not calls
            )
        self._outbox.put(entry)

    def _send_signal(self, delivery: Delivery, error: Exception, task_id: object) -> None:
        """Send task_unknown or task_rejected. Switches: if a receiver does."""
        unknown = isinstance(error, NotRegistered)
        signal = task_unknown if unknown else task_rejected
        if signal.receivers:
            named = {"name": str(error), "id": task_id} if unknown else {}
            signal.send(self.sender, message=self._shown(delivery), exc=error, **named)

    def _shown(self, delivery: Delivery) -> RefusedMessage:
        """Read as much of a message as possible."""
        tag, queue, raw = delivery
        try:
            found = self._unwrap(raw)
        except DecodeError:
            found = Envelope(b"", "", "", {}, {})
        return RefusedMessage(*found, tag, queue, raw)


def _fate(delivery: Delivery) -> str:
    """Return, in words, what happens to a message that cannot run."""
    return "is now a dead letter" if delivery.tag else "was a broadcast, and is dropped"
