"""``greenq list bindings``, and the search for all bindings on the server."""

from __future__ import annotations

import math
import re
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from greenq.cli import show
from greenq.cli.common import add_app_options, opened
from greenq.protocol.keys import read_member

if TYPE_CHECKING:
    import argparse

    from greenq.app import Greenq

HEADINGS = ("QUEUE", "EXCHANGE", "ROUTING KEY")

_SCANNED_AT_ONCE: Final = 5000

# The exchanges of the cluster's own messages; their queues are channels or short-lived lists.
_NOT_OF_TASKS: Final = ("celeryev", "celery.pidbox", "reply.celery.pidbox")


class BoundQueue(NamedTuple):
    """A queue's binding to an exchange."""

    queue: str
    exchange: str
    routing_key: str


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    parser.add_argument(
        "what", nargs="?", choices=("bindings",), default="bindings", help="what to list"
    )
    add_app_options(parser)


def run(args: argparse.Namespace) -> int:
    """List the bindings."""
    with opened(args) as app:
        found = bindings(app)
    if args.json:
        show.write_json([binding._asdict() for binding in found])
    elif found:
        show.write_table(HEADINGS, [tuple(map(show.text, binding)) for binding in found])
    else:
        show.write("no bindings")
    return 0


def bindings(app: Greenq, *, within_s: float | None = None) -> list[BoundQueue]:
    """Scan all keys of the server and return all bindings of task queues, sorted.

    If `within_s` is given, stop the scan after that time and return what it has found.
    """
    ends_s = math.inf if within_s is None else time.monotonic() + within_s
    client, keys = app.transport.client, app.transport.keys
    prefix = keys.binding("")
    pattern = re.sub(r"([*?\[\]\\])", r"\\\1", prefix) + "*"
    names: set[str] = set()
    cursor = "0"
    while True:
        answer = client.call("SCAN", cursor, "MATCH", pattern, "COUNT", _SCANNED_AT_ONCE)
        cursor = answer[0].decode()
        names.update(key.decode("utf-8", "replace").removeprefix(prefix) for key in answer[1])
        if cursor == "0" or time.monotonic() >= ends_s:
            break
    exchanges = sorted(names.difference(_NOT_OF_TASKS))
    if not exchanges:
        return []
    members = client.pipeline([("SMEMBERS", keys.binding(exchange)) for exchange in exchanges])
    found = {
        binding
        for exchange, texts in zip(exchanges, members, strict=True)
        for binding in (parsed(exchange, text, keys.sep) for text in texts)
        if binding is not None
    }
    return sorted(found)


def parsed(exchange: str, member: bytes, sep: str) -> BoundQueue | None:
    """Parse a member of an exchange's binding set; return None if it is malformed."""
    found = read_member(member, sep)
    return None if found is None else BoundQueue(found.queue, exchange, found.routing_key)
