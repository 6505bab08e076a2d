"""The queues of a worker, which remote control may change while it runs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from greenq.sending.routing import QueueSource

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from greenq.config.validators import Broadcast
    from greenq.execution.state import WorkerState
    from greenq.transport.fetch import Fetcher
    from greenq.transport.transport import Transport
    from greenq.watchdog.thread import Watch

_log = logging.getLogger(__name__)

# Anyone who may publish can add queues, and each leaves a binding on the server.
_MAX_ADDED = 1000


def in_order(queues: Iterable[str], strategy: str) -> list[str]:
    """Return queues in the order in which a worker takes from them."""
    return sorted(queues) if strategy == "sorted" else list(queues)


class QueueSet:
    """The queues that a worker takes from; keeps the fetcher and the lease up to date.

    Attributes:
        names: the queues that it takes from, paused ones included.
        broadcasts: the broadcast queues that it consumes.
        sources: the exchanges of queues that have one of their own, by queue.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        broadcasts: tuple[Broadcast, ...],
        sources: Mapping[str, QueueSource],
        *,
        transport: Transport,
        state: WorkerState,
        fetcher: Fetcher,
        watch: Watch,
        strategy: str,
    ) -> None:
        """Start with the given queues; `strategy` is the queue order strategy."""
        self.names = names
        self.broadcasts = broadcasts
        self.sources = dict(sources)
        self._transport = transport
        self._state = state
        self._fetcher = fetcher
        self._watch = watch
        self._strategy = strategy
        # All queues added since the start, including cancelled ones: each has left a binding on the
        # server.
        self._added: set[tuple[str, QueueSource]] = set()

    @property
    def taken(self) -> tuple[str, ...]:
        """All queues, paused ones and broadcast queues included."""
        return (*self.names, *(queue.name for queue in self.broadcasts))

    def add(self, queue: str, source: QueueSource) -> None:
        """Start taking from a queue and bind it to its exchange. Switches: yes.

        Raises:
            ValueError: a key of this name exists and is not a queue, or too many queues were added
                to this worker.
            OperationalError: the queue could not be declared; the worker does not take from it.
        """
        if (queue, source) not in self._added and len(self._added) >= _MAX_ADDED:
            raise ValueError(
                f"{_MAX_ADDED:,} queues, the maximum, were added to this worker since its start: "
                "name its queues with -Q"
            )
        broker = self._transport.broker
        kind = broker.kind(queue)
        if kind not in ("none", "list"):
            raise ValueError(f"{queue!r} cannot be a queue: the key of this name is a {kind}")
        self._added.add((queue, source))
        broker.declare([queue])
        if source != QueueSource(queue, "direct", queue):
            is_topic = source.exchange_type == "topic"
            broker.bind(queue, source.exchange, source.routing_key, is_topic=is_topic)
            self.sources[queue] = source
        if queue not in self.names:
            self.names = (*self.names, queue)
            self._take_from()
            self.announce()

    def cancel(self, queue: str) -> None:
        """Stop taking from a queue; tasks taken from it still run. Switches: yes."""
        self.names = tuple(name for name in self.names if name != queue)
        self.sources.pop(queue, None)
        self._take_from()
        self.announce()

    def announce(self) -> None:
        """Publish on the server what this worker takes from. Switches: no."""
        self._watch.announce_queues(self.taken)

    def retract(self) -> None:
        """Publish on the server that this worker takes from no queue. Switches: no."""
        self._watch.announce_queues(())

    def look_for_pauses(self) -> None:
        """Ask the server which queues are paused, and take from the others. Switches: yes."""
        self.pause(frozenset(self._transport.broker.paused()))

    def pause(self, paused: frozenset[str]) -> None:
        """Take from all queues but the paused ones."""
        before = self._state.paused
        if paused == before:
            return
        for queue in sorted((paused ^ before) & set(self.names)):
            _log.warning("queue %s is %s", queue, "paused" if queue in paused else "resumed")
        self._state.paused = paused
        self._take_from()

    def _take_from(self) -> None:
        queues = [queue for queue in self.names if queue not in self._state.paused]
        self._watch.set_queues(queues)
        self._fetcher.set_queues(in_order(queues, self._strategy))
