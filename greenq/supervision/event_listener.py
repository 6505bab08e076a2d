"""A supervisord event listener that restarts workers that do not answer or use too much memory.

The listener pings the workers. A worker's watchdog thread answers even while a task blocks the hub,
so a worker that does not answer is frozen: a call holds the GIL, the process is suspended, or it
hung while starting.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, NamedTuple

from greenq.errors import OperationalError, SupervisorError
from greenq.utils.log import OutageLog

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from greenq.supervision.supervisor import Supervisor

_log = logging.getLogger(__name__)

_READY: Final = b"READY\n"
_OK: Final = b"RESULT 2\nOK"


def events(source: IO[bytes], sink: IO[bytes]) -> Iterator[Mapping[str, str]]:
    """Yield the header of each event, then acknowledge the event, until the input ends.

    In the protocol, the listener writes READY, supervisord writes one line of headers and `len`
    bytes, and the listener writes a result.
    """
    while True:
        sink.write(_READY)
        sink.flush()
        line = source.readline()
        if not line:
            return
        header = dict(word.split(":", 1) for word in line.decode().split())
        source.read(int(header["len"]))
        yield header
        sink.write(_OK)
        sink.flush()


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A running process of the group, as seen in one check.

    Attributes:
        name: its name in the group.
        pid: its process id.
        age_s: how long it has been running.
        node: its node name, or None if it holds no lease.
        answers: whether it has answered the ping.
        used_bytes: its resident memory; 0 if unknown.
    """

    name: str
    pid: int
    age_s: float
    node: str | None
    answers: bool
    used_bytes: int


class Verdict(NamedTuple):
    """Which process to restart, and why."""

    name: str
    reason: str


class Judge:
    """Finds unresponsive and large processes among those seen."""

    def __init__(self, *, mute_after_s: float, max_bytes: int | None) -> None:
        """Choose processes that have been silent for `mute_after_s` or exceed `max_bytes`."""
        self._mute_after_s = mute_after_s
        self._max_bytes = max_bytes
        # When each process became silent, by process id, and the processes that have answered at
        # least once.
        self._silent_since: dict[int, float] = {}
        self._known: set[int] = set()
        self._said: set[int] = set()

    def judge(self, now_s: float, seen: Collection[Seen]) -> Verdict | None:
        """Return the process to restart, or None; the one that was silent longest comes first."""
        self._note(now_s, seen)
        mute = [each for each in seen if self._is_mute(now_s, each)]
        if mute:
            worst = min(mute, key=lambda each: self._silent_since[each.pid])
            silent_s = now_s - self._silent_since[worst.pid]
            return Verdict(worst.name, f"it has not answered a ping for {silent_s:.0f} s")
        for each in seen:
            if self._max_bytes is not None and each.used_bytes > self._max_bytes:
                used, most = each.used_bytes / 2**20, self._max_bytes / 2**20
                return Verdict(each.name, f"it uses {used:,.0f} MB, more than {most:,.0f} MB")
        return None

    def forgive(self) -> None:
        """Forget which processes were silent and since when, because none could be pinged."""
        self._silent_since.clear()

    def _note(self, now_s: float, seen: Collection[Seen]) -> None:
        pids = {each.pid for each in seen}
        self._known &= pids
        self._said &= pids
        self._silent_since = {
            each.pid: self._silent_since.get(each.pid, now_s) for each in seen if not each.answers
        }
        self._known |= {each.pid for each in seen if each.answers}

    def _is_mute(self, now_s: float, each: Seen) -> bool:
        since_s = self._silent_since.get(each.pid)
        if since_s is None or now_s - since_s < self._mute_after_s:
            return False
        if each.age_s < self._mute_after_s:
            return False
        if each.node is not None and each.pid not in self._known:
            # The worker holds its lease but has never answered, so it takes no commands.
            if each.pid not in self._said:
                self._said.add(each.pid)
                _log.warning(
                    "%s has never answered a ping but holds its lease: it is not watched; check "
                    "for --without-control and worker_enable_remote_control = False", each.name,
                )  # fmt: skip
            return False
        return True


class EventListener:
    """Checks the workers of one group, and restarts at most one of them in each check."""

    def __init__(
        self,
        supervisor: Supervisor,
        group: str,
        judge: Judge,
        *,
        nodes: Callable[[], Mapping[int, str]],
        ping: Callable[[Sequence[str]], Collection[str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Watch `group`.

        Args:
            supervisor: the supervisord that runs the group.
            group: the group's name.
            judge: decides which process is restarted.
            nodes: returns the nodes of this machine that hold a lease, by process id.
            ping: pings nodes and returns those that have answered.
            clock: monotonic time in seconds.
        """
        self._supervisor, self._group, self._judge = supervisor, group, judge
        self._nodes, self._ping, self._clock = nodes, ping, clock
        self._outage = OutageLog(_log)

    def look(self) -> None:
        """Check once, and restart a process if necessary."""
        try:
            verdict = self._judge.judge(self._clock(), self._seen())
            self._outage.recovered("the workers can be pinged again")
        except OperationalError as exc:
            # Without the server, no worker can answer, and that is not the workers' fault.
            self._judge.forgive()
            self._outage.failed("the workers cannot be pinged, so none is restarted", exc)
            return
        except SupervisorError as exc:
            _log.error("the workers are not watched: %s", exc)
            return
        if verdict is not None:
            self._restart(verdict)

    def _seen(self) -> list[Seen]:
        running = [each for each in self._supervisor.group(self._group) if each.is_up and each.pid]
        nodes = self._nodes()
        asked = [nodes[each.pid] for each in running if each.pid in nodes]
        answered = self._ping(asked) if asked else ()
        return [
            Seen(
                name=each.name,
                pid=each.pid,
                age_s=time.time() - each.began_s,
                node=nodes.get(each.pid),
                answers=nodes.get(each.pid) in answered,
                used_bytes=used_bytes(each.pid),
            )
            for each in running
        ]

    def _restart(self, verdict: Verdict) -> None:
        _log.warning("restarting %s: %s", verdict.name, verdict.reason)
        try:
            try:
                # This is a warm stop; supervisord kills a frozen process after its stopwaitsecs.
                self._supervisor.stop(self._group, verdict.name, wait=True)
            finally:
                self._supervisor.start(self._group, verdict.name)
        except SupervisorError as exc:
            _log.error("%s could not be restarted: %s", verdict.name, exc)
        else:
            _log.warning("%s was restarted", verdict.name)


def used_bytes(pid: int) -> int:
    """Return the resident memory of a process; 0 if that is unknown."""
    try:
        pages = Path("/proc", str(pid), "statm").read_text("ascii").split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
