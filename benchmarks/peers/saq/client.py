"""SAQ's sending side."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from saq import Status

from benchmarks import client
from benchmarks.peers.saq import tasks

if TYPE_CHECKING:
    from collections.abc import Sequence

_AT_ONCE = 100
_SUBSCRIBED_S = 0.5
_DEADLINE_S = 30


def send(task: str, args: Sequence[float], count: int) -> list[str]:
    """Queue calls and return their ids."""
    return asyncio.run(_send(task, args, count))


async def _send(task: str, args: Sequence[float], count: int) -> list[str]:
    named = dict(zip(("seconds",), args, strict=False))
    sent = []
    for start in range(0, count, _AT_ONCE):
        some = min(_AT_ONCE, count - start)
        sent += await asyncio.gather(*(tasks.queue.enqueue(task, **named) for _ in range(some)))
    await tasks.queue.disconnect()
    return [each.key for each in sent]


def values(ids: Sequence[str]) -> list[object]:
    """Return the results of calls."""
    return asyncio.run(_values(ids))


async def _values(ids: Sequence[str]) -> list[object]:
    found = [await tasks.queue.job(each) for each in ids]
    await tasks.queue.disconnect()
    unfinished = [each for each in found if each is None or each.status != Status.COMPLETE]
    if unfinished:
        raise LookupError(f"{len(unfinished)} of {len(ids)} are not complete: {unfinished[0]}")
    return [each.result for each in found]


def latencies(count: int) -> list[float]:
    """Send a call and wait for its result, one after the other; return the times in seconds.

    This uses SAQ's notifications, subscribed to before each call, because `Queue.apply` polls the
    job every half second.
    """
    return asyncio.run(_latencies(count))


async def _latencies(count: int) -> list[float]:
    # Keep the queue's subscription open between the calls.
    keeper = asyncio.create_task(tasks.queue.listen(["none"], lambda *_: False, timeout=None))
    await asyncio.sleep(_SUBSCRIBED_S)
    taken_s = []
    for number in range(count):
        began_s = time.perf_counter()
        key = f"latency-{number}"
        heard = asyncio.create_task(tasks.queue.listen([key], _ended, timeout=_DEADLINE_S))
        job = await tasks.queue.enqueue("noop", key=key)
        await heard
        await job.refresh()
        taken_s.append(time.perf_counter() - began_s)
        if job.status != Status.COMPLETE:
            raise LookupError(f"not complete: {job}")
    keeper.cancel()
    await tasks.queue.disconnect()
    return taken_s


def _ended(_key: str, status: Status) -> bool:
    return status == Status.COMPLETE


if __name__ == "__main__":
    client.main(send, values, latencies)
