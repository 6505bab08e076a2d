"""A workflow's tasks as a tree, its critical path, and an estimate of its remaining time."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from greenq.canvas.nodes import (
    AGAIN,
    FAILED,
    OPEN,
    PLANNED,
    REVOKED,
    RUNNING,
    SUCCEEDED,
    WAITING,
    WorkflowNode,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# The names of the states, by letter.
STATES: Mapping[str, str] = {
    PLANNED: "PLANNED", WAITING: "WAITING", RUNNING: "STARTED", AGAIN: "RETRY",
    SUCCEEDED: "SUCCESS", FAILED: "FAILURE", REVOKED: "REVOKED",
}  # fmt: skip
_OPEN = frozenset(STATES[letter] for letter in OPEN)


@dataclass(slots=True)
class WorkflowTask:
    """A task of a workflow.

    Attributes:
        node: the task's id, its name and its place in the workflow.
        state: PLANNED (to be sent when the step before it has ended), WAITING, STARTED, RETRY,
            SUCCESS, FAILURE or REVOKED.
        began, ended: the times in unix seconds; None until then.
        worker: the node name of its worker; "" until it is known.
    """

    node: WorkflowNode
    state: str
    began: float | None = None
    ended: float | None = None
    worker: str = ""

    @classmethod
    def read(cls, task_id: str, text: str) -> WorkflowTask:
        """Return a task from its text in the index."""
        head, _, rest = text.partition("|")
        began, ended, worker = [*head[1:].split(" ", 2), "", ""][:3]
        return cls(
            WorkflowNode.read(task_id, rest),
            STATES.get(head[:1], "UNKNOWN"),
            float(began) if began else None,
            float(ended) if ended else None,
            worker,
        )

    @property
    def id(self) -> str:
        """The task's id."""
        return self.node.task_id

    @property
    def name(self) -> str:
        """The task's name; "" until it is known."""
        return self.node.task

    @property
    def is_open(self) -> bool:
        """True if the task has not ended yet."""
        return self.state in _OPEN

    def runtime_s(self, now_s: float) -> float | None:
        """Return how long the task ran, or has run by `now_s`; None if it has not begun."""
        if self.began is None:
            return None
        return max(0.0, (now_s if self.ended is None else self.ended) - self.began)


@dataclass(slots=True)
class WorkflowGroup:
    """Tasks that run in parallel.

    Attributes:
        id: the group's id.
        is_chord: whether a body waits for them; the body follows in the same sequence.
        members: a sequence of steps for each member.
    """

    id: str
    is_chord: bool = False
    members: list[list[WorkflowStep]] = field(default_factory=list)


@dataclass(slots=True)
class WorkflowStep:
    """A task or a group in a sequence of steps.

    Attributes:
        what: the task or the group.
        others: further sequences that follow it, such as callbacks and tasks that it sent.
    """

    what: WorkflowTask | WorkflowGroup
    others: list[list[WorkflowStep]] = field(default_factory=list)


class Tree:
    """The tasks of a workflow and how they are connected.

    Attributes:
        tasks: the tasks by id.
        groups: the groups by id.
        lines: a sequence of steps for each task or group that the workflow began with.
    """

    def __init__(self, tasks: Iterable[WorkflowTask]) -> None:
        """Arrange the tasks in sequences of steps."""
        self.tasks = {task.id: task for task in tasks}
        self.groups: dict[str, WorkflowGroup] = {}
        self.lines: list[list[WorkflowStep]] = []
        self._known_groups = {
            group
            for task in self.tasks.values()
            for group in (*task.node.within, task.node.group)
            if group is not None
        }
        # For each task and each group, the sequence that it is in, and its step.
        self._places: dict[str, tuple[list[WorkflowStep], WorkflowStep]] = {}
        self._group_places: dict[str, tuple[list[WorkflowStep], WorkflowStep]] = {}
        self._arrange()

    def _arrange(self) -> None:
        followers: dict[str | None, list[WorkflowTask]] = defaultdict(list)
        for task in self.tasks.values():
            followers[self.before(task)].append(task)
        waiting: deque[str | None] = deque([None])
        placed: set[str] = set()
        while waiting or len(placed) < len(self.tasks):
            if waiting:
                before = waiting.popleft()
            else:
                # Another program may have written to the index, so tasks may follow one another in
                # a cycle.
                before = next(iter(followers.keys() - {None}))
                followers[None] = followers.pop(before)
                before = None
            for task in sorted(followers.pop(before, ()), key=_order):
                if task.id not in placed:
                    placed.add(task.id)
                    self._place(task, before)
                    waiting += [*self._within(task), task.id]

    def before(self, task: WorkflowTask) -> str | None:
        """Return the id of the task or the group before a task; None for the first one."""
        node = task.node
        if node.after in self.tasks or node.after in self._known_groups:
            return node.after
        if self._is_body(task):
            return node.group
        return node.parent if node.parent in self.tasks else None

    def _is_body(self, task: WorkflowTask) -> bool:
        """Return whether a task is the body of the chord that it names as its group."""
        node = task.node
        if node.group is None or node.is_part:
            return False
        sender = self.tasks.get(node.parent or "")
        return sender is not None and sender.node.group == node.group and sender.node.is_part

    def _within(self, task: WorkflowTask) -> tuple[str, ...]:
        node = task.node
        if node.within or node.after is not None or node.group is None or self._is_body(task):
            return node.within
        return (node.group,)

    def _place(self, task: WorkflowTask, before: str | None) -> None:
        """Put a task after the step that it follows, or at the beginning of a group's member."""
        lines, line = self._continued(before)
        for group_id in self._within(task):
            group = self.groups.get(group_id)
            if group is None:
                group = self.groups[group_id] = WorkflowGroup(group_id)
                self._group_places[group_id] = _append(lines, line, group)
            lines, line = group.members, None
        if task.node.is_part and task.node.group in self.groups:
            self.groups[task.node.group].is_chord = True
        self._places[task.id] = _append(lines, line, task)

    def _continued(
        self, before: str | None
    ) -> tuple[list[list[WorkflowStep]], list[WorkflowStep] | None]:
        """Return the list for a new sequence, and the sequence that ends with `before`, if any."""
        place = self._places.get(before or "") or self._group_places.get(before or "")
        if place is None:
            return self.lines, None
        line, step = place
        return step.others, line if line[-1] is step else None

    # --- times ------------------------------------------------------------------------------------

    def critical_path(self) -> list[WorkflowTask]:
        """Return the tasks that determined the duration: each waited for the one before it."""
        begun = [task for task in self.tasks.values() if task.began is not None]
        path: dict[str, WorkflowTask] = {}
        at = max(begun, key=_last_s, default=None)
        while at is not None and at.id not in path:
            path[at.id] = at
            at = self._waited_for(at)
        return list(path.values())[::-1]

    def _waited_for(self, task: WorkflowTask) -> WorkflowTask | None:
        before = self.before(task)
        if before is None or before in self.tasks:
            return self.tasks.get(before or "")
        ended = [
            each for each in self.tasks.values() if each.node.group == before and each is not task
        ]
        return max(ended, key=_last_s, default=None)

    def left_s(self, now_s: float) -> float | None:
        """Estimate the workflow's remaining time in seconds; None until the first task has ended.

        A task is assumed to take as long as other tasks with its name. The workflow will take at
        least as long as the longest remaining sequence of steps, and is assumed to use as many
        slots as have been busy on average so far.
        """
        took: dict[str, list[float]] = defaultdict(list)
        for task in self.tasks.values():
            if task.ended is not None and task.began is not None:
                took[task.name].append(task.ended - task.began)
        if not took:
            return None
        every = [each for times in took.values() for each in times]
        means = {name: sum(times) / len(times) for name, times in took.items()}
        mean = sum(every) / len(every)
        left = {
            task.id: max(0.0, means.get(task.name, mean) - (task.runtime_s(now_s) or 0.0))
            for task in self.tasks.values()
            if task.is_open
        }
        return max(
            _longest_s(self.lines, left), sum(left.values()) / self._slots(sum(every), now_s)
        )

    def _slots(self, busy_s: float, now_s: float) -> float:
        began_s = min(task.began for task in self.tasks.values() if task.began is not None)
        return max(1.0, busy_s / max(now_s - began_s, 0.001))


def _longest_s(lines: Iterable[list[WorkflowStep]], left: Mapping[str, float]) -> float:
    """Return how many more seconds the longest of these sequences will take."""
    longest = 0.0
    for line in lines:
        passed = 0.0
        for step in line:
            what = step.what
            if isinstance(what, WorkflowTask):
                passed += left.get(what.id, 0.0)
            else:
                passed += _longest_s(what.members, left)
            longest = max(longest, passed + _longest_s(step.others, left))
        longest = max(longest, passed)
    return longest


def _append(
    lines: list[list[WorkflowStep]],
    line: list[WorkflowStep] | None,
    what: WorkflowTask | WorkflowGroup,
) -> tuple[list[WorkflowStep], WorkflowStep]:
    """Append a task or a group to a sequence, or to a new one; return its place."""
    if line is None:
        line = []
        lines.append(line)
    step = WorkflowStep(what)
    line.append(step)
    return line, step


def _order(task: WorkflowTask) -> tuple[float, float, str]:
    place = task.node.place
    return (0 if place is None else place, task.began or float("inf"), task.id)


def _last_s(task: WorkflowTask) -> tuple[float, float]:
    return (task.ended or task.began or 0.0, task.began or 0.0)
