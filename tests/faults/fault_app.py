"""The app of the fault tests' workers: its tasks append a line to a file for each run."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from greenq import Greenq

app = Greenq("faults", broker=os.environ["TEST_BROKER"])

_RAN = Path(os.environ["TEST_RAN"])
_GATE = os.environ["TEST_GATE"]


@app.task(name="faults.mark", bind=True)
def mark(self: Any, number: int) -> int:
    """Append a line."""
    _append_line(self.request.id)
    return number


@app.task(name="faults.step", bind=True)
def step(self: Any, *args: Any) -> list[Any]:
    """Append a line with the delivery tag, which each sending makes anew; return what came."""
    _append_line(f"{self.request.id}:{self.request.properties['delivery_tag']}")
    return [self.request.id, *args]


@app.task(name="faults.hold", bind=True)
def hold(self: Any, number: int) -> int:
    """Append a line, then run until the common gate or this task's own is opened."""
    _append_line(self.request.id)
    while not Path(_GATE).exists() and not Path(f"{_GATE}{number}").exists():
        time.sleep(0.01)
    return number


def _append_line(task_id: str) -> None:
    # Appended in one write: lines of two workers do not mix.
    with _RAN.open("a") as lines:
        lines.write(f"{task_id}\n")
