"""The options of ``greenq worker`` and ``greenq graph``, and those of an app's own steps."""

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
    """Add the worker's own options to `parser`."""
    add = parser.add_argument
    add("-A", "--app", default=os.environ.get("GREENQ_APP"), help="the app: module or module:name")
    add(
        "-b",
        "--broker",
        type=argument_types.server,
        metavar="URL",
        help="the server's URL, instead of the app's broker_url; @FILE reads it from a file",
    )
    add(
        "--result-backend",
        type=argument_types.server,
        metavar="URL",
        help="the results server's URL, instead of the app's result_backend; @FILE reads it from a "
        "file",
    )
    add(
        "-I",
        "--include",
        type=argument_types.modules,
        default=(),
        metavar="A,B",
        help="task modules to import in addition to the app's",
    )
    add("--workdir", metavar="DIR", help="change to this directory before importing the app")
    add(
        "--uid",
        metavar="USER",
        help="if started as root, become this user, with its groups, before any file is opened",
    )
    add("--gid", metavar="GROUP", help="if started as root, use this group, not the user's own")
    _add_work_options(parser.add_argument_group("tasks"))
    _add_restart_options(parser.add_argument_group("restarts"))
    _add_cluster_options(parser.add_argument_group("cluster"))
    _add_output_options(parser.add_argument_group("name and output"))
    foreign.add_options(parser)


def add_graph_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``greenq graph`` to `parser`."""
    add = parser.add_argument
    add("which", nargs="?", choices=("worker", "consumer"), help="show only this blueprint")
    add("-A", "--app", default=os.environ.get("GREENQ_APP"), help="include this app's own steps")
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--dot", action="store_true", help="print a graph for Graphviz: greenq graph --dot | dot"
    )
    form.add_argument("--json", action="store_true", help="print JSON instead of text")


def _add_work_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "-Q",
        "--queues",
        type=argument_types.names,
        default=(),
        metavar="A,B",
        help="consume only from these queues",
    )
    add(
        "-X",
        "--exclude-queues",
        type=argument_types.names,
        default=(),
        metavar="A,B",
        help="consume from all queues in task_queues except these",
    )
    add(
        "-c",
        "--concurrency",
        type=argument_types.count,
        metavar="N",
        help="run at most N tasks at once",
    )
    add(
        "--autoscale",
        type=argument_types.limits,
        metavar="MAX,MIN",
        help="adapt the number of concurrent tasks to the queue's depth",
    )
    add(
        "--processes",
        type=argument_types.limits,
        metavar="MAX,MIN",
        help="under supervisord: adapt the number of processes to the load of their hubs",
    )
    add(
        "--prefetch-multiplier",
        type=argument_types.count,
        metavar="N",
        help="number of messages held for each greenlet (default 1)",
    )
    add("--time-limit", type=argument_types.seconds, metavar="S", help="end tasks that run longer")
    add(
        "--soft-time-limit",
        type=argument_types.seconds,
        metavar="S",
        help="raise SoftTimeLimitExceeded in tasks that run longer",
    )


def _add_restart_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--autoreload",
        action="store_true",
        help="for development: restart when a source file of the app changes",
    )
    add(
        "-S",
        "--statedb",
        metavar="FILE",
        help="store revoked tasks and the clock in this file; %%p is the node name",
    )
    add(
        "--max-tasks",
        "--max-tasks-per-child",
        type=argument_types.count,
        metavar="N",
        help="end after N tasks (exit code 75), so that a supervisor starts the worker again",
    )
    add(
        "--max-memory",
        "--max-memory-per-child",
        type=argument_types.memory,
        metavar="SIZE",
        help="end in this way when resident memory reaches SIZE: 512M, 2G, or a number of KiB",
    )
    add(
        "--max-lifetime",
        type=argument_types.lifetime,
        metavar="TIME",
        help="end in this way after TIME: 30m, 12h, or a number of seconds",
    )


def _add_cluster_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "-E",
        "--task-events",
        action="store_true",
        default=None,
        help="send task events, for `greenq events` and Flower",
    )
    add(
        "-B",
        "--beat",
        action="store_true",
        help="also send periodic tasks; any number of workers can do so",
    )
    add(
        "--heartbeat-interval",
        type=argument_types.seconds,
        metavar="S",
        help="seconds between heartbeats (default 2)",
    )
    add(
        "--health",
        dest="health_address",
        metavar="ADDRESS",
        help="serve health probes at this address: PORT, HOST:PORT or unix:PATH",
    )
    add(
        "--metrics-port",
        dest="metrics_address",
        metavar="[HOST:]PORT",
        help="serve Prometheus metrics and health probes on this port (needs greenq[metrics])",
    )
    add(
        "--metrics-names",
        type=argument_types.names,
        default=(),
        metavar="A,B",
        help="whose metric names to serve: greenq (default), celery-exporter, flower",
    )
    without = {
        "mingle": "do not query the other workers at startup",
        "gossip": "do not follow the other workers or take part in elections",
        "heartbeat": "send no heartbeats",
        "control": "accept no remote commands",
    }
    for step, text in without.items():
        # Remote control also has a setting, which applies if this option is not given.
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
        help="log to this file instead of stderr; %%p is the node name, %%n its part before the @",
    )
    add("--log-json", action="store_true", help="log each line as a JSON object")
    add(
        "--pidfile",
        metavar="FILE",
        help="write the process id to this file; a second worker with the same file does not start",
    )
    add("-q", "--quiet", action="store_true", help="print no banner")
    add("--no-color", action="store_true", help="use no colours")


def read_custom(args: argparse.Namespace, options: Iterable[CustomOption]) -> dict[str, Any]:
    """Parse the remaining arguments with the app's `options`; return their values.

    An unknown option ends the program with a suggestion of the nearest one.

    Args:
        args: the parsed arguments; `args.rest` contains the remaining arguments, and `args.parser`
            is the worker's parser.
        options: the options in ``app.user_options["worker"]``.

    Raises:
        ConfigError: an option of the app has the same name as one of the worker's.
    """
    known = set(vars(args))
    for option in options:
        try:
            added = option(args.parser)
        except argparse.ArgumentError as exc:
            raise _make_error(option, exc.message) from None
        if getattr(added, "dest", None) in known:
            raise _make_error(option, "greenq has an option with this name; choose another dest")
    args.parser.parse_args(args.rest, args)
    return {name: value for name, value in vars(args).items() if name not in known}


def custom_defaults(options: Iterable[CustomOption]) -> dict[str, Any]:
    """Return the defaults of the app's `options`."""
    parser = _Lenient(add_help=False)
    for option in options:
        option(parser)
    return parser.defaults()


class _Lenient(argparse.ArgumentParser):
    """Parses without requiring any argument."""

    def defaults(self) -> dict[str, Any]:
        for action in self._actions:
            action.required = False
        return vars(self.parse_args([]))


def _make_error(option: object, reason: str) -> ConfigError:
    return ConfigError([Problem("user_options", option, reason)])
