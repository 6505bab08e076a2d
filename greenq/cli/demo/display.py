"""The output of `greenq demo`: a live display, or plain lines if there is no terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from greenq.cli.demo.figures import charts, rows, sparkline

if TYPE_CHECKING:
    from rich.console import RenderableType

    from greenq.cli.demo.figures import DemoSample, Figures

# A redraw takes a few milliseconds of CPU time on the machine that also runs the worker.
_REDRAW_S = 0.2
_LINE_S = 0.5
_MOST_WIDTH = 100
_SPARKS = 60


class DemoDisplay:
    """Shows samples as they arrive, and then the results."""

    def __init__(self, total: int) -> None:
        """Show the progress towards `total` fetches on standard output."""
        self._total = total
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, auto_refresh=False)
        self._next_s = 0.0
        self._shown: DemoSample | None = None
        self._rates: list[float] = []

    def __enter__(self) -> Self:
        """Start the display; on a terminal it is redrawn in place until the demo ends."""
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        """Leave the last state on the screen and restore the terminal."""
        self._live.stop()

    def say(self, text: str) -> None:
        """Print a line, above the display if there is one."""
        self._console.print(text, markup=False, soft_wrap=True)

    def show(self, sample: DemoSample, *, last: bool = False) -> None:
        """Show a sample if enough time has passed since the previous one; always show the last."""
        if sample.at_s < self._next_s and not last:
            return
        terminal = self._console.is_terminal
        self._next_s = sample.at_s + (_REDRAW_S if terminal else _LINE_S)
        rate = self._rate(sample)
        if terminal:
            self._live.update(self._picture(sample, rate), refresh=True)
        else:
            self.say(self._line(sample, rate))

    def report(self, figures: Figures) -> None:
        """Print the table and the charts."""
        table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
        table.add_column(style="bold")
        table.add_column(justify="right", style="green")
        table.add_column(style="dim")
        for row in rows(figures):
            table.add_row(*row)
        self._console.print(table)
        for reason, count in figures.reasons.items():
            self.say(f"  {count:>6,}  {reason}")
        if figures.reasons:
            self.say("")
        for line in charts(figures, min(self._console.width, _MOST_WIDTH)):
            self._console.print(Text(line), soft_wrap=True)

    def _rate(self, sample: DemoSample) -> float:
        before, self._shown = self._shown, sample
        if before is None or sample.at_s <= before.at_s:
            return self._rates[-1] if self._rates else 0.0
        self._rates.append((sample.done - before.done) / (sample.at_s - before.at_s))
        del self._rates[:-_SPARKS]
        return self._rates[-1]

    def _line(self, sample: DemoSample, rate: float) -> str:
        return (
            f"{sample.at_s:5.1f} s   {sample.done:,} of {self._total:,} done, "
            f"{sample.failed:,} failed, {sample.running:,} in flight, pool {sample.size:,}, "
            f"queue {sample.depth:,}, {rate:,.0f}/s"
        )

    def _picture(self, sample: DemoSample, rate: float) -> RenderableType:
        bar = Table.grid(padding=(0, 2))
        bar.add_row(
            ProgressBar(total=self._total, completed=sample.done, width=40),
            f"{sample.done:,} of {self._total:,}",
            f"{sample.at_s:.1f} s",
        )
        numbers = Text.assemble(
            ("failed ", "dim"), (f"{sample.failed:<6,}", "red" if sample.failed else "green"),
            ("in flight ", "dim"), (f"{sample.running:<6,}", "bold"),
            ("pool ", "dim"), (f"{sample.size:<6,}", "bold"),
            ("queue ", "dim"), (f"{sample.depth:<8,}", "bold"),
            (f"{rate:,.0f}/s", "bold"),
        )  # fmt: skip
        return Group(bar, numbers, Text(sparkline(self._rates), style="green"))
