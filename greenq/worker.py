"""The life of a worker: its start, signals, stop and exit code."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import weakref
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any

from greenq.commands.registry import panel
from greenq.config.node_names import node_name
from greenq.errors import WorkerFault
from greenq.execution.processes import refuse_fork
from greenq.hub import Event, GreenletExit, spawn
from greenq.monitoring.step import build_monitoring
from greenq.signals import (
    celeryd_after_setup,
    celeryd_init,
    worker_init,
    worker_process_init,
    worker_process_shutdown,
    worker_shutdown,
    worker_shutting_down,
)
from greenq.utils.log import keep_going
from greenq.worker_parts.build import build, build_blueprint, build_consumer, stacks
from greenq.worker_parts.options import EXIT_FAILED, EXIT_OK, EXIT_RECYCLED, WorkerOptions

if TYPE_CHECKING:
    from greenq.app import Greenq
    from greenq.transport.settle import Settlement

_log = logging.getLogger(__name__)

_DEFAULTS = WorkerOptions()


def _terminals() -> set[int]:
    """Return which of the three standard streams are open terminals."""
    return {number for number in (0, 1, 2) if os.isatty(number)}


def _forget(reference: weakref.ref[Worker]) -> None:
    found = reference()
    if found is not None:
        found.forget()


def _end_child(entry: Settlement) -> None:
    """End a forked child when the task's code ends, since only the parent settles the task."""
    sys.stderr.write(
        f"process {os.getpid()} was forked in the task {entry.about or '?'} and exits at its end, "
        "since only the worker settles a task (end a forked child with os._exit)\n"
    )
    sys.stderr.flush()
    os._exit(EXIT_FAILED)


class Worker:
    """A worker of an app in this process.

    Its blueprint starts Timer, Hub, Monitoring, Watch, Outbox, Pool, Autoreloader, Autoscaler,
    Processes, Beat, Recycle, StateDB, StoppedWorkflows, Consumer, in this order, and stops them in
    reverse: first the worker stops taking messages, then running tasks end, then their outcomes are
    written, and then the lease is given up.

    Attributes:
        parts: all of its parts.
        app, hostname, state, timer, hub, pool: some of the parts, for the app's own steps.
        consumer: the parts that restart with the connection.
        exit_code: the return value of `run`.
        restarts: True if the process should restart after `run`, with the same command line.
    """

    def __init__(self, app: Greenq, options: WorkerOptions = _DEFAULTS, **given: Any) -> None:
        """Build all parts; nothing is started or sent.

        Args:
            app: the app whose tasks to run; its task modules are imported now.
            options: the options for this worker.
            given: ready-made parts to use, by their names in `Parts`.

        Raises:
            ConfigError: a queue is unknown, or one of the app's own steps is wrong.
        """
        app.import_task_modules()
        self.app, self.hostname = app, node_name(options.hostname)
        chosen = {field.name: getattr(options, field.name) for field in fields(options)}
        # Send both signals before any part is built, since receivers may change settings.
        celeryd_init.send(self.hostname, instance=self, conf=app.conf, options=chosen)
        worker_init.send(self)
        self.exit_code = EXIT_OK
        self._ended = Event()
        self._is_cold = self._runs = self.restarts = False
        parts = self.parts = build(app, options, life=self, commands=panel, **given)
        self.state = parts.state
        self.timer, self.hub, self.pool = parts.timer, parts.hub, parts.pool
        self.consumer = build_consumer(parts, options, self)
        monitoring = build_monitoring(parts, self.consumer)
        self.blueprint = build_blueprint(parts, options, self, self.consumer, monitoring)
        celeryd_after_setup.send(self.hostname, instance=self, conf=app.conf)

    @property
    def uptime_s(self) -> float:
        """Seconds since this worker was created."""
        return self.parts.uptime_s

    def run(self, *, signals: bool = True) -> int:
        """Run until stopped, and return the exit code. Switches: yes.

        If `signals` is true, the first SIGTERM or SIGINT causes a warm shutdown (running tasks
        finish), and the second one a cold shutdown. SIGQUIT causes a cold shutdown immediately.
        SIGUSR1 logs all stacks. SIGHUP causes a warm shutdown, and sets `restarts` unless the
        terminal was closed. Signals also work while the hub is blocked: the watchdog thread
        receives them.
        """
        os.register_at_fork(after_in_child=partial(_forget, weakref.ref(self)))
        if signals:
            # The process belongs to this worker alone.
            refuse_fork()
            self._handle_signals()
        keep_going()
        self._runs = True
        try:
            worker_process_init.send(self.hostname)
            return self._run()
        finally:
            self._runs = False
            worker_process_shutdown.send(pid=os.getpid(), exitcode=self.exit_code)
            worker_shutdown.send(self)
            self.parts.signals.close()

    def _handle_signals(self) -> None:
        signals = self.parts.signals
        for number in (signal.SIGTERM, signal.SIGINT):
            signals.on(number, partial(self._on_stop_signal, number.name))
        signals.on(signal.SIGQUIT, partial(self._on_cold_signal, signal.SIGQUIT.name))
        signals.on(signal.SIGUSR1, self._log_stacks)
        # nohup makes its program ignore SIGHUP.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signals.on(signal.SIGHUP, partial(self._on_hangup, _terminals()))

    def _run(self) -> int:
        self.blueprint.start()
        self._ended.wait()
        if self._is_cold:
            self.blueprint.terminate()
        else:
            self.blueprint.stop()
        self.blueprint.shutdown()
        return self.exit_code

    def start(self) -> None:
        """Start the worker and return immediately, for a program that also does other work."""
        spawn(partial(self.run, signals=False), name="worker")

    def stop(self, why: str = "") -> None:
        """Shut down warm: take no more messages; requeue the tasks that do not finish in time."""
        if self._returns:
            self.exit_code, self.restarts = EXIT_OK, False
            _log.info("asked to stop: this worker will not start again")
        self._stop(why)

    @property
    def _returns(self) -> bool:
        """True if the process restarts, or is replaced by a successor, after this stop."""
        return self.restarts or self.exit_code == EXIT_RECYCLED

    def _stop(self, why: str) -> None:
        self._ended.set()
        grace_s = self.app.config.worker.worker_shutdown_grace
        self.parts.outbox.until_s = time.monotonic() + grace_s
        text = f" ({why})" if why else ""
        _log.info("warm shutdown%s: %d tasks are running", text, self.pool.running)

    def restart(self, why: str = "") -> None:
        """Shut down warm, and restart the process with the same command line."""
        if self._ended.is_set():
            return
        self.restarts = True
        self._stop(f"{why}; a restart follows")

    def recycle(self, why: str) -> None:
        """Shut down warm at a limit, so that a new worker can replace this one."""
        if self._ended.is_set():
            return
        if self.app.config.worker.worker_recycle_by == "exec":
            self.restart(why)
        else:
            self.exit_code = EXIT_RECYCLED
            self._stop(why)

    def stop_cold(self) -> None:
        """Stop now, and requeue all unfinished tasks."""
        self.exit_code, self.restarts = EXIT_FAILED, False
        self._is_cold = True
        self.parts.outbox.until_s = 0.0
        self.pool.end_grace()
        self._ended.set()
        _log.warning("cold shutdown: %d tasks go back to their queues", self.pool.running)

    def give_up(self, error: Exception) -> None:
        """End a worker that cannot continue."""
        self.exit_code, self.restarts = EXIT_FAILED, False
        self._ended.set()
        _log.critical("the worker ends: %s", error)

    def crashed(self, what: str, error: BaseException) -> None:
        """End the worker because a part of it has failed; let running tasks finish if they can."""
        if self._ended.is_set() and isinstance(error, GreenletExit):
            # The part was killed by the shutdown.
            return
        if what == "greenlet outbox":
            # Outcomes can no longer be written.
            self.pool.end_grace()
        self.give_up(WorkerFault(f"its {what} has ended: {type(error).__name__}: {error}"))

    def forget(self) -> None:
        """Do nothing further in a forked child, and exit when the task ends."""
        if not self._runs:
            return
        self.parts.signals.forget()
        self.hub.forget()
        self.parts.outbox.put = _end_child  # type: ignore[method-assign]

    def info(self) -> dict[str, Any]:
        """Return the information from all steps, including the app's own steps."""
        return {**self.blueprint.info(), **self.consumer.blueprint.info()}

    def _on_stop_signal(self, sig: str) -> None:
        if self._ended.is_set() and not self._returns:
            self._on_cold_signal(sig)
        else:
            self.stop()
            worker_shutting_down.send(self.hostname, sig=sig, how="Warm", exitcode=EXIT_OK)

    def _on_cold_signal(self, sig: str) -> None:
        self.stop_cold()
        worker_shutting_down.send(self.hostname, sig=sig, how="Cold", exitcode=EXIT_FAILED)

    def _on_hangup(self, terminals: set[int]) -> None:
        """Restart, unless a terminal was closed, since then no one would see the new worker."""
        if terminals - _terminals():
            self.stop("its terminal was closed")
        elif not self._ended.is_set():
            self.restart("SIGHUP")
            name = signal.SIGHUP.name
            worker_shutting_down.send(self.hostname, sig=name, how="Warm", exitcode=EXIT_OK)

    def _log_stacks(self) -> None:
        _log.warning("%s", stacks(self.pool))
