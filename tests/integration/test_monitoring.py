"""A real worker is asked over HTTP: while its hub is blocked, without a server, at its end."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from greenq import Greenq
from greenq.probe import Address, ask, parse_address
from tests.servers import Process, Server, free_port, greenq_worker, spawn_greenq, valkey
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
        worker.wait_text(f"health and metrics are answered at 127.0.0.1:{port}")
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
        "is it another worker's? Each needs an address of its own"
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


def test_nothing_listens_by_default(server: Server) -> None:
    with greenq_worker(server.url) as worker:
        worker.wait_text("is ready")
        assert "answered at" not in worker.text
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
