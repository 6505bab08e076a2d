"""Tasks of workflows, for workers of both kinds; what ran is recorded on the server."""

from __future__ import annotations

import os
import time
from typing import Any

import redis

_seen = redis.Redis.from_url(os.environ["TEST_BROKER"])


def record(text: str) -> None:
    """Append a line to the list ``seen``."""
    _seen.rpush("seen", text)


def register(app: Any) -> None:
    """Register the tasks with an app of either kind."""

    @app.task(name="flow.add")
    def add(*numbers: int) -> int:
        record(f"add {numbers}")
        return sum(numbers)

    @app.task(name="flow.total")
    def total(numbers: list[Any]) -> Any:
        record(f"total {numbers}")
        return sum(numbers)

    @app.task(name="flow.echo")
    def echo(*args: Any) -> list[Any]:
        record(f"echo {args}")
        return list(args)

    @app.task(name="flow.slow_add", acks_late=True)
    def slow_add(seconds: float, *numbers: int) -> int:
        time.sleep(seconds)
        record(f"slow_add {numbers}")
        return sum(numbers)

    @app.task(name="flow.fail")
    def fail(*args: Any) -> None:
        record("fail")
        raise ValueError("kaboom", 42)

    @app.task(name="flow.flaky")
    def flaky(key: str, *numbers: int) -> int:
        record(f"flaky {numbers}")
        if _seen.exists(key):
            raise ValueError(f"{key} is set")
        return sum(numbers)

    @app.task(name="flow.gate", acks_late=True)
    def gate(key: str, *numbers: int) -> int:
        record(f"gate {numbers}")
        while not _seen.exists(key):
            time.sleep(0.02)
        return sum(numbers)

    @app.task(name="flow.shielded", acks_late=True)
    def shielded(key: str) -> None:
        is_open = False
        record("shielded")
        while not is_open:
            try:
                is_open = bool(_seen.exists(key))
                time.sleep(0.02)
            except BaseException:
                record("termination ignored")

    @app.task(name="flow.spawn")
    def spawn() -> None:
        for number in range(2):
            add.delay(number)

    @app.task(name="flow.old_errback")
    def old_errback(task_id: str) -> str:
        record(f"old_errback {task_id}")
        return task_id

    @app.task(name="flow.new_errback")
    def new_errback(request: Any, exc: BaseException, traceback: object) -> None:
        record(f"new_errback {request.id} {type(exc).__name__} {exc}")

    @app.task(name="flow.again", bind=True, max_retries=3, default_retry_delay=0)
    def again(self: Any, number: int) -> int:
        if self.request.retries < 2:
            raise self.retry(countdown=0)
        record("again")
        return number

    @app.task(name="flow.place", bind=True)
    def place(self: Any, *args: Any) -> dict[str, Any]:
        request = self.request
        return {
            "id": request.id, "group": request.group, "index": request.group_index,
            "root": request.root_id, "parent": request.parent_id,
            "stamps": request.stamps, "chord": bool(request.chord), "args": list(args),
        }  # fmt: skip

    @app.task(name="flow.hang")
    def hang(*args: Any) -> None:
        _seen.set("hangs", 1)
        time.sleep(600)

    @app.task(name="flow.ignored")
    def ignored(*args: Any) -> None:
        from celery.exceptions import Ignore as TheirIgnore  # noqa: PLC0415

        import greenq.errors  # noqa: PLC0415

        raise (greenq.errors.Ignore if "greenq" in type(app).__module__ else TheirIgnore)()
