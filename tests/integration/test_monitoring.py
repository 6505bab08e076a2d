"""A real worker is asked over HTTP: while its hub is blocked, without a server, at its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from greenq import Greenq
from greenq.utils.probe import Address, ask, parse_address
from tests.servers import (
    APPS,
    ROOT,
    Process,
    Server,
    free_port,
    greenq_worker,
    spawn_greenq,
    valkey,
)
from tests.support import wait_until

WAIT_S = 15


def get(address: str | int | Address, path: str) -> tuple[int, Any]:
    """Return status and content; status 0 if nobody answers."""
    if not isinstance(address, Address):
        address = parse_address(str(address))
    try:
        status, text = ask(address, path, WAIT_S)
    except OSError as exc:
        return 0, str(exc)
    return status, json.loads(text)


def is_red(port: int, path: str, reason: str) -> bool:
    status, found = get(port, path)
    return status == 503 and any(reason in each for each in found["reasons"])


@pytest.mark.smoke
def test_a_blocked_worker_answers_that_it_lives_and_by_what_it_is_blocked(server: Server) -> None:
    port = free_port()
    settings = {"worker_hub_lag_warning": 0.2}
    with (
        greenq_worker(
            server.url, "--health", str(port), app="stuck_app", settings=settings
        ) as worker,
        Greenq("client", broker=server.url, set_as_current=False) as client,
    ):
        worker.wait_text(f"health and metrics are served at 127.0.0.1:{port}")
        wait_until(lambda: get(port, "/readyz")[0] == 200, WAIT_S)
        assert get(port, "/livez")[0] == get(port, "/startupz")[0] == 200

        task = client.send_task("stuck_app.block", (3,))
        wait_until(lambda: is_red(port, "/readyz", f"by stuck_app.block[{task.id}]"), WAIT_S)
        status, found = get(port, "/livez")
        assert (status, found["reasons"]) == (200, [])
        assert found["blocked"]["by"] == f"stuck_app.block[{task.id}]"
        task.get(timeout=WAIT_S)
        wait_until(lambda: get(port, "/readyz")[0] == 200, WAIT_S)


@pytest.mark.faults
def test_a_lost_server_makes_no_worker_restart(tmp_path: Path) -> None:
    port = free_port()
    with valkey() as own, greenq_worker(own.url, "--health", str(port)):
        wait_until(lambda: get(port, "/readyz")[0] == 200, WAIT_S)
        own.stop()
        wait_until(lambda: is_red(port, "/readyz", "no messages are taken: "), WAIT_S)
        wait_until(lambda: is_red(port, "/readyz", "the worker holds no lease: "), WAIT_S)
        assert get(port, "/livez")[0] == get(port, "/startupz")[0] == 200
        own.start()
        wait_until(lambda: get(port, "/readyz")[0] == 200, WAIT_S)


@pytest.mark.faults
def test_a_worker_that_starts_without_a_server_has_started(tmp_path: Path) -> None:
    port = free_port()
    nowhere = f"redis://127.0.0.1:{free_port()}/0"
    worker = spawn_greenq(nowhere, tmp_path / "log", "--health", str(port))
    try:
        wait_until(lambda: get(port, "/startupz")[0] == 200, WAIT_S)
        wait_until(lambda: is_red(port, "/readyz", "no messages are taken: cannot reach"), WAIT_S)
        assert get(port, "/livez")[0] == 200
    finally:
        worker.stop()


def test_a_queue_paused_on_purpose_leaves_its_worker_ready(server: Server) -> None:
    port = free_port()
    with (
        greenq_worker(server.url, "--health", str(port)),
        Greenq("client", broker=server.url, set_as_current=False) as client,
    ):
        client.control.broadcast("pause", arguments={"queue": "celery"}, reply=True)
        wait_until(lambda: get(port, "/readyz")[1]["notes"] == ["queue celery is paused"], WAIT_S)
        assert get(port, "/readyz")[0] == 200


def test_a_worker_that_stops_is_not_ready_but_lives(server: Server) -> None:
    port = free_port()
    with (
        greenq_worker(server.url, "--health", str(port), app="stuck_app") as worker,
        Greenq("client", broker=server.url, set_as_current=False) as client,
    ):
        task = client.send_task("stuck_app.wait", (2,))
        wait_until(lambda: get(port, "/livez")[1]["running"] == 1, WAIT_S)
        worker.send_signal(signal.SIGTERM)
        wait_until(lambda: is_red(port, "/readyz", "the worker is stopping"), WAIT_S)
        assert get(port, "/livez")[0] == 200
        task.get(timeout=WAIT_S)
        assert worker.wait_exit() == 0
        assert get(port, "/livez")[0] == 0


def test_a_port_in_use_is_one_clear_line(server: Server, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        worker = spawn_greenq(server.url, tmp_path / "log", "-q", "--health", str(port))
        assert worker.wait_exit() == 1
    assert worker.text.strip().splitlines()[-1] == (
        f"greenq worker: cannot listen on 127.0.0.1:{port}: Address already in use; "
        "does another worker use it? Each worker needs its own address"
    )
    assert "Traceback" not in worker.text
    # It has never held a lease.
    assert server.client.zcard("greenq.leases") == 0


def test_workers_of_one_setting_have_sockets_of_their_own(server: Server, tmp_path: Path) -> None:
    settings = {"worker_health_address": f"unix:{tmp_path}/%n.sock"}
    with greenq_worker(server.url, "-n", "one@h", settings=settings):
        path = tmp_path / "one.sock"
        wait_until(path.exists, WAIT_S)
        command = [sys.executable, "-m", "greenq", "health", f"unix:{path}"]
        healthy = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (healthy.returncode, json.loads(healthy.stdout)["node"]) == (0, "one@h")
    assert not path.exists()
    unhealthy = subprocess.run(command, capture_output=True, text=True, check=False)
    assert unhealthy.returncode == 1
    assert "no worker answers" in unhealthy.stderr


def values(port: int) -> dict[str, float]:
    """Return the worker's metrics: the value of each sample by its name and labels."""
    status, text = ask(parse_address(str(port)), "/metrics", WAIT_S)
    assert status == 200, text
    return {
        sample.name
        + "".join(f",{name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.smoke
def test_metrics_of_a_real_worker_by_all_names(server: Server) -> None:
    port = free_port()
    settings = {
        "worker_metrics_address": port,
        "worker_metrics_names": ["greenq", "celery-exporter", "flower"],
    }
    with (
        greenq_worker(server.url, "-n", "me@host", app="stuck_app", settings=settings),
        Greenq("client", broker=server.url, set_as_current=False) as client,
    ):
        for _ in range(3):
            client.send_task("stuck_app.wait", (0,)).get(timeout=WAIT_S)
        task = "stuck_app.wait"
        own = f"greenq_tasks_total,queue=celery,state=SUCCESS,task={task}"
        wait_until(lambda: values(port).get(own) == 3, WAIT_S)
        found = values(port)
        assert (
            found[f"celery_task_succeeded_total,hostname=host,name={task},queue_name=celery"] == 3
        )
        assert found[f"flower_events_total,task={task},type=task-succeeded,worker=me@host"] == 3
        assert found["greenq_worker_ready"] == found["greenq_server_up"] == 1
        assert found["greenq_queue_workers,queue=celery"] == 1
        assert found["greenq_hub_cpu_seconds_total"] > 0
        assert found["greenq_server_commands_total"] > 3
        # Health is answered there, too.
        assert get(port, "/readyz")[0] == 200


@pytest.mark.faults
def test_metrics_outlive_the_server_and_count_its_loss(tmp_path: Path) -> None:
    port = free_port()
    with valkey() as own, greenq_worker(own.url, "--metrics-port", str(port)):
        wait_until(lambda: values(port)["greenq_worker_ready"] == 1, WAIT_S)
        own.stop()
        wait_until(lambda: values(port)["greenq_server_up"] == 0, WAIT_S)
        assert get(port, "/stats.json")[0] == 503
        wait_until(lambda: values(port)["greenq_lease_seconds"] == 0, WAIT_S)
        own.start()
        wait_until(lambda: values(port)["greenq_server_up"] == 1, WAIT_S)
        wait_until(lambda: values(port)["greenq_worker_ready"] == 1, WAIT_S)
        assert values(port)["greenq_server_interruptions_total"] >= 1


def test_metrics_are_answered_while_the_hub_is_blocked(server: Server) -> None:
    port = free_port()
    with (
        greenq_worker(server.url, "--metrics-port", str(port), app="stuck_app"),
        Greenq("client", broker=server.url, set_as_current=False) as client,
    ):
        task = client.send_task("stuck_app.block", (3,))
        wait_until(lambda: values(port)["greenq_hub_blocked_seconds"] > 1, WAIT_S)
        task.get(timeout=WAIT_S)
        wait_until(lambda: values(port)["greenq_hub_blocked_seconds"] == 0, WAIT_S)
        assert values(port)["greenq_hub_blocks_total"] == 1
        assert values(port)["greenq_hub_longest_block_seconds"] > 1


def test_without_prometheus_client_the_extra_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "prometheus_client.py").write_text(
        "raise ModuleNotFoundError('none', name='prometheus_client')"
    )
    path = f"{tmp_path}{os.pathsep}{ROOT}{os.pathsep}{APPS}"
    worker = spawn_greenq(
        server.url, tmp_path / "log", "--metrics-port", "0", env={"PYTHONPATH": path}
    )
    assert worker.wait_exit() == 1
    assert "pip install 'greenq[metrics]'" in worker.text
    assert "Traceback" not in worker.text


def test_a_wrong_address_or_name_is_refused_before_the_start(
    server: Server, tmp_path: Path
) -> None:
    for options, told in (
        (("--metrics-port", ":9808"), "0.0.0.0:9808"),
        (("--health", "here"), "worker_health_address"),
        (("--metrics-port", "0", "--metrics-names", "grafana"), "celery-exporter"),
    ):
        worker = spawn_greenq(server.url, tmp_path / "log", *options)
        assert worker.wait_exit() == 1
        assert told in worker.text
        assert "Traceback" not in worker.text


def test_the_backlog_of_the_cluster_is_the_same_from_any_worker(server: Server) -> None:
    one, other = free_port(), free_port()
    settings = {"task_queues": ["mail", "idle"]}
    with (
        greenq_worker(
            server.url, "--health", str(one), "-n", "one@h", "-Q", "mail", "-c", "2",
            app="stuck_app", settings=settings,
        ),
        greenq_worker(
            server.url, "--health", str(other), "-n", "other@h", "-Q", "web", "-c", "10",
            app="stuck_app", settings=settings,
        ),
        Greenq("client", broker=server.url, set_as_current=False) as client,
    ):  # fmt: skip
        for _ in range(22):
            client.send_task("stuck_app.wait", (3600,), queue="mail")

        def mail(port: int) -> Any:
            return get(port, "/stats.json")[1]["queues"]["mail"]

        wait_until(lambda: mail(one)["backlog"] == mail(other)["backlog"] == 20, WAIT_S)
        status, found = get(other, "/stats.json")
        assert (status, found["workers"], found["in_flight"], found["slots"]) == (200, 2, 2, 10)
        assert found["queues"].keys() == {"mail", "idle", "web"}
        assert found["queues"]["mail"]["workers"] == found["queues"]["web"]["workers"] == 1
        assert found["queues"]["mail"]["oldest_s"] > 0
        idle = found["queues"]["idle"]
        assert (idle["backlog"], idle["workers"], idle["wanted_workers"]) == (0, 0, 0)
        assert (idle["drain_s"], idle["oldest_s"]) == (0, 0)
        # 20 wait; of the 2 in flight, half counts for each of the two queues with a worker.
        assert mail(other)["wanted_workers"] == 3
        assert mail(one)["wanted_workers"] == 11
        client.control.broadcast("pause", arguments={"queue": "mail"}, reply=True)
        wait_until(lambda: mail(one)["paused"], WAIT_S)
        assert mail(one)["wanted_workers"] == 1
        server.client.delete("mail")
        client.control.broadcast("shutdown")


def test_nothing_listens_by_default(server: Server) -> None:
    with greenq_worker(server.url) as worker:
        worker.wait_text("is ready")
        assert "served at" not in worker.text
        assert listening(worker) == []


def listening(worker: Process) -> list[str]:
    """Return the addresses on which a process listens, as the kernel writes them."""
    inodes = {
        target.removeprefix("socket:[").rstrip("]")
        for number in Path(f"/proc/{worker.pid}/fd").iterdir()
        if (target := str(number.readlink())).startswith("socket:[")
    }
    rows = [
        line.split()
        for kind in ("tcp", "tcp6")
        for line in Path(f"/proc/{worker.pid}/net/{kind}").read_text().splitlines()[1:]
    ]
    return [row[1] for row in rows if row[3] == "0A" and row[9] in inodes]
