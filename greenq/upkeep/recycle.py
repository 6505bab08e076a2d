"""Recycle: ends the worker at a limit of tasks, memory or time, so that a new one replaces it.

Whether a limit is reached is a pure function of numbers (`reached`). Each worker lowers its limits
by a small random fraction, so that workers started together do not end together. The server also
lets only a few workers of a group restart at once.
"""

from __future__ import annotations

import logging
import os
import random
import resource
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from greenq.bootsteps.blueprint import StartStopPart
from greenq.errors import ConfigError, OperationalError, Problem
from greenq.hub import spawn
from greenq.protocol.text import listed
from greenq.utils.log import OutageLog

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.timer import Timer, TimerEntry

_log = logging.getLogger(__name__)

# The interval between checks of the limits, and between requests to restart.
_LOOK_S: Final = 0.25
_ASK_S: Final = 2.0

# No worker exits earlier than this: if a process exits as soon as it has started, a supervisor
# considers it broken, and gives up after some attempts.
LEAST_LIFE_S: Final = 5.0

# How long the next worker may take to start before it no longer counts as restarting.
_START_S: Final = 60.0

# A limit of fewer tasks per slot than this is probably meant for a process with one slot.
_FEW_TASKS: Final = 10

_PAGE_KB: Final = os.sysconf("SC_PAGE_SIZE") // 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RecycleLimits:
    """What a worker may use before it is replaced; None means no limit.

    Attributes:
        tasks: how many tasks it may finish.
        memory_kb: its resident memory, in units of 1024 bytes.
        lifetime_s: how long it may run.
    """

    tasks: int | None = None
    memory_kb: int | None = None
    lifetime_s: float | None = None

    def __bool__(self) -> bool:
        """Return whether there is any limit."""
        return self != RecycleLimits()

    def lowered(self, share: Callable[[], float]) -> RecycleLimits:
        """Return these limits, each lowered by a fraction from its own call of `share`."""
        tasks, memory_kb, lifetime_s = self.tasks, self.memory_kb, self.lifetime_s
        return RecycleLimits(
            tasks=tasks and max(1, round(tasks * (1 - share()))),
            memory_kb=memory_kb and round(memory_kb * (1 - share())),
            lifetime_s=lifetime_s and lifetime_s * (1 - share()),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a worker has used, as in `RecycleLimits`."""

    tasks: int
    memory_kb: int
    lifetime_s: float


def reached(limits: RecycleLimits, usage: Usage) -> str | None:
    """Return which limit has been reached, as text for the log; None if no limit has been."""
    if limits.tasks is not None and usage.tasks >= limits.tasks:
        return f"it has finished {usage.tasks} tasks; its limit is {limits.tasks}"
    if limits.memory_kb is not None and usage.memory_kb >= limits.memory_kb:
        return f"it uses {_mb(usage.memory_kb)} of memory; its limit is {_mb(limits.memory_kb)}"
    if limits.lifetime_s is not None and usage.lifetime_s >= limits.lifetime_s:
        return f"it has run for {usage.lifetime_s:.0f} s; its limit is {limits.lifetime_s:.0f} s"
    return None


def _mb(kb: int) -> str:
    return f"{kb / 1024:.1f} MB"


def resident_kb() -> int:
    """Return this process's resident memory in units of 1024 bytes.

    On a system without /proc, return the peak usage so far.
    """
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE_KB
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most // 1024 if sys.platform == "darwin" else most


class RestartGroup(Protocol):
    """The workers with the same queues that are currently restarting."""

    def claim(self, most: int, hold_s: float) -> list[str]:
        """Claim a restart; if this worker must wait, return those restarting. Switches: yes."""

    def returned(self) -> None:
        """Record that this worker has restarted. Switches: yes."""


class Recycle(StartStopPart):
    """Ends the worker when it reaches a limit; see the module's docstring."""

    name = "Recycle"
    requires = ("Timer", "Pool")

    def __init__(
        self,
        limits: RecycleLimits,
        timer: Timer,
        group: RestartGroup,
        *,
        slots: int,
        done: Callable[[], int],
        is_ready: Callable[[], bool],
        end: Callable[[str], object],
        at_once: int,
        jitter: float,
        grace_s: float,
        memory_kb: Callable[[], int] = resident_kb,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """End the worker at the first of `limits` that it reaches.

        Args:
            slots: how many tasks run at once.
            done: returns how many tasks have been finished here.
            is_ready: returns whether this worker takes messages.
            end: ends the worker for the given reason.
            at_once: how many workers of the group may restart at once.
            jitter: the largest fraction by which a limit is lowered.
            grace_s: how long running tasks may take to finish.
            memory_kb: returns the memory used.
            clock: monotonic time in seconds.

        Raises:
            ConfigError: this process already uses more memory than its limit.
        """
        self.limits = limits.lowered(lambda: random.random() * jitter)
        self._given, self._slots = limits, slots
        self._timer, self._group = timer, group
        self._done, self._is_ready, self._end = done, is_ready, end
        self._at_once, self._hold_s = at_once, grace_s + _START_S
        self._memory_kb, self._clock = memory_kb, clock
        self._began_s = clock()
        self._asks_s = self._began_s
        self._is_back = self._is_asking = self._waits = False
        self._outage = OutageLog(_log)
        self._entry: TimerEntry | None = None
        used_kb = memory_kb()
        if self.limits.memory_kb is not None and used_kb >= self.limits.memory_kb:
            reason = f"this worker uses {used_kb} kB before its first task"
            raise ConfigError([Problem("worker_max_memory_per_child", limits.memory_kb, reason)])

    def start(self) -> None:
        """Start checking the limits."""
        tasks = self._given.tasks
        if tasks is not None and tasks < self._slots * _FEW_TASKS:
            _log.warning(
                "this worker ends after %d tasks, although it runs %d at once: "
                "worker_max_tasks_per_child counts all of its tasks, since it has no child "
                "processes", tasks, self._slots,
            )  # fmt: skip
        self._entry = self._timer.call_repeatedly(_LOOK_S, self.look)

    def stop(self) -> None:
        """Stop checking."""
        if self._entry is not None:
            self._entry.cancel()
            self._entry = None

    def usage(self) -> Usage:
        """Return what this worker has used so far."""
        return Usage(
            tasks=self._done(),
            memory_kb=self._memory_kb() if self.limits.memory_kb is not None else 0,
            lifetime_s=self._clock() - self._began_s,
        )

    def look(self) -> None:
        """Report once that this worker is ready; at a limit, ask to restart. Switches: no."""
        now_s = self._clock()
        if self._is_asking or now_s < self._asks_s:
            return
        if not self._is_back:
            if self._is_ready():
                self._ask(self._return)
        elif now_s >= self._began_s + LEAST_LIFE_S:
            why = reached(self.limits, self.usage())
            if why is not None:
                self._ask(lambda: self._leave(why))

    def _ask(self, ask: Callable[[], None]) -> None:
        self._is_asking = True
        self._asks_s = self._clock() + _ASK_S
        spawn(self._try, ask, name="recycle")

    def _try(self, ask: Callable[[], None]) -> None:
        try:
            ask()
        except OperationalError as exc:
            self._outage.failed("this worker cannot ask the server whether it may restart", exc)
        else:
            self._outage.recovered("this worker can ask again whether it may restart")
        finally:
            self._is_asking = False

    def _return(self) -> None:
        self._group.returned()
        self._is_back = True

    def _leave(self, why: str) -> None:
        away = self._group.claim(self._at_once, self._hold_s)
        if not away:
            self.stop()
            self._end(f"recycled: {why}")
        elif not self._waits:
            self._waits = True
            _log.info(
                "this worker is due for a restart (%s) and is waiting for %s", why, listed(away)
            )

    def info(self) -> dict[str, object]:
        """Return the limits and the usage."""
        limits, usage = self.limits, self.usage()
        return {
            name: {"used": getattr(usage, name), "limit": getattr(limits, name)}
            for name in ("tasks", "memory_kb", "lifetime_s")
            if getattr(limits, name) is not None
        }
