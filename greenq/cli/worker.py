"""``greenq worker``: banner, log, worker, exit code."""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING

import greenq
from greenq import log
from greenq.cli.load import find_app
from greenq.worker import Worker

if TYPE_CHECKING:
    import argparse

    from greenq.app import Greenq

_GREEN, _DIM, _BOLD, _PLAIN = "\033[32m", "\033[2m", "\033[1m", "\033[0m"

# Tasks named in the banner; the rest is counted.
_SHOWN_TASKS = 30


def run(args: argparse.Namespace) -> int:
    """Run a worker until it is stopped; what is wrong with its set-up is raised as GreenqError."""
    if args.workdir:
        os.chdir(args.workdir)
    app = find_app(args.app)
    if args.broker:
        app.conf.broker_url = args.broker
    if args.result_backend:
        app.conf.result_backend = args.result_backend
    settings = app.config.worker
    color = False if args.no_color else settings.worker_log_color
    log.setup(
        args.loglevel,
        logfile=args.logfile,
        color=color,
        hijack_root=settings.worker_hijack_root_logger,
    )
    worker = Worker(
        app,
        queues=args.queues,
        concurrency=args.concurrency,
        autoscale=args.autoscale,
        hostname=args.hostname,
    )
    if not args.quiet:
        sys.stdout.write(banner(app, worker, color=log.wants_color(sys.stdout, color)))
        sys.stdout.flush()
    # What is there by now lives as long as the worker: no collection has to look through it again,
    # which takes a sixth off what a task costs when ten thousand are in flight.
    gc.collect()
    gc.freeze()
    try:
        return worker.run()
    finally:
        app.close()


def banner(app: Greenq, worker: Worker, *, color: bool) -> str:
    """Return what a person wants to know of a starting worker, without any password."""
    green, dim, bold, plain = (_GREEN, _DIM, _BOLD, _PLAIN) if color else ("", "", "", "")
    transport = app.transport
    results = transport.result_address if transport.stores_results else "disabled"
    size = f"{worker.concurrency} greenlets"
    if worker.autoscale:
        size = f"{worker.autoscale[1]} to {worker.autoscale[0]} greenlets, by queue depth"
    rows = [
        ("app", app.main),
        ("transport", transport.broker_address),
        ("results", results),
        ("concurrency", size),
        ("queues", ", ".join(worker.queues)),
    ]
    lines = [f"{green}{bold}greenq {greenq.__version__}{plain}  {bold}{worker.hostname}{plain}", ""]
    lines += [f"  {dim}{name:<12}{plain}{value}" for name, value in rows]
    names = sorted(app.tasks)
    lines += ["", f"  {dim}tasks{plain}"] + [f"    {name}" for name in names[:_SHOWN_TASKS]]
    if not names:
        lines.append("    none: is the module that defines them imported? (see include, imports)")
    if len(names) > _SHOWN_TASKS:
        lines.append(f"    and {len(names) - _SHOWN_TASKS} more")
    return "\n".join(lines) + "\n\n"
