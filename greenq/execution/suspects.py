"""Suspects: messages whose workers died, each run alone to find the one that kills its worker."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING

from greenq.hub import Event, spawn
from greenq.transport.settle import RUN_ALONE, Settlement

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.pool import Pool
    from greenq.running.request import Request
    from greenq.transport.outbox import Outbox

_log = logging.getLogger(__name__)

# How long a suspect waits for the other tasks to end. No messages are taken in the meantime, so a
# worker with long tasks would be mostly idle; after this time, the suspect runs alongside them.
_PATIENCE_S = 10.0


class Suspects:
    """Runs messages one at a time, each alone in its worker.

    1. First wait, for a limited time, until all running tasks have ended; no messages are taken in
       the meantime.
    2. Before each run, record on the server which message is about to run, so that the worker's
       death counts against this message only.
    3. After the last suspect, clear this record before other messages are taken.
    """

    def __init__(self, pool: Pool, outbox: Outbox, begin: Callable[[Request], object]) -> None:
        """Run requests in `pool`; `begin` submits a request unless its time has passed."""
        self._pool = pool
        self._outbox = outbox
        self._begin = begin
        self._line: deque[Request] = deque()
        # True while a suspect is running alone, starting just before the server is informed.
        self.alone = False
        # True from the first suspect until after the last one; no other messages must be taken in
        # the meantime.
        self.busy = False
        self._over = Event()
        self._over.set()

    def __len__(self) -> int:
        """Return how many suspects are waiting for their turn."""
        return len(self._line)

    def wait_over(self, timeout_s: float) -> bool:
        """Wait until the last suspect has ended. Switches: yes."""
        return bool(self._over.wait(timeout_s))

    def add(self, request: Request) -> None:
        """Run a request alone when its turn comes. Switches: no."""
        self._line.append(request)
        if not self.busy:
            self.busy = True
            self._over.clear()
            spawn(self._run, name="suspects", lasts=True)

    def waiting(self) -> list[Request]:
        """Return the suspects that are waiting for their turn, in order."""
        return list(self._line)

    def take_out(self, which: Callable[[Request], bool]) -> list[Request]:
        """Remove and return the waiting suspects that satisfy `which`."""
        taken = [request for request in self._line if which(request)]
        for request in taken:
            self._line.remove(request)
        return taken

    def _run(self) -> None:
        try:
            while self._line:
                alone = self._pool.wait_empty(_PATIENCE_S)
                if not self._line:
                    break
                request = self._line.popleft()
                self.alone = alone
                if alone:
                    _log.warning("%s runs alone: workers have died while running it", request)
                    self._announce(request.delivery.tag)
                else:
                    _log.warning(
                        "%s runs alongside other tasks, which have not ended in time", request
                    )
                self._begin(request)
                if alone:
                    self._pool.wait_empty(None)
                    self.alone = False
                    if not self._line:
                        self._announce("")
        finally:
            self.alone = self.busy = False
            self._over.set()

    def _announce(self, tag: str) -> None:
        """Record on the server which message will run alone, and wait for the confirmation."""
        known = Event()
        self._outbox.put(Settlement(tag, RUN_ALONE, written=lambda _held: known.set()))
        known.wait()
