"""Detects a blocked hub: what blocks it, for how long, and whether that is too long."""

from __future__ import annotations

import logging
import math
from collections import deque
from typing import TYPE_CHECKING

from greenq.errors import OperationalError

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.hub import Hub
    from greenq.watchdog.ending import Ending
    from greenq.watchdog.hooks import WatchLimits
    from greenq.watchdog.hub_thread import Blocker, HubThread

_log = logging.getLogger(__name__)

# How often the hub is pinged.
LOOK_S = 0.5

# After how many seconds the blocker is logged again; the last interval repeats.
_NAMED_AGAIN_S = (10.0, 60.0, 300.0)

# How many blockers are remembered.
_BLOCKERS = 100


class HubMonitor:
    """Pings the hub, and acts if it does not answer.

    1. Log when the hub has been blocked for a while, with the task, its line and its stack, and
       log when the hub runs again.
    2. While the hub is blocked, give messages that this worker has not begun to other workers.
    3. End the process when the hub has been blocked for too long.
    """

    def __init__(
        self,
        hub: Hub,
        hub_thread: HubThread,
        ending: Ending,
        limits: WatchLimits,
        *,
        give_away: Callable[[], object],
        clock: Callable[[], float],
    ) -> None:
        """Monitor `hub`, which runs in `hub_thread`.

        Args:
            ending: ends the process.
            limits: how long the hub may be blocked.
            give_away: requeues messages that have not begun; may raise OperationalError.
            clock: seconds, monotonic.
        """
        self._hub = hub
        self._hub_thread = hub_thread
        self._ending = ending
        self._blocked_after_s = limits.blocked_after_s
        self._blocked_limit_s = limits.blocked_limit_s
        self._give_away = give_away
        self._clock = clock
        # The time of the last ping, and when to check for its answer.
        self.asked_s = self.due_s = -math.inf
        # What blocks the hub, if it is known to be blocked, and when to log this again.
        self._blocked: Blocker | None = None
        self._name_again_s = math.inf
        # How many times the hub was blocked, and by what; the watchdog thread writes these, and any
        # thread may read them.
        self.block_count = 0
        self.blockers: deque[Blocker] = deque(maxlen=_BLOCKERS)

    def look(self) -> None:
        """Ping the hub; if it has not answered for too long, log what is blocking it."""
        now = self._clock()
        self.due_s = now + min(LOOK_S, self._blocked_after_s)
        blocked = self._blocked
        if self._hub.moved_s >= self.asked_s:
            if blocked is not None or not self._hub.rests():
                self.ask()
            return
        still_s = now - self.asked_s
        if blocked is not None:
            blocked.for_s = still_s
            self._still_blocked(blocked)
        elif still_s < self._blocked_after_s:
            self.due_s = self.asked_s + self._blocked_after_s
        else:
            self._newly_blocked(still_s)

    def ask(self) -> None:
        """Ping the hub unless an answer is outstanding; log a late answer."""
        if self._hub.moved_s < self.asked_s:
            return
        blocked, self._blocked = self._blocked, None
        if blocked is not None:
            blocked.for_s = self._hub.lag_s
            _log.warning("the hub runs again; it was blocked for %.1f s", blocked.for_s)
        self.asked_s = self._clock()
        self._hub.ping()

    def has_moved_since(self, moment_s: float) -> bool:
        """Return whether the hub has run since `moment_s`, by the clock."""
        return self._hub.moved_s >= moment_s

    def is_still(self, patience_s: float) -> bool:
        """Return whether the hub has not answered the last ping for at least `patience_s`."""
        return self._hub.moved_s < self.asked_s <= self._clock() - patience_s

    def blocking(self, patience_s: float = LOOK_S) -> Blocker | None:
        """Return what is blocking the hub, or None; must not be called in the hub's thread.

        Args:
            patience_s: consider the hub blocked if it has not answered for this long.
        """
        if not self.is_still(patience_s):
            return None
        return self._hub_thread.blocker(self._clock() - self.asked_s)

    def _newly_blocked(self, still_s: float) -> None:
        """Log what is blocking the hub, and let other workers run the messages waiting here."""
        blocked = self._hub_thread.blocker(still_s)
        self._blocked = blocked
        self.block_count += 1
        self.blockers.append(blocked)
        self._name_again_s = _next_naming_s(still_s)
        self._hub_thread.log(
            logging.WARNING,
            "the hub has been blocked for %.1f s by %s at %s; no other task can run\n%s",
            still_s, blocked.by, blocked.where, self._hub_thread.stack(),
        )  # fmt: skip
        try:
            self._give_away()
        except OperationalError as exc:
            _log.info("messages that have not begun here wait until the hub runs again: %s", exc)

    def _still_blocked(self, blocked: Blocker) -> None:
        """Log the blocker again if due; end the process if the hub was blocked for too long."""
        if 0 < self._blocked_limit_s <= blocked.for_s:
            self._ending.abandon(
                f"the hub has been blocked for {blocked.for_s:.0f} s by {blocked.by} at "
                f"{blocked.where}, longer than worker_hub_blocked_limit "
                f"({self._blocked_limit_s:g} s)",
                by_task=True,
            )
        elif blocked.for_s >= self._name_again_s:
            self._name_again_s = _next_naming_s(blocked.for_s)
            now = self._hub_thread.blocker(blocked.for_s)
            blocked.by, blocked.where = now.by, now.where
            self._hub_thread.log(
                logging.WARNING,
                "the hub is still blocked, for %.0f s now, by %s at %s; no other task can run",
                blocked.for_s, blocked.by, blocked.where,
            )  # fmt: skip


def _next_naming_s(blocked_s: float) -> float:
    """Return after how many seconds in total to log again what blocks the hub."""
    for due_s in _NAMED_AGAIN_S:
        if blocked_s < due_s:
            return due_s
    every_s = _NAMED_AGAIN_S[-1]
    return (blocked_s // every_s + 1) * every_s
