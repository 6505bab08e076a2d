"""What was sent and what ran: the record by which a fault test is judged."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

# The outcome of a task that ended this shortly before the kill may not have been written.
_UNWRITTEN_S = 0.25


@dataclass(slots=True)
class Run:
    """One run of one task.

    Units: seconds of the monotonic clock, which all processes of a machine share.
    """

    number: int
    pid: int
    start_s: float
    end_s: float | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """A moment from which a process was gone, or frozen for longer than its lease."""

    pid: int
    at_s: float

    def hits(self, run: Run) -> bool:
        """Return whether `run` was under way, or not yet acknowledged, when this began."""
        ended = run.end_s is not None and run.end_s < self.at_s - _UNWRITTEN_S
        return run.pid == self.pid and run.start_s <= self.at_s and not ended


class Ledger:
    """The tasks sent, and the runs that the workers recorded in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        # Number to the time when sending returned; `doubtful` are those whose sending failed.
        self.sent: dict[int, float] = {}
        self.doubtful: set[int] = set()
        # Number to ETA, for tasks that have one.
        self.due: dict[int, float] = {}
        self.cuts: list[Cut] = []
        self.runs: dict[int, list[Run]] = defaultdict(list)
        # Tasks that have ended at least once.
        self.executed: set[int] = set()
        self._read_bytes = 0

    def read(self) -> None:
        """Read what the workers have written since the last call."""
        with self.path.open("rb") as lines:
            lines.seek(self._read_bytes)
            text = lines.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        for line in whole.decode("ascii").splitlines():
            event, number, pid, moment = line.split()
            self._note(event, int(number), int(pid), float(moment))

    def _note(self, event: str, number: int, pid: int, moment_s: float) -> None:
        runs = self.runs[number]
        if event == "start":
            runs.append(Run(number, pid, moment_s))
            return
        next(run for run in runs if run.pid == pid and run.end_s is None).end_s = moment_s
        self.executed.add(number)

    # --- what the record shows --------------------------------------------------------------------

    @property
    def all_runs(self) -> list[Run]:
        return [run for runs in self.runs.values() for run in runs]

    @property
    def lost(self) -> set[int]:
        """Tasks whose sending succeeded and that never ended."""
        return self.sent.keys() - self.executed

    @property
    def twice(self) -> set[int]:
        """Tasks that have started more than once."""
        return {number for number, runs in self.runs.items() if len(runs) > 1}

    @property
    def unexplained(self) -> set[int]:
        """Tasks of `twice` that ran again although no cut hit the previous run."""
        return {
            number
            for number in self.twice
            for run in sorted(self.runs[number], key=lambda run: run.start_s)[:-1]
            if not any(cut.hits(run) for cut in self.cuts)
        }

    @property
    def ran_after_end(self) -> set[int]:
        """Tasks that started again after one of their runs had ended, not because of a cut."""
        return {
            number
            for number in self.twice
            for first in self.runs[number]
            for later in self.runs[number]
            if first.end_s is not None
            and first.end_s < later.start_s
            and not any(cut.hits(first) for cut in self.cuts)
        }

    @property
    def early(self) -> set[int]:
        """Tasks that ran before their ETA."""
        return {
            number
            for number, due_s in self.due.items()
            if any(run.start_s < due_s for run in self.runs[number])
        }

    def running(self, pid: int) -> list[Run]:
        """Return the runs that a process has started and not ended."""
        return [run for run in self.all_runs if run.pid == pid and run.end_s is None]

    def next_start_s(self, number: int, after_s: float, *, not_by: int) -> float | None:
        """Return when a task first started elsewhere after a time, or None."""
        starts = [
            run.start_s for run in self.runs[number] if run.start_s > after_s and run.pid != not_by
        ]
        return min(starts, default=None)
