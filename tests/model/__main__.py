"""Explore: ``python -m tests.model --scenario all --schedules N --seed S --jobs 2``."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import queue
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tests.model.explore import Explorer, Found
from tests.model.jobs import SEARCHES, Search, explore, seek_mutants
from tests.model.mutants import MUTANTS
from tests.model.scenarios import SCENARIOS, named
from tests.model.world import installed

# Jobs tell of each 400 schedules, which takes minutes beside a busy test run.
_HANGS_S = 600


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Read the command line, run the jobs, show what they find."""
    parser = argparse.ArgumentParser(prog="python -m tests.model")
    parser.add_argument("--scenario", default="all", help=", ".join(SCENARIOS))
    parser.add_argument("--schedules", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--replay", help="labels of one --scenario, separated by blanks")
    parser.add_argument("--dfs", action="store_true", help="run the complete searches instead")
    parser.add_argument("--depth", type=int, help="search depth first to this depth instead")
    parser.add_argument("--faults", type=int, default=1, help="with --depth")
    parser.add_argument(
        "--mutants", action="store_true", help="try to detect all seeded faults instead"
    )
    options = parser.parse_args()
    names = [each.name for part in options.scenario.split(",") for each in named(part)]
    if options.replay is not None:
        return _replay(names[0], options.replay.split())
    if options.mutants:
        return _seek_mutants(options.jobs)
    if options.dfs:
        return _depth_first(SEARCHES, sys.maxsize)
    if options.depth is not None:
        searches = [Search(name, options.depth, options.faults) for name in names]
        return _depth_first(searches, options.schedules)
    seed = random.SystemRandom().randrange(10**9) if options.seed is None else options.seed
    _say(f"seed {seed}")
    context = multiprocessing.get_context("spawn")
    told: Any = context.Queue()
    jobs = [
        context.Process(
            target=explore,
            args=(names, job, options.schedules, options.jobs, seed, told),
            daemon=True,
        )
        for job in range(options.jobs)
    ]
    for job in jobs:
        job.start()
    return _listen(told, jobs, options.schedules, seed)


def _listen(told: Any, jobs: list[Any], schedules: int, seed: int) -> int:
    began_s = time.monotonic()
    best: dict[tuple[str, str], Found] = {}
    counts: Counter[tuple[str, str]] = Counter()
    running, done, steps = len(jobs), 0, 0
    while running:
        try:
            number, what = told.get(timeout=_HANGS_S)
        except queue.Empty:
            sys.exit("a job hangs or died")
        if number < 0:
            running -= 1
            steps += what
            continue
        done = max(done, number)
        if what is None:
            speed = done / (time.monotonic() - began_s)
            sys.stderr.write(
                f"\r{done} schedules, {speed:.0f}/s, {sum(counts.values())} violations "
            )
            continue
        key = what.key
        if key not in counts:
            _say(f"\n{key[0]}: {what.problems[0]}\n  {' '.join(what.labels)}")
        counts[key] += 1
        if key not in best or len(what.labels) < len(best[key].labels):
            best[key] = what
    for job in jobs:
        job.join()
    took_s = time.monotonic() - began_s
    _say(
        f"\n{schedules} schedules, {steps} steps in {took_s:.1f} s: {schedules / took_s:.0f}/s, "
        f"{sum(counts.values())} violations, seed {seed}"
    )
    for key, found in sorted(best.items()):
        _say(f"\n{key[0]}: {counts[key]} x {found.problems[0]}\n  {' '.join(found.labels)}")
        _say(f"  then {' '.join(found.whole[len(found.labels) :])}")
    return 1 if counts else 0


def _replay(name: str, labels: list[str]) -> int:
    with installed():
        explorer = Explorer()
        try:
            found = explorer.replay(SCENARIOS[name], labels)
        finally:
            explorer.close()
    _say(" ".join(found.labels))
    for problem in found.problems:
        _say(problem)
    return 1 if found.problems else 0


def _depth_first(searches: Sequence[Search], most: int) -> int:
    bad = 0
    with installed():
        explorer = Explorer()
        try:
            for name, depth, faults in searches:
                began_s = time.monotonic()
                tried, states, found = explorer.depth_first(
                    SCENARIOS[name], depth=depth, faults=faults, most=most
                )
                took_s = time.monotonic() - began_s
                _say(
                    f"{name}, {depth} steps, {faults} faults: {tried} schedules, {states} states, "
                    f"{len(found)} violations, {took_s:.1f} s"
                    + ("" if tried < most else "; incomplete")
                )
                if found:
                    bad += 1
                    least = min(found, key=lambda each: len(each.labels))
                    least = explorer.shrink(SCENARIOS[name], least)
                    _say(f"  {least.problems[0]}\n  {' '.join(least.labels)}")
        finally:
            explorer.close()
    return 1 if bad else 0


def _seek_mutants(count: int) -> int:
    context = multiprocessing.get_context("spawn")
    told: Any = context.Queue()
    jobs = [
        context.Process(target=seek_mutants, args=(job, count, told), daemon=True)
        for job in range(count)
    ]
    for job in jobs:
        job.start()
    running, missed = count, 0
    while running:
        answer = told.get(timeout=600)
        if answer is None:
            running -= 1
            continue
        number, schedules, how = answer
        mutant = MUTANTS[number]
        missed += not schedules
        fate = f"{schedules:5} schedules, {how}" if schedules else "NOT DETECTED"
        _say(f"{mutant.script}.lua, {mutant.note}: {fate}")
    for job in jobs:
        job.join()
    _say(f"{len(MUTANTS)} seeded faults, {missed} not detected")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
