"""The greenq app of tests of broadcast queues: each worker writes down what it has heard."""

from __future__ import annotations

import json
import os
from typing import Any

from greenq import Greenq
from greenq.sending.routing import Broadcast

app = Greenq(
    "broadcast",
    broker=os.environ["TEST_BROKER"],
    task_queues=["celery", Broadcast("all")],
    **json.loads(os.environ["TEST_SETTINGS"]),
)


@app.task(name="broadcast.note", bind=True)
def note(self: Any, number: int) -> int:
    """Write down which worker has heard which number."""
    app.transport.client.call("RPUSH", "heard", f"{self.request.hostname} {number}")
    return number
