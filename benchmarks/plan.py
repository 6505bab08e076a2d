"""The workloads, their contenders and sizes, as data.

The sizes are chosen so that one round of a contender takes a few seconds. Rates are compared, not
totals, so a slow contender gets fewer tasks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.peer import Setup
from benchmarks.peers.bare.peer import PEER as BARE
from benchmarks.peers.bullmq.peer import PEER as BULLMQ
from benchmarks.peers.celery.peer import PEER as CELERY
from benchmarks.peers.celery.peer import TUNED as CELERY_TUNED
from benchmarks.peers.dramatiq.peer import PEER as DRAMATIQ
from benchmarks.peers.floor.peer import PEER as FLOOR
from benchmarks.peers.greenq.peer import PEER as GREENQ
from benchmarks.peers.huey.peer import PEER as HUEY
from benchmarks.peers.plain.peer import PEER as PLAIN
from benchmarks.peers.saq.peer import PEER as SAQ
from benchmarks.peers.taskiq.peer import PEER as TASKIQ

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.peer import Peer

PEERS: Mapping[str, Peer] = {
    peer.key: peer
    for peer in (
        *(GREENQ, BARE, FLOOR, PLAIN, CELERY, CELERY_TUNED),
        *(DRAMATIQ, HUEY, TASKIQ, SAQ, BULLMQ),
    )
}

NAP_S = 1.0


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of work, measured with several contenders.

    Attributes:
        key: its name in options and JSON.
        title: its name as shown.
        kind: the module that measures it.
        sizes: how many tasks (samples, messages, seconds) each contender gets, by its key.
        setup: how the workers run.
        task: the task to drain.
        repeats: how many times the same workers drain the queue.
        most_rounds: the maximum number of rounds, for a workload that takes minutes.
        seldom: contenders that no goal mentions; they run only every other round.
        without: the same workload without what this workload measures; each contender's rate is
            shown next to its rate in that workload.
        guess_s: an initial estimate of the time for one round of one contender.
    """

    key: str
    title: str
    sizes: Mapping[str, int]
    kind: str = "drain"
    setup: Setup = field(default_factory=Setup)
    task: str = "noop"
    repeats: int = 1
    most_rounds: int | None = None
    seldom: tuple[str, ...] = ()
    without: str = ""
    guess_s: float = 10.0


def _naps(concurrency: int, sizes: Mapping[str, int]) -> Workload:
    return Workload(
        key=f"nap-{concurrency}",
        title=f"tasks of {NAP_S:.0f} s, {concurrency:,} at once",
        sizes=sizes,
        setup=Setup(concurrency=concurrency),
        task="nap",
        seldom=("dramatiq", "saq"),
        guess_s=20,
    )


def _clustered(key: str, cluster: str, title: str, without: str = "") -> Workload:
    return Workload(
        key=key,
        title=f"no-op with results, {title}",
        sizes={"greenq": 100_000, "celery": 800},
        setup=Setup(cluster=cluster),
        most_rounds=3,
        seldom=("celery",),
        without=without,
    )


_NOOP = Workload(
    "noop",
    "no-op with results, one process",
    {
        "greenq": 120_000,
        "bare": 60_000,
        "celery": 1_500,
        "celery-tuned": 3_000,
        "dramatiq": 8_000,
        "huey": 6_000,
        "taskiq": 6_000,
        "saq": 6_000,
        "bullmq": 60_000,
    },
    seldom=("huey", "taskiq", "saq"),
)
_TALLY = Workload(
    "tally",
    "no-op without results, one process",
    {"greenq": 150_000, "bare": 80_000, "celery": 2_000, "dramatiq": 8_000},
    setup=Setup(results=False),
    task="tally",
)

FULL = (
    _NOOP,
    _TALLY,
    Workload(
        "noop-early",
        "no-op with results, acknowledged early",
        {"greenq": 100_000},
        setup=Setup(acks="early"),
        most_rounds=3,
    ),
    Workload(
        "noop-late",
        "no-op with results, acknowledged late",
        {"celery": 1_000},
        setup=Setup(acks="late"),
        most_rounds=3,
    ),
    Workload(
        "signed",
        "no-op with results, signed",
        {"greenq": 120_000},
        setup=Setup(signed=True),
        most_rounds=3,
        without="noop",
    ),
    Workload("noop-10k", "10,000 queued, ten times", {"greenq": 10_000}, repeats=10),
    Workload("noop-500k", "500,000 queued", {"greenq": 500_000}, guess_s=50),
    Workload(
        "processes-2",
        "no-op with results, 2 processes",
        {"greenq": 150_000},
        setup=Setup(processes=2),
    ),
    Workload(
        "processes-4",
        "no-op with results, 4 processes",
        {"greenq": 150_000},
        setup=Setup(processes=4),
        most_rounds=3,
    ),
    _naps(1_000, {"greenq": 10_000, "bare": 10_000, "dramatiq": 3_000, "saq": 5_000}),
    _naps(5_000, {"greenq": 20_000, "bare": 20_000, "dramatiq": 10_000, "saq": 10_000}),
    _naps(10_000, {"greenq": 20_000, "bare": 20_000}),
    Workload(
        "fetch",
        "HTTP GETs of 200 ms, 1,000 at once",
        {"greenq": 20_000, "plain": 20_000, "dramatiq": 6_000},
        setup=Setup(concurrency=1_000),
        task="fetch",
    ),
    Workload(
        "send-one",
        "sending one by one",
        {"greenq": 20_000, "celery": 2_500, "floor": 30_000},
        kind="send-one",
    ),
    Workload(
        "send-bulk",
        "sending in bulk",
        {"greenq": 300_000, "celery": 3_000, "floor": 250_000},
        kind="send-bulk",
    ),
    Workload(
        "latency",
        "send and get, one at a time, idle worker",
        {"greenq": 300, "celery": 300, "saq": 300, "floor": 300},
        kind="latency",
    ),
    Workload(
        "idle",
        "an idle worker",
        {"greenq": 30, "celery": 30},
        kind="idle",
        seldom=("celery",),
        guess_s=40,
    ),
    Workload(
        "fleet",
        "one message, 50 idle workers",
        {"greenq": 20},
        kind="fleet",
        guess_s=60,
    ),
    _clustered("events", "events", "events and heartbeats on", without="no-events"),
    _clustered("no-events", "off", "no part of a cluster"),
    Workload(
        "inspect",
        "a ping of 3 workers",
        {"greenq": 20, "celery": 5},
        kind="ping",
        most_rounds=3,
        seldom=("celery",),
    ),
    Workload(
        "inspect-blocked",
        "a ping of 3 workers, one hub blocked",
        {"greenq": 20},
        kind="ping-blocked",
        most_rounds=3,
    ),
    Workload(
        "heartbeats",
        "an idle worker hears 50 workers' heartbeats",
        {"greenq": 20},
        kind="heartbeats",
        most_rounds=1,
        guess_s=50,
    ),
    Workload("etas", "50,000 ETAs due together", {"greenq": 50_000}, kind="etas", guess_s=30),
    Workload(
        "far-etas",
        "1,000,000 far ETAs",
        {"greenq": 1_000_000},
        kind="far-etas",
        guess_s=100,
    ),
)

SHORT = (
    Workload(
        _NOOP.key,
        _NOOP.title,
        {"greenq": 60_000, "bare": 40_000, "celery": 1_000},
    ),
    _naps(5_000, {"greenq": 20_000, "bare": 20_000}),
)
