"""A worker uses few connections, little traffic when idle, and comes back after losing all."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
import redis

from greenq import Greenq
from tests.servers import Process, Server, greenq_worker, valkey
from tests.support import wait_until

WAIT_S = 20
MOST_CONNECTIONS = 6


@pytest.fixture
def client(server: Server) -> Iterator[Greenq]:
    app = Greenq("client", broker=server.url, set_as_current=False)
    yield app
    app.close()


def connections(server: Server) -> list[dict[str, str]]:
    """Return the server's list of clients, without the one that asks."""
    own = server.client.client_id()
    return [each for each in server.client.client_list() if each["id"] != str(own)]


def wait_received(worker: Process, count: int) -> None:
    wait_until(lambda: worker.text.count("] received") >= count, 10)


def commands_sent(server: Server, seconds: float) -> list[str]:
    """Return what clients send in so many seconds; what scripts do inside the server is not."""
    sent = []
    with redis.Redis.from_url(server.url, socket_timeout=5).monitor() as monitor:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            seen = monitor.next_command()
            if seen["client_type"] != "lua":
                sent.append(seen["command"])
    return sent


def test_connections_do_not_grow_with_concurrency_or_load(server: Server, client: Greenq) -> None:
    seen = {}
    before = {each["id"] for each in connections(server)}
    for concurrency in (10, 1000):
        with greenq_worker(server.url, "-c", str(concurrency)) as worker:
            # Given 500 tasks in flight
            sent = [client.send_task("shared.sleep", (0.5, number)) for number in range(500)]
            wait_received(worker, min(concurrency, 500))

            def ours() -> int:
                found = connections(server)
                mine = [each for each in found if each["laddr"].endswith(f":{server.port}")]
                return len({each["id"] for each in mine} - before)

            # The sender's own connections are counted, too
            # A connection that is opened for a moment, to look after a dead worker, is not.
            counts = []
            for _ in range(40):
                counts.append(ours() - own_connections(client))
                time.sleep(0.05)
            seen[concurrency] = min(counts)
            if concurrency == 1000:
                assert [result.get(timeout=WAIT_S) for result in sent] == list(range(500))
            worker.send_signal(signal.SIGQUIT)
            worker.wait_exit()
        server.flush()
    # Two of its greenlets may have asked at the same time once, over a connection each.
    assert abs(seen[1000] - seen[10]) <= 1
    assert max(seen.values()) <= MOST_CONNECTIONS


def own_connections(client: Greenq) -> int:
    """Count what the client's pool holds: one thread needs one."""
    transport = client.transport
    return sum(link is not None and link.connected for link in transport.client._idle.queue)


def test_an_idle_worker_hardly_asks(server: Server) -> None:
    with greenq_worker(server.url):
        # At first, it listens for others, and asks who is there.
        wait_until(lambda: server.client.pubsub_channels("/0.celeryev/*"))
        wait_until(lambda: not server.client.pubsub_channels("/0.celeryev/*.heartbeat"), 30)
        # A lease each 1.2 s and a heartbeat each 2 s, and what was under way at the start.
        sent = commands_sent(server, 4)
        assert len(sent) <= 10, sent


def test_waiting_threads_share_one_connection(server: Server, client: Greenq) -> None:
    with greenq_worker(server.url):
        results = [client.send_task("shared.sleep", (1.5, number)) for number in range(200)]
        got: dict[int, int] = {}

        def wait(number: int) -> None:
            got[number] = results[number].get(timeout=WAIT_S)

        threads = [threading.Thread(target=wait, args=(number,)) for number in range(200)]
        for thread in threads:
            thread.start()
        channels = "celery-task-meta-*"
        wait_until(lambda: len(server.client.pubsub_channels(channels)) == 200, 10)
        # Workers hear what they are asked, over pushes among answers; they are not meant.
        subscribed = [
            each for each in connections(server) if int(each["sub"]) > 0 and each["resp"] == "2"
        ]
        assert [int(each["sub"]) for each in subscribed] == [200]
        for thread in threads:
            thread.join(WAIT_S)
        assert got == {number: number for number in range(200)}


def kill_all_connections(server: Server) -> None:
    for each in connections(server):
        # One may have gone by itself meanwhile.
        with suppress(redis.ResponseError):
            server.client.client_kill_filter(_id=each["id"])


def start_sleepers(client: Greenq, worker: Process) -> list[object]:
    """Start tasks that will end after whatever happens to the connections."""
    sent = [client.send_task("shared.sleep", (1.0, number)) for number in range(20)]
    wait_received(worker, 20)
    return list(sent)


def test_a_worker_outlives_the_loss_of_all_connections(server: Server, client: Greenq) -> None:
    with greenq_worker(server.url) as worker:
        sent = start_sleepers(client, worker)
        for _ in range(3):
            kill_all_connections(server)
        assert [result.get(timeout=WAIT_S) for result in sent] == list(range(20))
        assert client.send_task("shared.add", (1, 2)).get(timeout=WAIT_S) == 3
        server.wait_settled()
        # Nothing ran twice
        wait_until(lambda: worker.text.count("succeeded in") >= 21)
        assert worker.text.count("succeeded in") == 21
        assert "Traceback" not in worker.text


def test_a_worker_and_those_who_wait_outlive_a_restart_of_the_server() -> None:
    with valkey() as server, greenq_worker(server.url) as worker:
        client = Greenq("client", broker=server.url, set_as_current=False)
        sent = start_sleepers(client, worker)
        got: list[object] = []
        waiting = threading.Thread(
            target=lambda: got.extend(each.get(timeout=WAIT_S) for each in sent)
        )
        waiting.start()
        channels = "celery-task-meta-*"
        wait_until(lambda: bool(server.client.pubsub_channels(channels)))
        # When the server goes away, and comes back when the tasks have ended
        server.stop()
        wait_until(lambda: worker.text.count("succeeded in") >= 20)
        server.start()
        # Then their results arrive, and work goes on
        waiting.join(WAIT_S)
        assert got == list(range(20))
        assert client.send_task("shared.add", (1, 2)).get(timeout=WAIT_S) == 3
        server.wait_settled()
        assert "Traceback" not in worker.text
        client.close()
