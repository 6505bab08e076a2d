"""Use two signals to show, in the worker's log, the id of the request that has sent a task."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Any

from greenq import Greenq
from greenq.signals import before_task_publish, task_prerun

app = Greenq("request_ids")
request_id: ContextVar[str] = ContextVar("request_id", default="-")
log = logging.getLogger(__name__)


@before_task_publish.connect
def take_along(headers: dict[str, Any], **_: Any) -> None:
    """Put the id into each message, including retries and messages that tasks send."""
    headers["request_id"] = request_id.get()


@task_prerun.connect
def restore(task: Any, **_: Any) -> None:
    """Set the id again in the worker, for the task's code and the receivers called after this."""
    request_id.set(task.request.get("request_id", "-"))


@app.task
def greet(name: str) -> str:
    """Log the id of the request that led to this task."""
    log.info("request %s: hello, %s", request_id.get(), name)
    return request_id.get()


if __name__ == "__main__":
    request_id.set("r-17")
    print(greet.delay("Ada").get(timeout=10))
