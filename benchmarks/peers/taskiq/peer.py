"""taskiq with its stream broker, which supports acknowledgement, and its Redis results."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.peer import Peer

if TYPE_CHECKING:
    from benchmarks.peer import Setup


def _worker(setup: Setup) -> tuple[str, ...]:
    return (
        *("python", "-m", "taskiq", "worker", "benchmarks.peers.taskiq.tasks:broker"),
        *("--workers", "1", "--max-async-tasks", str(setup.concurrency), "--log-level", "WARNING"),
    )


PEER = Peer(
    key="taskiq",
    title="taskiq",
    home="venv",
    worker=_worker,
    settings="RedisStreamBroker (acknowledges when the result is saved), xread_count as the "
    "concurrency; warnings logged only",
    client=("python", "-m", "benchmarks.peers.taskiq.client"),
    queue="taskiq",
    left=(),
    done=("DBSIZE",),
    packages=("taskiq", "taskiq-redis", "redis", "hiredis"),
)
