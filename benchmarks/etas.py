"""Tasks with an ETA: many that are due at the same time, or very many that are due much later."""

from __future__ import annotations

import json
import statistics
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from benchmarks import proc
from benchmarks.launch import workers
from benchmarks.peer import Setup
from benchmarks.wire import CHUNK, Messages, chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import redis

    from benchmarks.launch import Workers
    from benchmarks.peer import Peer
    from benchmarks.server import Server

# Tasks are sent this long before they are due, so that workers can take all of them in time.
_LEAD_S = 5.0
_TAKEN_A_SECOND = 4000
_FAR = timedelta(hours=2)
_PARKED = "greenq.eta.celery"
_SAMPLES = 1000
_SAMPLE_LEAD_S = 5.0
# Tasks are pushed only while fewer than this are waiting, since a long queue would delay the
# samples.
_QUEUED = 2000
_DEADLINE_S = 900.0
_POLL_S = 0.05
# Two readings of the clock may differ by this much.
_EARLY_S = 0.002


def due_together(server: Server, peer: Peer, count: int) -> dict[str, float]:
    """Send tasks that are due at one time; measure the memory while they wait, and their delay."""
    with server.client() as client, workers(server, peer, Setup()) as started:
        idle_mb = _warm_up(server, client, started, peer)
        due = datetime.now(UTC) + timedelta(seconds=_LEAD_S + count / _TAKEN_A_SECOND)
        messages = Messages(server, client, "noop", eta=due)
        ids = messages.ids(count)
        messages.push(client, peer.queue, ids)
        time.sleep(max(0.0, due.timestamp() - time.time() - 0.5))
        waiting = client.llen(peer.queue)
        if waiting:
            raise started.complaint(f"{waiting} of {count} are not taken when they become due")
        waiting_mb = proc.rss_mb(started.pids) - idle_mb
        _await(started, lambda: not _waiting(client, peer.queue), "not all tasks end")
        late_s = [
            each for part in chunks(ids) for each in _lateness(client, part, [due] * len(part))
        ]
        return {
            "tasks": count,
            "late_s": max(late_s),
            "late_p50_s": statistics.median(late_s),
            "waiting_kb": 1024 * waiting_mb / count,
            "peak_mb": proc.peak_mb(started.pids),
        }


def far(server: Server, peer: Peer, count: int) -> dict[str, float]:
    """Send tasks that are due in hours, and among them some that become due meanwhile."""
    with server.client() as client, workers(server, peer, Setup()) as started:
        idle_mb = _warm_up(server, client, started, peer)
        distant = Messages(server, client, "noop", eta=datetime.now(UTC) + _FAR)
        sampled: list[tuple[str, datetime]] = []
        began_s = time.monotonic()
        sent, every = 0, max(1, count // _SAMPLES)
        for ids in chunks(distant.ids(count)):
            _await(started, lambda: client.llen(peer.queue) < _QUEUED, "the queue does not shrink")
            distant.push(client, peer.queue, ids)
            sent += len(ids)
            while len(sampled) * every < sent:
                sampled.append(_send_sample(client, distant, peer.queue))
        _await(started, lambda: client.zcard(_PARKED) == count, "not all are parked")
        took_s = time.monotonic() - began_s
        samples = [task_id for task_id, _ in sampled]
        late_s = _lateness(client, samples, [due for _, due in sampled], started)
        return {
            "tasks": count,
            "seconds": took_s,
            "rate": count / took_s,
            "idle_mb": idle_mb,
            "growth_mb": proc.peak_mb(started.pids) - idle_mb,
            "late_p99_s": statistics.quantiles(late_s, n=100, method="inclusive")[98],
            "late_s": max(late_s),
        }


def _waiting(client: redis.Redis, queue: str) -> int:
    """Count the tasks that are queued, reserved or parked."""
    return client.llen(queue) + client.hlen("unacked") + client.zcard(_PARKED)


def _send_sample(client: redis.Redis, like: Messages, queue: str) -> tuple[str, datetime]:
    due = datetime.now(UTC) + timedelta(seconds=_SAMPLE_LEAD_S)
    ids = like.ids(1)
    client.lpush(queue, like.text(ids[0], eta=due))
    return ids[0], due


def _warm_up(server: Server, client: redis.Redis, started: Workers, peer: Peer) -> float:
    """Run some tasks, with and without an ETA; return the worker's memory in MB."""
    for countdown_s in (None, 1):
        messages = Messages(server, client, "noop", countdown=countdown_s)
        ids = messages.ids(CHUNK)
        messages.push(client, peer.queue, ids)
        _await(started, _all_stored(client, ids), "the warm-up tasks do not end")
        client.unlink(*map(_key, ids))
    return proc.rss_mb(started.pids)


def _all_stored(client: redis.Redis, ids: Sequence[str]) -> Callable[[], bool]:
    return lambda: client.exists(*map(_key, ids)) == len(ids)


def _lateness(
    client: redis.Redis,
    ids: Sequence[str],
    due: Sequence[datetime],
    started: Workers | None = None,
) -> list[float]:
    """Return how many seconds after its ETA each task has ended.

    Raises:
        RuntimeError: a result is missing, is not a success, or came before the ETA.
    """
    if started is not None:
        _await(started, _all_stored(client, ids), "not all samples end")
    late_s = []
    for task_id, moment, stored in zip(ids, due, client.mget(map(_key, ids)), strict=True):
        meta = json.loads(stored or "{}")
        if meta.get("status") != "SUCCESS":
            raise RuntimeError(f"task {task_id} has not succeeded: {stored!r}")
        ended = datetime.fromisoformat(meta["date_done"])
        late_s.append((ended.replace(tzinfo=ended.tzinfo or UTC) - moment).total_seconds())
        if late_s[-1] < -_EARLY_S:
            raise RuntimeError(f"task {task_id} ended {-late_s[-1]:.3f} s before its ETA")
    return late_s


def _key(task_id: str) -> str:
    return f"celery-task-meta-{task_id}"


def _await(started: Workers, condition: Callable[[], bool], complaint: str) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while not condition():
        started.check_alive()
        if time.monotonic() > deadline:
            raise started.complaint(complaint)
        time.sleep(_POLL_S)
