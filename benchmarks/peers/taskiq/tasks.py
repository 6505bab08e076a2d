"""The measured tasks as a taskiq app."""

from __future__ import annotations

import asyncio

from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from benchmarks.peer import Surroundings

_given = Surroundings.read()

results = RedisAsyncResultBackend(_given.url)
broker = RedisStreamBroker(_given.url, xread_count=_given.setup.concurrency).with_result_backend(
    results
)


@broker.task("noop")
async def noop() -> None:
    """Do nothing."""


@broker.task("nap")
async def nap(seconds: float) -> float:
    """Wait like a task that waits for the network."""
    await asyncio.sleep(seconds)
    return seconds
