"""BullMQ on Node, with ioredis."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.peer import Peer

if TYPE_CHECKING:
    from benchmarks.peer import Setup

_FOLDER = Path(__file__).resolve().parent


def _worker(_setup: Setup) -> tuple[str, ...]:
    return ("node", str(_FOLDER / "worker.js"))


PEER = Peer(
    key="bullmq",
    title="BullMQ",
    home="node",
    worker=_worker,
    settings="ioredis, one Worker; defaults otherwise (keeps all completed jobs)",
    client=("node", str(_FOLDER / "client.js")),
    queue="bull:bench:wait",
    # The marker wakes a waiting worker; adding a job sets it.
    released=(("ZADD", "bull:bench:marker", "0", "0"),),
    left=(("LLEN", "bull:bench:wait"), ("LLEN", "bull:bench:active")),
    done=("ZCARD", "bull:bench:completed"),
    # Node compiles code that runs often.
    warm_up=5000,
    packages=("bullmq", "ioredis"),
)
