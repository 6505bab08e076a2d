"""The measured tasks as a SAQ app."""

from __future__ import annotations

import asyncio
from typing import Any

from saq import Queue

from benchmarks.peer import Surroundings

_given = Surroundings.read()

queue = Queue.from_url(_given.url)


async def noop(_context: Any) -> None:
    """Do nothing."""


async def nap(_context: Any, *, seconds: float) -> float:
    """Wait like a task that waits for the network."""
    await asyncio.sleep(seconds)
    return seconds


settings = {"queue": queue, "functions": [noop, nap], "concurrency": _given.setup.concurrency}
