"""The command line: parse first, patch next, import the app last.

The parser loads neither gevent nor any app, so ``greenq --help`` is quick. A command's options are
read from its own module, or one beside it, when the command is chosen; such a module loads nothing
heavy at its top. What a command needs is loaded when it runs, and after patching where it needs the
hub.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import greenq
from greenq.cli import foreign
from greenq.errors import GreenqError
from greenq.protocol.text import printable
from greenq.suggest import suggestion

if TYPE_CHECKING:
    from collections.abc import Sequence

# What a shell says of a program that SIGINT has ended.
_INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """argparse, but a wrong option or command is answered with the nearest right one.

    Attributes:
        options: ``module:function`` that gives it its options when they are first needed.
        words: what else may have been meant by a wrong word.
    """

    def __init__(self, *args: Any, options: str | None = None, **kwargs: Any) -> None:
        """Make a parser; all but `options` is argparse's."""
        super().__init__(*args, **kwargs)
        self.options = options
        self.words: tuple[str, ...] = ()

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse, with the options that are loaded now; return the values, and what is unknown."""
        if self.options is not None:
            module, _, function = self.options.partition(":")
            self.options = None
            getattr(importlib.import_module(module), function)(self)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, in one line, and where help is."""
        said = printable(message + self._hint(message))
        self.exit(2, f"{self.prog}: {said}\nSee: {self.prog} --help\n")

    def _hint(self, message: str) -> str:
        # What is said of one option's value is about nothing else.
        if message.startswith("argument ") and "invalid choice" not in message:
            return ""
        known = [option for action in self._actions for option in action.option_strings]
        known += self.words
        for action in self._actions:
            if isinstance(action.choices, dict):
                known += list(action.choices)
        for word in message.replace("'", " ").replace(":", " ").split():
            hint = suggestion(word.partition("=")[0], known, cutoff=0.7)
            if hint and word not in known:
                return hint
        return ""


@dataclass(frozen=True, slots=True)
class _Command:
    """One command.

    Attributes:
        name: as it is typed.
        text: what it does, for the list.
        module: its ``run(args)`` carries the command out and returns the exit code.
        options: ``module:function`` that gives a parser the command's options.
        patched: whether `module` needs the patched standard library.
        extended: whether an app may bring options of its own.
    """

    name: str
    text: str
    module: str
    options: str = ""
    patched: bool = False
    extended: bool = False


_COMMANDS = (
    _Command(
        "worker",
        "run a worker",
        "greenq.cli.worker_command",
        "greenq.cli.worker_options:add_options",
        patched=True,
        extended=True,
    ),
    _Command("status", "how each worker is doing", "greenq.cli.status"),
    _Command("ping", "which workers answer, and how fast", "greenq.cli.ping"),
    _Command(
        "inspect",
        "ask workers what they know",
        "greenq.cli.remote",
        "greenq.cli.remote:add_inspect_options",
    ),
    _Command(
        "control",
        "have workers do something",
        "greenq.cli.remote",
        "greenq.cli.remote:add_control_options",
    ),
    _Command("top", "workers, queues, tasks and greenlets on one screen", "greenq.cli.top"),
    _Command("events", "watch tasks and workers", "greenq.cli.events"),
    _Command("queues", "depth, consumers and changes of queues", "greenq.cli.queues"),
    _Command("purge", "delete the messages that wait in queues", "greenq.cli.purge"),
    _Command("list", "list the bindings of queues to exchanges", "greenq.cli.bindings"),
    _Command("call", "send a task by its name", "greenq.cli.call"),
    _Command("result", "show what has become of a task", "greenq.cli.result_command"),
    _Command("dead", "list, replay or purge dead letters", "greenq.cli.dead"),
    _Command("report", "versions and settings, for a bug report", "greenq.cli.report"),
    _Command(
        "graph",
        "the parts of a worker, in the order of their start",
        "greenq.cli.graph",
        "greenq.cli.worker_options:add_graph_options",
        patched=True,
        extended=True,
    ),
    _Command("deploy", "files that run workers in production", "greenq.cli.deploy"),
    _Command("shell", "a Python prompt with the app in it", "greenq.cli.shell"),
    _Command("demo", "watch 5,000 web requests run as tasks", "greenq.cli.demo", patched=True),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = build_parser()
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        given = foreign.in_order(given)
    except argparse.ArgumentTypeError as exc:
        parser.error(str(exc))
    instead = foreign.refused(given)
    if instead is not None:
        parser.exit(2, f"greenq: {instead}\n")
    args, rest = parser.parse_known_args(given)
    if args.command is None:
        parser.print_help()
        return 0
    command = next(each for each in _COMMANDS if each.name == args.command)
    # What the app's own steps make of the rest is known once the app is loaded.
    if rest and not (command.extended and args.app):
        args.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    args.rest = rest
    try:
        return _run(command, args)
    except GreenqError as exc:
        # An error may name what others have written to the server.
        lines = f"greenq {command.name}: {exc}".split("\n")
        sys.stderr.write("".join(f"{printable(line)}\n" for line in lines))
        return 1


def _run(command: _Command, args: argparse.Namespace) -> int:
    if command.patched:
        importlib.import_module("greenq.hub").patch()
    run = importlib.import_module(command.module).run
    if command.patched:
        code: int = run(args)
        return code
    try:
        code = run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough; Python's own flush at the end must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return _INTERRUPTED
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
            command.name,
            help=command.text,
            description=f"{command.text[0].upper()}{command.text[1:]}.",
            allow_abbrev=False,
            options=command.options or f"{command.module}:add_options",
        )
        added.set_defaults(parser=added)
    return parser
