"""Shared by the fault tests: a server, a proxy in front of it, workers, and a view of all."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from greenq import Greenq
from tests.faults.proxy import Proxy, proxy_before
from tests.servers import APPS, ROOT, Process, Server, spawn_greenq

QUEUE = "celery"


class Scene:
    """One test's server, proxy, workers and tasks."""

    def __init__(self, server: Server, proxy: Proxy, folder: Path) -> None:
        self.server = server
        self.proxy = proxy
        self.ids: list[str] = []
        self._folder = folder
        self._ran = folder / "ran"
        self._gate = folder / "gate"
        self._app = Greenq("sender", broker=server.url, set_as_current=False)
        self._numbers = itertools.count(1)
        self.workers: list[Process] = []

    def send(self, count: int, task: str = "faults.mark") -> None:
        """Send tasks to the server itself, not through the proxy."""
        for _ in range(count):
            number = len(self.ids)
            self.ids.append(self._app.send_task(task, (number,), task_id=f"task-{number}").id)

    def worker(self, *options: str, direct: bool = False) -> Process:
        """Start a worker behind the proxy, or `direct` to the server; it is killed at the end."""
        number = next(self._numbers)
        worker = spawn_greenq(
            self.server.url if direct else self.proxy.url,
            self._folder / f"worker{number}.log",
            *options,
            app="fault_app",
            env={
                "PYTHONPATH": os.pathsep.join(map(str, (ROOT, APPS, Path(__file__).parent))),
                "TEST_RAN": str(self._ran),
                "TEST_GATE": str(self._gate),
            },
        )
        self.workers.append(worker)
        return worker

    def open_gate(self, number: int | None = None) -> None:
        """Let all held tasks end, or the one with this number."""
        Path(f"{self._gate}{'' if number is None else number}").touch()

    def ran(self) -> Counter[str]:
        """Count the runs of each task."""
        return Counter(self._ran.read_text().split()) if self._ran.exists() else Counter()

    def queued(self) -> Counter[str]:
        """Count the messages in the queue's lists and its inbox, by task id."""
        messages: list[bytes] = []
        for key in self.server.client.scan_iter("*"):
            if key.split(b"\x06\x16")[0] == QUEUE.encode() or key == b"greenq.inbox.celery":
                messages += self.server.client.lrange(key, 0, -1)
        return Counter(_task_id(json.loads(message)) for message in messages)

    def reserved(self) -> Counter[str]:
        """Count the reserved messages by task id; hash and index must hold the same tags."""
        return Counter(_task_id(json.loads(record)[0]) for record in self.server.unacked().values())

    def stored(self) -> set[str]:
        """Return the tasks with a stored success and their own number as the result."""
        return {
            task_id
            for number, task_id in enumerate(self.ids)
            if (meta := self.server.client.get(f"celery-task-meta-{task_id}")) is not None
            and (json.loads(meta)["status"], json.loads(meta)["result"]) == ("SUCCESS", number)
        }

    def is_done(self) -> bool:
        """Return whether all tasks have a result and no message is left anywhere."""
        return len(self.stored()) == len(self.ids) and not self.queued() and not self.reserved()

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
        self._app.close()

    def logs(self) -> str:
        return "\n".join(f"--- worker {each.pid}\n{each.text}" for each in self.workers)


def _task_id(message: dict[str, dict[str, str]]) -> str:
    return message["headers"]["id"]


@pytest.fixture
def scene(server: Server, tmp_path: Path) -> Iterator[Scene]:
    """A server, a proxy in front of it, and the means to watch a worker fail."""
    with ExitStack() as stack:
        proxy = stack.enter_context(proxy_before(server.url))
        made = Scene(server, proxy, tmp_path)
        stack.callback(made.close)
        try:
            yield made
        finally:
            # Shown by pytest when the test fails.
            sys.stderr.write(made.logs())
