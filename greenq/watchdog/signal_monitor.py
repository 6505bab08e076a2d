"""Signals that arrive while the hub is blocked."""

from __future__ import annotations

import logging
import math
import signal
from typing import TYPE_CHECKING

from greenq.watchdog.hub_monitor import LOOK_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.hub import Signals
    from greenq.watchdog.ending import Ending
    from greenq.watchdog.hub_monitor import HubMonitor
    from greenq.watchdog.hub_thread import HubThread

# The urgency of each signal. Once the sum of the urgencies reaches two, the process ends with or
# without its hub.
_STOPPING: dict[int, int] = {signal.SIGTERM: 1, signal.SIGINT: 1, signal.SIGQUIT: 2}

# How long the hub gets to stop by itself when the worker must end immediately.
_LEAVE_AFTER_S = 1.0


class SignalMonitor:
    """Records signals, and acts on them in place of a blocked hub."""

    def __init__(
        self,
        signals: Signals | None,
        monitor: HubMonitor,
        hub_thread: HubThread,
        ending: Ending,
        *,
        clock: Callable[[], float],
    ) -> None:
        """Read `signals`; None means that there are none to read."""
        self._signals = signals
        self._monitor = monitor
        self._hub_thread = hub_thread
        self._ending = ending
        self._clock = clock
        # The sum of the urgencies so far, and the time of the last signal.
        self._stops = 0
        self._signalled_s = -math.inf
        # Signals that the hub has not acted on yet, and when to check again.
        self._waiting: set[int] = set()
        self.due_s = math.inf

    def fileno(self) -> int:
        """Return the descriptor to wait on; -1 if there is none."""
        return -1 if self._signals is None else self._signals.fileno()

    def check(self) -> None:
        """Record the signals that have arrived; a running hub acts on them itself."""
        if self._signals is None:
            return
        for number in self._signals.read():
            if number in _STOPPING:
                self._stops += _STOPPING[number]
            elif number != signal.SIGUSR1:
                continue
            self._waiting.add(number)
            self._signalled_s = self._clock()
            patience_s = _LEAVE_AFTER_S if self._stops > 1 else LOOK_S
            self.due_s = self._signalled_s + patience_s
            self._monitor.ask()
        if self._clock() >= self.due_s:
            self.due_s = math.inf
            waiting, self._waiting = self._waiting, set()
            if not self._monitor.has_moved_since(self._signalled_s):
                self._act(self._signals, waiting)

    def _act(self, signals: Signals, waiting: set[int]) -> None:
        """Act on the signals that the blocked hub has not acted on."""
        blocked = self._hub_thread.blocker(
            self._clock() - min(self._monitor.asked_s, self._signalled_s)
        )
        if signal.SIGUSR1 in waiting:
            signals.done(signal.SIGUSR1)
            self._hub_thread.log(logging.WARNING, "%s", self._hub_thread.stacks())
        if not waiting & _STOPPING.keys():
            return
        if self._stops > 1:
            self._ending.abandon(
                f"asked to stop immediately, but the hub has been blocked for {blocked.for_s:.1f} "
                f"s "
                f"by {blocked.by} at {blocked.where}"
            )
            return
        self._hub_thread.log(
            logging.WARNING,
            "asked to stop, but the hub has been blocked for %.1f s by %s at %s; the worker stops "
            "when the hub runs again; a second SIGTERM or SIGINT, or SIGQUIT, ends the worker "
            "immediately and requeues its messages",
            blocked.for_s, blocked.by, blocked.where,
        )  # fmt: skip
