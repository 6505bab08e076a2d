"""Code that the commands share: finding the app, common options, and requests to workers."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from greenq.cli import argument_types, show
from greenq.errors import AppNotFound, OperationalError
from greenq.utils import log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from greenq.app import Greenq
    from greenq.config.settings import WorkerConfig
    from greenq.transport.members import Gone, Roll

# The exit code if no worker replied, as in Celery's commands (sysexits.h).
EX_UNAVAILABLE: Final = 69

# The exit code if a live worker has not replied; trying again may help.
EX_TEMPFAIL: Final = 75

# How long to wait for replies by default. Only a longer timeout also waits for blocked workers.
TIMEOUT_S: Final = 1.0

# The timeout for pinging workers that hold a lease but have not replied. Even a blocked worker
# replies to a ping immediately.
_PING_S: Final = 0.3

_BROKER_VARIABLE: Final = "GREENQ_BROKER_URL"


def add_app_options(parser: argparse.ArgumentParser, *, again: bool = False) -> None:
    """Add the options that select the app or the server, and ``--json``.

    If `again` is true, an option that is not given keeps the value that an earlier parser has set.
    """
    add = parser.add_argument
    unset = argparse.SUPPRESS if again else None
    add(
        "-A", "--app", default=unset or os.environ.get("GREENQ_APP"),
        help=f"the app: module or module:name (not needed with -b or {_BROKER_VARIABLE})",
    )  # fmt: skip
    add("-b", "--broker", type=argument_types.server, default=unset, metavar="URL",
        help="the server's URL, instead of the app's broker_url; @FILE reads it from a "
        "file")  # fmt: skip
    add("--json", action="store_true", default=unset or False, help="print JSON instead of text")


def add_asking_options(parser: argparse.ArgumentParser, *, again: bool = False) -> None:
    """Add the options of commands that ask workers."""
    add_app_options(parser, again=again)
    add = parser.add_argument
    unset = argparse.SUPPRESS if again else None
    add("-d", "--destination", type=nodes, default=unset or (), metavar="A,B",
        help="ask only these nodes")  # fmt: skip
    add("-t", "--timeout", type=argument_types.seconds, default=unset or TIMEOUT_S,
        metavar="S",
        help="wait S seconds for replies (default 1); wait for blocked workers only if S is "
        "greater than 1")  # fmt: skip


def nodes(text: str) -> tuple[str, ...]:
    """Read node names: ``a@h,b@h``."""
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not found:
        raise argparse.ArgumentTypeError(
            f"no node named in {text!r}: give names, as in -d greenq@host"
        )
    return found


def is_named(args: argparse.Namespace) -> bool:
    """Return whether the command line or the environment names an app or a server."""
    return bool(args.app or args.broker or os.environ.get(_BROKER_VARIABLE))


@contextmanager
def opened(args: argparse.Namespace) -> Iterator[Greenq]:
    """Open the app that the command line names, and close it when the block ends.

    If the command line names a server but no app, use a plain app without tasks.

    Raises:
        AppNotFound: neither an app nor a server is named, or the app cannot be imported.
    """
    app = _app(args)
    try:
        yield app
    finally:
        app.close()


def _app(args: argparse.Namespace) -> Greenq:
    if not is_named(args):
        raise AppNotFound(
            "no app or server named: name one, as in -A proj or "
            f"-b redis://localhost/0, or set {_BROKER_VARIABLE}"
        )
    # `greenq.cli.load` is imported only here, so that help and error messages need not wait for it.
    if args.app:
        app: Greenq = importlib.import_module("greenq.cli.load").find_app(args.app)
        if args.broker:
            app.conf.update_from("command line", {"broker_url": args.broker})
        return app
    plain: Greenq = importlib.import_module("greenq.app").Greenq(
        "greenq", broker=args.broker, set_as_current=False
    )
    return plain


def log_style(settings: WorkerConfig) -> log.Style:
    """Return the format of log lines according to the settings."""
    return log.Style(
        format=settings.worker_log_format,
        task_format=settings.worker_task_log_format,
        date_format=settings.worker_log_datefmt,
        task_date_format=settings.worker_task_log_datefmt,
        json=settings.worker_log_json,
    )


def ask(
    app: Greenq,
    args: argparse.Namespace,
    method: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    destination: Sequence[str] | None = None,
    on_reply: Callable[[str, Any], object] | None = None,
) -> dict[str, Any]:
    """Ask workers and return their replies by node name, sorted.

    Args:
        app: the app of the workers.
        args: the parsed command line, which says which workers to ask and how long to wait.
        method: the command.
        arguments: the command's arguments.
        destination: the nodes to ask, instead of those on the command line.
        on_reply: called with the node and its reply as each reply arrives.
    """
    nodes = list(destination or args.destination)
    replies = app.control.mailbox.ask(
        method,
        arguments,
        destination=nodes,
        timeout_s=args.timeout,
        on_reply=on_reply,
        on_quiet=partial(_only_blocked, app, nodes) if args.timeout <= TIMEOUT_S else None,
    )
    return dict(sorted(replies.items()))


def _only_blocked(app: Greenq, nodes: Sequence[str], replies: Mapping[str, Any]) -> bool:
    """Return whether all workers that have not replied are blocked, so waiting is pointless."""
    roll = called_roll(app)
    missing = (set(nodes) or roll.living.keys() | roll.strangers) - replies.keys()
    if not missing or not missing <= roll.living.keys():
        return False
    pongs = _ping(app, sorted(missing))
    return all(show.part(pongs.get(node), "blocked") for node in missing)


def _ping(app: Greenq, nodes: Sequence[str]) -> dict[str, Any]:
    """Ping workers that hold a lease; a blocked worker replies with what blocks it."""
    return app.control.mailbox.ask("ping", destination=nodes, timeout_s=_PING_S)


def silent(
    app: Greenq, args: argparse.Namespace, replies: Mapping[str, Any], roll: Roll | None = None
) -> dict[str, str]:
    """Return the nodes that should have replied but have not, each with the likely reason.

    The nodes named on the command line should have replied. If none is named, all nodes that hold a
    lease should have; only greenq's workers hold leases. `roll` lists them; if it is None, the
    server is asked.
    """
    roll = roll or called_roll(app)
    nodes = [each for each in (args.destination or sorted(roll.living)) if each not in replies]
    if not nodes:
        return {}
    held = [node for node in nodes if node in roll.living]
    pongs = _ping(app, held) if held else {}
    return {node: _why(node, args.timeout, roll, pongs) for node in nodes}


def called_roll(app: Greenq) -> Roll:
    """Ask the server which workers hold a lease, and which have died recently."""
    # The module is imported only here, since the parser must not load it.
    roll: Roll = importlib.import_module("greenq.transport.members").call_roll(
        app.transport.client, app.transport.keys
    )
    return roll


def evicting(app: Greenq) -> str | None:
    """Return a warning if the server may evict queues; None if it cannot, or this is unknown."""
    module = importlib.import_module("greenq.transport.facts")
    try:
        warning: str | None = module.eviction_warning(module.server_facts(app.transport.client))
    except OperationalError:
        return None
    return warning


def _why(node: str, timeout_s: float, roll: Roll, pongs: Mapping[str, Any]) -> str:
    """Return why a node has not replied."""
    text = f"no reply within {timeout_s:g} s"
    if node in pongs:
        blocked = show.part(pongs[node], "blocked")
        return f"no reply: {blocked_text(blocked)}" if blocked else f"{text}, but it replies now"
    if node in roll.living:
        return (
            f"{text}, but it holds its lease: it takes no commands (--without-control), it has "
            "just started, it is frozen, or a call holds the GIL"
        )
    if node in roll.ended:
        return f"{text}: its lease ended {roll.ended[node]:.0f} s ago"
    for each in roll.gone:
        if each.node == node:
            return f"{text}: {gone_text(each)}"
    return f"{text}: no greenq worker with this name holds a lease"


def gone_text(gone: Gone) -> str:
    """Return how long ago a worker died, and how many of its messages were requeued."""
    return f"gone {show.age(gone.for_s)}, {gone.moved:,} messages requeued"


def blocked_text(blocked: Any) -> str:
    """Return how long a worker's hub has been blocked, and by what."""
    for_s, by, where = (show.part(blocked, name) for name in ("for_s", "by", "where"))
    text = "blocked"
    if isinstance(for_s, (int, float)):
        text += f" {for_s:.1f} s"
    if by is not None:
        text += f" by {show.text(by)}"
    return text + (f" at {show.text(where)}" if where is not None else "")


def missing(app: Greenq, args: argparse.Namespace, replies: Mapping[str, Any]) -> int:
    """Print to stderr which nodes have not replied, and why; return the exit code.

    Returns:
        0: all have replied; 69: there is no worker; 75: a live worker has not replied.
    """
    absent = silent(app, args, replies)
    return report_missing(args, replies, absent)


def report_missing(
    args: argparse.Namespace, replies: Mapping[str, Any], absent: Mapping[str, str]
) -> int:
    """Print the `absent` nodes and the reasons given for them; return the exit code."""
    for node, why in absent.items():
        show.complain(f"{node}: {why}")
    if replies:
        return EX_TEMPFAIL if absent else 0
    if not absent or args.destination:
        who = f"none of {', '.join(args.destination)} has" if args.destination else "no node has"
        show.complain(f"greenq {args.command}: {who} replied within {args.timeout:g} s")
        return EX_UNAVAILABLE
    return EX_TEMPFAIL


def confirmed(question: str) -> bool:
    """Ask the user on stderr, to keep stdout clean; anything other than yes means no."""
    sys.stderr.write(f"{show.printable(question)} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
