"""The queues of a worker, which remote control may change while it runs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from greenq.config.queues import Broadcast
from greenq.errors import OperationalError
from greenq.hub import spawn

if TYPE_CHECKING:
    from collections.abc import Iterable

    from greenq.config.queues import Binding
    from greenq.execution.state import WorkerState
    from greenq.timer import Timer, TimerEntry
    from greenq.transport.fetch import Fetcher
    from greenq.transport.transport import Transport
    from greenq.watchdog.thread import Watch

_log = logging.getLogger(__name__)

# A limit is needed because anyone who is allowed to publish can add queues, each of which leaves a
# binding on the server.
_MAX_ADDED = 1000


def in_order(queues: Iterable[str], strategy: str) -> list[str]:
    """Return queues in the order in which a worker takes from them."""
    return sorted(queues) if strategy == "sorted" else list(queues)


class QueueSet:
    """The queues that a worker takes from; keeps the fetcher and the lease up to date.

    Attributes:
        names: the queues that the worker takes from, including paused ones.
        broadcasts: the broadcast queues that it consumes.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        broadcasts: tuple[Broadcast, ...],
        *,
        transport: Transport,
        state: WorkerState,
        fetcher: Fetcher,
        watch: Watch,
        timer: Timer,
        strategy: str,
    ) -> None:
        """Create a set of the given queues; `strategy` is the queue order strategy."""
        self.names = names
        self.broadcasts = broadcasts
        self._transport = transport
        self._state = state
        self._fetcher = fetcher
        self._watch = watch
        self._timer = timer
        self._strategy = strategy
        # Renews the queues regularly while the worker takes from a queue that expires.
        self._renewal: TimerEntry | None = None
        # All queues added since the start, each of which has left a binding on the server.
        self._added: set[tuple[str, Binding]] = set()
        # The bindings that replace those in the settings, by queue.
        self._sources: dict[str, Binding] = {}

    @property
    def taken(self) -> tuple[str, ...]:
        """All queues, including paused ones and broadcast queues."""
        return (*self.names, *(queue.name for queue in self.broadcasts))

    def bindings_of(self, queue: str) -> tuple[Binding, ...]:
        """Return the bindings of a queue, starting with that of its own exchange."""
        source = self._sources.get(queue)
        return self._transport.broker.bindings_of(queue) if source is None else (source,)

    def limits_of(self, queue: str) -> tuple[float | None, int | None]:
        """Return a queue's expiry in seconds and the number of messages that may wait in it."""
        return self._transport.broker.limits_of(queue)

    def add(self, queue: str, source: Binding | None = None) -> None:
        """Start taking from a queue and bind it to its exchange. Switches: yes.

        If `source` is None, the settings determine the queue's bindings.

        Raises:
            ValueError: a key with this name exists and is not a queue, or too many queues were
                added to this worker.
            OperationalError: the queue could not be declared; the worker does not take from it.
        """
        binding = source or self.bindings_of(queue)[0]
        if (queue, binding) not in self._added and len(self._added) >= _MAX_ADDED:
            raise ValueError(
                f"{_MAX_ADDED:,} queues, the maximum, have been added since this worker started: "
                "name its queues with -Q"
            )
        broker = self._transport.broker
        kind = broker.kind(queue)
        if kind not in ("none", "list"):
            raise ValueError(f"{queue!r} cannot be a queue: the key with this name is a {kind}")
        self._added.add((queue, binding))
        if source is None:
            broker.declare([queue])
            self._sources.pop(queue, None)
        else:
            broker.bind(queue, source)
            self._sources[queue] = source
        if queue not in self.names:
            self.names = (*self.names, queue)
            self._take_from()
            self.keep()
            self.announce()

    def cancel(self, queue: str) -> None:
        """Stop taking from a queue; tasks taken from it still run. Switches: yes."""
        self.names = tuple(name for name in self.names if name != queue)
        self._sources.pop(queue, None)
        self._take_from()
        self.announce()

    def announce(self) -> None:
        """Publish on the server which queues this worker takes from. Switches: no."""
        self._watch.announce_queues(self.taken)

    def retract(self) -> None:
        """Publish on the server that this worker takes from no queue. Switches: no."""
        self._watch.announce_queues(())

    def look_for_pauses(self) -> None:
        """Ask the server which queues are paused, and take from the others. Switches: yes."""
        self.pause(frozenset(self._transport.broker.paused()))

    def pause(self, paused: frozenset[str]) -> None:
        """Take from all queues except the paused ones."""
        before = self._state.paused
        if paused == before:
            return
        for queue in sorted((paused ^ before) & set(self.names)):
            _log.warning("queue %s is %s", queue, "paused" if queue in paused else "resumed")
        self._state.paused = paused
        self._take_from()

    def keep(self) -> None:
        """Keep the queues that expire alive for as long as this worker takes from them."""
        self.release()
        every_s = self._transport.broker.renewal_s(self.names)
        if every_s is not None:
            self._renewal = self._timer.call_repeatedly(every_s, self._renew_soon)
            self._renew_soon()

    def release(self) -> None:
        """Stop renewing the queues that expire; they expire unless other workers renew them."""
        if self._renewal is not None:
            self._renewal.cancel()
            self._renewal = None

    def _renew_soon(self) -> None:
        spawn(self._renew, name="renew queues")

    def _renew(self) -> None:
        try:
            self._transport.broker.renew(self.names)
        except OperationalError as exc:
            _log.warning("queues that expire could not be renewed; retrying soon: %s", exc)

    def _take_from(self) -> None:
        queues = [queue for queue in self.names if queue not in self._state.paused]
        self._watch.set_queues(queues)
        self._fetcher.set_queues(in_order(queues, self._strategy))
