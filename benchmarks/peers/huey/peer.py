"""huey with greenlet workers and its Redis storage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.peer import Peer

if TYPE_CHECKING:
    from benchmarks.peer import Setup


def _worker(setup: Setup) -> tuple[str, ...]:
    return (
        *("python", "-m", "benchmarks.peers.huey.worker", "benchmarks.peers.huey.tasks.huey"),
        *("--worker-type", "greenlet", "--workers", str(setup.concurrency), "--quiet"),
    )


PEER = Peer(
    key="huey",
    title="huey greenlet",
    home="venv",
    worker=_worker,
    settings="stores None results too, max_connections above its greenlets; defaults otherwise",
    client=("python", "-m", "benchmarks.peers.huey.client"),
    queue="huey.redis.bench",
    left=(("LLEN", "huey.redis.bench"),),
    done=("HLEN", "huey.results.bench"),
    packages=("huey", "gevent", "redis", "hiredis"),
)
