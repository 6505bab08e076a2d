"""``greenq autoscale``: the decisions of the running workers' autoscalers, with their reasons."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from greenq.cli import argument_types, show
from greenq.cli.common import add_asking_options, ask, missing, opened
from greenq.cli.top.model import sparkline

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping, Sequence

_PLOT_COLUMNS: Final = 72
_PLOT_ROWS: Final = 6


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    add_asking_options(parser)
    parser.add_argument(
        "--last",
        type=argument_types.count,
        default=15,
        metavar="N",
        help="show the last N decisions of each worker (default 15); the plot shows all",
    )


def run(args: argparse.Namespace) -> int:
    """Show the decisions, and return 69 if no worker replies."""
    with opened(args) as app:
        stats = ask(app, args, "stats")
        logs = ask(app, args, "autoscale_log")
        code = missing(app, args, stats)
    if args.json:
        show.write_json({node: _as_json(stats[node], logs.get(node)) for node in stats})
        return code
    for number, (node, reply) in enumerate(stats.items()):
        if number:
            show.write()
        for line in node_lines(node, reply, logs.get(node), last=args.last, now_s=time.time()):
            show.write(line)
    return code


def _as_json(stats: object, log: object) -> dict[str, object]:
    return {
        "pool": show.part(stats, "autoscaler"),
        "decisions": log if isinstance(log, list) else [],
        "processes": show.part(stats, "Processes"),
    }


def node_lines(node: str, stats: object, log: object, *, last: int, now_s: float) -> Iterator[str]:
    """Format one worker's reply: the pool's limits, a plot of its sizes, and a table."""
    pool, processes = show.part(stats, "autoscaler"), show.part(stats, "Processes")
    yield show.bold(show.printable(node))
    if pool is None and processes is None:
        yield "  no autoscaler: start the worker with one, as in --autoscale 500,10"
        return
    if pool is not None:
        size, running, least, most = (
            show.number(show.part(pool, name)) for name in ("current", "qty", "min", "max")
        )
        yield f"  {size} slots of {least} to {most}, {running} in use"
        records = [each for each in log if isinstance(each, dict)] if isinstance(log, list) else []
        yield from _indented(plot(_sizes(records, show.part(pool, "current"), now_s)))
        headings = ("AT", "BACKLOG", "RUNNING", "SIZE", "REASON")
        yield from _indented(show.table(headings, [_row(each) for each in records[-last:]]))
    if processes is not None:
        yield from _processes(processes, last)


def _processes(processes: Mapping[str, Any], last: int) -> Iterator[str]:
    group, process, least, most = (
        show.text(show.part(processes, name)) for name in ("group", "process", "min", "max")
    )
    leads = "leads" if show.part(processes, "leads") else "does not lead"
    yield f"  process {process} {leads} group {group} of {least} to {most} processes"
    changes = show.part(processes, "changes") or []
    rows = [
        (
            _at(show.part(each, "at")),
            show.number(show.part(each, "workers")),
            show.text(show.part(each, "change")),
            show.text(show.part(each, "reason")),
        )
        for each in changes[-last:]
    ]
    yield from _indented(show.table(("AT", "PROCESSES", "CHANGE", "REASON"), rows))


def _indented(lines: Iterator[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)


def _row(record: Mapping[str, Any]) -> Sequence[str]:
    counts = (show.number(record.get(name)) for name in ("backlog", "running", "size"))
    return (_at(record.get("at")), *counts, show.text(record.get("reason")))


def _at(at: object) -> str:
    if not isinstance(at, (int, float)) or not math.isfinite(at):
        return "-"
    try:
        return datetime.fromtimestamp(at, UTC).astimezone().strftime("%H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return "-"


def _sizes(
    records: Sequence[Mapping[str, Any]], current: object, now_s: float
) -> list[tuple[float, float]]:
    """Return the pool's sizes as (when, size), from the first decision up to now."""
    points = [
        (float(each["at"]), float(each["size"]))
        for each in records
        if all(isinstance(each.get(name), (int, float)) for name in ("at", "size"))
    ]
    if points and isinstance(current, (int, float)):
        points.append((max(now_s, points[-1][0]), float(current)))
    return points


def plot(
    points: Sequence[tuple[float, float]], *, columns: int = _PLOT_COLUMNS, rows: int = _PLOT_ROWS
) -> Iterator[str]:
    """Draw a step curve with an axis; draw nothing for fewer than two points.

    Each column shows the largest value in its interval.
    """
    if len(points) < 2 or points[-1][0] <= points[0][0]:
        return
    begin_s, end_s = points[0][0], points[-1][0]
    tops = [0.0] * columns
    for (at_s, value), (until_s, _next) in zip(points, [*points[1:], points[-1]], strict=True):
        first, last = (
            min(columns - 1, int((moment - begin_s) / (end_s - begin_s) * columns))
            for moment in (at_s, until_s)
        )
        for column in range(first, last + 1):
            tops[column] = max(tops[column], value)
    names = {0: f"{max(tops):,.0f}", rows - 1: "0"}
    label = len(names[0])
    for row, line in enumerate(sparkline(tops, columns, rows)):
        yield f"{names.get(row, ''):>{label}} ┤{line}".rstrip()
    yield f"{'':>{label}}  {_at(begin_s)}{_at(end_s):>{columns - 8}}"
