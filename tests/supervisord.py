"""A real supervisord for tests, with the configuration that greenq writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xmlrpc.client import ServerProxy

from supervisor.xmlrpc import SupervisorTransport

from tests.servers import APPS, ROOT, Process, Server
from tests.support import wait_until

BIN = Path(sys.executable).parent

# A machine under load may take long to start or stop a few workers.
PATIENCE_S = 60


class Supervisord:
    """A supervisord of this test, and its control program."""

    def __init__(
        self,
        folder: Path,
        server: Server,
        *options: str,
        app: str = "greenq_app",
        edit: Callable[[str], str] = str,
        settings: dict[str, Any] | None = None,
    ) -> None:
        clean = {name: os.environ[name] for name in os.environ if not name.startswith("GREENQ_")}
        self.folder, self.server = folder, server
        # An app that a test may break.
        self.release = folder / "release.py"
        self.release.write_text("from ledger_app import app\n\nassert app\n")
        self.env = clean | {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{APPS}{os.pathsep}{folder}",
            "GREENQ_BROKER_URL": server.url,
            "TEST_BROKER": server.url,
            "TEST_SETTINGS": json.dumps(settings or {}),
        }
        self.config = folder / "supervisord.conf"
        # As its first lines say.
        done = self.greenq("deploy", "supervisord", "-A", app, *options)
        assert done.returncode == 0, done.stderr
        self.config.write_text(edit(done.stdout))
        command = [str(BIN / "supervisord"), "-c", str(self.config)]
        self.process = Process(command, folder / "out.log", self.env, APPS)

    def greenq(self, *words: str, timeout_s: float = 100) -> subprocess.CompletedProcess[str]:
        """Run a greenq command beside the workers."""
        return subprocess.run(
            [sys.executable, "-m", "greenq", *words],
            env=self.env, cwd=APPS, capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    def control(self, *words: str) -> str:
        """Run supervisorctl and return its output."""
        command = [str(BIN / "supervisorctl"), "-c", str(self.config), *words]
        done = subprocess.run(
            command, env=self.env, cwd=APPS, capture_output=True, text=True, timeout=100,
            check=False,
        )  # fmt: skip
        return done.stdout

    def states(self) -> dict[str, str]:
        """Return the state of each process by its name."""
        return {name: info["statename"] for name, info in self._infos().items()}

    def state(self, process: str) -> str:
        return self.states().get(process, "")

    def pid(self, process: str = "greenq:greenq-0") -> int:
        """Return the process id, 0 if it does not run."""
        pid: int = self._infos()[process]["pid"]
        return pid

    def _infos(self) -> dict[str, dict[str, Any]]:
        """Ask as supervisorctl does, without the CPU time that it takes to start."""
        socket = SupervisorTransport(serverurl=f"unix://{self.folder}/supervisor.sock")
        with ServerProxy("http://127.0.0.1", socket) as proxy:
            found: Any = proxy.supervisor.getAllProcessInfo()
        return {f"{info['group']}:{info['name']}": info for info in found}

    def log(self, process: str = "greenq-0") -> str:
        """Return what a process has logged."""
        path = self.folder / f"{process}.log"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    def logs(self) -> str:
        """Return all logs, to explain a failure."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text('utf-8', 'replace')[-4000:]}"
            for path in sorted(self.folder.glob("*.log"))
        )

    def wait_running(self, *processes: str) -> None:
        """Wait until these processes run and are connected."""
        for process in processes or ("greenq-0",):
            wait_until(lambda name=process: "Connected to " in self.log(name), PATIENCE_S)


@contextmanager
def supervisord(server: Server, *options: str, **chosen: Any) -> Iterator[Supervisord]:
    """Run a supervisord with its first worker connected; show all logs if the test fails."""
    with tempfile.TemporaryDirectory(prefix="greenq-test-") as folder:
        found = Supervisord(Path(folder), server, *options, **chosen)
        try:
            found.wait_running()
            yield found
        except BaseException:
            sys.stderr.write(found.logs())
            raise
        finally:
            found.process.stop(100)


def ledger(server: Server) -> Counter[str]:
    """Return how often each task of tests/apps/ledger_app.py has begun."""
    return Counter(line.decode().split()[0] for line in server.client.lrange("ledger", 0, -1))


def ledger_pids(server: Server) -> Counter[int]:
    """Return how many tasks each process has begun."""
    return Counter(int(line.split()[1]) for line in server.client.lrange("ledger", 0, -1))
