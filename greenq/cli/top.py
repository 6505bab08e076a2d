"""``greenq top``: workers, pools, queues, tasks and greenlets on one screen, live."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from greenq.cli import arguments, show
from greenq.cli.common import add_asking_options, missing, opened
from greenq.cli.top_model import Model
from greenq.errors import GreenqError

if TYPE_CHECKING:
    import argparse

    from greenq.app import Greenq

# A file or a pipe has no width; a person reads it.
_WIDTH = 120


def add_options(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the command's options."""
    add_asking_options(parser)
    add = parser.add_argument
    add("--interval", type=arguments.seconds, default=1.0, metavar="S",
        help="look every so many seconds (default 1)")  # fmt: skip
    add("--once", action="store_true", help="one picture as text after one interval")
    add("--events", action="store_true",
        help="have the workers tell of their tasks while this runs")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Show the cluster until q is pressed; 69 when there is no worker at the start.

    With --json it is one picture, after one interval.

    Shape: {"workers": {node: {"state", "details", "ours", "running", "size", "waiting",
      "processed", "per_s", "lag_s", "lag_p99_s", "uptime_s"}}, "queues": {name: as greenq queues},
      "tasks": {name: {"per_s": {kind: rate}, "counts": {kind: count}, "runtime_s"}}, "total":
      {"running", "size", "waiting", "per_s", "lag_s", "tasks"}, "greenlets": {"node", "reply"},
      "trouble"}; null is what nobody knows.
    """
    live = not (args.json or args.once)
    if not args.json and importlib.util.find_spec("rich") is None:
        raise GreenqError("rich is missing: pip install 'greenq[demo]', or ask for --json")
    if live and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise GreenqError("this is no terminal: ask for one picture with --once or --json")
    with opened(args) as app, ExitStack() as parts:
        # Loaded only now: whoever wants help need not wait for the transport.
        ask = importlib.import_module("greenq.cli.top_ask")
        state = app.events.State()
        heard: Any = parts.enter_context(ask.Listener(app, state))
        asker = parts.enter_context(ask.Asker(app, args, state))
        model = Model()
        model.look(asker.look())
        picture = model.picture()
        if not picture.workers:
            if args.json:
                show.write_json({})
            return missing(args, {})
        if live:
            screen = importlib.import_module("greenq.cli.top_screen")
            sampler = parts.enter_context(ask.Sampler(asker, args.interval))
            screen.Screen(model, sampler, heard, app.transport.broker_address).run()
        else:
            time.sleep(args.interval)
            model.hear(heard.take())
            model.look(asker.look())
            _show(model, app, args)
    return 0
