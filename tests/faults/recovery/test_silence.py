"""Promise: a frozen or unreachable worker is not taken for dead: nothing runs twice."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
import redis

from tests.faults.recovery.stage import Stage
from tests.support import wait_until

pytestmark = pytest.mark.faults

COUNT = 20
SILENT_S = 12


@contextmanager
def connections_used_up(admin: redis.Redis) -> Iterator[None]:
    """Use up a server's connections, leaving none for workers."""
    admin.config_set("maxclients", 1)
    for kind in ("normal", "pubsub"):
        admin.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
    try:
        yield
    finally:
        admin.config_set("maxclients", 1000)


def check_ran_once(stage: Stage) -> None:
    stage.check_all_done()
    twice = [number for number, runs in stage.run_counts().items() if runs > 1]
    assert not twice, f"{len(twice)} of {len(stage.ids)} ran twice"


@pytest.mark.slow
@pytest.mark.parametrize("elsewhere", [False, True], ids=["same host", "other host"])
def test_tasks_beside_one_that_holds_the_gil_run_once(stage: Stage, *, elsewhere: bool) -> None:
    worker = stage.start("-n", "first", "-c", str(COUNT), "-Q", "celery,own")
    stage.post("hold", count=COUNT - 1)
    stage.wait_running(worker, COUNT - 1)
    stage.start("-c", str(2 * COUNT), elsewhere=elsewhere)
    stage.wait_trusted()

    [blocker] = stage.post("gil", SILENT_S, queue="own")
    wait_until(lambda: blocker in stage.ended(), SILENT_S + 10)

    stage.open_gate()
    check_ran_once(stage)
    assert "lost its lease" not in worker.text


@pytest.mark.slow
@pytest.mark.parametrize("elsewhere", [False, True], ids=["same host", "other host"])
def test_tasks_of_a_worker_that_is_stopped_for_a_while_run_once(
    stage: Stage, *, elsewhere: bool
) -> None:
    worker = stage.start("-c", str(COUNT))
    stage.post("hold", count=COUNT)
    stage.wait_running(worker, COUNT)
    stage.start("-c", str(2 * COUNT), elsewhere=elsewhere)
    stage.wait_trusted()

    worker.send_signal(signal.SIGSTOP)
    time.sleep(SILENT_S)
    worker.send_signal(signal.SIGCONT)

    stage.open_gate()
    check_ran_once(stage)
    # And it works on.
    stage.post("nap", count=COUNT)
    stage.check_all_done()


def test_a_burst_is_not_kept_by_a_task_that_computes(stage: Stage) -> None:
    # Given twenty messages, taken in one batch, the first of which never yields.
    [blocker] = stage.post("burn", 8.0)
    others = stage.post("nap", count=COUNT - 1)
    busy = stage.start("-c", "50", wait=False)
    stage.wait_running(busy, 1)
    idle = stage.start("-c", "50")
    began_s = time.monotonic()

    def run_on_idle() -> set[int]:
        stage.ledger.read()
        return {run.number for run in stage.ledger.all_runs if run.pid == idle.pid}

    # Then the other worker has them soon.
    with suppress(AssertionError):
        wait_until(lambda: run_on_idle() >= set(others), 4.0)
    ran = run_on_idle()
    took_s = time.monotonic() - began_s
    assert blocker not in stage.ended(), "the test was too slow to tell"
    assert ran == set(others), f"{len(ran)} of {len(others)} ran on it after {took_s:.1f} s"
    check_ran_once(stage)


@pytest.mark.slow
def test_a_worker_that_starts_during_an_outage_does_not_take_the_others_for_dead(
    own_stage: Stage,
) -> None:
    stage = own_stage
    admin = redis.Redis(port=stage.server.port, single_connection_client=True)
    worker = stage.start("-c", "40", direct=False, elsewhere=True)
    numbers = stage.post("hold", count=40)
    stage.wait_running(worker, 40)
    stage.wait_trusted()

    # When the server takes no connections for ten seconds, and a worker is started meanwhile.
    with connections_used_up(admin):
        began_s = time.monotonic()
        fresh = stage.start("-c", "40", wait=False)
        stage.line.hold()
        time.sleep(max(0.0, began_s + 10 - time.monotonic()))
    # The new one is the first whom the server admits.
    fresh.wait_text("Connected to ")
    time.sleep(1.0)
    stage.line.release()

    # Then it leaves to the other what that still holds.
    stage.post("nap")
    stage.open_gate()
    stage.check_all_done(20)
    counts = stage.run_counts()
    twice = [number for number in numbers if counts[number] > 1]
    assert not twice, f"{len(twice)} of 40 ran twice"
    admin.close()
