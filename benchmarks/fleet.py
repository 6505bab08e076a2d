"""What an idle worker costs alone and in a fleet, and how soon a fleet starts a pushed task.

``python -m benchmarks.fleet`` prints Markdown, for one idle worker and for forty; takes two
minutes. ``--workers 1,4`` measures fleets of other sizes, and ``--options=--without-gossip``
measures workers with that option.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks import proc
from benchmarks.launch import workers
from benchmarks.peer import Setup
from benchmarks.peers.greenq.peer import PEER
from benchmarks.server import valkey
from benchmarks.wire import Messages

if TYPE_CHECKING:
    from collections.abc import Sequence

    import redis

    from benchmarks.launch import Workers
    from benchmarks.server import Server

_SIZES = (1, 40)
_IDLE_S = 20.0
# How long to wait first; a newly started worker listens to all heartbeats, but not for this long.
_REST_S = 12.0
_PUSHES = 100
_BETWEEN_S = (0.02, 0.08)
_DEADLINE_S = 120.0
_POLL_S = 0.05
# The list of a queue's messages of priority 3.
_PRIORITY_3 = "celery\x06\x163"


class Idle(NamedTuple):
    """What one idle worker costs per minute: processor seconds and wake-ups."""

    cpu_s: float
    most_cpu_s: float
    watch_cpu_s: float
    wakes: float
    server_cpu_s: float
    commands: float


class Pushed(NamedTuple):
    """Milliseconds from push to start, ascending, and server commands per push."""

    begin_ms: list[float]
    commands: float


def idle(server: Server, client: redis.Redis, started: Workers, seconds: float) -> Idle:
    """Measure all workers for `seconds`."""
    pids = started.pids
    before, threads, server_s = {}, _threads(pids), proc.precise_cpu_s([server.pid])
    commands, from_s = _commands(client), time.monotonic()
    for pid in pids:
        before[pid] = proc.precise_cpu_s([pid])
    time.sleep(seconds)
    cpu_s = [proc.precise_cpu_s([pid]) - before[pid] for pid in pids]
    minutes = (time.monotonic() - from_s) / 60
    after, commands = _threads(pids), _commands(client) - commands - 1
    server_s = proc.precise_cpu_s([server.pid]) - server_s
    spent: Counter[str] = Counter()
    for (pid, thread), (ran_s, wakes) in after.items():
        ran_before_s, wakes_before = threads.get((pid, thread), (0.0, 0))
        spent["wakes"] += wakes - wakes_before
        if thread != pid:
            spent["others_us"] += round(1e6 * (ran_s - ran_before_s))
    each = minutes * len(pids)
    return Idle(
        statistics.fmean(cpu_s) / minutes,
        max(cpu_s) / minutes,
        spent["others_us"] / 1e6 / each,
        spent["wakes"] / each,
        server_s / each,
        commands / each,
    )


def push(client: redis.Redis, messages: Messages, key: str, count: int, idle_s: float) -> Pushed:
    """Push messages one by one to idle workers, which send `idle_s` commands a second anyway."""
    begin_ms, own = [], 0
    before, from_s = _commands(client), time.monotonic()
    for _ in range(count):
        time.sleep(random.uniform(*_BETWEEN_S))
        (task_id,) = messages.ids(1)
        result, deadline_s = f"celery-task-meta-{task_id}", time.monotonic() + _DEADLINE_S
        pushed_s = time.time()
        client.lpush(key, messages.text(task_id))
        own += 1
        while (stored := client.get(result)) is None:
            own += 1
            if time.monotonic() > deadline_s:
                raise RuntimeError("a task does not end")
            time.sleep(0.002)
        own += 1
        # The task returns when it started, as Unix time.
        begin_ms.append(1000 * (json.loads(stored)["result"] - pushed_s))
    commands = _commands(client) - before - 1 - own
    of_themselves = idle_s * (time.monotonic() - from_s)
    return Pushed(sorted(begin_ms), (commands - of_themselves) / count)


def measure(size: int, options: Sequence[str], seconds: float) -> tuple[Idle, Pushed, Pushed]:
    """Measure a fleet of `size` workers on a separate server."""
    peer = replace(PEER, worker=lambda setup: (*PEER.worker(setup), *options))
    with (
        valkey() as server,
        server.client() as client,
        workers(server, peer, Setup(concurrency=0, processes=size)) as started,
    ):
        _settle(client, started)
        # With 0 as its argument, the task returns when it started, as Unix time.
        messages = Messages(server, client, "lateness", (0,))
        push(client, messages, "celery", 3 * size, 0.0)
        time.sleep(_REST_S)
        rest = idle(server, client, started, seconds)
        idle_s = rest.commands * size / 60
        plain = push(client, messages, "celery", _PUSHES, idle_s)
        urgent = push(client, messages, _PRIORITY_3, _PUSHES, idle_s)
        started.check_alive()
        return rest, plain, urgent


def _threads(pids: Sequence[int]) -> dict[tuple[int, int], tuple[float, int]]:
    """Return each thread's processor seconds and number of waits."""
    found = {}
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            ran = int((thread / "schedstat").read_text("ascii").split()[0]) / 1e9
            status = (thread / "status").read_text("ascii", "replace")
            waits = status.partition("\nvoluntary_ctxt_switches:")[2].split()[0]
            found[pid, int(thread.name)] = ran, int(waits)
    return found


def _commands(client: redis.Redis) -> int:
    carried_out: int = client.info("stats")["total_commands_processed"]
    return carried_out


def _settle(client: redis.Redis, started: Workers) -> None:
    """Wait until all workers are waiting for messages."""
    deadline_s, wanted = time.monotonic() + _DEADLINE_S, len(started.processes)
    while client.info("clients")["blocked_clients"] < wanted:
        started.check_alive()
        if time.monotonic() > deadline_s:
            raise started.complaint("the workers do not start waiting")
        time.sleep(_POLL_S)


def _percentile(ascending: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of the values do not exceed."""
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]


_COLUMNS = (
    "workers",
    "CPU s/min of each",
    "of the worst",
    "of its watch thread",
    "wake-ups/s of each",
    "server: CPU s/min for each",
    "commands/s for each",
    "push to begin, ms: p50",
    "p99",
    "commands",
    "priority push, ms: p50",
    "p99",
    "commands",
)


def _cells(size: int, rest: Idle, pushes: Sequence[Pushed]) -> list[str]:
    cells = [
        str(size), f"{rest.cpu_s:.3f}", f"{rest.most_cpu_s:.3f}", f"{rest.watch_cpu_s:.3f}",
        f"{rest.wakes / 60:.1f}", f"{rest.server_cpu_s:.3f}", f"{rest.commands / 60:.1f}",
    ]  # fmt: skip
    for each in pushes:
        cells += [f"{_percentile(each.begin_ms, share):.1f}" for share in (0.5, 0.99)]
        cells.append(f"{each.commands:.0f}")
    return cells


def main() -> None:
    """Measure fleets of the given sizes and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=__doc__)
    parser.add_argument("--workers", default=",".join(map(str, _SIZES)), metavar="N,M")
    parser.add_argument("--options", default="", help="further options of the workers")
    parser.add_argument("--seconds", type=float, default=_IDLE_S, help="how long to measure idling")
    given = parser.parse_args()
    print("| " + " | ".join(_COLUMNS) + " |")
    print("|" + " --- |" * len(_COLUMNS), flush=True)
    for size in map(int, given.workers.split(",")):
        rest, *pushes = measure(size, given.options.split(), given.seconds)
        print("| " + " | ".join(_cells(size, rest, pushes)) + " |", flush=True)


if __name__ == "__main__":
    main()
