"""The state that a supervisord group shares on the server: its leader, load reports, drain marks.

One process leads. The leader alone decides how many processes run; the other processes report their
load, and drain when they are marked.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from greenq.transport.client import load_script

if TYPE_CHECKING:
    from collections.abc import Mapping

    from greenq.protocol.keys import Keys
    from greenq.transport.client import Client

_REPORT = load_script("processes_report")
_MARK = load_script("processes_mark")

# After this many intervals without a report, but no sooner than after this many seconds, a leader
# is replaced, and a process is no longer counted.
_SILENT_INTERVALS: Final = 4
_SILENT_S: Final = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """The load of one process.

    Attributes:
        busy: the fraction of the time during which any greenlet ran, from 0 to 1.
        running: how many tasks are running.
        waiting: how many messages are waiting in this process for a slot.
        draining: whether the process has stopped taking messages.
    """

    busy: float
    running: int
    waiting: int
    draining: bool


class GroupAnswer(NamedTuple):
    """What a process learns when it reports.

    Attributes:
        leads: whether the process leads the group.
        draining: the processes that must drain; a process that does not lead learns only whether it
            must drain itself.
        reports: the recent reports, by process; empty unless this process leads.
    """

    leads: bool
    draining: frozenset[str]
    reports: Mapping[str, LoadReport]


class GroupStore:
    """The shared state of one supervisord group, as one of its processes uses it."""

    def __init__(
        self, client: Client, keys: Keys, *, group: str, process: str, interval_s: float
    ) -> None:
        """Report as `process` of `group` every `interval_s` seconds."""
        self._client = client
        self._leader = keys.group_leader(group)
        self._reports = keys.group_reports(group)
        self._draining = keys.group_draining(group)
        self._process = process
        self._silent_ms = round(max(_SILENT_S, _SILENT_INTERVALS * interval_s) * 1000)

    def report(self, report: LoadReport) -> GroupAnswer:
        """Report this process's load, and lead if there is no leader. Switches: yes.

        Raises:
            OperationalError: the server cannot be reached, or refuses the call.
        """
        leads, draining, recent = self._call(json.dumps(asdict(report)))
        texts = [each.decode("utf-8", "replace") for each in recent]
        reports = {
            name: read
            for name, text in zip(texts[::2], texts[1::2], strict=True)
            if (read := _read(text)) is not None
        }
        return GroupAnswer(bool(leads), frozenset(each.decode() for each in draining), reports)

    def leave(self) -> None:
        """Report that this process is ending, so that another can lead. Switches: yes.

        Raises:
            OperationalError: the server cannot be reached, or refuses the call.
        """
        self._call("")

    def mark(self, process: str, *, drain: bool) -> bool:
        """Make a process drain or take messages again; return False if the caller no longer leads.

        Raises:
            OperationalError: the server cannot be reached, or refuses the call.
        """
        keys = [self._leader, self._draining]
        asked = [self._process, process, "1" if drain else "0"]
        return bool(self._client.script(_MARK, keys, asked))

    def _call(self, report: str) -> tuple[int, list[bytes], list[bytes]]:
        keys = [self._leader, self._reports, self._draining]
        # Reports and the lead expire after the same time.
        arguments = [self._process, report, self._silent_ms, self._silent_ms]
        leads, draining, recent = self._client.script(_REPORT, keys, arguments)
        return leads, draining, recent


def _read(text: str) -> LoadReport | None:
    """Parse a report; return None if another version of greenq wrote it."""
    try:
        return LoadReport(**json.loads(text))
    except (ValueError, TypeError):
        return None
