"""The command line: parse first, patch next, import the app last.

The parser loads neither gevent nor an app, so ``greenq --help`` is quick. A command's options are
added only when that command is chosen, by its module or one next to it; such a module imports
nothing heavy at its top level. The command's dependencies are imported when it runs, and after
patching if it needs the hub.

Only `greenq.__main__` imports this package.
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
from greenq.cli.restart import Origin
from greenq.errors import GreenqError
from greenq.protocol.text import printable
from greenq.utils.suggest import suggestion

if TYPE_CHECKING:
    from collections.abc import Sequence

# The exit code that shells report for a program ended by SIGINT.
_INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors suggest the option or command that was probably meant.

    Attributes:
        options: the ``module:function`` that adds the parser's options when they are first needed.
        words: further words that an error may suggest.
        mixed: whether options may appear between positional arguments.
    """

    def __init__(self, *args: Any, options: str | None = None, **kwargs: Any) -> None:
        """Create a parser; all arguments except `options` are argparse's."""
        super().__init__(*args, **kwargs)
        self.options = options
        self.words: tuple[str, ...] = ()
        self.mixed = False

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Load the options and parse; return the values and the unknown arguments."""
        if self.options is not None:
            module, _, function = self.options.partition(":")
            self.options = None
            getattr(importlib.import_module(module), function)(self)
        if self.mixed:
            # Intermixed parsing takes two passes, and each pass calls this method.
            self.mixed = False
            return self.parse_known_intermixed_args(args, namespace)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print the error and where to find help, and exit with code 2."""
        text = printable(message + self._hint(message))
        self.exit(2, f"{self.prog}: {text}\nSee: {self.prog} --help\n")

    def _hint(self, message: str) -> str:
        # An error about an option's value needs no suggestion of another option.
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
class _Subcommand:
    """One command.

    Attributes:
        name: the name that the user types.
        text: a description for the list of commands.
        module: the module whose ``run(args)`` runs the command and returns the exit code.
        options: the ``module:function`` that adds the command's options to a parser.
        patched: whether `module` needs the patched standard library.
        extended: whether an app may add its own options.
        mixed: whether options may appear between positional arguments.
    """

    name: str
    text: str
    module: str
    options: str = ""
    patched: bool = False
    extended: bool = False
    mixed: bool = False


_COMMANDS = (
    _Subcommand(
        "worker",
        "run a worker",
        "greenq.cli.worker_command",
        "greenq.cli.worker_options:add_options",
        patched=True,
        extended=True,
    ),
    _Subcommand(
        "beat",
        "send periodic tasks, or inspect and change their entries",
        "greenq.cli.beat",
        "greenq.cli.beat_options:add_options",
    ),
    # `greenq.__main__` runs `health` without loading this module, which would take longer.
    _Subcommand(
        "health", "check whether the worker on this machine is healthy", "greenq.utils.probe"
    ),
    _Subcommand("status", "show the state of each worker", "greenq.cli.status"),
    _Subcommand("ping", "show which workers reply, and how fast", "greenq.cli.ping"),
    _Subcommand(
        "inspect",
        "ask workers about their state and tasks",
        "greenq.cli.remote",
        "greenq.cli.remote:add_inspect_options",
    ),
    _Subcommand(
        "control",
        "change what workers do",
        "greenq.cli.remote",
        "greenq.cli.remote:add_control_options",
    ),
    _Subcommand("autoscale", "show the decisions of the autoscalers", "greenq.cli.autoscale"),
    _Subcommand(
        "top", "watch workers, queues, tasks and greenlets on one screen", "greenq.cli.top"
    ),
    _Subcommand("events", "watch tasks and workers", "greenq.cli.events"),
    _Subcommand("queues", "show depth, consumers and growth of queues", "greenq.cli.queues"),
    _Subcommand("purge", "delete the messages waiting in queues", "greenq.cli.purge"),
    _Subcommand("list", "list the bindings of queues to exchanges", "greenq.cli.bindings"),
    _Subcommand("call", "send a task by its name", "greenq.cli.call"),
    _Subcommand("result", "show the state and result of a task", "greenq.cli.result_command"),
    _Subcommand(
        "workflow",
        "list, show, cancel, pause, resume or retry workflows",
        "greenq.cli.workflow",
        mixed=True,
    ),
    _Subcommand("dead", "list, replay or purge dead letters", "greenq.cli.dead"),
    _Subcommand("config", "show each setting: its value, source and meaning", "greenq.cli.config"),
    _Subcommand("report", "show versions and settings, for a bug report", "greenq.cli.report"),
    _Subcommand(
        "graph",
        "show the parts of a worker in starting order",
        "greenq.cli.graph",
        "greenq.cli.worker_options:add_graph_options",
        patched=True,
        extended=True,
    ),
    _Subcommand(
        "deploy", "write a configuration that runs workers, or restart them", "greenq.cli.deploy"
    ),
    _Subcommand(
        "supervisor-listener",
        "restart unresponsive or large workers; started by supervisord",
        "greenq.cli.supervisor_listener",
    ),
    _Subcommand("shell", "open a Python prompt with the app loaded", "greenq.cli.shell"),
    _Subcommand("demo", "watch 5,000 web requests run as tasks", "greenq.cli.demo", patched=True),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    origin = Origin.note()
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
    # Options that the app's own steps add are known only after the app has been loaded.
    if rest and not (command.extended and args.app):
        args.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    args.rest, args.origin = rest, origin
    try:
        return _run(command, args)
    except GreenqError as exc:
        # The error may contain text that others have written to the server.
        lines = f"greenq {command.name}: {exc}".split("\n")
        sys.stderr.write("".join(f"{printable(line)}\n" for line in lines))
        return 1


def _run(command: _Subcommand, args: argparse.Namespace) -> int:
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
        # The reader, such as `head`, has closed the pipe. Redirect stdout, since otherwise Python's
        # flush at exit would fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return _INTERRUPTED
    return code


def build_parser() -> Parser:
    """Return the parser of all commands."""
    parser = Parser(
        prog="greenq",
        # Abbreviations are not allowed, since their meaning could change when options are added.
        allow_abbrev=False,
        description="Thousands of concurrent I/O-bound tasks, with Celery's wire protocol.",
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
        added.mixed = command.mixed
        added.set_defaults(parser=added)
    return parser
