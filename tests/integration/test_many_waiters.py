"""Thousands of greenlets, or hundreds of threads, that wait for results at once, in a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import greenq
from tests.servers import Server

GREENLETS = """
from greenq import hub
hub.patch()
import gevent, sys
from greenq import Greenq
from greenq.protocol.meta import utc_now

app = Greenq("many", broker=sys.argv[1])
count = int(sys.argv[2])
found = []

def wait(n):
    found.append(app.AsyncResult(f"id-{n}").get(timeout=100) == n)

waiting = [gevent.spawn(wait, n) for n in range(count)]
store = app.transport.client
while len(store.call("PUBSUB", "CHANNELS", "celery-task-meta-id-*")) < count:
    gevent.sleep(0.05)
clients = store.call("CLIENT", "LIST").decode().splitlines()
connected = [line for line in clients if " sub=0 " not in line]
for n in range(count):
    app.backend.store(f"id-{n}", "SUCCESS", n)
gevent.joinall(waiting)
print(len(found), all(found), len(connected), flush=True)
app.AsyncResult("never").then(print)
"""

THREADS = """
import sys, threading
from greenq import Greenq
from greenq.errors import ResultTimeout

app = Greenq("many", broker=sys.argv[1])

def wait(n):
    try:
        app.AsyncResult(f"id-{n}").get(timeout=1000)
    except ResultTimeout:
        pass

for n in range(int(sys.argv[2])):
    threading.Thread(target=wait, args=(n,), daemon=True).start()
store = app.transport.client
while len(store.call("PUBSUB", "CHANNELS", "celery-task-meta-id-*")) < int(sys.argv[2]):
    pass
app.AsyncResult("never").then(print)
print("ends while they wait", flush=True)
"""


def run(code: str, server: Server, count: int) -> tuple[str, str, int]:
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore", "-c", code, server.url, str(count)],
        capture_output=True,
        text=True,
        timeout=110,
        env={**os.environ, "PYTHONPATH": str(Path(greenq.__file__).parents[1])},
        check=False,
    )
    return ended.stdout.strip(), ended.stderr, ended.returncode


@pytest.mark.parametrize("count", [2_000, pytest.param(10_000, marks=pytest.mark.heavy)])
def test_many_greenlets_wait_over_one_connection(server: Server, count: int) -> None:
    assert run(GREENLETS, server, count) == (f"{count} True 1", "", 0)


def test_program_ends_silently_while_threads_wait(server: Server) -> None:
    assert run(THREADS, server, 200) == ("ends while they wait", "", 0)
