"""Saying a trouble once: what keeps a part of the worker from its server, and that it is over.

And saying what others do again and again once a minute.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from greenq.errors import OperationalError, ServerError

if TYPE_CHECKING:
    from collections.abc import Callable


class Outage:
    """The present trouble of one part, which tries again and again.

    Each kind of error is logged once until it is over; what is tried meanwhile goes to DEBUG.
    """

    def __init__(self, log: logging.Logger) -> None:
        """Write to `log`."""
        self._log = log
        self._said: set[str] = set()

    def say(self, text: str, exc: OperationalError) -> None:
        """Log that `exc` happened, if its kind is new; `text` says what that means."""
        kind = exc.reply.split(" ", 1)[0] if isinstance(exc, ServerError) else type(exc).__name__
        if kind in self._said:
            self._log.debug("%s: %s", text, exc)
        else:
            self._said.add(kind)
            self._log.warning("%s: %s", text, exc)

    def over(self, text: str) -> None:
        """Log that it is over, if there was one."""
        if self._said:
            self._said.clear()
            self._log.info("%s", text)


_MINUTE_S: Final = 60.0


class Repeated:
    """Lines about what others send, however much of it: of each kind a few at once, then a count.

    A kind is a text with its places still open, so there are only as many as stand in the code. The
    count comes with the first line of its kind after the minute.
    """

    def __init__(
        self,
        log: logging.Logger,
        *,
        at_once: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Write to `log`, of each kind `at_once` lines a minute."""
        self._log = log
        self._at_once = at_once
        self._clock = clock
        # Of each kind: when its minute began, and how many there were since.
        self._minutes: dict[str, tuple[float, int]] = {}

    def say(self, text: str, *arguments: object, level: int = logging.WARNING) -> None:
        """Log a line, or count it."""
        now_s = self._clock()
        began_s, count = self._minutes.get(text, (now_s, 0))
        unsaid = 0
        if now_s - began_s >= _MINUTE_S:
            unsaid = max(0, count - self._at_once)
            began_s, count = now_s, 0
        self._minutes[text] = began_s, count + 1
        if count >= self._at_once:
            self._log.debug(text, *arguments)
        elif unsaid:
            self._log.log(level, text + " (and %d more of these since the last one)",
                *arguments, unsaid)  # fmt: skip
        else:
            self._log.log(level, text, *arguments)
