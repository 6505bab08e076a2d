"""The measured tasks as a Celery app."""

from __future__ import annotations

import time

from celery import Celery

from benchmarks import work
from benchmarks.peer import Surroundings

_given = Surroundings.read()
_tally = work.Tally()

app = Celery("bench", broker=_given.url, backend=_given.url)
app.conf.task_ignore_result = not _given.setup.results
if _given.setup.acks:
    app.conf.task_acks_late = _given.setup.acks == "late"
if _given.setup.acks == "late" or _given.variant == "tuned":
    # With the default of 10 connections, late acknowledgements are dropped and tasks run twice.
    app.conf.broker_transport_options = {"max_connections": 2000}
if _given.variant == "tuned":
    app.conf.update(
        # One result backend for all greenlets; otherwise each task opens its own connection.
        result_backend_thread_safe=True,
        redis_max_connections=2000,
        broker_pool_limit=2000,
        worker_prefetch_multiplier=16,
        worker_disable_rate_limits=True,
        worker_send_task_events=False,
        task_send_sent_event=False,
    )


@app.task(name="noop")
def noop() -> None:
    """Do nothing."""


@app.task(name="tally")
def tally() -> None:
    """Count the call."""
    _tally.add()


@app.task(name="nap")
def nap(seconds: float) -> float:
    """Wait like a task that waits for the network; the pool has patched `time.sleep`."""
    time.sleep(seconds)
    return seconds


@app.task(name="fetch")
def fetch(port: int) -> int:
    """Fetch a page."""
    return work.fetch(port)
