"""The hub's thread, seen from another thread: what is running there, and at which line."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from greenq.hub import NativeThread

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Blocker:
    """What blocked the hub.

    Attributes:
        at: when the block was noticed, in unix time.
        for_s: how long the hub was blocked, or has been so far.
        by: the task and its id, or ``no task``.
        where: the file and the line.
    """

    at: float
    for_s: float
    by: str
    where: str


class HubThread:
    """Finds out what is running in the hub's thread; any other thread may use it."""

    def __init__(
        self,
        blocking_task: Callable[[FrameType | None], str | None],
        all_stacks: Callable[[], str] | None = None,
    ) -> None:
        """Observe the hub's thread once `watcher` is set.

        Args:
            blocking_task: names the task that a frame of the hub's thread belongs to; None if the
                frame belongs to no task.
            all_stacks: returns the stacks of all greenlets and threads; if None, `stacks`
                returns the stack of the hub's thread alone.
        """
        self._blocking_task = blocking_task
        self._all_stacks = all_stacks
        # The watchdog thread, which knows the number of the hub's thread.
        self.watcher: NativeThread | None = None

    def is_other(self) -> bool:
        """Return whether the caller is the watchdog thread, not the hub's."""
        return self.watcher is not None and self.watcher.runs_here()

    def blocker(self, for_s: float) -> Blocker:
        """Describe what has been running in the hub's thread for the last `for_s` seconds."""
        frame = self._frame()
        by = self._blocking_task(frame) or "no task"
        where = "?" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
        return Blocker(time.time(), for_s, by, where)

    def stack(self) -> str:
        """Return the stack of the hub's thread as text."""
        frame = self._frame()
        return "" if frame is None else "".join(traceback.format_stack(frame))

    def stacks(self) -> str:
        """Return the stacks of all greenlets and threads as text."""
        return self.stack() if self._all_stacks is None else self._all_stacks()

    def log(self, level: int, text: str, *arguments: object) -> None:
        """Log a line about a blocked hub, unless logging itself is blocked.

        If the hub's thread is writing to a pipe that nobody reads, it holds the log handler's lock,
        and the watchdog thread would wait for that lock as well.
        """
        frame = self._frame()
        while frame is not None:
            if frame.f_code.co_filename == logging.__file__:
                return
            frame = frame.f_back
        _log.log(level, text, *arguments)

    def _frame(self) -> FrameType | None:
        watcher = self.watcher
        # There is no public way to get the frame of another thread.
        return sys._current_frames().get(watcher.hub_thread) if watcher else None  # noqa: SLF001
