"""Requeues the messages that this worker has not begun to run."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from greenq.errors import OperationalError
from greenq.transport.fetch import tag_number
from greenq.transport.settle import Fence, Settlement, settle

if TYPE_CHECKING:
    from greenq.execution.state import WorkerState
    from greenq.pool import Pool
    from greenq.running.request import Request
    from greenq.transport.client import Connection
    from greenq.transport.fetch import Delivery
    from greenq.transport.outbox import Outbox
    from greenq.transport.transport import Transport

_log = logging.getLogger(__name__)


class Returns:
    """Requeues messages so that they are taken next, in their original order."""

    def __init__(
        self, transport: Transport, outbox: Outbox, pool: Pool, state: WorkerState
    ) -> None:
        """Write to `outbox`, and requeue the requests that are waiting in `pool`."""
        self._transport = transport
        self._outbox = outbox
        self._pool = pool
        self._state = state

    def give_back(self, requests: list[Request]) -> None:
        """Return the messages of requests to their queues."""
        given_back = sorted((each for each in requests if each.settle()), key=_number)
        for request in given_back:
            self._state.reserved.pop(request.delivery.tag, None)
        self.give_back_deliveries([request.delivery for request in given_back])

    def give_back_deliveries(self, deliveries: list[Delivery]) -> None:
        """Return deliveries, given oldest first, to their queues."""
        # The message pushed last is taken first, so the newest one is pushed first.
        for delivery in reversed(deliveries):
            self._outbox.put(self._returned(delivery))
        if deliveries:
            _log.info("gave %d messages back to their queues", len(deliveries))

    def give_away(self, connection: Connection, owner: str) -> None:
        """Requeue requests without a slot; the watchdog thread calls this while the hub is blocked.

        Raises:
            OperationalError: the requests stay here, and are requeued when this worker ends or its
                hub runs again.
        """
        requests = self._pool.withdraw(is_recorded)
        if not requests:
            return
        requests.sort(key=_number, reverse=True)
        entries = [self._returned(request.delivery) for request in requests]
        try:
            settle(connection, self._transport.keys, entries, fence=Fence(owner))
        except OperationalError:
            # The server may still have requeued them, so each request checks which worker holds
            # its message before it begins.
            for request in requests:
                request.taken_s = -math.inf
            # The pool keeps waiting requests in a deque, which any thread may change.
            self._pool.put_back(requests)
            raise
        for request in requests:
            request.settle()
            self._state.reserved.pop(request.delivery.tag, None)
        _log.warning(
            "gave %d messages that had not begun back to their queues, for other workers to run",
            len(requests),
        )

    def _returned(self, delivery: Delivery) -> Settlement:
        return Settlement.moving(self._transport.broker.requeue(*delivery, "next"))


def is_recorded(request: Request) -> bool:
    """Return whether the server has a record of a message, which requeueing requires."""
    return bool(request.delivery.tag)


def _number(request: Request) -> int:
    """Return a number by which requests are sorted in the order in which they were taken."""
    return tag_number(request.delivery.tag)
