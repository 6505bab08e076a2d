"""The consumer: what of a worker depends on the server, and starts anew when that is lost."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING

from greenq.bootsteps import Blueprint, StartStopStep
from greenq.errors import AccessRefused, OperationalError
from greenq.hub import Event, Greenlet, spawn
from greenq.outage import Outage

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.consumer.connection import Connection
    from greenq.consumer.tasks import Tasks

_log = logging.getLogger(__name__)

_PAUSE_FIRST_S = 0.1
_PAUSE_MOST_S = 1.0


class Consumer(StartStopStep):
    """Runs the consumer's blueprint in one greenlet.

    1. Start its steps in order, then consume until told to stop.
    2. When the server is lost, stop them, pause, and start again; tasks that run go on meanwhile.
    3. Refused access at the first start ends the worker: waiting would not mend it.

    The steps, in the order of the start: Connection, Tasks. (Events, Mingle, Gossip, Control, Heart
        and Agent
    have their places between and after these.)
    """

    name = "Consumer"
    requires = ("Pool",)

    def __init__(
        self,
        connection: Connection,
        tasks: Tasks,
        *,
        retry_at_start: bool,
        max_retries: int | None,
        gave_up: Callable[[Exception], None],
    ) -> None:
        """Make the blueprint.

        Args:
            connection: its first step.
            tasks: the step that consumes.
            retry_at_start: try again when the server cannot be reached at first.
            max_retries: how often to try again in a row; None for ever.
            gave_up: called when it cannot go on at all.
        """
        self.tasks = tasks
        self.blueprint = Blueprint("consumer", [connection, tasks])
        self._retry_at_start = retry_at_start
        self._max_retries = max_retries
        self._gave_up = gave_up
        self._stopping = Event()
        self._outage = Outage(_log)
        self._greenlet: Greenlet | None = None

    def start(self) -> None:
        """Begin to consume, or to try."""
        self._stopping.clear()
        self._greenlet = spawn(self._run, name="consumer")

    def stop(self) -> None:
        """Stop taking and give back what has not started."""
        self._stopping.set()
        self.tasks.stop_consuming()
        if self._greenlet is not None and not self._greenlet.dead:
            self._greenlet.join()
        self._greenlet = None
        self.tasks.give_back_unstarted()
        self.blueprint.stop()

    def _run(self) -> None:
        pause_s, was_up, failures = _PAUSE_FIRST_S, False, 0
        while not self._stopping.is_set():
            try:
                self.blueprint.start()
                was_up, failures = True, 0
                self.tasks.consume()
            except OperationalError as exc:
                if self.tasks.working:
                    # Another outage, and not the one that was paused for.
                    pause_s = _PAUSE_FIRST_S
                    self._outage.over("another interruption")
                self.blueprint.stop()
                hopeless = isinstance(exc, AccessRefused) or not self._retry_at_start
                failures += 1
                spent = self._max_retries is not None and failures > self._max_retries
                if spent or (hopeless and not was_up):
                    self._gave_up(exc)
                    return
                pause_s = self._pause(exc, pause_s)
            except Exception as exc:
                _log.exception("the consumer failed")
                self._gave_up(exc)
                return

    def _pause(self, exc: OperationalError, pause_s: float) -> float:
        """Wait before the next try, with jitter so that a fleet does not come back as one."""
        wait_s = pause_s * random.uniform(0.5, 1.0)
        self._outage.say(f"consumer: no tasks are taken; trying again in {wait_s:.1f} s", exc)
        self._stopping.wait(wait_s)
        return min(pause_s * 2, _PAUSE_MOST_S)
