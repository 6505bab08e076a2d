"""The protocol under the explorer: some schedules of each scenario, and all past violations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.model.explore import Explorer
from tests.model.mutants import MUTANTS, Mutant
from tests.model.net import LUA
from tests.model.scenarios import SCENARIOS
from tests.model.world import installed

# Of each scenario; `make test` tries the few alone, ``python -m tests.model`` many more.
_FEW, _ALL = 4, 20
_SEED = 1

# Schedules that once broke a promise, one per file: the scenario's name, then the labels.
_FOUND = sorted(Path(__file__).with_name("found").glob("*.txt"))


@pytest.fixture(scope="module")
def explorer() -> Iterator[Explorer]:
    made = Explorer()
    yield made
    made.close()


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param(range(_FEW), marks=pytest.mark.smoke, id="few"),
        pytest.param(range(_FEW, _ALL), id="more"),
    ],
)
@pytest.mark.parametrize("name", SCENARIOS)
def test_random_schedules_keep_the_promises(explorer: Explorer, name: str, numbers: range) -> None:
    scenario = SCENARIOS[name]
    with installed():
        for number in numbers:
            found = explorer.random(scenario, f"{_SEED}-{number}")
            if found.problems:
                found = explorer.shrink(scenario, found)
                pytest.fail(f"{found.problems[0]}\n{name}: {' '.join(found.labels)}")


@pytest.mark.smoke
@pytest.mark.parametrize("file", _FOUND, ids=lambda file: file.stem)
def test_what_was_found_stays_mended(explorer: Explorer, file: Path) -> None:
    lines = [line for line in file.read_text("utf-8").splitlines() if not line.startswith("#")]
    name, labels = lines[0], " ".join(lines[1:]).split()
    with installed():
        found = explorer.replay(SCENARIOS[name], labels)
    assert not found.problems, f"{found.problems[0]}\n{' '.join(found.labels)}"


def test_the_same_seed_makes_the_same_schedule(explorer: Explorer) -> None:
    scenario = SCENARIOS["recovery"]
    with installed():
        first, again = (explorer.random(scenario, "same") for _ in range(2))
    assert first == again


@pytest.mark.smoke
def test_each_seeded_fault_changes_one_place_of_its_script() -> None:
    for mutant in MUTANTS:
        assert (LUA / f"{mutant.script}.lua").read_text("utf-8").count(mutant.old) == 1, mutant.note


# Those that are detected soon; ``python -m tests.model --mutants`` tries all.
_SOON = [mutant for mutant in MUTANTS if mutant.schedules <= 1500]


@pytest.mark.parametrize("mutant", _SOON, ids=lambda mutant: mutant.note)
def test_a_script_with_a_seeded_fault_is_caught(mutant: Mutant) -> None:
    with installed():
        assert mutant.caught_by(mutant.schedules) is not None, f"not detected: {mutant.note}"
