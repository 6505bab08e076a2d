"""The app that hostile bytes are sent to: it tells what it ran, and how long its hub stood."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import gevent

from greenq import Greenq
from greenq.commands.registry import inspect_command

RAN = "fuzz:ran"

app = Greenq("fuzz", broker=os.environ["TEST_BROKER"], **json.loads(os.environ["TEST_SETTINGS"]))


class Stillness:
    """How much processor time the hub's thread has taken between two looks at its sockets.

    That is for how long nobody else could have their turn, whatever else the machine had to do.
    """

    def __init__(self) -> None:
        self.worst_s = 0.0
        self._began_s = time.thread_time()
        loop = gevent.get_hub().loop
        self._after, self._before = loop.check(), loop.prepare()
        self._after.start(self._began)
        self._before.start(self._ended)

    def _began(self) -> None:
        self._began_s = time.thread_time()

    def _ended(self) -> None:
        self.worst_s = max(self.worst_s, time.thread_time() - self._began_s)


_stillness: list[Stillness] = []


@inspect_command()
def fuzz_still(_worker: Any) -> float:
    """Return the longest since the last call, in seconds."""
    if not _stillness:
        _stillness.append(Stillness())
    worst_s, _stillness[0].worst_s = _stillness[0].worst_s, 0.0
    return worst_s


def _note(request: Any) -> None:
    marks = [request.origin, request.root_id, request.parent_id, request.correlation_id]
    known = [mark for mark in marks if isinstance(mark, str) and mark.startswith("fuzz-")]
    if known:
        app.transport.client.call("SADD", RAN, known[0])


@app.task(bind=True)
def plain(self: Any, *_args: Any, **_kwargs: Any) -> str:
    """End at once."""
    _note(self.request)
    return "done"


@app.task(bind=True)
def nap(self: Any, *_args: Any, **_kwargs: Any) -> str:
    """Wait a little, so that time limits have something to end."""
    _note(self.request)
    time.sleep(0.02)
    return "done"


@app.task(
    bind=True, autoretry_for=(ValueError,), retry_backoff=True, retry_backoff_max=0, max_retries=2
)
def fails(self: Any, *_args: Any, **_kwargs: Any) -> None:
    """Fail, and be tried again."""
    _note(self.request)
    raise ValueError("on purpose")


@app.task
def limited() -> None:
    """Take the limits that remote control sets; nobody sends it."""
