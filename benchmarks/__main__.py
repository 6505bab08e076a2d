"""``python -m benchmarks``: compares greenq with other task queues; see README.md."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from benchmarks import report
from benchmarks.figures import Results
from benchmarks.plan import FULL, PEERS, SHORT
from benchmarks.run import run, turns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.plan import Workload

_RESULTS = Path(__file__).resolve().parent / "results"
_ROUNDS = 3
_ROUNDS_OF_ALL = 5


def main() -> int:
    """Run the rounds, then print the results."""
    options = _options()
    # SIGTERM must also stop the workers and servers.
    signal.signal(signal.SIGTERM, _end)
    workloads = _chosen(options)
    rounds = options.rounds or (_ROUNDS_OF_ALL if options.all else _ROUNDS)
    order = turns(workloads, rounds, options.peers, options.scale)
    if not order:
        sys.exit("nothing to measure: none of these contenders runs any of these workloads")
    given = {name: value for name, value in vars(options).items() if name != "json"}
    good = run(order, options.json, given | {"rounds": rounds})
    print()
    print(report.text(Results.read(options.json)))
    print(f"All figures: {options.json}")
    return 0 if good else 1


def _end(_number: int, _frame: object) -> NoReturn:
    sys.exit("terminated")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--all", action="store_true", help="all workloads and contenders, 5 rounds")
    size.add_argument(
        "--short", action="store_true", help="the default: no-ops and sleeps, three contenders"
    )
    add("--rounds", type=int, metavar="N", help="rounds per workload")
    add("--workloads", type=_words, default=(), metavar="A,B", help=f"some of: {_known(FULL)}")
    add("--peers", type=_words, default=(), metavar="X,Y", help=f"some of: {', '.join(PEERS)}")
    add("--scale", type=float, default=1.0, metavar="F", help="scale the number of tasks by F")
    add(
        "--json",
        type=Path,
        default=_RESULTS / "latest.json",
        metavar="FILE",
        help="write the figures here",
    )
    options = parser.parse_args()
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds must be at least 1")
    contenders = {name for workload in FULL for name in workload.sizes}
    for name, wanted, known in (
        ("--workloads", options.workloads, {workload.key for workload in FULL}),
        ("--peers", options.peers, contenders),
    ):
        if unknown := set(wanted) - known:
            parser.error(f"{name}: {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}")
    return options


def _words(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _known(workloads: Sequence[Workload]) -> str:
    return ", ".join(workload.key for workload in workloads)


def _chosen(options: argparse.Namespace) -> Sequence[Workload]:
    if options.workloads:
        return [workload for workload in FULL if workload.key in options.workloads]
    return FULL if options.all else SHORT


if __name__ == "__main__":
    sys.exit(main())
