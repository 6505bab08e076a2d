"""`worker_autoscale_adaptive` in a real worker, and what `greenq autoscale` shows of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from greenq import Greenq
from tests.servers import Process, Server, greenq_worker
from tests.support import wait_until

LIMITED = re.compile(r"pool limited to (\d+): ")


def limits(worker: Process) -> list[int]:
    return [int(found[1]) for found in LIMITED.finditer(worker.text)]


def autoscale(server: Server) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "greenq", "autoscale", "-b", server.url, "-t", "5", "--json"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    (found,) = json.loads(done.stdout).values()
    return dict(found)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("adaptive", [True, False])
def test_a_saturated_service_limits_the_pool_if_the_setting_says_so(
    server: Server, adaptive: bool
) -> None:
    sender = Greenq("sender", broker=server.url)
    message = sender.send_task("downstream.call", queue="waiting")
    assert message
    raw = server.client.lindex("waiting", 0)
    # Enough for some minutes.
    server.client.lpush("celery", *[raw] * 30_000)
    settings = {"worker_autoscale_adaptive": adaptive, "task_default_queue": "celery"}
    with greenq_worker(
        server.url, "--autoscale", "200,5", app="downstream_app", settings=settings
    ) as worker:
        if adaptive:
            wait_until(lambda: limits(worker) and limits(worker)[-1] <= 80, 120)
            shown = autoscale(server)
            assert shown["pool"]["current"] <= 120
            assert any("at once finish" in each["reason"] for each in shown["decisions"])
        else:
            wait_until(lambda: worker.text.count(" succeeded in ") > 3000, 120)
            assert limits(worker) == []
            assert autoscale(server)["pool"]["current"] == 200
        server.client.delete("celery")
