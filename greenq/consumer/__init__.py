"""The consumer: the parts that depend on the server and restart after the connection is lost.

The worker's parts and its monitoring use this package.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from greenq.bootsteps.blueprint import Blueprint, StartStopPart, custom
from greenq.errors import AccessRefused, OperationalError
from greenq.hub import Event, Greenlet, spawn
from greenq.signals import worker_ready
from greenq.utils.backoff import Backoff
from greenq.utils.log import OutageLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from greenq.app import Greenq
    from greenq.bootsteps.blueprint import Part
    from greenq.bootsteps.steps import Step as CustomStep
    from greenq.consumer.queue_set import QueueSet
    from greenq.consumer.tasks import Tasks

_log = logging.getLogger(__name__)

_PAUSE_FIRST_S = 0.1
_PAUSE_MAX_S = 1.0


class Consumer(StartStopPart):
    """Runs the consumer's blueprint in one greenlet.

    1. Start the steps in order, then consume until stopped.
    2. When the connection is lost, stop the steps, pause, and start again; running tasks continue
       in the meantime.
    3. If access is refused at the first start, the worker ends, since waiting would not help.

    The steps start in this order: Connection, Events, Mingle, Revokes, Gossip, Tasks, Control,
    Heart, Agent. The event loop follows. The app's own steps are placed by their requirements. All
    steps except Connection, Events, Revokes and Tasks can be switched off.
    """

    name = "Consumer"
    requires = ("Pool",)
    # The app's own worker steps start before any message is taken.
    last = True

    def __init__(
        self,
        steps: Sequence[Part],
        *,
        worker: object,
        app: Greenq,
        hostname: str,
        tasks: Tasks,
        queues: QueueSet,
        give_up: Callable[[Exception], None],
        custom_steps: Iterable[type[CustomStep]] = (),
        options: Mapping[str, Any],
        retry_at_start: bool,
        max_retries: int | None,
    ) -> None:
        """Build the blueprint.

        Args:
            steps: the blueprint's parts, including `tasks`.
            worker: the worker, for the app's own steps.
            app: the app.
            hostname: the worker's node name.
            tasks: the step that takes the tasks.
            queues: the queues to take from.
            give_up: called with the error that ends the worker.
            custom_steps: the app's own steps.
            options: values of the app's own options, for its own steps.
            retry_at_start: whether to retry when the server cannot be reached at the start.
            max_retries: how many times to retry in a row; None means no limit.
        """
        self.worker = worker
        self.app = app
        self.hostname = hostname
        self.tasks = tasks
        self._queues = queues
        self._give_up = give_up
        self.blueprint = Blueprint("consumer", [*steps, *custom(custom_steps, self, options)])
        self._retry_at_start = retry_at_start
        self._max_retries = max_retries
        self._stopping = Event()
        self._outage = OutageLog(_log)
        self._greenlet: Greenlet | None = None
        # Any thread may read these: the progress, why no messages are taken, and how many times the
        # connection was lost.
        self.has_started = self.is_stopping = self.is_consuming = False
        self.problem: Exception | None = None
        self.interruptions = 0

    def start(self) -> None:
        """Start consuming; if the server cannot be reached, keep trying."""
        names = " > ".join(step.name for step in self.blueprint.steps)
        _log.info("consumer: %s > event loop", names)
        self._stopping.clear()
        self._greenlet = spawn(self._run, name="consumer", lasts=True)
        self.has_started = True

    def stop(self) -> None:
        """Stop taking messages and requeue those that have not started."""
        self._stop_consuming()
        self.blueprint.stop()

    def terminate(self) -> None:
        """Stop taking messages, requeue those that have not started, and end the steps quickly."""
        self._stop_consuming()
        self.blueprint.terminate()

    def _stop_consuming(self) -> None:
        self._stopping.set()
        self.is_stopping = True
        self._queues.retract()
        self.tasks.stop_consuming()
        if self._greenlet is not None and not self._greenlet.dead:
            self._greenlet.join()
        self._greenlet = None
        self.tasks.give_back_unstarted()
        self.tasks.leave()

    def shutdown(self) -> None:
        """Shut the steps down permanently."""
        self.blueprint.shutdown()

    def _run(self) -> None:
        pauses, was_up, failures = Backoff(_PAUSE_FIRST_S, _PAUSE_MAX_S), False, 0
        while not self._stopping.is_set():
            try:
                self.blueprint.start()
                is_first, was_up, failures = not was_up, True, 0
                if self._stopping.is_set():
                    # The worker was stopped while a step was waiting, for example for other
                    # workers' replies.
                    return
                self._queues.announce()
                _log.info("%s is ready", self.hostname)
                if is_first:
                    worker_ready.send(self)
                self.problem, self.is_consuming = None, True
                self.tasks.consume()
            except OperationalError as exc:
                self.interruptions += self.is_consuming
                self.problem, self.is_consuming = exc, False
                if self.tasks.working:
                    # The last connection worked, so this is a new outage.
                    pauses.reset()
                    self._outage.recovered("another interruption")
                self.blueprint.stop()
                hopeless = isinstance(exc, AccessRefused) or not self._retry_at_start
                failures += 1
                spent = self._max_retries is not None and failures > self._max_retries
                if spent or (hopeless and not was_up):
                    self._give_up(exc)
                    return
                self._pause(exc, pauses.next_s())
            except Exception as exc:
                _log.exception("the consumer failed")
                self._give_up(exc)
                return

    def _pause(self, exc: OperationalError, wait_s: float) -> None:
        """Wait before the next attempt."""
        self._outage.failed(f"consumer: no tasks are taken; trying again in {wait_s:.1f} s", exc)
        self._stopping.wait(wait_s)
