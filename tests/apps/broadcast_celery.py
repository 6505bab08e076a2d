"""The Celery app of tests of broadcast queues: each worker writes down what it has heard."""

from __future__ import annotations

import json
import os
from typing import Any

import redis
from celery import Celery
from kombu.common import Broadcast, Queue

URL = os.environ["TEST_BROKER"]
app = Celery("broadcast", broker=URL, backend=URL)
app.conf.update(
    broker_connection_retry_on_startup=True,
    task_queues=[Queue("celery"), Broadcast("all")],
    **json.loads(os.environ["TEST_SETTINGS"]),
)


@app.task(name="broadcast.note", bind=True)
def note(self: Any, number: int) -> int:
    """Write down which worker has heard which number."""
    with redis.Redis.from_url(URL) as client:
        client.rpush("heard", f"{self.request.hostname} {number}")
    return number
