"""Workers that end at a limit: one at a time, and no task is lost or runs twice."""

from __future__ import annotations

import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from greenq import Greenq
from greenq.protocol.keys import Keys
from greenq.transport.client import Client
from greenq.transport.members import Recycling, count_peers
from greenq.worker_parts.options import EXIT_RECYCLED
from tests.servers import Process, Server, greenq_worker, spawn_greenq
from tests.support import wait_until

WAIT_S = 60


@pytest.fixture
def client(server: Server) -> Iterator[Greenq]:
    app = Greenq("client", broker=server.url, set_as_current=False)
    yield app
    app.close()


def ran(server: Server) -> Counter[str]:
    """Count how often each task of the ledger has begun."""
    return Counter(line.decode().split()[0] for line in server.client.lrange("ledger", 0, -1))


class Fleet:
    """Some workers, each started again whenever it exits as it does at a limit."""

    def __init__(self, server: Server, folder: Path, size: int, *options: str, **settings: Any):
        self.server, self.folder, self.options, self.settings = server, folder, options, settings
        self.starts = 0
        self.codes: list[int] = []
        self.fewest = size
        self.client = Client(server.url)
        self.workers = [self._spawn(number) for number in range(size)]
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._supervise)

    def _spawn(self, number: int) -> Process:
        self.starts += 1
        log = self.folder / f"{number}.log"
        name = f"w{number}@host"
        return spawn_greenq(
            self.server.url, log, "-n", name, *self.options,
            app="ledger_app", settings=self.settings,
        )  # fmt: skip

    def peers(self) -> int:
        return count_peers(self.client, Keys(), ["celery"])

    def watch(self) -> None:
        """Begin to start ended workers again, and to note how few take messages."""
        wait_until(lambda: self.peers() == len(self.workers), WAIT_S)
        self._thread.start()

    def _supervise(self) -> None:
        while not self._ends.wait(0.02):
            self.fewest = min(self.fewest, self.peers())
            for number, worker in enumerate(self.workers):
                if not worker.alive:
                    self.codes.append(worker.popen.returncode)
                    self.workers[number] = self._spawn(number)

    def stop(self) -> None:
        self._ends.set()
        if self._thread.ident is not None:
            self._thread.join()
        for worker in self.workers:
            worker.stop()
        self.client.close()


@contextmanager
def fleet(server: Server, size: int, *options: str, **settings: Any) -> Iterator[Fleet]:
    with tempfile.TemporaryDirectory(prefix="greenq-test-") as folder:
        made = Fleet(server, Path(folder), size, *options, **settings)
        try:
            yield made
        finally:
            made.stop()


def test_workers_end_one_at_a_time_and_nothing_is_lost_or_runs_twice(
    server: Server, client: Greenq
) -> None:
    settings = {
        "worker_max_tasks_per_child": 50,
        "worker_recycle_jitter": 0.5,
        "worker_recycle_at_once": 1,
    }
    with fleet(server, 3, "-c", "10", **settings) as workers:
        workers.watch()
        sent = 0
        # Until each has ended once, at least; meanwhile there is always work.
        deadline_s = time.monotonic() + WAIT_S
        while len(workers.codes) < 4:
            assert time.monotonic() < deadline_s, workers.codes
            for _ in range(20):
                client.send_task("ledger.nap", (f"t{sent}", 0.15))
                sent += 1
            wait_until(lambda: server.client.llen("celery") < 40, WAIT_S)
        server.wait_settled(WAIT_S)
        assert ran(server) == {f"t{number}": 1 for number in range(sent)}
        assert set(workers.codes) == {EXIT_RECYCLED}
        # Two of three remained, whatever happened.
        assert workers.fewest >= 2


def test_what_a_worker_has_not_begun_at_its_limit_goes_to_others(
    server: Server, client: Greenq
) -> None:
    settings = {"worker_prefetch_multiplier": 5, "worker_recycle_jitter": 0}
    options = ("-c", "2", "--max-lifetime", "5")
    with greenq_worker(server.url, *options, app="ledger_app", settings=settings) as worker:
        sent = [client.send_task("ledger.nap", (f"t{place}", 3.0)) for place in range(8)]
        assert worker.wait_exit() == EXIT_RECYCLED
        assert "recycled: it has run for 5 s; its limit is 5 s" in worker.text
    begun = set(ran(server))
    assert 2 <= len(begun) < 8
    assert server.queued_ids() == [each.id for each in sent[len(begun) :]]
    assert server.unacked() == {}


def test_a_worker_that_grows_ends_at_its_memory_limit(server: Server, client: Greenq) -> None:
    settings = {"worker_recycle_jitter": 0, "worker_max_memory_per_child": 256 * 1024}
    with greenq_worker(server.url, app="ledger_app", settings=settings) as worker:
        client.send_task("ledger.keep", (300,)).get(timeout=WAIT_S)
        assert worker.wait_exit() == EXIT_RECYCLED
        assert "MB of memory; its limit is 256.0 MB" in worker.text


def test_with_exec_the_worker_comes_back_in_its_own_process(server: Server, client: Greenq) -> None:
    settings = {"worker_recycle_by": "exec", "worker_max_lifetime": 5.0}
    with greenq_worker(server.url, app="ledger_app", settings=settings) as worker:
        wait_until(lambda: worker.text.count("is ready") == 2, WAIT_S)
        assert worker.alive
        assert client.send_task("ledger.nap", ("x", 0.0)).get(timeout=WAIT_S) == "x"


def test_a_stop_during_the_last_tasks_is_no_restart(server: Server, client: Greenq) -> None:
    settings = {"worker_max_lifetime": 5.0, "worker_recycle_jitter": 0}
    with greenq_worker(server.url, app="ledger_app", settings=settings) as worker:
        wait_until(lambda: "recycled" not in worker.text, WAIT_S)
        result = client.send_task("ledger.wait", ("x",))
        worker.wait_text("recycled")
        worker.popen.terminate()
        worker.wait_text("will not start again")
        server.client.set("gate", 1)
        assert worker.wait_exit() == 0
        assert result.get(timeout=1) == "x"


# --- who may leave, on the server ---


def test_one_always_stays_however_many_may_leave(server: Server) -> None:
    client = Client(server.url)
    try:
        now_s = time.time()
        for number in range(3):
            server.client.zadd("greenq.leases", {f"i{number}|w{number}@h|": now_s + 60})
            server.client.hset(f"greenq.owner.i{number}", "queues", '["mail", "w.dq2"]')
        groups = [
            Recycling(client, Keys(), f"w{number}@h", lambda: ["mail"]) for number in range(3)
        ]
        assert groups[0].claim(5, 30) == []
        assert groups[1].claim(5, 30) == []
        assert groups[2].claim(5, 30) == ["w0@h", "w1@h"]
        # One that asks again may still leave; one that is back makes room.
        assert groups[0].claim(5, 30) == []
        groups[1].returned()
        assert groups[2].claim(5, 30) == []
        # Another group does not count.
        assert Recycling(client, Keys(), "x@h", lambda: ["web"]).claim(1, 30) == []
    finally:
        client.close()


def test_a_worker_that_never_comes_back_counts_for_a_while_only(server: Server) -> None:
    client = Client(server.url)
    try:
        one, other = (Recycling(client, Keys(), f"w{n}@h", lambda: ["mail"]) for n in (1, 2))
        assert one.claim(1, 0.3) == []
        assert other.claim(1, 30) == ["w1@h"]
        wait_until(lambda: other.claim(1, 30) == [], 10)
        (key,) = server.client.keys("greenq.recycling.*")
        assert 0 < server.client.ttl(key) <= 30
    finally:
        client.close()
