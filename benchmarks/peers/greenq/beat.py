"""The periodic entries of `benchmarks.beat` as a greenq app; their number is in BENCH_ENTRIES."""

from __future__ import annotations

import os
from typing import Any

from greenq import Greenq

_many = int(os.environ.get("BENCH_ENTRIES", "0"))

# The entry is due at whole seconds, as in the Celery app. All due times are wanted, including those
# that no beat could send in time.
_SECOND: dict[str, Any] = {
    "task": "noop", "schedule": 1.0, "relative": True, "missed": "run_all",
}  # fmt: skip
_MINUTE: dict[str, Any] = {"task": "noop", "schedule": "* * * * *"}

app = Greenq(
    "bench-beat",
    broker=os.environ["BENCH_URL"],
    task_ignore_result=True,
    beat_schedule={f"minute-{n}": _MINUTE for n in range(_many)} or {"second": _SECOND},
)
