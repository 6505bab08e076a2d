"""The worker's link to its cluster: messages published to it, and its own heartbeat."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from greenq.errors import AccessRefused, OperationalError, ServerError
from greenq.watchdog.heartbeat import HeartbeatSchedule
from greenq.watchdog.subscriber import Subscriber

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.hub import Hub
    from greenq.transport.leases import Leases
    from greenq.watchdog.hub_monitor import HubMonitor

_log = logging.getLogger(__name__)

# For messages that must be answered, the hub counts as blocked if it has neither begun a message
# nor answered a ping for this long.
_PATIENCE_S = 0.05


class ClusterLink:
    """Reads messages for the worker and publishes its heartbeat, over the lease's connection."""

    def __init__(
        self,
        leases: Leases,
        hub: Hub,
        monitor: HubMonitor,
        *,
        wake: Callable[[], object],
        renew_every_s: float,
        clock: Callable[[], float],
    ) -> None:
        """Use the connection of `leases`.

        Args:
            leases: provides the connection.
            hub: handles the published messages.
            monitor: knows whether the hub is blocked.
            wake: makes the watchdog thread run soon.
            renew_every_s: how often the lease is renewed.
            clock: seconds, monotonic.
        """
        self._leases = leases
        self.subscriber = Subscriber(hub, changed=wake)
        self.heartbeats = HeartbeatSchedule(monitor, renew_every_s=renew_every_s, clock=clock)
        self._monitor = monitor
        self._clock = clock
        self._is_refused = False
        # True if data may have been read from the socket but not handled. No wait on the socket
        # would report such data.
        self.is_behind = False

    @property
    def due_s(self) -> float:
        """When to publish the heartbeat, or to answer in place of the hub (monotonic)."""
        return min(self.heartbeats.latest_s, self._impatient_s())

    def reconnected(self) -> None:
        """Record that the connection is new and has no subscriptions."""
        self.subscriber.reconnected()
        self._is_refused = False

    def refused(self, why: object) -> None:
        """Log, once for each connection, that this worker is not allowed to listen or publish."""
        level = logging.DEBUG if self._is_refused else logging.WARNING
        self._is_refused = True
        _log.log(level, "this worker is not a full member of its cluster: %s", why)

    def attend(self, until_s: float) -> bool:
        """Read published messages, answer those that the hub cannot, and publish the heartbeat.

        Repeat until no messages are left, or until another duty is due at `until_s`. Return False
        if the connection was lost.
        """
        connection = self._leases.connection
        self.is_behind = False
        has_called = True
        try:
            # Messages that arrived together with a reply have already been read from the socket, so
            # a wait would not report them.
            while has_called and connection.connected:
                has_called = False
                if self.subscriber.poll(connection):
                    self._monitor.ask()
                if self._clock() >= self._impatient_s():
                    self.subscriber.answer_urgent(connection)
                    has_called = True
                beat = self.heartbeats.alone()
                if beat is not None:
                    connection.call("PUBLISH", *beat)
                    has_called = True
                if self._clock() >= until_s:
                    self.is_behind = has_called
                    break
        except (AccessRefused, ServerError) as exc:
            self.refused(exc)
        except OperationalError as exc:
            _log.info("no events or requests arrive until the server can be reached: %s", exc)
            connection.close()
            return False
        return True

    def _impatient_s(self) -> float:
        """Return when to answer in place of the hub: immediately if it is known to be blocked."""
        patience_s = 0.0 if self._monitor.is_still(_PATIENCE_S) else _PATIENCE_S
        return self.subscriber.oldest_s + patience_s
