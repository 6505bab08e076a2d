"""What the driver knows about a contender.

Every contender's environment imports this module, so it uses only the standard library.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# A command that answers with one number, such as ("LLEN", "celery").
Gauge = tuple[str, ...]

# The key that signs the messages of a signed workload.
SIGNING_KEY = "a key for benchmarks, of no use elsewhere"

_CLUSTER_OPTIONS = {
    "": (),
    "events": ("-E",),
    "off": ("--without-mingle", "--without-gossip", "--without-heartbeat"),
}


@dataclass(frozen=True, slots=True)
class Setup:
    """How to run one contender.

    Attributes:
        concurrency: how many tasks run at once in each process; 0 is the contender's default.
        results: whether results are stored.
        acks: "late", "early", or "" for the contender's default.
        processes: how many worker processes run.
        cluster: "events": with task events; "off": without mingle, gossip and heartbeats, which
            are on by default; "" for the contender's default.
        signed: whether messages and results are signed.
    """

    concurrency: int = 500
    results: bool = True
    acks: str = ""
    processes: int = 1
    cluster: str = ""
    signed: bool = False

    @property
    def cluster_options(self) -> tuple[str, ...]:
        """The options for `cluster` on the command line of a Celery or greenq worker."""
        return _CLUSTER_OPTIONS[self.cluster]


@dataclass(frozen=True, slots=True)
class Peer:
    """One contender: its programs, and the places of its tasks on the server.

    Attributes:
        key: its name in options, files and JSON.
        title: its name as shown.
        home: the packages that it runs with: "own" for the driver's, "venv" for those of
            ``peers/<key>/requirements.txt``, "node" for those of ``peers/<key>/package.json``.
        worker: the command of one worker process.
        settings: its settings other than the defaults, as shown.
        wire: whether it reads Celery's messages. The driver writes these, with the same bytes for
            all contenders; other queues are filled by the contender's own client.
        member: the option that names each of several workers, with "{number}" in it.
        client: the command of its sending side.
        queue: the list (or stream) that a worker takes from.
        variant: the value of BENCH_VARIANT for its tasks.
        ready: a gauge that is not zero once a worker has started; None if not needed.
        warm_up: how many tasks run before the measured ones.
        released: further commands that its own sender would send when there is work.
        left: gauges that are zero when no task waits or runs.
        done: the gauge that grows by one with each result.
        counts_done: whether there is such a gauge; if not, only `left` shows when all is done.
        packages: names of packages whose versions are recorded.
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
    """The settings that a contender's process gets through its environment."""

    url: str
    setup: Setup
    variant: str = ""

    @classmethod
    def read(cls) -> Surroundings:
        """Return what `write` has passed to this process."""
        get = os.environ
        setup = Setup(
            int(get["BENCH_CONCURRENCY"]),
            get["BENCH_RESULTS"] == "1",
            get["BENCH_ACKS"],
            signed=get["BENCH_SIGNED"] == "1",
        )
        return cls(get["BENCH_URL"], setup, get["BENCH_VARIANT"])

    def write(self) -> dict[str, str]:
        """Return the environment variables for a process."""
        return {
            "BENCH_URL": self.url,
            "BENCH_CONCURRENCY": str(self.setup.concurrency),
            "BENCH_RESULTS": str(int(self.setup.results)),
            "BENCH_ACKS": self.setup.acks,
            "BENCH_SIGNED": str(int(self.setup.signed)),
            "BENCH_VARIANT": self.variant,
        }
