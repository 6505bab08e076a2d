"""Work that the watchdog thread passes to the hub."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from greenq.execution.state import WorkerState
    from greenq.hub import Hub
    from greenq.transport.leases import Renewal
    from greenq.watchdog.hooks import Holdings, HubCalls


class Notifier:
    """Makes the hub act on what the watchdog thread has learned from the server."""

    def __init__(
        self,
        hub: Hub,
        state: WorkerState,
        calls: HubCalls,
        holdings: Holdings,
    ) -> None:
        """Make `calls` in greenlets of `hub`."""
        self._hub = hub
        self._state = state
        self._calls = calls
        self._holdings = holdings

    def renewed(self, renewal: Renewal) -> None:
        """Make the hub act on the reply to a renewal."""
        if not renewal.first_unused:
            self._hub.spawn_soon(self._calls.forgotten, name="register")
        if renewal.paused != self._state.paused:
            self._hub.spawn_soon(partial(self._calls.paused, renewal.paused), name="pause queues")
        # The second condition means that the server has given this worker messages that it does not
        # know of, because a reply was lost.
        if renewal.work or renewal.first_unused > self._holdings.first_unused():
            self.look_for_work()

    def look_for_work(self) -> None:
        """Make a waiting consumer check for messages itself."""
        self._hub.spawn_soon(self._calls.look, name="look for work")

    def look_for_server(self) -> None:
        """Make a waiting consumer check whether its connection still works."""
        self._hub.spawn_soon(self._calls.look, name="look for the server")
