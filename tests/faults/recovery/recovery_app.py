"""The recovery tests' app: its tasks record each run for long/ledger.py."""

from __future__ import annotations

import ctypes
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from greenq import Greenq

app = Greenq(
    "recovery", broker=os.environ["TEST_BROKER"], **json.loads(os.environ["TEST_SETTINGS"])
)

_GATE = os.environ["TEST_GATE"]
_WORKER = os.environ["TEST_WORKER"]


@app.task(name="recovery.nap")
def nap(number: int, seconds: float = 0.0, payload: str = "") -> int:
    """Wait."""
    with _noted(number):
        time.sleep(seconds)
    return number


@app.task(name="recovery.hold")
def hold(number: int, payload: str = "") -> int:
    """Run until a gate is opened."""
    with _noted(number):
        _wait_gate(number)
    return number


@app.task(name="recovery.early", acks_late=False)
def early(number: int) -> int:
    """Run at most once."""
    with _noted(number):
        pass
    return number


@app.task(name="recovery.crash")
def crash(number: int) -> None:
    """End the process like a segmentation fault."""
    with _noted(number):
        os._exit(1)


@app.task(name="recovery.burn")
def burn(number: int, seconds: float) -> int:
    """Compute without ever yielding to the hub."""
    with _noted(number):
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            pass
    return number


@app.task(name="recovery.gil")
def gil(number: int, seconds: int) -> int:
    """Hold the GIL, like a long call into C."""
    with _noted(number):
        ctypes.PyDLL(None).sleep(seconds)
    return number


@app.task(name="recovery.again", bind=True)
def again(self: Any, number: int, queue: str | None = None) -> int:
    """Run until a gate is opened, then retry, on another queue if given."""
    with _noted(number):
        if not self.request.retries:
            _wait_gate(number)
    if not self.request.retries:
        raise self.retry(countdown=0, **({"queue": queue} if queue else {}))
    return number


@app.task(name="recovery.insert", bind=True)
def insert(self: Any, number: int, retries: bool) -> int:
    """Run until a gate is opened, then create what can be created only once."""
    with _noted(number):
        _wait_gate(number)
        try:
            Path(f"{_GATE}.row{number}").touch(exist_ok=False)
        except FileExistsError as exc:
            if retries:
                raise self.retry(countdown=0, exc=exc) from exc
            raise
    return number


def _wait_gate(number: int) -> None:
    """Wait for the common gate, the task's own, or this worker's."""
    gates = [Path(_GATE), Path(f"{_GATE}{number}"), Path(f"{_GATE}-{_WORKER}")]
    while not any(gate.exists() for gate in gates):
        time.sleep(0.02)


@contextmanager
def _noted(number: int) -> Iterator[None]:
    _note("start", number)
    yield
    _note("end", number)


def _note(event: str, number: int) -> None:
    # Appended in one write: lines of two workers do not mix. All processes have the same clock.
    with open(os.environ["TEST_LEDGER"], "a", encoding="ascii") as lines:
        lines.write(f"{event} {number} {os.getpid()} {time.monotonic():.4f}\n")
