"""One broadcast queue of Celery and greenq: each worker of either hears each sender of either."""

from __future__ import annotations

from collections import Counter

import pytest
from kombu.common import Broadcast as CeleryBroadcast

from greenq.sending.routing import Broadcast
from tests.interop.conftest import celery_client, greenq_client
from tests.servers import Server, celery_worker, greenq_worker
from tests.support import wait_until

pytestmark = pytest.mark.interop

NODES = ("ours1@host", "ours2@host", "theirs@host")


def heard(server: Server) -> Counter[str]:
    return Counter(line.decode() for line in server.client.lrange("heard", 0, -1))


def test_every_worker_runs_what_either_sends_to_a_broadcast_queue(server: Server) -> None:
    with (
        greenq_worker(server.url, "-n", NODES[0], app="broadcast_greenq"),
        greenq_worker(server.url, "-n", NODES[1], app="broadcast_greenq"),
        celery_worker(server.url, "-n", NODES[2], app="broadcast_celery"),
        greenq_client(server.url, task_queues=["celery", Broadcast("all")]) as greenq,
        celery_client(server.url) as celery,
    ):
        # Who does not listen yet hears nothing, and nobody keeps it for him.
        wait_until(lambda: server.client.pubsub_numsub("/0.all/celery")[0][1] == 2)
        wait_until(lambda: server.client.pubsub_numpat() > 0)

        # A Celery sender has to know that the exchange is one for all.
        exchange = CeleryBroadcast("all").exchange
        senders = (
            lambda: greenq.send_task("broadcast.note", (1,), queue="all"),
            lambda: celery.send_task(
                "broadcast.note",
                (2,),
                exchange="all",
                routing_key="celery",
                declare=[exchange],
            ),
        )
        for number, send in enumerate(senders, 1):
            assert send().get(timeout=10) == number
        expected = Counter(f"{node} {number}" for node in NODES for number in (1, 2))
        wait_until(lambda: heard(server) == expected)

        # And what is not for all runs once.
        assert greenq.send_task("broadcast.note", (3,)).get(timeout=10) == 3
        once = heard(server) - expected
        assert sum(once.values()) == 1
        server.wait_settled()
    assert not server.client.exists("all")
