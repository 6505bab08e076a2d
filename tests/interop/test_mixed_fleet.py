"""Celery and greenq workers on one queue."""

from __future__ import annotations

import pytest

from tests.interop.conftest import celery_client, greenq_client
from tests.servers import Server, celery_worker, greenq_worker
from tests.support import wait_until

pytestmark = pytest.mark.interop

TASKS = 200


def test_a_celery_and_a_greenq_worker_share_a_queue(server: Server) -> None:
    # Given one worker of each kind, small enough that neither can take all
    with (
        celery_worker(server.url, "--prefetch-multiplier", "1", concurrency=5) as theirs,
        greenq_worker(server.url, "-c", "5") as ours,
        celery_client(server.url) as celery,
        greenq_client(server.url) as greenq,
    ):
        # When clients of both kinds send
        results = [
            (greenq if number % 2 else celery).send_task("shared.sleep", (0.03, number))
            for number in range(TASKS)
        ]
        # Then all results are right, and each worker did some
        assert [result.get(timeout=30) for result in results] == list(range(TASKS))
        server.wait_settled()

        def done() -> list[int]:
            return [worker.text.count("succeeded in") for worker in (theirs, ours)]

        # The log follows the result.
        wait_until(lambda: sum(done()) >= TASKS)
        assert sum(done()) == TASKS
        assert min(done()) >= TASKS // 20


def test_a_celery_worker_with_gevent_runs_what_greenq_sends(server: Server) -> None:
    with (
        celery_worker(server.url, pool="gevent", concurrency=50),
        greenq_client(server.url) as greenq,
    ):
        results = [greenq.send_task("shared.sleep", (0.2, number)) for number in range(50)]
        assert [result.get(timeout=30) for result in results] == list(range(50))
