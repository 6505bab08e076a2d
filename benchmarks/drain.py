"""One drain: measures what it costs fresh workers to empty a full queue.

The queue is filled and renamed. The workers start and run a few warm-up tasks, so that they have
finished starting and importing. Another RENAME puts the queue back, and the clock runs from then
until nothing is waiting or running, and all results are stored. Then all results are checked.
"""

from __future__ import annotations

import json
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks import events, meter, proc
from benchmarks.launch import run_client, workers
from benchmarks.peer import SIGNING_KEY
from benchmarks.wire import Messages, chunks
from greenq.protocol.signer import Signer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import redis

    from benchmarks.launch import Workers
    from benchmarks.peer import Gauge, Peer, Setup
    from benchmarks.server import Server

_STAGED = "bench.staged"
_POLL_S = 0.01
# How often to check whether a worker is still starting. It is starting if it uses more than the
# share _BUSY of a core, or has used less CPU time than _START_CPU_S.
_LOOK_S = 0.25
_BUSY = 0.4
_START_CPU_S = 0.08
_LAST_RESULTS_S = 10.0
# How many keys other than results may come and go with a queue.
_SLACK = 10


@dataclass(frozen=True, slots=True)
class Work:
    """What to drain.

    Attributes:
        task: the task's name.
        args: the arguments of each call.
        value: what each call returns.
        repeats: how many times the same workers drain the tasks; the clock stops in between.
        deadline_s: how long one drain may take.
        extra: other processes of the benchmark, such as a web server.
    """

    task: str = "noop"
    args: tuple[float, ...] = ()
    value: float | None = None
    repeats: int = 1
    deadline_s: float = 180.0
    extra: tuple[int, ...] = ()


def run(server: Server, peer: Peer, setup: Setup, work: Work, count: int) -> dict[str, float]:
    """Drain `count` tasks on an empty server and return the figures, per task.

    Raises:
        RuntimeError: a worker ended or was too slow, or a result is missing or wrong.
    """
    with server.client() as client, tempfile.TemporaryDirectory() as folder:
        client.flushall()
        drain = _Drain(server, client, peer, setup, work, Path(folder))
        return drain.run(count)


class _Filled(NamedTuple):
    """What was queued: the ids themselves, or the file that the contender's client wrote."""

    ids: Sequence[str]
    file: Path


class _Drain:
    """The steps of one drain, with their shared state."""

    def __init__(
        self,
        server: Server,
        client: redis.Redis,
        peer: Peer,
        setup: Setup,
        work: Work,
        folder: Path,
    ) -> None:
        self._server = server
        self._client = client
        self._peer = peer
        self._setup = setup
        self._work = work
        self._folder = folder
        self._polls = 0

    def run(self, count: int) -> dict[str, float]:
        staged = self._fill(self._work.task, self._work.args, count)
        self._client.rename(self._peer.queue, _STAGED)
        with workers(self._server, self._peer, self._setup) as started:
            self._await_ready(started)
            left = self._read(self._peer.left)
            done = self._read([self._peer.done])[0]
            with self._events(self._peer.warm_up):
                warm = self._fill(
                    "noop" if self._setup.results else "tally", (), self._peer.warm_up
                )
                self._await(started, self._peer.warm_up, left, done)
            self._check(started, warm, self._peer.warm_up, None)
            idle_mb = proc.rss_mb(started.pids)
            made = [self._measure(started, staged, count)]
            for _ in range(self._work.repeats - 1):
                staged = self._fill(self._work.task, self._work.args, count, _STAGED)
                made.append(self._measure(started, staged, count))
            peak_mb = proc.peak_mb(started.pids)
        at_once = self._setup.concurrency * self._setup.processes
        return _combine(made) | {
            "idle_mb": idle_mb,
            "peak_mb": peak_mb,
            "in_flight_kb": (peak_mb - idle_mb) * 1024 / at_once,
        }

    def _events(self, tasks: int) -> AbstractContextManager[None]:
        """If events are enabled, check that this many tasks publish their events.

        This is used only during the warm-up, since a listener takes up the server's time.
        """
        if self._setup.cluster != "events":
            return nullcontext()
        return events.told(self._client, events.A_TASK * tasks)

    def _await_ready(self, started: Workers) -> None:
        """Wait until all workers are up, and none is still busy starting."""
        deadline = time.monotonic() + self._work.deadline_s
        busy, before = True, started.cpu_s
        while busy or (self._peer.ready is not None and not self._read([self._peer.ready])[0]):
            time.sleep(_LOOK_S)
            now = started.cpu_s
            starting = (
                spent - since > _BUSY * _LOOK_S or spent < _START_CPU_S
                for spent, since in zip(now, before, strict=True)
            )
            busy, before = any(starting), now
            started.check_alive()
            if time.monotonic() > deadline:
                raise started.complaint("the worker does not become ready")

    def _measure(self, started: Workers, staged: _Filled, count: int) -> dict[str, float]:
        done, tallied = self._read([self._peer.done])[0], started.tallied
        self._polls = 0
        release = self._client.pipeline(transaction=False)
        release.rename(_STAGED, self._peer.queue)
        for command in self._peer.released:
            release.execute_command(*command)
        before = meter.snapshot(self._client, started, self._work.extra)
        release.execute()
        self._await(started, count, [0] * len(self._peer.left), done, tallied)
        after = meter.snapshot(self._client, started, self._work.extra)
        # The measurement's own commands: the first INFO, which counts itself when done, the
        # release, and the polls.
        own = self._polls * (len(self._peer.left) + 1) + 2 + len(self._peer.released)
        figures = meter.per_task(before, after, count, own, self._polls + 2)
        self._check(started, staged, count, self._work.value, tallied)
        return figures

    def _fill(
        self, task: str, args: Sequence[float], count: int, key: str | None = None
    ) -> _Filled:
        """Queue calls with the contender's own sender, or write them in its format."""
        file = self._folder / f"{task}-{time.monotonic_ns()}"
        if not self._peer.wire:
            words = ("fill", str(file), task, str(count), *map(str, args))
            run_client(self._server, self._peer, self._setup, *words)
            return _Filled((), file)
        ignored = not self._setup.results
        signer = Signer(SIGNING_KEY.encode()) if self._setup.signed else None
        messages = Messages(
            self._server, self._client, task, args, signer=signer, ignore_result=ignored
        )
        ids = messages.ids(count)
        messages.push(self._client, key or self._peer.queue, ids)
        return _Filled(ids, file)

    def _await(
        self,
        started: Workers,
        count: int,
        left: Sequence[int],
        done: int,
        tallied: int = 0,
    ) -> None:
        """Wait until `count` tasks are done and no more than `left` remain."""
        gauges = [*self._peer.left, self._peer.done]
        counted = self._setup.results and self._peer.counts_done
        wanted = done + count - _SLACK if counted else 0
        deadline = time.monotonic() + self._work.deadline_s
        while True:
            if self._setup.results or started.tallied - tallied >= count:
                *now, finished = self._read(gauges)
                self._polls += 1
                if finished >= wanted and all(map(int.__le__, now, left)):
                    return
            started.check_alive()
            if time.monotonic() > deadline:
                told = zip(map(" ".join, gauges), self._read(gauges), strict=True)
                raise started.complaint(f"too slow: {dict(told)}")
            time.sleep(_POLL_S)

    def _read(self, gauges: Sequence[Gauge]) -> list[int]:
        pipeline = self._client.pipeline(transaction=False)
        for gauge in gauges:
            pipeline.execute_command(*gauge)
        return [int(answer or 0) for answer in pipeline.execute()]

    def _check(
        self,
        started: Workers,
        filled: _Filled,
        count: int,
        value: float | None,
        tallied: int = 0,
    ) -> None:
        """Check that every task has run and returned the right value."""
        if not self._setup.results:
            if started.tallied - tallied != count:
                raise started.complaint(f"{started.tallied - tallied} of {count} tasks ran")
        elif not self._peer.wire:
            words = ("check", str(filled.file), json.dumps(value))
            run_client(self._server, self._peer, self._setup, *words)
        else:
            for part in chunks(filled.ids):
                _check_results(self._client, part, value, started.complaint)


def _combine(made: Sequence[dict[str, float]]) -> dict[str, float]:
    """Combine the figures of several drains of the same size into those of one."""
    figures = {name: sum(each[name] for each in made) / len(made) for name in made[0]}
    tasks, seconds = figures["tasks"] * len(made), figures["seconds"] * len(made)
    return figures | {"tasks": tasks, "seconds": seconds, "rate": tasks / seconds}


def _check_results(
    client: redis.Redis,
    ids: Sequence[str],
    value: float | None,
    complaint: Callable[[str], RuntimeError],
) -> None:
    """Check that results in Celery's format exist and are right, and delete them."""
    keys = [f"celery-task-meta-{task_id}" for task_id in ids]
    deadline = time.monotonic() + _LAST_RESULTS_S
    while client.exists(*keys) < len(keys) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    for key, stored in zip(keys, client.mget(keys), strict=True):
        meta: dict[str, Any] = json.loads(stored) if stored else {}
        if meta.get("status") != "SUCCESS" or meta.get("result") != value:
            raise complaint(f"{key} is {stored!r}, not a success with {value!r}")
    client.unlink(*keys)
