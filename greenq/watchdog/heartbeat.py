"""The heartbeat that the watchdog thread publishes for its worker."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.transport.settle import Publication
    from greenq.watchdog.hub_monitor import HubMonitor
    from greenq.watchdog.hub_thread import Blocker


class Heartbeat(NamedTuple):
    """A heartbeat: its interval in seconds, and a function that writes it.

    The function is called in the watchdog thread with what blocks the hub, or None.
    """

    every_s: float
    write: Callable[[Blocker | None], Publication]


class HeartbeatSchedule:
    """Schedules heartbeats so that most of them are sent along with a renewal of the lease."""

    def __init__(
        self, monitor: HubMonitor, *, renew_every_s: float, clock: Callable[[], float]
    ) -> None:
        """Create a schedule without a heartbeat; the lease is renewed every `renew_every_s`."""
        self._monitor = monitor
        self._renew_every_s = renew_every_s
        self._clock = clock
        self.beat: Heartbeat | None = None
        self._due_s = math.inf
        # How early or late a heartbeat may be sent so that a renewal can include it.
        self._slack_s = 0.0

    def set(self, beat: Heartbeat | None) -> None:
        """Publish `beat` from now on, starting immediately; None stops it.

        Each heartbeat is sent with the renewal of the lease that is closest in time, if there is
        one. Any thread may call this.
        """
        self.beat = beat
        self._due_s = -math.inf if beat is not None else math.inf
        rides = beat is not None and beat.every_s > self._renew_every_s
        self._slack_s = self._renew_every_s / 2 if rides else 0.0

    @property
    def latest_s(self) -> float:
        """When to publish the heartbeat on its own if no renewal has included it."""
        return self._due_s + self._slack_s

    def with_renewal(self, now_s: float) -> Publication | None:
        """Return the heartbeat if a renewal at `now_s` should include it."""
        return self._next(now_s + self._slack_s)

    def alone(self) -> Publication | None:
        """Return the heartbeat if no renewal has included it in time."""
        return self._next(self._clock() - self._slack_s)

    def _next(self, until_s: float) -> Publication | None:
        beat = self.beat
        if beat is None or self._due_s > until_s:
            return None
        now = self._clock()
        next_s = self._due_s + beat.every_s
        # After the first heartbeat, and after a pause, the interval starts again.
        self._due_s = next_s if next_s > now else now + beat.every_s
        return beat.write(self._monitor.blocking())
