"""The autoscaler: the pool's size follows the backlog.

The decision is a pure function of numbers (`decide`). It is made at every tick, and also
immediately when a take leaves messages in the queues. The autoscaler only resizes the pool; the
number of messages taken depends on the pool's size. If `worker_autoscale_adaptive` is on, slots
that do not raise the number of tasks finished per second are not used (greenq/upkeep/adaptive.py).
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from greenq.bootsteps.blueprint import StartStopPart
from greenq.upkeep.adaptive import PoolSnapshot

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.hub import Hub
    from greenq.pool import Pool
    from greenq.timer import Timer, TimerEntry
    from greenq.upkeep.adaptive import Adaptive

_log = logging.getLogger(__name__)

# How many decisions the history keeps.
_HISTORY = 1000

# Above this lag the pool does not grow, since more greenlets would only wait for the hub.
SATURATED_LAG_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The input of a decision.

    Attributes:
        size: the current number of slots.
        running: the number of slots in use.
        backlog: the number of messages in the queues, plus those waiting in this worker for a slot.
        recent_need: the largest number of slots needed at any time within the keepalive.
        least, most: the limits of the size.
        lag_s: the hub's delay, in seconds.
    """

    size: int
    running: int
    backlog: int
    recent_need: int
    least: int
    most: int
    lag_s: float = 0.0


class NewSize(NamedTuple):
    """The new size and the reason for it."""

    size: int
    reason: str


class SizeRecord(NamedTuple):
    """A decision in the history; `at_s` is when it was made, in Unix time."""

    at_s: float
    backlog: int
    running: int
    size: int
    reason: str


def needed(load: Load) -> int:
    """Return how many slots this load needs, within the limits."""
    return min(max(load.running + load.backlog, load.least), load.most)


def decide(load: Load) -> NewSize:
    """Return the size for a load: grow immediately, but shrink only to the largest recent need."""
    if load.size < load.least:
        return NewSize(load.least, "below the minimum")
    if load.size > load.most:
        return NewSize(load.most, "above the maximum")
    wanted = needed(load)
    if wanted > load.size:
        if load.lag_s >= SATURATED_LAG_S:
            return NewSize(load.size, f"the hub runs {load.lag_s:.2f} s late: not growing")
        return NewSize(wanted, f"{load.backlog} waiting")
    kept = max(wanted, load.recent_need)
    if kept < load.size:
        return NewSize(kept, f"at most {kept} needed recently")
    return NewSize(load.size, "steady")


class Autoscaler(StartStopPart):
    """Keeps the pool's size within limits; see the module's docstring."""

    name = "Autoscaler"
    requires = ("Timer", "Hub", "Pool")

    def __init__(
        self,
        pool: Pool,
        timer: Timer,
        hub: Hub,
        *,
        most: int,
        least: int,
        keepalive_s: float,
        interval_s: float,
        backlog: Callable[[], int],
        adaptive: Adaptive | None = None,
        ended: Callable[[], tuple[int, float]] = lambda: (0, 0.0),
        is_empty: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Resize `pool` between `least` and `most`.

        Args:
            keepalive_s: how long an unneeded size is kept.
            interval_s: seconds between ticks.
            backlog: returns the number of messages waiting here and in the queues; must not wait.
            adaptive: finds out how many slots are worthwhile; None means that all needed slots are
                used.
            ended: returns how many tasks have ended, and their total duration.
            is_empty: returns whether this worker holds no messages; if so, and the pool has its
                smallest size, there is nothing to decide until `resume`.
            clock: monotonic time in seconds.
        """
        self.most, self.least = most, least
        self.history: deque[SizeRecord] = deque(maxlen=_HISTORY)
        self._pool, self._timer, self._hub = pool, timer, hub
        self._keepalive_s, self._interval_s = keepalive_s, interval_s
        self._backlog, self._clock = backlog, clock
        self._adaptive, self._ended, self._is_empty = adaptive, ended, is_empty
        # Needs seen within the keepalive as (expiry, slots), most slots first.
        self._needs: deque[tuple[float, int]] = deque()
        # None while the autoscaler is stopped, and while there is nothing to decide.
        self._entry: TimerEntry | None = None
        self._runs = False

    def start(self) -> None:
        """Start ticking."""
        self._runs = True
        self.resume()

    def stop(self) -> None:
        """Stop ticking, and leave the pool as it is."""
        self._runs = False
        self._rest()

    def resume(self) -> None:
        """Resume ticking, since this worker has taken messages. Switches: no."""
        if self._entry is None and self._runs:
            self._entry = self._timer.call_repeatedly(self._interval_s, self.tick)

    def _rest(self) -> None:
        if self._entry is not None:
            self._entry.cancel()
            self._entry = None

    def set_limits(self, most: int, least: int) -> None:
        """Change the limits, and resize the pool immediately."""
        self.most, self.least = most, least
        self.tick()

    def tick(self) -> None:
        """Decide and resize. Switches: no."""
        load = self._load()
        if self._adaptive is not None:
            load = self._adapt(self._adaptive, load)
        decision = decide(load)
        last = self.history[-1] if self.history else None
        if last is None or (decision.size, decision.reason) != (last.size, last.reason):
            self.history.append(
                SizeRecord(time.time(), load.backlog, load.running, decision.size, decision.reason)
            )
        if decision.size != load.size:
            _log.info("pool %d -> %d: %s", load.size, decision.size, decision.reason)
            self._pool.resize(decision.size)
        is_least = load.size == decision.size == load.least and not load.running + load.backlog
        if is_least and self._adaptive is None and self._is_empty():
            self._rest()
        else:
            self.resume()

    def _load(self) -> Load:
        now = self._clock()
        load = Load(
            size=self._pool.size,
            running=self._pool.running,
            backlog=self._backlog(),
            recent_need=0,
            least=self.least,
            most=self.most,
            lag_s=self._hub.lag_s,
        )
        need = needed(load)
        while self._needs and (self._needs[0][0] <= now):
            self._needs.popleft()
        while self._needs and self._needs[-1][1] <= need:
            self._needs.pop()
        self._needs.append((now + self._keepalive_s, need))
        return replace(load, recent_need=self._needs[0][1])

    def _adapt(self, adaptive: Adaptive, load: Load) -> Load:
        """Return the load with its maximum lowered to the worthwhile size."""
        look = PoolSnapshot(self._clock(), load.size, load.running, load.backlog, *self._ended())
        found = adaptive.look(look, self.most, self.least)
        most = adaptive.limit(self.most, self.least)
        if found is not None:
            _log.info("pool limited to %d: %s", most, found)
            self.history.append(SizeRecord(time.time(), load.backlog, load.running, most, found))
        return replace(load, most=most)

    def info(self) -> dict[str, object]:
        """Return the limits and the pool's size."""
        return {
            "max": self.most,
            "min": self.least,
            "current": self._pool.size,
            "qty": self._pool.running,
        }
