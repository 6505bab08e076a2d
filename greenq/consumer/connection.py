"""Connection: the server replies, the lease is held, and the queues are declared."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from greenq.bootsteps.blueprint import StartStopPart
from greenq.errors import OperationalError, TransportTimeout
from greenq.transport.facts import eviction_warning, server_facts
from greenq.transport.fetch import Delivery
from greenq.transport.owner import Owner

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.config.queues import Broadcast
    from greenq.consumer.queue_set import QueueSet
    from greenq.execution.state import WorkerState
    from greenq.transport.fetch import Fetcher
    from greenq.transport.outbox import Outbox
    from greenq.transport.transport import Transport
    from greenq.watchdog.thread import Watch

_log = logging.getLogger(__name__)

_LEASE_TIMEOUT_S = 5.0
_PING_TIMEOUT_S = 2.0

# The timeout for each batch of messages that are registered again.
_REGISTER_TIMEOUT_S = 5.0


class ConnectionStep(StartStopPart):
    """The first step of the consumer: no other step starts until the server replies."""

    name = "Connection"

    def __init__(
        self,
        *,
        transport: Transport,
        owner: Owner,
        watch: Watch,
        queues: QueueSet,
        fetcher: Fetcher,
        outbox: Outbox,
        state: WorkerState,
        receive: Callable[[Delivery], object],
    ) -> None:
        """Connect a worker to its server.

        Args:
            transport, owner, watch, queues, fetcher, outbox, state: those of the worker.
            receive: takes the messages of broadcast queues.
        """
        self._transport = transport
        self._owner = owner
        self._watch = watch
        self._queues = queues
        self._fetcher = fetcher
        self._outbox = outbox
        self._receive = receive
        self._state = state
        self._has_looked = False

    def start(self) -> None:
        """Connect to the server, declare the queues and subscribe to the broadcast queues.

        Raises:
            OperationalError: the server cannot be reached, or refuses a command.
        """
        transport, watch = self._transport, self._watch
        transport.client.call("PING", timeout_s=_PING_TIMEOUT_S)
        if not watch.lease.wait_held(_LEASE_TIMEOUT_S):
            # Without a lease, the messages of this worker could not be recovered if it died.
            raise watch.lease.problem or TransportTimeout("the lease could not be written")
        self.register()
        # Declaring sends nothing if this process has declared the queues before.
        transport.broker.declare(self._queues.names)
        self._queues.keep()
        self._queues.look_for_pauses()
        for queue in self._queues.broadcasts:
            watch.subscriber.subscribe(self._channel(queue), partial(self._broadcast, queue.name))
        _log.info("Connected to %s", transport.broker_address)
        self._look_at_server()

    def stop(self) -> None:
        """Unsubscribe from the broadcast queues, and stop renewing queues that expire."""
        self._queues.release()
        for queue in self._queues.broadcasts:
            self._watch.subscriber.unsubscribe(self._channel(queue))

    def register(self) -> None:
        """Register this owner and its messages on the server. Switches: yes.

        Raises:
            OperationalError: the server cannot be reached, or the lease has ended.
        """
        requests = list(self._state.reserved.values())
        held = [request.delivery for request in requests if not request.settled]
        begun = {request.delivery.tag for request in requests if request.settled}
        is_new = self._fetcher.register(
            self._watch.question, held, begun | self._outbox.tags(), _REGISTER_TIMEOUT_S
        )
        if is_new and self._fetcher.first_unused > 1:
            _log.warning(
                "the server had lost its data: the %d messages of this worker are stored again",
                len(requests),
            )

    def try_register(self) -> None:
        """Register if the server can be reached; otherwise the next renewal asks for it again."""
        try:
            self.register()
        except OperationalError as exc:
            _log.info("this worker could not be registered on the server yet: %s", exc)

    def _look_at_server(self) -> None:
        """Warn once if the server may evict keys, or if another worker has this node name.

        Switches: yes.
        """
        if self._has_looked:
            return
        self._has_looked = True
        transport = self._transport
        try:
            warning = eviction_warning(server_facts(transport.client))
            leases = transport.client.call("ZRANGE", transport.keys.leases, 0, -1)
        except OperationalError as exc:
            _log.info("the server's memory settings and leases could not be read: %s", exc)
            return
        if warning is not None:
            _log.warning("%s", warning)
        owners = [Owner.parse(each.decode(errors="replace")) for each in leases]
        if any(self._is_twin(each) for each in owners):
            _log.warning(
                "another worker is named %s, or was until a moment ago: two workers with the same "
                "name hide each other's replies; give each worker its own name with -n",
                self._owner.node,
            )

    def _is_twin(self, other: Owner) -> bool:
        return other.node == self._owner.node and other != self._owner and not other.is_dead

    def _channel(self, queue: Broadcast) -> str:
        """Return the channel of a broadcast queue, or the pattern of its channels."""
        key = (queue.routing_key or "").replace("#", "*")
        return self._transport.keys.fanout(queue.exchange, key)

    def _broadcast(self, queue: str, data: bytes) -> None:
        self._receive(Delivery("", queue, data))
