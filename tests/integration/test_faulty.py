"""A task that harms the worker: others end all the same, and a worker without a part of it ends."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from greenq import Greenq
from tests.servers import Server, greenq_worker
from tests.support import wait_until

WAIT_S = 10.0


@pytest.fixture
def client(server: Server) -> Iterator[Greenq]:
    app = Greenq("client", broker=server.url, set_as_current=False)
    yield app
    app.close()


CLOSES = ("close_stderr", "close_original", "close_descriptor")


@pytest.mark.parametrize("task", [*CLOSES, "close_log", "break_log"])
def test_log_that_a_task_has_broken_stops_neither_tasks_nor_the_worker(
    server: Server, client: Greenq, task: str
) -> None:
    with greenq_worker(server.url, "-c", "2", app="faulty_app") as worker:
        client.send_task(f"faulty_app.{task}").get(timeout=WAIT_S)
        sums = [client.send_task("faulty_app.add", (1, place)) for place in range(5)]
        assert [result.get(timeout=WAIT_S) for result in sums] == [1, 2, 3, 4, 5]
        with pytest.raises(ValueError, match="as it does"):
            client.send_task("faulty_app.fail").get(timeout=WAIT_S)
        client.send_task("faulty_app.say", ("printed",)).get(timeout=WAIT_S)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait_exit() == 0
        # What was logged since is not lost.
        assert "warm shutdown" in worker.text
        assert "]: printed" in worker.text
        # The log has a descriptor of its own, so closing standard error does not break it.
        assert ("in a handler of the log]" in worker.text) == (task not in CLOSES)
        assert "--- Logging error ---" not in worker.text


@pytest.mark.parametrize(
    ("name", "kill"),
    [("outbox", False), ("outbox", True), ("timer", False), ("timer", True), ("consumer", True)],
)
def test_worker_that_has_lost_a_part_of_itself_ends(
    server: Server, client: Greenq, name: str, kill: bool
) -> None:
    with greenq_worker(server.url, "-c", "2", app="faulty_app") as worker:
        client.send_task("faulty_app.add", (1, 1)).get(timeout=WAIT_S)
        client.send_task("faulty_app.end_greenlet", (name,), {"kill": kill})
        assert worker.wait_exit() == 1
        assert "the worker ends:" in worker.text
        assert f"its greenlet {name} has ended: " in worker.text
        assert ("GreenletExit" if kill else "RuntimeError: poison") in worker.text
        wait_until(lambda: not server.client.zrange("greenq.leases", 0, -1), WAIT_S)
