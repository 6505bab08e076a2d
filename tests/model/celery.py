"""A Celery worker: kombu's operations on the server, in plain commands, one round trip a step."""

from __future__ import annotations

import json
from typing import Any

from tests.model.kernel import Op
from tests.model.net import SimConnection, pack

VISIBILITY_S = 3600.0

# kombu does it in a WATCH transaction on the records, repeated until no change interferes.
_RESTORE = """
local record = redis.call('HGET', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[1], ARGV[1])
if record then
  local held = cjson.decode(record)
  held[1].properties = held[1].properties or {}
  held[1].headers.redelivered = true
  held[1].properties.delivery_info.redelivered = true
  redis.call('RPUSH', held[3], cjson.encode(held[1]))
end
return 1
"""


class SimCelery:
    """One Celery worker with one slot, which acknowledges late."""

    frozen = stopping = stopped = blocked = False
    offset_s = 0.0

    def __init__(self, world: Any, name: str, queue: str) -> None:
        self.world = world
        self.name = name
        self.queue = queue
        self.alive = self.has_lease = True
        self.lost_step = -1
        # True while kombu would lose a popped but unrecorded message if its process died.
        self.is_exposed = False
        self._connection = SimConnection(world.site.client)

    def start(self) -> None:
        self.world.kernel.spawn(self, "celery", self._run)

    def restore(self) -> None:
        self.world.kernel.spawn(self, "restore", self._restore)

    def _call(self, *commands: Any) -> list[Any]:
        return self._connection.pipeline(commands)

    def _pop(self, actor: Any) -> bytes:
        op = Op(actor, "block")
        op.state, op.connection, op.value = "new", self._connection, self.queue
        op.data, op.count = pack(("RPOP", self.queue)), 1
        raw: bytes = self.world.kernel.park(op)
        return raw

    def _run(self) -> None:
        world, keys = self.world, self.world.site.keys
        (actor,) = (each for each in world.kernel.actors if each.call == self._run)
        while True:
            raw = self._pop(actor)
            self.is_exposed = True
            actor.checked = world.step
            message = json.loads(raw)
            tag = message["properties"]["delivery_tag"]
            record = json.dumps([message, "", self.queue])
            score = f"{world.now:.6f}"
            self._call(
                ("ZADD", keys.unacked_index, score, tag), ("HSET", keys.unacked, tag, record)
            )
            self.is_exposed = False
            task_id, retries = message["headers"]["id"], message["headers"].get("retries", 0)
            world.begin(actor, tag, tag, task_id, retries)
            run = world.runs[task_id, retries][-1]
            op = Op(actor, f"run.{task_id}")
            op.body, op.wait = "ok", run
            world.kernel.park(op)
            run.outcome = "ok"
            state = {"status": "SUCCESS", "result": "celery", "task_id": task_id}
            key = keys.result(task_id)
            (old,) = self._call(("GET", key))
            if old is None or b"SUCCESS" not in old:
                self._call(("SETEX", key, 86400, json.dumps(state)))
            self._call(("HDEL", keys.unacked, tag), ("ZREM", keys.unacked_index, tag))

    def _restore(self) -> None:
        world, keys = self.world, self.world.site.keys
        before = f"{world.now - VISIBILITY_S:.6f}"
        (tags,) = self._call(("ZREVRANGEBYSCORE", keys.unacked_index, before, 0))
        world.note_listed({tag.decode() for tag in tags})
        for tag in tags:
            self._call(("EVAL", _RESTORE, 2, keys.unacked, keys.unacked_index, tag))
