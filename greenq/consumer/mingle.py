"""Mingle: before the first task, copies revoked ids and the clock from other workers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from greenq.bootsteps.blueprint import StartStopPart
from greenq.errors import AccessRefused, ServerError
from greenq.protocol.limits import CLOCK, KEY
from greenq.protocol.text import listed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from greenq.execution.state import WorkerState
    from greenq.transport.mailbox import Mailbox

_log = logging.getLogger(__name__)

# How long to wait for replies; a worker whose hub is blocked may not reply in time.
_TIMEOUT_S = 1.0


class Mingle(StartStopPart):
    """Sends ``hello`` to all other workers, and adopts their revoked ids and their clock.

    The replies also tell gossip which workers may have no lease. If there are no other workers,
    mingling costs one round trip.
    """

    name = "Mingle"
    requires = ("Events",)

    def __init__(self, mailbox: Mailbox, state: WorkerState, hostname: str) -> None:
        """Send requests through `mailbox`, which uses the worker's clock."""
        self._mailbox = mailbox
        self._state = state
        self._hostname = hostname
        # The nodes that have replied, for the steps that start after this one.
        self.met: frozenset[str] = frozenset()

    def start(self) -> None:
        """Send hello and read the replies, if the server permits it. Switches: yes.

        Raises:
            OperationalError: the server cannot be reached.
        """
        self.met = frozenset()
        revoked = self._state.revoked
        hello = {"from_node": self._hostname, "revoked": list(revoked.ids())}
        try:
            replies = self._mailbox.ask("hello", hello, timeout_s=_TIMEOUT_S)
        except (AccessRefused, ServerError) as exc:
            # A missing permission, or a server out of memory, must not keep tasks waiting.
            _log.info("mingle: this worker cannot ask the others: %s", exc)
            return
        replies.pop(self._hostname, None)
        self.met = frozenset(replies)
        revoked.update(each for reply in replies.values() for each in revoked_ids(reply))
        for reply in replies.values():
            # The header of a Celery worker's reply has a clock that is not the cluster's.
            self._state.clock.adjust(clock(reply))
        if replies:
            _log.info("mingled with %s", listed(sorted(replies)))
        else:
            _log.info("mingle: all alone")


def revoked_ids(reply: object) -> Iterator[str]:
    """Return the revoked ids in a reply; older workers send a mapping from ids to times."""
    ids = reply.get("revoked") if isinstance(reply, dict) else None
    if isinstance(ids, list | dict):
        yield from (task_id for task_id in ids if KEY.takes(task_id))


def clock(reply: object) -> int:
    """Return the clock in a reply; 0 if it has none."""
    found = reply.get("clock") if isinstance(reply, dict) else None
    return found if CLOCK.takes(found) else 0
