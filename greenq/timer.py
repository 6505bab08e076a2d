"""Delayed calls, kept in one heap and made in one greenlet."""

from __future__ import annotations

import heapq
import itertools
import logging
import time
from typing import TYPE_CHECKING

from greenq.bootsteps.blueprint import StartStopPart
from greenq.hub import Event, Greenlet, spawn, timer_s

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)


class TimerEntry:
    """A call due at a time on the monotonic clock; it is skipped if cancelled."""

    __slots__ = ("call", "due_s", "every_s", "number")

    def __init__(
        self, due_s: float, number: int, call: Callable[[], object], every_s: float | None
    ) -> None:
        """Store the time and the call; `number` orders entries that are due at the same time."""
        self.due_s = due_s
        self.number = number
        self.call: Callable[[], object] | None = call
        self.every_s = every_s

    def cancel(self) -> None:
        """Prevent the call from being made (again)."""
        self.call = None

    def __lt__(self, other: TimerEntry) -> bool:
        """Order by due time, then by age."""
        return (self.due_s, self.number) < (other.due_s, other.number)


class Timer(StartStopPart):
    """Calls functions when they are due, one after the other, in one greenlet.

    A call must be short and must not wait; for longer work, it must spawn a greenlet. Errors are
    logged.
    """

    name = "Timer"

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Use `clock`, which returns seconds."""
        self.clock = clock
        self._heap: list[TimerEntry] = []
        self._numbers = itertools.count()
        self._changed = Event()
        self._greenlet: Greenlet | None = None

    def call_after(self, delay_s: float, call: Callable[[], object]) -> TimerEntry:
        """Make the call once, `delay_s` from now."""
        return self._add(delay_s, call, None)

    def call_repeatedly(self, every_s: float, call: Callable[[], object]) -> TimerEntry:
        """Repeat the call every `every_s`, starting after `every_s`; missed calls are skipped."""
        return self._add(every_s, call, every_s)

    def __len__(self) -> int:
        """Return the number of entries, including cancelled ones until they are due."""
        return len(self._heap)

    def start(self) -> None:
        """Start making calls."""
        self._greenlet = spawn(self._run, name="timer", lasts=True)

    def stop(self) -> None:
        """Stop making calls, and drop all entries."""
        if self._greenlet is not None:
            self._greenlet.kill()
            self._greenlet = None
        self._heap.clear()

    def run_due(self) -> float | None:
        """Make all due calls; return the seconds until the next one, or None if there is none."""
        while self._heap:
            wait_s = self._heap[0].due_s - self.clock()
            if wait_s > 0:
                return wait_s
            entry = heapq.heappop(self._heap)
            call = entry.call
            if call is None:
                continue
            try:
                call()
            except Exception:
                _log.exception("a timer call failed: %r", call)
            if entry.every_s is not None and entry.call is not None:
                entry.due_s = self.clock() + entry.every_s
                heapq.heappush(self._heap, entry)
        return None

    def _add(self, delay_s: float, call: Callable[[], object], every_s: float | None) -> TimerEntry:
        entry = TimerEntry(self.clock() + timer_s(delay_s), next(self._numbers), call, every_s)
        heapq.heappush(self._heap, entry)
        if self._heap[0] is entry:
            self._changed.set()
        return entry

    def _run(self) -> None:
        while True:
            self._changed.clear()
            self._changed.wait(self.run_due())
