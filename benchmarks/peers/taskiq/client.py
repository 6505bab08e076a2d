"""taskiq's sending side."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from benchmarks import client
from benchmarks.peers.taskiq import tasks

if TYPE_CHECKING:
    from collections.abc import Sequence

_AT_ONCE = 100


def send(task: str, args: Sequence[float], count: int) -> list[str]:
    """Queue calls and return their ids."""
    return asyncio.run(_send(task, args, count))


async def _send(task: str, args: Sequence[float], count: int) -> list[str]:
    await tasks.broker.startup()
    function = getattr(tasks, task)
    sent = []
    for start in range(0, count, _AT_ONCE):
        some = min(_AT_ONCE, count - start)
        sent += await asyncio.gather(*(function.kiq(*args) for _ in range(some)))
    await tasks.broker.shutdown()
    return [each.task_id for each in sent]


def values(ids: Sequence[str]) -> list[object]:
    """Return the results of calls."""
    return asyncio.run(_values(ids))


async def _values(ids: Sequence[str]) -> list[object]:
    found = [await tasks.results.get_result(each) for each in ids]
    await tasks.results.shutdown()
    return [each.return_value for each in found]


if __name__ == "__main__":
    client.main(send, values)
