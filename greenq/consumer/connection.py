"""Connection: the server answers, the lease is held, and the queues are declared."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from greenq.bootsteps.blueprint import StartStopPart
from greenq.errors import TransportTimeout
from greenq.transport.fetch import Delivery

if TYPE_CHECKING:
    from greenq.worker import Worker

_log = logging.getLogger(__name__)

_LEASE_TIMEOUT_S = 5.0
_PING_TIMEOUT_S = 2.0


class Connection(StartStopPart):
    """The first step of the consumer: nothing starts before the server is there."""

    name = "Connection"

    def __init__(self, worker: Worker) -> None:
        """Reach the server of `worker`'s app and declare its queues there."""
        self._worker = worker

    def start(self) -> None:
        """Reach the server.

        Raises:
            OperationalError: it cannot be reached, or refuses.
        """
        worker = self._worker
        transport, watch = worker.app.transport, worker.watch
        # Declaring sends nothing if this process has done it before.
        transport.client.call("PING", timeout_s=_PING_TIMEOUT_S)
        if not watch.lease.wait_held(_LEASE_TIMEOUT_S):
            # Without a lease, the messages of this worker could not be recovered if it died.
            raise watch.lease.problem or TransportTimeout("the lease could not be written")
        worker.register()
        transport.broker.declare(worker.queues)
        worker.look_for_pauses()
        for queue in worker.broadcasts:
            watch.subscriber.subscribe(
                self._channel(queue.name), partial(self._receive, queue.name)
            )
        _log.info("Connected to %s", transport.broker_address)
        worker.look_at_server()

    def stop(self) -> None:
        """Stop reading broadcasts."""
        for queue in self._worker.broadcasts:
            self._worker.watch.subscriber.unsubscribe(self._channel(queue.name))

    def _channel(self, queue: str) -> str:
        """Return the channel of a broadcast queue, under the key of the default queue."""
        app = self._worker.app
        return app.transport.keys.fanout(queue, app.config.task.task_default_queue)

    def _receive(self, queue: str, data: bytes) -> None:
        self._worker.tasks.receive(Delivery("", queue, data))
