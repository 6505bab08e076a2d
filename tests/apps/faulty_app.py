"""Tasks that harm the worker itself."""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
from typing import Any, NoReturn

import gevent

from greenq import Greenq

app = Greenq("faulty", broker=os.environ["TEST_BROKER"], **json.loads(os.environ["TEST_SETTINGS"]))


class Raising(logging.Handler):
    """A handler for which no line is right."""

    def handle(self, record: logging.LogRecord) -> NoReturn:
        raise RuntimeError("a handler that raises")


@app.task
def close_stderr() -> None:
    sys.stderr.close()


@app.task
def close_original() -> None:
    assert sys.__stderr__ is not None
    sys.__stderr__.close()


@app.task
def close_descriptor() -> None:
    os.close(2)


@app.task
def close_log() -> None:
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.stream.close()


@app.task
def say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


@app.task
def break_log() -> None:
    logging.getLogger().addHandler(Raising())


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def fail() -> NoReturn:
    raise ValueError("as it does")


@app.task
def end_greenlet(name: str, *, kill: bool = False) -> int:
    """Have a greenlet of the worker's own die of an error, or kill it."""
    found = 0
    for each in gc.get_objects():
        own: Any = each
        if isinstance(each, gevent.Greenlet) and own.name == name and not each.dead:
            each.kill(gevent.GreenletExit if kill else RuntimeError("poison"), block=False)
            found += 1
    return found
