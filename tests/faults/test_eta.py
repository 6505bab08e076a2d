"""Promise: a far ETA waits on the server, and runs once when due, whatever befalls workers."""

from __future__ import annotations

import re
import time

import pytest

from greenq import Greenq
from tests.faults.test_leases import runs
from tests.servers import Server, greenq_worker
from tests.support import wait_until

pytestmark = pytest.mark.faults

NEAR = {"task_eta_horizon": 1.0}


def test_a_far_eta_is_parked_and_runs_when_it_is_due(server: Server) -> None:
    app = Greenq("sender", broker=server.url)
    with greenq_worker(server.url, app="ledger_app", settings=NEAR):
        sent_s = time.time()
        results = [
            app.send_task("ledger.nap", (f"t{i}", 0.0), countdown=2.5, priority=i % 10)
            for i in range(30)
        ]
        wait_until(lambda: server.client.zcard("greenq.eta.celery") == 30)
        # They cost the worker nothing: it does not hold them.
        server.wait_settled()
        assert not runs(server)
        for result in results:
            result.get(timeout=15)
        done_s = time.time()
        assert set(runs(server).values()) == {1}
        assert done_s - sent_s >= 2.5
        assert not server.client.exists("greenq.eta.celery")


def test_parked_messages_outlive_the_worker_that_parked_them(server: Server) -> None:
    app = Greenq("sender", broker=server.url)
    with greenq_worker(server.url, "-n", "first", app="ledger_app", settings=NEAR) as first:
        result = app.send_task("ledger.nap", ("parked", 0.0), countdown=3.0)
        wait_until(lambda: server.client.zcard("greenq.eta.celery") == 1)
        first.kill()
    with greenq_worker(server.url, "-n", "second", app="ledger_app", settings=NEAR):
        assert result.get(timeout=15) == "parked"
        assert runs(server) == {"parked": 1}


def test_a_near_eta_stays_reserved_and_runs_once_beyond_the_visibility_timeout(
    server: Server,
) -> None:
    app = Greenq("sender", broker=server.url)
    settings = {"worker_lease": 0.6, "broker_transport_options": {"visibility_timeout": 0.8}}
    with (
        greenq_worker(server.url, "-n", "first", app="ledger_app", settings=settings) as first,
        greenq_worker(server.url, "-n", "second", app="ledger_app", settings=settings) as second,
    ):
        result = app.send_task("ledger.nap", ("near", 0.0), countdown=3.0)
        wait_until(lambda: len(server.unacked()) == 1)
        assert result.get(timeout=15) == "near"
        assert runs(server) == {"near": 1}
        received = re.findall("received", first.text + second.text)
        assert len(received) == 1


def test_an_expired_eta_is_revoked_when_it_is_due(server: Server) -> None:
    app = Greenq("sender", broker=server.url)
    with greenq_worker(server.url, app="ledger_app", settings=NEAR):
        result = app.send_task("ledger.nap", ("late", 0.0), countdown=2.0, expires=1.5)
        with pytest.raises(Exception, match="expired"):
            result.get(timeout=15)
        assert not runs(server)
