"""Promise: when a server loses its data, nothing that workers have in hand is lost."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable

import pytest

from greenq.config.settings import WorkerConfig
from tests.faults.recovery.stage import Stage
from tests.servers import Server
from tests.support import wait_until

pytestmark = pytest.mark.faults

COUNT = 20


Forget = Callable[[Server], object]


def restart_empty(server: Server) -> None:
    """Restart it without its data, as after a lost disk, after the leases have ended."""
    server.stop()
    time.sleep(1.3 * WorkerConfig().worker_lease)
    shutil.rmtree(server.folder / "appendonlydir")
    server.start()


forgetful = pytest.mark.parametrize(
    "forget", [pytest.param(Server.flush, id="flush"), pytest.param(restart_empty, id="restart")]
)


def check_all_succeed_once(stage: Stage, numbers: list[int], runs: int = 1) -> None:
    try:
        wait_until(lambda: set(stage.states(numbers)) == {"SUCCESS"}, 15)
    except AssertionError:
        states = stage.states(numbers)
        told = {state: states.count(state) for state in set(states)}
        raise AssertionError(f"after 15 s: {told}") from None
    counts = stage.run_counts()
    assert {counts[number] for number in numbers} == {runs}


@forgetful
@pytest.mark.parametrize("workers", [1, 2])
def test_tasks_that_retry_do_so_although_the_server_has_forgotten_them(
    own_stage: Stage, workers: int, forget: Forget
) -> None:
    stage = own_stage
    first = stage.start("-c", str(COUNT))
    numbers = stage.post("again", count=COUNT)
    stage.wait_running(first, COUNT)
    for _ in range(workers - 1):
        stage.start("-c", str(COUNT))

    forget(stage.server)
    stage.open_gate()

    check_all_succeed_once(stage, numbers, runs=2)
    stage.check_all_done()


@forgetful
def test_tasks_that_wait_for_their_time_run_although_the_server_has_forgotten_them(
    own_stage: Stage, forget: Forget
) -> None:
    stage = own_stage
    stage.start("-c", str(COUNT))
    numbers = stage.post("nap", count=COUNT, countdown=8)
    wait_until(lambda: stage.reserved().total() == COUNT)

    forget(stage.server)

    # Something else is taken first, which restarts the delivery numbers.
    others = stage.post("nap", count=COUNT + 5)
    check_all_succeed_once(stage, others)
    assert not set(numbers) & stage.run_counts().keys()

    check_all_succeed_once(stage, numbers)
    stage.check_all_done()


@forgetful
def test_tasks_that_run_succeed_although_the_server_has_forgotten_them(
    own_stage: Stage, forget: Forget
) -> None:
    stage = own_stage
    first = stage.start("-c", str(COUNT))
    numbers = stage.post("hold", count=COUNT)
    stage.wait_running(first, COUNT)

    forget(stage.server)
    stage.open_gate()

    check_all_succeed_once(stage, numbers)
    stage.check_all_done()


@forgetful
def test_what_was_forgotten_and_written_anew_survives_a_kill(
    own_stage: Stage, forget: Forget
) -> None:
    stage = own_stage
    # Given tasks that run while the server forgets them, long enough for a worker to notice.
    first = stage.start("-c", str(COUNT))
    numbers = stage.post("hold", count=COUNT)
    stage.wait_running(first, COUNT)
    stage.start("-c", str(COUNT))
    stage.wait_trusted()
    forget(stage.server)
    wait_until(lambda: stage.reserved().total() == COUNT, 10)

    first.kill()

    wait_until(lambda: all(stage.run_counts()[number] == 2 for number in numbers), 10)
    stage.open_gate()
    stage.check_all_done()
