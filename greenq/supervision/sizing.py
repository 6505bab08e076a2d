"""How many processes a group needs: a pure function of samples.

One process uses one core. A second process helps when the hub of the first is busy nearly all the
time and messages are waiting; it does not help when the tasks are waiting for other services. The
thresholds for growing and shrinking are so far apart that, after a change by one process, the same
load reaches neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# A hub that is busy for this fraction of the time is saturated.
SATURATED: Final = 0.8

# One process fewer is enough if the remaining processes would be busy for at most this fraction of
# the time.
RELAXED: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSample:
    """The load of a group at one moment.

    Attributes:
        at_s: the time, by the monotonic clock.
        workers: how many processes take messages.
        coming: how many more have been started but have not reported yet.
        busy: the fraction of the time that each hub was busy, added up over these processes.
        backlog: how many messages are waiting in the queues and in the workers.
        age_s: how long the oldest message in the queues has waited.
    """

    at_s: float
    workers: int
    coming: int
    busy: float
    backlog: int
    age_s: float

    @property
    def is_saturated(self) -> bool:
        """True if the hubs are busy nearly all the time."""
        return self.workers > 0 and self.busy >= SATURATED * self.workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The limits of a group.

    Attributes:
        most, least: how many processes may run.
        grow_after_s: how long the hubs must have been saturated.
        keepalive_s: how long an unneeded process is kept.
    """

    most: int
    least: int
    grow_after_s: float
    keepalive_s: float


class SizeChange(NamedTuple):
    """One more process (1), one fewer (-1) or no change (0), and the reason."""

    change: int
    reason: str


def decide(samples: Sequence[GroupSample], rules: Rules) -> SizeChange:
    """Decide from the samples taken since the last change (at least one, oldest first)."""
    now = samples[-1]
    there = now.workers + now.coming
    if there > rules.most:
        return SizeChange(-1, f"{there} processes: at most {rules.most}")
    if there < rules.least:
        short = lasted(samples, lambda each: each.workers + each.coming < rules.least)
        if short < rules.grow_after_s:
            return SizeChange(0, f"{there} processes: at least {rules.least} soon")
        return SizeChange(1, f"{there} processes: at least {rules.least}")
    if now.coming:
        return SizeChange(0, "a started process has not reported yet")
    share = now.busy / now.workers if now.workers else 0.0
    busy_s = lasted(samples, lambda each: _needs_more(each, now.workers))
    if busy_s >= rules.grow_after_s:
        text = f"hubs busy for {share:.0%} of the time over {busy_s:.0f} s, {now.backlog} waiting"
        if there == rules.most:
            return SizeChange(0, f"{text}: at the maximum")
        return SizeChange(1, text)
    quiet_s = lasted(samples, lambda each: _needs_less(each, now.workers, rules.grow_after_s))
    if there > rules.least and quiet_s >= rules.keepalive_s:
        return SizeChange(-1, f"one process fewer would have been enough for {quiet_s:.0f} s")
    return SizeChange(0, "steady")


def lasted(samples: Sequence[GroupSample], holds: Callable[[GroupSample], bool]) -> float:
    """Return for how many seconds a condition has held; -1 if the last sample does not meet it."""
    since_s = None
    for sample in reversed(samples):
        if not holds(sample):
            break
        since_s = sample.at_s
    return -1.0 if since_s is None else samples[-1].at_s - since_s


def _needs_more(sample: GroupSample, workers: int) -> bool:
    return sample.workers == workers and sample.is_saturated and sample.backlog > 0


def _needs_less(sample: GroupSample, workers: int, patience_s: float) -> bool:
    fits = sample.busy <= RELAXED * (workers - 1)
    return sample.workers == workers and fits and sample.age_s <= patience_s
