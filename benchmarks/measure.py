"""One round: a fresh worker process, a full queue, and what the round cost.

The worker first runs a few warm-up tasks, so its start is over and it waits for work. The messages
lie in another list meanwhile; one RENAME makes them the worker's queue. The clock runs from there
until all results are stored, the queue is empty and nothing is reserved.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import redis

from benchmarks.server import stop

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.server import Server

_ROOT = Path(__file__).resolve().parent.parent
_QUEUE = "celery"
_STAGED = "bench.staged"

_POLL_S = 0.01
_DEADLINE_S = 120.0
_LAST_RESULTS_S = 10.0
_WORKER_STOP_S = 20.0

# Values that one command carries: keeps each far below the server's limits.
_CHUNK = 500

_TICKS = os.sysconf("SC_CLK_TCK")


class Message(NamedTuple):
    """One task message as it stands on the queue, and the id of its task."""

    task_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Contender:
    """A worker to measure.

    Attributes:
        name: for the table.
        settings: how it is started, for the table.
        arguments: of the Python interpreter.
    """

    name: str
    settings: str
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Round:
    """What one round took; everything but `seconds`, `peak_rss_mb` and `others_cores` is per task.

    Attributes:
        tasks: how many ran.
        seconds: from the full queue to the last result.
        rate: tasks a second.
        commands: carried out by the server, those inside scripts included.
        reads: of a socket by the server; a round trip is one, or several for a long pipeline.
        bytes_in: received by the server.
        bytes_out: sent by the server.
        worker_cpu_ms: of the worker process, all threads.
        server_cpu_ms: of the server process.
        peak_rss_mb: of the worker process, since its start.
        others_cores: processor cores that unrelated processes kept busy meanwhile: noise.
    """

    tasks: int
    seconds: float
    rate: float
    commands: float
    reads: float
    bytes_in: float
    bytes_out: float
    worker_cpu_ms: float
    server_cpu_ms: float
    peak_rss_mb: float
    others_cores: float


def run_round(
    server: Server, contender: Contender, messages: Sequence[Message], warm_up: Sequence[Message]
) -> Round:
    """Measure one worker on an empty server.

    Raises:
        RuntimeError: the worker ended, was too slow, or a task did not succeed.
    """
    client = redis.Redis(port=server.port)
    client.flushall()
    with _worker(server, contender) as worker:
        _stage(client, warm_up)
        client.rename(_STAGED, _QUEUE)
        _await_results(client, worker, warm_up)
        _settle_results(client, contender.name, warm_up)
        _stage(client, messages)
        before = _snapshot(client, worker.pid)
        client.rename(_STAGED, _QUEUE)
        polls = _await_results(client, worker, messages)
        after = _snapshot(client, worker.pid)
        _settle_results(client, contender.name, messages)
    client.close()
    return _difference(before, after, len(messages), polls)


class _Snapshot(NamedTuple):
    at_s: float
    info: dict[str, Any]
    worker_cpu_s: float
    worker_peak_kb: int
    own_cpu_s: float
    machine_cpu_s: float


class _Worker(NamedTuple):
    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid


@contextmanager
def _worker(server: Server, contender: Contender) -> Iterator[_Worker]:
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path, "BENCH_BROKER": server.url}
    with tempfile.TemporaryDirectory(prefix="greenq-bench-") as folder:
        log = Path(folder, "worker.log")
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, *contender.arguments],
                env=environment, cwd=folder, stdout=stream, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            yield _Worker(contender.name, process, log)
        finally:
            stop(process, _WORKER_STOP_S)


def _stage(client: redis.Redis, messages: Sequence[Message]) -> None:
    for start in range(0, len(messages), _CHUNK):
        client.lpush(_STAGED, *(message.text for message in messages[start : start + _CHUNK]))


def _await_results(client: redis.Redis, worker: _Worker, messages: Sequence[Message]) -> int:
    """Wait until all messages have run and are acknowledged; return how often we looked.

    The look is cheap, one DBSIZE: a handful of keys are no results, so it may be early by as many.
    """
    deadline = time.monotonic() + _DEADLINE_S
    look = client.pipeline(transaction=False)
    polls = 0
    while True:
        look.dbsize()
        look.llen(_QUEUE)
        look.exists("unacked")
        keys, queued, reserved = look.execute()
        polls += 1
        if keys >= len(messages) and not queued and not reserved:
            return polls
        if worker.process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(
                f"{worker.name} ended or was too slow: {queued} of {len(messages)} messages are "
                f"still queued; the end of its log:\n{worker.log.read_text('utf-8')[-2000:]}"
            )
        time.sleep(_POLL_S)


def _settle_results(client: redis.Redis, name: str, messages: Sequence[Message]) -> None:
    """See that every task succeeded, and delete the results.

    Raises:
        RuntimeError: one did not.
    """
    for start in range(0, len(messages), _CHUNK):
        keys = [f"celery-task-meta-{each.task_id}" for each in messages[start : start + _CHUNK]]
        deadline = time.monotonic() + _LAST_RESULTS_S
        while client.exists(*keys) < len(keys) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        for key, result in zip(keys, client.mget(keys), strict=True):
            if result is None or json.loads(result)["status"] != "SUCCESS":
                raise RuntimeError(f"{name}: {key} holds {result!r}, not a success")
        client.unlink(*keys)


def _snapshot(client: redis.Redis, worker_pid: int) -> _Snapshot:
    return _Snapshot(
        at_s=time.perf_counter(),
        info=client.info(),
        worker_cpu_s=_cpu_s(worker_pid),
        worker_peak_kb=_peak_kb(worker_pid),
        own_cpu_s=time.process_time(),
        machine_cpu_s=_machine_cpu_s(),
    )


def _difference(before: _Snapshot, after: _Snapshot, tasks: int, polls: int) -> Round:
    """Put two snapshots into numbers per task, without what the measuring itself sent."""

    def grown(*names: str) -> float:
        return sum(float(after.info[name]) - float(before.info[name]) for name in names)

    seconds = after.at_s - before.at_s
    server_cpu_s = grown("used_cpu_user", "used_cpu_sys")
    worker_cpu_s = after.worker_cpu_s - before.worker_cpu_s
    own_cpu_s = after.own_cpu_s - before.own_cpu_s
    others_s = after.machine_cpu_s - before.machine_cpu_s - server_cpu_s - worker_cpu_s - own_cpu_s
    # Ours: the two INFO (each counts itself once it is done, so one), the RENAME, and the looks.
    own_commands, own_reads = 3 * polls + 2, polls + 2
    return Round(
        tasks=tasks,
        seconds=seconds,
        rate=tasks / seconds,
        commands=(grown("total_commands_processed") - own_commands) / tasks,
        reads=(grown("total_reads_processed") - own_reads) / tasks,
        bytes_in=grown("total_net_input_bytes") / tasks,
        bytes_out=grown("total_net_output_bytes") / tasks,
        worker_cpu_ms=1000 * worker_cpu_s / tasks,
        server_cpu_ms=1000 * server_cpu_s / tasks,
        peak_rss_mb=after.worker_peak_kb / 1024,
        others_cores=max(0.0, others_s / seconds),
    )


def _cpu_s(pid: int) -> float:
    """Return the processor time of a process so far, user and system."""
    # The name, in parentheses, may hold spaces; utime and stime are the 14th and 15th field.
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _peak_kb(pid: int) -> int:
    """Return the largest resident size of a process so far."""
    for line in Path(f"/proc/{pid}/status").read_text("ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/{pid}/status says nothing of VmHWM")


def _machine_cpu_s() -> float:
    """Return the time that all processors together have worked."""
    user, nice, system, _idle, _iowait, irq, softirq, *_ = map(
        int, Path("/proc/stat").read_text("ascii").split("\n", 1)[0].split()[1:]
    )
    return (user + nice + system + irq + softirq) / _TICKS
