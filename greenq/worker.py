"""One worker: its parts, made once and in one place, and its life from start to exit code."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from greenq.autoscale import Autoscaler
from greenq.bootsteps import Blueprint
from greenq.config import DEFAULT_CONCURRENCY
from greenq.consumer import Consumer
from greenq.consumer.connection import Connection
from greenq.consumer.tasks import Tasks
from greenq.errors import WorkerLostError
from greenq.execute import Executor, running_task
from greenq.hub import Event, Hub, spawn
from greenq.pool import Pool
from greenq.protocol.envelope import header
from greenq.protocol.states import FAILURE
from greenq.stacks import all_stacks
from greenq.timer import Timer
from greenq.transport.intake import Intake
from greenq.transport.leases import Leases, Verdict, new_owner
from greenq.transport.outbox import Outbox
from greenq.watch import Watch
from greenq.worker_state import WorkerState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from greenq.app import Greenq
    from greenq.bootsteps import Step

_log = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_FAILED = 1


class Worker:
    """A worker of an app, in this process.

    Its blueprint starts Timer, Hub, Watch, Outbox, Pool, Autoscaler, Consumer, in this order, and
    stops them in reverse: first nothing new is taken, then what runs ends, then what it left is
    written, then the lease is given up.
    """

    def __init__(
        self,
        app: Greenq,
        *,
        queues: Iterable[str] = (),
        concurrency: int | None = None,
        autoscale: tuple[int, int] | None = None,
        hostname: str | None = None,
    ) -> None:
        """Make all parts; nothing is started and nothing is sent.

        Args:
            app: whose tasks to run; its task modules are imported now.
            queues: to take from; none means those of the settings.
            concurrency: tasks at once; None means the setting.
            autoscale: (most, least) instead of a fixed concurrency.
            hostname: node name, ``greenq@host`` by default.
        """
        app.import_task_modules()
        config = app.config
        self.app = app
        self.hostname = node_name(hostname)
        self.queues = tuple(queues) or config.task.task_queues or (config.task.task_default_queue,)
        self.autoscale = autoscale
        fixed = concurrency or config.worker.worker_concurrency or DEFAULT_CONCURRENCY
        self.concurrency = autoscale[1] if autoscale else fixed
        self.state = WorkerState()
        # This process as an owner of messages; never the same twice.
        self.owner = new_owner(self.hostname)
        self.exit_code = EXIT_OK
        self._ended = Event()
        transport = app.transport
        self.timer = Timer()
        self.hub = Hub()
        options = config.broker.broker_transport_options
        # A dead connection is noticed and replaced before the lease ends that is renewed over it.
        connection = results = transport.client.connection(
            timeout_s=max(0.5, config.worker.worker_lease / 3)
        )
        if transport.result_client not in (None, transport.client):
            results = transport.result_client.connection()
        self.watch = Watch(
            Leases(
                connection,
                transport.broker,
                self.owner,
                queues=self.queues,
                visibility_timeout_s=options.visibility_timeout,
                lease_s=config.worker.worker_lease,
                max_deliveries=config.task.task_max_deliveries,
                results=results,
                may_run_again=self._may_run_again,
                bury=self._bury,
            ),
            self.hub,
            self.state,
            lease_s=config.worker.worker_lease,
            visibility_timeout_s=options.visibility_timeout,
            blocked_after_s=config.worker.worker_hub_lag_warning,
            blocking_task=running_task,
            held=self._held,
            look=self._look,
        )
        self.outbox = Outbox(transport)
        executor = Executor(
            config=config.task,
            transport=transport,
            producer=app.producer,
            outbox=self.outbox,
            state=self.state,
            hostname=self.hostname,
        )
        self.pool = Pool(
            self.concurrency,
            executor,
            prefetch_multiplier=config.worker.worker_prefetch_multiplier,
            grace_s=config.worker.worker_shutdown_grace,
        )
        strategy = options.queue_order_strategy
        self.intake = Intake(
            transport.client,
            transport.keys,
            sorted(self.queues) if strategy == "sorted" else self.queues,
            self.owner.incarnation,
            rotate=strategy == "round_robin",
            member=str(self.owner),
            lease_s=config.worker.worker_lease,
        )
        self.tasks = Tasks(
            config=config.task,
            transport=transport,
            registry=app.tasks,
            intake=self.intake,
            outbox=self.outbox,
            pool=self.pool,
            timer=self.timer,
            state=self.state,
            hostname=self.hostname,
            left_behind=self._left_behind,
        )
        self.pool.abandoned = self.tasks.give_back
        self.autoscaler: Autoscaler | None = None
        if autoscale:
            self.autoscaler = Autoscaler(
                self.pool,
                self.timer,
                self.hub,
                most=autoscale[0],
                least=autoscale[1],
                keepalive_s=config.worker.worker_autoscale_keepalive,
                interval_s=config.worker.worker_autoscale_interval,
                backlog=self.tasks.backlog,
            )
        self.consumer = Consumer(
            Connection(transport, self.queues, self.watch),
            self.tasks,
            retry_at_start=config.broker.broker_connection_retry_on_startup,
            max_retries=config.broker.broker_connection_max_retries,
            gave_up=self._give_up,
        )
        steps: list[Step | None] = [
            self.timer, self.hub, self.watch, self.outbox, self.pool, self.autoscaler,
            self.consumer,
        ]  # fmt: skip
        self.blueprint = Blueprint("worker", [step for step in steps if step is not None])

    def run(self, *, signals: bool = True) -> int:
        """Work until stopped and return the exit code. Switches: yes.

        With `signals`, SIGTERM and SIGINT stop warm (finish what runs), a second one cold; SIGQUIT
        is cold at once; SIGUSR1 logs what everything does at the moment.
        """
        if signals:
            self.hub.on_signal(signal.SIGTERM, self._on_stop_signal)
            self.hub.on_signal(signal.SIGINT, self._on_stop_signal)
            self.hub.on_signal(signal.SIGQUIT, self.stop_cold)
            self.hub.on_signal(signal.SIGUSR1, self._log_stacks)
        self.blueprint.start()
        self._ended.wait()
        self.blueprint.stop()
        return self.exit_code

    def start(self) -> None:
        """Start without waiting, for a program that runs a worker beside something else."""
        spawn(partial(self.run, signals=False), name="worker")

    def stop(self) -> None:
        """Stop warm: take nothing more, finish what runs in time, give back the rest."""
        _log.info("warm shutdown: %d tasks run", self.pool.running)
        self._ended.set()

    def stop_cold(self) -> None:
        """Stop now: everything unfinished goes back to its queue."""
        _log.warning("cold shutdown: %d tasks go back to their queues", self.pool.running)
        self.exit_code = EXIT_FAILED
        self.pool.hurry()
        self._ended.set()

    def _on_stop_signal(self) -> None:
        if self._ended.is_set():
            self.stop_cold()
        else:
            self.stop()

    def _log_stacks(self) -> None:
        running = self.pool.active
        names = {each.greenlet: str(each) for each in running if each.greenlet is not None}
        _log.warning("%s", all_stacks(names))

    def _left_behind(self) -> None:
        """Let the autoscaler know at once that more waits than the pool has room for."""
        if self.autoscaler is not None and self.pool.room <= 0:
            self.autoscaler.tick()

    def _look(self) -> None:
        """Have a consumer that waits look for work."""
        self.intake.wake(look=True)

    def _held(self) -> tuple[set[str], int]:
        """Tell what is not settled on the server, and which tag is the next; any thread may ask."""
        # In this order: what is taken meanwhile has a number beyond the first one.
        first_unused = self.intake.first_unused
        return {*list(self.state.reserved), *self.outbox.tags()}, first_unused

    def _may_run_again(self, raw: bytes) -> bool:
        """Tell whether a message's task runs again when its worker is lost."""
        task = self.app.tasks.get(header(raw, "task") or "")
        own = None if task is None else task.reject_on_worker_lost
        return self.app.config.task.task_reject_on_worker_lost if own is None else own

    def _bury(self, tag: str, queue: str, raw: bytes, reason: str) -> Verdict:
        """Put a lost worker's message among the dead letters; who waits for it learns why."""
        transport, now = self.app.transport, datetime.now(UTC)
        move = transport.broker.bury(tag, queue, raw, reason=reason, worker=self.hostname, now=now)
        task_id = header(raw, "id")
        if task_id is None or not transport.stores_results:
            return Verdict(move)
        error = WorkerLostError(reason)
        result = transport.backend.stored(task_id, FAILURE, error, date_done=now.isoformat())
        return Verdict(move, result)

    def _give_up(self, error: Exception) -> None:
        """End a worker that cannot go on."""
        _log.critical("the worker ends: %s", error)
        self.exit_code = EXIT_FAILED
        self._ended.set()

    def info(self) -> dict[str, Any]:
        """Tell about this worker: its parts' own information and the totals."""
        told: dict[str, Any] = {"pid": os.getpid(), "total": dict(self.state.total)}
        for step in self.blueprint.steps:
            info = step.info()
            if info:
                told[step.name.lower()] = info
        return told


def node_name(given: str | None, *, host: str | None = None) -> str:
    """Return a worker's node name; ``%h`` is the host, ``%n`` its short name, ``%d`` its domain.

    A name without a host gets this one; nothing given means ``greenq@<host>``.
    """
    host = host or socket.gethostname()
    short, _, domain = host.partition(".")
    text = given or "greenq@%h"
    if "@" not in text:
        text += "@%h"
    meant = {"h": host, "n": short, "d": domain, "%": "%"}
    return re.sub("%([hnd%])", lambda match: meant[match[1]], text)
