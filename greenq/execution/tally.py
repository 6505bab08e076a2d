"""Counts of runs: how tasks ended, how long they ran, and how long they waited.

Counts are kept only for metrics and for the adaptive autoscaler. The hub updates them for every
task, so an update is only a few additions; sums are computed when they are read.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from greenq.errors import Reject
from greenq.protocol.ids import sent_at
from greenq.states import FAILURE, IGNORED, REJECTED, RETRY, REVOKED, SUCCESS

if TYPE_CHECKING:
    from greenq.running.request import Request

# Upper bounds of the buckets in seconds; those up to 10 are the defaults of Prometheus clients.
RUNTIMES_S: Final = (
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    30.0, 60.0, 300.0, 1800.0,
)  # fmt: skip
WAITS_S: Final = (
    0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0,
)  # fmt: skip

# The states in which a run ends.
STATES: Final = (SUCCESS, FAILURE, RETRY, REVOKED, REJECTED, IGNORED)

# How many pairs of task and queue, and how many kinds of failures, are counted separately. The
# limit is needed because queues can be added from outside, and libraries name their own exceptions.
MOST_SERIES: Final = 1000
OTHER: Final = "other"

_TAG: Final = b'"delivery_tag": "'
_TAG_CHARS: Final = 36
# Of these, the ones that give the time and the version, which is 7.
_STAMP_CHARS: Final = 15


class Series:
    """The counts for one task in one queue.

    Attributes:
        received: how many messages were taken.
        ended: how many runs ended in each state.
        runtime_s, wait_s: the sums of all run times and all waits.
        runtimes, waits: the counts by bucket; the last bucket contains everything above.
        prefetch_s: how long the last message waited in this worker before its run started.
    """

    __slots__ = ("ended", "prefetch_s", "received", "runtime_s", "runtimes", "wait_s", "waits")

    def __init__(self) -> None:
        """Start at zero in all states, so that the first failure shows as an increase."""
        self.received = 0
        self.ended = dict.fromkeys(STATES, 0)
        self.runtime_s = self.wait_s = self.prefetch_s = 0.0
        self.runtimes = [0] * (len(RUNTIMES_S) + 1)
        self.waits = [0] * (len(WAITS_S) + 1)


class TaskTally:
    """The counts by task and queue; only tasks registered here are named.

    Attributes:
        series: the counts by task and queue.
        failures: the failures by task, queue and exception.
    """

    def __init__(self) -> None:
        """Create an empty tally."""
        self.series: dict[tuple[str, str], Series] = {}
        self.failures: Counter[tuple[str, str, str]] = Counter()
        # The last tag's first characters, and its time: many messages are sent in one millisecond.
        self._stamp = b""
        self._sent_s: float | None = None

    def received(self, request: Request) -> None:
        """Count a message that was taken."""
        key = request.task.name, request.delivery.queue
        (self.series.get(key) or self._new(key)).received += 1

    def ended(self, request: Request, state: str, value: Any, runtime_s: float) -> None:
        """Count a run that has ended in `state` with `value`."""
        key = request.task.name, request.delivery.queue
        series = self.series.get(key) or self._new(key)
        if state == FAILURE:
            if isinstance(value, Reject):
                state = REJECTED
            else:
                self._failed(key, type(value).__name__)
        series.ended[state] += 1
        series.runtime_s += runtime_s
        series.runtimes[bisect_left(RUNTIMES_S, runtime_s)] += 1
        raw = request.delivery.raw
        # Extract the tag's time from the text, since parsing the envelope again would take longer
        # than all other steps together.
        place = raw.rfind(_TAG) + len(_TAG)
        # Messages with an ETA wait intentionally.
        stamp = raw[place : place + _STAMP_CHARS]
        if stamp.endswith(b"7") and request.message.eta is None:
            if stamp != self._stamp:
                self._stamp = stamp
                self._sent_s = sent_at(raw[place : place + _TAG_CHARS].decode("ascii", "replace"))
            if self._sent_s is not None:
                # Not `max`, whose calls would be a tenth of this function's time.
                wait_s = time.time() - runtime_s - self._sent_s
                wait_s = wait_s if wait_s > 0.0 else 0.0
                series.wait_s += wait_s
                series.waits[bisect_left(WAITS_S, wait_s)] += 1
        if request.started_s is not None:
            waited_s = request.started_s - request.taken_s
            series.prefetch_s = waited_s if waited_s > 0.0 else 0.0

    def totals(self) -> tuple[int, float]:
        """Return how many runs have ended in any state, and their total duration."""
        series = list(self.series.values())
        return (
            sum(sum(each.ended.values()) for each in series),
            sum(each.runtime_s for each in series),
        )

    def discarded(self, request: Request) -> None:
        """Count a message that was revoked, or expired, before it could run."""
        key = request.task.name, request.delivery.queue
        (self.series.get(key) or self._new(key)).ended[REVOKED] += 1

    def label(self, task: str, queue: str) -> tuple[str, str]:
        """Return the task and queue under which runs are counted; any thread may call this."""
        return (task, queue) if (task, queue) in self.series else (OTHER, OTHER)

    def _new(self, key: tuple[str, str]) -> Series:
        if len(self.series) >= MOST_SERIES:
            key = OTHER, OTHER
        return self.series.setdefault(key, Series())

    def _failed(self, key: tuple[str, str], exception: str) -> None:
        found = (*self.label(*key), exception)
        if len(self.failures) >= MOST_SERIES and found not in self.failures:
            found = OTHER, OTHER, OTHER
        self.failures[found] += 1
