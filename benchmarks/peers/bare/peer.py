"""The bare gevent loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.peer import Peer

if TYPE_CHECKING:
    from benchmarks.peer import Setup


def _worker(_setup: Setup) -> tuple[str, ...]:
    return ("python", "-m", "benchmarks.peers.bare.worker")


PEER = Peer(
    key="bare",
    title="bare gevent loop",
    home="own",
    worker=_worker,
    settings="no error handling, no log, no lease",
    wire=True,
    queue="celery",
    left=(("LLEN", "celery"), ("HLEN", "unacked")),
    done=("DBSIZE",),
    packages=("gevent", "redis", "hiredis"),
)
