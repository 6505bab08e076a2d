"""The backlog of the whole cluster, counted on the server for autoscalers and metrics.

Every worker returns the same figures, so it does not matter which worker is asked. The backlog is
counted at most once a second, on a separate connection, by the thread that answers slow requests.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from greenq.errors import OperationalError
from greenq.remote.queue_counts import QueuesSnapshot, app_queues, change_per_s, look
from greenq.transport.broker import Broker
from greenq.transport.client import Client
from greenq.transport.members import Roll, call_roll

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from greenq.remote.queue_counts import QueueCounts
    from greenq.worker_parts.parts import Parts

# How long a count is cached.
KEPT_S: Final = 1.0

# Changes are measured against the oldest count within this time.
_WINDOW_S: Final = 60.0

# A server that takes longer than this to answer counts as unreachable.
_PATIENCE_S: Final = 1.0

# At most this many queues are counted, since remote commands can add any number to a worker.
MOST_QUEUES: Final = 1000


@dataclass(frozen=True, slots=True)
class QueueStats:
    """One queue of the cluster.

    Attributes:
        counts: its messages by place.
        workers: how many workers take from it.
        in_flight: an estimate of its share of the messages that workers hold, which are divided
            among the queues in proportion to their numbers of workers.
        wanted_workers: how many workers of this worker's size are needed to run all its messages in
            parallel.
    """

    counts: QueueCounts
    workers: int
    in_flight: int
    wanted_workers: int
    change_per_s: float | None

    @property
    def drain_s(self) -> float | None:
        """Seconds until the queue is empty at the present rate; None if it is not shrinking."""
        waiting, change = self.counts.waiting, self.change_per_s
        if not waiting:
            return 0.0
        return None if change is None or change >= 0 else waiting / -change

    @property
    def oldest_s(self) -> float | None:
        """The age of the oldest waiting message; None if unknown, as with Celery's messages."""
        return self.counts.oldest_s if self.counts.waiting else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the queue as data for JSON."""
        return {
            "backlog": self.counts.waiting,
            "oldest_s": _rounded(self.oldest_s),
            "drain_s": _rounded(self.drain_s),
            "change_per_s": _rounded(self.change_per_s),
            "wanted_workers": self.wanted_workers,
            "workers": self.workers,
            "in_flight": self.in_flight,
            "parked": self.counts.parked,
            "dead": self.counts.dead,
            "paused": self.counts.paused is not None,
        }


@dataclass(frozen=True, slots=True)
class Stats:
    """The cluster's state at one moment; `at` is unix time, `workers` counts greenq's leases."""

    at: float
    workers: int
    in_flight: int
    slots: int
    queues: Mapping[str, QueueStats]

    def as_json(self) -> dict[str, Any]:
        """Return the state as data for JSON."""
        return {
            "at": round(self.at, 3),
            "workers": self.workers,
            "in_flight": self.in_flight,
            "slots": self.slots,
            "queues": {name: queue.as_json() for name, queue in self.queues.items()},
        }


class ClusterStats:
    """Counts the cluster's queues for one worker; not thread-safe, so only one thread uses it."""

    def __init__(self, parts: Parts, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Count the queues of the app, of `parts`, and of all workers with a lease."""
        self._parts = parts
        self._clock = clock
        self._broker: Broker | None = None
        self._looks: deque[QueuesSnapshot] = deque()
        self._read_s = -math.inf
        self._last: Stats | OperationalError | None = None

    def read(self) -> Stats:
        """Return the last count if it is recent; otherwise count the queues again.

        Raises:
            OperationalError: the server cannot be reached, or refuses the commands.
        """
        now = self._clock()
        if self._last is None or now - self._read_s >= KEPT_S:
            try:
                self._last = self._count(now)
            except OperationalError as exc:
                self._last = exc
            self._read_s = self._clock()
        if isinstance(self._last, OperationalError):
            raise self._last
        return self._last

    def close(self) -> None:
        """Close the connection; the next count opens it again."""
        if self._broker is not None:
            self._broker.client.close()

    def _count(self, now: float) -> Stats:
        broker = self._broker = self._broker or self._connect()
        roll = call_roll(broker.client, broker.keys)
        found = look(broker, self._names(roll))
        (in_flight,) = broker.client.pipeline([("HLEN", broker.keys.unacked)])
        while self._looks and now - self._looks[0].at_s > _WINDOW_S:
            self._looks.popleft()
        before = self._looks[0] if self._looks else None
        self._looks.append(found)
        takers = Counter(name for names in roll.queues.values() for name in set(names))
        shares = sum(takers[name] for name in found.queues)
        slots = self._slots()
        queues = {}
        for name, counts in found.queues.items():
            share = round(in_flight * takers[name] / shares) if shares else 0
            # Workers take nothing from a paused queue.
            waiting = 0 if counts.paused else counts.waiting
            queues[name] = QueueStats(
                counts,
                takers[name],
                share,
                wanted_workers=math.ceil((waiting + share) / slots),
                change_per_s=change_per_s(before, found, name),
            )
        return Stats(time.time(), len(roll.living), in_flight, slots, queues)

    def _names(self, roll: Roll) -> list[str]:
        parts = self._parts
        names = {*parts.queues.names, *app_queues(parts.app.config.task)}
        names.update(name for taken in roll.queues.values() for name in taken)
        names.difference_update(queue.name for queue in parts.queues.broadcasts)
        return sorted(names)[:MOST_QUEUES]

    def _slots(self) -> int:
        """Return how many tasks a worker like this one can run in parallel."""
        autoscaler = self._parts.autoscaler
        return autoscaler.most if autoscaler is not None else max(1, self._parts.pool.size)

    def _connect(self) -> Broker:
        """Return a broker for this thread alone, since the app's broker belongs to the hub."""
        transport = self._parts.app.transport
        shared = transport.client
        client = Client(
            shared.url,
            pool_limit=1,
            connect_timeout_s=_PATIENCE_S,
            timeout_s=_PATIENCE_S,
            name="greenq-monitoring",
            prepare=shared.prepare,
        )
        return Broker(client, transport.keys, signer=transport.signer)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
