"""Pushes a message and waits until the worker announces it."""

from __future__ import annotations

import redis

from benchmarks import client
from benchmarks.peer import Surroundings


def latencies(count: int) -> list[float]:
    """Push and wait, one after the other; return the times in seconds."""
    server = redis.Redis.from_url(Surroundings.read().url)
    heard = server.pubsub()
    heard.subscribe("floor.done")
    # Wait for the confirmation, after which no announcement is missed.
    heard.get_message(timeout=10)

    def call() -> None:
        server.lpush("floor", "message")
        if heard.get_message(timeout=30) is None:
            raise TimeoutError("nothing was announced in 30 s")

    return client.timed(call, count)


if __name__ == "__main__":
    client.main(latencies=latencies)
