"""The measurements of `greenq demo`, formatted as table rows and two charts; no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_BLOCKS = " ▁▂▃▄▅▆▇█"
_CHART_ROWS = 8
_LABEL = 7
# The number of columns between labels on the time axis.
_TICK_COLUMNS = 16


@dataclass(frozen=True, slots=True)
class DemoSample:
    """The state of the worker and its queue at one moment.

    Attributes:
        at_s: seconds since the burst started.
        succeeded, failed: the numbers of tasks that have ended.
        running: the number of tasks in flight.
        size: the number of slots in the pool.
        depth: the number of messages in the queue.
    """

    at_s: float
    succeeded: int
    failed: int
    running: int
    size: int
    depth: int

    @property
    def done(self) -> int:
        """Count the tasks that have ended."""
        return self.succeeded + self.failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The figures of one finished run.

    Attributes:
        total, succeeded: numbers of tasks, according to their stored results.
        reasons: why the other tasks failed, with counts.
        seconds: the time from the start of the burst until the last outcome was written.
        sent_s: how long sending took; `seconds` includes it.
        ideal_s: the shortest possible time with `most` tasks at once; None if response times are
            unknown.
        response_s: the sum of the response times of the successful fetches.
        least, most: the limits of the pool's size.
        peak, peak_at_s: the maximum number of tasks in flight, and when it was reached.
        commands: the number of commands that the server ran.
        reads: the number of times that the server read from a socket (round trips).
        connections: the worker's connections at the end of the burst.
        cpu_s: processor time of the worker's process.
        samples: the samples taken from the start of the burst.
    """

    total: int
    succeeded: int
    reasons: Mapping[str, int]
    seconds: float
    sent_s: float
    ideal_s: float | None
    response_s: float
    least: int
    most: int
    peak: int
    peak_at_s: float
    commands: int
    reads: int
    connections: int
    cpu_s: float
    samples: Sequence[DemoSample]


def rows(figures: Figures) -> list[tuple[str, str, str]]:
    """Return the table's rows: name, value and a comparison."""
    f = figures
    if f.ideal_s is None:
        beside = f"the {f.succeeded:,} response times add up to {f.response_s:,.1f}"
    else:
        beside = f"ideal {f.ideal_s:.2f}, with {f.most:,} at once"
    return [
        ("succeeded", f"{f.succeeded:,}", f"of {f.total:,}, by their stored results"),
        ("failed", f"{f.total - f.succeeded:,}", ""),
        ("seconds", f"{f.seconds:.2f}", beside),
        ("", "", f"of which sending took {f.sent_s:.2f}, at the same time"),
        ("fetches per second", f"{f.total / f.seconds:,.1f}", ""),
        ("peak concurrency", f"{f.peak:,}", f"{f.peak_at_s:.2f} s after the burst started"),
        ("Redis commands per task", f"{f.commands / f.total:.2f}", "sending and running together"),
        ("round trips per task", f"{f.reads / f.total:.2f}", "sending (1) and running together"),
        ("worker's connections", f"{f.connections}", "to Redis, at the end of the burst"),
        (
            "worker's processor time",
            f"{f.cpu_s:.2f} s",
            f"{f.cpu_s / f.total * 1e6:,.0f} µs a task",
        ),
    ]


def charts(figures: Figures, columns: int) -> list[str]:
    """Draw the pool size above the queue depth on one time axis, `columns` wide."""
    width = max(_TICK_COLUMNS, columns - _LABEL - 2)
    end_s = figures.samples[-1].at_s
    at = [sample.at_s for sample in figures.samples]
    sizes = resample(at, [sample.size for sample in figures.samples], end_s, width)
    depths = resample(at, [sample.depth for sample in figures.samples], end_s, width)
    return [
        f"pool size, {figures.least:,} to {figures.most:,}",
        *_chart(sizes),
        "",
        "queue depth",
        *_chart(depths),
        *_axis(end_s, width),
    ]


def sparkline(values: Sequence[float]) -> str:
    """Draw values as one line of blocks; the largest is a full block."""
    most = max(values, default=0.0)
    if most <= 0:
        return _BLOCKS[1] * len(values)
    return "".join(_BLOCKS[max(1, round(value / most * 8))] for value in values)


def resample(at_s: Sequence[float], values: Sequence[int], end_s: float, width: int) -> list[int]:
    """Return the largest value in each of `width` equal spans of time.

    A span without a sample repeats the previous span's value, or gets the first sample's value if
    there is no previous one.
    """
    found: list[int | None] = [None] * width
    for moment, value in zip(at_s, values, strict=True):
        column = min(int(moment / end_s * width), width - 1) if end_s > 0 else 0
        found[column] = max(value, found[column] or 0)
    filled, last = [], values[0]
    for value_or_none in found:
        last = last if value_or_none is None else value_or_none
        filled.append(last)
    return filled


def _chart(values: Sequence[int]) -> list[str]:
    most = max(*values, 1)
    # Heights are in eighths of a row, rounded up so that small values are visible.
    heights = [-(-value * _CHART_ROWS * 8 // most) for value in values]
    lines = []
    for row in reversed(range(_CHART_ROWS)):
        label = f"{most:,}" if row == _CHART_ROWS - 1 else "0" if row == 0 else ""
        blocks = "".join(_BLOCKS[min(max(height - row * 8, 0), 8)] for height in heights)
        lines.append(f"{label:>{_LABEL}} ┤{blocks}".rstrip())
    return lines


def _axis(end_s: float, width: int) -> list[str]:
    line = "".join("┬" if column % _TICK_COLUMNS == 0 else "─" for column in range(width))
    labels = ""
    for column in range(0, width - 4, _TICK_COLUMNS):
        labels = f"{labels:<{column}}{end_s * column / width:.1f} s"
    return [f"{'':>{_LABEL}} └{line}", f"{'':>{_LABEL}}  {labels}"]
