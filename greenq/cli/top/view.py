"""The view of ``greenq top``: turns a picture into lines for a terminal of any size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from greenq.cli import show
from greenq.cli.top.model import KINDS, sparkline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from greenq.cli.top.model import Picture, TaskLine, WorkerLine
    from greenq.remote.queue_counts import QueueCounts

    Cell = str | Text

_HEADING: Final = "bold white on grey23"
_CHOSEN: Final = "on grey27"
_GOOD: Final = "green"
_CARE: Final = "yellow"
_BAD: Final = "bold red"
_DIM: Final = "bright_black"
_STATES: Final = {"ok": _GOOD, "draining": _CARE}

# At this width and above, charts fit side by side, and so do the two tables of greenlets.
_WIDE: Final = 120
_TALL: Final = 40

# At this height and above, there is room for all charts.
_HIGH: Final = 30

_CHART_ROWS: Final = 3
_LABEL: Final = 9
_VALUE: Final = 11
_GAP: Final = 2

# The minimum width of the column of names; if there is less room, another column is dropped.
_NARROWEST: Final = 14

# The maximum width of every other column.
_WIDEST: Final = 40

# At this value and above, rates are shown in thousands.
_MANY: Final = 10_000

# At this age and above, seconds are shown without decimals.
_LONG_S: Final = 10

# Directories with code that is not the user's.
_LIBRARIES: Final = ("/site-packages/", "/lib/python")

_SHORT: Final = dict(
    zip(KINDS, ("RECV", "START", "OK", "FAIL", "RETRY", "REVOKE", "REJECT"), strict=True)
)

_NO_TASKS: Final = (
    "no task events received:",
    "start workers with -E, or this command with",
    "--events, which requests events from them",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """How to show the picture.

    Attributes:
        address: the server's address.
        time: the time of day.
        chosen: the worker whose greenlets are shown.
        greenlets: show them in place of queues and tasks.
        paused: whether the display is frozen.
        order: how tasks are sorted.
        help: show help in place of everything below the workers.
        warning: the last warning.
    """

    address: str
    time: str
    chosen: str | None = None
    greenlets: bool = False
    paused: bool = False
    order: str = "rate"
    help: bool = False
    warning: str = ""


def draw(picture: Picture, view: View, width: int, height: int | None = None) -> list[Text]:
    """Return `height` lines, of which the last shows the keys; without a `height`, all lines."""
    lines = [_title(picture, view, width), *_charts(picture, width, height), Text()]
    if height is None:
        lines += _workers(picture.workers, view.chosen, width, None)
        lines += [Text(), *_queues_and_tasks(picture, view.order, width, None)]
        lines += [Text(), *_greenlets(picture, view.chosen, width, None)]
    else:
        room = height - len(lines) - 1
        lines += _workers(picture.workers, view.chosen, width, max(3, room // 2))
        lines.append(Text())
        lines += _lower(picture, view, width, height - len(lines) - 1)
        lines += [Text()] * (height - 1 - len(lines))
        lines = [*lines[: height - 1], _keys(picture, view, width)]
    return [_fitted(line, width) for line in lines]


def _lower(picture: Picture, view: View, width: int, room: int) -> list[Text]:
    if view.help:
        return _help(width, room)
    if view.greenlets:
        return _greenlets(picture, view.chosen, width, room)
    if room < _TALL // 2:
        return _queues_and_tasks(picture, view.order, width, room)
    upper = _queues_and_tasks(picture, view.order, width, room // 2)
    return [*upper, Text(), *_greenlets(picture, view.chosen, width, room - len(upper) - 1)]


# --- above and below ------------------------------------------------------------------------------


def _title(picture: Picture, view: View, width: int) -> Text:
    there = [each for each in picture.workers if each.state != "silent"]
    count = f"{len(there)} worker{'' if len(there) == 1 else 's'}"
    left = Text().append(" greenq top ", "bold black on green")
    left.append(f"  {show.printable(view.address)}  ")
    left.append(count, "bold" if there else _BAD)
    for state, style in (("blocked", _BAD), ("silent", _BAD), ("draining", _CARE)):
        number = sum(state in each.state for each in picture.workers)
        if number:
            left.append(f"  {number} {state}", style)
    if str(picture.only):
        left.append(f"  only {show.printable(str(picture.only))}", _CARE)
    right = Text()
    if view.paused:
        right.append(" PAUSED ", "bold black on yellow")
    right.append(f" {view.time} ", _DIM)
    return _beside(left, right, width)


def _keys(picture: Picture, view: View, width: int) -> Text:
    """Return the line with the keys, or with the current problem."""
    wrong = picture.trouble or view.warning
    if wrong:
        line = Text(f" {show.printable(wrong)}", _BAD)
        return _beside(line, Text("  q quit ", _DIM), width)
    lower = "queues" if view.greenlets else "greenlets"
    pause = "resume" if view.paused else "pause"
    line = Text(" ")
    keys = [("q", "quit"), ("↑↓", "worker"), ("g", lower), ("p", pause), ("?", "help")]
    for key, does in keys:
        line.append(key, "bold").append(f" {does}   ", _DIM)
    return _fitted(line, width)


_KEYS: Final = (
    ("q", "quit"),
    ("↑ ↓ k j", "choose the worker whose greenlets are shown"),
    ("g", "switch between greenlets and the tables of queues and tasks"),
    ("t", "sort tasks by rate"),
    ("f", "sort tasks by failures"),
    ("s", "sort tasks by mean runtime, the slowest first"),
    ("p", "freeze the screen until p is pressed again"),
    ("?", "show or hide this help"),
    ("", ""),
    ("NET/S", "growth of a queue per second"),
    ("DRAINED", "when the queue will be empty at this rate"),
    (
        "LAG P99",
        "the hub's delay that 99 of 100 turns did not exceed, or how long it has been blocked",
    ),
)


def _help(width: int, room: int) -> list[Text]:
    """Return the help for keys and columns."""
    lines = [_bar(Text(" HELP"), width)]
    for key, does in _KEYS:
        lines.append(_fitted(Text(" ").append(f"{key:<9}", "bold").append(does), width))
    return lines[:room]


def _charts(picture: Picture, width: int, height: int | None) -> list[Text]:
    points, last = picture.points, picture.last
    charts = [
        _Chart("pool", [each.size for each in points], "cyan", f"{last.running:,}/{last.size:,}"),
        _Chart("queues", [each.depth for each in points], "yellow", f"{last.depth:,}"),
        _Chart("tasks/s", [each.per_s for each in points], "green", rate(last.per_s)),
        _Chart("hub lag", [each.lag_s for each in points], "magenta", lag(last.lag_s)),
    ]
    if height is None:
        # A single picture has no history.
        texts = (f"{chart.name} {chart.value}" for chart in charts)
        return [_fitted(Text(f" {'   '.join(texts)}"), width)]
    if height < _HIGH:
        # The workers' rows already show the lag.
        del charts[3:]
    rows = _CHART_ROWS if height >= _TALL else 1
    if width < _WIDE:
        return [line for chart in charts for line in _chart(chart, width, rows)]
    half = (width - _GAP) // 2
    pool, queues, *others = (_chart(chart, half, rows) for chart in charts)
    upper = _side_by_side(pool, others[0], half)
    lower = _side_by_side(queues, others[1] if len(others) > 1 else [], half)
    return [*upper, *([Text()] if rows > 1 else []), *lower]


@dataclass(frozen=True, slots=True)
class _Chart:
    """A value over time.

    Attributes:
        name: the name of the value.
        values: the values, with the latest last.
        style: its colour.
        value: the latest, as text.
    """

    name: str
    values: Sequence[float]
    style: str
    value: str


def _chart(chart: _Chart, width: int, rows: int) -> list[Text]:
    room = max(1, width - _LABEL - _VALUE)
    most = max(chart.values[-room:], default=0)
    lines = []
    for number, blocks in enumerate(sparkline(chart.values, room, rows), start=1):
        is_last = number == rows
        line = Text().append(f" {chart.name if is_last else '':<{_LABEL - 1}}", _DIM)
        line.append(blocks, chart.style)
        if is_last:
            line.append(f" {chart.value}", "bold")
        elif number == 1:
            label = lag(most) if chart.name == "hub lag" else rate(most)
            line.append(f" max {label}", _DIM)
        lines.append(_fitted(line, width))
    return lines


# --- workers --------------------------------------------------------------------------------------


def _workers(
    workers: Sequence[WorkerLine], chosen: str | None, width: int, room: int | None
) -> list[Text]:
    """Return the workers' table, with details of a state next to it or below it."""
    at = next((at for at, each in enumerate(workers) if each.node == chosen), 0)
    noted = [each for each in workers if each.details]
    beside = width >= _WIDE and bool(noted)
    notes = [] if beside else [_note(each, width) for each in noted]
    if room is not None:
        del notes[max(0, room // 3) :]
    lines, hidden = _window(len(workers), at, None if room is None else room - len(notes) - 1)
    headings = ["WORKER", "STATE", "POOL", "WAIT", "DONE", "DONE/S", "LAG P99", "LAST", "UP"]
    shown = [workers[line] for line in lines]
    rows = [_worker(each, chosen=each.node == chosen) for each in shown]
    if beside:
        headings.append("")
        for row, each in zip(rows, shown, strict=True):
            row.append(Text(show.printable(each.details), _BAD))
    table = _table(headings, rows, width, left={0, 1, 9}, flexible=9 if beside else 0)
    for line, each in zip(table[1:], shown, strict=True):
        if each.node == chosen:
            line.stylize_before(_CHOSEN)
    if hidden:
        table.append(Text(f"   and {hidden} more", _DIM))
    return [*table, *notes]


def _worker(worker: WorkerLine, *, chosen: bool) -> list[Cell]:
    slots = "" if worker.size is None else f"/{worker.size}"
    return [
        Text(f"{'▸' if chosen else ' '}{show.printable(worker.node)}", "bold" if chosen else ""),
        Text(worker.state, _STATES.get(worker.state, _BAD)),
        "-" if worker.running is None else f"{worker.running}{slots}",
        show.number(worker.waiting),
        show.number(worker.processed),
        "-" if worker.per_s is None else rate(worker.per_s),
        _lag(worker.lag_p99_s),
        _lag(worker.lag_s),
        show.age(worker.uptime_s),
    ]


def _note(worker: WorkerLine, width: int) -> Text:
    return _fitted(
        Text(f"  {show.printable(worker.node)}: {show.printable(worker.details)}", _BAD), width
    )


# --- queues and tasks -----------------------------------------------------------------------------


def _queues_and_tasks(picture: Picture, order: str, width: int, room: int | None) -> list[Text]:
    left = min(width // 2, 64)
    queues = _queues(picture.queues, left, room)
    tasks = _tasks(picture, order, width - left - _GAP, room)
    return _side_by_side(queues, tasks, left)


def _queues(queues: Sequence[QueueCounts], width: int, room: int | None) -> list[Text]:
    shown, hidden = _window(len(queues), 0, None if room is None else room - 1)
    rows: list[list[Cell]] = [
        [
            f" {show.printable(queue.name)}",
            _queue_state(queue),
            Text(f"{queue.waiting:,}", "bold" if queue.waiting else ""),
            "-" if queue.change_per_s is None else _change(queue.change_per_s),
            "" if queue.drained_in_s is None else show.age(queue.drained_in_s),
            Text(f"{queue.dead:,}" if queue.dead else "", _BAD),
            f"{queue.parked:,}" if queue.parked else "",
        ]
        for queue in (queues[line] for line in shown)
    ]
    headings = ["QUEUE", "", "WAITING", "NET/S", "DRAINED", "DEAD", "PARKED"]
    lines = _table(headings, rows, width, left={0, 1}, optional={1, 4, 5, 6})
    return [*lines, *_more(hidden)]


def _queue_state(queue: QueueCounts) -> Text:
    if queue.paused is not None:
        return Text("paused", _CARE)
    # An empty queue needs no worker.
    return Text("no worker" if queue.untaken and queue.waiting else "", _BAD)


def _tasks(picture: Picture, order: str, width: int, room: int | None) -> list[Text]:
    total, tasks = picture.all_tasks, picture.tasks
    if total is None:
        heading = _table(["TASK"], [], width)
        return [*heading, *(_fitted(Text(f" {line}", _DIM), width) for line in _NO_TASKS)]
    tasks = sorted(tasks, key=lambda task: -task.rank(order))
    shown, hidden = _window(len(tasks), 0, None if room is None else room - 2)
    # The columns are the kinds that have occurred, the most important first.
    bad = [kind for kind in ("retried", "revoked", "rejected") if total.counts[kind]]
    started = ["started"] if total.counts["started"] else []
    headings = ["TASK", *_rates("received", "succeeded", "failed"), "FAILED", *_rates(*bad)]
    headings += ["MEAN", *_rates(*started)]
    rows = [_task(each, bad, started) for each in (total, *(tasks[line] for line in shown))]
    lines = _table(headings, rows, width)
    lines[1].stylize_before("bold")
    return [*lines, *_more(hidden)]


def _rates(*kinds: str) -> list[str]:
    return [f"{_SHORT[kind]}/S" for kind in kinds]


def _task(task: TaskLine, bad: Sequence[str], started: Sequence[str]) -> list[Cell]:
    def rates(*kinds: str, style: str = "") -> list[Cell]:
        values = [task.per_s[kind] for kind in kinds]
        return [Text(rate(value), style if value else _DIM) for value in values]

    failed = task.counts["failed"]
    return [
        f" {show.printable(task.name)}",
        *rates("received", "succeeded"),
        *rates("failed", style=_BAD),
        Text(f"{failed:,}", _BAD if failed else _DIM),
        *rates(*bad, style=_BAD),
        _lag(task.runtime_s),
        *rates(*started),
    ]


# --- greenlets ------------------------------------------------------------------------------------


def _greenlets(picture: Picture, chosen: str | None, width: int, room: int | None) -> list[Text]:
    found = picture.greenlets
    reply = found.reply if found is not None and found.node == chosen else None
    running = show.part(reply, "running")
    head = Text(f" GREENLETS of {show.printable(chosen or '-')}")
    if running is not None:
        head.append(f"   {show.number(running)} running")
    lines = [_bar(head, width)]
    if not running:
        return [*lines, _fitted(Text(f" {_why_none(picture, chosen, reply)}", _DIM), width)]
    left = width // 3
    if width >= _WIDE:
        below = None if room is None else room - 1
        groups, oldest = _groups(reply, left, below), _oldest(reply, width - left - _GAP, below)
        return [*lines, *_side_by_side(groups, oldest, left)]
    groups = _groups(reply, width, None if room is None else max(3, room // 2))
    below = None if room is None else room - 2 - len(groups)
    return [*lines, *groups, Text(), *_oldest(reply, width, below)]


def _why_none(picture: Picture, chosen: str | None, reply: Any) -> str:
    worker = next((each for each in picture.workers if each.node == chosen), None)
    if worker is None:
        return "no worker"
    if show.part(reply, "running") == 0:
        return "no task is running"
    if not worker.ours:
        return "only greenq's workers report their greenlets"
    if worker.details:
        return worker.details
    return "no reply yet" if reply is None else f"error: {show.text(show.part(reply, 'error'))}"


def _groups(reply: Any, width: int, room: int | None) -> list[Text]:
    """Return what the greenlets are waiting for, with counts."""
    groups = _list(reply, "groups")
    shown, hidden = _window(len(groups), 0, None if room is None else room - 1)
    rows: list[list[Cell]] = [
        [
            f" {show.text(show.part(groups[line], 'waits_on'))}",
            show.number(show.part(groups[line], "count")),
        ]
        for line in shown
    ]
    return [*_table(["WAIT ON", "COUNT"], rows, width, style=_DIM), *_more(hidden)]


def _oldest(reply: Any, width: int, room: int | None) -> list[Text]:
    """Return the oldest greenlets."""
    listed = _list(reply, "greenlets")
    shown = listed if room is None else listed[: max(0, room - 1)]
    rows: list[list[Cell]] = [
        [
            f" {show.text(show.part(each, 'name'))}",
            _age(show.part(each, "age_s")),
            _lag(show.part(each, "hub_s")),
            show.text(show.part(each, "waits_on")),
            _place(_list(each, "stack")),
            show.text(show.part(each, "id")),
        ]
        for each in shown
    ]
    headings = ["OLDEST", "AGE", "IN HUB", "WAITS ON", "AT", "ID"]
    return _table(headings, rows, width, left={0, 3, 4, 5}, style=_DIM)


def _place(stack: Sequence[Any]) -> str:
    """Return the stack line of the user's code, without its directory."""
    lines = [str(line) for line in stack]
    own = [line for line in lines if not any(folder in line for folder in _LIBRARIES)]
    found = (own or lines)[-1:]
    return show.printable(PurePath(found[0]).name) if found else "-"


def _list(value: Any, name: str) -> list[Any]:
    found = show.part(value, name)
    return found if isinstance(found, list) else []


# --- numbers --------------------------------------------------------------------------------------


def rate(per_s: float) -> str:
    """Format a rate in at most six characters, up to some millions."""
    if per_s >= _MANY:
        return f"{per_s / 1000:,.1f}k"
    return f"{per_s:.1f}" if 0 < per_s < 10 else f"{per_s:.0f}"


def lag(seconds: float) -> str:
    """Format a short time: ``0.4ms``, ``12ms``, ``1.2s``."""
    if seconds >= 1:
        return f"{seconds:,.1f}s"
    return f"{seconds * 1000:.1f}ms" if 0.00005 <= seconds < 0.01 else f"{seconds * 1000:.0f}ms"


def _lag(seconds: object) -> str:
    return lag(seconds) if isinstance(seconds, (int, float)) else "-"


def _age(seconds: object) -> str:
    if isinstance(seconds, (int, float)) and 0 <= seconds < _LONG_S:
        return f"{seconds:.1f}s"
    return show.age(seconds)


def _change(per_s: float) -> str:
    if abs(per_s) < 0.05:
        return "0"
    return f"{'+' if per_s > 0 else '-'}{rate(abs(per_s))}"


# --- lines ----------------------------------------------------------------------------------------


def _table(
    headings: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    width: int,
    *,
    left: frozenset[int] | set[int] = frozenset({0}),
    optional: frozenset[int] | set[int] = frozenset(),
    flexible: int = 0,
    style: str = _HEADING,
) -> list[Text]:
    """Align rows below their headings, in lines of exactly this width.

    Args:
        headings: the column headings.
        rows: their cells.
        width: the width of the lines.
        left: the columns aligned left; all other columns are aligned right.
        optional: columns omitted if they are empty.
        flexible: the column that takes the remaining room.
        style: the style of the headings.
    """
    kept = [
        at
        for at in range(len(headings))
        if at not in optional or any(_text(row[at]).plain for row in rows)
    ]
    cells = {at: [_text(row[at]) for row in rows] for at in kept}
    names = {at: f" {headings[at]}" if at == 0 else headings[at] for at in kept}
    widths = {
        at: min(_WIDEST, max(len(names[at]), *(cell.cell_len for cell in cells[at]), 0))
        for at in kept
        if at != flexible
    }
    while (spare := width - sum(widths.values()) - _GAP * len(widths)) < _NARROWEST and widths:
        # The least important columns come last.
        del widths[max(widths)]
    widths[flexible] = max(spare, _NARROWEST)
    shown = sorted(widths)
    heading = [_column(Text(names[at]), widths[at], right=at not in left) for at in shown]
    lines = [_bar(Text(" " * _GAP).join(heading), width, style)]
    for line in range(len(rows)):
        row = [_column(cells[at][line], widths[at], right=at not in left) for at in shown]
        lines.append(_fitted(Text(" " * _GAP).join(row), width))
    return lines


def _column(cell: Text, width: int, *, right: bool) -> Text:
    found = cell.copy()
    found.truncate(width, overflow="ellipsis")
    found.align("right" if right else "left", width)
    return found


def _window(count: int, at: int, room: int | None) -> tuple[range, int]:
    """Return the range of the lines shown, which includes `at`, and the number of hidden ones."""
    if room is None or count <= room:
        return range(count), 0
    # One line is needed to show the number of hidden lines.
    size = max(1, room - 1)
    first = min(max(0, at - size + 1), count - size)
    return range(first, first + size), count - size


def _more(hidden: int) -> list[Text]:
    return [Text(f" and {hidden:,} more", _DIM)] if hidden else []


def _side_by_side(left: Sequence[Text], right: Sequence[Text], width: int) -> list[Text]:
    """Join two blocks of lines side by side; the left one is `width` wide."""
    lines = []
    for at in range(max(len(left), len(right))):
        line = _fitted(left[at] if at < len(left) else Text(), width)
        if at < len(right):
            line.append(" " * _GAP).append_text(right[at])
        lines.append(line)
    return lines


def _beside(left: Text, right: Text, width: int) -> Text:
    """Put two texts at opposite ends of a line."""
    line = _fitted(left, max(0, width - right.cell_len))
    return line.append_text(right)


def _bar(text: Text, width: int, style: str = _HEADING) -> Text:
    line = _fitted(text, width)
    line.stylize(style)
    return line


def _fitted(text: Text, width: int) -> Text:
    """Cut or pad a text to exactly this width."""
    line = text.copy()
    line.truncate(width, overflow="ellipsis", pad=True)
    return line


def _text(cell: Cell) -> Text:
    return cell if isinstance(cell, Text) else Text(cell)
