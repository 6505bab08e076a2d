"""Messages that must not run: dead letters, and tasks that are revoked or have expired."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from greenq.errors import NotRegistered, TaskRevokedError
from greenq.execution.results import Outcome, ResultWriter
from greenq.protocol.limits import KEY
from greenq.protocol.message import saferepr
from greenq.states import FAILURE, REVOKED
from greenq.transport.settle import Entry

if TYPE_CHECKING:
    from greenq.app import TaskRegistry
    from greenq.config.settings import TaskConfig
    from greenq.execution.state import WorkerState
    from greenq.protocol.event import EventSender
    from greenq.request import Request
    from greenq.transport.fetch import Delivery
    from greenq.transport.outbox import Outbox
    from greenq.transport.settle import StateWrite
    from greenq.transport.transport import Transport

_log = logging.getLogger(__name__)


class Refusals:
    """Settles messages that must not run; callers that wait for their result get the reason."""

    def __init__(
        self,
        config: TaskConfig,
        transport: Transport,
        registry: TaskRegistry,
        outbox: Outbox,
        state: WorkerState,
        events: EventSender,
        hostname: str,
    ) -> None:
        """Take a worker's parts, and its node name."""
        self._broker = transport.broker
        self._results = ResultWriter(config, transport, hostname)
        self._registry = registry
        self._outbox = outbox
        self._state = state
        self._events = events
        self._hostname = hostname

    def discard(self, request: Request, why: Literal["revoked", "expired"]) -> None:
        """Settle a task that must not run; a caller that waits for it gets the reason."""
        _log.info("Discarding %s task %s", why, request)
        message = request.message
        self._state.reserved.pop(request.delivery.tag, None)
        if request.settle():
            revoked = Outcome(REVOKED, TaskRevokedError(why))
            _outcome, result = self._results.write(request, revoked)
            self._outbox.put(Entry(request.delivery.tag, result=result))
        if self._events.tasks:
            how = {"terminated": False, "signum": None, "expired": why == "expired"}
            self._events.send("task-revoked", {"uuid": message.id, **how})

    def bury(self, delivery: Delivery, error: Exception, task_id: object) -> None:
        """Move a message that cannot run to the dead letters; a waiting caller gets the reason."""
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
            result = self._results.write_plain(task_id, FAILURE, error)
            result = result and result.of_unrun()
        move = self._broker.bury(
            *delivery, reason=reason, worker=self._hostname, now=datetime.now(UTC)
        )
        self._outbox.put(Entry.moving(move, result))
        if self._events.tasks and isinstance(error, NotRegistered):
            why = {"exception": saferepr(error)}
            self._events.send("task-failed", {"uuid": task_id, **why})


def _fate(delivery: Delivery) -> str:
    """Say what becomes of a message that cannot run."""
    return "is among the dead letters" if delivery.tag else "came for all, and is dropped"
