"""Workflows in greenq and in Celery's gevent pool: ``python -m benchmarks.workflows``.

Prints Markdown; takes four minutes. Each contender has a new server, its own client, and one worker
that runs 500 no-ops at once; the rounds alternate. The last part sends without any worker.

Chains, chords and groups are measured several times, because the first one in a process also loads
the code that it needs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.launch import run_client, workers
from benchmarks.peer import Peer, Setup
from benchmarks.peers.celery.peer import PEER as CELERY
from benchmarks.peers.celery.peer import TUNED
from benchmarks.peers.greenq.peer import PEER as GREENQ
from benchmarks.server import valkey

_WAIT_S = 120.0
# For each contender: how many tasks a rate is measured with, and the members of the large group.
_SIZES = {"greenq": (10_000, 100_000), "celery": (600, 6_000)}
_PEERS = {"greenq": GREENQ, "celery": CELERY, "celery-tuned": TUNED}
# How many times each contender runs a workflow; the median is used.
_TIMES = {"greenq": 9, "celery": 1}
_CHAIN = 100
_CHORD = 1_000
_GROUP = 2_000

Figures = dict[str, float]


class Client:
    """One contender's calling side."""

    def __init__(self, name: str) -> None:
        """Load the contender's tasks."""
        self.tasks = importlib.import_module(f"benchmarks.peers.{name}.tasks")
        # Both packages have the same names.
        self.canvas = importlib.import_module(name)
        self.count, self.large = _SIZES[name]
        self.times = _TIMES[name]

    def members(self, count: int) -> Iterable[Any]:
        """Yield `count` signatures."""
        return (self.tasks.noop.si() for _ in range(count))

    def chain(self, length: int) -> Any:
        """Return a chain of no-ops."""
        return self.canvas.chain(*self.members(length))

    def chord(self, size: int) -> Any:
        """Return a chord of no-ops."""
        return self.canvas.chord(list(self.members(size)), self.tasks.noop.si())

    def run(self) -> Figures:
        """Measure workflows that a worker runs."""
        self.tasks.noop.delay().get(_WAIT_S)
        found: dict[str, list[float]] = defaultdict(list)
        for _ in range(self.times):
            chain_s = _timed(lambda: self.chain(_CHAIN).apply_async().get(_WAIT_S))
            found[f"chain of {_CHAIN}: s"].append(chain_s)
            chord_s = _timed(lambda: self.chord(_CHORD).apply_async().get(_WAIT_S))
            found[f"chord of {_CHORD:,}: s"].append(chord_s)
            began_s = time.perf_counter()
            sent = self.canvas.group(self.members(_GROUP)).apply_async()
            found[f"group of {_GROUP:,}: s until sent"].append(time.perf_counter() - began_s)
            sent.get(timeout=_WAIT_S)
            found[f"group of {_GROUP:,}: s until joined"].append(time.perf_counter() - began_s)
        parts = self.count // _CHAIN
        return {
            **{figure: statistics.median(times) for figure, times in found.items()},
            "plain tasks a second": self._rate(lambda: self.tasks.noop.delay(), self.count, 1),
            "in chains of 100: tasks a second": self._rate(
                lambda: self.chain(_CHAIN).apply_async(), parts, _CHAIN
            ),
            "in chords of 100: tasks a second": self._rate(
                lambda: self.chord(_CHAIN - 1).apply_async(), parts, _CHAIN
            ),
        }

    def send(self) -> Figures:
        """Measure how a large group is sent whose members are created while it is being sent."""
        self.tasks.noop.delay()
        before_kb = _peak_kb()
        sent_s = _timed(lambda: self.canvas.group(self.members(self.large)).apply_async())
        return {
            "large group: members": self.large,
            "large group: sent a second": self.large / sent_s,
            "large group: client's memory, bytes a member": (
                1024 * (_peak_kb() - before_kb) / self.large
            ),
        }

    def _rate(self, send: Callable[[], Any], count: int, tasks: int) -> float:
        """Return tasks per second, from sending the first task until the last result arrives."""

        def run() -> None:
            for each in [send() for _ in range(count)]:
                each.get(_WAIT_S)

        return count * tasks / _timed(run)


def measure(peer: Peer, name: str) -> Figures:
    """Measure a contender once."""
    found: Figures = {}
    for part in ("run", "send"):
        with ExitStack() as stack:
            server = stack.enter_context(valkey())
            if part == "run":
                stack.enter_context(workers(server, peer, Setup()))
            found |= json.loads(run_client(server, peer, Setup(), "--client", name, part))
    return found


def _timed(action: Callable[[], Any]) -> float:
    began_s = time.perf_counter()
    action()
    return time.perf_counter() - began_s


def _peak_kb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(found: Mapping[str, Mapping[str, list[float]]]) -> str:
    """Return the medians of all rounds as Markdown, with the ratios to greenq's."""
    keys = [key for key in _PEERS if any(key in by_key for by_key in found.values())]
    lines = [
        f"| | {' | '.join(_PEERS[key].title for key in keys)} |",
        "| --- |" + " --- |" * len(keys),
    ]
    for figure, by_key in found.items():
        medians = {key: statistics.median(by_key[key]) for key in keys}
        cells = [_shown(medians[key]) for key in keys]
        own = medians.get("greenq")
        if own and not figure.startswith("large group: m"):
            # Times are better when they are short, rates when they are high.
            slower = [own / medians[key] for key in keys]
            if figure.endswith(": s") or ": s until" in figure:
                slower = [1 / ratio for ratio in slower]
            cells = [
                cell if key == "greenq" else f"{cell} ({ratio:.1f} ×)"
                for key, cell, ratio in zip(keys, cells, slower, strict=True)
            ]
        lines.append(f"| {figure} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure the contenders and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workflows", description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--peers", default=",".join(_PEERS), help="of: %(default)s")
    parser.add_argument("--file", type=Path, help="add rounds to this file, and show all of them")
    parser.add_argument("--client", nargs=2, metavar=("NAME", "PART"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.client:
        name, part = given.client
        print(json.dumps(getattr(Client(name), part)()))
        return
    found: dict[str, dict[str, list[float]]] = {}
    if given.file is not None and given.file.exists():
        found = json.loads(given.file.read_text("utf-8"))
    for _ in range(given.rounds):
        for key in given.peers.split(","):
            client = replace(_PEERS[key], client=("python", "-m", "benchmarks.workflows"))
            for figure, value in measure(client, key.partition("-")[0]).items():
                found.setdefault(figure, {}).setdefault(key, []).append(value)
    if given.file is not None:
        given.file.write_text(json.dumps(found), "utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
