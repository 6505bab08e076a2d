"""Processor time and memory of processes, from /proc."""

from __future__ import annotations

import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")


def tree(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    pids = [pid]
    for each in pids:
        for thread in _entries(_PROC / str(each) / "task"):
            pids += map(int, _text(thread / "children").split())
    return pids


def cpu_s(pids: list[int]) -> float:
    """Return the processor time of processes so far, user and system."""
    return sum(_cpu_ticks(pid) for pid in pids) / _TICKS


def precise_cpu_s(pids: list[int]) -> float:
    """Return the processor time of the living threads of processes so far.

    The time comes from the scheduler, in nanoseconds. `cpu_s` counts ticks, and a worker that idles
    for half a minute uses only a few of them.
    """
    threads = [thread for pid in pids for thread in _entries(_PROC / str(pid) / "task")]
    words = [_text(thread / "schedstat").split() for thread in threads]
    return sum(int(each[0]) for each in words if each) / 1e9


def rss_mb(pids: list[int]) -> float:
    """Return the resident memory of processes now."""
    return sum(_status_kb(pid, "VmRSS:") for pid in pids) / 1024


def peak_mb(pids: list[int]) -> float:
    """Return the sum of the processes' peak resident memory."""
    return sum(_status_kb(pid, "VmHWM:") for pid in pids) / 1024


def machine_cpu_s() -> float:
    """Return the total busy time of all processors."""
    user, nice, system, _idle, _iowait, irq, softirq, *_ = map(
        int, _text(_PROC / "stat").split("\n", 1)[0].split()[1:]
    )
    return (user + nice + system + irq + softirq) / _TICKS


def _cpu_ticks(pid: int) -> int:
    # The name in parentheses may contain spaces. Fields 14 to 17 are utime and stime, and then the
    # same for children that have ended and been waited for.
    fields = _text(_PROC / str(pid) / "stat").rpartition(")")[2].split()
    return sum(map(int, fields[11:15]))


def _status_kb(pid: int, field: str) -> int:
    for line in _text(_PROC / str(pid) / "status").splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    return 0


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return []


def _text(path: Path) -> str:
    """Return the text of a file; "" if its process has ended."""
    try:
        return path.read_text("ascii", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
