"""Steps of an app's own in a real worker: the example, from start over a lost server to the end."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers import ROOT, Process, Server, free_port, greenq_worker, spawn_greenq, valkey
from tests.support import wait_until

APP = "examples.custom_steps"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with valkey() as running:
        yield running


def read(port: int) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=10) as page:
        return json.load(page)


def places(worker: Process, *lines: str) -> list[int]:
    """Return where each line stands in the log, the last one of its kind."""
    found = [worker.text.rfind(line) for line in lines]
    assert -1 not in found, worker.text
    return found


def in_order(worker: Process, *lines: str) -> bool:
    found = places(worker, *lines)
    return found == sorted(found)


def test_steps_start_and_stop_with_the_worker_and_its_connection(
    server: Server, tmp_path: Path
) -> None:
    port, ready = free_port(), tmp_path / "ready"
    options = ("--health-port", str(port), "--ready-file", str(ready))
    with greenq_worker(server.url, *options, app=APP, env={"GREENQ_BROKER_URL": server.url}) as own:
        wait_until(ready.exists)
        assert read(port)["health"] == {"port": port, "pages": 1}
        assert in_order(own, "health page on", "Connected to", "] ready")

        server.stop()
        wait_until(lambda: not ready.exists())
        assert read(port)["health"]["pages"] == 2
        server.start()
        wait_until(ready.exists)

        own.send_signal(signal.SIGTERM)
        assert own.wait_exit() == 0
        assert not ready.exists()
        assert in_order(
            own, "] ready", "warm shutdown", "] not ready", "page closed", "never ready again"
        )
        assert own.text.count("never ready again") == 1


def test_steps_without_their_options_are_not_there(server: Server) -> None:
    with greenq_worker(server.url, app=APP, env={"GREENQ_BROKER_URL": server.url}) as worker:
        assert "health page" not in worker.text


def test_step_that_cannot_start_ends_the_worker_and_is_named(
    server: Server, tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        worker = spawn_greenq(
            server.url,
            tmp_path / "log",
            *("--health-port", str(taken.getsockname()[1])),
            app=APP,
            env={"GREENQ_BROKER_URL": server.url},
        )
        assert worker.wait_exit() == 1

    assert "greenq worker: the app's step Health could not start: OSError" in worker.text


def test_misspelt_option_is_refused_with_the_nearest_one(server: Server, tmp_path: Path) -> None:
    worker = spawn_greenq(server.url, tmp_path / "log", "--helth-port", "1", app=APP)

    assert worker.wait_exit() == 2
    assert "did you mean --health-port?" in worker.text


def test_pidfile_names_the_worker_and_keeps_a_second_one_out(
    server: Server, tmp_path: Path
) -> None:
    options = ("-n", "w%%1@here", "--pidfile", f"{tmp_path}/%n.pid", "--logfile", f"{tmp_path}/%p")
    env = {"GREENQ_BROKER_URL": server.url}
    file = tmp_path / "w%1.pid"
    # What a crash leaves is in nobody's way.
    file.write_text("1\n")
    first = spawn_greenq(server.url, tmp_path / "first", *options, app=APP, env=env)
    try:
        wait_until(lambda: file.read_text() == f"{first.pid}\n")
        second = spawn_greenq(server.url, tmp_path / "second", *options, app=APP, env=env)
        assert second.wait_exit() == 1
        assert f"process {first.pid} has locked it and is alive" in second.text
        wait_until(lambda: "Connected to" in (tmp_path / "w%1@here").read_text())
    finally:
        assert first.stop() == 0
    assert not file.exists()


def graph(*options: str) -> str:
    command = [sys.executable, "-m", "greenq", "graph", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def names(blueprint: list[dict[str, Any]]) -> list[str]:
    return [step["name"] for step in blueprint]


def test_graph_shows_the_own_steps_in_their_places_without_a_server() -> None:
    shown = json.loads(graph("--json", "-A", APP))

    worker, consumer = names(shown["worker"]), names(shown["consumer"])
    assert worker.index("Pool") < worker.index("Health") < worker.index("Consumer")
    assert [name for name in consumer if name != "ReadyFile"] == [
        "Connection", "Events", "Mingle", "Revokes", "Gossip", "Tasks", "Control", "Heart",
        "Agent",
    ]  # fmt: skip
    assert consumer.index("Tasks") < consumer.index("ReadyFile")
    # Their options are not given, nor those of two of greenq's own.
    off = {step["name"] for part in shown.values() for step in part if not step["included"]}
    assert off == {
        "Autoreloader",
        "Autoscaler",
        "Beat",
        "Monitoring",
        "Processes",
        "Recycle",
        "StateDB",
        "StoppedWorkflows",
        "Agent",
        "Health",
        "ReadyFile",
    }
    assert all(step["description"] for part in shown.values() for step in part)


def test_graph_shows_one_blueprint_for_people_or_for_graphviz() -> None:
    table = graph("consumer").splitlines()
    drawn = graph("consumer", "--dot")

    assert table[0].split() == ["CONSUMER", "REQUIRES"]
    assert table[1].split()[:2] == ["1.", "Connection"]
    assert "worker" not in drawn
    assert '"consumer.Connection" [label="Connection"];' in drawn
    assert drawn.count("{") == drawn.count("}")
