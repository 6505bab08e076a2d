"""Rate limits: how often one worker starts a task, and the queue of requests that are held back."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.running.request import Request
    from greenq.timer import Timer, TimerEntry


# A request that finds no room is parked for at most this long, since the limit may change in the
# meantime.
_ASIDE_MOST_S = 600.0


class TokenBucket:
    """Holds at most one token; a taken token is replaced after a fixed time.

    Attributes:
        every_s: the seconds until a taken token is replaced; may be changed.
    """

    def __init__(self, a_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Create a bucket with one token."""
        self.every_s = 1 / a_second
        self._clock = clock
        self._taken_s = -math.inf

    def take(self) -> bool:
        """Take the token; return False if there is none."""
        if self.wait_s() > 0:
            return False
        self._taken_s = self._clock()
        return True

    def wait_s(self) -> float:
        """Return the seconds until there is a token."""
        return max(0.0, self._taken_s + self.every_s - self._clock())


class RateLimitedQueue:
    """The waiting requests of one task: each begins in turn, when there is a token for it."""

    def __init__(
        self,
        a_second: float | None,
        timer: Timer,
        begin: Callable[[Request], None],
    ) -> None:
        """Call `begin` for at most `a_second` requests per second; None means no limit."""
        self._timer = timer
        self._begin = begin
        self._waiting: deque[Request] = deque()
        self._entry: TimerEntry | None = None
        self._bucket: TokenBucket | None = None
        # The time at which the last parked request can begin.
        self._aside_s = 0.0
        self._set(a_second)

    def __len__(self) -> int:
        """Return how many requests are waiting."""
        return len(self._waiting)

    def add(self, request: Request) -> None:
        """Begin a request now, or when its turn comes. Switches: no."""
        self._waiting.append(request)
        if self._entry is None:
            self._begin_due()

    def set_rate(self, a_second: float | None) -> None:
        """Change the limit, including for the waiting requests."""
        if self._entry is not None:
            self._entry.cancel()
        self._set(a_second)
        self._begin_due()

    def waiting(self) -> list[Request]:
        """Return the waiting requests in order."""
        return list(self._waiting)

    def take_out(self, which: Callable[[Request], bool]) -> list[Request]:
        """Remove and return, in order, the requests that satisfy `which`."""
        taken = [request for request in self._waiting if which(request)]
        self._waiting = deque(request for request in self._waiting if not which(request))
        return taken

    def put_aside_s(self) -> float:
        """Return for how many seconds to park a request that finds no room here."""
        now_s = self._timer.clock()
        every_s = 0.0 if self._bucket is None else self._bucket.every_s
        self._aside_s = max(self._aside_s, now_s + len(self._waiting) * every_s) + every_s
        return min(self._aside_s - now_s, _ASIDE_MOST_S)

    def _set(self, a_second: float | None) -> None:
        self._entry = None
        self._aside_s = 0.0
        if a_second is None:
            self._bucket = None
        elif self._bucket is None:
            self._bucket = TokenBucket(a_second, self._timer.clock)
        else:
            # Keep the time of the last start, since a new rate does not grant a new token.
            self._bucket.every_s = 1 / a_second

    def _begin_due(self) -> None:
        """Begin the requests whose turn it is, and schedule the next call."""
        self._entry = None
        while self._waiting:
            if self._bucket is not None and not self._bucket.take():
                self._entry = self._timer.call_after(self._bucket.wait_s(), self._begin_due)
                return
            self._begin(self._waiting.popleft())
