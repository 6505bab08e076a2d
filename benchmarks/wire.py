"""Task messages in Celery's wire format, in bulk, with the same bytes for every contender."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

from greenq import Greenq

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    import redis

    from benchmarks.server import Server
    from greenq.protocol.signer import Signer

# The number of values per command, far below the server's limits.
CHUNK = 500

_QUEUE = "bench.template"


class Messages:
    """Writes any number of messages of one task, each with its own id.

    greenq's producer writes the first message; all further ones copy its text with other ids.
    """

    def __init__(
        self,
        server: Server,
        client: redis.Redis,
        task: str,
        args: Sequence[object] = (),
        *,
        signer: Signer | None = None,
        **options: Any,
    ) -> None:
        """Write the first message, with the options of ``send_task``; `signer` signs them all."""
        self._signer = signer
        app = Greenq("bench", broker=server.url, set_as_current=False)
        first = app.send_task(task, args, queue=_QUEUE, **options).id
        app.close()
        text = bytes(client.rpop(_QUEUE)).decode()
        written = json.loads(text)
        tag, self._eta = written["properties"]["delivery_tag"], written["headers"]["eta"]
        text = text.replace(json.dumps(_QUEUE), '"celery"')
        self._text = text.replace(first, "<task id>").replace(tag, "<delivery tag>")

    def ids(self, count: int) -> list[str]:
        """Return `count` new ids."""
        start = uuid.uuid4().int & ~0xFFFFFFFFFFFF
        return [str(uuid.UUID(int=start + number)) for number in range(count)]

    def text(self, task_id: str, eta: datetime | None = None) -> str:
        """Return the message of one call, with its ETA, if any."""
        text = self._text if eta is None else self._text.replace(self._eta, eta.isoformat())
        return text.replace("<task id>", task_id).replace("<delivery tag>", f"tag-{task_id}")

    def push(self, client: redis.Redis, key: str, ids: Sequence[str]) -> None:
        """Push messages to a list, in the order that they are to be taken in."""
        for part in chunks(ids):
            client.lpush(key, *map(self._pushed, part))

    def _pushed(self, task_id: str) -> str | bytes:
        text = self.text(task_id)
        return text if self._signer is None else self._signer.seal("message", "celery", text)


def chunks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """Split ids into chunks for one command each."""
    for start in range(0, len(ids), CHUNK):
        yield ids[start : start + CHUNK]
