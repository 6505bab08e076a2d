"""Tasks whose spans are written to a file, one JSON object a line."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from greenq import Greenq
from greenq.contrib.opentelemetry import instrument

app = Greenq("traced", broker=os.environ["TEST_BROKER"], **json.loads(os.environ["TEST_SETTINGS"]))

_file = Path(os.environ["TEST_SPANS"]).open("a", buffering=1, encoding="utf-8")  # noqa: SIM115
_provider = TracerProvider()
_provider.add_span_processor(
    SimpleSpanProcessor(
        ConsoleSpanExporter(out=_file, formatter=lambda span: span.to_json(indent=None) + "\n")
    )
)
instrument(tracer_provider=_provider)


@app.task
def parent() -> str:
    child.delay()
    return trace_id()


@app.task
def child() -> str:
    return trace_id()


@app.task
def wait_and_tell(seconds: float) -> str:
    """Return the trace after others have run in between."""
    time.sleep(seconds)
    return trace_id()


@app.task
def broken() -> None:
    raise ValueError("on purpose")


@app.task(throws=(KeyError,))
def expected() -> None:
    raise KeyError("on purpose")


@app.task(bind=True, max_retries=1)
def again(self: Any) -> None:
    if not self.request.retries:
        raise self.retry(countdown=0, exc=ValueError("once more"))


def trace_id() -> str:
    """Return the trace that a task's code sees."""
    return f"{trace.get_current_span().get_span_context().trace_id:032x}"
