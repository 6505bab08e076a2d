"""Plain gevent without a queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.peer import Peer

if TYPE_CHECKING:
    from benchmarks.peer import Setup


def _worker(_setup: Setup) -> tuple[str, ...]:
    return ("python", "-m", "benchmarks.peers.plain.worker")


PEER = Peer(
    key="plain",
    title="plain gevent, no queue",
    home="own",
    worker=_worker,
    settings="a gevent Pool; told once how many calls to make",
    client=("python", "-m", "benchmarks.peers.plain.client"),
    queue="plain.orders",
    left=(("LLEN", "plain.orders"),),
    done=("GET", "plain.done"),
    packages=("gevent",),
)
