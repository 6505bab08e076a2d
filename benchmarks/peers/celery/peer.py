"""Celery's gevent pool, with its defaults and tuned."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks.peer import Peer

if TYPE_CHECKING:
    from benchmarks.peer import Setup

_COMMAND = ("python", "-m", "celery", "-A", "benchmarks.peers.celery.tasks", "worker")
_TUNED = ("--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "ERROR")


def _worker(setup: Setup) -> tuple[str, ...]:
    command = (*_COMMAND, "-P", "gevent", *setup.cluster_options)
    return (*command, "-c", str(setup.concurrency)) if setup.concurrency else command


def _tuned_worker(setup: Setup) -> tuple[str, ...]:
    return (*_worker(setup), *_TUNED)


PEER = Peer(
    key="celery",
    title="Celery gevent, defaults",
    home="own",
    worker=_worker,
    settings="defaults: acknowledges early, prefetches 4 times its concurrency",
    wire=True,
    member="--hostname=bench{number}@%h",
    client=("python", "-m", "benchmarks.peers.celery.client"),
    queue="celery",
    left=(("LLEN", "celery"), ("HLEN", "unacked")),
    done=("DBSIZE",),
    packages=("celery", "kombu", "gevent", "redis", "hiredis"),
)

TUNED = replace(
    PEER,
    key="celery-tuned",
    title="Celery gevent, tuned",
    worker=_tuned_worker,
    variant="tuned",
    settings=f"{' '.join(_TUNED)}; result_backend_thread_safe, worker_prefetch_multiplier 16, "
    "worker_disable_rate_limits, broker_pool_limit and max_connections 2000, no events",
)
