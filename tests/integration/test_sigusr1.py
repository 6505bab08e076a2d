"""SIGUSR1 makes a worker log what everything in it does; it works on."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from greenq import Greenq
from tests.servers import Server, greenq_worker
from tests.support import wait_until

WAIT_S = 15


@pytest.fixture
def app(server: Server) -> Iterator[Greenq]:
    client = Greenq("client", broker=server.url, set_as_current=False)
    yield client
    client.close()


def test_sigusr1_logs_all_greenlets_and_threads_and_the_worker_works_on(
    server: Server, app: Greenq
) -> None:
    with greenq_worker(server.url, "-c", "3") as worker:
        # Given tasks that wait, and one that has ended.
        first = app.send_task("shared.add", (1, 2))
        assert first.get(timeout=WAIT_S) == 3
        waiting = [app.send_task("shared.sleep", (3600, "secret")) for _ in range(3)]
        for result in waiting:
            worker.wait_text(f"shared.sleep[{result.id}] received")

        worker.send_signal(signal.SIGUSR1)
        worker.wait_text("--- thread ")
        worker.wait_text("greenq watch")

        # Then each is named, the stack tells where they wait, and no argument is told.
        _, _, told = worker.text.partition("stacks of ")
        names = sorted(f"shared.sleep[{result.id}]" for result in waiting)
        assert f"--- 3 greenlets: {', '.join(names)}\n" in told
        assert "time.sleep(seconds)" in told
        assert "--- greenlet consumer\n" in told
        assert first.id not in told
        assert "secret" not in told
        assert worker.text.count("stacks of ") == 1
        # It can be asked again, and stops as ever.
        worker.send_signal(signal.SIGUSR1)
        wait_until(lambda: worker.text.count("stacks of ") == 2, WAIT_S)
        assert "Traceback" not in worker.text
        worker.send_signal(signal.SIGQUIT)
        worker.wait_exit()


def test_greenlet_that_goes_on_with_a_waiting_request_has_its_name(
    server: Server, app: Greenq
) -> None:
    settings = {"worker_prefetch_multiplier": 4}
    with greenq_worker(server.url, "-c", "1", settings=settings) as worker:
        short = app.send_task("shared.sleep", (0.2,))
        long = app.send_task("shared.sleep", (3600,))
        short.get(timeout=WAIT_S)

        worker.send_signal(signal.SIGUSR1)
        worker.wait_text(f"--- greenlet shared.sleep[{long.id}]\n")

        worker.send_signal(signal.SIGQUIT)
        worker.wait_exit()
