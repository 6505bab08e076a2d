"""Warns about sends to a queue that no worker takes from, whose name is often a typo.

greenq's workers report their queues to the server (`Leases.announce_queues`). Of Celery workers,
the server knows only how many listen for commands, and these may take from any queue.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from greenq.errors import AccessRefused, OperationalError
from greenq.protocol.mailbox import EXCHANGE
from greenq.transport.client import load_script
from greenq.utils.suggest import suggestion

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.protocol.keys import Keys
    from greenq.transport.client import Command

_log = logging.getLogger(__name__)

_TAKERS = load_script("takers")

# The shortest time between queries about the same queue.
_EVERY_S = 60.0

# How many queues are remembered.
_KNOWN = 10_000


class Takers:
    """Asks, together with an occasional send, which workers take from a sender's queues."""

    def __init__(self, keys: Keys, clock: Callable[[], float] = time.monotonic) -> None:
        """Use the key names of `keys`; no queue has been asked about yet.

        `ask_at_s` maps each queue to the time, by `clock`, before which it is not asked about
        again. It is public so that a send can check it without a call.
        """
        self._keys = keys
        self.clock = clock
        self.ask_at_s: dict[str, float] = {}
        self._may_ask = True

    def question(self, queue: str) -> list[Command]:
        """Return the command that asks about a queue, or none if it was sent recently."""
        now_s = self.clock()
        if not self._may_ask or now_s < self.ask_at_s.get(queue, now_s):
            return []
        if len(self.ask_at_s) >= _KNOWN:
            self.ask_at_s.clear()
        self.ask_at_s[queue] = now_s + _EVERY_S
        keys = self._keys
        # Send the script's source: the script runs rarely, and in a batch of commands, in which an
        # unknown script cannot be retried.
        return [
            ("EVAL", _TAKERS.source, 2, keys.leases, keys.binding(EXCHANGE), queue, keys.owner(""))
        ]

    def warn_if_untaken(self, queue: str, answer: Any) -> None:
        """Warn if workers are running but certainly none of them takes from the queue.

        If there are no workers, for example before the first one starts, log nothing.
        """
        if isinstance(answer, AccessRefused):
            # This user is only allowed to send, so do not ask again.
            self._may_ask = False
        if isinstance(answer, OperationalError):
            _log.debug("could not find out which workers take from queue %s: %s", queue, answer)
            return
        living, taking, others, taken = answer
        if taking or others or not living:
            return
        names = [name.decode(errors="replace") for name in taken]
        _log.warning(
            "no worker takes from queue %s: messages sent to it wait (%s)%s",
            queue,
            "1 worker is running" if living == 1 else f"{living} workers are running",
            suggestion(queue, names),
        )
