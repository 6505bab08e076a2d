"""Two ways to retry: a task that decides for itself, and a task whose options decide.

greenq worker -A retries -l INFO
python retries.py               # in another terminal; takes about five seconds
"""

from __future__ import annotations

import random
from typing import Any

from greenq import Greenq

app = Greenq("retries")


class Busy(Exception):
    """The service is busy."""


def call_service() -> str:
    """Simulate a service that answers one call in three."""
    if random.random() < 2 / 3:
        raise Busy("come back later")
    return "done"


@app.task(bind=True, max_retries=30)
def patient(self: Any) -> str:
    """Retry after half a second; `bind` passes the task itself, which describes the current run."""
    try:
        answer = call_service()
    except Busy as exc:
        raise self.retry(exc=exc, countdown=0.5) from exc
    return f"{answer} after {self.request.retries} retries"


@app.task(autoretry_for=(Busy,), retry_backoff=1, retry_backoff_max=2, max_retries=3)
def automatic() -> str:
    """Do the same with options: delays grow to two seconds; after three retries, the task fails."""
    return call_service()


if __name__ == "__main__":
    print("patient:  ", patient.delay().get(timeout=60))
    try:
        print("automatic:", automatic.delay().get(timeout=60))
    except Exception as exc:
        print(f"automatic: failed in the end: {exc!r}")
