"""`Parts`: everything that a worker consists of, by name."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from greenq.app import Greenq
    from greenq.autoscale import Autoscaler
    from greenq.beat.step import Beat
    from greenq.consumer.connection import ConnectionStep
    from greenq.consumer.event_sender import EventsStep
    from greenq.consumer.gossip import Gossip
    from greenq.consumer.heart import Heart
    from greenq.consumer.mingle import Mingle
    from greenq.consumer.queue_set import QueueSet
    from greenq.consumer.remote_control import ControlStep
    from greenq.consumer.revokes import Revokes
    from greenq.consumer.tasks import Tasks
    from greenq.execution.state import WorkerState
    from greenq.execution.statedb import StateDB
    from greenq.execution.stopped_workflows import StoppedWorkflows
    from greenq.hub import Hub, Signals
    from greenq.pool import Pool
    from greenq.supervision.controller import Processes
    from greenq.timer import Timer
    from greenq.transport.fetch import Fetcher
    from greenq.transport.outbox import Outbox
    from greenq.transport.owner import Owner
    from greenq.upkeep.autoreload import Autoreloader
    from greenq.upkeep.recycle import Recycle
    from greenq.watchdog.thread import Watch


class Life(Protocol):
    """A worker's life cycle, as seen by its parts."""

    def stop(self, why: str = "") -> None:
        """Shut down warm."""

    def restart(self, why: str = "") -> None:
        """Shut down warm, and restart the process."""

    def recycle(self, why: str) -> None:
        """Shut down warm because a limit has been reached."""

    def give_up(self, error: Exception) -> None:
        """End a worker that cannot continue."""

    def crashed(self, what: str, error: BaseException) -> None:
        """End the worker because a part of it has failed."""

    def info(self) -> dict[str, Any]:
        """Return the information from the worker's steps for the command `stats`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """All parts of a worker; remote control commands receive this.

    Attributes:
        app: the app whose tasks run.
        hostname: the node name.
        owner: this incarnation of the worker, as the owner of messages.
        started_s: when the worker was created, in seconds of the monotonic clock.
        life: lets the parts stop the worker.
        autoreloader, autoscaler, processes, beat, recycle, state_db, mingle, gossip, control,
            heart, stopped_workflows: None if switched off.
    """

    app: Greenq
    hostname: str
    owner: Owner
    started_s: float
    life: Life
    state: WorkerState
    timer: Timer
    hub: Hub
    signals: Signals
    watch: Watch
    outbox: Outbox
    events: EventsStep
    pool: Pool
    fetcher: Fetcher
    tasks: Tasks
    queues: QueueSet
    autoreloader: Autoreloader | None
    autoscaler: Autoscaler | None
    processes: Processes | None
    beat: Beat | None
    recycle: Recycle | None
    state_db: StateDB | None
    revokes: Revokes
    connection: ConnectionStep
    mingle: Mingle | None
    gossip: Gossip | None
    control: ControlStep | None
    heart: Heart | None
    stopped_workflows: StoppedWorkflows | None

    @property
    def uptime_s(self) -> float:
        """Seconds since the worker was created."""
        return time.monotonic() - self.started_s
