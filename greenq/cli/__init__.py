"""The command line: parse first, patch next, import the app last.

The parser loads neither gevent nor any app, so ``greenq --help`` is quick. A command's own module
is loaded when it is chosen, and after patching where the command needs the hub.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn

import greenq
from greenq.errors import GreenqError

if TYPE_CHECKING:
    from collections.abc import Sequence

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_DURATIONS = {
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
}


class Parser(argparse.ArgumentParser):
    """argparse, but a wrong option or command is answered with the nearest right one."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, in one line, and where help is."""
        self.exit(2, f"{self.prog}: {message}{self._hint(message)}\nSee: {self.prog} --help\n")

    def _hint(self, message: str) -> str:
        known = [option for action in self._actions for option in action.option_strings]
        for action in self._actions:
            if isinstance(action.choices, dict):
                known += list(action.choices)
        for word in message.replace("'", " ").replace(":", " ").split():
            close = difflib.get_close_matches(word.partition("=")[0], known, n=1, cutoff=0.7)
            if close and word not in known:
                return f"; did you mean {close[0]}?"
        return ""


class _Command:
    """One command: the module that runs it, and whether that needs the patched standard library."""

    def __init__(self, name: str, module: str, text: str, *, patched: bool) -> None:
        self.name = name
        self.module = module
        self.text = text
        self.patched = patched


_COMMANDS = (
    _Command("worker", "greenq.cli.worker", "run a worker", patched=True),
    _Command("dead", "greenq.cli.dead", "list, replay or purge dead letters", patched=False),
    _Command("demo", "greenq.cli.demo", "watch 5,000 web requests run as tasks", patched=True),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if args.command is None:
        parser.print_help()
        return 0
    if rest:
        args.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    command = next(each for each in _COMMANDS if each.name == args.command)
    try:
        if command.patched:
            importlib.import_module("greenq.hub").patch()
        code: int = importlib.import_module(command.module).run(args)
    except GreenqError as exc:
        sys.stderr.write(f"greenq {command.name}: {exc}\n")
        return 1
    return code


def build_parser() -> Parser:
    """Return the parser of all commands."""
    parser = Parser(
        prog="greenq",
        # Abbreviations would change their meaning when options are added.
        allow_abbrev=False,
        description="Thousands of I/O-bound tasks at once, in Celery's wire protocol.",
    )
    parser.add_argument("--version", action="version", version=f"greenq {greenq.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for command in _COMMANDS:
        added = commands.add_parser(
            command.name, help=command.text, description=command.text, allow_abbrev=False
        )
        added.set_defaults(parser=added)
        options = {"worker": _worker_options, "dead": _dead_options, "demo": _demo_options}
        options[command.name](added)
    return parser


def _worker_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-A", "--app", default=os.environ.get("GREENQ_APP"), help="the app: module or module:name")
    add(
        "-b",
        "--broker",
        metavar="URL",
        help="the server's address, instead of the app's broker_url",
    )
    add("--result-backend", metavar="URL", help="instead of the app's result_backend")
    add("-Q", "--queues", type=_names, default=(), metavar="A,B", help="queues to take from")
    add("-c", "--concurrency", type=_count, metavar="N", help="tasks at once")
    add(
        "--autoscale",
        type=_limits,
        metavar="MAX,MIN",
        help="tasks at once follow the queue's depth",
    )
    add("-n", "--hostname", metavar="NAME", help="node name; %%h is the host (default greenq@%%h)")
    add("-l", "--loglevel", type=_level, default="WARNING", metavar="LEVEL",
        help="DEBUG, INFO, WARNING, ERROR or CRITICAL (default WARNING)")  # fmt: skip
    add("-f", "--logfile", metavar="FILE", help="log there instead of to stderr")
    add("--workdir", metavar="DIR", help="change to this folder first")
    add("-q", "--quiet", action="store_true", help="no banner")
    add("--no-color", action="store_true", help="no colours")


def _dead_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("action", choices=("list", "show", "replay", "purge"),
        help="show: one in full; replay: back to their queues; purge: delete")  # fmt: skip
    add("-A", "--app", default=os.environ.get("GREENQ_APP"), help="the app: module or module:name")
    add("-b", "--broker", metavar="URL", help="instead of the app's broker_url")
    add("-Q", "--queues", type=_names, default=(), metavar="A,B",
        help="of these queues (default: all that have dead letters)")  # fmt: skip
    add("--task", metavar="NAME", help="of this task; may hold * and ?, as in 'mail.*'")
    add("--reason", metavar="TEXT", help="whose reason contains this")
    add("--id", metavar="ID", help="with this id, as the list shows it")
    add("--since", type=_duration, metavar="AGE", help="younger than 30s, 10m, 2h or 7d")
    add("--limit", type=_count, metavar="N",
        help="so many: the newest to list (default 100), the oldest to replay")  # fmt: skip
    add("--json", action="store_true", help="a JSON object a line; purge then asks for no --yes")
    add("--yes", action="store_true", help="purge more than one")


def _demo_options(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--urls", metavar="FILE", help="fetch these URLs, one a line, instead of the local server's"
    )
    what.add_argument(
        "--tasks", type=_count, default=5000, metavar="N", help="how many fetches (default 5000)"
    )
    add = parser.add_argument
    add("--autoscale", type=_limits, default=(500, 10), metavar="MAX,MIN", help="default 500,10")


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise argparse.ArgumentTypeError(
            f"no queue named in {text!r}: give names as in -Q mail,web"
        )
    return names


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _duration(text: str) -> timedelta:
    unit = _DURATIONS.get(text[-1:])
    if unit is None or not text[:-1].isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no age, such as 30s, 10m, 2h or 7d")
    try:
        return int(text[:-1]) * unit
    except (OverflowError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is too long ago") from None


def _limits(text: str) -> tuple[int, int]:
    parts = text.split(",")
    if len(parts) == 1:
        parts.append("1")
    try:
        most, least = (int(part) for part in parts)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not MAX,MIN, as in 500,10") from None
    if not 1 <= least <= most:
        raise argparse.ArgumentTypeError(f"{text!r}: MAX comes first, and MIN is from 1 to MAX")
    return most, least


def _level(text: str) -> str:
    if text.upper() not in _LEVELS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no log level; there are {', '.join(_LEVELS)}"
        )
    return text.upper()
