"""Owners: worker incarnations, as the members of the leases name them.

Commands read them, too, so this needs nothing of a worker.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import NamedTuple


class Owner(NamedTuple):
    """One worker incarnation.

    Attributes:
        incarnation: what its delivery tags begin with; never the same twice.
        node: its node name, for people.
        process: what tells on this machine whether its process lives; empty when nothing does.
    """

    incarnation: str
    node: str
    process: str

    def __str__(self) -> str:
        """Return the member of the leases."""
        return "|".join(self)

    @classmethod
    def parse(cls, member: str) -> Owner:
        """Read a member of the leases."""
        incarnation, node, process = (*member.split("|"), "", "")[:3]
        return cls(incarnation, node, process)

    @property
    def is_dead(self) -> bool:
        """True when its process has provably ended: it was on this machine and is not there now."""
        where, _, pid_and_start = self.process.rpartition("/")
        pid, _, start = pid_and_start.partition(":")
        return bool(where) and where == _where() and _start_of(pid) != start


def new_owner(node: str) -> Owner:
    """Return this process as a new incarnation of `node`."""
    where, pid = _where(), str(os.getpid())
    process = f"{where}/{pid}:{_start_of(pid)}" if where else ""
    return Owner(uuid.uuid4().hex, node, process)


def _where() -> str:
    """Name this boot of this machine and this space of process numbers; empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot}-{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start_of(pid: str) -> str:
    """Return when a process began, in the kernel's ticks; empty if there is none."""
    try:
        stat = Path("/proc", pid, "stat").read_text("ascii", "replace")
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    # A zombie runs nothing any more.
    return "" if fields[0] == "Z" else fields[19]
