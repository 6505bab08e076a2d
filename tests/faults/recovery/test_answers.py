"""Promise: an answer that is lost or late changes no outcome and strands no message."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
import redis

from greenq import Greenq
from tests.faults.proxy import BLMOVE, TAKE, Fault, How, Kind, When, named, script
from tests.faults.recovery.stage import Stage, carries, signal_family
from tests.servers import Process, valkey
from tests.support import wait_until

pytestmark = pytest.mark.faults

COUNT = 10
# After a worker's exit, or once another is up: a lease, and slack for a slow machine.
SOON_S = 6.0

SETTLE: Kind = script("settle")


def wait_idle(stage: Stage) -> None:
    wait_until(lambda: stage.proxy.sent(BLMOVE) > 0)


def pass_outbox(stage: Stage, worker: Process, queue: str) -> None:
    """Wait until a worker has written its whole outbox: it writes in order."""
    [marker] = stage.post("nap", queue=queue)
    wait_until(lambda: stage.state_of(marker) == "SUCCESS", 15)
    assert worker.alive


# --- outcomes -------------------------------------------------------------------------------------


def test_a_retry_whose_writing_is_repeated_does_not_replace_the_success_of_the_next_run(
    stage: Stage,
) -> None:
    # Given a worker whose task is to run again, on a queue of the other's.
    stage.open_gate()
    first = stage.start("-Q", "first", direct=False)
    stage.start()

    # When the answer to that is lost, and comes to be lost after the next run.
    def succeeded() -> bool:
        return stage.states() == ["SUCCESS"]

    written = carries(SETTLE, b"RETRY")
    fault = Fault(written, When.EXECUTED, strike=lambda: wait_until(succeeded))
    stage.proxy.plan(fault)
    [number] = stage.post("again", "celery", queue="first")
    fault.wait_fired()

    # Then the first worker's repetition leaves the success alone.
    wait_until(lambda: stage.proxy.sent(written) >= 2)
    pass_outbox(stage, first, "first")
    assert stage.state_of(number) == "SUCCESS"
    assert stage.run_counts()[number] == 2


@pytest.mark.parametrize("retries", [False, True], ids=["FAILURE", "RETRY"])
def test_the_late_outcome_of_a_frozen_workers_run_does_not_replace_success(
    stage: Stage, *, retries: bool
) -> None:
    # Given a worker that stands still with all that belongs to it until its lease has ended.
    frozen = stage.start("-Q", "celery,own", direct=False, elsewhere=True)
    [number] = stage.post("insert", retries)
    stage.wait_running(frozen, 1)
    other = stage.start()
    stage.open_gate_of(other)
    stage.wait_trusted()
    signal_family(frozen, signal.SIGSTOP)
    stage.line.hold()
    wait_until(lambda: stage.state_of(number) == "SUCCESS", 25)

    # When it goes on, and fails since the work has been done elsewhere.
    signal_family(frozen, signal.SIGCONT)
    stage.line.release()
    stage.open_gate_of(frozen)
    frozen.wait_text("FileExistsError")

    pass_outbox(stage, frozen, "own")
    assert stage.state_of(number) == "SUCCESS"
    stage.check_all_done()
    assert stage.run_counts()[number] == 2


def test_tasks_acknowledged_early_run_at_most_once_across_a_cut_off(stage: Stage) -> None:
    # Given a worker that is cut off right after it has taken messages.
    away = stage.start("-Q", "celery,own", "-c", str(2 * COUNT), direct=False, elsewhere=True)
    wait_idle(stage)
    stage.wait_trusted()
    fault = Fault(TAKE, When.DELIVERED, How.FREEZE, strike=stage.line.hold)
    stage.proxy.plan(fault)
    # In one push, so that one take has them all.
    stage.post_many("early", count=COUNT)
    numbers = list(range(COUNT))
    fault.wait_fired()
    cut_off_s = time.monotonic()
    stage.start()

    # When the others have run them, and it is back.
    wait_until(lambda: set(numbers) <= stage.ended(), 25)
    time.sleep(max(0.0, cut_off_s + 6.0 - time.monotonic()))
    stage.line.release()
    fault.let_go.set()

    # Then it does not start what it still had.
    [marker] = stage.post("early", queue="own")
    wait_until(lambda: marker in stage.ended(), 15)
    wait_until(lambda: not stage.reserved() and not stage.queued())
    assert away.alive
    twice = [number for number, runs in stage.run_counts().items() if runs > 1]
    assert not twice, f"{len(twice)} of {COUNT} ran twice"


# --- a stop ---------------------------------------------------------------------------------------


def check_runs_elsewhere_soon(
    stage: Stage, gone: Process, numbers: list[int], since_s: float, within_s: float = SOON_S
) -> None:
    stage.check_begun_elsewhere(numbers, gone, since_s, within_s)
    stage.check_all_done()


def test_what_could_not_be_written_at_a_stop_runs_elsewhere_soon_when_results_stand_still(
    stage: Stage,
) -> None:
    with valkey() as results:
        settings = {"result_backend": results.url, "worker_shutdown_grace": 8.0}
        stopped = stage.start("-c", str(COUNT), settings=settings)
        numbers = stage.post("hold", count=COUNT)
        stage.wait_running(stopped, COUNT)
        stage.start("-c", str(COUNT), settings=settings)
        stage.wait_trusted()
        process = results._process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        try:
            stage.open_gate()
            wait_until(lambda: set(numbers) <= stage.ended())
            stop_s = time.monotonic()
            stopped.send_signal(signal.SIGTERM)
            stopped.wait_exit()
            took_s = time.monotonic() - stop_s
        finally:
            process.send_signal(signal.SIGCONT)

        stage.check_begun_elsewhere(numbers, stopped, stop_s, took_s + SOON_S)
        wait_until(lambda: not stage.reserved() and not stage.queued())
        stored = redis.Redis.from_url(results.url)
        assert all(stored.exists(f"celery-task-meta-{stage.ids[number]}") for number in numbers)
        stored.close()


def test_what_could_not_be_written_at_a_stop_runs_elsewhere_soon_when_memory_is_full(
    stage: Stage,
) -> None:
    settings = {"worker_shutdown_grace": 8.0}
    stopped = stage.start("-c", str(COUNT), settings=settings)
    numbers = stage.post("hold", count=COUNT)
    stage.wait_running(stopped, COUNT)
    stage.start("-c", str(COUNT))
    stage.wait_trusted()
    stage.server.client.config_set("maxmemory", 1)
    try:
        stage.open_gate()
        wait_until(lambda: set(numbers) <= stage.ended())
        # The other worker may run them before this process has seen the first one's end.
        stop_s = time.monotonic()
        stopped.send_signal(signal.SIGTERM)
        stopped.wait_exit()
        took_s = time.monotonic() - stop_s
    finally:
        stage.server.client.config_set("maxmemory", 0)

    check_runs_elsewhere_soon(stage, stopped, numbers, stop_s, took_s + SOON_S)


def test_what_a_take_had_reserved_when_its_answer_was_lost_at_a_stop_runs_elsewhere_soon(
    stage: Stage,
) -> None:
    stopped = stage.start(direct=False)
    wait_idle(stage)
    stage.wait_trusted()
    fault = Fault(TAKE, When.EXECUTED, strike=lambda: stopped.send_signal(signal.SIGTERM))
    stage.proxy.plan(fault)
    numbers = stage.post("nap", count=1)
    fault.wait_fired()
    stopped.wait_exit()

    exit_s = time.monotonic()
    stage.start()
    took_s = time.monotonic() - exit_s

    check_runs_elsewhere_soon(stage, stopped, numbers, exit_s, took_s + SOON_S)
    assert set(stage.run_counts().values()) == {1}


def test_a_message_handed_over_at_a_stop_is_not_left_in_the_inbox(stage: Stage) -> None:
    # Only greenq's workers look there, and this may have been the last of them.
    ended = []
    fault = Fault(BLMOVE, When.DELIVERED, strike=lambda: ended.append(stop(stage.workers[0])))
    stage.proxy.plan(fault)
    worker = stage.start(direct=False)
    wait_idle(stage)
    stage.post("nap")
    fault.wait_fired()

    worker.wait_exit()

    assert not stage.server.client.exists("greenq.inbox.celery")
    assert stage.queued() + Counter(stage.stored()) == Counter(stage.ids)
    assert not stage.reserved()


def stop(worker: Process) -> None:
    """Ask a worker to stop, and wait until it has noticed."""
    worker.send_signal(signal.SIGTERM)
    wait_until(lambda: "hutting down" in worker.text or "hutdown" in worker.text, 2)


# --- draining and pausing -------------------------------------------------------------------------


def test_what_a_take_had_reserved_when_its_answer_was_lost_runs_elsewhere_while_draining(
    stage: Stage,
) -> None:
    # Given a worker that is told to drain before it can repeat a take.
    draining = stage.start("-n", "draining@here", direct=False)
    wait_idle(stage)
    stage.wait_trusted()
    fault = Fault(TAKE, When.EXECUTED, strike=lambda: control(stage, "drain", "draining@here"))
    stage.proxy.plan(fault)
    numbers = stage.post("nap", count=1)
    fault.wait_fired()
    draining.wait_text("draining: this worker takes no more messages")

    began_s = time.monotonic()
    stage.start()
    took_s = time.monotonic() - began_s

    check_runs_elsewhere_soon(stage, draining, numbers, began_s, took_s + SOON_S)
    assert set(stage.run_counts().values()) == {1}


def control(stage: Stage, command: str, node: str) -> None:
    """Run a control command, as an operator would."""
    arguments = [
        sys.executable,
        "-m",
        "greenq",
        "control",
        "-b",
        stage.server.url,
        "-d",
        node,
        command,
    ]
    subprocess.run(arguments, check=True, capture_output=True, env=os.environ)


def test_a_queue_that_is_paused_and_resumed_within_one_renewal_is_taken_from_again(
    stage: Stage,
) -> None:
    # Given a worker that renews its lease every four seconds.
    stage.start("-n", "one@here", settings={"worker_lease": 10.0})
    stage.post("nap")
    stage.check_all_done()

    stage.app.control.broadcast("pause", {"queue": "celery"}, "one@here", reply=True, limit=1)
    stage.app.control.resume("celery")

    stage.post("nap", count=COUNT)
    stage.check_all_done(10)


# --- sending --------------------------------------------------------------------------------------


def test_a_send_whose_answer_is_lost_is_not_doubled_when_the_message_was_given_back(
    stage: Stage,
) -> None:
    # Given a push that was carried out, and whose message a worker took and gave back meanwhile.
    worker = stage.start()

    def take_and_give_back() -> None:
        stage.wait_running(worker, 1)
        for _ in range(2):
            worker.send_signal(signal.SIGTERM)
            time.sleep(0.3)
        worker.wait_exit()

    fault = Fault(named("LPUSH"), When.EXECUTED, strike=take_and_give_back)
    stage.proxy.plan(fault)
    app = Greenq("client", broker=stage.proxy.url, set_as_current=False)
    try:
        app.send_task("recovery.hold", (0,), task_id="task-0")
    finally:
        app.close()
    stage.ids.append("task-0")

    assert fault.fired.is_set()
    assert stage.queued() + stage.reserved() == Counter(stage.ids)
