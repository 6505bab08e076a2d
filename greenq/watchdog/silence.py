"""Finds periods in which no Python code ran in this process, and explains them."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.hub import NativeThread
    from greenq.watchdog.hub_thread import Blocker, HubThread

_log = logging.getLogger(__name__)


class SilenceMonitor:
    """Notices when the watchdog thread slept for much longer than intended."""

    def __init__(
        self,
        hub_thread: HubThread,
        found: Callable[[Blocker], object],
        noticeable_s: float,
        now_s: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        """Report silences: periods in which no Python code ran.

        Args:
            hub_thread: shows what the hub was doing.
            found: called with what the hub was doing.
            noticeable_s: a silence that lasts at least this long is reported.
            now_s: seconds, including any time during which the machine was suspended.
            clock: seconds, monotonic, excluding that time.
        """
        self._hub_thread = hub_thread
        self._noticeable_s = noticeable_s
        self._found = found
        self._now_s = now_s
        self._clock = clock

    def wait(self, thread: NativeThread, pause_s: float, *descriptors: int) -> bool:
        """Let `thread` wait; log if no Python code ran for far longer; return True if it ends."""
        began_s, awake_s, cpu_s = self._now_s(), self._clock(), time.process_time()
        is_over = thread.wait(pause_s, *descriptors)
        late_s = self._now_s() - began_s - pause_s
        if late_s >= self._noticeable_s:
            suspended_s = late_s - (self._clock() - awake_s - pause_s)
            # The thread that held the GIL has only just released it.
            blocker = self._hub_thread.blocker(late_s)
            self._found(blocker)
            _log.warning(
                "%s; the hub is at %s, in %s",
                account(late_s, time.process_time() - cpu_s, suspended_s),
                blocker.where, blocker.by,
            )  # fmt: skip
        return is_over


def account(gap_s: float, cpu_s: float, suspended_s: float = 0.0) -> str:
    """Explain why the watchdog thread did not run for `gap_s` of wall-clock time.

    Args:
        gap_s: seconds of wall-clock time.
        cpu_s: the CPU time that the process used during the gap. A call that computes while holding
            the GIL uses CPU time during the whole gap; a call that waits while holding the GIL
            cannot be distinguished from a suspended process.
        suspended_s: how long the machine was suspended during the gap (how much further
            CLOCK_BOOTTIME advanced than CLOCK_MONOTONIC).
    """
    silence = f"no Python code ran in this process for {gap_s:.1f} s"
    if suspended_s >= gap_s / 2:
        return f"{silence}: the machine was suspended"
    if cpu_s >= gap_s / 2:
        return f"{silence}: a call held the GIL (and computed for {cpu_s:.1f} s)"
    return (
        f"{silence}, and it hardly computed ({cpu_s:.1f} s): it was stopped, got no CPU, or a call "
        "held the GIL while it waited"
    )
