"""Tasks that both apps, Celery's and greenq's, register under the same names."""

from __future__ import annotations

import time
import urllib.error
from email.message import Message
from typing import Any


class Outer:
    """Holds an exception class whose qualified name has a dot."""

    class NestedError(Exception):
        """Defined inside another class."""


class Opaque:
    """A value that no serializer but pickle can write."""

    def __repr__(self) -> str:
        return "<opaque>"


def add(x: Any, y: Any) -> Any:
    return x + y


def total(numbers: list[Any]) -> Any:
    """Add up numbers, as the body of a chord."""
    return sum(numbers)


def echo(*args: Any, **kwargs: Any) -> list[Any]:
    return [list(args), kwargs]


def sleep(seconds: float, value: Any = None) -> Any:
    time.sleep(seconds)
    return value


def nothing(*_args: Any) -> None:
    """Return None."""


def fail_value(text: str, number: int) -> None:
    raise ValueError(text, number)


def fail_key(key: str) -> None:
    raise KeyError(key)


def fail_nested(text: str) -> None:
    raise Outer.NestedError(text)


def fail_http() -> None:
    raise urllib.error.HTTPError("http://x", 404, "Not Found", Message(), None)


def fail_opaque(text: str) -> None:
    raise ValueError(text, Opaque())


def inspect_request(self: Any, *_args: Any, **_kwargs: Any) -> dict[str, Any]:
    """Return what the task sees of its own execution."""
    request = self.request
    return {
        "name": self.name,
        "id": request.id,
        "task": request.task,
        "args": list(request.args),
        "kwargs": dict(request.kwargs),
        "retries": request.retries,
        "eta": request.eta,
        "expires": request.expires,
        "root_id": request.root_id,
        "parent_id": request.parent_id,
        "priority": request.delivery_info["priority"],
        "routing_key": request.delivery_info["routing_key"],
        "redelivered": bool(request.delivery_info["redelivered"]),
        "correlation_id": request.correlation_id,
        "hostname": request.hostname,
        "headers": dict(request.headers or {}),
        "called_directly": request.called_directly,
        "timelimit": list(request.timelimit or (None, None)),
        "argsrepr": request.argsrepr,
        "kwargsrepr": request.kwargsrepr,
        "ignore_result": request.ignore_result,
        "origin": request.origin,
    }


def retry_until(self: Any, wanted: int) -> int:
    """Fail until the task has been retried `wanted` times."""
    if self.request.retries < wanted:
        raise self.retry(exc=ValueError("not yet"), countdown=0.05, max_retries=wanted)
    retries: int = self.request.retries
    return retries


def retry_for_ever(self: Any) -> None:
    raise self.retry(exc=ValueError("never"), countdown=0.01, max_retries=2)


def retry_late(self: Any) -> None:
    raise self.retry(exc=ValueError("later"), countdown=60)


def retry_exhausted(self: Any) -> None:
    raise self.retry(countdown=0.01, max_retries=0)


def autoretry(self: Any, wanted: int) -> int:
    if self.request.retries < wanted:
        raise ConnectionError("try again")
    retries: int = self.request.retries
    return retries


def progress(self: Any, steps: int) -> str:
    """Announce each step."""
    for step in range(steps):
        self.update_state(state="PROGRESS", meta={"step": step, "of": steps})
        time.sleep(0.02)
    return "done"


def send_child(self: Any, x: int) -> str:
    """Send another task from inside this one and return its id."""
    child: str = self.app.send_task("shared.inspect_request", (x,)).id
    return child


PLAIN = (
    add, total, echo, sleep, nothing, fail_value, fail_key, fail_nested, fail_opaque, fail_http,
)  # fmt: skip
BOUND = (
    inspect_request, retry_until, retry_for_ever, retry_late, retry_exhausted, progress, send_child,
)  # fmt: skip


def register(app: Any) -> None:
    """Make tasks named ``shared.<function>`` in an app of either kind."""
    for function in PLAIN:
        app.task(name=f"shared.{function.__name__}")(function)
    for function in BOUND:
        app.task(name=f"shared.{function.__name__}", bind=True)(function)
    app.task(
        name="shared.autoretry",
        bind=True,
        autoretry_for=(ConnectionError,),
        retry_kwargs={"max_retries": 3, "countdown": 0.05},
    )(autoretry)
    app.task(name="shared.ignored", ignore_result=True)(nothing)
    app.task(name="shared.tracked", track_started=True)(sleep)
