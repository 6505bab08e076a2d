"""The floor of a round trip through a queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.peer import Peer

if TYPE_CHECKING:
    from benchmarks.peer import Setup


def _worker(_setup: Setup) -> tuple[str, ...]:
    return ("python", "-m", "benchmarks.peers.floor.worker")


PEER = Peer(
    key="floor",
    title="bare floor",
    home="own",
    worker=_worker,
    settings="ready-made bytes; LPUSH, BLMOVE, PUBLISH",
    client=("python", "-m", "benchmarks.peers.floor.client"),
    queue="floor",
    left=(("LLEN", "floor"),),
    done=("LLEN", "floor.taken"),
    packages=("gevent", "redis", "hiredis"),
)
