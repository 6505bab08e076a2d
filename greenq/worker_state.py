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
    """

    __slots__ = ("active", "failed", "reserved", "retried", "succeeded", "total")

    def __init__(self) -> None:
        """Begin with nothing."""
        self.reserved: dict[str, Request] = {}
        self.active: dict[str, Request] = {}
        self.total: Counter[str] = Counter()
        self.succeeded = 0
        self.failed = 0
        self.retried = 0
