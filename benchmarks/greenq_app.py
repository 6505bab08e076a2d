"""The measured tasks as a greenq app, with default settings."""

from __future__ import annotations

import os
import time

from greenq import Greenq

app = Greenq("bench", broker=os.environ["BENCH_BROKER"])


@app.task(name="bench.noop")
def noop() -> None:
    """Do nothing."""


@app.task(name="bench.nap")
def nap(seconds: float) -> None:
    """Wait as a task does that waits for the network; the worker has patched `time.sleep`."""
    time.sleep(seconds)
