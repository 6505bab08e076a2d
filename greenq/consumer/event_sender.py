"""Events: publishes the events of tasks and of this worker."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from greenq.bootsteps.blueprint import StartStopPart
from greenq.protocol.event import EXCHANGE, MULTI, EventWriter, routing_key
from greenq.transport.backlog import Backlog
from greenq.transport.settle import Publication

if TYPE_CHECKING:
    from collections.abc import Mapping

    from greenq.protocol.clock import LamportClock
    from greenq.protocol.event import Stamped
    from greenq.protocol.keys import Keys
    from greenq.protocol.message import TaskMessage
    from greenq.protocol.signer import Signer
    from greenq.transport.outbox import Outbox

# The maximum number of events in one write, which keeps a script call short.
_BATCH = 1000

# How many events, and how many bytes of the worker's own events, are kept while the server cannot
# be reached; beyond these limits, the oldest are dropped.
_KEPT = 10_000
_KEPT_BYTES = 16 * 1024 * 1024


class EventsStep(StartStopPart):
    """Collects events; the outbox publishes them with its next write.

    The worker's own events are always sent; those of its tasks are sent only on request, by ``-E``,
    a setting or remote control.
    """

    name = "Events"
    requires = ("Connection",)

    def __init__(
        self,
        outbox: Outbox,
        keys: Keys,
        hostname: str,
        clock: LamportClock,
        *,
        tasks: bool,
        signer: Signer | None = None,
    ) -> None:
        """Send the events of the node `hostname` and, if `tasks` is true, of its tasks.

        `signer` signs the worker's own events.
        """
        self.tasks = tasks
        self.writer = EventWriter(hostname, clock, signer)
        self._received, self._started = self.writer.received, self.writer.started
        self._succeeded = self.writer.succeeded
        self._outbox = outbox
        self._keys = keys
        self._batch: deque[Stamped] = deque(maxlen=_KEPT)
        self._others: Backlog[Publication] = Backlog(_KEPT, _KEPT_BYTES, _size)
        outbox.collect = self._take

    # Every task passes through the next three methods.

    def received(self, message: TaskMessage) -> None:
        """Report that a task was received. Switches: no."""
        if not self._batch:
            self._outbox.wake()
        self._batch.append(self._received(message))

    def started(self, uuid: str) -> None:
        """Report that a task has started. Switches: no."""
        if not self._batch:
            self._outbox.wake()
        self._batch.append(self._started(uuid))

    def succeeded(self, uuid: str, result: str, runtime: float) -> None:
        """Report that a task has succeeded. Switches: no."""
        if not self._batch:
            self._outbox.wake()
        self._batch.append(self._succeeded(uuid, result, runtime))

    def send(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Queue an event for publication. Switches: no.

        Args:
            kind: the event's type, such as ``task-failed``.
            fields: the event's own fields, which must not change afterwards.

        Raises:
            EncodeError: a field of a custom event cannot be encoded as JSON.
        """
        event = self.writer.stamp(kind, fields)
        self._outbox.wake()
        if kind.startswith("task-"):
            self._batch.append(event)
        else:
            self._others.add(Publication(self.channel(kind), self.writer.write(event)))

    def channel(self, kind: str) -> str:
        """Return the channel for one kind of event."""
        return self._keys.fanout(EXCHANGE, routing_key(kind))

    def _take(self) -> list[Publication]:
        """Return the messages to publish: one for all task events, one for each other event."""
        publications = self._others.take_all()
        batch = self._batch
        if batch:
            taken = [batch.popleft() for _ in range(min(len(batch), _BATCH))]
            if batch:
                self._outbox.wake()
            text = self.writer.write_batch(taken)
            publications.append(Publication(self._keys.fanout(EXCHANGE, MULTI), text))
        return publications


def _size(publication: Publication) -> int:
    return len(publication.text)
