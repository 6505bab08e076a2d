"""``greenq shell``: a Python prompt with the app and its tasks."""

from __future__ import annotations

import code
import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

import greenq
from greenq.cli.common import add_app_options, opened

if TYPE_CHECKING:
    import argparse

    from greenq.app import Greenq


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    add_app_options(parser)
    parser.add_argument(
        "--plain", action="store_true", help="do not use IPython, even if it is installed"
    )


def run(args: argparse.Namespace) -> int:
    """Run the prompt until the user leaves it; calls block as they do in any script."""
    with opened(args) as app:
        app.import_task_modules()
        names = namespace(app)
        if not args.plain and importlib.util.find_spec("IPython") is not None:
            importlib.import_module("IPython").start_ipython(argv=[], user_ns=names)
        else:
            _prompt(app, names)
    return 0


def namespace(app: Greenq) -> dict[str, Any]:
    """Return the prompt's names: the app and its objects, and its tasks by their short names.

    A task whose short name is already taken is only in ``tasks``.
    """
    names: dict[str, Any] = {}
    for name, task in sorted(app.tasks.items()):
        short = name.rpartition(".")[2]
        if short.isidentifier():
            names.setdefault(short, task)
    own = {
        "app": app,
        "tasks": app.tasks,
        "control": app.control,
        "AsyncResult": app.AsyncResult,
        "greenq": greenq,
    }
    return names | own


def _prompt(app: Greenq, names: dict[str, Any]) -> None:
    if sys.stdin.isatty() and importlib.util.find_spec("readline") is not None:
        # Importing `readline` gives the prompt line editing and history.
        importlib.import_module("readline")
    code.interact(
        banner=f"greenq {greenq.__version__}, app {app.main}: app, tasks, control, AsyncResult",
        local=names,
        exitmsg="",
    )
