"""Makes calls in a gevent pool, as many as an order says; no call is a message."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402

import redis  # noqa: E402
from gevent.pool import Pool  # noqa: E402

from benchmarks import work  # noqa: E402
from benchmarks.peer import Surroundings  # noqa: E402

_given = Surroundings.read()
_TASKS = {"noop": lambda: None, "fetch": work.fetch}


def main() -> None:
    """Carry out orders forever: a task, its arguments and how often to call it."""
    client = redis.Redis.from_url(_given.url)
    pool = Pool(_given.setup.concurrency)
    while True:
        _, order = client.brpop("plain.orders", timeout=0)
        task, args, count = json.loads(order)
        started = [pool.spawn(_TASKS[task], *args) for _ in range(count)]
        pool.join()
        returned = {call.get() for call in started}
        client.rpush("plain.returned", *map(json.dumps, returned))
        client.incrby("plain.done", count)


if __name__ == "__main__":
    main()
