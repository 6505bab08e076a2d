"""Tasks that keep the hub from everybody, or start processes."""

from __future__ import annotations

import concurrent.futures
import json
import logging
import multiprocessing
import os
import sys
import time

from gevent.monkey import get_original

from greenq import Greenq

app = Greenq("stuck", broker=os.environ["TEST_BROKER"], **json.loads(os.environ["TEST_SETTINGS"]))

real_sleep = get_original("time", "sleep")


@app.task
def block(seconds: float = 600) -> str:
    """Compute: between its instructions signals are dealt with, but the loop does not run."""
    ends_s = time.monotonic() + seconds
    while time.monotonic() < ends_s:
        pass
    return "done"


@app.task
def block_in_a_call(seconds: float = 600) -> str:
    """Wait in C, without the GIL."""
    real_sleep(seconds)
    return "done"


@app.task
def wait(seconds: float = 600) -> int:
    time.sleep(seconds)
    return os.getpid()


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def say(text: str) -> None:
    logging.getLogger("said").warning(text)


def square(number: int) -> int:
    return number * number


def tell(writer: multiprocessing.connection.Connection, number: int) -> None:  # type: ignore[name-defined]
    writer.send(number * number)


@app.task
def spawned(number: int) -> int:
    reader, writer = multiprocessing.Pipe()
    process = multiprocessing.Process(target=tell, args=(writer, number))
    process.start()
    process.join()
    return reader.recv()


@app.task
def forked() -> None:
    multiprocessing.get_context("fork").Process(target=square, args=(2,)).start()


@app.task
def pooled() -> list[int]:
    with multiprocessing.Pool(2) as pool:
        return pool.map(square, [1, 2, 3])


@app.task
def executed() -> list[int]:
    with concurrent.futures.ProcessPoolExecutor(2) as pool:
        return list(pool.map(square, [1, 2, 3]))


@app.task
def fork_and_return(seconds: float) -> int:
    """Fork in the plainest way; the child waits, sends, and returns like its parent."""
    if os.fork() == 0:
        time.sleep(seconds)
        app.send_task("note", ("from the child",), queue="notes")
        sys.stderr.write("the child returns\n")
    return os.getpid()
