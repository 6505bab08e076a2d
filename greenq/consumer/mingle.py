"""Mingle: learn from the neighbours, before the first task, what they know."""

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

# A neighbour that does not answer in this time, because its hub is blocked, is not waited for.
_TIMEOUT_S = 1.0


class Mingle(StartStopPart):
    """Asks all other workers ``hello`` and takes over revoked ids and the clock.

    Gossip learns from it of whom only heartbeats will tell.

    Nobody there: it costs one round trip.
    """

    name = "Mingle"
    requires = ("Events",)

    def __init__(self, mailbox: Mailbox, state: WorkerState, hostname: str) -> None:
        """Ask over `mailbox`, whose clock is that of the worker."""
        self._mailbox = mailbox
        self._state = state
        self._hostname = hostname
        # The nodes that have answered, for whoever starts after this.
        self.met: frozenset[str] = frozenset()

    def start(self) -> None:
        """Say hello and hear the answers; who is refused does without. Switches: yes.

        Raises:
            OperationalError: the server is lost.
        """
        self.met = frozenset()
        revoked = self._state.revoked
        told = {"from_node": self._hostname, "revoked": list(revoked.ids())}
        try:
            replies = self._mailbox.ask("hello", told, timeout_s=_TIMEOUT_S)
        except (AccessRefused, ServerError) as exc:
            # Tasks are not kept waiting: by an ACL, or a server without memory for a request.
            _log.info("mingle: this worker cannot ask others: %s", exc)
            return
        replies.pop(self._hostname, None)
        self.met = frozenset(replies)
        revoked.update(each for reply in replies.values() for each in revoked_ids(reply))
        for reply in replies.values():
            # The header of a Celery worker's reply has another clock than the cluster's.
            self._state.clock.adjust(clock(reply))
        if replies:
            _log.info("mingled with %s", listed(sorted(replies)))
        else:
            _log.info("mingle: all alone")


def revoked_ids(reply: object) -> Iterator[str]:
    """Read the revoked ids out of a reply; older workers send them with the times, as an object."""
    ids = reply.get("revoked") if isinstance(reply, dict) else None
    if isinstance(ids, list | dict):
        yield from (task_id for task_id in ids if KEY.takes(task_id))


def clock(reply: object) -> int:
    """Read the clock out of a reply; 0 if there is none."""
    found = reply.get("clock") if isinstance(reply, dict) else None
    return found if CLOCK.takes(found) else 0
