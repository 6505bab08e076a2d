"""How many concurrent tasks are worthwhile: a limit found by comparing pool sizes.

A slow database or an API that throttles does not answer more calls per second when there are more
greenlets; each call merely takes longer. So the autoscaler watches the mean duration of tasks
while the pool is full and messages are waiting. When that duration is longer than it was in a pool
that was not full, a smaller size is tried. If as many tasks end per second, the smaller size is
kept; otherwise the larger size is restored. Later, a larger size is tried in the same way.
Durations alone prove nothing, since the mix of tasks may have changed; only the comparison of rates
decides.

The code is pure: the time and all numbers are arguments.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

# Tasks that take this many times as long as usual raise a suspicion.
_SUSPECT: Final = 1.3

# If rates were proportional to sizes, a smaller pool would lose some of the rate. It is kept if it
# avoids at least the first fraction of that loss. A larger pool is kept if it achieves at least the
# second fraction of the corresponding gain.
_KEEPS: Final = 0.5
_GAINS: Final = 0.2

# Factors for the sizes to try: room above the size that the usual duration suggests; smaller sizes,
# in ever larger steps while the usual duration is unknown; larger sizes.
_ROOM: Final = 1.2
_SMALLER: Final = 0.8
_DOWN: Final = 0.7
_LEAST_DOWN: Final = 0.2
_UP: Final = 1.2

# A measurement needs at least this many finished tasks and this much time.
_ENDED: Final = 50
_MEASURED_S: Final = 1.0

# A measurement continues until the results of two methods differ by at most this fraction, or until
# each slot has finished this many tasks on average.
_AGREE: Final = 0.1
_MOST_ROUNDS: Final = 8

# The first and the longest pause before a larger size is tried.
_HOLD_S: Final = 15.0
_MOST_HOLD_S: Final = 120.0

# The fraction by which the usual duration moves towards a longer one.
_FOLLOW: Final = 0.05


class PoolSnapshot(NamedTuple):
    """The state of the pool at one moment.

    Attributes:
        at_s: the time of the sample, by the monotonic clock.
        size, running: the number of slots, and the number of slots in use.
        backlog: how many messages are waiting.
        ended: how many tasks have ended so far.
        ended_s: the sum of the durations of these tasks, in seconds.
    """

    at_s: float
    size: int
    running: int
    backlog: int
    ended: int
    ended_s: float


class _Size(NamedTuple):
    """The measured performance of a pool size: mean duration, and tasks per second."""

    size: int
    each_s: float

    @property
    def rate(self) -> float:
        """How many tasks end per second, by Little's law; this holds because the pool was full."""
        return self.size / self.each_s

    def __str__(self) -> str:
        return (
            f"{self.size} at once finish {self.rate:.1f} tasks a second, {self.each_s:.2f} s each"
        )


class _Trial(NamedTuple):
    """A size that is being tried.

    Attributes:
        known: the performance of the size before the trial.
        size: the size on trial.
        cap: the limit before the trial, or None.
    """

    known: _Size
    size: int
    cap: int | None


class Adaptive:
    """Finds the limit; see the module's docstring."""

    def __init__(self) -> None:
        """Create an object that has no limit and no measurements yet."""
        # The limit found, or None.
        self._cap: int | None = None
        # The mean duration of tasks in a pool that was not full.
        self._usual_s: float | None = None
        self._trial: _Trial | None = None
        # How many times in a row a smaller size was tried without knowing the usual duration.
        self._steps = 0
        # The best rate since the first of those trials.
        self._best = 0.0
        self._hold_s = _HOLD_S
        self._next_s = -math.inf
        # `_mark` is the sample with which settling started. `_begin` is the sample with which the
        # present measurement started, or None while the pool settles.
        self._mark: PoolSnapshot | None = None
        self._begin: PoolSnapshot | None = None

    def limit(self, most: int, least: int) -> int:
        """Return the largest worthwhile number of slots, between `least` and `most`."""
        wanted = self._trial.size if self._trial is not None else self._cap
        return most if wanted is None else min(most, max(least, wanted))

    def look(self, now: PoolSnapshot, most: int, least: int) -> str | None:
        """Record a sample of the pool; if the limit changes, return the reason as text."""
        if not now.backlog:
            self._learn(now)
            return None
        found = self._measure(now)
        if found is None:
            return None
        if self._trial is None:
            return self._consider(now, found, most, least)
        if found.size < self._trial.known.size:
            return self._judge_smaller(now, self._trial, found, least)
        return self._judge_larger(now, self._trial, found, most)

    # --- measuring --------------------------------------------------------------------------------

    def _learn(self, now: PoolSnapshot) -> None:
        """Learn the usual duration from a pool that has free slots; abandon any trial."""
        if self._trial is not None:
            self._cap, self._trial = self._trial.cap, None
        begin = self._begin
        if begin is None or begin.backlog or now.running > now.size // 2:
            self._mark, self._begin = None, now
            return
        each_s = _mean(begin, now)
        if each_s is None:
            return
        self._begin = now
        if self._usual_s is None or each_s < self._usual_s:
            self._usual_s = each_s
        else:
            self._usual_s += _FOLLOW * (each_s - self._usual_s)

    def _measure(self, now: PoolSnapshot) -> _Size | None:
        """Return the performance of the present size once the full pool has been measured."""
        mark, begin = self._mark, self._begin
        if mark is None or mark.size != now.size or now.running > now.size:
            self._mark, self._begin = now, None
            return None
        if begin is None:
            # As many tasks have ended as there are slots, so the former size no longer matters.
            if now.ended - mark.ended >= now.size and now.running >= 0.9 * now.size:
                self._begin = now
            return None
        if now.ended - begin.ended < now.size:
            return None
        each_s = _mean(begin, now)
        if each_s is None:
            return None
        # Counting tasks misleads while tasks of equal length all end at the same time. Adding up
        # their durations misleads if their lengths differ and the long ones are still running.
        ended = now.ended - begin.ended
        by_number_s = (now.at_s - begin.at_s) * now.size / ended
        if abs(each_s / by_number_s - 1) > _AGREE and ended < _MOST_ROUNDS * now.size:
            return None
        self._begin = now
        return _Size(now.size, by_number_s)

    # --- deciding ---------------------------------------------------------------------------------

    def _consider(self, now: PoolSnapshot, found: _Size, most: int, least: int) -> str | None:
        """Begin a trial of another size if there is a reason."""
        if now.at_s < self._next_s:
            return None
        usual_s = self._usual_s
        if usual_s is None or found.each_s > _SUSPECT * usual_s:
            self._try_smaller(found, least)
        elif self._cap is not None and found.size < most:
            size = min(most, math.ceil(found.size * _UP))
            self._trial = _Trial(found, size, self._cap)
        return None

    def _try_smaller(self, found: _Size, least: int) -> None:
        self._best = max(self._best, found.rate) if self._steps else found.rate
        share = _DOWN ** (2**self._steps)
        if self._usual_s is not None:
            share = min(_SMALLER, _ROOM * self._usual_s / found.each_s)
        size = max(least, math.ceil(found.size * max(share, _LEAST_DOWN)))
        if size < found.size:
            self._steps += 1
            self._trial = _Trial(found, size, self._cap)

    def _judge_smaller(
        self, now: PoolSnapshot, trial: _Trial, found: _Size, least: int
    ) -> str | None:
        known, self._trial = trial.known, None
        share = found.size / known.size
        # `kept` is 1 if as many tasks end as before, and 0 if proportionally fewer do.
        kept = (found.rate / known.rate - share) / (1 - share)
        if kept >= _KEEPS:
            self._cap = found.size
            if self._usual_s is None or found.each_s > _SUSPECT * self._usual_s:
                self._try_smaller(found, least)
            else:
                self._steps = 0
                self._hold(now, _HOLD_S)
            return f"{known}; {found}"
        # At this size, tasks take only as long as they inherently need.
        self._steps = 0
        self._usual_s = found.each_s
        self._hold(now, _HOLD_S)
        enough = math.ceil(self._best * found.each_s * _ROOM)
        if enough >= 0.9 * known.size:
            self._cap = trial.cap
            return None
        self._cap = max(enough, found.size)
        return f"{known}; {found}; {self._cap} are enough"

    def _judge_larger(
        self, now: PoolSnapshot, trial: _Trial, found: _Size, most: int
    ) -> str | None:
        known, self._trial = trial.known, None
        gained = (found.rate / known.rate - 1) / (found.size / known.size - 1)
        if gained < _GAINS:
            self._hold(now, min(2 * self._hold_s, _MOST_HOLD_S))
            return None
        # Try the next size immediately.
        self._hold_s, self._next_s = _HOLD_S, now.at_s
        self._cap = None if found.size >= most else found.size
        return f"{found}, more than {known.size} at once"

    def _hold(self, now: PoolSnapshot, pause_s: float) -> None:
        self._hold_s = pause_s
        self._next_s = now.at_s + pause_s


def _mean(begin: PoolSnapshot, now: PoolSnapshot) -> float | None:
    """Return the mean duration of the tasks that ended between two samples; None if too few did."""
    ended = now.ended - begin.ended
    if ended < _ENDED or now.at_s - begin.at_s < _MEASURED_S:
        return None
    return (now.ended_s - begin.ended_s) / ended or None
