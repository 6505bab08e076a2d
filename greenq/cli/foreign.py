"""Where Celery's command line differs: the order of options, and options that greenq does not have.

An option or command that only Celery has ends the program with advice on what to do instead.
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence

# Options that Celery accepts before the command: those with a value, and those without.
_VALUED: Final = ("-A", "--app", "-b", "--broker", "--result-backend", "--workdir")
_PLAIN: Final = ("-q", "--quiet", "-C", "--no-color")
_REFUSED: Final = {
    "--config": "there is no --config: load the settings in the app, with config_from_object",
    "--loader": "there are no loaders: the app reads its settings with config_from_object",
    "--skip-checks": "there are no Django checks to skip",
}

COMMANDS: Final = {
    "multi": "there is no multi: start workers with a supervisor (greenq deploy supervisord), "
    "or one worker with a larger -c",
    "flower": "Flower is a separate program that works with greenq's workers: "
    "celery -b URL flower; greenq top shows them in the terminal",
    "amqp": "there is no AMQP here; greenq queues and greenq list show queues and bindings",
    "migrate": "there is no migrate: greenq uses Celery's queues on the same server",
    "upgrade": "there is no upgrade: the error about an old setting name gives the new name",
    "logtool": "there is no logtool",
}

# Options of Celery's worker and what to do instead; True means that they take a value.
_INSTEAD: Final[tuple[tuple[tuple[str, ...], bool, str], ...]] = (
    (
        ("-s", "--schedule", "--schedule-filename"),
        True,
        "not needed: the beat keeps its state on the server",
    ),
    (("--scheduler",), True, "there is one scheduler; app.periodic changes entries at run time"),
    (("--pool-start-method",), True, "there are no child processes"),
    (
        ("-D", "--detach"),
        False,
        "a worker does not detach itself: start it with a supervisor (greenq deploy supervisord)",
    ),
    (
        ("--disable-prefetch",),
        False,
        "by default a worker holds no more messages than its pool has slots "
        "(worker_prefetch_multiplier = 1)",
    ),
    (("--purge", "--discard"), False, "use greenq purge before the worker starts"),
    (("--umask",), True, "let the supervisor set the umask"),
    (("--executable",), True, "start greenq with the Python you want: python -m greenq worker"),
)

# Options of Celery's beat and what to do instead.
_INSTEAD_OF_BEATS: Final[tuple[tuple[tuple[str, ...], bool, str], ...]] = (
    *_INSTEAD[:1],
    (("-S", "--scheduler"), True, _INSTEAD[1][2]),
    (("--max-interval",), True, "not needed: the beat sleeps until the next due time"),
    (
        ("--detach",),
        False,
        "a beat does not detach itself: start it with a supervisor (greenq deploy supervisord)",
    ),
)

_GREEN: Final = ("gevent", "green", "greenlet")
_POOLS: Final = {
    "eventlet": "greenq uses gevent's greenlets: leave -P out",
    "prefork": "start as many workers as you have processor cores, each with its own name "
    "(-n), and leave -P out",
    "processes": "start as many workers as you have processor cores, each with its own name "
    "(-n), and leave -P out",
    "threads": "tasks are greenlets: leave -P out",
    "solo": "use -c 1, and leave -P out",
    "custom": "the pool cannot be replaced: leave -P out",
}


def in_order(argv: Sequence[str]) -> list[str]:
    """Move the options that Celery accepts before the command to after the command."""
    before: list[tuple[str, ...]] = []
    rest = list(argv)
    while rest and rest[0].startswith("-"):
        name, sign, _value = rest[0].partition("=")
        if name in _VALUED and not sign and len(rest) > 1:
            before.append((rest.pop(0), rest.pop(0)))
        elif name in (*_VALUED, *_PLAIN, *_REFUSED) or name[:2] in ("-A", "-b"):
            before.append((rest.pop(0),))
        else:
            return list(argv)
    if not rest or not before:
        return list(argv)
    command, behind = rest[0], rest[1:]
    kept = [word for words in before for word in _adapt(words, command)]
    return [command, *kept, *behind]


def _adapt(words: tuple[str, ...], command: str) -> tuple[str, ...]:
    """Return an option given before the command in the form that the command accepts."""
    name, _, value = words[0].partition("=")
    if command == "worker":
        return ("--no-color",) if name == "-C" else words
    if name in ("-C", "--no-color"):
        os.environ["NO_COLOR"] = "1"
        return ()
    if name == "--workdir":
        folder = value or words[-1]
        try:
            os.chdir(folder)
        except OSError as exc:
            raise argparse.ArgumentTypeError(f"--workdir {folder}: {exc.strerror}") from None
        return ()
    return () if name in ("-q", "--quiet") else words


def refused(argv: Sequence[str]) -> str | None:
    """Return advice about a command, or an option before it, that only Celery has.

    Args:
        argv: the arguments as `in_order` returns them.
    """
    command, *options = argv or [""]
    if command in COMMANDS:
        return f"{command}: {COMMANDS[command]}"
    for word in (command, *options):
        name = word.partition("=")[0]
        if name in _REFUSED:
            return f"{name}: {_REFUSED[name]}"
    return None


class _Instead(argparse.Action):
    """A Celery option that ends the program with advice."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        _namespace: argparse.Namespace,
        _values: Any,
        option: str | None = None,
    ) -> NoReturn:
        parser.exit(2, f"{parser.prog}: {option}: {self.metavar}\n")


class _Ignored(argparse.Action):
    """A Celery option that greenq accepts but ignores."""

    def __call__(self, *_arguments: Any, **_options: Any) -> None:
        """Do nothing."""


def pool(text: str) -> str:
    """Read the name of a pool; greenq has only one pool."""
    if text not in _GREEN:
        instead = _POOLS.get(text, "the only pool runs gevent's greenlets: leave -P out")
        raise argparse.ArgumentTypeError(f"no pool {text!r}: {instead}")
    return text


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of Celery's worker to `parser`; help shows only ``-P``."""
    add = parser.add_argument
    add("-P", "--pool", type=pool, metavar="POOL", help="gevent, the only pool: greenlets")
    add("-O", "--optimization", action=_Ignored, help=argparse.SUPPRESS,
        choices=("default", "fair"))  # fmt: skip
    add("--events", dest="task_events", action="store_true", default=None,
        help=argparse.SUPPRESS)  # fmt: skip
    _add_refused(parser, _INSTEAD)


def add_beat_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of Celery's beat to `parser`; help does not show them."""
    _add_refused(parser, _INSTEAD_OF_BEATS)


def _add_refused(
    parser: argparse.ArgumentParser, options: Sequence[tuple[tuple[str, ...], bool, str]]
) -> None:
    for names, has_value, text in options:
        parser.add_argument(
            *names, action=_Instead, nargs=None if has_value else 0, metavar=text,
            help=argparse.SUPPRESS,
        )  # fmt: skip
