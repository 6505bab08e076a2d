"""Processes that a task starts with `multiprocessing`: spawned, never forked from the worker.

A fork would copy the worker with its connections and all its half-finished greenlets.
`subprocess` is different: gevent's version works, and waits for its child without blocking the hub.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.pool
import multiprocessing.popen_fork
import os
import signal
import sys
from contextlib import suppress
from typing import Any, NoReturn

_REFUSED = (
    "multiprocessing cannot fork in a greenq worker: the child would be a copy of the worker with "
    'all its tasks. Use multiprocessing.get_context("spawn"), which is the default here, or '
    "subprocess"
)
_NO_POOL = (
    "multiprocessing.Pool cannot be used in a greenq worker: its locks would block the hub, and "
    "all other tasks with it, forever. Use multiprocessing.pool.ThreadPool for work that waits, "
    "subprocess for work that computes, or tasks in a separate worker"
)


def refuse_fork() -> None:
    """Make `multiprocessing` spawn its processes, and refuse calls that would hang.

    A start method that the program has chosen is kept: a fork is then refused when it is attempted.
    """
    if multiprocessing.get_start_method(allow_none=True) is None:
        multiprocessing.set_start_method("spawn")
    multiprocessing.popen_fork.Popen._launch = _refuse  # type: ignore[attr-defined]  # noqa: SLF001
    make = multiprocessing.pool.Pool.__init__

    def refuse_pool(pool: Any, *args: Any, **options: Any) -> None:
        if not isinstance(pool, multiprocessing.pool.ThreadPool):
            # `Pool.__del__` reads this attribute.
            pool._state = None  # noqa: SLF001
            raise RuntimeError(_NO_POOL)
        make(pool, *args, **options)

    multiprocessing.pool.Pool.__init__ = refuse_pool  # type: ignore[method-assign,assignment]


def leave_process(code: int) -> NoReturn:
    """Kill the children that `multiprocessing` has started, and end this process now."""
    for child in list(getattr(multiprocessing.process, "_children", ())):
        with suppress(OSError, AttributeError):
            os.kill(child._popen.pid, signal.SIGKILL)  # noqa: SLF001
    with suppress(Exception):
        sys.stderr.flush()
    os._exit(code)


def _refuse(_popen: object, _process: object) -> NoReturn:
    raise RuntimeError(_REFUSED)
