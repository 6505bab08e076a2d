"""``greenq result``: the state and result of a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greenq.cli import show
from greenq.cli.common import add_app_options, opened

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    parser.add_argument("id", metavar="ID", help="the task's id")
    add_app_options(parser)
    parser.add_argument(
        "--traceback", action="store_true", help="also print the traceback of a failure"
    )


def run(args: argparse.Namespace) -> int:
    """Print the stored state and result; an unknown task is PENDING."""
    with opened(args) as app:
        # Read everything in one call, since the task could end between two calls.
        meta = app.transport.backend.get(args.id)
    found = {
        "id": args.id,
        "state": meta.status,
        "result": meta.result,
        "date_done": meta.date_done,
    }
    if args.traceback:
        found["traceback"] = meta.traceback
    if args.json:
        show.write_json(found)
    else:
        for line in lines(found):
            show.write(line)
    return 0


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Format a result as text."""
    for name, value in found.items():
        if name == "result":
            result = (
                [show.printable(repr(value))]
                if isinstance(value, BaseException)
                else list(show.tree(value))
            )
            yield from _named(name, result)
        elif name != "traceback":
            yield from _named(name, [show.text(value)])
    if found.get("traceback"):
        yield ""
        # Indent the traceback, since its text comes from the task and could imitate our output.
        yield from (f"  {show.printable(line)}" for line in str(found["traceback"]).splitlines())


def _named(name: str, lines: list[str]) -> Iterator[str]:
    yield f"{name.replace('_', ' '):<10} {lines[0]}"
    yield from (f"{'':<10} {line}" for line in lines[1:])
