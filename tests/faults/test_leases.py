"""Promise: what a dead worker held soon runs elsewhere; what a living one holds never does."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from pathlib import Path

import pytest

from greenq import Greenq
from greenq.errors import WorkerLostError
from tests.servers import Server, greenq_worker, spawn_greenq
from tests.support import FairTime, wait_until

pytestmark = pytest.mark.faults

SHORT_LEASE = {"worker_lease": 0.6}


def runs(server: Server) -> Counter[str]:
    """Count the runs of each task."""
    return Counter(entry.decode().split()[0] for entry in server.client.lrange("ledger", 0, -1))


def test_a_dead_workers_messages_run_on_the_survivor_in_order(server: Server) -> None:
    app = Greenq("sender", broker=server.url)
    with greenq_worker(server.url, "-n", "first", app="ledger_app") as first:
        # They run longer than the second worker takes to start.
        results = [app.send_task("ledger.wait", (f"t{i}",)) for i in range(20)]
        wait_until(lambda: len(runs(server)) == 20, 30)
        with greenq_worker(server.url, "-n", "second", app="ledger_app") as second:
            first.kill()
            killed = FairTime()
            wait_until(lambda: sum(runs(server).values()) == 40, 60)
            waited_s = killed.passed_s()
            server.client.set("gate", 1)
            assert [result.get(timeout=30) for result in results] == [f"t{i}" for i in range(20)]
            assert set(runs(server).values()) == {2}
            received = re.findall(r"ledger.wait\[(.*)\] received", second.text)
            assert received == [result.id for result in results]
            server.wait_settled()
    # The lease of 3 s, the second's next look, and the machine's own slowness.
    assert waited_s < 8


def test_a_restarted_worker_recovers_its_predecessors_messages_at_once(server: Server) -> None:
    app = Greenq("sender", broker=server.url)
    settings = {"worker_lease": 60.0}
    with greenq_worker(server.url, "-n", "same", app="ledger_app", settings=settings) as first:
        result = app.send_task("ledger.nap", ("once more", 0.5))
        wait_until(lambda: runs(server))
        first.kill()
    with greenq_worker(server.url, "-n", "same", app="ledger_app", settings=settings):
        # Long before the lease of a minute ends: the process is provably gone.
        assert result.get(timeout=15) == "once more"


@pytest.mark.parametrize("task", ["ledger.nap", "ledger.burn"])
def test_a_task_longer_than_the_lease_and_the_visibility_timeout_runs_once(
    server: Server, task: str
) -> None:
    app = Greenq("sender", broker=server.url)
    settings = SHORT_LEASE | {"broker_transport_options": {"visibility_timeout": 0.8}}
    with greenq_worker(server.url, "-n", "first", app="ledger_app", settings=settings) as first:
        result = app.send_task(task, ("long", 3.5))
        wait_until(lambda: runs(server))
        with greenq_worker(server.url, "-n", "second", app="ledger_app", settings=settings):
            assert result.get(timeout=15) == "long"
            server.wait_settled()
            assert runs(server) == {"long": 1}
        if task == "ledger.burn":
            first.wait_text(f"s by ledger.burn[{result.id}] at ")
            assert "ledger_app.py:" in first.text
            first.wait_text("the hub runs again")
        else:
            assert "blocked" not in first.text


def test_a_message_that_kills_its_workers_is_buried(server: Server, tmp_path: Path) -> None:
    app = Greenq("sender", broker=server.url)
    settings = SHORT_LEASE | {"task_max_deliveries": 2}
    deadly = app.send_task("ledger.kill", ("deadly",))
    # The second worker runs it alone, so the death counts against it.
    for _ in range(2):
        worker = spawn_greenq(
            server.url,
            tmp_path / "worker.log",
            app="ledger_app",
            settings=settings,
        )
        try:
            worker.wait_exit()
        finally:
            worker.kill()
    with greenq_worker(server.url, app="ledger_app", settings=settings):
        wait_until(lambda: server.client.llen("greenq.dead.celery"), 30)
        letter = next(app.transport.dead.list(["celery"]))
        assert letter.task_id == deadly.id
        assert letter.reason.startswith("its worker died 2 times while running it, the last time")
        with pytest.raises(WorkerLostError, match="its worker died 2 times while running it"):
            deadly.get(timeout=5)
        assert runs(server) == {"deadly": 2}
        assert app.send_task("ledger.nap", ("fine", 0.0)).get(timeout=10) == "fine"


def test_messages_that_ran_beside_the_one_that_kills_are_not_buried(
    server: Server, tmp_path: Path
) -> None:
    app = Greenq("sender", broker=server.url)
    settings = SHORT_LEASE | {"task_max_deliveries": 2}
    beside = [app.send_task("ledger.nap", (f"t{number}", 0.3)) for number in range(5)]
    deadly = app.send_task("ledger.kill", ("deadly",))
    deaths = 0
    while not server.client.llen("greenq.dead.celery"):
        worker = spawn_greenq(server.url, tmp_path / "log", app="ledger_app", settings=settings)
        try:
            wait_until(
                lambda w=worker: not w.alive or server.client.llen("greenq.dead.celery"),  # type: ignore[misc]
                20,
            )
            deaths += not worker.alive
        finally:
            worker.kill()
        # Its first death counts against all that ran there; from then on each runs alone.
        assert deaths <= 2

    with greenq_worker(server.url, app="ledger_app", settings=settings):
        assert [each.get(timeout=20) for each in beside] == [f"t{number}" for number in range(5)]
        server.wait_settled()
    assert deaths == 2
    assert [letter.task_id for letter in app.transport.dead.list(["celery"])] == [deadly.id]


def test_a_task_that_may_not_run_again_fails_when_its_worker_dies(server: Server) -> None:
    app = Greenq("sender", broker=server.url)
    settings = SHORT_LEASE | {"task_reject_on_worker_lost": False}
    with greenq_worker(server.url, "-n", "first", app="ledger_app", settings=settings) as first:
        result = app.send_task("ledger.nap", ("once-only", 30.0))
        wait_until(lambda: runs(server))
        with greenq_worker(server.url, "-n", "second", app="ledger_app", settings=settings):
            first.kill()
            with pytest.raises(WorkerLostError, match="reject_on_worker_lost"):
                result.get(timeout=15)
            server.wait_settled()
    assert runs(server) == {"once-only": 1}
    assert server.client.llen("greenq.dead.celery") == 1


def test_a_poison_record_of_a_dead_worker_is_buried_with_its_bytes(server: Server) -> None:
    poison = b'\xff no message", "", "celery"]'
    server.client.hset("unacked", "gone:1", b"[" + poison + b', "", "mail"]')
    server.client.zadd("unacked_index", {"gone:1": time.time()})
    server.client.zadd("greenq.leases", {"gone|gone@nowhere|": time.time() - 1})
    settings = SHORT_LEASE
    with greenq_worker(server.url, app="ledger_app", settings=settings):
        wait_until(lambda: server.client.llen("greenq.dead.mail"), 15)
    app = Greenq("sender", broker=server.url)
    assert next(app.transport.dead.list(["mail"])).raw == poison
    assert server.unacked() == {}


def test_what_a_celery_worker_abandoned_comes_back_after_the_visibility_timeout(
    server: Server,
) -> None:
    app = Greenq("sender", broker=server.url)
    result = app.send_task("ledger.nap", ("abandoned", 0.0))
    message = server.client.rpop("celery")
    tag = json.loads(message)["properties"]["delivery_tag"]
    server.client.hset("unacked", tag, b"[" + message + b', "", "celery"]')
    server.client.zadd("unacked_index", {tag: time.time()})
    settings = SHORT_LEASE | {"broker_transport_options": {"visibility_timeout": 1.0}}
    with greenq_worker(server.url, app="ledger_app", settings=settings):
        assert result.get(timeout=15) == "abandoned"
        server.wait_settled()


def test_a_lease_is_given_up_at_a_warm_shutdown(server: Server) -> None:
    with greenq_worker(server.url, app="ledger_app"):
        wait_until(lambda: server.client.zcard("greenq.leases") == 1)
    assert server.client.zcard("greenq.leases") == 0
