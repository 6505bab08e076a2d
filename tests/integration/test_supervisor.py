"""The shipped supervisord configuration, under a real supervisord."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from greenq import Greenq
from tests.servers import APPS, ROOT, Process, Server
from tests.support import wait_until

BIN = Path(sys.executable).parent


class Supervisor:
    """A supervisord of this test, and its control program."""

    def __init__(self, folder: Path, server: Server) -> None:
        clean = {name: os.environ[name] for name in os.environ if not name.startswith("GREENQ_")}
        self.env = clean | {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{APPS}",
            "TEST_BROKER": server.url,
            "TEST_SETTINGS": "{}",
        }
        self.worker_log = folder / "greenq-0.log"
        # As its first lines say.
        written = subprocess.run(
            [sys.executable, "-m", "greenq", "deploy", "supervisord", "-A", "greenq_app"],
            env=self.env, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        self.config = folder / "supervisord.conf"
        self.config.write_text(written.stdout)
        command = [str(BIN / "supervisord"), "-c", str(self.config)]
        self.process = Process(command, folder / "out.log", self.env, APPS)

    def control(self, *words: str) -> str:
        command = [str(BIN / "supervisorctl"), "-c", str(self.config), *words]
        done = subprocess.run(
            command, env=self.env, cwd=APPS, capture_output=True, text=True, timeout=60, check=False
        )
        return done.stdout

    def worker_pid(self) -> int:
        text = self.control("pid", "greenq:greenq-0").strip()
        return int(text) if text.isdecimal() else 0


@pytest.fixture
def supervisor(server: Server) -> Iterator[Supervisor]:
    with tempfile.TemporaryDirectory(prefix="greenq-test-") as folder:
        supervisor = Supervisor(Path(folder), server)
        try:
            wait_until(lambda: "RUNNING" in supervisor.control("status"), 30)
            yield supervisor
        finally:
            supervisor.process.stop(60)


def test_supervisord_runs_a_worker_and_starts_a_killed_one_anew(
    supervisor: Supervisor, server: Server
) -> None:
    app = Greenq("sender", broker=server.url)
    first = supervisor.worker_pid()
    assert app.send_task("shared.add", (1, 2)).get(timeout=10) == 3

    os.kill(first, signal.SIGKILL)

    wait_until(lambda: supervisor.worker_pid() not in {0, first}, 30)
    assert app.send_task("shared.add", (3, 4)).get(timeout=20) == 7


def test_supervisord_restarts_warm(supervisor: Supervisor, server: Server) -> None:
    app = Greenq("sender", broker=server.url)
    running = app.send_task("shared.sleep", (1.0, "done"))
    wait_until(lambda: running.id in supervisor.worker_log.read_text(), 10)

    assert "started" in supervisor.control("restart", "greenq:*")

    assert running.get(timeout=10) == "done"
    server.wait_settled()
    assert "warm shutdown: 1 tasks run" in supervisor.worker_log.read_text()
