"""Heart: tell everybody now and then that this worker lives, and how it does."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from greenq import __version__
from greenq.bootsteps.blueprint import StartStopPart
from greenq.transport.settle import Publication
from greenq.watchdog.heartbeat import Heartbeat

if TYPE_CHECKING:
    from greenq.consumer.event_sender import Events
    from greenq.execution.state import WorkerState
    from greenq.pool import Pool
    from greenq.watchdog.hub_thread import Blocker
    from greenq.watchdog.thread import Watch

# Celery's, so that monitors that know it find the same.
INTERVAL_S = 2.0

_BEAT = "worker-heartbeat"

_SYSTEM = platform.system()


class Heart(StartStopPart):
    """Sends worker-online, then heartbeats, at last worker-offline.

    The watch thread publishes the heartbeats, so a worker whose hub is blocked is not held for
    dead; they say then what blocks it.
    """

    name = "Heart"
    requires = ("Events",)

    def __init__(
        self,
        events: Events,
        watch: Watch,
        pool: Pool,
        state: WorkerState,
        *,
        interval_s: float = INTERVAL_S,
    ) -> None:
        """Beat every `interval_s` seconds."""
        self._events = events
        self._watch = watch
        self._pool = pool
        self._state = state
        self._interval_s = interval_s

    def start(self) -> None:
        """Begin to beat."""
        self._events.send("worker-online", self.fields())
        self.beat()

    def stop(self) -> None:
        """Say good-bye."""
        self._watch.beat(None)
        self._events.send("worker-offline", self.fields())

    def beat(self) -> None:
        """Beat at once, and go on in the same interval."""
        self._watch.beat(Heartbeat(self._interval_s, self._write))

    def fields(self) -> dict[str, Any]:
        """Return what a worker's events tell; any thread may ask."""
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
        return Publication(self._events.channel(_BEAT), text)
