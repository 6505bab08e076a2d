"""A revoke holds although every worker that heard of it has ended."""

from __future__ import annotations

import shelve
from collections.abc import Iterator
from pathlib import Path

import pytest

from greenq import Greenq
from greenq.protocol.keys import Keys
from greenq.transport.client import Client
from greenq.transport.revokes import RevokeStore
from tests.servers import Server, greenq_worker, spawn_greenq
from tests.support import wait_until

WAIT_S = 30
# Each task with an ETA waits on the server.
PARKS = {"task_eta_horizon": 0}


@pytest.fixture
def client(server: Server) -> Iterator[Greenq]:
    app = Greenq("client", broker=server.url, set_as_current=False)
    yield app
    app.close()


@pytest.fixture
def redis(server: Server) -> Iterator[Client]:
    made = Client(server.url)
    yield made
    made.close()


def test_revoke_of_a_parked_task_holds_for_workers_that_start_later(
    server: Server, client: Greenq
) -> None:
    with greenq_worker(server.url, settings=PARKS, app="ledger_app") as worker:
        revoked = client.send_task("ledger.nap", ("revoked", 0.0), countdown=12)
        other = client.send_task("ledger.nap", ("other", 0.0), countdown=12)
        wait_until(lambda: server.client.zcard("greenq.eta.celery") == 2, WAIT_S)
        client.control.revoke(revoked.id)
        wait_until(lambda: server.client.exists("greenq.revoked"), WAIT_S)
        # It has no time to tell anybody.
        worker.kill()
    with greenq_worker(server.url, "--without-mingle", settings=PARKS, app="ledger_app"):
        assert other.get(timeout=WAIT_S) == "other"
        wait_until(lambda: revoked.state == "REVOKED", WAIT_S)
        assert server.client.lrange("ledger", 0, -1)[0].startswith(b"other")
        assert server.client.llen("ledger") == 1


def test_revoke_and_clock_survive_in_the_file_without_the_server(
    server: Server, client: Greenq, tmp_path: Path
) -> None:
    options = ("--statedb", str(tmp_path / "%n.state"), "-n", "w1@host")
    with greenq_worker(server.url, *options, app="ledger_app") as worker:
        worker.wait_text("is ready")
        client.control.revoke("some-id")
        wait_until(lambda: server.client.exists("greenq.revoked"), WAIT_S)
        (clock,) = [each["clock"] for each in client.control.inspect().stats().values()]
    assert (tmp_path / "w1.state").exists()
    server.flush()
    settings = {"worker_state_db": str(tmp_path / "%n.state")}
    with greenq_worker(server.url, "-n", "w1@host", app="ledger_app", settings=settings) as worker:
        worker.wait_text("is ready")
        inspect = client.control.inspect()
        assert inspect.revoked() == {"w1@host": ["some-id"]}
        (again,) = [each["clock"] for each in inspect.stats().values()]
        assert int(again) > int(clock)
        client.send_task("ledger.nap", ("x", 0.0), task_id="some-id")
        assert client.send_task("ledger.nap", ("y", 0.0)).get(timeout=WAIT_S) == "y"
        assert server.client.llen("ledger") == 1


def test_revoke_reaches_a_worker_that_had_no_connection(server: Server, client: Greenq) -> None:
    with greenq_worker(server.url, "-n", "a@h") as worker:
        worker.wait_text("is ready")
        store_client = Client(server.url)
        try:
            # As another worker does that has heard of it.
            RevokeStore(store_client, Keys(), keep_s=60).add([("some-id",)])
        finally:
            store_client.close()
        assert client.control.inspect().revoked() == {"a@h": []}
        for each in server.client.client_list():
            if each["id"] != str(server.client.client_id()):
                server.client.client_kill_filter(_id=each["id"])
        asker = Greenq("asker", broker=server.url, set_as_current=False)
        try:
            wait_until(lambda: asker.control.inspect().revoked() == {"a@h": ["some-id"]}, WAIT_S)
        finally:
            asker.close()


def test_file_of_celery_is_refused_in_one_sentence(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "w.state"
    with shelve.open(str(file)) as store:
        store["revoked"] = {"a": 1.0}
    worker = spawn_greenq(server.url, tmp_path / "w.log", "--statedb", str(file))
    try:
        assert worker.wait_exit() == 1
        assert "is Celery's state file" in worker.text
        assert "Traceback" not in worker.text
    finally:
        worker.stop()


def test_server_keeps_no_more_than_it_may_and_not_for_ever(
    server: Server, redis: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greenq.transport.revokes.MOST", 1500)
    store = RevokeStore(redis, Keys(), keep_s=100)
    store.add([(f"first{number}",) for number in range(1000)])
    store.add([(f"second{number}",) for number in range(1200)])
    assert server.client.zcard("greenq.revoked") == 1500
    kept = {texts[0] for texts, _age_s in RevokeStore(redis, Keys(), keep_s=100).read_new()}
    assert {f"second{number}" for number in range(1200)} <= kept
    assert 0 < server.client.ttl("greenq.revoked") <= 100
    # Those whose time is over go with the next one.
    for member in server.client.zrange("greenq.revoked", 0, -1):
        server.client.zincrby("greenq.revoked", -200, member)
    store.add([("last",)])
    store.add([("last",)])
    assert server.client.zrange("greenq.revoked", 0, -1) == [b'["last"]']


def test_store_reads_each_once_with_its_age(server: Server, redis: Client) -> None:
    writer, reader = (RevokeStore(redis, Keys(), keep_s=100) for _ in range(2))
    writer.add([("a",), ("tenant", "x")])
    server.client.zadd("greenq.revoked", {"not JSON": 1.0, "[1]": 2.0, '["a", "b", "c"]': 3.0})
    first = reader.read_new()
    assert sorted(texts for texts, _age_s in first) == [("a",), ("tenant", "x")]
    assert all(0 <= age_s < WAIT_S for _texts, age_s in first)
    assert reader.read_new() == []
    writer.add([("b",)])
    assert [texts for texts, _age_s in reader.read_new()] == [("b",)]


def test_revoke_holds_for_as_long_as_the_setting_says(server: Server, client: Greenq) -> None:
    settings = {"worker_revoke_expires": 2.0}
    with greenq_worker(server.url, app="ledger_app", settings=settings) as worker:
        worker.wait_text("is ready")
        client.control.revoke("some-id")
        inspect = client.control.inspect()
        wait_until(lambda: list(inspect.revoked().values()) == [["some-id"]], WAIT_S)
        wait_until(lambda: list(inspect.revoked().values()) == [[]], WAIT_S)
        wait_until(lambda: not server.client.exists("greenq.revoked"), WAIT_S)
        client.send_task("ledger.nap", ("x", 0.0), task_id="some-id").get(timeout=WAIT_S)
