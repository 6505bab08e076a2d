"""A worker's autoscaler in simulated time, with simulated load, tasks and downstream service.

    python -m benchmarks.simulation > docs/autoscale.svg

This draws what the autoscaler does with six loads, for docs/autoscaling.md.
"""

from __future__ import annotations

import heapq
import random
import sys
from collections.abc import Callable
from typing import NamedTuple

from greenq.autoscale import Autoscaler
from greenq.upkeep.adaptive import Adaptive

STEP_S = 0.05


class Downstream(NamedTuple):
    """A service that all tasks call.

    Attributes:
        serves: how many calls at once it answers at full speed.
        suffers: how much of its capacity each further call costs.
    """

    serves: int
    suffers: float = 0.0

    def pace(self, running: int) -> float:
        """Return how fast each of `running` tasks proceeds, 1 at best."""
        if running <= self.serves:
            return 1.0
        return self.serves / (1 + self.suffers * (running - self.serves)) / running


UNLIMITED = Downstream(10**9)


class Point(NamedTuple):
    """The world at one moment."""

    at_s: float
    size: int
    running: int
    queued: int
    ended: int


class World:
    """A queue, a pool and a downstream service around a real `Autoscaler`."""

    def __init__(
        self,
        *,
        most: int = 500,
        least: int = 10,
        adaptive: bool = False,
        downstream: Downstream = UNLIMITED,
        duration: Callable[[random.Random], float] = lambda _numbers: 1.0,
        keepalive_s: float = 30.0,
        interval_s: float = 0.5,
        seed: int = 1,
    ) -> None:
        """Create an idle world; a task takes what `duration` returns, longer on a busy service."""
        self.downstream = downstream
        self.queued = self.ended = 0
        self.ended_s = 0.0
        self.size = least
        self.lag_s = 0.0
        self.points: list[Point] = []
        self._duration, self._numbers = duration, random.Random(seed)
        self._steps = 0
        self._ticks_every = round(interval_s / STEP_S)
        # How far a task that had run from the beginning would have progressed. All tasks proceed at
        # the same pace, so each task ends when this reaches its mark: (mark, beginning).
        self._progress = 0.0
        self._running: list[tuple[float, float]] = []
        self.scaler = Autoscaler(
            self,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            most=most,
            least=least,
            keepalive_s=keepalive_s,
            interval_s=interval_s,
            backlog=lambda: self.queued,
            adaptive=Adaptive() if adaptive else None,
            ended=lambda: (self.ended, self.ended_s),
            clock=lambda: self.now_s,
        )

    @property
    def now_s(self) -> float:
        """Simulated seconds since the start."""
        return self._steps * STEP_S

    @property
    def running(self) -> int:
        """How many tasks are running."""
        return len(self._running)

    def resize(self, size: int) -> None:
        """Do what the pool does when the autoscaler resizes it."""
        self.size = size

    def run(self, seconds: float, arrivals: Callable[[float], float] = lambda _at_s: 0.0) -> None:
        """Let time pass; `arrivals` returns how many tasks arrive per second."""
        coming = 0.0
        for _ in range(round(seconds / STEP_S)):
            self._steps += 1
            coming += arrivals(self.now_s) * STEP_S
            self.queued += int(coming)
            coming -= int(coming)
            self._progress += self.downstream.pace(self.running) * STEP_S
            while self._running and self._running[0][0] <= self._progress:
                _mark, began_s = heapq.heappop(self._running)
                self.ended += 1
                self.ended_s += self.now_s - began_s
            while self.queued and self.running < self.size:
                self.queued -= 1
                mark = self._progress + self._duration(self._numbers)
                heapq.heappush(self._running, (mark, self.now_s))
            if self._steps % self._ticks_every == 0:
                self.scaler.tick()
            self.points.append(Point(self.now_s, self.size, self.running, self.queued, self.ended))

    def rate(self, since_s: float) -> float:
        """Return how many tasks a second have ended since then."""
        first = next(point for point in self.points if point.at_s >= since_s)
        last = self.points[-1]
        return (last.ended - first.ended) / (last.at_s - first.at_s)


def long_tailed(numbers: random.Random) -> float:
    """Return a duration of 1 s on average; one in fifty takes about twenty times as long."""
    return numbers.expovariate(1 / 0.7) if numbers.random() < 0.98 else numbers.uniform(10, 21)


class Scenario(NamedTuple):
    """A load to draw: its title, the service, the tasks' durations, the arrivals, its length."""

    title: str
    downstream: Downstream
    duration: Callable[[random.Random], float]
    arrivals: Callable[[float], float]
    seconds: float


SCENARIOS = (
    Scenario("burst: 3,000 tasks of 1 s", UNLIMITED, lambda _n: 1.0,
        lambda at_s: 60_000 if at_s <= STEP_S else 0.0, 90),
    Scenario("ramp: 0 to 300 tasks a second", UNLIMITED, lambda _n: 1.0,
        lambda at_s: at_s * 2, 150),
    Scenario("sawtooth: 0 to 200 tasks a second in 20 s", UNLIMITED, lambda _n: 1.0,
        lambda at_s: 10 * (at_s % 20), 150),
    Scenario("long-tailed tasks: 100 a second, 1 s on average", UNLIMITED, long_tailed,
        lambda _at_s: 100.0, 150),
    Scenario("a downstream service that is saturated by 80", Downstream(80), lambda _n: 1.0,
        lambda _at_s: 150.0, 240),
    Scenario("the same, and slower the more it is asked", Downstream(80, 0.002), lambda _n: 1.0,
        lambda _at_s: 150.0, 240),
)  # fmt: skip


# --- drawing --------------------------------------------------------------------------------------

_WIDTH, _HEIGHT, _COLUMNS = 420, 210, 2
_LEFT, _TOP, _RIGHT, _BOTTOM = 44, 44, 12, 26


def _draw(scenario: Scenario, x: int, y: int) -> list[str]:
    """Return one chart: the pool's size without (grey) and with (green) adaptation."""
    lines = []
    worlds = {}
    for adaptive in (False, True):
        world = World(adaptive=adaptive, downstream=scenario.downstream, duration=scenario.duration)
        world.run(scenario.seconds, scenario.arrivals)
        worlds[adaptive] = world
    inner_w, inner_h = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(at_s: float, value: float) -> str:
        across = x + _LEFT + inner_w * at_s / scenario.seconds
        return f"{across:.1f},{y + _TOP + inner_h * (1 - value / 520):.1f}"

    lines.append(f'<text x="{x + _LEFT}" y="{y + 18}" class="title">{scenario.title}</text>')
    since_s = scenario.seconds / 2
    rates = " · ".join(
        f"{'adaptive' if adaptive else 'as needed'} {worlds[adaptive].rate(since_s):.0f}/s"
        for adaptive in (False, True)
    )
    lines.append(f'<text x="{x + _LEFT}" y="{y + 34}" class="note">second half: {rates}</text>')
    for value in (0, 100, 250, 500):
        start, end = place(0, value), place(scenario.seconds, value)
        height = float(start.split(",")[1])
        lines.append(f'<polyline points="{start} {end}" class="grid"/>')
        lines.append(
            f'<text x="{x + _LEFT - 6}" y="{height + 3:.1f}" class="axis" text-anchor="end">'
            f"{value}</text>"
        )
    for at_s in (0, scenario.seconds / 2, scenario.seconds):
        across = place(at_s, 0).split(",")[0]
        lines.append(
            f'<text x="{across}" y="{y + _HEIGHT - 10}" class="axis" text-anchor="middle">'
            f"{at_s:.0f} s</text>"
        )
    for adaptive, kind in ((False, "fixed"), (True, "adaptive")):
        points = worlds[adaptive].points[::10]
        path = " ".join(place(point.at_s, point.size) for point in points)
        lines.append(f'<polyline points="{path}" class="{kind}"/>')
    return lines


def svg() -> str:
    """Return all charts as one image."""
    rows = -(-len(SCENARIOS) // _COLUMNS)
    width, height = _WIDTH * _COLUMNS, _HEIGHT * rows
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif">',
        "<title>The pool's size under six loads, as needed and adaptive</title>",
        "<style>.title{font-size:13px;font-weight:bold}.note,.axis{font-size:11px;fill:#666}"
        ".grid{stroke:#ddd;fill:none}.fixed{stroke:#999;fill:none;stroke-width:1.5}"
        ".adaptive{stroke:#0a7d4f;fill:none;stroke-width:2}</style>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for number, scenario in enumerate(SCENARIOS):
        row, column = divmod(number, _COLUMNS)
        lines += _draw(scenario, column * _WIDTH, row * _HEIGHT)
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(svg())
