"""Messages that shall not run: dead letters, and tasks that are revoked or have expired."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from greenq.errors import NotRegistered, TaskRevokedError
from greenq.execution.handover import Failure, Step
from greenq.hub import spawn
from greenq.protocol.envelope import without_refusal
from greenq.protocol.limits import KEY
from greenq.protocol.message import has_successors, saferepr
from greenq.states import FAILURE, REVOKED
from greenq.transport.settle import Entry

if TYPE_CHECKING:
    from greenq.app import TaskRegistry
    from greenq.execution.handover import Handover
    from greenq.execution.state import WorkerState
    from greenq.protocol.event import EventSender
    from greenq.protocol.message import TaskMessage
    from greenq.request import Request
    from greenq.transport.fetch import Delivery
    from greenq.transport.outbox import Outbox
    from greenq.transport.settle import StateWrite
    from greenq.transport.transport import Transport

_log = logging.getLogger(__name__)

# In a message that another worker has marked as one that must not run.
_REFUSED = b'"refused"'


class Refusals:
    """Settles messages that shall not run; whoever waits for their result gets the reason."""

    def __init__(
        self,
        transport: Transport,
        registry: TaskRegistry,
        outbox: Outbox,
        state: WorkerState,
        events: EventSender,
        hostname: str,
        handover: Handover,
    ) -> None:
        """Take a worker's parts, and its node name."""
        self._handover = handover
        self._transport = transport
        self._registry = registry
        self._outbox = outbox
        self._state = state
        self._events = events
        self._hostname = hostname

    def discard(self, request: Request, why: Literal["revoked", "expired"]) -> None:
        """Settle a task that shall not run; whoever waits for it gets the reason."""
        _log.info("Discarding %s task %s", why, request)
        message = request.message
        self._state.reserved.pop(request.delivery.tag, None)
        if request.settle():
            error = TaskRevokedError(why)
            entry = Entry(
                request.delivery.tag, result=self._stored(message.id, REVOKED, error, request)
            )
            self._put(entry, request.delivery, message, Failure(REVOKED, error))
        if self._events.tasks:
            how = {"terminated": False, "signum": None, "expired": why == "expired"}
            self._events.send("task-revoked", {"uuid": message.id, **how})

    def bury(
        self,
        delivery: Delivery,
        error: Exception,
        task_id: object,
        message: TaskMessage | None = None,
    ) -> None:
        """Move a message that cannot run to the dead letters; whoever waits gets the reason.

        With the decoded `message`, so do the tasks that follow it and the chord it belongs to.
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
        if not delivery.tag:
            return
        result: StateWrite | None = None
        if KEY.takes(task_id):
            result = self._stored(task_id, FAILURE, error)
            result = result and result.of_unrun()
        kept = delivery
        if _REFUSED in delivery.raw:
            kept = delivery._replace(raw=without_refusal(delivery.raw))
        move = self._transport.broker.bury(
            *kept, reason=reason, worker=self._hostname, now=datetime.now(UTC)
        )
        self._put(Entry.moving(move, result), delivery, message, Failure(FAILURE, error))
        if self._events.tasks and isinstance(error, NotRegistered):
            why = {"exception": saferepr(error)}
            self._events.send("task-failed", {"uuid": task_id, **why})

    def _put(
        self, entry: Entry, delivery: Delivery, message: TaskMessage | None, failure: Failure
    ) -> None:
        """Write the end of a message, with whatever that sets in motion. Switches: no."""
        if message is None or not has_successors(message):
            self._outbox.put(entry)
            return
        self._outbox.expect(entry.tag)
        spawn(self._put_with_successors, entry, Step(delivery, message), failure, name="refusal")

    def _put_with_successors(self, entry: Entry, step: Step, failure: Failure) -> None:
        """Compute what follows: errbacks may run here. Switches: yes."""
        calls = failure.state == FAILURE
        try:
            entry.workflow = self._handover.failed(step, failure, calls=calls)
        except Exception:
            _log.exception("could not call the errbacks of task %s", step.message.id)
            entry.workflow = self._handover.surely_failed(step, failure)
        self._outbox.put(entry)

    def _stored(
        self, task_id: str, state: str, error: Exception, request: Request | None = None
    ) -> StateWrite | None:
        message = None if request is None else request.message
        if not self._transport.stores_results or (message is not None and message.ignore_result):
            return None
        backend = self._transport.backend
        extends = request is not None and backend.extends
        return backend.stored(
            task_id,
            state,
            error,
            date_done=datetime.now(UTC).isoformat(),
            group_id=message.group if message is not None else None,
            parent_id=message.parent_id if message is not None else None,
            extended=request.extended(self._hostname) if request is not None and extends else None,
        )


def _fate(delivery: Delivery) -> str:
    """Say what becomes of a message that cannot run."""
    return "is among the dead letters" if delivery.tag else "came for all, and is dropped"
