"""``greenq top``: workers, pools, queues, tasks and greenlets on one screen, live."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from greenq.cli import argument_types, show
from greenq.cli.common import add_asking_options, missing, opened
from greenq.cli.top.model import FILTERED, ORDERS, Filter, Model
from greenq.errors import GreenqError

if TYPE_CHECKING:
    from greenq.app import Greenq
    from greenq.cli.top.model import Picture


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    add_asking_options(parser)
    add = parser.add_argument
    add("--interval", type=argument_types.seconds, default=1.0, metavar="S",
        help="refresh every S seconds (default 1)")  # fmt: skip
    add("--once", action="store_true", help="print one snapshot as text after one interval")
    add("--filter", action="append", type=_filter, default=[], metavar="[TABLE:]TEXT",
        help=f"show only lines whose name contains this text, in one table ({', '.join(FILTERED)}) "
        "or in all; can be repeated")  # fmt: skip
    add("--sort", choices=ORDERS, default=ORDERS[0],
        help="how to sort tasks (default %(default)s)")  # fmt: skip
    add("--events", action="store_true",
        help="make the workers send task events while this runs")  # fmt: skip


def _filter(text: str) -> list[tuple[str, str]]:
    """Read ``mail``, ``queue:mail`` or ``task:shop.*``."""
    table, sign, named = text.partition(":")
    if sign and table in FILTERED and named:
        return [(table, named)]
    if not text or (sign and not named):
        raise argparse.ArgumentTypeError(f"no name in {text!r}: give one, as in mail or queue:mail")
    return [(table, text) for table in FILTERED]


def run(args: argparse.Namespace) -> int:
    """Show the cluster until q is pressed; return 69 if no worker is running when this starts.

    With --json, print one snapshot after one interval.

    Shape: {"workers": {node: {"state", "details", "ours", "running", "size", "waiting",
      "processed", "per_s", "lag_s", "lag_p99_s", "uptime_s"}}, "queues": {name: {"waiting",
      "depth", "inbox", "parked", "dead", "paused", "change_per_s"}}, "tasks": {name: {"per_s":
      {kind: rate}, "counts": {kind: count}, "runtime_s"}}, "total": {"running", "size",
      "waiting", "per_s", "lag_s", "tasks"}, "greenlets": {"node", "reply"}, "trouble"}; null means
      unknown.
    """
    live = not (args.json or args.once)
    if not args.json and importlib.util.find_spec("rich") is None:
        raise GreenqError("rich is missing: pip install 'greenq[demo]', or use --json")
    if live and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise GreenqError("not a terminal: print one snapshot with --once or --json")
    with opened(args) as app, ExitStack() as parts:
        # `ask` is imported only here, since it loads the transport, which help does not need.
        asking = importlib.import_module("greenq.cli.top.ask")
        state = app.events.State()
        listener = parts.enter_context(asking.EventsThread(app, state))
        asker = parts.enter_context(asking.Asker(app, args, state))
        model = Model(Filter.of(pair for pairs in args.filter for pair in pairs), args.sort)
        first = asker.look()
        model.look(first)
        if not first.statuses and not first.foreign:
            if args.json:
                show.write_json({})
            return missing(app, args, {})
        if live:
            sampler = parts.enter_context(asking.Sampler(asker, args.interval))
            screen = importlib.import_module("greenq.cli.top.screen")
            address = app.transport.broker_address
            screen.Screen(model, sampler, listener, address, order=args.sort).run()
        else:
            time.sleep(args.interval)
            model.add_events(listener.take())
            ours = [each.node for each in model.picture().workers if each.ours]
            model.look(asker.look(next(iter(ours), None)))
            _write(model.picture(), app, args)
    return 0


def _write(picture: Picture, app: Greenq, args: argparse.Namespace) -> None:
    """Print one snapshot, as JSON or as text."""
    if args.json:
        show.write_json(picture.as_json())
        return
    screen = importlib.import_module("greenq.cli.top.screen")
    screen.write(picture, app.transport.broker_address, args.sort)
