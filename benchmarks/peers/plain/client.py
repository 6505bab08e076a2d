"""Gives the plain worker its orders."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import redis

from benchmarks import client
from benchmarks.peer import Surroundings

if TYPE_CHECKING:
    from collections.abc import Sequence

_client = redis.Redis.from_url(Surroundings.read().url)


def send(task: str, args: Sequence[float], count: int) -> list[str]:
    """Give one order."""
    _client.lpush("plain.orders", json.dumps((task, args, count)))
    return [task]


def values(_names: Sequence[str]) -> list[object]:
    """Return the distinct results of the last order's calls."""
    returned = _client.lrange("plain.returned", 0, -1)
    _client.delete("plain.returned")
    return [json.loads(each) for each in returned]


if __name__ == "__main__":
    client.main(send, values)
