"""A cluster's state, gathered from its events: workers, tasks and their states."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

from greenq import states
from greenq.protocol.event import (
    SILENT_INTERVALS,
)
from greenq.protocol.limits import (
    ANY_TEXT,
    COUNT,
    EVENT,
    FIGURE,
    INTERVAL,
    NAME,
    TIMESTAMP,
    ListOf,
    Rule,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Event = dict[str, Any]
    Handler = Callable[[Event], object]

R = TypeVar("R")

T = TypeVar("T")

# The heartbeat interval, in seconds, of a worker that did not report one; the same as in Celery.
_FREQ_S = 60.0

# How many heartbeats of a worker are remembered.
_HEARTBEATS = 4

# The fields copied from events, and the rule for each; None is valid for all except freq.
_WORKER_FIELDS: dict[str, Rule] = {
    "pid": COUNT,
    "freq": INTERVAL,
    "active": COUNT,
    "processed": COUNT,
    "loadavg": ListOf(FIGURE, most=3, least=3),
    "sw_ident": NAME,
    "sw_ver": NAME,
    "sw_sys": NAME,
}

_TASK_FIELDS: dict[str, Rule] = {
    **dict.fromkeys(("name", "eta", "expires", "exchange", "routing_key"), NAME),
    **dict.fromkeys(("queue", "root_id", "parent_id"), NAME),
    **dict.fromkeys(("args", "kwargs", "result", "exception", "traceback"), ANY_TEXT),
    "retries": COUNT,
    "runtime": FIGURE,
}

_TASK_STATES = {
    "sent": states.PENDING,
    "received": states.RECEIVED,
    "started": states.STARTED,
    "succeeded": states.SUCCESS,
    "failed": states.FAILURE,
    "retried": states.RETRY,
    "revoked": states.REVOKED,
    "rejected": states.REJECTED,
}


@dataclass(slots=True, eq=False)
class ObservedWorker:
    """A worker as described by its events.

    Attributes:
        hostname: the node's name.
        freq: the interval between its heartbeats, in seconds.
        heartbeats: the arrival times of its last events, in unix time by this machine's
            clock, latest last.
        loadavg: the load average of its machine over 1, 5 and 15 minutes.
        blocked: for greenq workers, what blocks the hub, or None.
    """

    hostname: str
    pid: int | None = None
    freq: float = _FREQ_S
    heartbeats: list[float] = field(default_factory=list)
    clock: int = 0
    active: int | None = None
    processed: int | None = None
    loadavg: list[float] | None = None
    sw_ident: str | None = None
    sw_ver: str | None = None
    sw_sys: str | None = None
    blocked: dict[str, Any] | None = None

    @property
    def id(self) -> str:
        """The node name and the process id."""
        return f"{self.hostname}.{self.pid}"

    @property
    def heartbeat_expires(self) -> float:
        """The unix time after which the worker counts as dead if no event arrives; 0 if offline."""
        return self.heartbeats[-1] + self.freq * SILENT_INTERVALS if self.heartbeats else 0.0

    @property
    def alive(self) -> bool:
        """True if the worker sent an event within the last two intervals and has not signed off."""
        return time.time() < self.heartbeat_expires

    @property
    def status_string(self) -> str:
        """``ONLINE`` or ``OFFLINE``."""
        return "ONLINE" if self.alive else "OFFLINE"

    def __eq__(self, other: object) -> bool:
        """Compare by name."""
        return (
            self.hostname == other.hostname if isinstance(other, ObservedWorker) else NotImplemented
        )

    def __hash__(self) -> int:
        """Hash the name."""
        return hash(self.hostname)

    def heard(self, at: float) -> None:
        """Record the arrival of an event."""
        self.heartbeats.append(at)
        self.heartbeats.sort()
        del self.heartbeats[:-_HEARTBEATS]


@dataclass(slots=True, eq=False)
class ObservedTask:
    """A task as described by its events.

    Attributes:
        state: the strongest state reported; see `greenq.states.precedence`.
        sent, received, started, succeeded, failed, retried, revoked, rejected: the unix times of
            the events.
        args, kwargs, result, exception: texts that the sender has shortened.
        worker: the sender of the last event; None if only the client has sent one.
        client: the name of the node that sent the task.
        timestamp: the unix time of the event that led to the state.
        clock: the largest logical clock of its events.
    """

    uuid: str
    name: str | None = None
    state: str = states.PENDING
    sent: float | None = None
    received: float | None = None
    started: float | None = None
    succeeded: float | None = None
    failed: float | None = None
    retried: float | None = None
    revoked: float | None = None
    rejected: float | None = None
    args: str | None = None
    kwargs: str | None = None
    eta: str | None = None
    expires: str | None = None
    retries: int | None = None
    worker: ObservedWorker | None = None
    client: str | None = None
    result: str | None = None
    exception: str | None = None
    traceback: str | None = None
    runtime: float | None = None
    timestamp: float | None = None
    queue: str | None = None
    exchange: str | None = None
    routing_key: str | None = None
    root_id: str | None = None
    parent_id: str | None = None
    clock: int = 0

    @property
    def id(self) -> str:
        """The task's id."""
        return self.uuid

    @property
    def ready(self) -> bool:
        """True if nothing more will happen to the task."""
        return self.state in states.READY_STATES

    @property
    def origin(self) -> str | None:
        """The worker's id, or the client's name."""
        return self.client if self.worker is None else self.worker.id

    def as_dict(self) -> dict[str, Any]:
        """Return all fields, with the worker's name in place of the worker."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return found | {"worker": self.worker.hostname if self.worker else None}

    def info(self, fields: Iterable[str] | None = None, extra: Iterable[str] = ()) -> Event:
        """Return the known fields, for display."""
        wanted = (*(_INFO_FIELDS if fields is None else fields), *extra)
        found = {name: getattr(self, name, None) for name in wanted}
        return {name: value for name, value in found.items() if value is not None}

    def __eq__(self, other: object) -> bool:
        """Compare by id."""
        return self.uuid == other.uuid if isinstance(other, ObservedTask) else NotImplemented

    def __hash__(self) -> int:
        """Hash the id."""
        return hash(self.uuid)

    def event(self, subject: str, event: Event) -> None:
        """Copy the fields of a ``task-<subject>`` event."""
        timestamp = event["timestamp"]
        state = _TASK_STATES.get(subject)
        if state is not None:
            setattr(self, subject, timestamp)
        else:
            state = subject.upper()
        self.clock = max(self.clock, event["clock"])
        if not self._is_late(state, timestamp):
            self.state, self.timestamp = state, timestamp
        _take_over(self, event, _TASK_FIELDS)

    def _is_late(self, state: str, timestamp: float) -> bool:
        """Return whether an event is too late to change the known state to `state`."""
        if state == states.RETRY:
            # A retry comes between two starts, so it replaces any state except a later final one.
            return self.ready and timestamp < (self.timestamp or 0.0)
        return states.precedence(state) > states.precedence(self.state)


_INFO_FIELDS = (
    *("args", "kwargs", "retries", "result", "eta", "runtime", "expires", "exception"),
    *("exchange", "routing_key", "root_id", "parent_id"),
)


class TaskIndex(Mapping[str, set[ObservedTask]]):
    """Tasks by a common property: ``tasks_by_type["proj.add"]`` is a set of tasks.

    Calling the index with a name yields pairs of id and task ordered by time, latest first.
    """

    def __init__(self, state: State, key: Callable[[ObservedTask], str | None]) -> None:
        """Group the tasks of `state` by `key`."""
        self._state = state
        self._key = key

    def __getitem__(self, name: str) -> set[ObservedTask]:
        """Return the set of tasks with that name, which may be empty."""
        return {task for task in self._state.all_tasks() if self._key(task) == name}

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        names = {self._key(task) for task in self._state.all_tasks()}
        return iter([name for name in names if name is not None])

    def __len__(self) -> int:
        """Return the number of names."""
        return sum(1 for _ in self)

    def __call__(
        self, name: str, limit: int | None = None, reverse: bool = True
    ) -> Iterator[tuple[str, ObservedTask]]:
        """Yield the tasks with that name, ordered by time."""
        found = [
            (task.uuid, task)
            for _, task in self._state.tasks_by_timestamp(reverse=reverse)
            if self._key(task) == name
        ]
        return iter(found[:limit])


class State:
    """What is known about a cluster from its events. Thread-safe.

    The number of workers and tasks is limited; those whose last event is the oldest are dropped.

    Attributes:
        workers: the workers by node name.
        tasks: the tasks by id.
        tasks_by_type, tasks_by_worker: see `TaskIndex`.
        event_count: the number of events so far; `task_count` of them reported that a task was
            received.
        ignored: the number of unusable events, which belong to an unknown group or lack required
            fields.
    """

    def __init__(
        self,
        callback: Callable[[State, Event], object] | None = None,
        max_workers_in_memory: int = 5000,
        max_tasks_in_memory: int = 10000,
    ) -> None:
        """Create an empty state; `callback` gets this state and each event before it is processed.

        Args:
            callback: a function whose exceptions reach the caller of `event`.
            max_workers_in_memory: how many workers are remembered.
            max_tasks_in_memory: how many tasks are remembered.
        """
        self.event_callback = callback
        self.max_workers_in_memory = max_workers_in_memory
        self.max_tasks_in_memory = max_tasks_in_memory
        self.workers: dict[str, ObservedWorker] = {}
        self.tasks: dict[str, ObservedTask] = {}
        self.event_count = self.task_count = self.ignored = 0
        self.tasks_by_type = TaskIndex(self, lambda task: task.name)
        self.tasks_by_worker = TaskIndex(
            self, lambda task: task.worker.hostname if task.worker else None
        )
        self._lock = threading.RLock()

    def event(self, event: Event) -> tuple[tuple[ObservedWorker | ObservedTask, bool], str] | None:
        """Process an event.

        Returns:
            ``(worker or task, whether it was new), kind of event``; None if it was ignored.
        """
        with self._lock:
            self.event_count += 1
            if self.event_callback is not None:
                self.event_callback(self, event)
            kind = event.get("type")
            group, _, subject = kind.partition("-") if isinstance(kind, str) else ("", "", "")
            found: tuple[ObservedWorker | ObservedTask, bool] | None = None
            if _is_usable(event) and group == "worker":
                found = self._worker_event(subject, event)
            elif _is_usable(event) and group == "task" and NAME.takes(event.get("uuid")):
                found = self._task_event(subject, event)
            if found is None:
                self.ignored += 1
                return None
            return found, subject

    def _worker_event(
        self, subject: str, event: Event
    ) -> tuple[ObservedWorker | ObservedTask, bool]:
        worker, is_new = self._worker(event)
        worker.heard(_heard_at(event))
        _take_over(worker, event, _WORKER_FIELDS)
        blocked = event.get("blocked")
        is_said = isinstance(blocked, dict) and FIGURE.takes(blocked.get("for_s"))
        worker.blocked = blocked if is_said else None
        if subject == "offline":
            worker.heartbeats.clear()
        return worker, is_new

    def _task_event(self, subject: str, event: Event) -> tuple[ObservedWorker | ObservedTask, bool]:
        uuid = event["uuid"]
        task, is_new = _latest(self.tasks, uuid, ObservedTask, self.max_tasks_in_memory)
        if subject == "sent":
            task.client = event["hostname"]
        else:
            worker, is_new_worker = self._worker(event)
            task.worker = worker
            if is_new_worker or worker.heartbeats:
                # A worker's last task events may arrive after it has signed off.
                worker.heard(_heard_at(event))
        self.task_count += subject == "received"
        task.event(subject, event)
        return task, is_new

    def _worker(self, event: Event) -> tuple[ObservedWorker, bool]:
        """Return the worker that sent an event, and whether the worker is new."""
        known = _latest(self.workers, event["hostname"], ObservedWorker, self.max_workers_in_memory)
        known[0].clock = max(known[0].clock, event["clock"])
        return known

    # --- reading ----------------------------------------------------------------------------------

    def alive_workers(self) -> Iterator[ObservedWorker]:
        """Yield the workers that seem to be alive."""
        with self._lock:
            return iter([worker for worker in self.workers.values() if worker.alive])

    def all_tasks(self) -> list[ObservedTask]:
        """Return the current tasks, the most recently updated one last."""
        with self._lock:
            return list(self.tasks.values())

    def itertasks(self, limit: int | None = None) -> Iterator[tuple[str, ObservedTask]]:
        """Yield pairs of id and task."""
        return iter([(task.uuid, task) for task in self.all_tasks()[:limit]])

    def tasks_by_timestamp(
        self, limit: int | None = None, reverse: bool = True
    ) -> Iterator[tuple[str, ObservedTask]]:
        """Yield pairs of id and task, sorted by the clock of the last event, latest first."""
        ordered = sorted(self.all_tasks(), key=_order, reverse=reverse)
        return iter([(task.uuid, task) for task in ordered[:limit]])

    tasks_by_time = tasks_by_timestamp

    def task_types(self) -> list[str]:
        """Return the names of the tasks, sorted."""
        return sorted(self.tasks_by_type)

    def freeze_while(
        self, fun: Callable[..., R], *args: Any, clear_after: bool = False, **kwargs: Any
    ) -> R:
        """Call a function while holding the lock; if `clear_after`, call `clear` afterwards."""
        with self._lock:
            try:
                return fun(*args, **kwargs)
            finally:
                if clear_after:
                    self.clear()

    def clear_tasks(self, ready: bool = True) -> None:
        """Forget the tasks that have ended or, with ``ready=False``, all tasks."""
        with self._lock:
            kept = [task for task in self.tasks.values() if ready and not task.ready]
            self.tasks.clear()
            self.tasks.update((task.uuid, task) for task in kept)

    def clear(self, ready: bool = True) -> None:
        """Forget the workers and the counts, and tasks as `clear_tasks` does."""
        with self._lock:
            self.workers.clear()
            self.clear_tasks(ready)
            self.event_count = self.task_count = self.ignored = 0

    def __repr__(self) -> str:
        """Show the counts."""
        return f"<State: events={self.event_count} tasks={self.task_count}>"


def _order(task: ObservedTask) -> tuple[int, float]:
    return task.clock, task.timestamp or 0.0


def _latest(things: dict[str, T], name: str, make: Callable[[str], T], most: int) -> tuple[T, bool]:
    """Return the entry of a name, created if missing, and whether it is new; move it to the end."""
    is_new = name not in things
    thing = things[name] = make(name) if is_new else things.pop(name)
    if len(things) > most:
        del things[next(iter(things))]
    return thing, is_new


def _heard_at(event: Event) -> float:
    at = event.get("local_received")
    return at if TIMESTAMP.takes(at) else time.time()


def _is_usable(event: Event) -> bool:
    """Return whether an event has all required fields, as `read_events` also checks."""
    return bool(event.get("hostname")) and not any(
        rule.wrong(event.get(name)) for name, rule in EVENT.items()
    )


def _take_over(
    thing: ObservedWorker | ObservedTask, event: Event, rules: Mapping[str, Rule]
) -> None:
    """Set the attributes that an event has valid values for."""
    for name, rule in rules.items():
        if name in event:
            value = event[name]
            if not rule.wrong(value) or (value is None and name != "freq"):
                setattr(thing, name, value)
