"""Requeues messages that no worker holds any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from greenq.transport.leases import Leases, Renewal
    from greenq.watchdog.hooks import Holdings, WatchLimits


class Reclaimer:
    """Finds messages whose owner is dead or does not know of them, and requeues them.

    1. Messages of owners whose lease has expired, or whose process on this machine has ended. These
       are not requeued immediately after an outage of the server, when other workers may still be
       reconnecting.
    2. Messages that the server gave to this worker in a reply that was lost with a connection.
    3. Messages of Celery workers that no longer renew their scores. The scores of this worker's own
       records are renewed so often that Celery workers on the same queues leave these records
       alone.
    """

    def __init__(
        self,
        leases: Leases,
        holdings: Holdings,
        limits: WatchLimits,
        *,
        renew_every_s: float,
    ) -> None:
        """Reclaim over the connection of `leases`."""
        self._leases = leases
        self._holdings = holdings
        self._lease_s = limits.lease_s
        self._renew_every_s = renew_every_s
        self._scores_every_s = limits.visibility_timeout_s / 4
        self.scores_at_s = 0.0
        # From this time on, an expired lease means a dead owner; None if not yet known.
        self._recover_from_s: float | None = None
        self._was_connected = self._was_away = False
        # After a reconnection: how many searches for forgotten messages are left, when the next one
        # is due, and what the last one found.
        self.looks = 0
        self._look_again_s = 0.0
        self.forgotten: set[str] = set()

    def connected(self, now_s: float) -> None:
        """Set the time from which an ended lease means a dead owner."""
        if self._was_connected:
            grace_s = self._lease_s
            self.looks, self.forgotten = 2, set()
        elif self._was_away:
            grace_s = self._lease_s
        else:
            # This worker has just started. If the server has also just started, other workers may
            # still be reconnecting.
            grace_s = max(0.0, 2 * self._lease_s - self._leases.uptime_s())
            for owner in self._leases.others():
                if owner.is_dead:
                    self._leases.recovery.add(owner)
        self._was_connected = True
        self._recover_from_s = now_s + grace_s

    def failed(self) -> None:
        """Record that the server could not be reached."""
        if not self._was_connected:
            # If a worker starts during an outage, the other workers are not dead, but cut off too.
            self._was_away = True

    def lost(self, now_s: float) -> None:
        """Record that the lease was lost; for a while, this worker cannot tell who is dead."""
        self._recover_from_s = now_s + self._lease_s

    def recovers(self, now_s: float) -> bool:
        """Return whether an ended lease now means a dead owner."""
        return self._recover_from_s is not None and now_s >= self._recover_from_s

    def renewed(self, renewal: Renewal, now_s: float) -> None:
        """Recover the messages of dead workers, and search for forgotten and overdue ones.

        Raises:
            OperationalError: the connection is lost.
        """
        if self.recovers(now_s):
            for owner in renewal.expired:
                self._leases.recovery.add(owner)
        if self.looks and now_s >= self._look_again_s:
            self._look_again_s = now_s + self._renew_every_s
            self._look_for_forgotten()
        if now_s >= self.scores_at_s:
            self.scores_at_s = now_s + self._scores_every_s
            self._leases.renew_scores(sorted(self._holdings.unsettled()[0]))
            self._leases.recovery.add_overdue(self._leases.overdue)

    def _look_for_forgotten(self) -> None:
        """Requeue messages found by two searches; after only one, they may still be in transit."""
        self.looks -= 1
        known, first_unused = self._holdings.unsettled()
        found = self._leases.forgotten(known, first_unused)
        self._leases.give_back_forgotten(found & self.forgotten)
        self.forgotten = found if self.looks else set()
        if not self._leases.recovery.busy:
            self._leases.recovery.close()
