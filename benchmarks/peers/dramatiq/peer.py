"""dramatiq with gevent, its Redis broker and its Redis results."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.peer import Peer

if TYPE_CHECKING:
    from benchmarks.peer import Setup


def _worker(setup: Setup) -> tuple[str, ...]:
    return (
        *("dramatiq-gevent", "benchmarks.peers.dramatiq.tasks"),
        *("--processes", "1", "--threads", str(setup.concurrency)),
    )


PEER = Peer(
    key="dramatiq",
    title="dramatiq gevent",
    home="venv",
    worker=_worker,
    settings="one process, greenlets as threads, max_connections raised above "
    "their number (redis-py's 100 stalls it); defaults otherwise",
    client=("python", "-m", "benchmarks.peers.dramatiq.client"),
    queue="dramatiq:default",
    left=(("LLEN", "dramatiq:default"), ("HLEN", "dramatiq:default.msgs")),
    done=("DBSIZE",),
    packages=("dramatiq", "gevent", "redis", "hiredis"),
)
