"""Celery's calling side."""

from __future__ import annotations

from benchmarks import client
from benchmarks.peers.celery import tasks

if __name__ == "__main__":
    client.main(
        latencies=lambda count: client.timed(lambda: tasks.noop.delay().get(30), count),
        ping=lambda: tasks.app.control.ping(timeout=1),
    )
