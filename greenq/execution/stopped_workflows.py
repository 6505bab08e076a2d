"""Learns about twice a second which workflows are cancelled or paused, if workflows are indexed.

When this worker has put aside messages of a paused workflow, it asks the server immediately. If the
workflow has been resumed in the meantime, its messages are back on their queue, and a worker that
did not know this would put them aside again.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from greenq.bootsteps.blueprint import StartStopPart
from greenq.errors import OperationalError
from greenq.hub import Event, Greenlet, spawn
from greenq.transport.workflows import PAUSED
from greenq.utils.log import OutageLog

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from greenq.transport.workflows import Workflows

_log = logging.getLogger(__name__)

INTERVAL_S = 0.4


class StoppedWorkflows(StartStopPart):
    """Asks the server which workflows are stopped, and stops the worker's tasks accordingly."""

    name = "StoppedWorkflows"
    requires = ("Outbox", "Pool")

    def __init__(
        self,
        workflows: Workflows,
        stop: Callable[[Mapping[str, str]], object],
    ) -> None:
        """Call `stop` with the stopped workflows whenever they have changed."""
        self._workflows = workflows
        self._stop = stop
        self._changes = -1
        self._stopped: Mapping[str, str] = {}
        self._held = Event()
        self._outage = OutageLog(_log)
        self._greenlet: Greenlet | None = None

    def start(self) -> None:
        """Ask immediately, before any message is taken, and then repeatedly."""
        self._look()
        self._greenlet = spawn(self._run, name="stopped workflows", lasts=True)

    def stop(self) -> None:
        """Stop asking."""
        if self._greenlet is not None:
            self._greenlet.kill()
            self._greenlet = None

    def _run(self) -> None:
        while True:
            self._held.wait(INTERVAL_S)
            self._held.clear()
            self._look()

    def held(self, _written: bool) -> None:
        """Note that a message was put aside. Switches: no."""
        self._held.set()

    def _look(self) -> None:
        try:
            changes = self._workflows.changes()
            if changes != self._changes:
                self._obey(self._workflows.stopped())
                self._changes = changes
        except OperationalError as exc:
            self._outage.failed("cannot read which workflows are cancelled or paused", exc)
        else:
            self._outage.recovered("can read again which workflows are cancelled or paused")

    def _obey(self, stopped: Mapping[str, str]) -> None:
        go_on = [
            each
            for each, how in self._stopped.items()
            if how == PAUSED and stopped.get(each) != PAUSED
        ]
        self._stopped = stopped
        self._stop(stopped)
        for each in go_on:
            # Whoever resumed the workflow may have died before releasing its messages.
            self._workflows.release(each)
