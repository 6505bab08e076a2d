"""Tasks that end in every way a task can end."""

from __future__ import annotations

import json
import os
import time
from typing import Any, NoReturn

import gevent
from greenlet import GreenletExit

from greenq import Greenq, Ignore, Reject, Task

app = Greenq("endings", broker=os.environ["TEST_BROKER"], **json.loads(os.environ["TEST_SETTINGS"]))


class OwnBaseError(BaseException):
    """Not an Exception."""


class MuteError(Exception):
    """Cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no str")

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class ArglessError(Exception):
    """Its args cannot even be read."""

    @property
    def args(self) -> NoReturn:  # type: ignore[override]
        raise RuntimeError("no args")


class Mute:
    """A value that cannot be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Hooked(Task[..., Any]):
    """Raises from its hooks what the task's second argument names."""

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        self._misbehave("before_start", args)

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        self._misbehave("on_success", args)

    def on_failure(
        self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: str
    ) -> None:
        self._misbehave("on_failure", args)

    def after_return(
        self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: str | None
    ) -> None:
        self._misbehave("after_return", args)

    @staticmethod
    def _misbehave(hook: str, args: Any) -> None:
        if args and args[0] == hook:
            raise {"Exception": ValueError, "SystemExit": SystemExit}[args[1]](hook)


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@app.task
def exception() -> None:
    raise ValueError("plain")


@app.task(bind=True)
def retry(self: Any) -> str:
    if self.request.retries < 2:
        raise self.retry(countdown=0.01)
    return "third run"


@app.task(bind=True)
def retry_too_large(self: Any) -> str:
    if self.request.retries < 1:
        raise self.retry(exc=ValueError("x" * 200_000), countdown=0.01)
    return "second run"


@app.task
def ignore() -> None:
    raise Ignore


@app.task(bind=True)
def reject_requeue(self: Any) -> str:
    if not self.request.delivery_info["redelivered"]:
        raise Reject("not here", requeue=True)
    return "second delivery"


@app.task
def reject() -> None:
    raise Reject("not at all")


@app.task
def base_exception() -> None:
    raise OwnBaseError("base")


@app.task
def system_exit() -> None:
    raise SystemExit(3)


@app.task
def keyboard_interrupt() -> None:
    raise KeyboardInterrupt


@app.task
def own_timeout() -> None:
    with gevent.Timeout(0.01):
        gevent.sleep(30)


@app.task
def greenlet_exit() -> None:
    raise GreenletExit


@app.task
def kills_itself() -> None:
    gevent.getcurrent().kill()


@app.task
def memory_error() -> None:
    list(range(1 << 62))


@app.task
def recursion_error() -> None:
    recursion_error()


@app.task
def unserializable() -> object:
    return object()


@app.task
def mute_value() -> object:
    return Mute()


@app.task
def circular() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@app.task
def too_large() -> str:
    return "x" * 200_000


@app.task
def takes(_value: str) -> None:
    """Return None."""


@app.task
def error_too_large() -> None:
    raise ValueError("x" * 200_000)


@app.task
def mute_error() -> None:
    raise MuteError("quiet")


@app.task
def argless_error() -> None:
    raise ArglessError("quiet")


@app.task
def from_finally() -> None:
    try:
        raise ValueError("first")
    finally:
        raise KeyError("second")


@app.task
def surrogate() -> None:
    raise ValueError("\ud800")


@app.task
def wants_two(x: int, y: int) -> int:
    return x + y


@app.task(base=Hooked)
def hooked(*_args: str) -> str:
    return "fine"


@app.task(base=Hooked)
def hooked_failing(*_args: str) -> str:
    raise KeyError("the task's own")
