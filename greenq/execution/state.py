"""The messages that one worker holds and its counters, for the log, remote control and the demo."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from greenq.execution.revoked import Revoked
from greenq.hub import boottime
from greenq.protocol.clock import LamportClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.execution.tally import TaskTally
    from greenq.running.request import Request


class WorkerState:
    """The requests of one worker by delivery tag, and its totals; changed only between switches.

    Attributes:
        reserved: all unsettled requests, including running ones.
        total: how many messages of each task were taken.
        succeeded, failed, retried: how many runs ended in each of these ways.
        tally: counts for metrics and the adaptive autoscaler; None if neither is on.
        lease_until_s, lease_lost_s: the time until which the lease certainly holds, and the time
            when it was last found to have ended, in seconds of `now_s`.
        now_s: a clock that keeps running while the machine is suspended.
        paused: all paused queues of the cluster; each renewal of the lease updates them.
        revoked: which tasks must not run.
        clock: the cluster's logical clock.
        clock_offset_s: the seconds to add to this machine's clock to get the server's time.
    """

    __slots__ = (
        "clock", "clock_offset_s", "failed", "lease_lost_s", "lease_until_s", "now_s", "paused",
        "reserved", "retried", "revoked", "succeeded", "tally", "total",
    )  # fmt: skip

    def __init__(
        self, now_s: Callable[[], float] = boottime, *, revoked: Revoked | None = None
    ) -> None:
        """Create a state that is empty except for `revoked`."""
        self.now_s = now_s
        self.paused: frozenset[str] = frozenset()
        self.reserved: dict[str, Request] = {}
        self.total: Counter[str] = Counter()
        self.revoked = Revoked() if revoked is None else revoked
        self.clock = LamportClock()
        self.clock_offset_s = 0.0
        self.lease_until_s = self.lease_lost_s = 0.0
        self.succeeded = 0
        self.failed = 0
        self.retried = 0
        self.tally: TaskTally | None = None

    def finished(self) -> int:
        """Return how many of the taken messages have been settled or requeued."""
        return sum(self.total.values()) - len(self.reserved)
