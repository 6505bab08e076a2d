"""Counts due times that are sent, missed or sent twice while greenq's or Celery's beats are killed.

``python -m benchmarks.beat``: an entry is due every second; the beats are killed (-9) in turn and
restarted at once. Prints Markdown; takes about five minutes. ``--kill-every 0`` kills none.
``--entries 10000`` instead measures what it costs one beat of greenq to send that many entries
every minute.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks import environments, proc
from benchmarks.peers.greenq.peer import PEER
from benchmarks.server import stop, valkey

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import redis

    from benchmarks.server import Server

_SECONDS = 75.0
_KILL_EVERY_S = 4.0
_DEADLINE_S = 60.0
# How long nothing is killed at the end, so that late messages still arrive.
_CALM_S = 12.0
_STOP_S = 10.0
_POLL_S = 0.05
_MINUTES = 2
_QUEUE = "celery"
_HISTORY = "greenq.beat.history"


class _Contender(NamedTuple):
    """Some beats: a title, their command without the options for each process, and their number."""

    title: str
    command: tuple[str, ...]
    processes: int


_GREENQ = _Contender(
    "greenq, two beats", ("greenq", "beat", "-A", "benchmarks.peers.greenq.beat"), 2
)
_ONE_GREENQ = _GREENQ._replace(title="greenq, one beat", processes=1)
_CELERY = _Contender(
    "Celery, one beat",
    # The schedule's file is in the directory of the run. There is no pid file, since a killed beat
    # would leave it behind.
    ("celery", "-A", "benchmarks.peers.celery.beat", "beat", "--pidfile="),
    1,
)


@dataclass
class _Beats:
    """The processes of a contender on a server."""

    contender: _Contender
    folder: Path
    variables: dict[str, str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> subprocess.Popen[bytes]:
        with (self.folder / "beat.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *self.contender.command],
                env=self.variables, cwd=self.folder, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def kill(self, number: int) -> None:
        """Kill one process, and restart it at once."""
        at = number % len(self.processes)
        self.processes[at].kill()
        self.processes[at].wait()
        self.processes[at] = self.start()

    def log(self) -> str:
        return (self.folder / "beat.log").read_text("utf-8", "replace")[-3000:]


@contextmanager
def _beats(server: Server, contender: _Contender, entries: int = 0) -> Iterator[_Beats]:
    variables = environments.variables(PEER)
    variables |= {"BENCH_URL": server.url, "BENCH_ENTRIES": str(entries)}
    with tempfile.TemporaryDirectory(prefix="greenq-bench-") as folder:
        beats = _Beats(contender, Path(folder), variables)
        try:
            for _ in range(contender.processes):
                beats.processes.append(beats.start())
            yield beats
        finally:
            for process in beats.processes:
                stop(process, _STOP_S)


class _Arrivals(threading.Thread):
    """Takes messages as they arrive, and notes their task ids and arrival times (Unix time)."""

    def __init__(self, client: redis.Redis) -> None:
        super().__init__(daemon=True)
        self.found: list[tuple[str, float]] = []
        self._client, self._ends = client, threading.Event()

    def run(self) -> None:
        while not self._ends.is_set():
            answer = self._client.brpop([_QUEUE], timeout=1)
            if answer is not None:
                self.found.append((json.loads(answer[1])["headers"]["id"], time.time()))

    def finish(self) -> None:
        self._ends.set()
        self.join()


class Tally(NamedTuple):
    """What became of the due times.

    Attributes:
        due: how many there were.
        once, missing, twice: how many were sent once, never, and more than once.
        late_s: the delays of those that were sent, ascending.
    """

    due: int
    once: int
    missing: int
    twice: int
    late_s: list[float]


def tally(sent: Sequence[tuple[int, float]], first: int, last: int) -> Tally:
    """Count the due times, whole seconds from `first` to `last`.

    `sent` contains the due time and the arrival time of each message.
    """
    counts = Counter(due for due, _at in sent)
    every = range(first, last + 1)
    late_s = sorted(at - due for due, at in sent if first <= due <= last)
    return Tally(
        len(every),
        sum(counts[due] == 1 for due in every),
        sum(counts[due] == 0 for due in every),
        sum(counts[due] > 1 for due in every),
        late_s,
    )


def killed(contender: _Contender, seconds: float, kill_every_s: float) -> tuple[Tally, int]:
    """Run a contender for `seconds`; return what it sent, and how many times a beat was killed."""
    with (
        valkey() as server,
        server.client() as client,
        server.client() as listening,
        _beats(server, contender) as beats,
    ):
        arrivals = _Arrivals(listening)
        arrivals.start()
        deadline_s = time.monotonic() + _DEADLINE_S
        while len(arrivals.found) < 2:
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"{contender.title} sends nothing: {beats.log()}")
            time.sleep(_POLL_S)
        first, kills = math.ceil(time.time()), 0
        end_s = time.monotonic() + seconds
        while kill_every_s and time.monotonic() + kill_every_s < end_s:
            time.sleep(kill_every_s)
            beats.kill(kills)
            kills += 1
        time.sleep(max(0.0, end_s - time.monotonic()))
        last = math.floor(time.time())
        time.sleep(_CALM_S)
        arrivals.finish()
        known = {task_id: due for due, _sent, task_id in _history(client)}
    # A message that does not name its due time gets the benefit of the doubt: the latest one.
    sent = [
        (round(known[task_id]) if known else math.floor(at), at) for task_id, at in arrivals.found
    ]
    return tally(sent, first, last), kills


def many(entries: int, minutes: int) -> tuple[float, list[float]]:
    """Measure one beat of greenq; return CPU seconds per minute, and all delays, ascending."""
    late_s: list[float] = []
    with (
        valkey() as server,
        server.client() as client,
        _beats(server, _ONE_GREENQ, entries) as beats,
    ):
        _await_begun(client, beats, entries)
        # Measure from the middle of one minute to the middle of another.
        time.sleep((30 - time.time()) % 60)
        pids = [process.pid for process in beats.processes]
        cpu_s, from_s = proc.precise_cpu_s(pids), time.monotonic()
        for _ in range(minutes):
            client.delete(_QUEUE, _HISTORY)
            time.sleep(60)
            late_s += [sent - due for due, sent, _task_id in _history(client)]
        cpu_s = proc.precise_cpu_s(pids) - cpu_s
        took_s = time.monotonic() - from_s
    if len(late_s) != entries * minutes:
        raise RuntimeError(f"{len(late_s):,} tasks were sent instead of {entries * minutes:,}")
    return 60 * cpu_s / took_s, sorted(late_s)


def _await_begun(client: redis.Redis, beats: _Beats, entries: int) -> None:
    deadline_s = time.monotonic() + _DEADLINE_S
    while client.hlen("greenq.beat.states") < entries:
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"the beat does not start sending: {beats.log()}")
        time.sleep(_POLL_S)


def _history(client: redis.Redis) -> Iterator[tuple[float, float, str]]:
    """Yield when each of greenq's messages was due and was sent, in Unix time, and its id."""
    for line in client.lrange(_HISTORY, 0, -1):
        assert isinstance(line, bytes)
        due, sent, task_id, _name = line.decode().split(" ", 3)
        yield int(due) / 1e6, int(sent) / 1e6, task_id


def _percentile(ascending: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of the values do not exceed."""
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]


def _row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def _late(late_s: Sequence[float]) -> list[str]:
    return (
        [f"{_percentile(late_s, share):.3f}" for share in (0.5, 0.99, 1)] if late_s else ["–"] * 3
    )


_LATE = ("late, s: p50", "p99", "most")


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.beat", description=__doc__)
    add = parser.add_argument
    add("--seconds", type=float, default=_SECONDS, help="how long due times are measured")
    add("--kill-every", type=float, default=_KILL_EVERY_S, metavar="S", help="0: never")
    add("--entries", type=int, default=0, metavar="N", help="measure N entries instead")
    add("--minutes", type=int, default=_MINUTES, help="how long to measure N entries")
    given = parser.parse_args()
    if given.entries:
        columns: tuple[str, ...] = ("entries, each minute", "CPU, share of a core", *_LATE)
        _row(*columns)
        _row(*["---"] * len(columns))
        cpu_s, late_s = many(given.entries, given.minutes)
        _row(f"{given.entries:,}", f"{cpu_s / 60:.2%}", *_late(late_s))
        return
    columns = ("", "kills", "due times", "sent once", "missing", "sent twice", *_LATE)
    _row(*columns)
    _row(*["---"] * len(columns))
    for contender in (_GREENQ, _ONE_GREENQ, _CELERY):
        found, kills = killed(contender, given.seconds, given.kill_every)
        counts = (found.due, found.once, found.missing, found.twice)
        _row(contender.title, kills, *counts, *_late(found.late_s))


if __name__ == "__main__":
    main()
