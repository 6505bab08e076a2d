"""Connection: the server answers, and the queues are declared."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from greenq.bootsteps import StartStopStep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from greenq.transport.links import Transport

_log = logging.getLogger(__name__)


class Connection(StartStopStep):
    """The first step of the consumer: nothing starts before the server is there."""

    name = "Connection"

    def __init__(self, transport: Transport, queues: Sequence[str]) -> None:
        """Reach `transport`'s server and declare `queues` there."""
        self._transport = transport
        self._queues = queues

    def start(self) -> None:
        """Reach the server.

        Raises:
            OperationalError: it cannot be reached, or refuses.
        """
        # Declaring asks nothing when this process has done it before.
        self._transport.client.call("PING")
        self._transport.broker.declare(self._queues)
        _log.info("Connected to %s", self._transport.broker_address)
