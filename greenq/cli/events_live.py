"""The live table of ``greenq events``: the workers, and the tasks with recent events."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from greenq import states
from greenq.cli import show

if TYPE_CHECKING:
    from rich.console import RenderableType

    from greenq.events.cluster_state import ObservedTask, ObservedWorker, State

_REDRAW_S = 0.25

# The number of screen lines not used for workers and tasks: headings, rules, blank lines and the
# summary.
_OTHER_LINES = 10

# Columns whose contents would be useless if truncated.
_WIDTHS = {"TIME": 8, "STATE": 8, "TOOK": 8}

_COLORS = {
    states.SUCCESS: "green",
    states.STARTED: "cyan",
    states.FAILURE: "red",
    states.REVOKED: "magenta",
    states.REJECTED: "magenta",
    states.RETRY: "yellow",
}


class EventsDisplay:
    """Shows events on a terminal."""

    def __init__(self, state: State, address: str, console: Console | None = None) -> None:
        """Show `state`, which this display keeps up to date, for the server at `address`."""
        self._state = state
        self._address = address
        self._console = console or Console(highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="crop")
        self._next_s = 0.0

    def __enter__(self) -> Self:
        """Start drawing in place."""
        self._live.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        """Leave the last table on the screen and restore the terminal."""
        self._live.update(self.picture(), refresh=True)
        self._live.stop()

    def show(self, event: dict[str, Any]) -> None:
        """Add an event to the state."""
        self._state.event(event)

    def flush(self) -> None:
        """Draw if a redraw is due."""
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + _REDRAW_S
            self._live.update(self.picture(), refresh=True)

    def picture(self) -> RenderableType:
        """Return the tables, sized to the terminal."""
        room = max(2, self._console.height - _OTHER_LINES)
        workers = sorted(self._state.workers.values(), key=lambda worker: worker.hostname)
        # If there is not enough room for everything, the workers get half of it.
        shown = workers[: max(1, min(len(workers), room // 2))]
        tasks = [task for _, task in self._state.tasks_by_timestamp(room - len(shown))]
        return Group(_workers(shown), _tasks(tasks), self._summary(len(workers)))

    def _summary(self, workers: int) -> Text:
        state = self._state
        alive = sum(1 for _ in state.alive_workers())
        text = (
            f"{self._address}  {alive} of {workers} workers online, {state.event_count:,} events, "
            f"{len(state.tasks):,} tasks"
        )
        if not state.tasks:
            text += "; workers send task events if started with -E, or after greenq control "
            text += "enable_events"
        return Text(text, style="dim")


def _workers(workers: list[ObservedWorker]) -> Table:
    headings = ("WORKER", "STATE", "ACTIVE", "DONE", "LOAD", "SOFTWARE")
    table = _table(headings, right="ACTIVE DONE LOAD")
    now = time.time()
    for worker in workers:
        load = f"{worker.loadavg[0]:.2f}" if worker.loadavg else "-"
        software = " ".join(filter(None, (worker.sw_ident, worker.sw_ver)))
        table.add_row(
            _cell(worker.hostname),
            _worker_state(worker, now),
            _cell(show.number(worker.active)),
            _cell(show.number(worker.processed)),
            _cell(load),
            _cell(software or "-"),
        )
    return table


def _worker_state(worker: ObservedWorker, now: float) -> Text:
    if not worker.heartbeats:
        return Text("offline", style="dim")
    if not worker.alive:
        return Text(f"silent {show.age(now - worker.heartbeats[-1])}", style="red")
    if worker.blocked:
        return Text(f"blocked {show.age(worker.blocked.get('for_s'))}", style="red")
    return Text("online", style="green")


def _tasks(tasks: list[ObservedTask]) -> Table:
    headings = ("TIME", "STATE", "TASK", "ID", "WORKER", "TOOK", "RESULT")
    table = _table(headings, right="TOOK", narrow="TASK ID WORKER RESULT")
    for task in tasks:
        took = "-" if task.runtime is None else f"{task.runtime:,.3f} s"
        # Show the arguments until the task has ended, then the result.
        outcome = task.result if task.state == states.SUCCESS else task.exception
        table.add_row(
            _cell(_clock_time(task.timestamp)),
            Text(show.printable(task.state), style=_COLORS.get(task.state, "")),
            _cell(task.name or "-"),
            _cell(task.uuid),
            _cell(task.worker.hostname if task.worker else "-"),
            _cell(took),
            _cell(outcome or f"{task.args or ''} {task.kwargs or ''}"),
        )
    return table


def _table(headings: tuple[str, ...], *, right: str = "", narrow: str = "") -> Table:
    """Return an empty table.

    `right` names the columns that are right-aligned, `narrow` those that share the remaining width.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, expand=True)
    for heading in headings:
        table.add_column(
            heading,
            justify="right" if heading in right.split() else "left",
            no_wrap=True,
            overflow="ellipsis",
            ratio=1 if heading in narrow.split() else None,
            min_width=_WIDTHS.get(heading),
        )
    return table


def _cell(text: str) -> Text:
    return Text(show.printable(text))


def _clock_time(timestamp: float | None) -> str:
    try:
        return f"{datetime.fromtimestamp(timestamp or 0.0).astimezone():%H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        # The timestamp is outside the range of `datetime`.
        return "-"
