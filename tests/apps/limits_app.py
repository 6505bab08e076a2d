"""Tasks that are ended from outside, or that begin no more often than they may."""

from __future__ import annotations

import json
import os
import time

from greenq import Greenq
from greenq.errors import SoftTimeLimitExceeded

app = Greenq("limits", broker=os.environ["TEST_BROKER"], **json.loads(os.environ["TEST_SETTINGS"]))


def note(text: str) -> None:
    """Tell the test, through a list on the server."""
    app.transport.client.call("RPUSH", "noted", text)


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def wait(name: str, seconds: float = 60) -> str:
    """Wait, and clean up whatever happens."""
    note(f"{name} begins")
    try:
        time.sleep(seconds)
    finally:
        time.sleep(0.01)
        note(f"{name} cleaned up")
    return name


@app.task
def careful(name: str) -> str:
    """Note a soft limit, and go on for as long again as it takes."""
    try:
        time.sleep(60)
    except SoftTimeLimitExceeded:
        note(f"{name} soft")
    return name


@app.task
def stubborn(name: str, times: int) -> str:
    """Swallow whatever comes, so many times."""
    note(f"{name} begins")
    for _ in range(times):
        try:
            time.sleep(60)
        except BaseException as exc:
            note(f"{name} swallowed {type(exc).__name__}")
    return name


@app.task
def compute(seconds: float) -> str:
    """Keep the loop from everybody, then wait."""
    ends_s = time.monotonic() + seconds
    while time.monotonic() < ends_s:
        pass
    time.sleep(60)
    return "done"


@app.task(rate_limit="10/s")
def limited(number: int) -> float:
    return time.monotonic()
