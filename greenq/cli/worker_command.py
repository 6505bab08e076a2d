"""``greenq worker``: banner, log, worker, exit code."""

from __future__ import annotations

import gc
import logging
import os
import sys
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

import greenq
from greenq.cli.common import log_style
from greenq.cli.load import find_app, import_tasks
from greenq.cli.pidfile import pid_file
from greenq.cli.privileges import drop_rights, warn_of_root
from greenq.cli.restart import Origin, hold_hangups
from greenq.cli.worker_options import read_custom
from greenq.config.node_names import file_name, node_name
from greenq.errors import GreenqError
from greenq.protocol.text import printable
from greenq.signals import after_setup_logger, after_setup_task_logger, setup_logging
from greenq.upkeep.autoreload import Sources, app_folders, require_watchfiles
from greenq.utils import log
from greenq.worker import Worker
from greenq.worker_parts.options import WorkerOptions

if TYPE_CHECKING:
    import argparse

    from greenq.app import Greenq

_log = logging.getLogger(__name__)

_GREEN, _DIM, _BOLD, _PLAIN = "\033[32m", "\033[2m", "\033[1m", "\033[0m"

# The exit code that shells report for a program ended by SIGINT.
_INTERRUPTED = 130

# How many tasks the banner names; any others are only counted.
_SHOWN_TASKS = 30


def run(args: argparse.Namespace) -> int:
    """Run a worker until it is stopped; errors in its setup are raised as GreenqError.

    If the worker is to restart, the process restarts, and this function never returns.
    """
    # Drop rights before any file is opened or any module is imported.
    drop_rights(args.uid, args.gid)
    if args.workdir:
        os.chdir(args.workdir)
    if args.autoreload:
        require_watchfiles()
    node = node_name(args.hostname)
    file = args.pidfile and file_name(args.pidfile, node)
    origin: Origin = args.origin
    with pid_file(file, origin.pid_file) as descriptor:
        code = _run_until_stopped(args, node)
        if code is None:
            logging.shutdown()
            origin.again(descriptor)
    return code


def _run_until_stopped(args: argparse.Namespace, node: str) -> int | None:
    """Run a worker and return its exit code; None if the process is to restart."""
    try:
        worker = _run(args, node)
    except GreenqError as exc:
        if not args.autoreload:
            raise
        return None if _wait_for_change(exc) else _INTERRUPTED
    return None if worker.restarts else worker.exit_code


def _wait_for_change(error: GreenqError) -> bool:
    """Report the error, and wait for a source file to change; return False after Ctrl-C."""
    lines = f"greenq worker: {error}".split("\n")
    sys.stderr.write("".join(f"{printable(line)}\n" for line in lines))
    sys.stderr.write("greenq worker: waiting for a source file to change\n")
    try:
        Sources(app_folders()).wait(interrupts=True)
    except KeyboardInterrupt:
        return False
    return True


def _run(args: argparse.Namespace, node: str) -> Worker:
    """Run a worker until it is stopped, and return it."""
    app = find_app(args.app)
    # Set up the framework before our own logging, since the framework's setup would undo ours.
    app.set_up_framework()
    app.conf.update_from("command line", _settings(app, args))
    options = read_custom(args, app.user_options["worker"])
    settings = app.config.worker
    color = False if args.no_color else settings.worker_log_color
    is_set_up_by_receivers = bool(setup_logging.receivers)
    _set_up_log(
        args.loglevel,
        logfile=args.logfile and file_name(args.logfile, node),
        color=color,
        hijack_root=settings.worker_hijack_root_logger,
        style=log_style(settings),
    )
    app.conf.warn()
    warn_of_root()
    import_tasks(app)
    if setup_logging.receivers and not is_set_up_by_receivers:
        _log.warning(
            "a task module has connected a receiver to setup_logging, but the log is set up "
            "before task modules are imported: connect it in the app's module"
        )
    worker = _worker(app, args, options)
    if not args.quiet:
        # A full disk or a closed pipe must not keep the worker from starting.
        with suppress(OSError):
            sys.stdout.write(banner(app, worker, color=log.wants_color(sys.stdout, color)))
            sys.stdout.flush()
    # Everything allocated so far outlives every task, so exclude it from garbage collection. With
    # ten thousand tasks in flight, this saves a sixth of a task's cost.
    gc.collect()
    gc.freeze()
    # SIGHUP is ignored between the worker's end and its restart, until the new worker handles it.
    hold_hangups()
    redirects = settings.worker_redirect_stdouts and not is_set_up_by_receivers
    try:
        with log.redirect(settings.worker_redirect_stdouts_level) if redirects else nullcontext():
            worker.run()
    finally:
        app.close()
    return worker


def _set_up_log(
    level: str, *, logfile: str | None, color: bool | None, hijack_root: bool, style: log.Style
) -> None:
    """Let receivers of setup_logging set up the log; if there are none, set it up here.

    If it is set up here, the receivers of after_setup_logger and after_setup_task_logger are called
    next.

    Raises:
        ConfigError: there is no such level, or the file cannot be written. Errors raised by a
            receiver of setup_logging are passed on.
    """
    number = logging.getLevelName(level.upper())
    named = {"loglevel": number, "logfile": logfile, "colorize": color}
    if setup_logging.receivers:
        for _receiver, response in setup_logging.send(format=style.format, **named):
            if isinstance(response, Exception):
                raise response
        return
    log.setup(level, logfile=logfile, color=color, hijack_root=hijack_root, style=style)
    root = logging.getLogger()
    after_setup_logger.send(logger=root, format=style.format, **named)
    after_setup_task_logger.send(logger=log.task_logger, format=style.task_format, **named)


def _settings(app: Greenq, args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings from the command line."""
    given = {
        "broker_url": args.broker,
        "result_backend": args.result_backend,
        "worker_prefetch_multiplier": args.prefetch_multiplier,
        "task_time_limit": args.time_limit,
        "task_soft_time_limit": args.soft_time_limit,
        "worker_log_json": args.log_json,
        "worker_state_db": args.statedb,
        "worker_max_tasks_per_child": args.max_tasks,
        "worker_max_memory_per_child": args.max_memory,
        "worker_max_lifetime": args.max_lifetime,
        "worker_health_address": args.health_address,
        "worker_metrics_address": args.metrics_address,
        "worker_metrics_names": args.metrics_names,
        "include": (*app.config.task.include, *args.include) if args.include else None,
    }
    return {name: value for name, value in given.items() if value}


def _worker(app: Greenq, args: argparse.Namespace, options: dict[str, Any]) -> Worker:
    return Worker(
        app,
        WorkerOptions(
            queues=tuple(args.queues),
            exclude_queues=tuple(args.exclude_queues),
            concurrency=args.concurrency,
            autoscale=args.autoscale,
            processes=args.processes,
            hostname=args.hostname,
            task_events=args.task_events,
            mingle=args.mingle,
            gossip=args.gossip,
            heartbeat=args.heartbeat,
            heartbeat_interval_s=args.heartbeat_interval,
            control=args.control,
            beat=args.beat,
            autoreload=args.autoreload,
            step_options=options,
        ),
    )


def banner(app: Greenq, worker: Worker, *, color: bool) -> str:
    """Return a summary of the worker that is starting, without passwords."""
    green, dim, bold, plain = (_GREEN, _DIM, _BOLD, _PLAIN) if color else ("", "", "", "")
    transport = app.transport
    results = transport.result_address if transport.stores_results else "disabled"
    size, autoscaler = f"{worker.pool.size} greenlets", worker.parts.autoscaler
    if autoscaler is not None:
        size = f"{autoscaler.least} to {autoscaler.most} greenlets, depending on queue depth"
    processes = worker.parts.processes
    if processes is not None:
        limits = processes.rules
        size += f", {limits.least} to {limits.most} processes, depending on their load"
    rows = [
        ("app", app.main),
        ("transport", transport.broker_address),
        ("results", results),
        ("concurrency", size),
        ("queues", printable(", ".join(worker.parts.queues.names))),
    ]
    lines = [f"{green}{bold}greenq {greenq.__version__}{plain}  {bold}{worker.hostname}{plain}", ""]
    lines += [f"  {dim}{name:<12}{plain}{value}" for name, value in rows]
    names = sorted(name for name in app.tasks if not name.startswith("celery."))
    lines += ["", f"  {dim}tasks{plain}"] + [f"    {name}" for name in names[:_SHOWN_TASKS]]
    if not names:
        lines.append("    none; check that include or imports names the module with the tasks")
    if len(names) > _SHOWN_TASKS:
        lines.append(f"    and {len(names) - _SHOWN_TASKS} more")
    return "\n".join(lines) + "\n\n"
