"""Renews this worker's lease in time, and notices when the lease is lost."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from greenq.hub import sleep
from greenq.protocol.text import listed
from greenq.utils.log import OutageLog

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from greenq.errors import OperationalError
    from greenq.execution.state import WorkerState
    from greenq.transport.leases import Leases, Renewal
    from greenq.watchdog.beat_lead import BeatLead
    from greenq.watchdog.cluster import ClusterLink
    from greenq.watchdog.guard_process import GuardProcess
    from greenq.watchdog.reclaimer import Reclaimer

_log = logging.getLogger(__name__)

# The pause between attempts to renew a lease.
_RETRY_S = 0.25

# How many tasks a log line names.
_NAMED = 20


class LeaseKeeper:
    """Renews the lease in time, even if the hub is blocked."""

    def __init__(
        self,
        leases: Leases,
        state: WorkerState,
        cluster: ClusterLink,
        beat_lead: BeatLead,
        reclaimer: Reclaimer,
        *,
        lease_s: float,
        renew_every_s: float,
        is_waiting: Callable[[], bool],
        guard: GuardProcess | None,
        clock: Callable[[], float],
    ) -> None:
        """Renew the lease of the owner of `leases`; see `Watch` for the arguments."""
        self._leases = leases
        self._state = state
        self._cluster = cluster
        self._beat_lead = beat_lead
        self._reclaimer = reclaimer
        self._lease_s = lease_s
        self._renew_every_s = renew_every_s
        self._is_waiting = is_waiting
        self._guard = guard
        self._clock = clock
        self._outage = OutageLog(_log)
        self.due_s = 0.0
        # Any thread may set this to request an earlier renewal.
        self._is_wanted = False
        # The watchdog thread writes these, and any thread may read them.
        self.held = False
        self.problem: OperationalError | None = None
        # The challenge that this owner must return when it registers.
        self.question = ""

    def is_due(self) -> bool:
        """Return whether to renew now."""
        return self._is_wanted or self._clock() >= self.due_s

    def announce_queues(self, queues: Sequence[str]) -> None:
        """Make the next renewal report the queues of this worker; any thread may call this."""
        self._leases.announce_queues(queues)
        self._is_wanted = True

    def wait_held(self, timeout_s: float) -> bool:
        """Wait, in the hub, until the lease has been written for the first time. Switches: yes."""
        deadline_s = self._clock() + timeout_s
        while not self.held and self._clock() < deadline_s:
            sleep(0.005)
        return self.held

    def renew(self, now_s: float) -> Renewal:
        """Renew the lease, over a new connection if necessary; return the server's reply.

        Raises:
            OperationalError: the server could not be reached, or refused the renewal.
        """
        self._is_wanted = False
        asked_s = self._state.now_s()
        self.due_s = now_s + self._renew_every_s
        if not self._leases.connection.connected:
            self._leases.connection.connect()
            self._cluster.reconnected()
            self._reclaimer.connected(now_s)
        renewal = self._leases.renew(
            self._cluster.heartbeats.with_renewal(now_s),
            would_relay=self._is_waiting(),
            lead=self._beat_lead.call(now_s),
        )
        # Read the clock before any other call, since each call takes time. A slow reply contains
        # the server's time when the reply was sent, not the present time.
        if self._state.now_s() - asked_s < self._lease_s / 2:
            self._state.clock_offset_s = renewal.server_time - time.time()
        if self._guard is not None:
            self._guard.beat()
        self.question = renewal.question
        if renewal.unpublished:
            self._cluster.refused(renewal.unpublished)
        if not renewal.held and self.held:
            self._lost(now_s, renewal)
        self._state.lease_until_s = asked_s + self._lease_s
        self.held = True
        self.problem = None
        self._outage.recovered("the lease is renewed again")
        return renewal

    def failed(self, now_s: float, exc: OperationalError) -> None:
        """Log why the renewal at `now_s` failed, and try again soon over a new connection."""
        self.problem = exc
        self._outage.failed("the lease could not be renewed", exc)
        self._leases.connection.close()
        self.due_s = now_s + min(_RETRY_S, self._renew_every_s)

    def _lost(self, now_s: float, renewal: Renewal) -> None:
        """Record that the lease has ended, and log which tasks were given to other workers."""
        self._state.lease_lost_s = self._state.now_s()
        self._reclaimer.lost(now_s)
        if renewal.first_unused:
            here = [each for each in list(self._state.reserved.values()) if not each.settled]
            held = self._leases.held()
            gone = [str(each) for each in here if each.delivery.tag not in held]
            _log.error(
                "this worker lost its lease; of the %d tasks that it holds, %d were given to other"
                " workers and run twice if they had begun here%s",
                len(here), len(gone), f": {listed(gone, _NAMED)}" if gone else "",
            )  # fmt: skip
        else:
            _log.error("the server has lost its data; this worker registers its messages again")
