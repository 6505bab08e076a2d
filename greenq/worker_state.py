"""What one worker holds and has done; the log, remote control and the demo read it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from greenq.request import Request


class WorkerState:
    """The requests of one worker by delivery tag, and its totals; touched between switches only.

    Attributes:
        reserved: all that are not settled, running ones included.
        active: those that run.
        total: how many of each task were taken.
        succeeded, failed, retried: how many runs ended so.
        clock_offset_s: what to add to this machine's clock to get the server's.
    """

    __slots__ = ("active", "clock_offset_s", "failed", "reserved", "retried", "succeeded", "total")

    def __init__(self) -> None:
        """Begin with nothing."""
        self.reserved: dict[str, Request] = {}
        self.active: dict[str, Request] = {}
        self.total: Counter[str] = Counter()
        self.clock_offset_s = 0.0
        self.succeeded = 0
        self.failed = 0
        self.retried = 0
