"""An idle worker costs next to nothing, and finds what nobody tells it of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from greenq import Greenq
from tests.servers import Server, greenq_worker, valkey
from tests.support import wait_until

RENEWALS = 4
HEARTBEAT_S = 2.0

# What the script needs that looks who is in the cluster; it comes each ten seconds.
LOOK = ("time", "zrange", "zadd", "expire")
LOOK_S = 10.0
BEAT = "/0.celeryev/worker.heartbeat"


def calls(server: Server) -> dict[str, int]:
    """Count the commands that the server has carried out, those inside scripts included."""
    stats: dict[str, dict[str, int]] = server.client.info("commandstats")
    return {name.removeprefix("cmdstat_"): told["calls"] for name, told in stats.items()}


ALONE = ("--without-heartbeat", "--without-gossip", "--without-control")
EVERYTHING = ("-B", "--health", "127.0.0.1:0", "--metrics-port", "127.0.0.1:0", "--statedb")


@pytest.mark.parametrize(
    ("options", "beats"),
    [
        pytest.param(ALONE, False, id="alone"),
        pytest.param((), False, id="in a cluster"),
        pytest.param(EVERYTHING, True, id="with everything on"),
    ],
)
def test_an_idle_worker_asks_nothing_but_to_renew_its_lease(
    tmp_path: Path, options: tuple[str, ...], beats: bool
) -> None:
    if beats:
        options = (*options, str(tmp_path / "state"))
    alone = options is ALONE
    # A server of its own: clients that other tests have left are not idle.
    with valkey() as server, greenq_worker(server.url, "--autoscale", "500,10", *options):
        wait_until(lambda: server.client.info("clients")["blocked_clients"] == 1)
        # At first, it listens for others.
        wait_until(lambda: not server.client.pubsub_numsub(BEAT)[0][1], 20)
        # And it begins to relay, with the second renewal; a beat is told of changes likewise.
        tracked = 2 if beats else 1
        wait_until(lambda: calls(server).get("client|tracking", 0) >= tracked, 20)
        started = calls(server)["evalsha"]
        wait_until(lambda: calls(server)["evalsha"] > started)
        began_s, before = time.monotonic(), calls(server)
        wait_until(lambda: calls(server)["evalsha"] >= before["evalsha"] + RENEWALS)
        took_s, after = time.monotonic() - began_s, calls(server)
        asked = {name: number - before.get(name, 0) for name, number in after.items()}
        del asked["info"]

        looked = asked.pop("zscore", 0)
        assert looked <= (0 if alone else took_s / LOOK_S + 1)
        renewals = asked.pop("evalsha") - looked
        assert took_s / renewals > 1.0
        # A member of a cluster says that it is there, with an event each two seconds.
        told = asked.pop("publish", 0)
        assert told <= (0 if alone else took_s / HEARTBEAT_S + 1)
        if beats:
            # The renewal also asks who leads the beats and what was changed, and keeps the lead.
            for name, number in (("get", 2), ("set", 1)):
                asked[name] -= number * renewals
        for name in LOOK:
            asked[name] = asked.get(name, 0) - looked
        inside = {name: number for name, number in asked.items() if number}
        assert inside.keys() == {
            *("time", "zrangebyscore", "hkeys", "hmget", "zrem", "zadd", "zrange", "exists"),
            # It says that it relays, and for how long.
            *("get", "set"),
        }
        assert set(inside.values()) == {renewals}
        # The wait, the lease, and what was declared at the start; one is ours.
        # A guard on a busy machine may have thought that it was needed, for a moment.
        # In a cluster, two have looked at the same moment who is there.
        # A beat may have asked at that moment, too.
        most = 4 if alone else 5 + beats
        wait_until(lambda: server.client.info("clients")["connected_clients"] - 1 <= most)


def test_a_message_handed_to_a_worker_that_died_is_found(server: Server) -> None:
    app = Greenq("sender", broker=server.url)
    result = app.send_task("shared.add", (1, 2), queue="elsewhere")
    with greenq_worker(server.url):
        wait_until(lambda: server.client.info("clients")["blocked_clients"] == 1)
        assert server.client.lmove("elsewhere", "greenq.inbox.celery")

        assert result.get(timeout=5) == 3
    app.close()


# What half a megabyte or more would be wasted on in a worker that does not use it.
UNUSED = ("greenq.beat.scheduler", "prometheus_client", "rich", "xmlrpc", "difflib")


def test_an_idle_worker_loads_no_more_than_it_uses(server: Server, tmp_path: Path) -> None:
    """Its modules are listed by its own app, when the worker is ready."""
    (tmp_path / "listing.py").write_text(
        "import json, os, pathlib, sys\n"
        "from greenq import Greenq\n"
        "from greenq.signals import worker_ready\n"
        f"app = Greenq('listing', broker={server.url!r})\n"
        "@worker_ready.connect\n"
        "def write(**_):\n"
        "    pathlib.Path('modules').write_text(json.dumps(sorted(sys.modules)))\n"
        "    app.control.shutdown()\n"
    )
    # Without the site packages' own additions, such as those of coverage.
    subprocess.run(
        [sys.executable, "-m", "greenq", "worker", "-A", "listing"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": f"{tmp_path}:{Path.cwd()}"},
        check=True, timeout=60, capture_output=True,
    )  # fmt: skip

    loaded = json.loads((tmp_path / "modules").read_text())

    assert "greenq.worker" in loaded
    assert [name for name in UNUSED if name in loaded] == []
