"""The walk through the keys that this system was described by, step for step."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import pytest

from greenq import Greenq
from tests.servers import Server, greenq_worker
from tests.support import wait_until

RESULT = "celery-task-meta-"


@pytest.fixture
def client(server: Server) -> Iterator[Greenq]:
    app = Greenq("client", broker=server.url, set_as_current=False)
    yield app
    app.close()


def test_a_message_waits_in_the_queue_and_leaves_one_result(server: Server, client: Greenq) -> None:
    # Given no worker, a sent task is an element of the list named as the queue
    results = [client.send_task("shared.add", (2, number)) for number in range(3)]
    ids = [result.id for result in results]
    assert server.client.type("celery") == b"list"
    assert server.queued_ids() == ids
    assert not server.client.exists("unacked", "unacked_index")
    # When a worker runs
    with greenq_worker(server.url):
        server.wait_settled()
        # Then the queue is gone, and each result is one string with an expiry
        assert not server.client.exists("celery")
        assert [result.get(timeout=10) for result in results] == [2, 3, 4]
        stored = {key.decode() for key in server.client.keys(f"{RESULT}*")}
        assert stored == {RESULT + task_id for task_id in ids}
        for key in stored:
            assert server.client.type(key) == b"string"
            assert 86_300 < server.client.ttl(key) <= 86_400
            assert json.loads(server.client.get(key))["status"] == "SUCCESS"


def test_a_delayed_task_is_held_as_unacknowledged_until_its_time(
    server: Server, client: Greenq
) -> None:
    with greenq_worker(server.url):
        result = client.send_task("shared.add", (2, 8), countdown=1)
        wait_until(lambda: server.client.exists("unacked", "unacked_index") == 2)
        assert not server.client.exists("celery")
        assert result.get(timeout=10) == 10
        wait_until(lambda: not server.client.exists("unacked", "unacked_index"))


def test_a_delayed_task_returns_to_its_queue_when_the_worker_is_interrupted(
    server: Server, client: Greenq
) -> None:
    # Given two delayed tasks in a worker
    with greenq_worker(server.url) as worker:
        sent = [client.send_task("shared.add", (2, 8), countdown=60) for _ in range(2)]
        wait_until(lambda: len(server.unacked()) == 2)
        assert server.client.type("unacked") == b"hash"
        assert server.client.type("unacked_index") == b"zset"
        assert not server.client.exists("celery")
        held = [json.loads(value) for value in server.unacked().values()]
        assert {entry[0]["headers"]["id"] for entry in held} == {result.id for result in sent}
        assert [entry[1:] for entry in held] == [["", "celery"]] * 2
        # When it is interrupted
        worker.send_signal(signal.SIGTERM)
        assert worker.wait_exit() == 0
        # Then they are back, in their order, and marked as delivered before
        assert server.queued_ids() == [result.id for result in sent]
        assert all(json.loads(raw)["headers"]["redelivered"] is True for raw in server.queued())
        assert not server.client.exists("unacked", "unacked_index")
    # And when one starts again, it takes them again
    with greenq_worker(server.url):
        wait_until(lambda: len(server.unacked()) == 2)
        assert not server.client.exists("celery")
        assert [result.state for result in sent] == ["PENDING"] * 2
