"""A worker can always be ended, however its hub is blocked, and it never goes quiet about that."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from greenq import Greenq
from tests.servers import Process, Server, greenq_worker, spawn_greenq
from tests.support import wait_until

WAIT_S = 15

# From the second signal to the end of the process.
END_S = 3.0

# From then on, until its messages run elsewhere.
ELSEWHERE_S = 2.0


@pytest.fixture
def client(server: Server) -> Iterator[Greenq]:
    app = Greenq("client", broker=server.url, set_as_current=False)
    yield app
    app.close()


def stuck(server: Server, client: Greenq, worker: Process, name: str) -> str:
    """Have the worker run two tasks that wait and one that blocks; return that one's name."""
    for place in range(2):
        client.send_task("stuck_app.wait", (0.2,), task_id=f"waits-{place}")
    task_id = client.send_task(f"stuck_app.{name}").id
    worker.wait_text("the hub has been blocked", WAIT_S)
    return f"stuck_app.{name}[{task_id}]"


@pytest.mark.parametrize("name", ["block", "block_in_a_call"])
@pytest.mark.parametrize("numbers", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT,) * 2])
def test_second_signal_ends_a_blocked_worker_and_its_messages_run_elsewhere(
    server: Server, client: Greenq, name: str, numbers: tuple[signal.Signals, ...]
) -> None:
    with greenq_worker(server.url, "-n", "a@h", "-Q", "celery", app="stuck_app") as worker:
        task = stuck(server, client, worker, name)
        # What runs beside it, and what has just begun.
        held = len(server.unacked())
        assert held >= 1

        worker.send_signal(numbers[0])
        worker.wait_text("asked to stop, but the hub has been blocked", WAIT_S)
        assert f"by {task} at " in worker.text.partition("asked to stop")[2]
        assert worker.alive

        began_s = time.monotonic()
        worker.send_signal(numbers[1])
        assert worker.wait_exit(END_S) == 1
        assert time.monotonic() - began_s < END_S
        # It said why, and the server holds nothing of it: nobody has to wait for a lease to end.
        assert "the worker ends now, and its messages are back" in worker.text
        assert server.unacked() == {}
        assert len(server.queued_ids()) == held
        assert server.client.zcard("greenq.leases") == 0


def test_quit_ends_a_blocked_worker_and_another_one_runs_what_it_had(
    server: Server, client: Greenq
) -> None:
    with greenq_worker(server.url, "-n", "a@h", app="stuck_app") as worker:
        first = client.send_task("stuck_app.wait", (1.0,))
        stuck(server, client, worker, "block_in_a_call")
        with greenq_worker(server.url, "-n", "b@h", app="stuck_app") as other:
            worker.send_signal(signal.SIGQUIT)
            assert worker.wait_exit(END_S) == 1
            other.wait_text(f"[{first.id}] received", ELSEWHERE_S)
            other.kill()


def test_stacks_are_logged_while_the_hub_is_blocked(server: Server, client: Greenq) -> None:
    with greenq_worker(server.url, app="stuck_app") as worker:
        waiting = client.send_task("stuck_app.wait")
        worker.wait_text(f"[{waiting.id}] received")
        client.send_task("stuck_app.block", (4,))
        worker.wait_text("the hub has been blocked", WAIT_S)
        worker.send_signal(signal.SIGUSR1)
        worker.wait_text(f"greenlet stuck_app.wait[{waiting.id}]", 2.5)
        worker.wait_text("the hub runs again", WAIT_S)
        # Once, not again when the hub moves.
        client.send_task("stuck_app.add", (1, 2)).get(timeout=WAIT_S)
        assert worker.text.count("stacks of ") == 1
        worker.send_signal(signal.SIGQUIT)


def test_hub_that_is_blocked_for_too_long_ends_the_worker(server: Server, client: Greenq) -> None:
    settings = {"worker_hub_blocked_limit": 2.0, "worker_hub_lag_warning": 0.5}
    with (
        greenq_worker(server.url, "-n", "a@h", app="stuck_app", settings=settings) as worker,
        greenq_worker(server.url, "-n", "b@h", "-Q", "other", app="stuck_app") as other,
    ):
        waiting = client.send_task("stuck_app.wait")
        worker.wait_text(f"[{waiting.id}] received")
        blocked = client.send_task("stuck_app.block")
        assert worker.wait_exit(WAIT_S) == 1
        told = worker.text.partition("longer than worker_hub_blocked_limit (2 s)")
        assert f"by stuck_app.block[{blocked.id}] at " in told[0]
        assert f"stuck_app.wait[{waiting.id}]" in told[2]
        # The other one gives its messages back; that they were begun is counted.
        other.wait_text("worker a@h died: 2 messages are back", 5)


def test_a_stop_that_comes_during_a_short_block_is_warm(server: Server, client: Greenq) -> None:
    with greenq_worker(server.url, app="stuck_app") as worker:
        result = client.send_task("stuck_app.block", (2.5,))
        worker.wait_text("the hub has been blocked", WAIT_S)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait_exit(WAIT_S) == 0
        assert result.get(timeout=1) == "done"


# --- processes of tasks ---------------------------------------------------------------------------


def test_multiprocessing_spawns_and_what_would_fork_or_hang_is_refused(
    server: Server, client: Greenq
) -> None:
    with greenq_worker(server.url, app="stuck_app") as worker:
        assert client.send_task("stuck_app.spawned", (7,)).get(timeout=WAIT_S) == 49
        with pytest.raises(RuntimeError, match="cannot fork in a greenq worker"):
            client.send_task("stuck_app.forked").get(timeout=WAIT_S)
        with pytest.raises(RuntimeError, match="Pool cannot be used in a greenq worker"):
            client.send_task("stuck_app.pooled").get(timeout=WAIT_S)
        assert client.send_task("stuck_app.executed").get(timeout=WAIT_S) == [1, 4, 9]
        assert worker.alive


def test_forked_child_takes_nothing_and_ends_with_its_task(server: Server, client: Greenq) -> None:
    with greenq_worker(server.url, "-c", "50", app="stuck_app") as worker:
        results = [client.send_task("stuck_app.fork_and_return", (0.5,)) for _ in range(5)]
        waiting = [client.send_task("stuck_app.wait", (0.1,)) for _ in range(200)]
        # All ran in the worker itself, each once.
        pids = {result.get(timeout=WAIT_S) for result in [*results, *waiting]}
        assert pids == {worker.pid}
        wait_until(lambda: worker.text.count("was forked in the task") == 5, WAIT_S)
        assert server.client.llen("notes") == 5
        for result in waiting:
            assert worker.text.count(f"[{result.id}] received") == 1
        # A signal to a child is not one to the worker, and the worker still hears its own.
        assert worker.alive
        worker.send_signal(signal.SIGTERM)
        assert worker.wait_exit(WAIT_S) == 0


# --- the log --------------------------------------------------------------------------------------


@contextmanager
def logging_to(server: Server, log: Path) -> Iterator[Process]:
    """Run a worker that logs to a file, whose banner and errors go elsewhere."""
    worker = spawn_greenq(server.url, log.with_name("out"), "-f", str(log), app="stuck_app")
    try:
        wait_until(lambda: log.exists() and "Connected to" in log.read_text(), WAIT_S)
        yield worker
    finally:
        worker.stop()


def test_log_file_is_reopened_after_its_rotation(
    server: Server, client: Greenq, tmp_path: Path
) -> None:
    log = tmp_path / "w.log"
    with logging_to(server, log) as worker:
        log.rename(tmp_path / "w.log.1")
        client.send_task("stuck_app.say", ("after the rotation",)).get(timeout=WAIT_S)
        assert "after the rotation" in log.read_text()

        # A folder that is gone costs lines, nothing else.
        tmp_path.rename(tmp_path.with_name("moved"))
        assert client.send_task("stuck_app.add", (1, 2)).get(timeout=WAIT_S) == 3
        tmp_path.with_name("moved").rename(tmp_path)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait_exit(WAIT_S) == 0
