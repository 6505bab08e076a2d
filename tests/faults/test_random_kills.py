"""Promise: kill -9 at any moment loses nothing, and only what was running runs twice.

The short form of some scenarios of ``python -m tests.faults.long``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.long.lab import Lab, LabServer
from tests.faults.long.scenarios import (
    all_frozen,
    frozen,
    orphans_move,
    random_kills,
    server_away,
)
from tests.faults.long.workflows import Size, workflows

pytestmark = [pytest.mark.faults, pytest.mark.slow]


@pytest.fixture(scope="module")
def lab_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    """A separate server, shared by all tests: a new one would give its workers a grace period."""
    server = LabServer(tmp_path_factory.mktemp("server"))
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture
def lab(lab_server: LabServer, tmp_path: Path) -> Iterator[Lab]:
    """The empty server and a new ledger."""
    lab_server.flush()
    made = Lab(lab_server, tmp_path, lambda _text: None, quick=True, timed=False)
    try:
        yield made
    finally:
        made.close()


def test_one_worker_is_killed_again_and_again_under_load(lab: Lab) -> None:
    random_kills(lab, kills=4)

    row = lab.row("kills")
    assert row.problems == ()
    assert row.sent > 100
    assert row.executed == row.sent


def test_what_a_killed_worker_held_starts_on_the_survivor(lab: Lab) -> None:
    orphans_move(lab, rounds=2)

    row = lab.row("orphans")
    assert row.problems == ()
    assert row.executed == row.sent
    assert row.twice > 0


def test_a_worker_that_stood_still_starts_nothing_that_others_have_taken(lab: Lab) -> None:
    frozen(lab)

    row = lab.row("frozen")
    assert row.problems == ()
    assert 0 < row.twice <= int(str(row.figures["running when frozen"]))


def test_workers_that_all_stood_still_do_not_take_each_other_for_dead(lab: Lab) -> None:
    all_frozen(lab)

    assert lab.row("frozen-all").problems == ()


def test_what_a_server_forgets_of_the_last_second_is_done_again(lab: Lab) -> None:
    server_away(lab, "power cut")

    assert lab.row("away-power").problems == ()


def test_each_step_of_a_workflow_is_sent_once_whatever_is_killed(lab: Lab) -> None:
    workflows(lab, Size(workflows=20, worker_kills=5, producer_kills=1, restarts=1))

    row = lab.row("workflows")
    assert row.problems == ()
    assert row.figures["workflows"] == 20 - int(str(row.figures["of killed producers"]))
    assert row.executed == row.sent > 0
