"""--autoreload: new code after each change, and the old one while the new one is broken."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from greenq import Greenq
from tests.servers import Process, Server, _environment
from tests.support import wait_until

WAIT_S = 60

APP = """
import os, time
from greenq import Greenq
from mine_values import VERSION

app = Greenq("mine", broker=os.environ["TEST_BROKER"])

@app.task(name="mine.version")
def version():
    return VERSION

@app.task(name="mine.nap")
def nap(what, seconds):
    app.transport.client.call("RPUSH", "ledger", what)
    time.sleep(seconds)
    return what
"""


@pytest.fixture
def client(server: Server) -> Iterator[Greenq]:
    app = Greenq("client", broker=server.url, set_as_current=False)
    yield app
    app.close()


class Rig:
    """An app in a folder of its own, whose worker reloads it."""

    def __init__(self, server: Server, client: Greenq, folder: Path) -> None:
        self.client, self.folder = client, folder
        (folder / "mine.py").write_text(APP)
        self.values = folder / "mine_values.py"
        self.values.write_text("VERSION = 1\n")
        command = [sys.executable, "-m", "greenq", "worker", "-A", "mine", "-l", "INFO"]
        env = _environment(server.url, {}) | {"PYTHONDONTWRITEBYTECODE": "1"}
        self.worker = Process([*command, "--autoreload"], folder / "w.log", env, folder)

    def wait_ready(self, times: int) -> None:
        wait_until(lambda: self.worker.text.count("is ready") >= times, WAIT_S)

    def version(self) -> int:
        found: int = self.client.send_task("mine.version").get(timeout=WAIT_S)
        return found


@pytest.fixture
def make(server: Server, client: Greenq) -> Iterator[Callable[[], Rig]]:
    made: list[Rig] = []
    with tempfile.TemporaryDirectory(prefix="greenq-test-") as folder:

        def build() -> Rig:
            made.append(Rig(server, client, Path(folder)))
            return made[0]

        yield build
        for rig in made:
            rig.worker.stop()


def test_worker_runs_the_new_code_after_each_change(make: Callable[[], Rig]) -> None:
    rig = make()
    pid = rig.worker.pid
    for version in (1, 2, 3):
        rig.wait_ready(version)
        assert rig.version() == version
        rig.values.write_text(f"VERSION = {version + 1}\n")
    rig.wait_ready(4)
    assert "mine_values.py has changed; a restart follows" in rig.worker.text
    assert rig.worker.alive
    assert rig.worker.pid == pid


def test_syntax_error_keeps_the_old_code_and_says_where(make: Callable[[], Rig]) -> None:
    rig = make()
    rig.wait_ready(1)
    rig.values.write_text("VERSION = 2\nOTHER = (\n")
    rig.worker.wait_text("mine_values.py, line 2: '(' was never closed")
    assert rig.version() == 1
    assert "a restart" not in rig.worker.text
    rig.values.write_text("VERSION = 3\n")
    rig.wait_ready(2)
    assert rig.version() == 3


def test_module_that_fails_at_its_import_is_shown_and_awaited(make: Callable[[], Rig]) -> None:
    rig = make()
    rig.wait_ready(1)
    rig.values.write_text("VERSION = undefined_name\n")
    rig.worker.wait_text("waiting for a source file to change")
    assert "NameError: name 'undefined_name' is not defined" in rig.worker.text
    assert "mine_values.py" in rig.worker.text

    def write_again() -> bool:
        # Watching begins a moment after the message.
        rig.values.write_text("VERSION = 5\n")
        return rig.worker.text.count("is ready") >= 2

    wait_until(write_again, WAIT_S)
    rig.values.write_text("VERSION = broken_again\n")
    wait_until(lambda: rig.worker.text.count("waiting for a source file") == 2, WAIT_S)

    def interrupt() -> bool:
        rig.worker.send_signal(signal.SIGINT)
        time.sleep(0.05)
        return not rig.worker.alive

    wait_until(interrupt, WAIT_S)
    assert "Traceback (most recent" not in rig.worker.text.rpartition("waiting for")[2]


def test_reloads_under_load_lose_nothing_and_run_nothing_twice(
    make: Callable[[], Rig], server: Server
) -> None:
    rig, sent = make(), 0
    for version in range(2, 6):
        rig.wait_ready(version - 1)
        for _ in range(100):
            rig.client.send_task("mine.nap", (f"t{sent}", 0.3))
            sent += 1
        begun = sent - 50
        wait_until(lambda begun=begun: server.client.llen("ledger") > begun, WAIT_S)
        rig.values.write_text(f"VERSION = {version}\n")
    rig.wait_ready(5)
    server.wait_settled(WAIT_S)
    ran = Counter(what.decode() for what in server.client.lrange("ledger", 0, -1))
    assert ran == {f"t{number}": 1 for number in range(sent)}


def test_missing_package_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "watchfiles.py").write_text("raise ImportError('none here')\n")
    env = _environment(server.url, {})
    env["PYTHONPATH"] = f"{tmp_path}:{env['PYTHONPATH']}"
    command = [sys.executable, "-m", "greenq", "worker", "-A", "ledger_app", "--autoreload"]
    worker = Process(command, tmp_path / "w.log", env, tmp_path)
    try:
        assert worker.wait_exit() == 1
        assert "pip install 'greenq[reload]'" in worker.text
        assert "Traceback" not in worker.text
    finally:
        worker.stop()
