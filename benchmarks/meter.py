"""What a period cost: the server's counters and the processor time of all processes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks import proc

if TYPE_CHECKING:
    import redis

    from benchmarks.launch import Workers

_COUNTERS = {
    "commands": ("total_commands_processed",),
    "reads": ("total_reads_processed",),
    "bytes_in": ("total_net_input_bytes",),
    "bytes_out": ("total_net_output_bytes",),
    "server_cpu_us": ("used_cpu_user", "used_cpu_sys"),
}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All counters at one moment.

    Attributes:
        at_s: the time by the monotonic clock.
        info: the server's INFO.
        worker_cpu_s: the processor time of all worker processes.
        own_cpu_s: that of this process.
        extra_cpu_s: that of other processes that belong to the benchmark.
        machine_cpu_s: the busy time of all processors.
    """

    at_s: float
    info: dict[str, Any]
    worker_cpu_s: float
    own_cpu_s: float
    extra_cpu_s: float
    machine_cpu_s: float


def snapshot(client: redis.Redis, workers: Workers, extra: tuple[int, ...] = ()) -> Snapshot:
    """Read all counters, with one command; `extra` are other processes of the benchmark."""
    return Snapshot(
        at_s=time.perf_counter(),
        info=client.info(),
        worker_cpu_s=proc.cpu_s(workers.pids),
        own_cpu_s=time.process_time(),
        extra_cpu_s=proc.cpu_s(list(extra)),
        machine_cpu_s=proc.machine_cpu_s(),
    )


def per_task(
    before: Snapshot, after: Snapshot, tasks: int, own_commands: int, own_reads: int
) -> dict[str, float]:
    """Return the figures per task between two snapshots, without the measurement's own commands."""
    seconds = after.at_s - before.at_s
    grown = {
        figure: sum(float(after.info[name]) - float(before.info[name]) for name in names)
        for figure, names in _COUNTERS.items()
    }
    worker_cpu_s = after.worker_cpu_s - before.worker_cpu_s
    known_s = worker_cpu_s + grown["server_cpu_us"]
    known_s += after.own_cpu_s - before.own_cpu_s + after.extra_cpu_s - before.extra_cpu_s
    others_s = after.machine_cpu_s - before.machine_cpu_s - known_s
    return {
        "tasks": tasks,
        "seconds": seconds,
        "rate": tasks / seconds,
        "commands": (grown["commands"] - own_commands) / tasks,
        "reads": (grown["reads"] - own_reads) / tasks,
        "bytes_in": grown["bytes_in"] / tasks,
        "bytes_out": grown["bytes_out"] / tasks,
        "worker_cpu_us": 1e6 * worker_cpu_s / tasks,
        "server_cpu_us": 1e6 * grown["server_cpu_us"] / tasks,
        "worker_cores": worker_cpu_s / seconds,
        "server_cores": grown["server_cpu_us"] / seconds,
        "others_cores": max(0.0, others_s / seconds),
    }
