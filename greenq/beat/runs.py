"""How the last run of each entry ended, as far as its stored result shows."""

from __future__ import annotations

import heapq
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from greenq.beat.entries import to_us
from greenq.states import READY_STATES

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

    from greenq.protocol.meta import ResultMeta
    from greenq.transport.schedule_store import EntryState, ScheduleStore
    from greenq.transport.transport import Transport

# A run's result is looked for one second after the run was sent, then after a pause of four more
# seconds, and so on: each pause is four times as long as the one before, up to a minute.
_FIRST_US: Final = 1_000_000
_LONGER: Final = 4
_LONGEST_US: Final = 60_000_000

# How many results are read together (few, since each may be large), and the maximum number of such
# portions in one turn of the beat's loop.
_PORTION: Final = 100
_PORTIONS: Final = 10

# If results never expire, a result that becomes ready later than this is not noticed.
_DAY_S: Final = 86400.0


class _AwaitedRun(NamedTuple):
    """A run whose result is awaited, sorted by its next check. Times are in microseconds."""

    at: int
    pause: int
    name: str
    task_id: str
    sent: int


class Runs:
    """Follows unfinished runs, and stores on the server how the last run of each entry ended."""

    def __init__(
        self, transport: Transport, store: ScheduleStore, result_expires: float | None
    ) -> None:
        """Read results through `transport`, where they are kept for `result_expires` seconds."""
        self._transport = transport
        self._store = store
        # How long a result remains available after the run has ended.
        self._limit_us = int((result_expires or _DAY_S) * 1_000_000)
        # For each entry, when its last run was sent, and when the last run that is known to have
        # ended was sent.
        self._last: dict[str, int] = {}
        self._ended: dict[str, int] = {}
        self._heap: list[_AwaitedRun] = []

    def follow(self, states: Mapping[str, EntryState]) -> None:
        """From now on, look for the results of the last runs of these entries."""
        if not self._transport.stores_results:
            return
        for name, state in states.items():
            if state.task_id and self._last.get(name) != state.sent:
                self._last[name] = state.sent
                run = _AwaitedRun(
                    state.sent + _FIRST_US, _FIRST_US, name, state.task_id, state.sent
                )
                heapq.heappush(self._heap, run)

    def keep_only(self, names: Container[str]) -> None:
        """Forget the entries that are not among `names`."""
        for known in (self._last, self._ended):
            for name in [name for name in known if name not in names]:
                del known[name]

    @property
    def due(self) -> int | None:
        """When to check results next; None if no run is being followed."""
        return self._heap[0].at if self._heap else None

    def look(self, now: int) -> None:
        """Look for results that may have arrived by now."""
        for _ in range(_PORTIONS):
            if not self._look_at_portion(now):
                return

    def _look_at_portion(self, now: int) -> bool:
        """Read some results; return whether there may be more to read."""
        due: list[_AwaitedRun] = []
        while self._heap and self._heap[0].at <= now and len(due) < _PORTION:
            run = heapq.heappop(self._heap)
            if now - run.sent < self._limit_us and run.sent > self._ended.get(run.name, 0):
                due.append(run)
        if not due:
            return False
        notes: dict[str, dict[str, Any]] = {}
        metas = self._transport.backend.get_readable([run.task_id for run in due])
        for run, meta in zip(due, metas, strict=True):
            if meta.status in READY_STATES:
                if run.sent > self._ended.get(run.name, 0):
                    self._ended[run.name] = run.sent
                    notes[run.name] = run_note(run.task_id, run.sent, meta)
            elif run.sent == self._last.get(run.name):
                # The results of earlier runs are looked for only once.
                pause = min(_LONGER * run.pause, _LONGEST_US)
                heapq.heappush(self._heap, run._replace(at=now + pause, pause=pause))
        if notes:
            self._store.note_runs(notes)
        return len(due) == _PORTION

    def running(self, asked: Iterable[tuple[str, EntryState]], now: int) -> set[str]:
        """Return the entries whose last run has not ended, as far as the results show."""
        young = [(name, state.task_id) for name, state in asked if self._is_young(state, now)]
        if not young:
            return set()
        metas = self._transport.backend.get_readable([task_id or "" for _, task_id in young])
        return {
            name
            for (name, _), meta in zip(young, metas, strict=True)
            if meta.status not in READY_STATES
        }

    def _is_young(self, state: EntryState, now: int) -> bool:
        return state.task_id is not None and now - state.sent < self._limit_us


def run_note(task_id: str, sent: int, meta: ResultMeta) -> dict[str, Any]:
    """Return what is stored about a run: its state, and its duration including its wait."""
    note: dict[str, Any] = {"id": task_id, "state": meta.status, "sent": sent / 1e6}
    if meta.date_done:
        done = datetime.fromisoformat(meta.date_done)
        done = done if done.tzinfo is not None else done.replace(tzinfo=UTC)
        note["took"] = max(0.0, round((to_us(done) - sent) / 1e6, 3))
    return note
