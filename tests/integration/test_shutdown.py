"""What becomes of tasks when a worker is told to stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from greenq import Greenq
from tests.servers import Process, Server, greenq_worker
from tests.support import wait_until

WARM = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture
def client(server: Server) -> Iterator[Greenq]:
    app = Greenq("client", broker=server.url, set_as_current=False)
    yield app
    app.close()


def running(worker: Process, count: int) -> None:
    """Wait until `count` tasks have been received."""
    wait_until(lambda: worker.text.count("] received") >= count, 10)


@pytest.mark.parametrize("number", WARM)
def test_a_warm_stop_finishes_what_runs_and_returns_the_rest_in_order(
    server: Server, client: Greenq, number: signal.Signals
) -> None:
    # Given two slots, two running tasks, two in reserve, six in the queue
    with greenq_worker(server.url, "-c", "2", settings={"worker_prefetch_multiplier": 2}) as worker:
        sent = [client.send_task("shared.sleep", (1.0, place)) for place in range(10)]
        running(worker, 4)
        # When the worker is told to stop
        worker.send_signal(number)
        assert worker.wait_exit() == 0
        # Then the first two are done
        assert [result.get(timeout=1) for result in sent[:2]] == [0, 1]
        assert all(result.state == "PENDING" for result in sent[2:])
        # And the others wait, in their order, nothing reserved
        assert server.queued_ids() == [result.id for result in sent[2:]]
        assert server.unacked() == {}
        assert not server.client.exists("greenq.inbox.celery")


@pytest.mark.parametrize(
    "signals", [[signal.SIGTERM] * 2, [signal.SIGINT] * 2, [signal.SIGQUIT]], ids=str
)
def test_a_cold_stop_returns_what_runs(
    server: Server, client: Greenq, signals: list[signal.Signals]
) -> None:
    # Given running tasks that would take long
    with greenq_worker(server.url, "-c", "3") as worker:
        sent = [client.send_task("shared.sleep", (60, place)) for place in range(5)]
        running(worker, 3)
        # When the worker is told to stop at once
        for number in signals:
            worker.send_signal(number)
            wait_until(lambda: "shutdown" in worker.text)
        assert worker.wait_exit(8) == 1
        # Then all tasks are on the queue again, in their order
        assert server.queued_ids() == [result.id for result in sent]
        assert server.unacked() == {}
        assert all(result.state == "PENDING" for result in sent)


def test_tasks_that_outlast_the_grace_time_are_returned(server: Server, client: Greenq) -> None:
    with greenq_worker(server.url, settings={"worker_shutdown_grace": 0.5}) as worker:
        sent = [client.send_task("shared.sleep", (60,)), client.send_task("shared.sleep", (0.3, 7))]
        running(worker, 2)
        worker.send_signal(signal.SIGTERM)
        worker.wait_exit(8)
        assert sent[1].get(timeout=1) == 7
        assert server.queued_ids() == [sent[0].id]
        assert server.unacked() == {}


def test_an_idle_worker_stops_at_once(server: Server) -> None:
    with greenq_worker(server.url) as worker:
        worker.send_signal(signal.SIGTERM)
        assert worker.wait_exit(3) == 0
        assert "ERROR" not in worker.text
        assert "CRITICAL" not in worker.text
