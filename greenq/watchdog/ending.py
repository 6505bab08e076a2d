"""Ends a worker, with or without its hub: requeues its messages, and gives up its lease."""

from __future__ import annotations

import logging
import signal
from typing import TYPE_CHECKING

from greenq.errors import OperationalError

if TYPE_CHECKING:
    from greenq.transport.leases import Leases
    from greenq.watchdog.hooks import Holdings, Rescue
    from greenq.watchdog.hub_thread import HubThread

_log = logging.getLogger(__name__)

# How long requeueing the messages may take when a worker ends.
LEAVE_S = 10.0

# How long writing the last log line may take; after this time, the kernel ends the process.
_LAST_WORDS_S = 2


class Ending:
    """Requeues messages that the server still holds for this owner, then gives up the lease.

    If the hub is blocked, `abandon` also ends the process.
    """

    def __init__(
        self,
        leases: Leases,
        hub_thread: HubThread,
        holdings: Holdings,
        rescue: Rescue,
    ) -> None:
        """End the owner of `leases`."""
        self._leases = leases
        self._hub_thread = hub_thread
        self._holdings = holdings
        self._rescue = rescue

    def leave(self) -> None:
        """Requeue messages that the server still holds for this owner, then give up its lease."""
        # If that fails, try again over new connections: messages that are not requeued here count
        # as those of a dead worker.
        if not self._left():
            self._left(is_last=True)

    def abandon(self, why: str, *, by_task: bool = False) -> None:
        """End the process without its hub.

        If `by_task` is true, the worker's messages are recovered like those of a dead worker, so
        that the death counts against the tasks that were running: a task that blocks every worker
        must not be requeued endlessly. Otherwise, an operator asked the worker to end, and no death
        is counted.
        """
        # If anything hangs after this point, such as a server or an unread log pipe, the kernel
        # ends the process.
        signal.alarm(int(LEAVE_S))
        text = f"\n{self._hub_thread.stacks()}" if by_task else ""
        try:
            self._rescue.cut(self._leases.connection)
        except OperationalError as exc:
            self._hub_thread.log(
                logging.INFO, "messages arriving now are left to other workers: %s", exc
            )
        if not by_task:
            self.leave()
        signal.alarm(_LAST_WORDS_S)
        how = (
            "other workers will run its messages"
            if by_task
            else "its messages are back on their queues"
        )
        self._hub_thread.log(logging.CRITICAL, "%s: the worker ends now, and %s%s", why, how, text)
        self._rescue.end_process()

    def _left(self, *, is_last: bool = False) -> bool:
        """Requeue and leave; return False if the server could not be reached."""
        try:
            count = self._leases.leave(self._holdings.unwritten())
        except OperationalError as exc:
            if is_last:
                _log.info("the lease could not be given up and will expire: %s", exc)
            return False
        finally:
            self._leases.recovery.close()
            self._leases.connection.close()
        if count:
            _log.warning("%d messages with unwritten outcomes are back on their queues", count)
        return True
