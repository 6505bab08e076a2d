"""How long remote control takes: a ping of all workers, seen from the client."""

from __future__ import annotations

import json
import statistics
import time
from typing import TYPE_CHECKING

from benchmarks import environments
from benchmarks.launch import run_client, workers
from benchmarks.peer import Setup
from benchmarks.plan import PEERS
from benchmarks.wire import Messages

if TYPE_CHECKING:
    import redis

    from benchmarks.launch import Workers
    from benchmarks.server import Server

_WORKERS = 3
# How long the hub is blocked: longer than the pings take, so that it is blocked during all of them.
_BLOCK_S = 20.0
_START_S = 60.0
_POLL_S = 0.05


def free(server: Server, contender: str, count: int) -> dict[str, float]:
    """Ping idle workers with a contender's own client."""
    peer, setup = PEERS[contender], Setup(concurrency=0, processes=_WORKERS)
    environments.prepare(peer)
    with workers(server, peer, setup) as started:
        figures = _ping(server, started, setup, count)
        started.check_alive()
    return figures


def blocked(server: Server, contender: str, count: int) -> dict[str, float]:
    """Ping while one of the workers computes and its hub is blocked.

    Raises:
        RuntimeError: the hub was not blocked during all pings.
    """
    peer, setup = PEERS[contender], Setup(concurrency=0, processes=_WORKERS)
    environments.prepare(peer)
    with server.client() as client, workers(server, peer, setup) as started:
        # Ping first, to be sure that all have started and only the block can delay a reply.
        _ping(server, started, setup, 1)
        task_id = _block(server, client, started)
        figures = _ping(server, started, setup, count)
        if client.exists(f"celery-task-meta-{task_id}"):
            raise started.complaint(f"the pings took longer than the {_BLOCK_S:.0f} s of blocking")
        started.check_alive()
    return figures


def _block(server: Server, client: redis.Redis, started: Workers) -> str:
    """Block one of the workers; return the id of the task that blocks it."""
    messages = Messages(server, client, "block", (_BLOCK_S,))
    ids = messages.ids(1)
    messages.push(client, started.peer.queue, ids)
    deadline = time.monotonic() + _START_S
    while not started.tallied:
        started.check_alive()
        if time.monotonic() > deadline:
            raise started.complaint("no worker starts the blocking task")
        time.sleep(_POLL_S)
    return ids[0]


def _ping(server: Server, started: Workers, setup: Setup, count: int) -> dict[str, float]:
    said = run_client(server, started.peer, setup, "ping", str(_WORKERS), str(count))
    taken_ms = [1000 * seconds for seconds in json.loads(said)]
    return {"samples": count, "p50_ms": statistics.median(taken_ms), "worst_ms": max(taken_ms)}
