"""What the driver has to know of a contender; every environment reads it, so stdlib only."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# A command that answers with one number, such as ("LLEN", "celery").
Gauge = tuple[str, ...]

_CLUSTER_OPTIONS = {
    "": (),
    "events": ("-E",),
    "off": ("--without-mingle", "--without-gossip", "--without-heartbeat"),
}


@dataclass(frozen=True, slots=True)
class Setup:
    """How one contender is run.

    Attributes:
        concurrency: tasks at once, in each process; 0 is the contender's default.
        results: they are stored.
        acks: "late", "early", or "" for the contender's default.
        processes: worker processes on the one server.
        cluster: "events": with events of tasks; "off": without mingle, gossip and heartbeats, which
            are on by default; "" for the contender's default.
    """

    concurrency: int = 500
    results: bool = True
    acks: str = ""
    processes: int = 1
    cluster: str = ""

    @property
    def cluster_options(self) -> tuple[str, ...]:
        """What that is on the command line of a worker of Celery or greenq."""
        return _CLUSTER_OPTIONS[self.cluster]


@dataclass(frozen=True, slots=True)
class Peer:
    """One contender: its programs, and where its tasks are on the server.

    Attributes:
        key: its name in options, files and JSON.
        title: its name for people.
        home: whose packages it runs with: "own" are the driver's, "venv" are those of
            ``peers/<key>/requirements.txt``, "node" those of ``peers/<key>/package.json``.
        worker: the command of one worker process.
        settings: what of that is no default, for people.
        wire: it reads Celery's messages, which the driver writes: the same bytes for all. The
            others' queues are filled by their own clients.
        member: what tells each of several workers its name, "{number}" in it.
        client: the command of its sending side.
        queue: the list (or stream) that a worker takes from.
        variant: what its tasks read as BENCH_VARIANT.
        ready: a gauge that is not zero once a worker has started; None when none is needed.
        warm_up: tasks that run before those that count.
        released: commands that its own sender would also give when there is work.
        left: gauges that are zero when no task waits or runs.
        done: the gauge that grows by one with each result.
        counts_done: there is such a gauge; if not, `left` alone tells the end.
        packages: names whose versions matter, for the record.
    """

    key: str
    title: str
    home: str
    worker: Callable[[Setup], tuple[str, ...]]
    settings: str
    queue: str
    left: tuple[Gauge, ...]
    done: Gauge
    wire: bool = False
    member: str = ""
    client: tuple[str, ...] = ()
    counts_done: bool = True
    variant: str = ""
    ready: Gauge | None = None
    warm_up: int = 100
    released: tuple[Gauge, ...] = ()
    packages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a contender's process is told by its environment."""

    url: str
    setup: Setup
    variant: str = ""

    @classmethod
    def read(cls) -> Surroundings:
        """Return what `write` gave to this process."""
        get = os.environ
        setup = Setup(int(get["BENCH_CONCURRENCY"]), get["BENCH_RESULTS"] == "1", get["BENCH_ACKS"])
        return cls(get["BENCH_URL"], setup, get["BENCH_VARIANT"])

    def write(self) -> dict[str, str]:
        """Return the variables for a process."""
        return {
            "BENCH_URL": self.url,
            "BENCH_CONCURRENCY": str(self.setup.concurrency),
            "BENCH_RESULTS": str(int(self.setup.results)),
            "BENCH_ACKS": self.setup.acks,
            "BENCH_VARIANT": self.variant,
        }
