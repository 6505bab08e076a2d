"""Heart: regularly publishes that this worker is alive, and reports its state."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from greenq.bootsteps.blueprint import StartStopPart
from greenq.signals import heartbeat_sent
from greenq.transport.settle import Publication
from greenq.utils.version import __version__
from greenq.watchdog.heartbeat import Heartbeat

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.consumer.event_sender import EventsStep
    from greenq.execution.state import WorkerState
    from greenq.pool import Pool
    from greenq.watchdog.hub_thread import Blocker
    from greenq.watchdog.thread import Watch

# Celery's interval, which monitors expect.
INTERVAL_S = 2.0

_BEAT = "worker-heartbeat"

_SYSTEM = platform.system()


class Heart(StartStopPart):
    """Sends worker-online, then heartbeats, and finally worker-offline.

    The watchdog thread publishes the heartbeats, so a worker whose hub is blocked does not seem
    dead; its heartbeats name what blocks it.
    """

    name = "Heart"
    requires = ("Events",)

    def __init__(
        self,
        events: EventsStep,
        watch: Watch,
        pool: Pool,
        state: WorkerState,
        *,
        interval_s: float = INTERVAL_S,
        spawn_soon: Callable[..., object] | None = None,
    ) -> None:
        """Send a heartbeat every `interval_s` seconds.

        `spawn_soon` starts a greenlet from another thread, for the receivers of heartbeat_sent.
        """
        self._events = events
        self._watch = watch
        self._pool = pool
        self._state = state
        self._interval_s = interval_s
        self._spawn_soon = spawn_soon
        # True while the receivers of a heartbeat are running.
        self._telling = False

    def start(self) -> None:
        """Announce this worker and start the heartbeats."""
        self._events.send("worker-online", self.fields())
        self.beat()

    def stop(self) -> None:
        """Stop the heartbeats and announce that this worker is leaving."""
        self._watch.beat(None)
        self._events.send("worker-offline", self.fields())

    def beat(self) -> None:
        """Send a heartbeat immediately, then continue at the same interval."""
        self._watch.beat(Heartbeat(self._interval_s, self._write))

    def fields(self) -> dict[str, Any]:
        """Return the fields of a worker's events; any thread may call this."""
        return {
            "freq": self._interval_s,
            "active": self._pool.running,
            "processed": self._state.total.total(),
            "loadavg": [round(load, 2) for load in os.getloadavg()],
            "sw_ident": "greenq",
            "sw_ver": __version__,
            "sw_sys": _SYSTEM,
        }

    def _write(self, blocker: Blocker | None) -> Publication:
        fields = self.fields()
        if blocker is not None:
            fields["blocked"] = asdict(blocker)
        writer = self._events.writer
        text = writer.write(writer.stamp(_BEAT, fields))
        if heartbeat_sent.receivers and self._spawn_soon is not None and not self._telling:
            self._telling = True
            self._spawn_soon(self._tell, name="heartbeat_sent")
        return Publication(self._events.channel(_BEAT), text)

    def _tell(self) -> None:
        """Send heartbeat_sent in a greenlet, since a receiver could block the watchdog thread."""
        try:
            heartbeat_sent.send(self)
        finally:
            self._telling = False
