"""The pool: greenlets that run requests, as many at once as its size says."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING

import gevent.pool

from greenq.bootsteps import StartStopStep
from greenq.hub import Event

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.request import Request

_log = logging.getLogger(__name__)


def _forget(_requests: list[Request]) -> None:
    """Leave abandoned requests to the lease of their owner."""


class Pool(StartStopStep):
    """Runs requests in greenlets.

    1. `submit` never waits: what finds no free slot queues here, and a greenlet that has finished
       takes the next before it ends, which spares a start.
    2. `resize` acts at once: growing starts what queues and wakes who waits for room; shrinking
       lets the surplus end with its present request.
    3. `stop` waits for what runs as long as it may, and ends the rest.

    gevent's pool keeps the greenlets; its own bound is not used, because waiting in it could be
    neither woken by a resize nor left at shutdown.
    """

    name = "Pool"
    requires = ("Outbox",)

    def __init__(
        self,
        size: int,
        run: Callable[[Request], None],
        *,
        prefetch_multiplier: int = 1,
        grace_s: float = 30.0,
        abandoned: Callable[[list[Request]], None] = _forget,
    ) -> None:
        """Run requests by calling `run`.

        Args:
            size: how many at once.
            run: runs one to its end, whatever happens in it.
            prefetch_multiplier: `size` times this many are held here, running ones included.
            grace_s: how long `stop` waits for what runs.
            abandoned: called with what still runs then, before it is ended.
        """
        self.size = size
        self.peak = 0
        self._run = run
        self._multiplier = prefetch_multiplier
        self._grace_s = grace_s
        self.abandoned = abandoned
        self._greenlets = gevent.pool.Pool()
        self._waiting: deque[Request] = deque()
        self._room = Event()
        self._active: set[Request] = set()
        # Set when running requests have ended or when nobody will wait for them any longer.
        self._leave = Event()

    @property
    def running(self) -> int:
        """How many requests run."""
        return len(self._active)

    @property
    def waiting(self) -> int:
        """How many requests are here and have no slot yet."""
        return len(self._waiting)

    @property
    def room(self) -> int:
        """How many more requests may be taken; negative right after shrinking."""
        return self.size * self._multiplier - len(self._active) - len(self._waiting)

    def wait_room(self, timeout_s: float | None = None) -> None:
        """Wait until `room` is positive, or `wake`. Switches: yes."""
        if self.room <= 0:
            self._room.clear()
            self._room.wait(timeout_s)

    def wake(self) -> None:
        """Let `wait_room` return."""
        self._room.set()

    def submit(self, request: Request) -> None:
        """Run a request now, or as soon as there is a slot. Switches: no."""
        if len(self._active) < self.size:
            self._start(request)
        else:
            self._waiting.append(request)

    def resize(self, size: int) -> None:
        """Change how many may run at once; what waits for room is woken."""
        self.size = size
        while self._waiting and len(self._active) < size:
            self._start(self._waiting.popleft())
        self._room.set()

    def take_back(self) -> list[Request]:
        """Give up what has no slot yet, in the order in which it came."""
        waiting = list(self._waiting)
        self._waiting.clear()
        return waiting

    def stop(self) -> None:
        """Wait for what runs, for the grace time or until `hurry`; end the rest. Switches: yes."""
        if self._active:
            self._leave.wait(self._grace_s)
        self._end_rest()

    def terminate(self) -> None:
        """End what runs now."""
        self._end_rest()

    def hurry(self) -> None:
        """Make `stop`, now or later, wait no longer."""
        self._grace_s = 0.0
        self._leave.set()

    def _end_rest(self) -> None:
        if self._active:
            self.abandoned(list(self._active))
            # Each one's code sees GreenletExit and has a moment for its `finally` blocks.
            self._greenlets.kill(timeout=1.0)

    def info(self) -> dict[str, object]:
        """Tell size and load."""
        return {
            "implementation": "greenq.pool:Pool",
            "max-concurrency": self.size,
            "running": len(self._active),
            "waiting": len(self._waiting),
        }

    def _start(self, request: Request) -> None:
        self._active.add(request)
        self.peak = max(self.peak, len(self._active))
        self._leave.clear()
        request.greenlet = self._greenlets.spawn(self._work, request)

    def _work(self, request: Request) -> None:
        """Run one request after the other while there are any and the pool has not shrunk."""
        while True:
            try:
                self._run(request)
            except BaseException:
                # Every ending of a task is dealt with inside `run`; this is a fault of the worker
                # itself.
                _log.critical("%s was left without an outcome", request, exc_info=True)
            self._active.discard(request)
            self._room.set()
            if not self._waiting or len(self._active) >= self.size:
                break
            greenlet, request = request.greenlet, self._waiting.popleft()
            request.greenlet = greenlet
            self._active.add(request)
        if not self._active and not self._waiting:
            self._leave.set()
