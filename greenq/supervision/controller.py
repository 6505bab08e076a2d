"""The second level of autoscaling, which starts and stops processes of a supervisord group.

Each process reports its load to the server. One process leads: it asks supervisord which processes
are running, decides (`sizing.decide`), and starts or drains one process at a time. A process is
stopped only after it has drained. By then it takes no more messages and its tasks have ended, so
stopping it neither loses nor repeats a task. The server stores which process must drain, so a new
leader can continue after the old leader dies.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from greenq.bootsteps.blueprint import StartStopPart
from greenq.errors import OperationalError, SupervisorError
from greenq.hub import Event, join_all, spawn
from greenq.supervision.sizing import GroupSample, decide
from greenq.transport.group_store import LoadReport
from greenq.utils.log import OutageLog

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from greenq.hub import Greenlet
    from greenq.pool import Pool
    from greenq.supervision.sizing import Rules
    from greenq.supervision.supervisor import Membership, Process
    from greenq.transport.broker import Broker
    from greenq.transport.group_store import GroupAnswer, GroupStore

_log = logging.getLogger(__name__)

# How many changes the history keeps.
_HISTORY: Final = 1000

# How many of these changes `stats` shows.
_SHOWN: Final = 20

# How long shutdown may take: at most one call to the server and one to supervisord have to finish.
_STOP_S: Final = 15.0

# A process that has not reported within this time of its start no longer delays decisions.
_COMING_S: Final = 60.0


class Taking(Protocol):
    """What the controller needs from the part that takes messages."""

    @property
    def draining(self) -> bool:
        """True while the worker is not taking messages."""

    def drain(self, on: bool) -> None:
        """Stop taking messages, or take them again."""


class Change(NamedTuple):
    """A change in the number of processes, or why there was no change; `at_s` is Unix time."""

    at_s: float
    workers: int
    change: int
    reason: str


class Processes(StartStopPart):
    """Keeps the number of processes in a group within limits; see the module's docstring."""

    name = "Processes"
    requires = ("Hub", "Pool")

    def __init__(
        self,
        place: Membership,
        store: GroupStore,
        *,
        rules: Rules,
        interval_s: float,
        pool: Pool,
        tasks: Taking,
        broker: Broker,
        queues: Callable[[], Sequence[str]],
        cores: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take part in sizing the group in which supervisord has started this process.

        Args:
            place: the group, and this process's name in it.
            store: what the group's processes share.
            rules: the limits. The maximum is lowered to the number of cores, since more processes
                would not be faster, but never below the minimum.
            interval_s: seconds between reports.
            pool, tasks, broker: parts of the worker.
            queues: returns the queues whose backlog is considered.
            cores: how many cores this process may use; None means as many as the system allows.
            clock: monotonic time in seconds.
        """
        self._wanted = rules.most
        self._cores = cores or len(os.sched_getaffinity(0))
        self.rules = replace(rules, most=max(rules.least, min(rules.most, self._cores)))
        self.leads = False
        self.history: deque[Change] = deque(maxlen=_HISTORY)
        self._place, self._store = place, store
        self._interval_s = interval_s
        self._pool, self._tasks, self._broker, self._queues = pool, tasks, broker, queues
        self._clock = clock
        self._samples: deque[GroupSample] = deque()
        # The hub's running time and busy time at the last report.
        self._times = (0.0, 0.0)
        # True while this process is draining because the leader has asked it to.
        self._drains = False
        self._outage = OutageLog(_log)
        self._said: set[str] = set()
        self._ending = Event()
        self._greenlet: Greenlet | None = None

    def start(self) -> None:
        """Start reporting."""
        if self.rules.most < self._wanted:
            _log.warning(
                "--processes %d,%d: at most %d will run, since there are %d cores",
                self._wanted, self.rules.least, self.rules.most, self._cores,
            )  # fmt: skip
        self._ending.clear()
        self._greenlet = spawn(self._run, name="processes", lasts=True)

    def stop(self) -> None:
        """Stop reporting, and give up the lead. Switches: yes."""
        if self._greenlet is None:
            return
        self._ending.set()
        if not join_all([self._greenlet], _STOP_S):
            _log.warning(
                "the sizing of group %s did not end within %g s", self._place.group, _STOP_S
            )
        self._greenlet = None

    def info(self) -> dict[str, object]:
        """Return the data that `stats` shows."""
        return {
            "group": self._place.group,
            "process": self._place.process,
            "max": self.rules.most,
            "min": self.rules.least,
            "leads": self.leads,
            "changes": [
                {"at": at_s, "workers": workers, "change": change, "reason": reason}
                for at_s, workers, change, reason in list(self.history)[-_SHOWN:]
            ],
        }

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                self.tick()
                self._outage.recovered("this process reports its load to the server again")
            except OperationalError as exc:
                self.leads = False
                self._samples.clear()
                self._outage.failed("the number of processes stays as it is", exc)
            self._ending.wait(self._interval_s)
        self.leads = False
        try:
            self._store.leave()
        except OperationalError as exc:
            _log.info("this process's report stays on the server until it expires: %s", exc)

    def tick(self) -> None:
        """Report, then follow the leader's order, or lead. Switches: yes.

        Raises:
            OperationalError: the server cannot be reached, or refuses a call.
        """
        answer = self._store.report(self._report())
        self._obey(self._place.process in answer.draining)
        self.leads = answer.leads
        if not answer.leads:
            self._samples.clear()
            return
        try:
            self._lead(answer)
        except SupervisorError as exc:
            self._say_once(f"the number of processes stays as it is: {exc}")

    def _report(self) -> LoadReport:
        times = self._pool.hub_time.times()
        passed_s, busy_s = (now - last for now, last in zip(times, self._times, strict=True))
        self._times = times
        return LoadReport(
            busy=round(busy_s / passed_s, 3) if passed_s > 0 else 0.0,
            running=self._pool.running,
            waiting=self._pool.waiting,
            draining=self._tasks.draining,
        )

    def _obey(self, must_drain: bool) -> None:
        """Drain, or take messages again; a process drained by an operator stays drained."""
        if must_drain != self._drains:
            self._drains = must_drain
            self._tasks.drain(must_drain)

    # --- the leader -------------------------------------------------------------------------------

    def _lead(self, answer: GroupAnswer) -> None:
        group = self._place.supervisor.group(self._place.group)
        self._finish_drained(group, answer)
        sample = self._sample(group, answer)
        self._remember(sample)
        decision = decide(self._samples, self.rules)
        changed = False
        if decision.change > 0:
            changed = self._add(group, answer.draining, decision.reason)
        elif decision.change < 0:
            changed = self._remove(group, answer, decision.reason)
        self._note(sample, decision.change if changed else 0, decision.reason)
        if changed:
            self._samples.clear()

    def _sample(self, group: Sequence[Process], answer: GroupAnswer) -> GroupSample:
        taking = [each for each in answer.reports.values() if not each.draining]
        busy = sum(each.busy for each in taking)
        sample = GroupSample(
            at_s=self._clock(),
            workers=len(taking),
            coming=self._count_coming(group, answer),
            busy=busy,
            backlog=sum(each.waiting for each in taking),
            age_s=0.0,
        )
        if not sample.is_saturated and sample.workers <= self.rules.least:
            # The group has little load and is at its minimum, so the queues do not matter.
            return sample
        queues = self._queues()
        oldest = self._broker.oldest(queues).values()
        return GroupSample(
            at_s=sample.at_s,
            workers=sample.workers,
            coming=sample.coming,
            busy=busy,
            backlog=sample.backlog + self._broker.depth(queues),
            age_s=max(0.0, time.time() - min(oldest)) if oldest else 0.0,
        )

    def _count_coming(self, group: Sequence[Process], answer: GroupAnswer) -> int:
        """Count the started processes that have not reported yet."""
        coming = [
            each
            for each in group
            if each.is_spare
            and each.is_up
            and each.name not in answer.reports
            and each.name not in answer.draining
        ]
        late = [each.name for each in coming if time.time() - each.began_s > _COMING_S]
        for name in late:
            self._say_once(
                f"process {name} has not reported for {_COMING_S:.0f} s: is it a worker with "
                "--processes, and with the same app and server?"
            )
        return len(coming) - len(late)

    def _remember(self, sample: GroupSample) -> None:
        """Add a sample, and keep only those that a decision needs."""
        self._samples.append(sample)
        longest_s = max(self.rules.grow_after_s, self.rules.keepalive_s)
        while len(self._samples) > 1 and self._samples[1].at_s <= sample.at_s - longest_s:
            self._samples.popleft()

    def _finish_drained(self, group: Sequence[Process], answer: GroupAnswer) -> None:
        """Stop the processes that have drained."""
        for process in group:
            if process.name not in answer.draining:
                continue
            report = answer.reports.get(process.name)
            if not process.is_up:
                if not process.is_stopping:
                    self._store.mark(process.name, drain=False)
            elif report is not None and report.draining and not report.running:
                _log.info("stopping process %s: it has drained", process.name)
                self._place.supervisor.stop(self._place.group, process.name)

    def _add(self, group: Sequence[Process], draining: Collection[str], reason: str) -> bool:
        """Let one more process take messages: one that is draining, or a newly started one."""
        for process in group:
            if process.is_up and process.name in draining:
                _log.info("process %s takes messages again: %s", process.name, reason)
                return self._store.mark(process.name, drain=False)
        for process in group:
            if process.is_spare and not (process.is_up or process.is_stopping or process.is_fatal):
                # The process may have been killed while draining.
                if not self._store.mark(process.name, drain=False):
                    return False
                _log.info("starting process %s: %s", process.name, reason)
                self._place.supervisor.start(self._place.group, process.name)
                return True
        failed = [each.name for each in group if each.is_spare and each.is_fatal]
        self._say_once(
            "another process is needed, but there is none to start: "
            + (
                f"{', '.join(failed)} could not be started before; see its log and "
                f"`supervisorctl start {self._place.group}:{failed[0]}`"
                if failed
                else f"--processes allows {self.rules.most}, but group {self._place.group} has no "
                "more programs with autostart=false; see numprocs in supervisord's configuration"
            )
        )
        return False

    def _remove(self, group: Sequence[Process], answer: GroupAnswer, reason: str) -> bool:
        """Drain one process: the last of those that supervisord does not start by itself."""
        for process in reversed(group):
            report = answer.reports.get(process.name)
            if process.is_spare and process.is_up and report is not None and not report.draining:
                _log.info("draining process %s: %s", process.name, reason)
                return self._store.mark(process.name, drain=True)
        return False

    def _note(self, sample: GroupSample, change: int, reason: str) -> None:
        last = self.history[-1] if self.history else None
        if change or last is None or last.workers != sample.workers:
            self.history.append(Change(time.time(), sample.workers, change, reason))

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            _log.warning("%s", text)
