"""Shared by the recovery tests: a scene whose line can fall silent, and a ledger of runs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.faults.conftest import Scene
from tests.faults.long.ledger import Ledger, Run
from tests.faults.proxy import Proxy
from tests.faults.recovery.line import Line
from tests.servers import APPS, ROOT, Process, Server, spawn_greenq
from tests.support import FairTime, wait_until

_HERE = Path(__file__).parent
# Makes a worker appear to be on another host; below, gives it separate process ids.
_ELSEWHERE = _HERE / "elsewhere"
NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")

# For two leases after a server's start, ended leases do not count as deaths.
_TRUSTED_S = 7


class Stage(Scene):
    """A scene with a line between proxy and server; its tasks are those of recovery_app.py."""

    def __init__(self, server: Server, line: Line, proxy: Proxy, folder: Path) -> None:
        super().__init__(server, proxy, folder)
        self.line = line
        self.ledger = Ledger(folder / "ledger")
        self.app = self._app

    # --- tasks ------------------------------------------------------------------------------------

    def post(self, task: str, *args: Any, count: int = 1, **options: Any) -> list[int]:
        """Send tasks to the server itself, and return their numbers."""
        first = len(self.ids)
        for number in range(first, first + count):
            task_id = f"task-{number}"
            self._app.send_task(f"recovery.{task}", (number, *args), task_id=task_id, **options)
            self.ids.append(task_id)
        return list(range(first, first + count))

    def post_many(self, task: str, *args: Any, count: int) -> None:
        """Send many tasks in pushes of a few hundred."""
        first = len(self.ids)
        calls = (((number, *args), {}) for number in range(first, first + count))
        self.ids += [each.id for each in self._app.send_task_many(f"recovery.{task}", calls)]

    def open_gate_of(self, worker: Process) -> None:
        """Let the held tasks of one worker end."""
        Path(f"{self._gate}-{self.workers.index(worker)}").touch()

    # --- workers ----------------------------------------------------------------------------------

    def start(
        self,
        *options: str,
        direct: bool = True,
        elsewhere: bool = False,
        prefix: tuple[str, ...] = (),
        settings: Mapping[str, Any] | None = None,
        wait: bool = True,
    ) -> Process:
        """Start a worker, by default without the proxy, and wait until it is connected.

        Args:
            elsewhere: it appears to be on another host, whose processes the others cannot see.
            prefix: a command that runs it.
        """
        number = len(self.workers)
        path = [*([_ELSEWHERE] if elsewhere else []), ROOT, APPS, _HERE]
        name = () if "-n" in options else ("-n", f"worker{number}")
        worker = spawn_greenq(
            self.server.url if direct else self.proxy.url,
            self._folder / f"worker{number}.log",
            *(*name, *options),
            app="recovery_app",
            settings=settings,
            env={
                "PYTHONPATH": os.pathsep.join(map(str, path)),
                "TEST_LEDGER": str(self.ledger.path),
                "TEST_GATE": str(self._gate),
                "TEST_WORKER": str(number),
            },
            prefix=prefix,
        )
        self.workers.append(worker)
        return worker.wait_text("Connected to ") if wait else worker

    def wait_trusted(self) -> None:
        """Wait until ended leases count as deaths at once."""
        wait_until(lambda: self.server.client.info("server")["uptime_in_seconds"] >= _TRUSTED_S, 15)

    def close(self) -> None:
        self.line.release()
        for worker in self.workers:
            for pid in family(worker):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        super().close()

    # --- what happened ----------------------------------------------------------------------------

    def running(self, worker: Process) -> list[Run]:
        self.ledger.read()
        return self.ledger.running(worker.pid)

    def wait_running(self, worker: Process, count: int, timeout_s: float = 15.0) -> list[int]:
        """Wait until a worker runs `count` tasks, and return their numbers."""
        try:
            wait_until(lambda: len(self.running(worker)) >= count, timeout_s)
        except AssertionError:
            found = len(self.running(worker))
            raise AssertionError(f"{found} of {count} run after {timeout_s:g} s") from None
        return [run.number for run in self.running(worker)]

    def run_counts(self) -> dict[int, int]:
        """Count the runs of each task that has started."""
        self.ledger.read()
        return {number: len(runs) for number, runs in self.ledger.runs.items() if runs}

    def ended(self) -> set[int]:
        self.ledger.read()
        return set(self.ledger.executed)

    def started_after(self, since_s: float, not_by: Process) -> dict[int, float]:
        """Return the tasks that have started elsewhere since then, with the seconds it took."""
        self.ledger.read()
        starts = {
            number: self.ledger.next_start_s(number, since_s, not_by=not_by.pid)
            for number in list(self.ledger.runs)
        }
        return {number: at_s - since_s for number, at_s in starts.items() if at_s is not None}

    def check_begun_elsewhere(
        self, numbers: list[int], lost: Process, since_s: float, within_s: float
    ) -> None:
        """Check that tasks start on another worker, all within the promised time."""

        def begun() -> bool:
            return set(numbers) <= self.started_after(since_s, lost).keys()

        time_s = FairTime()
        with suppress(AssertionError):
            # Wait longer than promised: the machine may be busy, and a failure should show the
            # delay.
            wait_until(begun, 3 * within_s + 3)
        # Time that other programs took does not count against the workers.
        within_s += time.monotonic() - time_s.began_s - time_s.passed_s()
        found = self.started_after(since_s, lost)
        late = {number for number in numbers if found.get(number, within_s + 1) > within_s}
        slowest = max(found.values(), default=float("nan"))
        assert not late, (
            f"{len(late)} of {len(numbers)} tasks had not begun elsewhere after {within_s:g} s;"
            f" {len(found)} did after {slowest:.1f} s at most"
        )

    def check_all_done(self, timeout_s: float = 15.0) -> None:
        """Wait until all sent tasks have succeeded and nothing is left."""
        try:
            wait_until(self.is_done, timeout_s)
        except AssertionError:
            raise AssertionError(
                f"after {timeout_s:g} s {len(self.stored())} of {len(self.ids)} have succeeded,"
                f" {self.queued().total()} are queued, {self.reserved().total()} reserved"
            ) from None

    def state_of(self, number: int) -> str | None:
        return self.states([number])[0]

    def states(self, numbers: list[int] | None = None) -> list[str | None]:
        """Return the stored states of tasks, of all by default."""
        ids = self.ids if numbers is None else [self.ids[number] for number in numbers]
        metas = self.server.client.mget([f"celery-task-meta-{task_id}" for task_id in ids])
        # The status comes first.
        return [
            meta and meta[:60].split(b'"status": "')[-1].split(b'"')[0].decode() for meta in metas
        ]

    def lines(self, level: str) -> list[str]:
        """Return what all workers have logged at a level."""
        return [line for each in self.workers for line in each.text.splitlines() if level in line]

    def check_no_lease_was_in_danger(self) -> None:
        """Check that no worker has logged a lost lease or a failed renewal."""
        for words in ("lost its lease", "lease could not be renewed"):
            said = [
                line
                for worker in self.workers
                for line in worker.text.splitlines()
                if words in line
            ]
            assert not said, said[0]


def kill_9(worker: Process) -> float:
    """Kill only a worker's main process, like the kernel's OOM killer; return the time."""
    os.kill(worker.pid, signal.SIGKILL)
    killed_s = time.monotonic()
    worker.popen.wait()
    return killed_s


def family(worker: Process) -> list[int]:
    """Return the processes of a worker: itself, its session and all descendants."""
    parents, sessions = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            fields = (entry / "stat").read_text("ascii", "replace").rpartition(")")[2].split()
            parents[int(entry.name)], sessions[int(entry.name)] = int(fields[1]), int(fields[3])
    found = [worker.pid] if worker.pid in parents else []
    found += [
        pid for pid, session in sessions.items() if session == worker.pid and pid not in found
    ]
    for pid in found:
        found += [
            child for child, parent in parents.items() if parent == pid and child not in found
        ]
    return found


def signal_family(worker: Process, number: signal.Signals) -> None:
    """Send a signal to a worker's process and all that it has started."""
    for pid in family(worker):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def has_namespaces() -> bool:
    """Return whether process id namespaces can be created here."""
    if shutil.which(NAMESPACE[0]) is None:
        return False
    return subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode == 0


def carries(kind: Callable[[list[bytes]], bool], text: bytes) -> Callable[[list[bytes]], bool]:
    """Count the commands of a kind with a text in one of their arguments."""
    return lambda command: kind(command) and any(text in part for part in command[2:])
