"""Queues that nobody takes from: whoever sends to one is warned, since it is often a typo.

What is known: the queues of greenq's workers, who tell the server (`Leases.tell`), and how many of
Celery's there are that hear commands; these may take from any queue.
"""

from __future__ import annotations

import difflib
import logging
import time
from typing import TYPE_CHECKING, Any

from greenq.errors import AccessRefused, OperationalError
from greenq.protocol.mailbox import EXCHANGE
from greenq.transport.client import load_script

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.protocol.keys import Keys
    from greenq.transport.client import Command

_log = logging.getLogger(__name__)

_TAKERS = load_script("takers")

# Of each queue it is asked this often at most.
_EVERY_S = 60.0

# So many queues are remembered.
_KNOWN = 10_000


class Takers:
    """Asks who takes from the queues that this process sends to, along with a send now and then."""

    def __init__(self, keys: Keys, clock: Callable[[], float] = time.monotonic) -> None:
        """Ask with the key names of `keys`; no queue has been asked about."""
        self._keys = keys
        self._clock = clock
        self._ask_at_s: dict[str, float] = {}
        self._may_ask = True

    def question(self, queue: str) -> list[Command]:
        """Return the command that asks about a queue, or none if it was asked lately."""
        now_s = self._clock()
        if not self._may_ask or now_s < self._ask_at_s.get(queue, now_s):
            return []
        if len(self._ask_at_s) >= _KNOWN:
            self._ask_at_s.clear()
        self._ask_at_s[queue] = now_s + _EVERY_S
        keys = self._keys
        # By its source: so seldom, and among other commands, it must not fail for being unknown.
        return [
            ("EVAL", _TAKERS.source, 2, keys.leases, keys.binding(EXCHANGE), queue, keys.owner(""))
        ]

    def hear(self, queue: str, answer: Any) -> None:
        """Warn if workers are there and surely none takes from the queue.

        Where no worker is at all, as before the first one is started, nothing is said.
        """
        if isinstance(answer, AccessRefused):
            # A user who may only send: once is enough to know.
            self._may_ask = False
        if isinstance(answer, OperationalError):
            _log.debug("who takes from queue %s is not known: %s", queue, answer)
            return
        living, taking, others, taken = answer
        if taking or others or not living:
            return
        names = [name.decode(errors="replace") for name in taken]
        close = difflib.get_close_matches(queue, names, n=1)
        _log.warning(
            "no worker takes from queue %s: what is sent to it waits (%s)%s",
            queue,
            "1 worker is there" if living == 1 else f"{living} workers are there",
            f"; did you mean {close[0]}?" if close else "",
        )
