"""Decides which messages of a dead worker run again, and how the others end."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from greenq.canvas.nodes import workflow_of
from greenq.errors import ContentDisallowed, DecodeError, WorkerLostError
from greenq.execution.reader import MessageReader
from greenq.protocol.envelope import header, mark_refused
from greenq.protocol.message import has_successors, part_of
from greenq.protocol.serialize import accepted
from greenq.states import FAILURE
from greenq.transport.settle import Move, Settlement

if TYPE_CHECKING:
    from greenq.app import Greenq

_log = logging.getLogger(__name__)


class LostMessages:
    """Decides about the messages of dead workers on behalf of the worker that recovers them."""

    def __init__(self, app: Greenq, hostname: str) -> None:
        """Use the tasks and settings of `app`; `hostname` is the recovering worker."""
        self._app = app
        self._hostname = hostname
        config = app.config.task
        self._reader = MessageReader(config, accepted(config.accept_content))

    def may_run_again(self, name: str | None) -> bool:
        """Return whether a task runs again when its worker dies."""
        task = self._app.tasks.get(name or "")
        own = None if task is None else task.reject_on_worker_lost
        return self._app.config.task.task_reject_on_worker_lost if own is None else own

    def bury(
        self, tag: str, queue: str, raw: bytes, reason: str, task_id: str | None
    ) -> Settlement:
        """Return the settlement that makes a message a dead letter and its task a failure.

        If other tasks depend on that task, a worker must compute which of them fail with it. In
        that case, the message is marked and moved to the inbox of its queue, from which only
        greenq's workers take.
        """
        transport = self._app.transport
        if self._is_awaited(raw):
            inbox = transport.keys.inbox(queue)
            text = transport.broker.resealed(queue, raw, mark_refused(raw, reason))
            _log.error(
                "task %s[%s] of queue %s fails, together with the tasks that depend on it: %s",
                header(raw, "task"), task_id, queue, reason,
            )  # fmt: skip
            return Settlement.moving(Move(tag, inbox, "next", text))
        _log.error(
            "task %s[%s] of queue %s is now a dead letter: %s",
            header(raw, "task"), task_id, queue, reason,
        )  # fmt: skip
        move = transport.broker.bury(
            tag, queue, raw, reason=reason, worker=self._hostname, now=datetime.now(UTC)
        )
        if task_id is None or not transport.stores_results:
            return Settlement.moving(move)
        state = transport.backend.stored(task_id, FAILURE, WorkerLostError(reason))
        return Settlement.moving(move, state)

    def _is_awaited(self, raw: bytes) -> bool:
        """Return whether a message has successors, or belongs to a chord or the index."""
        try:
            unwrapped = self._reader.unwrap(raw)
        except DecodeError:
            return False
        try:
            message = self._reader.decode(unwrapped)
            is_indexed = self._app.config.task.workflow_index and workflow_of(message) is not None
            return is_indexed or has_successors(message)
        except (DecodeError, ContentDisallowed):
            return part_of(unwrapped) is not None
