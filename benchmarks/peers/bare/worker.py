"""The bare loop: a take script, a greenlet per task, group commit; in Celery's wire format.

The loop gives no guarantees: it handles no errors, logs nothing, and its death goes unnoticed. On
the server it does what every worker must do, so it shows what a plain loop with gevent, redis-py
and the standard json can achieve. Tasks are acknowledged late.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402
import time  # noqa: E402
from base64 import b64decode  # noqa: E402
from datetime import UTC, datetime  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
import redis  # noqa: E402
from gevent.event import Event  # noqa: E402

from benchmarks import work  # noqa: E402
from benchmarks.peer import Surroundings  # noqa: E402

_QUEUE = "celery"
_TAKE_MOST = 1000
_WRITE_MOST = 1000
_RESULT_S = 86400
_WAIT_S = 2

# Pops up to ARGV[2] messages and records each as reserved under the tag ARGV[1]<number>.
_TAKE = """
local messages = redis.call('RPOP', KEYS[1], ARGV[2])
if not messages then return {} end
local now, records, scores = redis.call('TIME')[1], {}, {}
for i, message in ipairs(messages) do
  local tag = ARGV[1] .. (ARGV[3] + i)
  records[2 * i - 1], records[2 * i] = tag, '[' .. message .. ', "", "celery"]'
  scores[2 * i - 1], scores[2 * i] = now, tag
end
redis.call('HSET', 'unacked', unpack(records))
redis.call('ZADD', 'unacked_index', unpack(scores))
return messages
"""

_given = Surroundings.read()
_tally = work.Tally()


def _nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


_TASKS: dict[str, Any] = {
    "noop": lambda: None,
    "tally": _tally.add,
    "nap": _nap,
    "fetch": work.fetch,
}


class Bare:
    """One worker: this greenlet takes messages, another writes, and each task has its own."""

    def __init__(self) -> None:
        """Connect."""
        self._taking = redis.Redis.from_url(_given.url)
        self._writing = redis.Redis.from_url(_given.url)
        self._take = self._taking.register_script(_TAKE)
        self._prefix = f"{time.time_ns()}:"
        self._taken = 0
        self._running = 0
        self._room = Event()
        self._finished: list[tuple[str, str, bytes]] = []
        self._filled = Event()

    def run(self) -> None:
        """Take messages forever."""
        gevent.spawn(self._write)
        while True:
            room = min(_given.setup.concurrency - self._running, _TAKE_MOST)
            if room <= 0:
                self._room.clear()
                self._room.wait()
                continue
            messages = self._take([_QUEUE], [self._prefix, room, self._taken])
            if not messages:
                self._taking.blmove(_QUEUE, _QUEUE, _WAIT_S, "RIGHT", "RIGHT")
                continue
            for raw in messages:
                self._taken += 1
                self._start(raw, f"{self._prefix}{self._taken}")
            gevent.sleep(0)

    def _start(self, raw: bytes, tag: str) -> None:
        envelope = json.loads(raw)
        headers = envelope["headers"]
        args, kwargs, _ = json.loads(b64decode(envelope["body"]))
        self._running += 1
        gevent.spawn(self._execute, _TASKS[headers["task"]], headers["id"], tag, args, kwargs)

    def _execute(self, function: Any, task_id: str, tag: str, args: Any, kwargs: Any) -> None:
        value = function(*args, **kwargs)
        payload = b""
        if _given.setup.results:
            result = {
                "status": "SUCCESS",
                "result": value,
                "traceback": None,
                "children": [],
                "date_done": datetime.now(UTC).isoformat(),
                "task_id": task_id,
            }
            payload = json.dumps(result).encode()
        self._running -= 1
        self._room.set()
        self._finished.append((task_id, tag, payload))
        self._filled.set()

    def _write(self) -> None:
        """Write everything that finished during the last write."""
        while True:
            self._filled.wait()
            finished, self._finished = self._finished[:_WRITE_MOST], self._finished[_WRITE_MOST:]
            if not self._finished:
                self._filled.clear()
            pipeline = self._writing.pipeline(transaction=False)
            for task_id, _, payload in finished:
                if payload:
                    key = f"celery-task-meta-{task_id}"
                    pipeline.setex(key, _RESULT_S, payload)
                    pipeline.publish(key, payload)
            tags = [tag for _, tag, _ in finished]
            pipeline.zrem("unacked_index", *tags)
            pipeline.hdel("unacked", *tags)
            pipeline.execute()


if __name__ == "__main__":
    Bare().run()
