"""An app of workers that belong together: a leader's task, an agent, a command of its own."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from greenq import Greenq
from greenq.commands.registry import inspect_command

app = Greenq("cluster", broker=os.environ["TEST_BROKER"], **json.loads(os.environ["TEST_SETTINGS"]))


def note(text: str) -> None:
    """Tell the test, through a list on the server."""
    app.transport.client.call("RPUSH", "noted", text)


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def mark(name: str) -> None:
    note(name)


@app.task
def hold(name: str) -> str:
    """Run until the test opens the gate."""
    ends_s = time.monotonic() + 60
    while not app.transport.client.call("EXISTS", "gate") and time.monotonic() < ends_s:
        time.sleep(0.05)
    return name


@app.task
def compute(seconds: float) -> None:
    """Keep the loop from everybody."""
    ends_s = time.monotonic() + seconds
    while time.monotonic() < ends_s:
        pass


@app.leader
def lead(action: Any) -> None:
    note(f"led {action}")


@inspect_command(args=[("factor", int)])
def load(worker: Any, factor: int = 1) -> dict[str, int]:
    return {"load": factor * worker.pool.running}


class Agent:
    """Lives as long as the connection."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker

    def start(self) -> None:
        note(f"agent of {self.worker.hostname} starts")

    def stop(self) -> None:
        note(f"agent of {self.worker.hostname} stops")
