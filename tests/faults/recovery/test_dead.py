"""Promise: what a dead worker held runs elsewhere within seconds, however much it is."""

from __future__ import annotations

import signal
import time

import pytest

from tests.faults.recovery.stage import NAMESPACE, Stage, has_namespaces, kill_9, signal_family
from tests.support import FairTime, wait_until

pytestmark = pytest.mark.faults

COUNT = 20
MB = 1 << 20


def test_sixty_running_tasks_of_a_megabyte_begin_elsewhere_within_five_seconds(
    stage: Stage,
) -> None:
    # More than the server sends at once to a subscribed connection.
    dead = stage.start("-c", "60")
    numbers = stage.post("hold", "x" * MB, count=60)
    stage.wait_running(dead, 60)
    stage.start("-c", "60")
    stage.wait_trusted()

    killed_s = kill_9(dead)

    stage.check_begun_elsewhere(numbers, dead, killed_s, 5.0)
    stage.check_no_lease_was_in_danger()
    stage.open_gate()
    stage.check_all_done()


@pytest.mark.slow
@pytest.mark.heavy
def test_forty_thousand_reserved_messages_are_back_within_five_seconds(stage: Stage) -> None:
    dead = stage.start("-c", "1000", "--prefetch-multiplier", "40")
    stage.post_many("hold", "x" * 1000, count=40_000)
    client = stage.server.client
    wait_until(lambda: client.hlen("unacked") == 40_000, 60)
    for _ in range(2):
        stage.start("-c", "10")
    stage.wait_trusted()

    kill_9(dead)
    killed = FairTime()

    # What the two may hold of it themselves.
    wait_until(lambda: client.hlen("unacked") <= 20, 30)
    took_s = killed.passed_s()
    stage.check_no_lease_was_in_danger()
    assert took_s < 5
    wait_until(
        lambda: client.llen("celery") + client.llen("greenq.inbox.celery")
        + client.hlen("unacked") == 40_000, 5,
    )  # fmt: skip
    # And they work on, with their leases.
    wait_until(lambda: client.zcard("greenq.leases") == 2, 5)


@pytest.mark.slow
@pytest.mark.heavy
def test_three_hundred_messages_of_five_megabytes_run_within_a_minute(own_stage: Stage) -> None:
    stage = own_stage
    # This test is about memory and connections, not about the disk.
    stage.server.client.config_set("appendonly", "no")
    stage.post("nap", 0.0, "x" * (5 * MB), count=300)
    began_s = time.monotonic()
    for _ in range(2):
        stage.start("-c", "500", wait=False)

    def is_done() -> bool:
        # Do not query a server that can hardly answer.
        return len(stage.ended()) == 300 and set(stage.states()) == {"SUCCESS"}

    try:
        wait_until(is_done, 60 - (time.monotonic() - began_s))
    except BaseException:
        process = stage.server._process
        assert process is not None
        # It may be too busy to stop in time.
        process.kill()
        raise AssertionError(f"{len(stage.ended())} of 300 have run") from None
    assert set(stage.run_counts().values()) == {1}
    timeouts = [line for worker in stage.workers for line in worker.text.splitlines()
                if "the server cannot be reached" in line or "imeout" in line]  # fmt: skip
    assert not timeouts
    stage.check_no_lease_was_in_danger()


@pytest.mark.parametrize(
    "survivor",
    [
        pytest.param({}, id="that sees its process"),
        pytest.param(
            {"prefix": NAMESPACE},
            marks=pytest.mark.skipif(not has_namespaces(), reason="no process namespaces here"),
            id="with process numbers of its own",
        ),
        pytest.param({"elsewhere": True}, id="on another host"),
    ],
)
def test_tasks_of_a_killed_worker_run_again_within_two_seconds_on_a_survivor(
    stage: Stage, survivor: dict[str, object]
) -> None:
    dead = stage.start("-c", str(COUNT))
    numbers = stage.post("hold", count=COUNT)
    stage.wait_running(dead, COUNT)
    stage.start("-c", str(COUNT), **survivor)  # type: ignore[arg-type]
    stage.wait_trusted()

    killed_s = kill_9(dead)

    stage.check_begun_elsewhere(numbers, dead, killed_s, 2.0)
    stage.open_gate()
    stage.check_all_done()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_tasks_of_a_host_that_vanishes_run_elsewhere_within_twenty_seconds(
    stage: Stage, number: signal.Signals
) -> None:
    lost = stage.start("-c", str(COUNT), direct=False, elsewhere=True)
    numbers = stage.post("hold", count=COUNT)
    stage.wait_running(lost, COUNT)
    stage.start("-c", str(2 * COUNT))
    stage.wait_trusted()

    # The server's end of its connections stays open and silent.
    stage.line.hold()
    signal_family(lost, number)
    lost_s = time.monotonic()

    stage.check_begun_elsewhere(numbers, lost, lost_s, 20.0)
    stage.open_gate()
    stage.check_all_done()
    assert not stage.server.dead_letters()


def test_a_message_handed_to_an_idle_host_that_vanished_runs_elsewhere_within_twenty_seconds(
    stage: Stage,
) -> None:
    lost = stage.start("-c", str(COUNT), direct=False, elsewhere=True)
    stage.post("nap")
    stage.check_all_done()
    stage.start("-c", str(COUNT))
    stage.wait_trusted()

    stage.line.hold()
    signal_family(lost, signal.SIGKILL)
    # The server serves the client that has waited longest.
    numbers = stage.post("nap")
    sent_s = time.monotonic()

    stage.check_begun_elsewhere(numbers, lost, sent_s - 1, 20.0)
    stage.check_all_done()
    assert set(stage.run_counts().values()) == {1}
