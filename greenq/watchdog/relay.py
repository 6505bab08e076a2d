"""Moves messages on the server: announced ones to a waiting worker, parked ones when due."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from greenq.errors import AccessRefused, OperationalError, ServerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.transport.leases import Leases, Renewal
    from greenq.watchdog.notifier import Notifier

_log = logging.getLogger(__name__)

# The shortest time between checks of lists that no worker is waiting on.
_RELAY_S = 0.005


class Relay:
    """Moves messages from lists that no worker is waiting on, if the server chose this worker."""

    def __init__(self, leases: Leases, notifier: Notifier, *, clock: Callable[[], float]) -> None:
        """Relay over the connection of `leases`."""
        self._leases = leases
        self._notifier = notifier
        self._clock = clock
        self.due_s = math.inf

    def renewed(self, renewal: Renewal, now_s: float) -> None:
        """Record whether this worker should relay."""
        if not renewal.relays:
            self.due_s = math.inf
        elif self.due_s == math.inf:
            self.due_s = now_s

    def relay(self) -> bool:
        """Relay messages that have arrived; return False if the connection was lost.

        Checks are at least `_RELAY_S` apart, since many changes may arrive at the same time.
        """
        self.due_s = self._clock() + _RELAY_S
        try:
            if self._leases.relay():
                self._notifier.look_for_work()
        except (AccessRefused, ServerError) as exc:
            # Some proxies and managed servers refuse this command; the renewals then find the
            # messages.
            self.due_s = math.inf
            _log.info(
                "the server does not announce messages on less urgent lists; renewals find them: "
                "%s",
                exc,
            )
        except OperationalError as exc:
            _log.debug("could not relay messages: %s", exc)
            self._leases.connection.close()
            return False
        return True


class Parked:
    """Moves parked messages back to their queues when they are due."""

    def __init__(self, leases: Leases, *, clock: Callable[[], float]) -> None:
        """Move the messages over the connection of `leases`."""
        self._leases = leases
        self._clock = clock
        self.due_s = math.inf

    def renewed(self, renewal: Renewal) -> None:
        """Record when the next message is due."""
        self.due_s = math.inf
        if renewal.next_due is not None:
            self.due_s = self._clock() + renewal.next_due - renewal.server_time

    def promote(self, until_s: float) -> bool:
        """Move due messages until another duty is due; return True if none are left."""
        try:
            while self._leases.promote():
                if self._clock() >= until_s:
                    return False
        except OperationalError as exc:
            _log.debug("parked messages could not be moved: %s", exc)
            self._leases.connection.close()
            return False
        return True
