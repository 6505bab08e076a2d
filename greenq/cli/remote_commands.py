"""The remote commands as data: names, arguments and descriptions."""

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
        name: its name in the request.
        text: its description.
        kind: a function that parses it from the command line.
        how: ``one`` and ``some`` (one or more) are required; ``any`` (any number) and ``perhaps``
            (at most one) are not. An ``option`` is written ``--name VALUE``, a ``flag`` ``--name``.
    """

    name: str
    text: str = ""
    kind: Callable[[str], Any] = str
    how: Literal["one", "some", "any", "perhaps", "option", "flag"] = "one"

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Add this argument to a parser; an omitted argument has no value at all."""
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
        """The name of the parsed value, which no option of the command line itself uses."""
        return f"argument {self.name}"


@dataclass(frozen=True, slots=True)
class RemoteCommand:
    """A remote command.

    Attributes:
        name: its name in the request.
        text: what it does, for the list of commands.
        parameters: its arguments.
        alias: Celery's other name for it.
        destructive: True if it needs confirmation at a terminal when it goes to all nodes.
        silent: True if workers never reply to it.
        paged: True if the reply is a list that is requested in pages with ``limit`` and ``offset``.
    """

    name: str
    text: str
    parameters: tuple[Parameter, ...] = ()
    alias: str | None = None
    destructive: bool = False
    silent: bool = False
    paged: bool = False


def pair(text: str) -> tuple[str, Any]:
    """Read ``key=value``; the value is JSON if it can be parsed, otherwise text."""
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
    """Read a whole number of at least 0."""
    return 0 if text == "0" else argument_types.count(text)


def boolean(text: str) -> bool:
    """Read ``true`` or ``false``."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


_TASK_IDS: Final = Parameter("task_id", "id of a task", how="some")
_TASK_NAME: Final = Parameter("task_name", "name of a task")
_QUEUE: Final = Parameter("queue", "name of a queue")
_N: Final = Parameter("n", "how many (default 1)", argument_types.count, "perhaps")
_SIGNAL: Final = Parameter("signal", "the signal for --terminate (default SIGTERM)", how="option")
_TERMINATE: Final = Parameter("terminate", "end the task if it is running", how="flag")
_PAGE: Final = (
    Parameter("limit", "at most this many per node (default all)", argument_types.count, "option"),
    Parameter("offset", "start at this index, counted from 0", offset, "option"),
)

INSPECT: Final = (
    RemoteCommand("ping", "reply pong"),
    RemoteCommand("status", "state of a node (greenq only)"),
    RemoteCommand(
        "active",
        "running tasks",
        (Parameter("safe", "arguments as text", how="flag"),),
        "dump_active",
    ),
    RemoteCommand(
        "reserved", "tasks that were taken but have not started", _PAGE, "dump_reserved", paged=True
    ),
    RemoteCommand(
        "scheduled",
        "tasks waiting in the worker for their ETA",
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
        "tasks that a node knows",
        (
            Parameter("taskinfoitems", "attributes to show, such as rate_limit", how="any"),
            Parameter("builtins", "include greenq's own tasks", how="flag"),
        ),
        "dump_tasks",
    ),
    RemoteCommand("revoked", "ids of revoked tasks", (), "dump_revoked"),
    RemoteCommand("active_queues", "queues that a node consumes from"),
    RemoteCommand("stats", "counts, pool, connections, resources"),
    RemoteCommand(
        "conf",
        "settings, without secrets",
        (Parameter("with_defaults", "include settings at their defaults", how="flag"),),
        "dump_conf",
    ),
    RemoteCommand("report", "versions and settings, for a bug report"),
    RemoteCommand("clock", "the logical clock"),
    RemoteCommand("memsample", "take a sample of the memory in use"),
    RemoteCommand(
        "memdump",
        "the samples taken so far",
        (Parameter("samples", "at most this many", argument_types.count, "perhaps"),),
    ),
    RemoteCommand(
        "objgraph",
        "draw what refers to objects of a type",
        (
            Parameter("type", "name of the type (default Request)", how="perhaps"),
            Parameter("num", "how many objects", argument_types.count, "perhaps"),
            Parameter("max_depth", "how many steps to follow", argument_types.count, "perhaps"),
        ),
    ),
    RemoteCommand(
        "hello",
        "what nodes exchange when they start",
        (Parameter("from_node", "name of the asking node"),),
    ),
    RemoteCommand(
        "greenlets",
        "running tasks: age, CPU time, stack (greenq only)",
        (
            Parameter(
                "limit", "how many, oldest first (default 100)", argument_types.count, "option"
            ),
        ),
    ),
    RemoteCommand("hub", "lag of the event loop, and its causes (greenq only)"),
    RemoteCommand("autoscale_log", "recent changes of the pool's size, with reasons (greenq only)"),
)

CONTROL: Final = (
    RemoteCommand(
        "revoke",
        "drop tasks before they run",
        (_TASK_IDS, _TERMINATE, _SIGNAL),
    ),
    RemoteCommand(
        "terminate",
        "end running tasks",
        (Parameter("signal", "such as SIGTERM"), _TASK_IDS),
    ),
    RemoteCommand(
        "revoke_by_stamped_headers",
        "drop tasks by their stamps",
        (Parameter("headers", "a stamp, as key=value", stamp, "some"), _TERMINATE, _SIGNAL),
    ),
    RemoteCommand(
        "rate_limit",
        "change how often a node may start a task",
        (_TASK_NAME, Parameter("rate_limit", "such as 10/s, 100/m, 5/h; 0 means no limit")),
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
    RemoteCommand("enable_events", "start sending task events"),
    RemoteCommand("disable_events", "stop sending task events"),
    RemoteCommand("heartbeat", "send a heartbeat immediately"),
    RemoteCommand("pool_grow", "allow more tasks at once", (_N,)),
    RemoteCommand("pool_shrink", "allow fewer tasks at once", (_N,)),
    RemoteCommand(
        "pool_restart",
        "import modules",
        (
            Parameter("modules", "name of a module", how="any"),
            Parameter("reload", "reload modules that are already imported", how="flag"),
        ),
    ),
    RemoteCommand(
        "autoscale",
        "change the limits of the pool's size",
        (
            Parameter("max", "maximum slots", argument_types.count),
            Parameter("min", "minimum slots", argument_types.count, "perhaps"),
        ),
    ),
    RemoteCommand(
        "add_consumer",
        "start consuming from another queue",
        (
            _QUEUE,
            Parameter("exchange", "the queue's exchange", how="perhaps"),
            Parameter("exchange_type", "direct or topic", how="perhaps"),
            Parameter("routing_key", "the queue's routing key", how="perhaps"),
        ),
    ),
    RemoteCommand("cancel_consumer", "stop consuming from a queue", (_QUEUE,)),
    RemoteCommand(
        "election",
        "elect one node, which runs a task",
        (
            Parameter("id", "id of the election"),
            Parameter("topic", "task"),
            Parameter("action", "the task's signature, as JSON", json.loads, "perhaps"),
        ),
    ),
    RemoteCommand(
        "pause", "stop all nodes from consuming from a queue until resume (greenq only)", (_QUEUE,)
    ),
    RemoteCommand("resume", "undo pause (greenq only)", (_QUEUE,)),
    RemoteCommand(
        "drain",
        "take no more tasks, but finish running tasks (greenq only)",
        (Parameter("on", "false: take tasks again", boolean, "perhaps"),),
    ),
    RemoteCommand("shutdown", "stop after finishing running tasks", destructive=True, silent=True),
)

BY_GROUP: Final = {"inspect": INSPECT, "control": CONTROL}


def find(group: str, name: str) -> RemoteCommand | None:
    """Return a group's command by its name or alias; None if there is none."""
    return next((each for each in BY_GROUP[group] if name in (each.name, each.alias)), None)
