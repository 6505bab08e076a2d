"""How long each running task has held the hub: the time that its greenlet itself has run.

Of a task that waits for a server its age says nothing; the time that it kept all others waiting
does. It is wall time between being switched in and being switched out, so what the operating system
gives to other processes meanwhile is in it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import greenlet

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.request import Request


class HubTime:
    """Adds up, in each request's `hub_s`, how long its greenlet has run.

    It traces every switch between greenlets of the thread that starts it. Only what runs after
    `start` is counted, and from the request's own start: one greenlet may run request after request
    without a switch between them.
    """

    def __init__(
        self,
        greenlet_class: type[Any],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Count for the greenlets of one class.

        Args:
            greenlet_class: that of the pool's greenlets, which have their request, or None, as
                `request`.
            clock: seconds; the one that `Request.started_s` is read from.
        """
        self._greenlet_class = greenlet_class
        self._clock = clock
        # None while nothing is counted: no greenlet is of that class.
        self._counted: type[Any] | None = None
        self._switched_s = 0.0
        self._trace: Any = None
        self._previous: Any = None

    @property
    def on(self) -> bool:
        """Whether it counts."""
        return self._counted is not None

    def start(self) -> None:
        """Count from now on, in this thread; a tracer that is set already goes on being called."""
        if self.on:
            return
        self._switched_s = self._clock()
        self._counted = self._greenlet_class
        self._previous = greenlet.gettrace()
        self._trace = self._switched if self._previous is None else self._before(self._previous)
        greenlet.settrace(self._trace)

    def stop(self) -> None:
        """Count no more. Tracers are as they were, unless somebody has set one since: it stays."""
        if not self.on:
            return
        self._counted = None
        if greenlet.gettrace() is self._trace:
            greenlet.settrace(self._previous)
        self._trace = self._previous = None

    def hub_s_of(self, request: Request) -> float:
        """Return how long a request has run; one that runs right now, up to now."""
        counted_s, started_s, own = request.hub_s, request.started_s, request.greenlet
        if not self.on or own is None or started_s is None:
            return counted_s
        # Of all greenlets that have begun and not ended, only the one that runs has no frame.
        if own.gr_frame is None:
            counted_s += self._clock() - max(started_s, self._switched_s)
        return counted_s

    def _switched(self, _event: str, greenlets: tuple[Any, Any]) -> None:
        """Add the time since the last switch to the request that has run; called at every switch.

        A hot path: greenlet stops tracing for good if this raises.
        """
        now = self._clock()
        origin: Any = greenlets[0]
        if type(origin) is self._counted:
            try:
                request = origin.request
            except AttributeError:
                # It was killed before it began.
                request = None
            if request is not None:
                started_s = request.started_s
                if started_s is not None:
                    since_s = self._switched_s
                    request.hub_s += now - (started_s if started_s > since_s else since_s)
        self._switched_s = now

    def _before(self, previous: Any) -> Any:
        """Return a tracer that counts and then calls `previous`."""

        def trace(event: str, greenlets: tuple[Any, Any]) -> None:
            self._switched(event, greenlets)
            previous(event, greenlets)

        return trace
