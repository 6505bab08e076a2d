"""``greenq status``: a line for each worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greenq.cli import show
from greenq.cli.common import add_asking_options, ask, missing, opened

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

HEADINGS = ("NODE", "STATE", "ACTIVE", "PROCESSED", "UPTIME", "")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the command's options."""
    add_asking_options(parser)


def run(args: argparse.Namespace) -> int:
    """Ask the workers how they are; 69 when none replies."""
    with opened(args) as app:
        replies = ask(app, args, "status")
    if args.json:
        show.write_json(replies)
    elif replies:
        show.write_table(HEADINGS, [row(node, reply) for node, reply in replies.items()])
        show.write(total(replies))
    return missing(args, replies)


def row(node: str, reply: Any) -> tuple[str, ...]:
    """Return a worker's line; what is long stands at its end."""
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
    """Say in a word how a worker is doing, and what is to be said about it.

    A Celery worker does not know the command, and says so, which shows that it is well.
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


def blocked_text(blocked: Any) -> str:
    """Say for how long, and by what, a worker's hub is blocked."""
    for_s, by, where = (show.part(blocked, name) for name in ("for_s", "by", "where"))
    said = "blocked"
    if isinstance(for_s, (int, float)):
        said += f" {for_s:.1f} s"
    if by is not None:
        said += f" by {show.text(by)}"
    return said + (f" at {show.text(where)}" if where is not None else "")


def total(replies: Mapping[str, Any]) -> str:
    """Count the workers, in a sentence."""
    return f"{len(replies)} node{'s' if len(replies) != 1 else ''} online"
