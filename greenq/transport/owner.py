"""Owners: worker incarnations, as the members of the leases name them.

Commands also parse these members, so this module imports nothing that only workers need.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import NamedTuple


class Owner(NamedTuple):
    """One worker incarnation.

    Attributes:
        incarnation: the prefix of its delivery tags, which is never used twice.
        node: its node name, for display.
        process: identifies the process, so that its machine can check whether it is alive; empty if
            the machine cannot check this.
    """

    incarnation: str
    node: str
    process: str

    def __str__(self) -> str:
        """Return this owner's member of the leases."""
        return "|".join(self)

    @classmethod
    def parse(cls, member: str) -> Owner:
        """Parse a member of the leases."""
        incarnation, node, process = (*member.split("|"), "", "")[:3]
        return cls(incarnation, node, process)

    @property
    def where(self) -> str:
        """The boot of the owner's machine and its pid namespace; empty if unknown."""
        return self.process.rpartition("/")[0]

    @property
    def pid(self) -> int:
        """The owner's process id in that namespace; 0 if unknown."""
        pid = self.process.rpartition("/")[2].partition(":")[0]
        return int(pid) if pid.isdecimal() else 0

    @property
    def is_dead(self) -> bool:
        """True if the process has certainly ended: it ran on this machine and no longer exists."""
        where, _, pid_and_start = self.process.rpartition("/")
        pid, _, start = pid_and_start.partition(":")
        return bool(where) and where == here() and _start_of(pid) != start


def new_owner(node: str) -> Owner:
    """Return this process as a new incarnation of `node`."""
    where, pid = here(), str(os.getpid())
    process = f"{where}/{pid}:{_start_of(pid)}" if where else ""
    return Owner(uuid.uuid4().hex, node, process)


def here() -> str:
    """Return a text that identifies this machine's boot and pid namespace; empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot}-{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start_of(pid: str) -> str:
    """Return when a process began, in kernel ticks; empty if the process does not exist."""
    try:
        stat = Path("/proc", pid, "stat").read_text("ascii", "replace")
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    # A zombie no longer runs any code.
    return "" if fields[0] == "Z" else fields[19]
