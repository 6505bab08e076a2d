"""Work that the watchdog thread passes to the hub."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.execution.state import WorkerState
    from greenq.hub import Hub
    from greenq.transport.leases import Renewal


class Notifier:
    """Makes the hub act on what the watchdog thread has learned from the server."""

    def __init__(
        self,
        hub: Hub,
        state: WorkerState,
        *,
        first_unused: Callable[[], int],
        look: Callable[[], object],
        paused: Callable[[frozenset[str]], object],
        forgotten: Callable[[], object],
    ) -> None:
        """Call the worker's callbacks in greenlets of `hub`; see `Watch`."""
        self._hub = hub
        self._state = state
        self._first_unused = first_unused
        self._look = look
        self._paused = paused
        self._forgotten = forgotten

    def renewed(self, renewal: Renewal) -> None:
        """Make the hub act on the answer to a renewal."""
        if not renewal.first_unused:
            self._hub.spawn_soon(self._forgotten, name="register")
        if renewal.paused != self._state.paused:
            self._hub.spawn_soon(partial(self._paused, renewal.paused), name="pause queues")
        # The server has assigned tags to messages that this worker does not know, since an answer
        # was lost.
        if renewal.work or renewal.first_unused > self._first_unused():
            self.look_for_work()

    def look_for_work(self) -> None:
        """Make a waiting consumer check for messages itself."""
        self._hub.spawn_soon(self._look, name="look for work")

    def look_for_server(self) -> None:
        """Make a waiting consumer check whether its connection still works."""
        self._hub.spawn_soon(self._look, name="look for the server")
