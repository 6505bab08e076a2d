"""Workflows of every shape, and two ways to say what they return.

`evaluate` goes through a shape as it reads; `Cluster` runs what a plan sends, message by message
and in any order, as workers do.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from greenq.canvas import plan
from greenq.canvas.primitives import chain, chord, group
from greenq.canvas.signature import Signature

_NUMBERS = st.integers(0, 99)


def _task(name: str, number: int, immutable: bool) -> Signature:
    return Signature(name, (number,), immutable=immutable)


TASKS = st.builds(_task, st.sampled_from("abc"), _NUMBERS, st.sampled_from([False, False, True]))


def _wholes(parts: st.SearchStrategy[Signature]) -> st.SearchStrategy[Signature]:
    some = st.lists(parts, max_size=3)
    return (
        st.lists(parts, min_size=1, max_size=3).map(chain)
        | some.map(group)
        | st.builds(chord, some, parts)
    )


SHAPES = st.recursive(TASKS, _wholes, max_leaves=12)
"""Signatures of every kind, nested in one another."""


def count(sig: Mapping[str, Any]) -> int:
    """Count the tasks of a signature."""
    kwargs = sig["kwargs"]
    if "tasks" in kwargs:
        return sum(map(count, kwargs["tasks"]))
    if "header" in kwargs:
        return count(kwargs["header"]) + count(kwargs["body"])
    return 1


# --- as it reads ---------------------------------------------------------------------------------


def evaluate(sig: Any, *args: Any) -> list[Any]:
    """Return the values of the tasks that end a signature called with `args`."""
    what = plan.kind(sig)
    if what == "task":
        return [run(sig["task"], (*(() if sig["immutable"] else args), *sig["args"]))]
    if what == "group":
        return [value for each in sig.tasks for value in evaluate(each, *args)]
    if what == "chord":
        header = evaluate(sig.tasks, *args)
        return evaluate(sig.body, header)
    return _evaluate_chain(_steps(sig), *args)


def _steps(sig: Any) -> list[Any]:
    found: list[Any] = []
    for step in sig.tasks:
        if plan.kind(step) == "group":
            inner = _flat(step)
            step = inner[0] if len(inner) == 1 else group(inner)
        if plan.kind(step) == "chain":
            found += _steps(step)
        elif plan.kind(step) != "group" or step.tasks:
            found.append(step)
    return found


def _flat(sig: Any) -> list[Any]:
    found: list[Any] = []
    for each in sig.tasks:
        found += _flat(each) if plan.kind(each) == "group" else [each]
    return found


def _evaluate_chain(steps: Sequence[Any], *args: Any) -> list[Any]:
    values: list[Any] = []
    for step in steps:
        values = evaluate(step, *args)
        args = (values if _ends_many(step) else values[0],)
    return values


def _ends_many(sig: Any) -> bool:
    what = plan.kind(sig)
    if what == "chord":
        body = sig.body
        while plan.kind(body) == "chain":
            steps = _steps(body)
            body = steps[-1] if steps else group()
        return _ends_many(body)
    return what == "group"


def run(task: str, args: Sequence[Any]) -> list[Any]:
    """Run a task: its value shows its arguments, so it shows all that came before."""
    return [task, *args]


# --- as workers run it ---------------------------------------------------------------------------


class Cluster:
    """Workers that share one queue and take from it in any order.

    Attributes:
        values: what each task returned, by id.
        sent: the text of every message.
    """

    def __init__(self, seed: int = 0) -> None:
        self.values: dict[str, Any] = {}
        self.sent: list[str] = []
        self.order: list[str] = []
        self.pending: list[str] = []
        self._sizes: dict[str, int] = {}
        self._parts: dict[str, dict[int, Any]] = defaultdict(dict)
        self._random = random.Random(seed)

    def send(self, made: plan.WorkflowPlan) -> None:
        for start in made.chords:
            assert start.group_id not in self._sizes
            self._sizes[start.group_id] = start.size
        for call in made.calls:
            text = json.dumps(call._asdict())
            self.pending.append(text)
            self.sent.append(text)

    def run(self) -> None:
        """Run until nothing is left."""
        while self.pending:
            self._run(json.loads(self.take()))

    def take(self) -> str:
        """Take any message."""
        return self.pending.pop(self._random.randrange(len(self.pending)))

    def call(self, message: Mapping[str, Any]) -> Any:
        """Call the task of a message."""
        return run(message["task"], message["args"])

    def _run(self, call: Mapping[str, Any]) -> None:
        options = call["options"]
        task_id = options["task_id"]
        assert task_id not in self.values, "a task ran twice"
        self.order.append(task_id)
        value = self.values[task_id] = self.call(call)
        place = {"parent_id": task_id, "root_id": options.get("root_id") or task_id}
        for callback in options.get("link") or ():
            self.send(plan.follow(callback, value, **place))
        *rest, following = options.get("chain") or [None]
        if following is not None:
            self.send(plan.follow(following, value, chain=rest or None, **place))
        body = options.get("chord")
        if body is not None:
            self._count(options, value, body, place)

    def _count(
        self, options: Mapping[str, Any], value: Any, body: Any, place: Mapping[str, Any]
    ) -> None:
        group_id = options["group_id"]
        parts = self._parts[group_id]
        assert options["group_index"] not in parts, "two parts have one place"
        parts[options["group_index"]] = value
        if len(parts) == self._sizes[group_id]:
            results = [parts[index] for index in sorted(parts)]
            self.send(plan.follow(body, results, **place))

    @property
    def waits(self) -> bool:
        """Whether a chord never got all its parts."""
        return any(len(self._parts[each]) != size for each, size in self._sizes.items())


def values_of(handle: plan.Handle, values: Mapping[str, Any]) -> list[Any]:
    """Return the values that a handle stands for."""
    (own_id, _parent), members = handle
    if members is None:
        return [values[own_id]]
    return [value for each in members for value in values_of(each, values)]
