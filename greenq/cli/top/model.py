"""The model of ``greenq top``: turns replies and events into a `Picture`, without I/O."""

from __future__ import annotations

import fnmatch
import math
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Final

from greenq.cli import show, status
from greenq.cli.queues import TakersByQueue
from greenq.remote.queue_counts import QueuesSnapshot, change_per_s

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from greenq.remote.queue_counts import QueueCounts

# How many samples the charts keep, which is more than the widest terminal shows.
_HISTORY: Final = 400

# Rates are averaged over this many samples, since the rate between two samples fluctuates.
_RATE_LOOKS: Final = 5

# Late turns of the hub are counted over this many samples, not since the worker started.
_LAG_LOOKS: Final = 60

# How long a worker stays on screen after it has stopped replying.
_SILENT_S: Final = 60.0

# How many tasks have their own line; a limit is needed since any client can publish events.
_NAMES: Final = 1000
_OTHERS: Final = "(others)"
_UNKNOWN: Final = "(unknown)"

# How many names of running tasks are remembered, since most events carry only a task's id.
_RUNNING: Final = 50_000

KINDS: Final = ("received", "started", "succeeded", "failed", "retried", "revoked", "rejected")
"""What happens to tasks, as named by their events."""

ORDERS: Final = ("rate", "failures", "runtime")
"""The orders that tasks can be sorted in."""

# The longest plausible time, in seconds, in a reply or an event.
_MOST_S: Final = 1e12

_ENDS: Final = frozenset({"succeeded", "failed", "revoked", "rejected"})


# --- input ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Greenlets:
    """What one worker's tasks are waiting for.

    Attributes:
        node: the worker.
        reply: its reply to the command greenlets, or None.
    """

    node: str
    reply: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSnapshot:
    """The state of the cluster at one moment.

    Attributes:
        at_s: monotonic time.
        statuses: replies to the command status, by node.
        foreign: the values from the heartbeats of nodes that do not know the command status.
        hubs: replies to the command hub, by node.
        queues: the queues.
        takers: which workers take from the queues.
        greenlets: the greenlets of the chosen worker.
        trouble: why the sample could not be taken; in this case, the other attributes are empty.
    """

    at_s: float
    statuses: Mapping[str, Any] = field(default_factory=dict)
    foreign: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    hubs: Mapping[str, Any] = field(default_factory=dict)
    queues: QueuesSnapshot = field(default_factory=lambda: QueuesSnapshot(0.0, {}))
    takers: TakersByQueue = field(default_factory=lambda: TakersByQueue({}, all_known=False))
    greenlets: Greenlets | None = None
    trouble: str | None = None


# --- output ---------------------------------------------------------------------------------------

FILTERED: Final = ("worker", "queue", "task")
"""The tables that can be filtered by name."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Selects the lines whose name contains a text, ignoring case.

    Text that contains ``*``, ``?`` or ``[`` is a pattern that must match the whole name.

    Attributes:
        worker, queue, task: the texts for each table; a name must match one of them. If a table
            has none, all its lines match.
    """

    worker: tuple[str, ...] = ()
    queue: tuple[str, ...] = ()
    task: tuple[str, ...] = ()

    @classmethod
    def of(cls, texts: Iterable[tuple[str, str]]) -> Filter:
        """Create a filter from pairs of table and text."""
        found: dict[str, tuple[str, ...]] = {}
        for table, text in texts:
            found[table] = (*found.get(table, ()), text.lower())
        return cls(**found)

    def __str__(self) -> str:
        """Format the filter as on the command line."""
        return " ".join(f"{name}:{text}" for name in FILTERED for text in getattr(self, name))

    def shows(self, table: str, name: str) -> bool:
        """Return whether a line of a table is shown."""
        texts: tuple[str, ...] = getattr(self, table)
        return not texts or any(_fits(text, name.lower()) for text in texts)


def _fits(text: str, name: str) -> bool:
    if any(sign in text for sign in "*?["):
        return fnmatch.fnmatchcase(name, text)
    return text in name


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLine:
    """A worker's line; None means unknown.

    Attributes:
        node: its name.
        state: its state in one word.
        details: more about the state.
        ours: whether it is a greenq worker; other workers report less.
        running, size, waiting: the tasks in its pool, the pool's slots, and the tasks waiting for
            one.
        processed: the number of tasks since the worker started.
        per_s: tasks per second.
        lag_s: how late its hub's last turn was.
        lag_p99_s: the lag that 99 of 100 turns in the last minute did not exceed.
        uptime_s: how long it has been running.
    """

    node: str
    state: str
    details: str = ""
    ours: bool = True
    running: int | None = None
    size: int | None = None
    waiting: int | None = None
    processed: int | None = None
    per_s: float | None = None
    lag_s: float | None = None
    lag_p99_s: float | None = None
    uptime_s: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return everything except the name."""
        return {each.name: getattr(self, each.name) for each in fields(self)[1:]}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLine:
    """A task's line.

    Attributes:
        name: its name.
        per_s: events per second, by kind.
        counts: events since greenq top started, by kind.
        runtime_s: the mean runtime of successful runs.
    """

    name: str
    per_s: Mapping[str, float]
    counts: Mapping[str, int]
    runtime_s: float | None = None

    @property
    def busy(self) -> tuple[float, int]:
        """The sort key: events per second, then the total number of events."""
        return sum(self.per_s.values()), sum(self.counts.values())

    def rank(self, by: str) -> float:
        """Return the sort key for one of `ORDERS`; the largest comes first."""
        if by == "failures":
            return float(self.counts["failed"])
        return (self.runtime_s or 0.0) if by == "runtime" else self.busy[0]

    def as_json(self) -> dict[str, Any]:
        """Return everything except the name."""
        per_s = {kind: round(rate, 2) for kind, rate in self.per_s.items()}
        return {"per_s": per_s, "counts": dict(self.counts), "runtime_s": self.runtime_s}


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The totals of all workers and queues at one moment.

    Attributes:
        running, size: the totals of all pools.
        depth: the number of waiting messages in all queues.
        per_s: tasks per second.
        lag_s: the largest lag of any hub.
    """

    running: int = 0
    size: int = 0
    depth: int = 0
    per_s: float = 0.0
    lag_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """The content of the screen.

    Attributes:
        workers: the workers by name.
        queues: the queues, deepest first.
        tasks: the tasks, sorted; empty if no worker sends task events.
        all_tasks: the totals of all tasks.
        points: the charts' history, with the latest last.
        greenlets: the greenlets of the chosen worker.
        trouble: why the picture may be out of date.
        only: the filter of the lines; charts and totals ignore it.
    """

    workers: Sequence[WorkerLine] = ()
    queues: Sequence[QueueCounts] = ()
    tasks: Sequence[TaskLine] = ()
    all_tasks: TaskLine | None = None
    points: Sequence[Point] = ()
    greenlets: Greenlets | None = None
    trouble: str | None = None
    only: Filter = Filter()

    @property
    def last(self) -> Point:
        """The current totals of workers and queues."""
        return self.points[-1] if self.points else Point()

    def as_json(self) -> dict[str, Any]:
        """Return the picture for JSON, without the history."""
        last, greenlets = self.last, self.greenlets
        return {
            "workers": {each.node: each.as_json() for each in self.workers},
            "queues": {each.name: _queue(each) for each in self.queues},
            "tasks": {each.name: each.as_json() for each in self.tasks},
            "total": {
                "running": last.running,
                "size": last.size,
                "waiting": last.depth,
                "per_s": round(last.per_s, 2),
                "lag_s": last.lag_s,
                "tasks": None if self.all_tasks is None else self.all_tasks.as_json(),
            },
            "greenlets": None
            if greenlets is None
            else {"node": greenlets.node, "reply": greenlets.reply},
            "trouble": self.trouble,
        }


def _queue(queue: QueueCounts) -> dict[str, Any]:
    """Return a queue for JSON, without the values that were not read."""
    values = queue.as_json()
    return {
        name: values[name]
        for name in values
        if name not in ("consumers", "held", "untaken", "oldest_s")
    }


# --- state ----------------------------------------------------------------------------------------


class Model:
    """Keeps samples and events for as long as rates and charts need them."""

    def __init__(self, only: Filter | None = None, order: str = ORDERS[0]) -> None:
        """Create an empty model; `only` filters its pictures, and `order` sorts their tasks."""
        self._only = only or Filter()
        self._order = order
        self._looks: deque[ClusterSnapshot] = deque(maxlen=_RATE_LOOKS + 1)
        self._workers: dict[str, _TrackedWorker] = {}
        self._points: deque[Point] = deque(maxlen=_HISTORY)
        self._tally = EventTally()
        self._greenlets: Greenlets | None = None
        self._trouble: str | None = None

    def look(self, look: ClusterSnapshot) -> None:
        """Add a sample of the cluster."""
        self._trouble = look.trouble
        if look.trouble is not None:
            return
        self._looks.append(look)
        for node, reply in (*look.statuses.items(), *look.foreign.items()):
            known = self._workers.setdefault(node, _TrackedWorker(node))
            known.look(look.at_s, reply, look.hubs.get(node), ours=node not in look.foreign)
        for node, known in list(self._workers.items()):
            if look.at_s - known.seen_s > _SILENT_S:
                del self._workers[node]
        if look.greenlets is not None:
            self._greenlets = look.greenlets
        self._tally.mark(look.at_s)
        self._points.append(self._point(look))

    def greenlets(self, greenlets: Greenlets) -> None:
        """Add the greenlets of the chosen worker."""
        self._greenlets = greenlets

    def add_events(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Add task events."""
        for event in events:
            self._tally.note(event)

    def picture(self) -> Picture:
        """Return the picture to draw."""
        workers, last_s = self._workers, self._looks[-1].at_s if self._looks else 0.0
        only, tasks = self._only, self._tally.tasks()
        shown = [task for task in tasks if only.shows("task", task.name)]
        return Picture(
            workers=[
                workers[node].shown(last_s)
                for node in sorted(workers)
                if only.shows("worker", node)
            ],
            queues=[queue for queue in self._queues() if only.shows("queue", queue.name)],
            tasks=sorted(shown, key=lambda task: -task.rank(self._order)),
            only=only,
            all_tasks=self._tally.total() if tasks else None,
            points=list(self._points),
            greenlets=self._greenlets,
            trouble=self._trouble,
        )

    def _queues(self) -> list[QueueCounts]:
        if not self._looks:
            return []
        before, now = self._looks[0].queues, self._looks[-1].queues
        found = [
            replace(
                queue,
                change_per_s=change_per_s(before, now, name),
                untaken=self._looks[-1].takers.leave(name),
            )
            for name, queue in now.queues.items()
        ]
        return sorted(found, key=lambda queue: (-queue.waiting, queue.name))

    def _point(self, look: ClusterSnapshot) -> Point:
        there = [each for each in self._workers.values() if each.seen_s == look.at_s]
        workers = [each.shown(look.at_s) for each in there]
        return Point(
            # Celery's pools, whose size is unknown, count neither in `running` nor in `size`.
            running=sum(each.running or 0 for each in workers if each.size is not None),
            size=sum(each.size or 0 for each in workers),
            depth=sum(queue.waiting for queue in look.queues.queues.values()),
            per_s=sum(each.last_per_s for each in there),
            lag_s=max((each.lag_s or 0.0 for each in workers), default=0.0),
        )


class _TrackedWorker:
    """The state kept for a worker."""

    def __init__(self, node: str) -> None:
        self.seen_s = 0.0
        self._node = node
        self._reply: Any = None
        self._hub: Any = None
        self._ours = True
        self._processed: deque[tuple[float, int]] = deque(maxlen=_RATE_LOOKS + 1)
        self._lags: deque[Mapping[float, int]] = deque(maxlen=_LAG_LOOKS + 1)

    def look(self, at_s: float, reply: Any, hub: Any, *, ours: bool) -> None:
        """Add the worker's replies."""
        self.seen_s, self._reply, self._hub, self._ours = at_s, reply, hub, ours
        processed = _count(show.part(reply, "processed"))
        if processed is not None:
            if self._processed and processed < self._processed[-1][1]:
                # The worker has restarted.
                self._processed.clear()
                self._lags.clear()
            self._processed.append((at_s, processed))
        lags = _buckets(hub)
        if lags:
            self._lags.append(lags)

    @property
    def last_per_s(self) -> float:
        """Tasks per second between the last two samples."""
        return _per_s(*list(self._processed)[-2:]) or 0.0

    def shown(self, now_s: float) -> WorkerLine:
        """Return the worker's line."""
        counts = {
            name: _count(show.part(self._reply, name)) for name in ("size", "waiting", "processed")
        }
        word, details = status.state(self._reply)
        if word == "ok":
            # Paused queues have their own lines.
            details = ""
        # If the hub is blocked at this moment, that counts as a late turn.
        blocked_s = _seconds(show.part(self._reply, "blocked", "for_s")) or 0.0
        lags = [_seconds(show.part(self._hub, "lag_s")), self._lag_p99_s()]
        lag_s, lag_p99_s = (blocked_s or None if s is None else max(s, blocked_s) for s in lags)
        silent_s = now_s - self.seen_s
        if silent_s > 0:
            word, details = "silent", f"no reply for {show.age(silent_s)}"
        return WorkerLine(
            node=self._node,
            state=word,
            details=details,
            ours=self._ours,
            running=_count(show.part(self._reply, "active")),
            per_s=_per_s(self._processed[0], self._processed[-1]) if self._processed else None,
            lag_s=lag_s,
            lag_p99_s=lag_p99_s,
            uptime_s=_seconds(show.part(self._reply, "uptime")),
            **counts,
        )

    def _lag_p99_s(self) -> float | None:
        if not self._lags:
            return None
        first, last = self._lags[0], self._lags[-1]
        recent = {upper_s: count - first.get(upper_s, 0) for upper_s, count in last.items()}
        # The first sample has only the totals since the worker started.
        return quantile_s(recent if len(self._lags) > 1 else last, 0.99)


def quantile_s(buckets: Mapping[float, int], share: float) -> float | None:
    """Return the bucket bound, in seconds, that the fraction `share` of turns does not exceed."""
    wanted, seen = share * sum(buckets.values()), 0
    for upper_s in sorted(buckets):
        seen += buckets[upper_s]
        if 0 < wanted <= seen:
            return upper_s
    return None


def _buckets(hub: Any) -> dict[float, int]:
    """Read the histogram in a reply to the command hub; the maximum bounds the last bucket."""
    found = {}
    given = show.part(hub, "lag", "buckets")
    for pair in given if isinstance(given, list) else ():
        if isinstance(pair, list) and len(pair) == 2:
            upper, count = pair
            upper_s = _seconds(show.part(hub, "lag", "max_s") if upper is None else upper)
            if upper_s is not None:
                found[upper_s] = _count(count) or 0
    return found


class EventTally:
    """Counts task events by the task's name and by kind."""

    def __init__(self) -> None:
        """Create a tally with all counts at 0."""
        self._counts: dict[str, Counter[str]] = {}
        self._runtimes: dict[str, tuple[float, int]] = {}
        self._names: OrderedDict[str, str] = OrderedDict()
        self._marks: deque[tuple[float, dict[str, Counter[str]]]] = deque(maxlen=_RATE_LOOKS + 1)

    def note(self, event: Mapping[str, Any]) -> None:
        """Count an event if it is a task event."""
        group, _, kind = str(event.get("type")).partition("-")
        uuid = event.get("uuid")
        if group != "task" or kind not in KINDS or not isinstance(uuid, str):
            return
        name = self._name(event, uuid, kind)
        if name not in self._counts and len(self._counts) >= _NAMES:
            name = _OTHERS
        self._counts.setdefault(name, Counter())[kind] += 1
        runtime_s = _seconds(event.get("runtime"))
        if runtime_s is not None:
            total_s, count = self._runtimes.get(name, (0.0, 0))
            self._runtimes[name] = total_s + runtime_s, count + 1

    def mark(self, at_s: float) -> None:
        """Mark the current counts; rates are computed between marks."""
        counts = {name: counts.copy() for name, counts in self._counts.items()}
        self._marks.append((at_s, counts))

    def tasks(self) -> list[TaskLine]:
        """Return a line for each task, busiest first."""
        found = [self._task(name) for name in self._counts]
        return sorted(found, key=lambda task: (*(-each for each in task.busy), task.name))

    def total(self) -> TaskLine:
        """Return the totals of all tasks as one line."""
        tasks = self.tasks()
        total_s = sum(each for each, _ in self._runtimes.values())
        ended = sum(count for _, count in self._runtimes.values())
        return TaskLine(
            name="all",
            per_s={kind: sum(task.per_s[kind] for task in tasks) for kind in KINDS},
            counts={kind: sum(task.counts[kind] for task in tasks) for kind in KINDS},
            runtime_s=total_s / ended if ended else None,
        )

    def _task(self, name: str) -> TaskLine:
        counts = self._counts[name]
        before_s, before = self._marks[0] if self._marks else (0.0, {})
        after_s, after = self._marks[-1] if self._marks else (0.0, {})
        took_s = after_s - before_s
        nothing: Counter[str] = Counter()
        grown = after.get(name, nothing) - before.get(name, nothing)
        total_s, ended = self._runtimes.get(name, (0.0, 0))
        return TaskLine(
            name=name,
            per_s={kind: grown[kind] / took_s if took_s > 0 else 0.0 for kind in KINDS},
            counts={kind: counts[kind] for kind in KINDS},
            runtime_s=total_s / ended if ended else None,
        )

    def _name(self, event: Mapping[str, Any], uuid: str, kind: str) -> str:
        """Return the name of an event's task, and remember it until the task ends."""
        given = event.get("name")
        name = given if isinstance(given, str) and given else self._names.get(uuid, _UNKNOWN)
        if kind in _ENDS:
            self._names.pop(uuid, None)
        elif name != _UNKNOWN:
            self._names[uuid] = name
            if len(self._names) > _RUNNING:
                self._names.popitem(last=False)
        return name


def _per_s(*points: tuple[float, int]) -> float | None:
    """Return the growth per second from the first to the last count; None for fewer than two."""
    if not points or points[-1][0] <= points[0][0]:
        return None
    return (points[-1][1] - points[0][1]) / (points[-1][0] - points[0][0])


def _count(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _seconds(value: object) -> float | None:
    # The comparison excludes NaN.
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < _MOST_S:
        return float(value)
    return None


# --- charts ---------------------------------------------------------------------------------------

_BLOCKS: Final = " ▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int, rows: int = 1) -> list[str]:
    """Draw the last values as rows of blocks with eight levels each, the upper row first.

    The largest value has full height, and 0 has the lowest level. Places without a value stay
    empty.
    """
    shown = values[-width:]
    most = max(shown, default=0.0)
    steps = rows * 8 - 1
    levels = [1 + (math.ceil(value / most * steps) if most > 0 else 0) for value in shown]
    return [
        "".join(_BLOCKS[min(max(level - row * 8, 0), 8)] for level in levels).rjust(width)
        for row in reversed(range(rows))
    ]
