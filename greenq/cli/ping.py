"""``greenq ping``: which workers reply, and how fast."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from greenq.cli import show
from greenq.cli.common import (
    add_asking_options,
    ask,
    blocked_text,
    opened,
    report_missing,
    silent,
)

if TYPE_CHECKING:
    import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    add_asking_options(parser)


def run(args: argparse.Namespace) -> int:
    """Ping the workers; return 69 if none of them replies."""
    took_ms: dict[str, float] = {}
    with opened(args) as app:
        # Connect before the measurement starts, so that it does not include the handshake.
        app.transport.client.call("PING")
        asked_at = time.perf_counter()

        def note(node: str, _reply: Any) -> None:
            took_ms[node] = (time.perf_counter() - asked_at) * 1000

        replies = ask(app, args, "ping", on_reply=note)
        absent = silent(app, args, replies)
    if args.json:
        show.write_json(
            {
                node: {"reply": reply, "ms": round(took_ms[node], 2)}
                for node, reply in replies.items()
            }
        )
    else:
        for node, reply in replies.items():
            show.write(line(node, reply, took_ms[node]))
    code = report_missing(args, replies, absent)
    return 1 if show.all_errors(replies) else code


def line(node: str, reply: object, took_ms: float) -> str:
    """Format one node's reply."""
    if show.is_error(reply):
        answer = f"error: {show.text(show.part(reply, 'error'))}"
    else:
        blocked = show.part(reply, "blocked")
        answer = "pong" if blocked is None else f"pong, {blocked_text(blocked)}"
    return f"{show.printable(node)}: {answer}  {took_ms:.1f} ms"
