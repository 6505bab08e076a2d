"""The measured tasks as a greenq app."""

from __future__ import annotations

import time

from benchmarks import work
from benchmarks.peer import SIGNING_KEY, Surroundings
from greenq import Greenq

_given = Surroundings.read()
_tally = work.Tally()

app = Greenq("bench", broker=_given.url)
app.conf.update(task_ignore_result=not _given.setup.results)
if _given.setup.acks:
    app.conf.update(task_acks_late=_given.setup.acks == "late")
if _given.setup.signed:
    app.conf.update(security_signing_key=SIGNING_KEY)


@app.task(name="noop")
def noop() -> None:
    """Do nothing."""


@app.task(name="tally")
def tally() -> None:
    """Count the call."""
    _tally.add()


@app.task(name="nap")
def nap(seconds: float) -> float:
    """Wait like a task that waits for the network; the worker has patched `time.sleep`."""
    time.sleep(seconds)
    return seconds


@app.task(name="fetch")
def fetch(port: int) -> int:
    """Fetch a page."""
    return work.fetch(port)


@app.task(name="block")
def block(seconds: float) -> None:
    """Compute, which blocks the event loop; the call is counted before that."""
    _tally.add()
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        pass


@app.task(name="lateness")
def lateness(due_s: float) -> float:
    """Return how many seconds late this runs."""
    return time.time() - due_s
