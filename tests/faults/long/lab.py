"""The environment of a scenario: a server, workers, a sender, and the problems found."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from greenq import Greenq
from greenq.errors import OperationalError
from greenq.result import AsyncResult
from tests.faults.long.ledger import Cut, Ledger, Run
from tests.servers import Process, Server, spawn_greenq
from tests.support import wait_until


@dataclass(frozen=True, slots=True)
class Row:
    """The outcome of one scenario.

    Attributes:
        sent: tasks whose sending succeeded.
        executed: tasks that ended at least once.
        twice: tasks that started more than once.
        lost: tasks sent that never ended.
        stuck: messages left in the queues, the inboxes, the reserved records and the dead letters.
        recovery_s: the longest time from a fault to the recovery that the scenario promises.
        took_s: how long the scenario took.
        problems: the broken promises; empty if all were kept.
        figures: other measurements.
    """

    scenario: str
    sent: int
    executed: int
    twice: int
    lost: int
    stuck: int
    recovery_s: float | None
    took_s: float
    problems: tuple[str, ...]
    figures: Mapping[str, object]


class LabServer(Server):
    """A server with a chosen fsync policy that can be killed."""

    def __init__(self, folder: Path, fsync: str = "everysec") -> None:
        super().__init__(folder)
        self._fsync = fsync

    def start(self) -> Self:
        super().start()
        self.client.config_set("appendfsync", self._fsync)
        return self

    def kill(self) -> None:
        """End it like a crash of its process."""
        assert self._process is not None
        self._process.kill()
        # The next start reads its file again.
        self.stop()

    @property
    def log_bytes(self) -> int:
        """The size of the append-only file's last part."""
        return self._last_part.stat().st_size

    def cut_log(self, size_bytes: int) -> None:
        """Truncate the stopped server's file to a size, as after a power cut."""
        os.truncate(self._last_part, size_bytes)

    @property
    def _last_part(self) -> Path:
        return max(self.folder.glob("appendonlydir/*.incr.aof"))


@dataclass
class Sender:
    """Sends tasks at a steady rate from a thread; with `countdown`, every tenth has an ETA."""

    lab: Lab
    rate: float
    seconds: tuple[float, float]
    countdown: tuple[float, float] | None
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        choose, next_s = random.Random(7), time.monotonic()
        for number in itertools.count():
            if self.stop.is_set():
                break
            later = {}
            if self.countdown is not None and number % 10 == 0:
                later["countdown"] = round(choose.uniform(*self.countdown), 3)
            self.lab.send(round(choose.uniform(*self.seconds), 3), **later)
            next_s += 1 / self.rate
            self.stop.wait(max(0.0, next_s - time.monotonic()))


class Lab:
    """One scenario's server, workers, tasks and findings."""

    def __init__(
        self,
        server: LabServer,
        folder: Path,
        say: Callable[[str], None],
        *,
        quick: bool,
        timed: bool = True,
    ) -> None:
        self.server = server
        self.say = say
        self.quick = quick
        self._timed = timed
        self.choose = random.Random(11)
        self.ledger = Ledger(folder / "ledger")
        self.problems: list[str] = []
        self.figures: dict[str, object] = {}
        self.recoveries_s: list[float] = []
        self.longest_call_s = 0.0
        self._folder = folder
        self._began_s = time.monotonic()
        self._app = Greenq("sender", broker=server.url, set_as_current=False)
        self._numbers = itertools.count()
        self._log_numbers = itertools.count()
        self._workers: list[Process] = []
        self._queues = {"celery"}

    def close(self) -> None:
        for worker in self._workers:
            with suppress(ProcessLookupError):
                worker.send_signal(signal.SIGCONT)
            worker.kill()
        self._app.close()

    # --- workers ----------------------------------------------------------------------------------

    def spawn(
        self,
        name: str,
        *options: str,
        settings: Mapping[str, Any] | None = None,
        loglevel: str = "INFO",
    ) -> Process:
        """Start a worker and return at once."""
        worker = spawn_greenq(
            self.server.url,
            self._folder / f"{name}-{next(self._log_numbers)}.log",
            *("-n", name, *options),
            app="ledger_app",
            settings=settings,
            loglevel=loglevel,
            env={"TEST_LEDGER": str(self.ledger.path)},
        )
        self._workers.append(worker)
        return worker

    def worker(self, name: str, *options: str, **kwargs: Any) -> Process:
        """Start a worker that consumes when this returns."""
        return self.spawn(name, *options, **kwargs).wait_text("Connected to ")

    def kill(self, worker: Process) -> float:
        """Kill a worker and return when."""
        worker.kill()
        self.ledger.cuts.append(Cut(worker.pid, killed_s := time.monotonic()))
        return killed_s

    # --- tasks ------------------------------------------------------------------------------------

    def send(
        self, seconds: float, *, task: str = "entry_nap", **options: Any
    ) -> AsyncResult[Any] | None:
        """Send one task; None if sending failed: then the task may or may not be on its queue."""
        number = next(self._numbers)
        self._queues.add(options.get("queue", "celery"))
        began_s = time.monotonic()
        if "countdown" in options:
            self.ledger.due[number] = began_s + options["countdown"]
        try:
            result = self._app.send_task(
                f"ledger.{task}", (number, seconds), task_id=f"task-{number}", **options
            )
        except OperationalError:
            self.ledger.doubtful.add(number)
            return None
        else:
            self.ledger.sent[number] = time.monotonic()
            return result
        finally:
            self.longest_call_s = max(self.longest_call_s, time.monotonic() - began_s)

    def send_many(self, count: int, seconds: float, **options: Any) -> list[AsyncResult[Any]]:
        """Send identical tasks and return their results."""
        results = [self.send(seconds, **options) for _ in range(count)]
        return [result for result in results if result is not None]

    @contextmanager
    def load(
        self,
        rate: float,
        seconds: tuple[float, float],
        countdown: tuple[float, float] | None = None,
    ) -> Iterator[Sender]:
        """Send `rate` tasks per second during the block, each of a random length."""
        sender = Sender(self, rate, seconds, countdown)
        thread = threading.Thread(target=sender.run, name="sender")
        thread.start()
        try:
            yield sender
        finally:
            sender.stop.set()
            thread.join()

    # --- waiting ----------------------------------------------------------------------------------

    def started(self) -> int:
        """Count the tasks that have started."""
        self.ledger.read()
        return sum(1 for runs in self.ledger.runs.values() if runs)

    def wait(self, condition: Callable[[], object], timeout_s: float, problem: str) -> bool:
        """Wait until `condition`; note `problem` if that takes too long."""
        try:
            wait_until(condition, timeout_s)
        except AssertionError:
            self.problems.append(f"{problem} (waited {timeout_s:g} s)")
            return False
        return True

    def settle(self, timeout_s: float = 30.0) -> float:
        """Wait until all sent tasks have run and no message is left; return that time."""

        def settled() -> bool:
            self.ledger.read()
            return self.ledger.sent.keys() <= self.ledger.executed and not self.left()

        wait_quietly(settled, timeout_s)
        return time.monotonic()

    def left(self) -> dict[str, int]:
        """Count all messages on the server, by key."""
        client, keys, left = self.server.client, self._app.transport.keys, {}
        for queue in self._queues:
            for key in (*keys.queue_steps(queue), keys.inbox(queue), keys.dead(queue)):
                left[key] = int(client.llen(key))
            left[keys.eta(queue)] = int(client.zcard(keys.eta(queue)))
        left["unacked"] = len(self.server.unacked())
        return {key: count for key, count in left.items() if count}

    # --- findings ---------------------------------------------------------------------------------

    def recovered(
        self, orphans: Iterable[Run | int], worker: Process, since_s: float, within_s: float
    ) -> None:
        """Wait until tasks that a worker held have started elsewhere, and note the longest wait."""
        numbers = [each.number if isinstance(each, Run) else each for each in orphans]

        def next_starts() -> list[float | None]:
            self.ledger.read()
            return [
                self.ledger.next_start_s(number, since_s, not_by=worker.pid) for number in numbers
            ]

        wait_quietly(lambda: None not in next_starts(), within_s + 15)
        starts = next_starts()
        if None in starts:
            self.problems.append(f"{starts.count(None)} of {len(starts)} did not start elsewhere")
        taken_s = [start_s - since_s for start_s in starts if start_s is not None]
        self.recoveries_s += taken_s
        late = sum(1 for each in taken_s if each > within_s)
        if late:
            self.problems.append(
                f"{late} of {len(numbers)} started elsewhere after {max(taken_s):.1f} s,"
                f" not within {within_s:g} s"
            )

    def expect(self, held: object, problem: str) -> None:
        """Note `problem` unless `held`."""
        if not held:
            self.problems.append(problem)

    def expect_within(self, took_s: float, limit_s: float, what: str) -> None:
        """Note what took too long, unless this machine may be busy with other things."""
        self.expect(
            not self._timed or took_s <= limit_s, f"{what}: {took_s:.1f} s, not {limit_s} s"
        )

    def expect_cut_runs_only(self) -> None:
        """Note the tasks that ran twice although no fault interrupted their first run."""
        self.ledger.read()
        doubles = sorted(self.ledger.unexplained)
        self.expect(not doubles, f"{len(doubles)} ran twice without an interruption: {doubles[:5]}")

    def expect_single_runs(self) -> None:
        """Note the tasks that ran twice for any reason."""
        self.ledger.read()
        doubles = sorted(self.ledger.twice)
        self.expect(not doubles, f"{len(doubles)} ran more than once: {doubles[:5]}")

    def row(self, scenario: str) -> Row:
        """Return the scenario's row."""
        self.ledger.read()
        ledger, left = self.ledger, self.left()
        lost, stuck = sorted(ledger.lost), sum(left.values())
        if lost:
            self.problems.insert(0, f"{len(lost)} lost: {lost[:5]}")
        if ledger.early:
            self.problems.append(f"{len(ledger.early)} ran before their ETA")
        if stuck:
            self.problems.append(f"{stuck} stuck: {left}")
        return Row(
            scenario,
            len(ledger.sent),
            len(ledger.executed & ledger.sent.keys()),
            len(ledger.twice),
            len(lost),
            stuck,
            round(max(self.recoveries_s), 2) if self.recoveries_s else None,
            round(time.monotonic() - self._began_s, 1),
            tuple(self.problems),
            self.figures,
        )


def wait_quietly(condition: Callable[[], object], timeout_s: float) -> bool:
    """Wait until `condition` or the timeout; the ledger then shows what is missing."""
    try:
        wait_until(condition, timeout_s)
    except AssertionError:
        return False
    return True
