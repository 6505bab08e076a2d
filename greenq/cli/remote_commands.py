"""The commands that workers answer, as data: names, arguments, and what they are good for."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from greenq.cli import argument_types

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument of a command.

    Attributes:
        name: as it stands in the request.
        text: what it says.
        kind: reads it from the command line.
        how: ``one`` and ``some`` (one or more) must be given, ``any`` (none or more) and
            ``perhaps`` need not; ``option`` is written ``--name VALUE``, ``flag`` ``--name``.
    """

    name: str
    text: str = ""
    kind: Callable[[str], Any] = str
    how: Literal["one", "some", "any", "perhaps", "option", "flag"] = "one"

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Give a parser this argument; left out, it has no value at all."""
        if self.how == "flag":
            parser.add_argument(
                f"--{self.name.replace('_', '-')}",
                dest=self.dest,
                action="store_true",
                default=argparse.SUPPRESS,
                help=self.text,
            )
        elif self.how == "option":
            parser.add_argument(
                f"--{self.name.replace('_', '-')}",
                dest=self.dest,
                type=self.kind,
                default=argparse.SUPPRESS,
                metavar=self.name.upper(),
                help=self.text,
            )
        else:
            parser.add_argument(
                self.dest,
                type=self.kind,
                nargs={"one": None, "some": "+", "any": "*", "perhaps": "?"}[self.how],
                metavar=self.name.upper(),
                help=self.text,
            )

    @property
    def dest(self) -> str:
        """The name of its value among the command line's own options."""
        return f"argument {self.name}"


@dataclass(frozen=True, slots=True)
class RemoteCommand:
    """A command that workers answer.

    Attributes:
        name: as it stands in the request.
        text: what it does, for the list.
        parameters: its arguments.
        alias: another name that Celery gives it.
        destructive: asks first, at a terminal, when it goes to all nodes.
        silent: no reply ever comes.
        paged: the reply is a list that is asked for in pages, by ``limit`` and ``offset``.
    """

    name: str
    text: str
    parameters: tuple[Parameter, ...] = ()
    alias: str | None = None
    destructive: bool = False
    silent: bool = False
    paged: bool = False


def pair(text: str) -> tuple[str, Any]:
    """Read ``key=value``; the value is JSON where it can be, else text."""
    key, sign, value = text.partition("=")
    if not (key and sign):
        raise argparse.ArgumentTypeError(f"{text!r} is not key=value")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def stamp(text: str) -> str:
    """Read a stamped header: ``key=value``."""
    pair(text)
    return text


def offset(text: str) -> int:
    """Read a whole number from 0 on."""
    return 0 if text == "0" else argument_types.count(text)


def truth(text: str) -> bool:
    """Read ``true`` or ``false``."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


_TASK_IDS: Final = Parameter("task_id", "id of a task", how="some")
_TASK_NAME: Final = Parameter("task_name", "name of a task")
_QUEUE: Final = Parameter("queue", "name of a queue")
_N: Final = Parameter("n", "how many (default 1)", argument_types.count, "perhaps")
_SIGNAL: Final = Parameter("signal", "with --terminate (default SIGTERM)", how="option")
_TERMINATE: Final = Parameter("terminate", "end it if it runs", how="flag")
_PAGE: Final = (
    Parameter("limit", "so many of each node (default all)", argument_types.count, "option"),
    Parameter("offset", "from this one on, counted from 0", offset, "option"),
)

INSPECT: Final = (
    RemoteCommand("ping", "say pong"),
    RemoteCommand("status", "how a node is doing (greenq only)"),
    RemoteCommand(
        "active",
        "tasks that run now",
        (Parameter("safe", "arguments as text", how="flag"),),
        "dump_active",
    ),
    RemoteCommand(
        "reserved", "tasks that were taken and do not run yet", _PAGE, "dump_reserved", paged=True
    ),
    RemoteCommand(
        "scheduled",
        "tasks that wait for their time in the worker",
        _PAGE,
        "dump_schedule",
        paged=True,
    ),
    RemoteCommand(
        "query_task",
        "where tasks are, by id",
        (Parameter("ids", "id of a task", how="some"),),
    ),
    RemoteCommand(
        "registered",
        "tasks a node knows",
        (
            Parameter("taskinfoitems", "attributes to tell, as rate_limit", how="any"),
            Parameter("builtins", "those of the library itself, too", how="flag"),
        ),
        "dump_tasks",
    ),
    RemoteCommand("revoked", "ids of revoked tasks", (), "dump_revoked"),
    RemoteCommand("active_queues", "queues a node takes from"),
    RemoteCommand("stats", "counts, pool, connections, resources"),
    RemoteCommand(
        "conf",
        "settings, without secrets",
        (Parameter("with_defaults", "those left at their defaults, too", how="flag"),),
        "dump_conf",
    ),
    RemoteCommand("report", "versions and settings, for a bug report"),
    RemoteCommand("clock", "the logical clock"),
    RemoteCommand("memsample", "take a sample of the memory in use"),
    RemoteCommand(
        "memdump",
        "the samples that were taken",
        (Parameter("samples", "at most so many", argument_types.count, "perhaps"),),
    ),
    RemoteCommand(
        "objgraph",
        "draw what refers to objects of a type",
        (
            Parameter("type", "name of the type (default Request)", how="perhaps"),
            Parameter("num", "so many objects", argument_types.count, "perhaps"),
            Parameter("max_depth", "so many steps", argument_types.count, "perhaps"),
        ),
    ),
    RemoteCommand(
        "hello",
        "what nodes tell one another at their start",
        (Parameter("from_node", "who asks"),),
    ),
    RemoteCommand(
        "greenlets",
        "running tasks: age, CPU time, stack (greenq only)",
        (Parameter("limit", "so many, the oldest (default 100)", argument_types.count, "option"),),
    ),
    RemoteCommand("hub", "lag of the event loop, and who caused it (greenq only)"),
    RemoteCommand("autoscale_log", "the pool's last changes of size, with reasons (greenq only)"),
)

CONTROL: Final = (
    RemoteCommand(
        "revoke",
        "have tasks dropped before they run",
        (_TASK_IDS, _TERMINATE, _SIGNAL),
    ),
    RemoteCommand(
        "terminate",
        "end tasks that run",
        (Parameter("signal", "as SIGTERM"), _TASK_IDS),
    ),
    RemoteCommand(
        "revoke_by_stamped_headers",
        "have tasks dropped by their stamps",
        (Parameter("headers", "a stamp, as key=value", stamp, "some"), _TERMINATE, _SIGNAL),
    ),
    RemoteCommand(
        "rate_limit",
        "change how many of a task a node starts",
        (_TASK_NAME, Parameter("rate_limit", "as 10/s, 100/m, 5/h; 0 is no limit")),
    ),
    RemoteCommand(
        "time_limit",
        "change how long a task may run",
        (
            _TASK_NAME,
            Parameter("soft", "seconds", argument_types.seconds),
            Parameter("hard", "seconds", argument_types.seconds, "perhaps"),
        ),
    ),
    RemoteCommand("enable_events", "have events of tasks sent"),
    RemoteCommand("disable_events", "have no more events of tasks sent"),
    RemoteCommand("heartbeat", "have a heartbeat sent at once"),
    RemoteCommand("pool_grow", "more tasks at once", (_N,)),
    RemoteCommand("pool_shrink", "fewer tasks at once", (_N,)),
    RemoteCommand(
        "pool_restart",
        "import modules anew",
        (
            Parameter("modules", "name of a module", how="any"),
            Parameter("reload", "also those that are loaded", how="flag"),
        ),
    ),
    RemoteCommand(
        "autoscale",
        "change the bounds of the pool",
        (
            Parameter("max", "most tasks at once", argument_types.count),
            Parameter("min", "fewest", argument_types.count, "perhaps"),
        ),
    ),
    RemoteCommand(
        "add_consumer",
        "take from another queue, too",
        (
            _QUEUE,
            Parameter("exchange", "its exchange", how="perhaps"),
            Parameter("exchange_type", "direct or topic", how="perhaps"),
            Parameter("routing_key", "its routing key", how="perhaps"),
        ),
    ),
    RemoteCommand("cancel_consumer", "take no more from a queue", (_QUEUE,)),
    RemoteCommand(
        "election",
        "elect one node, which runs a task",
        (
            Parameter("id", "of the election"),
            Parameter("topic", "task"),
            Parameter("action", "the task's signature, as JSON", json.loads, "perhaps"),
        ),
    ),
    RemoteCommand("pause", "have no node take from a queue until resume (greenq only)", (_QUEUE,)),
    RemoteCommand("resume", "undo pause (greenq only)", (_QUEUE,)),
    RemoteCommand(
        "drain",
        "take no more, finish what runs (greenq only)",
        (Parameter("on", "false: take tasks again", truth, "perhaps"),),
    ),
    RemoteCommand("shutdown", "stop, warm", destructive=True, silent=True),
)

BY_GROUP: Final = {"inspect": INSPECT, "control": CONTROL}


def find(group: str, name: str) -> RemoteCommand | None:
    """Return the command of a group by its name or alias, None if there is none."""
    return next((each for each in BY_GROUP[group] if name in (each.name, each.alias)), None)
