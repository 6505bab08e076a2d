"""Signals of a real worker: what receivers can do to it, and when it stops."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from greenq import Greenq
from tests.servers import (
    APPS,
    Process,
    Server,
    _environment,
    greenq_worker,
    spawn_greenq,
    valkey,
)
from tests.support import wait_until


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with valkey() as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Greenq]:
    app = Greenq("client", broker=server.url, set_as_current=False)
    yield app
    app.close()
    server.flush()


def start(server: Server, chosen: str = "") -> AbstractContextManager[Process]:
    return greenq_worker(server.url, app="signalling_app", env={"TEST_SIGNALLING": chosen})


def said(worker: Process, what: str) -> list[dict[str, Any]]:
    lines = [line for line in worker.text.splitlines() if line.startswith("SAID ")]
    found = [json.loads(line.removeprefix("SAID ")) for line in lines]
    return [each for each in found if each.pop("what") == what]


def test_the_life_of_a_worker(server: Server, client: Greenq) -> None:
    with start(server) as worker:
        # A receiver of celeryd_init has changed a setting.
        assert client.send_task("signalling.speak").get(timeout=20) == 7
        assert "7 greenlets" in worker.text
        assert said(worker, "options") == [{"concurrency": None}]
        (begun,) = said(worker, "begin")
        assert (begun["pid"], begun["patched"]) == (worker.pid, True)
        assert begun["sender"].startswith("greenq@")
        assert worker.stop() == 0
        assert said(worker, "stopping") == [{"sig": "SIGTERM", "how": "Warm", "exitcode": 0}]
        assert said(worker, "end") == [{"pid": worker.pid, "exitcode": 0}]
        # The last signal comes after the tasks' last.
        assert worker.text.index('"ran"') < worker.text.index('"end"')


def test_a_beat_of_its_own_and_one_in_a_worker_each_have_their_signal(
    server: Server, tmp_path: Path
) -> None:
    env = _environment(server.url, {}) | {"TEST_SIGNALLING": ""}
    command = [sys.executable, "-m", "greenq", "beat", "-A", "signalling_app"]
    beat = Process(command, tmp_path / "beat.log", env, APPS)
    try:
        wait_until(lambda: said(beat, "beat"), 20)
        assert said(beat, "beat") == [{"signal": "beat_init", "leads": False}]
    finally:
        beat.stop()
    with greenq_worker(
        server.url, "-B", app="signalling_app", env={"TEST_SIGNALLING": ""}
    ) as worker:
        wait_until(lambda: said(worker, "beat"), 20)
        assert said(worker, "beat") == [{"signal": "beat_embedded_init", "leads": False}]


def test_a_run_that_a_stopping_worker_ends_has_its_postrun(server: Server, client: Greenq) -> None:
    client.send_task("signalling.sleep", task_id="long")
    with start(server) as worker:
        wait_until(lambda: said(worker, "asleep"), 20)
        worker.send_signal(signal.SIGINT)
        wait_until(lambda: said(worker, "stopping"), 20)
        worker.send_signal(signal.SIGINT)
        assert worker.wait_exit() == 1
        assert said(worker, "stopping") == [
            {"sig": "SIGINT", "how": "Warm", "exitcode": 0},
            {"sig": "SIGINT", "how": "Cold", "exitcode": 1},
        ]
        assert said(worker, "ran") == [{"id": "long", "state": None}]
        assert said(worker, "end") == [{"pid": worker.pid, "exitcode": 1}]


def test_setup_logging_takes_the_place_of_our_own(server: Server, client: Greenq) -> None:
    with start(server, "setup_logging") as worker:
        client.send_task("signalling.speak").get(timeout=20)
        assert "OWN spoken" in worker.text
        # None in greenq's own format.
        assert "INFO/MainProcess]" not in worker.text


def test_receiver_of_setup_logging_that_comes_too_late_is_named(server: Server) -> None:
    with start(server, "late") as worker:
        assert "connect it in the app's module" in worker.text


def test_handlers_of_the_task_logger_get_the_lines_of_tasks_alone(
    server: Server, client: Greenq
) -> None:
    with start(server, "after_setup") as worker:
        client.send_task("signalling.speak").get(timeout=20)
        assert worker.text.count("GREENQ_TASK ") == worker.text.count("GREENQ_TASK spoken") == 1
        assert worker.text.count("ROOT spoken") == 1
        assert "signalling.speak[" in worker.text


@pytest.mark.parametrize(
    ("chosen", "code", "text"),
    [("import_modules", 1, "modules are not for you"), ("exit", 5, "")],
)
def test_a_receiver_may_end_the_start(
    server: Server, tmp_path: Path, chosen: str, code: int, text: str
) -> None:
    env = {"TEST_SIGNALLING": chosen}
    worker = spawn_greenq(server.url, tmp_path / "log", app="signalling_app", env=env)
    try:
        assert worker.wait_exit(30) == code
        assert text in worker.text
        assert not said(worker, "begin")
    finally:
        worker.stop()
