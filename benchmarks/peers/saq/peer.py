"""SAQ with its Redis queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.peer import Peer

if TYPE_CHECKING:
    from benchmarks.peer import Setup


def _worker(_setup: Setup) -> tuple[str, ...]:
    return ("python", "-m", "saq", "benchmarks.peers.saq.tasks.settings", "--quiet")


PEER = Peer(
    key="saq",
    title="SAQ",
    home="venv",
    worker=_worker,
    settings="hiredis; logs no task; defaults otherwise",
    client=("python", "-m", "benchmarks.peers.saq.client"),
    queue="saq:default:queued",
    # Wait for the first sweep, which would mistake jobs that start at the same moment for stuck
    # ones and abort them.
    ready=("EXISTS", "saq:default:sweep"),
    left=(
        ("LLEN", "saq:default:queued"),
        ("LLEN", "saq:default:active"),
        ("ZCARD", "saq:default:incomplete"),
    ),
    # A job's result is in the job itself, which exists from the start.
    done=("DBSIZE",),
    counts_done=False,
    packages=("saq", "redis", "hiredis"),
)
