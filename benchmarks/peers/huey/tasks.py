"""The measured tasks as a huey app."""

from __future__ import annotations

import time

from huey import RedisHuey

from benchmarks import work
from benchmarks.peer import Surroundings

_given = Surroundings.read()

huey = RedisHuey(
    "bench",
    # Each greenlet waits on its own connection; redis-py's default limit is 100.
    url=f"{_given.url}?max_connections=20000",
    results=_given.setup.results,
    store_none=True,
)


@huey.task()
def noop() -> None:
    """Do nothing."""


@huey.task()
def nap(seconds: float) -> float:
    """Wait like a task that waits for the network; the worker has patched `time.sleep`."""
    time.sleep(seconds)
    return seconds


@huey.task()
def fetch(port: int) -> int:
    """Fetch a page."""
    return work.fetch(port)
