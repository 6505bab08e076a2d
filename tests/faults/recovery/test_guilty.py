"""Promise: of the messages that a worker held when it died, only the culprit is ever buried."""

from __future__ import annotations

import re
import time
from collections import Counter

import pytest

from greenq.config.settings import TaskConfig
from tests.faults.recovery.stage import Stage, kill_9
from tests.support import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.slow]

GOOD = 1000
MOST = TaskConfig().task_max_deliveries


@pytest.mark.timeout(240)
def test_one_task_that_kills_its_worker_is_buried_and_a_thousand_good_ones_succeed(
    stage: Stage,
) -> None:
    stage.post_many("nap", 0.02, count=GOOD // 2)
    [crash] = stage.post("crash")
    stage.post_many("nap", 0.02, count=GOOD // 2)
    deaths, worker = 0, stage.start("-n", "same", wait=False)
    deadline_s = time.monotonic() + 180

    def outcomes() -> Counter[str | None]:
        return Counter(stage.states())

    # What a supervisor does, until all have an outcome.
    while outcomes().keys() - {"SUCCESS", "FAILURE"} or stage.server.client.hlen("unacked"):
        assert time.monotonic() < deadline_s, f"{outcomes()} after {deaths} deaths"
        if not worker.alive:
            deaths += 1
            worker = stage.start("-n", "same", wait=False)
        time.sleep(0.05)

    assert outcomes() == {"SUCCESS": GOOD, "FAILURE": 1}
    assert stage.state_of(crash) == "FAILURE"
    assert [letter.task_id for letter in stage.server.dead_letters()] == [stage.ids[crash]]
    assert deaths == MOST
    assert stage.run_counts()[crash] == MOST
    told = [line for line in stage.lines("ERROR") if stage.ids[crash] in line]
    assert told
    assert "recovery.crash" in told[0]
    assert re.search(rf"died {MOST} times", told[0])


def test_six_kills_from_outside_bury_nothing(stage: Stage) -> None:
    # Twenty that run for long, and twenty with a future ETA.
    stage.post("nap", count=20, countdown=200)
    held = stage.post("hold", count=20)
    for _ in range(6):
        worker = stage.start("-n", "same", "-c", "50")
        started_s = time.monotonic()
        stage.wait_running(worker, 1)
        # Long enough for all that may run side by side to run again.
        time.sleep(max(0.0, started_s + 2.0 - time.monotonic()))
        kill_9(worker)

    # Then the next one, which is not killed, finds all of them and buries none.
    stage.start("-n", "same", "-c", "50")
    wait_until(lambda: is_taken_up(stage))
    letters = stage.server.dead_letters()
    assert not letters, f"{len(letters)} are buried: {letters[0].reason}"
    assert stage.queued() + stage.reserved() == Counter(stage.ids)
    # And what was killed so often can still succeed.
    stage.open_gate()
    wait_until(lambda: stage.states(held) == ["SUCCESS"] * 20, 15)
    assert len(stage.queued() + stage.reserved()) == 20


def is_taken_up(stage: Stage) -> bool:
    """Return whether the last worker has taken a message, or has ended."""
    return "received" in stage.workers[-1].text or bool(stage.server.dead_letters())


def test_an_eta_that_has_not_come_does_not_count_deaths(stage: Stage) -> None:
    [later] = stage.post("nap", countdown=200)
    for _ in range(MOST + 1):
        worker = stage.start("-n", "same")
        wait_until(lambda: is_taken_up(stage))
        kill_9(worker)

    stage.start("-n", "same")
    wait_until(lambda: is_taken_up(stage))
    assert not stage.server.dead_letters()
    assert stage.state_of(later) is None
    [record] = stage.server.unacked().values()
    assert b'"deliveries"' not in record


def test_a_bystander_of_a_task_that_kills_its_worker_is_not_killed_more_than_twice(
    stage: Stage,
) -> None:
    # Given good tasks that run for long beside a bad one.
    held = stage.post("hold", count=20)
    stage.post("crash")
    deadline_s, worker = time.monotonic() + 45, stage.start("-n", "same", "-c", "50", wait=False)
    while not stage.server.dead_letters():
        assert time.monotonic() < deadline_s, "the bad task is not buried"
        if not worker.alive:
            worker = stage.start("-n", "same", "-c", "50", wait=False)
        # From now on each runs alone to its end: they have been through two worker deaths.
        if len(stage.workers) == 3:
            stage.open_gate()
        time.sleep(0.05)

    assert [letter.task for letter in stage.server.dead_letters()] == ["recovery.crash"]
    wait_until(lambda: stage.states(held) == ["SUCCESS"] * 20, 15)
    counts = stage.run_counts()
    assert max(counts[number] for number in held) <= 3
