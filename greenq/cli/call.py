"""``greenq call``: send a task by its name."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from typing import Any

from greenq.cli import show
from greenq.cli.common import add_app_options, opened


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    add = parser.add_argument
    add("name", metavar="NAME", help="the task's name; the app need not know the task")
    add_app_options(parser)
    add("-a", "--args", dest="task_args", type=json_list, default=[], metavar="JSON",
        help="the task's arguments, such as '[2, 2]'")  # fmt: skip
    add("-k", "--kwargs", dest="task_kwargs", type=json_object, default={}, metavar="JSON",
        help="the task's keyword arguments, such as '{\"x\": 2}'")  # fmt: skip
    add("--queue", metavar="NAME", help="send to this queue")
    add("--priority", type=priority, metavar="0-9", help="0 is the most urgent")
    when = parser.add_mutually_exclusive_group()
    when.add_argument(
        "--countdown", type=seconds, metavar="S", help="run the task S seconds from now"
    )
    when.add_argument(
        "--eta",
        type=moment,
        metavar="TIME",
        help="do not run the task before this time, such as 2031-01-02T03:04",
    )
    add(
        "--expires",
        type=seconds_or_moment,
        metavar="S|TIME",
        help="do not run the task after this time",
    )


def run(args: argparse.Namespace) -> int:
    """Send the task and print its id."""
    options: dict[str, Any] = {
        name: getattr(args, name)
        for name in ("queue", "priority", "countdown", "eta", "expires")
        if getattr(args, name) is not None
    }
    with opened(args) as app:
        # If the app knows the task, the task's own options apply.
        task = app.tasks.get(args.name)
        if task is not None:
            sent = task.apply_async(args.task_args, args.task_kwargs, **options)
        else:
            sent = app.send_task(args.name, args.task_args, args.task_kwargs, **options)
    if args.json:
        show.write_json({"id": sent.id})
    else:
        show.write(sent.id)
    return 0


def json_list(text: str) -> list[Any]:
    """Read a JSON list."""
    value = _json(text)
    if not isinstance(value, list):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON list, such as '[2, 2]'")
    return value


def json_object(text: str) -> dict[str, Any]:
    """Read a JSON object."""
    value = _json(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object, such as '{{\"x\": 2}}'")
    return value


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {exc}") from None


def priority(text: str) -> int:
    """Read a priority, 0 to 9."""
    if not (len(text) == 1 and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a priority from 0 (most urgent) to 9")
    return int(text)


def seconds(text: str) -> float:
    """Read a number of seconds of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    # The comparison also refuses NaN, because any comparison with NaN is false.
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def moment(text: str) -> datetime:
    """Read an ISO 8601 time; a time without an offset is in UTC."""
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time, such as 2031-01-02T03:04:05"
        ) from None
    return value if value.tzinfo is not None else value.replace(tzinfo=UTC)


def seconds_or_moment(text: str) -> float | datetime:
    """Read a number of seconds or an ISO 8601 time."""
    try:
        float(text)
    except ValueError:
        return moment(text)
    return seconds(text)
