"""How long each running task has held the hub, that is, how long its greenlet itself has run.

The age of a task that is waiting for a server says little; how long the task has kept all others
waiting says more. That time is measured by the wall clock, from each switch to the greenlet until
the switch away from it, so it includes time that the operating system gives to other processes.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import greenlet

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.running.request import Request


class HubTime:
    """Adds up, in each request's `hub_s`, how long its greenlet has run.

    The object traces every switch between the greenlets of the thread that calls `start`. A
    request's time starts at the later of that call and the request's own start, because one
    greenlet may run several requests without a switch between them.
    """

    def __init__(
        self,
        greenlet_class: type[Any],
        *,
        hub: object = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Count for the greenlets of one class.

        Args:
            greenlet_class: the class of the pool's greenlets, whose `request` is the request that
                they are running, or None.
            hub: the loop's own greenlet, which runs when no other greenlet can.
            clock: the clock, in seconds, that also sets `Request.started_s`.
        """
        self._greenlet_class = greenlet_class
        self._clock = clock
        # The class of the greenlets to count; None, which matches no greenlet, while counting is
        # off.
        self._counted: type[Any] | None = None
        self._hub = hub
        # How long the loop's own greenlet has run, and when that count started.
        self._loop_s = self._began_s = 0.0
        # When `times` was last called.
        self._asked_s = -math.inf
        self._switched_s = 0.0
        self._trace: Any = None
        self._previous: Any = None

    @property
    def on(self) -> bool:
        """True while time is being counted."""
        return self._counted is not None

    def start(self) -> None:
        """Start counting in this thread; a tracer that is already set is still called."""
        if self.on:
            return
        self._began_s = self._switched_s = self._clock()
        self._loop_s = 0.0
        self._counted = self._greenlet_class
        self._previous = greenlet.gettrace()
        self._trace = self._count_switch if self._previous is None else self._chain(self._previous)
        greenlet.settrace(self._trace)

    def stop(self) -> None:
        """Stop counting; restore the previous tracer unless another one has been set since."""
        if not self.on:
            return
        self._counted = None
        if greenlet.gettrace() is self._trace:
            greenlet.settrace(self._previous)
        self._trace = self._previous = None

    def times(self) -> tuple[float, float]:
        """Return the seconds since `start`, and for how many of them greenlets ran.

        In the remaining time, the loop waited or checked for events. This must be called by one
        greenlet only, which waits between calls: if no switch has been seen since the last call,
        another tracer has replaced this one, and the time since then counts as the loop's.
        """
        now = self._clock()
        if self._switched_s <= self._asked_s:
            self._loop_s += now - self._asked_s
        self._asked_s = now
        since_s = now - self._began_s
        return since_s, since_s - self._loop_s

    def hub_s_of(self, request: Request) -> float:
        """Return how long a request has held the hub, up to now if it is running at this moment."""
        counted_s, started_s, own = request.hub_s, request.started_s, request.greenlet
        if not self.on or own is None or started_s is None:
            return counted_s
        # Of the greenlets that have started and not ended, only the running one has no frame.
        if own.gr_frame is None:
            counted_s += self._clock() - max(started_s, self._switched_s)
        return counted_s

    def _count_switch(self, _event: str, greenlets: tuple[Any, Any]) -> None:
        """Add the time since the last switch to the request that ran; called at every switch.

        This is a hot path, and greenlet stops tracing permanently if a tracer raises an error.
        """
        now = self._clock()
        origin: Any = greenlets[0]
        if type(origin) is self._counted:
            try:
                request = origin.request
            except AttributeError:
                # The greenlet was killed before it began.
                request = None
            if request is not None:
                started_s = request.started_s
                if started_s is not None:
                    since_s = self._switched_s
                    request.hub_s += now - (started_s if started_s > since_s else since_s)
        elif origin is self._hub:
            self._loop_s += now - self._switched_s
        self._switched_s = now

    def _chain(self, previous: Any) -> Any:
        """Return a tracer that counts and then calls `previous`."""

        def trace(event: str, greenlets: tuple[Any, Any]) -> None:
            self._count_switch(event, greenlets)
            previous(event, greenlets)

        return trace
