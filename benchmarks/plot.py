"""A plot of a run: ``python -m benchmarks.plot results.json docs/tasks-a-second.svg``.

Shows tasks per second by contender on a logarithmic axis. Needs the extra ``bench``.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.figure import Figure

from benchmarks.figures import Results
from benchmarks.plan import FULL, PEERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from benchmarks.figures import Spread

_OURS, _THEIRS, _INK, _GRID = "#2f7d5b", "#a3b1ba", "#24292f", "#e5e9ec"
_WIDTH_IN, _ROW_IN, _FRAME_IN = 7.5, 0.42, 1.3
# Room to the right of the longest bar for its number, as a factor of the axis.
_ROOM = 2.4


def draw(results: Results, workload: str, file: Path) -> None:
    """Draw one workload into an SVG file."""
    bars = [(each, results.spread(workload, each, "rate")) for each in results.contenders(workload)]
    bars.sort(key=lambda bar: bar[1].median)
    height_in = _ROW_IN * len(bars) + _FRAME_IN
    figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    for place, (contender, spread) in enumerate(bars):
        _bar(axes, place, contender, spread)
    axes.set_yticks(range(len(bars)), [PEERS[contender].title for contender, _ in bars])
    axes.set_xscale("log")
    least, most = bars[0][1].least, bars[-1][1].most
    axes.set_xlim(10 ** math.floor(math.log10(least)), most * _ROOM)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("tasks a second, logarithmic; whiskers: least and most of the rounds")
    title = next(each.title for each in FULL if each.key == workload)
    axes.set_title(title, loc="left", fontweight="bold")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    # Without a date and random names, the same figures always make the same file.
    with matplotlib.rc_context({"svg.hashsalt": "greenq"}):
        figure.savefig(file, format="svg", metadata={"Date": None})


def _bar(axes: Axes, place: int, contender: str, spread: Spread) -> None:
    whiskers = [[spread.median - spread.least], [spread.most - spread.median]]
    color = _OURS if contender == "greenq" else _THEIRS
    axes.barh(place, spread.median, 0.6, color=color, xerr=whiskers, ecolor=_INK, capsize=3)
    axes.text(spread.most * 1.1, place, f"{spread.median:,.0f}", va="center", color=_INK)


def main() -> None:
    """Draw the plot."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=__doc__)
    parser.add_argument("results", type=Path, help="file written by python -m benchmarks --json")
    parser.add_argument("file", type=Path, help="the SVG file to write")
    parser.add_argument("--workload", default="noop", help="workload to draw (default noop)")
    options = parser.parse_args()
    draw(Results.read(options.results), options.workload, options.file)


if __name__ == "__main__":
    main()
