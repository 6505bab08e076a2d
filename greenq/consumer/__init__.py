"""The consumer: the parts of a worker that are restarted when the server is lost."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Any

from greenq.bootsteps.blueprint import Blueprint, StartStopPart, custom
from greenq.errors import AccessRefused, OperationalError
from greenq.hub import Event, Greenlet, spawn
from greenq.log import OutageLog

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from greenq.bootsteps.blueprint import Part
    from greenq.bootsteps.steps import Step as CustomStep
    from greenq.worker import Worker

_log = logging.getLogger(__name__)

_PAUSE_FIRST_S = 0.1
_PAUSE_MOST_S = 1.0


class Consumer(StartStopPart):
    """Runs the consumer's blueprint in one greenlet.

    1. Start its steps in order, then consume until told to stop.
    2. When the server is lost, stop them, pause, and start again; tasks that run go on meanwhile.
    3. Refused access at the first start ends the worker: waiting would not help.

    The steps, in the order of their start: Connection, Events, Mingle, Gossip, Tasks, Control,
    Heart, Agent, with the app's own steps where they require to be; then the event loop. All but
    Connection, Events and Tasks can be switched off.
    """

    name = "Consumer"
    requires = ("Pool",)
    # The app's own steps of the worker start before any message is taken.
    last = True

    def __init__(
        self,
        worker: Worker,
        steps: Sequence[Part],
        *,
        custom_steps: Iterable[type[CustomStep]] = (),
        options: Mapping[str, Any],
        retry_at_start: bool,
        max_retries: int | None,
    ) -> None:
        """Make the blueprint.

        Args:
            worker: the worker that this belongs to; its `tasks` consume.
            steps: its parts.
            custom_steps: the app's own steps.
            options: values of the app's own options, for its own steps.
            retry_at_start: try again when the server cannot be reached at first.
            max_retries: how often to try again in a row; None: without limit.
        """
        self.worker = worker
        self.app = worker.app
        self.hostname = worker.hostname
        self.tasks = worker.tasks
        self.blueprint = Blueprint("consumer", [*steps, *custom(custom_steps, self, options)])
        self._retry_at_start = retry_at_start
        self._max_retries = max_retries
        self._stopping = Event()
        self._outage = OutageLog(_log)
        self._greenlet: Greenlet | None = None

    def start(self) -> None:
        """Begin to consume, or to try to."""
        names = " > ".join(step.name for step in self.blueprint.steps)
        _log.info("consumer: %s > event loop", names)
        self._stopping.clear()
        self._greenlet = spawn(self._run, name="consumer", lasts=True)

    def stop(self) -> None:
        """Stop taking and give back what has not started."""
        self._stop_consuming()
        self.blueprint.stop()

    def terminate(self) -> None:
        """Stop taking, give back what has not started, and end the steps at once."""
        self._stop_consuming()
        self.blueprint.terminate()

    def _stop_consuming(self) -> None:
        self._stopping.set()
        self.worker.watch.tell(())
        self.tasks.stop_consuming()
        if self._greenlet is not None and not self._greenlet.dead:
            self._greenlet.join()
        self._greenlet = None
        self.tasks.give_back_unstarted()
        self.tasks.leave()

    def shutdown(self) -> None:
        """Shut the steps down: none is started again."""
        self.blueprint.shutdown()

    def _run(self) -> None:
        pause_s, was_up, failures = _PAUSE_FIRST_S, False, 0
        while not self._stopping.is_set():
            try:
                self.blueprint.start()
                was_up, failures = True, 0
                if self._stopping.is_set():
                    # Stopped while a step waited, for example for answers of other workers.
                    return
                self.worker.tell()
                _log.info("%s is ready", self.hostname)
                self.tasks.consume()
            except OperationalError as exc:
                if self.tasks.working:
                    # A new outage, not the one for which it has paused.
                    pause_s = _PAUSE_FIRST_S
                    self._outage.recovered("another interruption")
                self.blueprint.stop()
                hopeless = isinstance(exc, AccessRefused) or not self._retry_at_start
                failures += 1
                spent = self._max_retries is not None and failures > self._max_retries
                if spent or (hopeless and not was_up):
                    self.worker.give_up(exc)
                    return
                pause_s = self._pause(exc, pause_s)
            except Exception as exc:
                _log.exception("the consumer failed")
                self.worker.give_up(exc)
                return

    def _pause(self, exc: OperationalError, pause_s: float) -> float:
        """Wait before the next try, with jitter so that a fleet does not return all at once."""
        wait_s = pause_s * random.uniform(0.5, 1.0)
        self._outage.failed(f"consumer: no tasks are taken; trying again in {wait_s:.1f} s", exc)
        self._stopping.wait(wait_s)
        return min(pause_s * 2, _PAUSE_MOST_S)
