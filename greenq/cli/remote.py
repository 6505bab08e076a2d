"""``greenq inspect`` and ``greenq control``: all remote commands."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from greenq.cli import Parser, show, status
from greenq.cli.common import (
    add_asking_options,
    ask,
    called_roll,
    confirmed,
    opened,
    report_missing,
    silent,
)
from greenq.cli.queues import takers
from greenq.cli.remote_commands import BY_GROUP, RemoteCommand, find, pair
from greenq.errors import GreenqError
from greenq.utils.suggest import suggestion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from greenq.app import Greenq

# The number of list items per request; a worker may hold tens of thousands.
_PAGE: Final = 1000

# Commands that Celery's workers do not know.
_OWN: Final = frozenset(
    {"status", "greenlets", "hub", "autoscale_log", "pause", "resume", "drain", "records"}
)

_OTHER: Final = {"inspect": "control", "control": "inspect"}


@dataclass(frozen=True, slots=True)
class CommandRequest:
    """The request that the command line makes.

    Attributes:
        command: the command, known or not.
        arguments: the given arguments, by name.
    """

    command: RemoteCommand
    arguments: dict[str, Any] = field(default_factory=dict)


# --- from the command line ------------------------------------------------------------------------


def add_inspect_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``inspect`` to `parser`."""
    _add_options(parser, "inspect")


def add_control_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``control`` to `parser`."""
    _add_options(parser, "control")


def _add_options(parser: argparse.ArgumentParser, group: str) -> None:
    add_asking_options(parser)
    _add_sending_options(parser, group)
    parser.add_argument("name", metavar="CMD", help="the command (see below)")
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="...", help="its arguments; see CMD --help"
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    width = max(len(each.name) for each in BY_GROUP[group])
    lines = (f"  {each.name:<{width}}  {each.text}" for each in BY_GROUP[group])
    parser.epilog = "commands:\n" + "\n".join(lines)


def _add_sending_options(
    parser: argparse.ArgumentParser, group: str, *, again: bool = False
) -> None:
    default = argparse.SUPPRESS if again else False
    add = parser.add_argument
    add("--any", action="store_true", default=default,
        help="send a custom command, as CMD key=value")  # fmt: skip
    if group == "control":
        add("--yes", action="store_true", default=default, help="do not ask first")


def read(args: argparse.Namespace) -> CommandRequest:
    """Read the command and its arguments; a mistake ends the program with a suggestion.

    Options may also follow the command. They are stored in `args`.
    """
    group, name = args.command, args.name
    known = find(group, name)
    prog = f"{args.parser.prog} {name}"
    if known is None:
        behind = Parser(prog=prog, allow_abbrev=False, description="A custom command.")
    else:
        behind = Parser(prog=prog, allow_abbrev=False, description=f"{known.text}.".capitalize())
        for parameter in known.parameters:
            parameter.add_to(behind)
    add_asking_options(behind, again=True)
    _add_sending_options(behind, group, again=True)
    if known is None:
        behind.add_argument("pairs", nargs="*", type=pair, metavar="key=value")
        if not args.any and "--any" not in args.arguments:
            _refuse(args)
    behind.parse_args(args.arguments, args)
    if known is None:
        return CommandRequest(RemoteCommand(name, ""), dict(args.pairs))
    given = {each.name: getattr(args, each.dest, None) for each in known.parameters}
    # An empty optional list counts as not given.
    return CommandRequest(
        known, {key: value for key, value in given.items() if value not in (None, [])}
    )


def _refuse(args: argparse.Namespace) -> None:
    other = _OTHER[args.command]
    if find(other, args.name) is not None:
        args.parser.error(f"{args.name} is a command of {other}: greenq {other} {args.name}")
    args.parser.words = tuple(each.name for each in BY_GROUP[args.command])
    args.parser.error(f"unknown command {args.name!r}; --any sends it anyway")


# --- asking ---------------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> int:
    """Send the command, and print the replies.

    Returns:
        The exit code: 69 if there is no worker, 75 if a live worker has not replied, 1 if all
        replies are errors, and otherwise 0.
    """
    request = read(args)
    with opened(args) as app:
        if request.command.silent:
            return _tell(app, args, request)
        kept = _keep(app, request)
        replies = _ask(app, args, request)
        absent = silent(app, args, replies)
        untaken = _untaken(app, args, request)
    if args.json:
        show.write_json(replies)
    else:
        for node, reply in replies.items():
            for line in lines(request.command.name, node, reply, request.arguments):
                show.write(line)
    if untaken and replies:
        show.complain(untaken)
    if kept is not None and not replies:
        show.complain(f"{kept}; no node has replied")
        return 0
    code = report_missing(args, replies, absent)
    return 1 if show.all_errors(replies) else code


def _tell(app: Greenq, args: argparse.Namespace, request: CommandRequest) -> int:
    """Send a command that has no reply, and print its receivers; return 69 if there are no workers.

    Raises:
        GreenqError: the command would go to all nodes, and without a terminal the user cannot be
            asked for confirmation.
    """
    pongs = ask(app, args, "ping")
    absent = silent(app, args, pongs)
    # A blocked worker receives the command as soon as its hub runs again.
    nodes = sorted({*pongs, *(node for node in absent if node in called_roll(app).living)})
    if not nodes:
        return report_missing(args, {}, absent)
    if not _confirm(request, args, nodes):
        show.complain("nothing was sent")
        return 1
    app.control.mailbox.tell(
        request.command.name, request.arguments, destination=list(args.destination) or None
    )
    if args.json:
        show.write_json({request.command.name: nodes})
    else:
        show.write(f"{request.command.name}: {', '.join(map(show.printable, nodes))}")
    return report_missing(args, pongs, absent)


def _keep(app: Greenq, request: CommandRequest) -> str | None:
    """Store a command's effect on the server, for nodes that start later, and describe it."""
    broker, arguments = app.transport.broker, request.arguments
    if request.command is find("control", "pause"):
        arguments["by"] = _who()
        broker.pause(arguments["queue"], arguments["by"])
        return f"queue {arguments['queue']} is paused"
    if request.command is find("control", "resume"):
        broker.resume(arguments["queue"])
        return f"queue {arguments['queue']} is not paused"
    return None


def _untaken(app: Greenq, args: argparse.Namespace, request: CommandRequest) -> str:
    """Return a warning if no worker takes from the paused queue, since its name may be a typo."""
    if request.command is not find("control", "pause"):
        return ""
    queue = request.arguments["queue"]
    taking = takers(called_roll(app), ask(app, args, "active_queues", destination=()))
    if not taking.leave(queue):
        return ""
    hint = show.printable(suggestion(queue, taking.nodes))
    return f"no worker takes from queue {show.printable(queue)}{hint}"


def _who() -> str:
    """Return the user and the host, to show who has paused a queue."""
    user = os.environ.get("LOGNAME") or os.environ.get("USER") or f"gen{os.getpid()}"
    return f"{user}@{socket.gethostname()}"


def _ask(app: Greenq, args: argparse.Namespace, request: CommandRequest) -> dict[str, Any]:
    name, given = request.command.name, request.arguments

    def sent(
        arguments: Mapping[str, Any], destination: Sequence[str] | None = None
    ) -> dict[str, Any]:
        return ask(app, args, name, arguments, destination=destination)

    return pages(sent, **given) if request.command.paged else sent(given)


def _confirm(request: CommandRequest, args: argparse.Namespace, nodes: Sequence[str]) -> bool:
    """Return whether to send the command; if it would stop all nodes, ask the user first."""
    if not request.command.destructive or args.destination or args.yes:
        return True
    named = ", ".join(map(show.printable, nodes))
    if not sys.stdin.isatty():
        raise GreenqError(
            f"this affects all nodes, including Celery's: {named}; add --yes to do so, or name "
            "some with -d"
        )
    return confirmed(f"{request.command.name} on all nodes ({named})?")


def pages(
    ask: Callable[[Mapping[str, Any], Sequence[str] | None], dict[str, Any]],
    *,
    limit: int | None = None,
    offset: int = 0,
    page: int = _PAGE,
) -> dict[str, Any]:
    """Request lists page by page and return the complete lists, by node.

    Args:
        ask: sends ``limit`` and ``offset`` to the given nodes, or to all selected nodes if None.
        limit: the maximum number of items from each node; None for all.
        offset: the index of the first item.
        page: the number of items per request.
    """
    found: dict[str, Any] = {}
    nodes: Sequence[str] | None = None
    start, end = offset, None if limit is None else offset + limit
    while nodes is None or nodes:
        size = page if end is None else min(page, end - start)
        unfinished = []
        for node, reply in ask({"limit": size, "offset": start}, nodes).items():
            if not isinstance(reply, list):
                found.setdefault(node, reply)
            elif len(reply) > size:
                # A Celery worker ignores limit and offset, so `reply` is its whole list.
                found[node] = reply[offset:end]
            elif start == offset:
                found[node] = list(reply)
                unfinished += [node] * (len(reply) == size)
            elif reply != found[node][-len(reply) :]:
                found[node] += reply
                unfinished += [node] * (len(reply) == size)
        start += size
        nodes = unfinished if end is None or start < end else ()
    return found


# --- replies as text ------------------------------------------------------------------------------


def lines(
    method: str, node: str, reply: object, arguments: Mapping[str, Any] | None = None
) -> Iterator[str]:
    """Format a node's reply: next to its name if it is one line, otherwise below it."""
    body = list(_body(method, reply, arguments or {}))
    name = show.printable(node)
    if len(body) == 1:
        yield f"{name}: {body[0]}"
        return
    yield show.bold(name)
    yield from (f"  {line}".rstrip() for line in body)


def _foreign(method: str, arguments: Mapping[str, Any]) -> str:
    """Return how a Celery node reacts to one of greenq's own commands, which it does not know."""
    queue = show.printable(str(arguments.get("queue", "?")))
    does = {
        "pause": f"it keeps taking from {queue}; cancel_consumer {queue} stops that",
        "resume": f"it takes from {queue} unless cancel_consumer has stopped that; "
        f"add_consumer {queue} makes it take again",
        "drain": "it keeps taking messages; cancel_consumer stops that, queue by queue",
    }
    return f"a Celery worker: {does.get(method, 'it does not know this command')}"


def _body(method: str, reply: object, arguments: Mapping[str, Any]) -> Iterator[str]:
    if method in _OWN and str(show.part(reply, "error")).startswith("KeyError("):
        yield _foreign(method, arguments)
        return
    if show.is_error(reply):
        yield f"error: {show.text(show.part(reply, 'error'))}"
        return
    if isinstance(reply, dict) and reply.keys() == {"ok"}:
        reply = reply["ok"]
    if method == "status":
        yield from (f"{key.lower() or 'details'}: {cell}" for key, cell in _status(reply) if cell)
    elif method == "greenlets" and isinstance(reply, dict):
        yield from _greenlets(reply)
    elif method in _TABLES and isinstance(reply, _TABLES[method].kind) and reply:
        shape = _TABLES[method]
        yield from show.table(shape.headings, [shape.row(item) for item in shape.items(reply)])
    elif reply is None:
        yield "done"
    else:
        yield from show.tree(reply)


def _status(reply: object) -> Iterator[tuple[str, str]]:
    yield from list(zip(status.HEADINGS, status.row("", reply), strict=True))[1:]


def _greenlets(reply: dict[str, Any]) -> Iterator[str]:
    yield f"running: {show.number(reply.get('running'))}"
    for group in reply.get("groups") or ():
        count, waits = show.part(group, "count"), show.part(group, "waits_on")
        yield f"  {show.number(count):>7}  waiting on {show.text(waits)}"
    for each in reply.get("greenlets") or ():
        name, task_id, age_s, hub_s, waits = (
            show.part(each, key) for key in ("name", "id", "age_s", "hub_s", "waits_on")
        )
        yield (
            f"{show.text(name)}[{show.text(task_id)}]  age {_seconds(age_s)}, "
            f"computed {_seconds(hub_s)}, waits on {show.text(waits)}"
        )
        stack = show.part(each, "stack")
        for entry in stack if isinstance(stack, list) else str(stack or "").splitlines():
            yield from (f"    {show.printable(line)}" for line in str(entry).splitlines())


def _seconds(value: object) -> str:
    return f"{value:.3g} s" if isinstance(value, (int, float)) else "-"


@dataclass(frozen=True, slots=True)
class _Table:
    """How to show a reply as a table.

    Attributes:
        headings: the column headings.
        row: turns an item into a row.
        kind: the type of the reply. The items of a mapping are pairs of key and value.
    """

    headings: tuple[str, ...]
    row: Callable[[Any], tuple[str, ...]]
    kind: type = list

    def items(self, reply: Any) -> Any:
        """Return the items to show, one per row."""
        return reply.items() if self.kind is dict else reply


def _request(info: object) -> tuple[str, ...]:
    return tuple(show.text(show.part(info, name)) for name in ("id", "name", "args", "kwargs"))


def _active(info: object) -> tuple[str, ...]:
    started = show.part(info, "time_start")
    since = time.time() - started if isinstance(started, (int, float)) else None
    return (show.age(since), *_request(info))


def _scheduled(item: object) -> tuple[str, ...]:
    eta, priority = show.part(item, "eta"), show.part(item, "priority")
    return (show.text(eta), show.text(priority), *_request(show.part(item, "request")))


def _query(item: tuple[str, Any]) -> tuple[str, ...]:
    task_id, found = item
    state, info = (
        (found[0], found[1]) if isinstance(found, list) and len(found) == 2 else (None, {})
    )
    names = ("name", "args", "kwargs")
    return (show.text(task_id), show.text(state), *(show.text(show.part(info, n)) for n in names))


def _queue(queue: object) -> tuple[str, ...]:
    paths = (("name",), ("exchange", "name"), ("exchange", "type"), ("routing_key",))
    return tuple(show.text(show.part(queue, *path)) for path in paths)


def _decision(entry: object) -> tuple[str, ...]:
    at = show.part(entry, "at")
    when = datetime.fromtimestamp(at, UTC) if isinstance(at, (int, float)) else None
    names = ("backlog", "running", "size", "reason")
    return (
        when.isoformat(timespec="seconds") if when else show.text(at),
        *(show.text(show.part(entry, name)) for name in names),
    )


_TABLES: Final[dict[str, _Table]] = {
    "active": _Table(("SINCE", "ID", "NAME", "ARGS", "KWARGS"), _active),
    "reserved": _Table(("ID", "NAME", "ARGS", "KWARGS"), _request),
    "scheduled": _Table(("ETA", "PRIORITY", "ID", "NAME", "ARGS", "KWARGS"), _scheduled),
    "query_task": _Table(("ID", "STATE", "NAME", "ARGS", "KWARGS"), _query, dict),
    "active_queues": _Table(("QUEUE", "EXCHANGE", "TYPE", "ROUTING KEY"), _queue),
    "autoscale_log": _Table(("AT", "BACKLOG", "RUNNING", "SIZE", "REASON"), _decision),
}
