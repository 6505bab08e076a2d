"""What ``greenq top`` knows: replies and events go in, what is to be shown comes out. No I/O."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from greenq.cli import queues, show, status

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from greenq.cli.queues import Queue

_BLOCKS: Final = "▁▂▃▄▅▆▇█"

# Looks that the charts remember: more than the widest terminal shows.
_HISTORY: Final = 400

# Rates of single looks jump: they are taken over so many.
_RATE_LOOKS: Final = 5

# Late turns of the hub are counted over so many looks, not since the worker began.
_LAG_LOOKS: Final = 60

# A worker that does not reply is shown for so long.
_SILENT_S: Final = 60.0

# Anybody may publish events: more tasks than this have no line of their own.
_NAMES: Final = 1000
_OTHERS: Final = "(others)"
_UNKNOWN: Final = "(unknown)"

# Tasks that have begun and not ended, whose names are remembered: most events tell an id alone.
_RUNNING: Final = 50_000

KINDS: Final = ("received", "started", "succeeded", "failed", "retried", "revoked", "rejected")
"""What happens to tasks, in the words of their events."""

_ENDS: Final = frozenset({"succeeded", "failed", "revoked", "rejected"})


# --- what goes in ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Greenlets:
    """What one worker's tasks wait for.

    Attributes:
        node: the worker.
        reply: to the command greenlets; None if there was none.
    """

    node: str
    reply: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The cluster at one moment.

    Attributes:
        at_s: when (monotonic).
        statuses: replies to the command status, by node.
        foreign: what heartbeats tell of the nodes that do not know that command.
        hubs: replies to the command hub, by node.
        queues: the queues.
        greenlets: of the worker chosen.
        trouble: why not all could be looked at; then the rest is empty.
    """

    at_s: float
    statuses: Mapping[str, Any] = field(default_factory=dict)
    foreign: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    hubs: Mapping[str, Any] = field(default_factory=dict)
    queues: Mapping[str, Queue] = field(default_factory=dict)
    greenlets: Greenlets | None = None
    trouble: str | None = None


# --- what comes out -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A worker's line; None is what nobody knows.

    Attributes:
        node: its name.
        state: in a word.
        details: what is to be said about the state.
        ours: whether it is greenq's: others tell less.
        running, size, waiting: tasks in its pool, the pool's slots, tasks that wait for one.
        processed: tasks since it began.
        per_s: tasks a second.
        lag_s: how late its hub's last turn was.
        lag_p99_s: what 99 of 100 turns did not exceed in the last minute.
        uptime_s: its age.
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
        """Return all but the name."""
        return {
            name: getattr(self, name) for name in self.__dataclass_fields__ if name != "node"
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task's line.

    Attributes:
        name: its name.
        per_s: by kind of event, so many a second.
        counts: by kind of event, so many since greenq top began.
        runtime_s: the mean of those that succeeded.
    """

    name: str
    per_s: Mapping[str, float]
    counts: Mapping[str, int]
    runtime_s: float | None = None

    @property
    def busy(self) -> tuple[float, int]:
        """What it is ranked by: events a second, and so far."""
        return sum(self.per_s.values()), sum(self.counts.values())

    def as_json(self) -> dict[str, Any]:
        """Return all but the name."""
        per_s = {kind: round(rate, 2) for kind, rate in self.per_s.items()}
        return {"per_s": per_s, "counts": dict(self.counts), "runtime_s": self.runtime_s}


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """All workers and queues together at one moment.

    Attributes:
        running, size: of all pools.
        depth: messages that wait in all queues.
        per_s: tasks a second.
        lag_s: of the hub that was the latest.
    """

    running: int
    size: int
    depth: int
    per_s: float
    lag_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What is to be shown.

    Attributes:
        workers: by name.
        queues: the deepest first.
        tasks: the busiest first; nothing if no worker tells of tasks.
        all_tasks: all of them together.
        points: the charts' history, the latest at the end.
        greenlets: of the worker chosen.
        trouble: why it may not be up to date.
    """

    workers: Sequence[Worker] = ()
    queues: Sequence[Queue] = ()
    tasks: Sequence[Task] = ()
    all_tasks: Task | None = None
    points: Sequence[Point] = ()
    greenlets: Greenlets | None = None
    trouble: str | None = None

    @property
    def last(self) -> Point:
        """The workers and queues together now."""
        return self.points[-1] if self.points else Point(**_NOTHING)

    @property
    def depth_per_s(self) -> float | None:
        """By how much all queues together grow in a second."""
        changes = [each.change_per_s for each in self.queues if each.change_per_s is not None]
        return sum(changes) if changes else None

    def as_json(self) -> dict[str, Any]:
        """Return it for JSON, without the history."""
        last, greenlets = self.last, self.greenlets
        return {
            "workers": {each.node: each.as_json() for each in self.workers},
            "queues": {each.name: each.as_json() for each in self.queues},
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


_NOTHING: Final[dict[str, Any]] = {
    "running": 0, "size": 0, "depth": 0, "per_s": 0.0, "lag_s": 0.0,
}  # fmt: skip


# --- in between -----------------------------------------------------------------------------------


class Model:
    """Remembers looks and events for as long as rates and charts need them."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._looks: deque[Look] = deque(maxlen=_RATE_LOOKS + 1)
        self._workers: dict[str, _Worker] = {}
        self._points: deque[Point] = deque(maxlen=_HISTORY)
        self._tally = Tally()
        self._greenlets: Greenlets | None = None
        self._trouble: str | None = None

    def look(self, look: Look) -> None:
        """Take note of the cluster at a moment."""
        self._trouble = look.trouble
        if look.trouble is not None:
            return
        self._looks.append(look)
        for node, reply in (*look.statuses.items(), *look.foreign.items()):
            known = self._workers.setdefault(node, _Worker(node))
            known.look(look.at_s, reply, look.hubs.get(node), ours=node not in look.foreign)
        for node, known in list(self._workers.items()):
            if look.at_s - known.seen_s > _SILENT_S:
                del self._workers[node]
        if look.greenlets is not None:
            self._greenlets = look.greenlets
        self._tally.mark(look.at_s)
        self._points.append(self._point(look))

    def greenlets(self, greenlets: Greenlets) -> None:
        """Take note of the greenlets of the worker that was chosen."""
        self._greenlets = greenlets

    def hear(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Take note of what happened to tasks."""
        for event in events:
            self._tally.note(event)

    def picture(self) -> Picture:
        """Return what is to be shown."""
        last = self._looks[-1] if self._looks else Look(at_s=0.0)
        tasks = self._tally.tasks()
        return Picture(
            workers=[self._workers[node].shown(last.at_s) for node in sorted(self._workers)],
            queues=self._queues(last),
            tasks=tasks,
            all_tasks=self._tally.all() if tasks else None,
            points=list(self._points),
            greenlets=self._greenlets,
            trouble=self._trouble,
        )

    def _queues(self, last: Look) -> list[Queue]:
        before, now = (
            queues.Look(each.at_s, each.queues) for each in (self._looks or (last,))[:1] + [last]
        ) if False else self._ends(last)
        found = [
            replace(queue, change_per_s=queues.change_per_s(before, now, name))
            for name, queue in last.queues.items()
        ]
        return sorted(found, key=lambda queue: (-queue.waiting, queue.name))
