"""``greenq supervisor-listener``: restarts workers that are unresponsive or too large."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING, Final

from greenq.cli import argument_types
from greenq.cli.common import add_app_options, opened
from greenq.errors import SupervisorError
from greenq.supervision.event_listener import EventListener, Judge, events
from greenq.supervision.supervisor import supervisor_at
from greenq.utils import log

if TYPE_CHECKING:
    import argparse
    from collections.abc import Collection, Sequence

    from greenq.app import Greenq

_PING_S: Final = 2.0
_URL: Final = "SUPERVISOR_SERVER_URL"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    add = parser.add_argument
    add_app_options(parser)
    add("--group", default="greenq", metavar="NAME",
        help="the group of the workers in supervisord (default greenq)")  # fmt: skip
    add("--mute-after", type=argument_types.seconds, default=60.0, metavar="S",
        help="restart a worker that has not answered a ping for S seconds (default "
        "60)")  # fmt: skip
    add("--max-memory", type=argument_types.memory, metavar="SIZE",
        help="restart a worker that uses more memory than this, such as 2G (default: no "
        "limit)")  # fmt: skip
    add("-l", "--loglevel", type=argument_types.level, default="INFO", metavar="LEVEL",
        help="DEBUG, INFO, WARNING, ERROR or CRITICAL (default INFO)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Check the workers at each event, until supervisord closes the input."""
    url = os.environ.get(_URL)
    if not url or sys.stdin.isatty():
        raise SupervisorError(
            "supervisord starts this command, as an [eventlistener] with events=TICK_5, and needs "
            f"a [unix_http_server] section ({_URL} is {'set' if url else 'not set'}): see the "
            "output of `greenq deploy supervisord`"
        )
    # A SIGTERM from supervisord must not end this process after it has stopped a worker and before
    # it has started the worker again; otherwise, the worker would stay stopped.
    signal.signal(signal.SIGTERM, lambda *_signal: sys.exit(0))
    log.setup(args.loglevel)
    # The module is imported only here, since the parser must not load it.
    members = importlib.import_module("greenq.transport.members")
    with opened(args) as app:
        transport = app.transport
        listener = EventListener(
            supervisor_at(url),
            args.group,
            Judge(
                mute_after_s=args.mute_after,
                max_bytes=args.max_memory * 1024 if args.max_memory else None,
            ),
            nodes=partial(members.nodes_here, transport.client, transport.keys),
            ping=partial(_ping, app),
        )
        for _event in events(sys.stdin.buffer, sys.stdout.buffer):
            listener.look()
    return 0


def _ping(app: Greenq, nodes: Sequence[str]) -> Collection[str]:
    """Return the nodes that answer a ping."""
    return app.control.mailbox.ask("ping", destination=nodes, timeout_s=_PING_S).keys()
