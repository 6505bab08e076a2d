"""Hostile bytes for a real worker: some fixed batches, and every case that has broken something."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.rig import Rig, batch, kept, rig
from tests.servers import Server

# ``make fuzz`` sends more.
_SEEDS = ("1", "2", "3")
_BATCH = 250

_FOUND = sorted(Path(__file__).with_name("found").glob("*.jsonl"))


@pytest.fixture(scope="module")
def fuzzed(shared_server: Server) -> Iterator[Rig]:
    with rig(shared_server) as made:
        yield made


@pytest.mark.parametrize("seed", _SEEDS)
def test_hostile_bytes_are_settled_and_cost_little(fuzzed: Rig, seed: str) -> None:
    fuzzed.run(batch(seed, _BATCH))


@pytest.mark.parametrize("path", _FOUND, ids=lambda path: path.stem)
def test_what_was_found_once_is_settled_and_costs_little(fuzzed: Rig, path: Path) -> None:
    fuzzed.run(kept(path))
