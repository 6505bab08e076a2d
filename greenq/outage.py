"""Saying a trouble once: what keeps a part of the worker from its server, and that it is over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from greenq.errors import OperationalError, ServerError

if TYPE_CHECKING:
    import logging


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
