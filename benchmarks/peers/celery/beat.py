"""The periodic entry of `benchmarks.beat` as a Celery app."""

from __future__ import annotations

import os

from celery import Celery
from celery.schedules import schedule

app = Celery("bench-beat", broker=os.environ["BENCH_URL"])
app.conf.beat_schedule = {
    # Without `relative`, each due time would depend on when the task was last sent, instead of
    # being a whole second.
    "second": {"task": "noop", "schedule": schedule(1.0, relative=True)},
}
