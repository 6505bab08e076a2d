"""Runs a plan: round 1 of every contender of every workload, then round 2, and so on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import drain, environments, etas, idle, latency, pings, sending
from benchmarks.plan import NAP_S, PEERS
from benchmarks.server import http_server, valkey

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.plan import Workload
    from benchmarks.server import Server

Figures = dict[str, float]

_LEAST = 100
# Workloads measured in seconds or single messages, which are too small to be scaled down.
_SMALL = frozenset({"idle", "fleet", "latency", "ping", "ping-blocked", "heartbeats"})
# The figures shown during the run, if a workload has them.
_SHOWN = (
    ("rate", "{:,.0f}/s"),
    ("ideal_share", "{:.0%} of the ideal"),
    ("worker_cpu_us", "worker {:.0f} µs"),
    ("server_cpu_us", "server {:.1f} µs"),
    ("in_flight_kb", "{:.1f} KB in flight"),
    ("p50_ms", "p50 {:.2f} ms"),
    ("p99_ms", "p99 {:.2f} ms"),
    ("worst_ms", "worst {:.2f} ms"),
    ("client_commands_s", "{:.2f} client commands/s"),
    ("commands_s", "{:.2f} commands/s"),
    ("cpu_percent", "{:.2f} % of a core"),
    ("idle_cpu_percent", "{:.2f} % without heartbeats"),
    ("cpu_s_a_minute", "{:.3f} s CPU a minute"),
    ("rss_mb", "{:.1f} MB"),
    ("connections", "{:.0f} connections"),
    ("wakes", "costs {:.2f} workers' commands"),
    ("late_s", "last one {:.2f} s late"),
    ("late_p99_s", "p99 {:.2f} s late"),
    ("waiting_kb", "{:.2f} KB a waiting task"),
    ("growth_mb", "grew by {:.1f} MB"),
    ("others_cores", "others {:.2f} cores"),
)


@dataclass(frozen=True, slots=True)
class Turn:
    """One measurement: a workload, a contender and a size."""

    workload: Workload
    contender: str
    count: int
    round: int


def turns(
    workloads: Sequence[Workload], rounds: int, contenders: Sequence[str], scale: float
) -> list[Turn]:
    """Return the measurements in order."""
    order = []
    for number in range(1, rounds + 1):
        for workload in workloads:
            if number > (workload.most_rounds or rounds):
                continue
            order += [
                Turn(workload, contender, _scaled(workload, count, scale), number)
                for contender, count in workload.sizes.items()
                if (not contenders or contender in contenders)
                and (number % 2 or contender not in workload.seldom)
            ]
    return order


def _scaled(workload: Workload, count: int, scale: float) -> int:
    if scale == 1 or workload.kind in _SMALL:
        return count
    return max(min(count, _LEAST), round(count * scale))


def run(order: Sequence[Turn], file: Path, options: dict[str, Any]) -> bool:
    """Measure all turns and write every figure to `file`; return False if any turn has failed.

    The file is written after each turn, so an interrupted run keeps its results.
    """
    record = _header(order, options)
    order = [turn for turn in order if turn.contender not in record["unavailable"]]
    taken_s: dict[tuple[str, str], list[float]] = defaultdict(list)
    for number, turn in enumerate(order):
        began_s = time.monotonic()
        made: dict[str, Any] = {
            "workload": turn.workload.key, "contender": turn.contender,
            "round": turn.round, "count": turn.count, "load": os.getloadavg()[0],
        }  # fmt: skip
        try:
            made["figures"] = measure(turn)
            told = _describe(made["figures"])
        except (RuntimeError, subprocess.SubprocessError) as exc:
            made["failed"] = str(exc)
            told = f"FAILED: {exc}"
        made["took_s"] = time.monotonic() - began_s
        taken_s[turn.workload.key, turn.contender].append(made["took_s"])
        record["rounds"].append(made)
        record["load_after"] = os.getloadavg()
        _write(file, record)
        left_s = _left_s(order[number + 1 :], taken_s)
        print(
            f"round {turn.round}  {turn.workload.key:<15} {turn.contender:<13}{told}"
            f"  [{left_s / 60:.0f} min left]",
            flush=True,
        )
    return not any("failed" in made for made in record["rounds"])


def measure(turn: Turn) -> Figures:
    """Measure one turn on a separate server."""
    with valkey() as server:
        return _KINDS[turn.workload.kind](server, turn)


def _drain(server: Server, turn: Turn) -> Figures:
    workload, peer = turn.workload, PEERS[turn.contender]
    if workload.task == "fetch":
        with http_server() as web:
            fetching = drain.Work(
                task="fetch", args=(web.port,), value=web.answer_bytes, extra=(web.pid,)
            )
            figures = drain.run(server, peer, workload.setup, fetching, turn.count)
        return figures | {"ideal_share": figures["rate"] * web.delay_s / workload.setup.concurrency}
    if workload.task == "nap":
        napping = drain.Work(task="nap", args=(NAP_S,), value=NAP_S)
        figures = drain.run(server, peer, workload.setup, napping, turn.count)
        return figures | {"ideal_share": figures["rate"] * NAP_S / workload.setup.concurrency}
    plain = drain.Work(task=workload.task, repeats=workload.repeats)
    return drain.run(server, peer, workload.setup, plain, turn.count)


_KINDS: dict[str, Callable[[Server, Turn], Figures]] = {
    "drain": _drain,
    "send-one": lambda server, turn: sending.one_by_one(server, turn.contender, turn.count),
    "send-bulk": lambda server, turn: sending.bulk(server, turn.contender, turn.count),
    "latency": lambda server, turn: latency.run(server, turn.contender, turn.count),
    "idle": lambda server, turn: idle.alone(server, PEERS[turn.contender], turn.count),
    "fleet": lambda server, turn: idle.fleet(server, PEERS[turn.contender], turn.count),
    "ping": lambda server, turn: pings.free(server, turn.contender, turn.count),
    "ping-blocked": lambda server, turn: pings.blocked(server, turn.contender, turn.count),
    "heartbeats": lambda server, turn: idle.heartbeats(server, PEERS[turn.contender], turn.count),
    "etas": lambda server, turn: etas.due_together(server, PEERS[turn.contender], turn.count),
    "far-etas": lambda server, turn: etas.far(server, PEERS[turn.contender], turn.count),
}


def _header(order: Sequence[Turn], options: dict[str, Any]) -> dict[str, Any]:
    """Prepare all environments; return what is measured, and on what machine."""
    peers = {turn.contender: PEERS[turn.contender] for turn in order}
    unavailable, versions = {}, {}
    for key, peer in peers.items():
        try:
            environments.prepare(peer)
            versions[key] = environments.versions(peer)
        except environments.Unavailable as exc:
            print(exc, flush=True)
            unavailable[key] = str(exc)
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "options": options,
        "machine": {
            "cores": os.cpu_count(),
            "processor": _processor(),
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "python": platform.python_version(),
        },
        "load_before": os.getloadavg(),
        "versions": versions | {"server": _server_version()},
        "settings": {key: peer.settings for key, peer in peers.items()},
        "unavailable": unavailable,
        "rounds": [],
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _server_version() -> str:
    with valkey() as server, server.client() as client:
        info = client.info("server")
        return str(info.get("valkey_version") or info["redis_version"])


def _left_s(order: Sequence[Turn], taken_s: dict[tuple[str, str], list[float]]) -> float:
    """Estimate how long the remaining turns will take."""
    seconds = 0.0
    for turn in order:
        seen = taken_s.get((turn.workload.key, turn.contender))
        seconds += sum(seen) / len(seen) if seen else turn.workload.guess_s
    return seconds


def _describe(figures: Figures) -> str:
    return ", ".join(form.format(figures[name]) for name, form in _SHOWN if name in figures)


def _write(file: Path, record: dict[str, Any]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
