"""``greenq purge``: delete the messages waiting in queues."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from greenq.cli import argument_types, show
from greenq.cli.common import add_app_options, confirmed, opened
from greenq.errors import GreenqError
from greenq.remote.queue_counts import app_queues, look

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping

    from greenq.remote.queue_counts import QueueCounts


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    add_app_options(parser)
    add = parser.add_argument
    add("-Q", "--queues", type=argument_types.names, default=(), metavar="A,B",
        help="purge only these queues (default: the app's)")  # fmt: skip
    add("-f", "--force", "--yes", dest="yes", action="store_true", help="do not ask first")


def run(args: argparse.Namespace) -> int:
    """Delete waiting messages, but no parked or running messages and no dead letters."""
    with opened(args) as app:
        names = args.queues or app_queues(app.config.task)
        if not args.yes:
            before = look(app.transport.broker, names).queues
            if not sys.stdin.isatty():
                raise GreenqError(
                    f"this would delete for good: {described(before.values())}; add --yes to do so"
                )
            if not confirmed(f"delete for good: {described(before.values())}?"):
                show.complain("nothing was deleted")
                return 1
        purged = {name: app.transport.broker.purge(name) for name in names}
    if args.json:
        show.write_json(purged)
    else:
        show.write(total(purged))
    return 0


def described(queues: Iterable[QueueCounts]) -> str:
    """Return how many messages are waiting in queues, in words."""
    parts = []
    for queue in queues:
        stay = [f"{queue.parked:,} parked"] * bool(queue.parked)
        stay += [f"{queue.dead:,} dead"] * bool(queue.dead)
        kept = f" ({' and '.join(stay)} stay)" if stay else ""
        parts.append(f"{queue.waiting:,} in {show.printable(queue.name)}{kept}")
    return ", ".join(parts)


def total(purged: Mapping[str, int]) -> str:
    """Return how many messages were deleted, in words."""
    count = sum(purged.values())
    queues = ", ".join(f"{show.printable(name)} {number:,}" for name, number in purged.items())
    return f"purged {count:,} message{'s' if count != 1 else ''} ({queues})"
