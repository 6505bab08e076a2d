"""The measured tasks as a Celery app, with default settings."""

from __future__ import annotations

import os

from celery import Celery  # type: ignore[import-untyped]

_BROKER = os.environ["BENCH_BROKER"]

app = Celery("bench", broker=_BROKER, backend=_BROKER)


@app.task(name="bench.noop")  # type: ignore[untyped-decorator]
def noop() -> None:
    """Do nothing."""
