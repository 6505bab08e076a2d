"""greenq with its defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.peer import Peer

if TYPE_CHECKING:
    from benchmarks.peer import Setup


_COMMAND = ("python", "-m", "greenq", "worker", "-A", "benchmarks.peers.greenq.tasks")


def _worker(setup: Setup) -> tuple[str, ...]:
    command = (*_COMMAND, *setup.cluster_options)
    return (*command, "-c", str(setup.concurrency)) if setup.concurrency else command


PEER = Peer(
    key="greenq",
    title="greenq",
    home="own",
    worker=_worker,
    settings="defaults: acknowledges late, leases",
    wire=True,
    member="--hostname=bench{number}@%h",
    client=("python", "-m", "benchmarks.peers.greenq.client"),
    queue="celery",
    left=(("LLEN", "celery"), ("LLEN", "greenq.inbox.celery"), ("HLEN", "unacked")),
    done=("DBSIZE",),
    packages=("gevent", "redis", "hiredis", "msgpack"),
)
