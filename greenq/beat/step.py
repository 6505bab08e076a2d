"""The beat inside a worker, started by ``-B``."""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING

from greenq.bootsteps.blueprint import StartStopPart
from greenq.hub import join_all, spawn
from greenq.signals import beat_embedded_init

if TYPE_CHECKING:
    from greenq.beat.scheduler import BeatApp, Link, Scheduler
    from greenq.hub import Greenlet

_log = logging.getLogger(__name__)

# At shutdown, at most one call to the server has to finish.
_STOP_S = 10.0


class Beat(StartStopPart):
    """Sends periodic tasks from a greenlet of the worker; any number of workers can do so."""

    requires = ("Hub",)

    def __init__(self, app: BeatApp, hostname: str, link: Link) -> None:
        """Check the entries of `app`; `link` asks who leads.

        Raises:
            ConfigError: an entry is wrong.
        """
        # The scheduler takes half a megabyte, so it is imported only in workers with a beat.
        scheduler = importlib.import_module("greenq.beat.scheduler")
        self._scheduler: Scheduler = scheduler.Scheduler(app, name=hostname, link=link)
        self._greenlet: Greenlet | None = None

    def start(self) -> None:
        """Start the greenlet."""
        beat_embedded_init.send(self._scheduler)
        self._greenlet = spawn(self._scheduler.run, name="beat", lasts=True)

    def stop(self) -> None:
        """Stop sending and give up the lead."""
        self._scheduler.stop()
        if self._greenlet is not None and not join_all([self._greenlet], _STOP_S):
            _log.warning("the beat did not end within %g s", _STOP_S)

    def info(self) -> dict[str, object]:
        """Return the data that `stats` shows."""
        return {"name": self._scheduler.name, "leads": self._scheduler.leads}
