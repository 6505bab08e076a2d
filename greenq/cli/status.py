"""``greenq status``: a line for each worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greenq.cli import argument_types, show
from greenq.cli.common import (
    EX_TEMPFAIL,
    add_asking_options,
    ask,
    blocked_text,
    called_roll,
    evicting,
    gone_text,
    opened,
    report_missing,
    silent,
)
from greenq.cli.queues import known_queues, takers
from greenq.remote.queue_counts import from_counts

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from greenq.app import Greenq
    from greenq.transport.members import Roll

# How long to search for queues that no worker takes from.
_WALK_S = 0.05

HEADINGS = ("NODE", "STATE", "ACTIVE", "PROCESSED", "UPTIME", "")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    add_asking_options(parser)
    parser.add_argument("--expect", type=argument_types.count, metavar="N",
        help=f"exit with {EX_TEMPFAIL} unless at least this many nodes reply")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Ask the workers for their state; return 69 if there are none, 75 if one does not reply."""
    with opened(args) as app:
        replies = ask(app, args, "status")
        roll = called_roll(app)
        absent = silent(app, args, replies, roll)
        gone = {
            each.node: each
            for each in roll.gone
            if each.node not in replies and each.node not in absent and not args.destination
        }
        warnings = [*filter(None, [evicting(app)]), *_left_alone(app, args, replies, roll)]
    if args.json:
        show.write_json(
            replies
            | {node: {"silent": why} for node, why in absent.items()}
            | {
                node: {"gone_s": round(each.for_s, 1), "given_back": each.moved}
                for node, each in gone.items()
            }
        )
    elif replies or absent or gone:
        rows = [row(node, reply) for node, reply in replies.items()]
        rows += [_absent(node, "silent", why) for node, why in absent.items()]
        rows += [_absent(node, "gone", gone_text(each)) for node, each in gone.items()]
        show.write_table(HEADINGS, rows)
        show.write(total(replies, len(absent), len(gone)))
    for warning in warnings:
        show.complain(f"warning: {warning}")
    # Omit what the table already shows.
    code = report_missing(args, replies, absent if args.json else {})
    code = EX_TEMPFAIL if absent and (replies or not args.destination) else code
    if args.expect and len(replies) < args.expect:
        show.complain(f"{len(replies)} of {args.expect} nodes have replied")
        return EX_TEMPFAIL
    return code


def _left_alone(
    app: Greenq, args: argparse.Namespace, replies: Mapping[str, Any], roll: Roll
) -> list[str]:
    """Return a warning for each queue that has waiting messages but certainly no worker."""
    foreign = tuple(replies.keys() - roll.living.keys())
    named = ask(app, args, "active_queues", destination=foreign) if foreign else {}
    taking = takers(roll, named)
    names = known_queues(app, within_s=_WALK_S) if taking.all_known else ()
    counts = app.transport.broker.depths(name for name in names if taking.leave(name))
    left = [from_counts(name, found, None) for name, found in counts.items()]
    return [
        f"no worker takes from queue {show.printable(queue.name)}: {queue.waiting:,} waiting"
        for queue in left
        if queue.waiting
    ]


def _absent(node: str, word: str, why: str) -> tuple[str, ...]:
    return (show.printable(node), word, "-", "-", "-", why)


def row(node: str, reply: Any) -> tuple[str, ...]:
    """Return a worker's row; long values come last."""
    word, details = state(reply)
    active, size = (show.part(reply, name) for name in ("active", "size"))
    busy = show.number(active) + (f"/{show.number(size)}" if size is not None else "")
    return (
        show.printable(node),
        word,
        busy,
        show.number(show.part(reply, "processed")),
        show.age(show.part(reply, "uptime")),
        details,
    )


def state(reply: Any) -> tuple[str, str]:
    """Return the state of a worker in one word, and the details.

    If a Celery worker replies that it does not know the command, its state is ok.
    """
    error = show.part(reply, "error")
    if error is not None:
        unknown = str(error).startswith("KeyError(")
        return ("ok", "") if unknown else ("error", show.text(error))
    words, details = [], []
    blocked = show.part(reply, "blocked")
    if show.part(reply, "ok") == "blocked" or blocked is not None:
        words.append("blocked")
        details.append(blocked_text(blocked))
    if show.part(reply, "draining"):
        words.append("draining")
    paused = show.part(reply, "paused")
    if isinstance(paused, list) and paused:
        details.append("paused: " + " ".join(map(show.text, paused)))
    return ", ".join(words) or "ok", ", ".join(details)


def total(replies: Mapping[str, Any], silent: int = 0, gone: int = 0) -> str:
    """Return the number of workers, as a sentence."""
    line = f"{len(replies)} node{'s' if len(replies) != 1 else ''} online"
    line += f", {silent} without a reply" if silent else ""
    return line + (f", {gone} gone" if gone else "")
