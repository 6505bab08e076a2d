"""Starts and ends a contender's worker processes and clients."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import environments, proc, work
from benchmarks.peer import Setup, Surroundings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.peer import Peer
    from benchmarks.server import Server

_STOP_S = 5.0
_CLIENT_S = 600.0
_TOLD_CHARS = 3000


class Workers:
    """The worker processes of one contender."""

    def __init__(self, peer: Peer, folder: Path) -> None:
        """Create an empty set of processes; logs and counts go to the directory `folder`."""
        self.peer = peer
        self.processes: list[subprocess.Popen[bytes]] = []
        self._log = folder / "worker.log"
        self.counts = folder / "counts"
        self.counts.mkdir()

    def start(self, server: Server, setup: Setup) -> None:
        """Start one more process."""
        variables = environments.variables(self.peer)
        variables |= Surroundings(server.url, setup, self.peer.variant).write()
        variables["BENCH_TALLY"] = str(self.counts)
        words = self.peer.worker(setup)
        if setup.processes > 1 and self.peer.member:
            words = (*words, self.peer.member.format(number=len(self.processes) + 1))
        with self._log.open("ab") as stream:
            self.processes.append(
                subprocess.Popen(
                    environments.command(self.peer, words),
                    env=variables,
                    cwd=self._log.parent,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def stop(self) -> None:
        """End all processes, including any that they have started and left behind."""
        for process in self.processes:
            process.terminate()
        deadline = time.monotonic() + _STOP_S
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                # Usually, the process's session has ended with it.
                continue
            process.wait()

    @property
    def pids(self) -> list[int]:
        """All processes, including those started by the workers."""
        return [pid for process in self.processes for pid in proc.tree(process.pid)]

    @property
    def cpu_s(self) -> list[float]:
        """The processor time of each worker so far, including its child processes."""
        return [proc.cpu_s(proc.tree(process.pid)) for process in self.processes]

    @property
    def tallied(self) -> int:
        """How many times the task `tally` has been called so far."""
        return work.tallied(self.counts)

    def complaint(self, text: str) -> RuntimeError:
        """Return an error with the end of the workers' log."""
        said = self._log.read_text("utf-8", "replace")[-_TOLD_CHARS:]
        return RuntimeError(f"{self.peer.title}: {text}; the end of its log:\n{said}")

    def check_alive(self) -> None:
        """Check that all processes are running.

        Raises:
            RuntimeError: a process has ended; the error contains the end of its log.
        """
        if any(process.poll() is not None for process in self.processes):
            raise self.complaint("a worker has ended")


@contextmanager
def workers(server: Server, peer: Peer, setup: Setup) -> Iterator[Workers]:
    """Run a contender's workers until the block ends."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="greenq-bench-"))
        started = Workers(peer, Path(folder))
        stack.callback(started.stop)
        for _ in range(setup.processes):
            started.start(server, setup)
        yield started


def run_client(server: Server, peer: Peer, setup: Setup, *words: str) -> str:
    """Run a contender's client to its end and return its output.

    Raises:
        RuntimeError: the client failed; the error contains its output.
    """
    with tempfile.TemporaryDirectory(prefix="greenq-bench-") as folder:
        variables = environments.variables(peer)
        variables |= Surroundings(server.url, setup, peer.variant).write()
        variables["BENCH_TALLY"] = folder
        done = subprocess.run(
            environments.command(peer, (*peer.client, *words)),
            env=variables, cwd=folder, capture_output=True, text=True,
            timeout=_CLIENT_S, check=False,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{peer.title}: its client failed:\n{done.stderr[-_TOLD_CHARS:]}")
    return done.stdout
