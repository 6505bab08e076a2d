"""A closed terminal stops a worker warm; a hangup without one opens the log anew."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from greenq import Greenq
from tests.servers import APPS, Server, _environment
from tests.support import wait_until

WAIT_S = 15


def test_worker_whose_terminal_is_closed_finishes_what_runs(server: Server) -> None:
    client = Greenq("client", broker=server.url, set_as_current=False)
    master, slave = pty.openpty()
    with tempfile.TemporaryDirectory(prefix="greenq-test-") as folder:
        log = Path(folder, "w.log")
        command = [sys.executable, "-m", "greenq", "worker", "-A", "stuck_app", "-l", "INFO"]
        worker = subprocess.Popen(
            # A session of its own, whose terminal this is.
            [sys.executable, "-c", LEADER, *command, "-f", str(log)],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True, cwd=APPS,
            env=_environment(server.url, {}),
        )  # fmt: skip
        os.close(slave)
        try:
            wait_until(lambda: log.exists() and "Connected to" in log.read_text(), WAIT_S)
            result = client.send_task("stuck_app.wait", (1.0,))
            wait_until(lambda: f"[{result.id}] received" in log.read_text(), WAIT_S)
            os.close(master)
            assert worker.wait(WAIT_S) == 0
            assert result.get(timeout=1)
            assert "its terminal was closed" in log.read_text()
        finally:
            if worker.poll() is None:
                worker.kill()
                worker.wait()
            client.close()


LEADER = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize("where", ["stdout", "stderr"])
def test_full_disk_at_the_start_does_not_end_a_worker(server: Server, where: str) -> None:
    client = Greenq("client", broker=server.url, set_as_current=False)
    with (
        tempfile.TemporaryDirectory(prefix="greenq-test-") as folder,
        open("/dev/full", "w") as full,
    ):
        log = Path(folder, "w.log")
        files = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, where: full}
        options = ["-f", str(log)] if where == "stdout" else []
        worker = subprocess.Popen(
            [sys.executable, "-m", "greenq", "worker", "-A", "stuck_app", "-l", "INFO", *options],
            cwd=APPS, env=_environment(server.url, {}), **files,
        )  # fmt: skip
        try:
            assert client.send_task("stuck_app.add", (1, 2)).get(timeout=WAIT_S) == 3
        finally:
            worker.terminate()
            worker.wait(WAIT_S)
            client.close()
