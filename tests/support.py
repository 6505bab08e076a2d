"""Waiting in tests: for a condition, never for a duration."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

_POLL_S = 0.01


def wait_until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Return as soon as `condition` is true; fail with its name when that takes too long."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            name = getattr(condition, "__qualname__", repr(condition))
            raise AssertionError(f"not within {timeout_s:g} s: {name}")
        time.sleep(_POLL_S)


class FairTime:
    """The time that the machine had for this test, to compare with a promised number of seconds.

    Other programs on the machine must not make a measuring test fail. So only the share of the
    processors that others left counts; on an otherwise idle machine, that is all of the time.
    """

    def __init__(self) -> None:
        """Start now."""
        self.began_s = time.monotonic()
        self._others = _others_s()

    def passed_s(self) -> float:
        """Return how much has passed."""
        passed_s = time.monotonic() - self.began_s
        others_s = max(0.0, _others_s() - self._others)
        return max(passed_s - others_s / _PROCESSORS, passed_s * _LEAST_SHARE)


_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PROCESSORS = os.cpu_count() or 1

# The least share that counts: if others seem to take more, the cause is probably our own.
_LEAST_SHARE = 0.15


def _others_s() -> float:
    """Return the processor time of all processes except this one and its descendants."""
    busy = Path("/proc/stat").read_text("ascii").split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, busy[:8])
    return (user + nice + system + irq + softirq + steal) * _TICK_S - _own_s()


def _own_s() -> float:
    """Return the processor time of this process and its descendants."""
    parents, spent = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            fields = (entry / "stat").read_text("ascii", "replace").rpartition(")")[2].split()
            pid = int(entry.name)
            # Including children that have ended.
            parents[pid], spent[pid] = int(fields[1]), sum(map(int, fields[11:15]))
    own = [os.getpid()]
    for pid in own:
        own += [child for child, parent in parents.items() if parent == pid]
    return sum(spent[pid] for pid in own) * _TICK_S


def close_celery(app: Any) -> None:
    """Close a Celery app and the connections of its results, which `Celery.close` leaves open."""
    app.backend.result_consumer.stop()
    # A redis-py client does not close a pool that was given to it.
    app.backend.client.connection_pool.disconnect()
    app.close()
