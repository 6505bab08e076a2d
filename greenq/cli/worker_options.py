"""The options of ``greenq worker`` and ``graph``, and those that an app's own steps bring along."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from greenq.cli import argument_types, foreign
from greenq.errors import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    CustomOption = Callable[[argparse.ArgumentParser], object]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the worker's own options."""
    add = parser.add_argument
    add("-A", "--app", default=os.environ.get("GREENQ_APP"), help="the app: module or module:name")
    add(
        "-b",
        "--broker",
        type=argument_types.server,
        metavar="URL",
        help="the server's address, instead of the app's broker_url; @FILE reads it from a file",
    )
    add(
        "--result-backend",
        type=argument_types.server,
        metavar="URL",
        help="instead of the app's result_backend; @FILE reads it from a file",
    )
    add(
        "-I",
        "--include",
        type=argument_types.modules,
        default=(),
        metavar="A,B",
        help="modules to import for the tasks in them, besides the app's",
    )
    add("--workdir", metavar="DIR", help="change to this folder first")
    _add_work_options(parser.add_argument_group("which tasks, and how many"))
    _add_cluster_options(parser.add_argument_group("in the cluster"))
    _add_output_options(parser.add_argument_group("name and output"))
    foreign.add_options(parser)


def add_graph_options(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the options of ``greenq graph``."""
    add = parser.add_argument
    add("which", nargs="?", choices=("worker", "consumer"), help="one of the two only")
    add("-A", "--app", default=os.environ.get("GREENQ_APP"), help="with this app's own steps")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--dot", action="store_true", help="for Graphviz: greenq graph --dot | dot")
    form.add_argument("--json", action="store_true", help="JSON instead of text")


def _add_work_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "-Q",
        "--queues",
        type=argument_types.names,
        default=(),
        metavar="A,B",
        help="queues to take from",
    )
    add(
        "-X",
        "--exclude-queues",
        type=argument_types.names,
        default=(),
        metavar="A,B",
        help="queues of task_queues not to take from",
    )
    add("-c", "--concurrency", type=argument_types.count, metavar="N", help="tasks at once")
    add(
        "--autoscale",
        type=argument_types.limits,
        metavar="MAX,MIN",
        help="tasks at once follow the queue's depth",
    )
    add(
        "--prefetch-multiplier",
        type=argument_types.count,
        metavar="N",
        help="messages held per greenlet (default 1)",
    )
    add("--time-limit", type=argument_types.seconds, metavar="S", help="end tasks that run longer")
    add(
        "--soft-time-limit",
        type=argument_types.seconds,
        metavar="S",
        help="raise SoftTimeLimitExceeded in tasks that run longer",
    )


def _add_cluster_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "-E",
        "--task-events",
        action="store_true",
        default=None,
        help="send events of tasks, for `greenq events` and Flower",
    )
    add(
        "--heartbeat-interval",
        type=argument_types.seconds,
        metavar="S",
        help="seconds between two heartbeats (default 2)",
    )
    without = {
        "mingle": "learn nothing of the other workers at the start",
        "gossip": "do not follow the other workers, take no part in elections",
        "heartbeat": "send no heartbeats",
        "control": "take no remote commands",
    }
    for step, text in without.items():
        # Control has a setting, too, which holds when nothing is said here.
        default = None if step == "control" else True
        add(f"--without-{step}", dest=step, action="store_false", default=default, help=text)


def _add_output_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "-n",
        "--hostname",
        metavar="NAME",
        help="node name; %%h is the host, %%p the process id (default greenq@%%h)",
    )
    add(
        "-l",
        "--loglevel",
        type=argument_types.level,
        default="WARNING",
        metavar="LEVEL",
        help="DEBUG, INFO, WARNING, ERROR or CRITICAL (default WARNING)",
    )
    add(
        "-f",
        "--logfile",
        metavar="FILE",
        help="log there instead of to stderr; %%p is the node name, %%n its part before the @",
    )
    add(
        "--pidfile",
        metavar="FILE",
        help="keep the process id there; a second worker with this file does not start",
    )
    add("-q", "--quiet", action="store_true", help="no banner")
    add("--no-color", action="store_true", help="no colours")


def read_custom(args: argparse.Namespace, options: Iterable[CustomOption]) -> dict[str, Any]:
    """Read what the worker's own options left over by the app's `options`; return their values.

    What nobody knows ends the program with a hint at the nearest option that there is.

    Args:
        args: as parsed; `args.rest` holds what is left, `args.parser` the parser of the rest.
        options: of ``app.user_options["worker"]``.

    Raises:
        ConfigError: the app's option has the name of one of the worker's.
    """
    known = set(vars(args))
    for option in options:
        try:
            added = option(args.parser)
        except argparse.ArgumentError as exc:
            raise _refused(option, exc.message) from None
        if getattr(added, "dest", None) in known:
            raise _refused(option, "an option of greenq's own has this name; choose another dest")
    args.parser.parse_args(args.rest, args)
    return {name: value for name, value in vars(args).items() if name not in known}


def custom_defaults(options: Iterable[CustomOption]) -> dict[str, Any]:
    """Return the values of the app's `options` when the command line has none of them."""
    parser = _Lenient(add_help=False)
    for option in options:
        option(parser)
    return parser.defaults()


class _Lenient(argparse.ArgumentParser):
    """Does without what is required."""

    def defaults(self) -> dict[str, Any]:
        for action in self._actions:
            action.required = False
        return vars(self.parse_args([]))


def _refused(option: object, reason: str) -> ConfigError:
    return ConfigError([Problem("user_options", option, reason)])
