"""The time from a call until the caller has its result; calls are made one at a time."""

from __future__ import annotations

import json
import statistics
import time
from typing import TYPE_CHECKING

from benchmarks import environments
from benchmarks.launch import run_client, workers
from benchmarks.peer import Setup
from benchmarks.plan import PEERS

if TYPE_CHECKING:
    from benchmarks.server import Server

# How many calls precede the measured ones, to open connections and finish late imports.
_WARM_UP = 50
_READY_S = 20.0


def run(server: Server, contender: str, samples: int) -> dict[str, float]:
    """Measure a contender's own client, with one idle worker that has default settings."""
    peer, setup = PEERS[contender], Setup()
    environments.prepare(peer)
    with workers(server, peer, setup) as started, server.client() as client:
        deadline = time.monotonic() + _READY_S
        while peer.ready is not None and not client.execute_command(*peer.ready):
            started.check_alive()
            if time.monotonic() > deadline:
                raise started.complaint("the worker does not become ready")
            time.sleep(0.05)
        said = run_client(server, peer, setup, "latency", str(_WARM_UP + samples))
        started.check_alive()
    taken_ms = [1000 * seconds for seconds in json.loads(said)[_WARM_UP:]]
    hundredths = statistics.quantiles(taken_ms, n=100, method="inclusive")
    return {
        "samples": samples,
        "p50_ms": hundredths[49],
        "p99_ms": hundredths[98],
        "mean_ms": statistics.fmean(taken_ms),
    }
