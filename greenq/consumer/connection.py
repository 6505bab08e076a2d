"""Connection: the server answers, the lease is held, and the queues are declared."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from greenq.bootsteps import StartStopStep
from greenq.errors import TransportTimeout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from greenq.transport.links import Transport
    from greenq.watch import Watch

_log = logging.getLogger(__name__)

_LEASE_TIMEOUT_S = 5.0
_PING_TIMEOUT_S = 2.0


class Connection(StartStopStep):
    """The first step of the consumer: nothing starts before the server is there."""

    name = "Connection"

    def __init__(self, transport: Transport, queues: Sequence[str], watch: Watch) -> None:
        """Reach `transport`'s server and declare `queues` there; `watch` keeps the lease."""
        self._watch = watch
        self._transport = transport
        self._queues = queues

    def start(self) -> None:
        """Reach the server.

        Raises:
            OperationalError: it cannot be reached, or refuses.
        """
        # Declaring asks nothing when this process has done it before.
        self._transport.client.call("PING", timeout_s=_PING_TIMEOUT_S)
        if not self._watch.wait_held(_LEASE_TIMEOUT_S):
            # Without it nobody would know whose the messages are if this worker died.
            raise self._watch.problem or TransportTimeout("the lease could not be written")
        self._transport.broker.declare(self._queues)
        _log.info("Connected to %s", self._transport.broker_address)
