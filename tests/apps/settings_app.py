"""Tasks that show what settings do; broker and settings come from the environment."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from typing import Any

from greenq import Greenq

app = Greenq(
    "settings", broker=os.environ["TEST_BROKER"], **json.loads(os.environ["TEST_SETTINGS"])
)

if os.environ.get("TEST_OWN_LOG"):
    logging.basicConfig(format="OWN FORMAT %(message)s", level="INFO")


@app.task
def add(x: Any, y: Any) -> Any:
    return x + y


@app.task
def say(text: str) -> None:
    print(text)  # noqa: T201


@app.task
def fail() -> None:
    raise ValueError("on purpose")


@app.task(bind=True)
def request(self: Any) -> dict[str, Any]:
    return {"priority": self.request.delivery_info["priority"], "worker": self.request.hostname}


@app.task(bind=True)
def parent(self: Any) -> str:
    return str(request.delay().id)


@app.task(bind=True, max_retries=1)
def again(self: Any) -> float:
    if not self.request.retries:
        raise self.retry(args=(), kwargs={})
    return time.time()


@app.task
def wait(seconds: float) -> None:
    time.sleep(seconds)


_local = threading.local()


@app.task
def left() -> Any:
    """Leave something behind, and return what was there."""
    found = getattr(_local, "left", None)
    _local.left = "something"
    return found


@app.task
def sized(count: int) -> str:
    return "x" * count


@app.task
def imported(module: str) -> bool:
    return module in sys.modules
