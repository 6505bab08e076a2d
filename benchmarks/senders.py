"""One sender: ``python -m benchmarks.senders CONTENDER one|bulk COUNT``; prints its figures.

All senders send the same call: a task with one number as its argument. The floor sends ready-made
bytes, with one LPUSH per message, and so shows the cost of the round trip or the pipeline alone.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from typing import TYPE_CHECKING

import redis

from benchmarks.peer import Surroundings

if TYPE_CHECKING:
    from collections.abc import Callable

_WARM_UP = 100
_PIPELINE = 500
_ARGUMENT = 1.0


def _greenq() -> tuple[Callable[[int], object], Callable[[int], object]]:
    nap = importlib.import_module("benchmarks.peers.greenq.tasks").nap

    def one(count: int) -> None:
        for _ in range(count):
            nap.delay(_ARGUMENT)

    return one, lambda count: nap.delay_many((_ARGUMENT,) for _ in range(count))


def _celery() -> tuple[Callable[[int], object], Callable[[int], object]]:
    tasks = importlib.import_module("benchmarks.peers.celery.tasks")

    def one(count: int) -> None:
        for _ in range(count):
            tasks.nap.delay(_ARGUMENT)

    def bulk(count: int) -> None:
        with tasks.app.producer_pool.acquire(block=True) as producer:
            for _ in range(count):
                tasks.nap.apply_async((_ARGUMENT,), producer=producer)

    return one, bulk


def _floor() -> tuple[Callable[[int], object], Callable[[int], object]]:
    client = redis.Redis.from_url(Surroundings.read().url)
    # This is as long as the message of such a call.
    text = "x" * 850

    def one(count: int) -> None:
        for _ in range(count):
            client.lpush("celery", text)

    def bulk(count: int) -> None:
        for start in range(0, count, _PIPELINE):
            pipeline = client.pipeline(transaction=False)
            for _ in range(min(_PIPELINE, count - start)):
                pipeline.lpush("celery", text)
            pipeline.execute()

    return one, bulk


_SENDERS = {"greenq": _greenq, "celery": _celery, "floor": _floor}


def main() -> None:
    """Send, and print how long it took."""
    contender, how, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    send = _SENDERS[contender]()[("one", "bulk").index(how)]
    send(_WARM_UP)
    began_s, cpu_s = time.perf_counter(), time.process_time()
    send(count)
    figures = {
        "sent": _WARM_UP + count,
        "seconds": time.perf_counter() - began_s,
        "cpu_s": time.process_time() - cpu_s,
    }
    json.dump(figures, sys.stdout)


if __name__ == "__main__":
    main()
