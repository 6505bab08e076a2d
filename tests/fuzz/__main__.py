"""Fuzz: ``python -m tests.fuzz --seconds 3600 --seed 7``, or again: ``--replay 7-12:40``."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.hostile import Case
from tests.fuzz.rig import Broken, batch, keep, kept, named, rig, shown
from tests.servers import Server, valkey

_BATCH = 300

# No more cases than these are kept in a file.
_KEPT = 30


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Read the command line, send batch after batch, show what breaks."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--replay", help="cases by name, or a file of tests/fuzz/found")
    options = parser.parse_args()
    with valkey() as server:
        if options.replay is not None:
            path = Path(options.replay)
            return _replay(server, kept(path) if path.exists() else named(options.replay))
        seed = random.SystemRandom().randrange(10**9) if options.seed is None else options.seed
        return _fuzz(server, seed, options.seconds)


def _fuzz(server: Server, seed: int, seconds: float) -> int:
    _say(f"seed {seed}")
    ends_s, turn = time.monotonic() + seconds, 0
    while time.monotonic() < ends_s:
        with rig(server) as fuzzed:
            # A new worker now and then: what grows slowly in one is not what is looked for.
            for _ in range(100):
                name = f"{seed}-{turn}"
                cases = batch(name, _BATCH)
                try:
                    took = fuzzed.run(cases)
                except Broken as exc:
                    _say(f"batch {name}: {exc}")
                    break
                turn += 1
                left_s = max(0.0, ends_s - time.monotonic())
                _say(f"batch {name}: {len(cases)} cases, {took}; {left_s:.0f} s left")
                if not left_s:
                    return 0
            else:
                continue
        return _narrow(server, cases)
    return 0


def _replay(server: Server, cases: Sequence[Case]) -> int:
    for case in cases[:5]:
        _say(shown(case))
    with rig(server) as fuzzed:
        try:
            _say(f"all promises hold: {fuzzed.run(cases)}")
        except Broken as exc:
            _say(str(exc))
            return 1
    return 0


def _narrow(server: Server, cases: Sequence[Case]) -> int:
    """Find few cases that break the same promise, and print how to see it again."""
    while len(cases) > 1:
        middle = len(cases) // 2
        for half in (cases[:middle], cases[middle:]):
            if _problem(server, half):
                cases = half
                break
        else:
            break
    first, last = cases[0].name, cases[-1].name.rpartition(":")[2]
    name = first if len(cases) == 1 else f"{first}-{last}"
    _say(_problem(server, cases) or "it did not happen again")
    _say(f"again: python -m tests.fuzz --replay {name}")
    path = Path(__file__).with_name("found") / f"{name.replace(':', '-')}.jsonl"
    if len(cases) <= _KEPT:
        keep(cases, path)
        _say(f"kept in {path}: name it for what it shows, and make check will try it")
    if len(cases) == 1:
        _say(shown(cases[0]))
    return 1


def _problem(server: Server, cases: Sequence[Case]) -> str:
    with rig(server) as fuzzed:
        try:
            fuzzed.run(cases)
        except Broken as exc:
            return str(exc)
    return ""


if __name__ == "__main__":
    sys.exit(main())
