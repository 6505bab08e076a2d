"""How many messages wait in each queue, how old the oldest is, and how fast the number changes.

The messages are counted on the server, for the commands about queues and a worker's HTTP endpoints.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from greenq.config.queues import Broadcast

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from greenq.config.settings import TaskConfig
    from greenq.transport.broker import Broker
    from greenq.transport.chords import Unsealed


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """One queue at one moment.

    Attributes:
        name: the queue's name.
        depth: waiting messages by priority step.
        inbox: messages on their way to a waiting worker.
        parked: messages with a far ETA.
        dead: dead letters.
        held: messages waiting in workers for their ETA or a retry, or held back by a rate limit;
            None if unknown.
        consumers: the names of the nodes that take from it.
        untaken: True if it is certain that no worker takes from it.
        paused: who paused it and when; None if it is not paused.
        oldest_s: the age of the oldest waiting message; None if unknown.
        change_per_s: the growth in waiting messages per second; None after a single count.
    """

    name: str
    depth: Mapping[int, int] = field(default_factory=dict)
    inbox: int = 0
    parked: int = 0
    dead: int = 0
    held: int | None = None
    consumers: Sequence[str] = ()
    untaken: bool = False
    paused: Mapping[str, Any] | None = None
    oldest_s: float | None = None
    change_per_s: float | None = None

    @property
    def waiting(self) -> int:
        """The number of messages that a worker could take now."""
        return sum(self.depth.values()) + self.inbox

    @property
    def drained_in_s(self) -> float | None:
        """Seconds until the queue is empty at the present rate; None if it is not shrinking."""
        if not self.waiting or self.change_per_s is None or self.change_per_s >= 0:
            return None
        return self.waiting / -self.change_per_s

    def as_json(self) -> dict[str, Any]:
        """Return the counts as data for JSON."""
        shown: dict[str, Any] = {
            "waiting": self.waiting,
            "depth": {str(step): count for step, count in self.depth.items()},
            "inbox": self.inbox,
            "parked": self.parked,
            "dead": self.dead,
            "held": self.held,
            "consumers": list(self.consumers),
            "untaken": self.untaken,
            "paused": self.paused,
            "oldest_s": None if self.oldest_s is None else round(self.oldest_s, 3),
        }
        if self.change_per_s is not None:
            shown["change_per_s"] = round(self.change_per_s, 2)
            left_s = self.drained_in_s
            shown["drained_in_s"] = None if left_s is None else round(left_s)
        return shown


@dataclass(frozen=True, slots=True)
class QueuesSnapshot:
    """The state of the queues at one moment.

    Attributes:
        at_s: monotonic time.
        queues: the queues by name.
        incomplete: True if a worker has not replied.
        unsealed: chords whose header is taking a long time to send.
    """

    at_s: float
    queues: Mapping[str, QueueCounts]
    incomplete: bool = False
    unsealed: Sequence[Unsealed] = ()


def app_queues(task: TaskConfig) -> list[str]:
    """Return the queues that the app's workers take from by default.

    Broadcasts are omitted, since no messages wait in them.
    """
    if not task.task_queues:
        return [task.task_default_queue]
    return [str(queue) for queue in task.task_queues if not isinstance(queue, Broadcast)]


def look(broker: Broker, names: Iterable[str]) -> QueuesSnapshot:
    """Count the messages of queues by asking only the server, not the workers."""
    names = tuple(names)
    paused, oldest, now = broker.paused(), broker.oldest(names), time.time()
    queues = {
        name: replace(
            from_counts(name, counts, paused.get(name)),
            oldest_s=max(0.0, now - oldest[name]) if name in oldest else None,
        )
        for name, counts in broker.depths(names).items()
    }
    return QueuesSnapshot(time.monotonic(), queues)


def from_counts(
    name: str, counts: Mapping[int | str, int], paused: Mapping[str, Any] | None
) -> QueueCounts:
    """Create a `QueueCounts` from the broker's counts."""
    return QueueCounts(
        name,
        depth={step: count for step, count in counts.items() if isinstance(step, int)},
        inbox=counts["inbox"],
        parked=counts["parked"],
        dead=counts["dead"],
        paused=paused,
    )


def change_per_s(before: QueuesSnapshot | None, now: QueuesSnapshot, name: str) -> float | None:
    """Return by how many messages per second a queue's backlog grows; None if unknown."""
    if before is None or name not in before.queues or now.at_s <= before.at_s:
        return None
    grown = now.queues[name].waiting - before.queues[name].waiting
    return grown / (now.at_s - before.at_s)
