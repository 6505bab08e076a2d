"""Entering a workflow into the index before the workflow is sent."""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING, Any

from greenq.canvas.nodes import PLANNED, WAITING, Following, WorkflowNode, of_call
from greenq.transport.continuation import Noted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from greenq.canvas.plan import Call, ChordStart, Handle, WorkflowPlan
    from greenq.canvas.stream import GroupStream

# The most calls that are entered together, and the longest time for which they are collected.
_PORTION = 200
_PORTION_S = 1.0


def announce(app: Any, made: WorkflowPlan, root_id: str | None) -> None:
    """Enter a plan's calls and the nodes that follow them; set the calls' root. Switches: yes.

    A task that is sent on its own is not a workflow unless it has a root.
    """
    if root_id is None and len(made.calls) == 1 and _is_alone(made.calls[0]):
        return
    root_id = root_id or first_of(made.handle)
    following = Following()
    index = app.transport.workflows
    items: list[Noted] = []
    for call in made.calls:
        call.options["root_id"] = root_id
        items += noted(root_id, index.seconds, WAITING, [of_call(call)])
        items += noted(root_id, index.seconds, PLANNED, following.call(call))
    # Enter all nodes together: if only some were known, the workflow could seem to have ended.
    index.note(items)


def announced(
    app: Any,
    stream: GroupStream,
    calls: Iterator[tuple[Call, list[ChordStart]]],
    root_id: str | None,
) -> Iterator[tuple[Call, list[ChordStart]]]:
    """Yield each call of a stream after entering it in the index. Switches: yes."""
    root_id = root_id or stream.group_id
    following = Following()
    index = app.transport.workflows
    index.note([Noted(root_id, index.seconds, stream.group_id, "+")])
    for portion, error in _portions(calls):
        items: list[Noted] = []
        for call, _chords in portion:
            call.options["root_id"] = root_id
            items += noted(root_id, index.seconds, WAITING, [of_call(call)])
            items += noted(root_id, index.seconds, PLANNED, following.call(call))
        index.note(items)
        yield from portion
        if error is not None:
            raise error
    index.note([Noted(root_id, index.seconds, stream.group_id, "-")])


def _portions(
    calls: Iterator[tuple[Call, list[ChordStart]]],
) -> Iterator[tuple[list[tuple[Call, list[ChordStart]]], Exception | None]]:
    """Yield calls in portions, each with None or the error that ended the calls early."""
    error: Exception | None = None
    portion: list[tuple[Call, list[ChordStart]]]
    while error is None:
        portion, ends_s = [], time.monotonic() + _PORTION_S
        try:
            for each in islice(calls, _PORTION):
                portion.append(each)
                if time.monotonic() >= ends_s:
                    break
        except Exception as exc:
            error = exc
        if not portion and error is None:
            return
        yield portion, error


def noted(
    workflow: str, seconds: int, state: str, nodes: Iterable[WorkflowNode]
) -> Iterator[Noted]:
    """Yield what the index records for nodes that have entered a state."""
    for node in nodes:
        yield Noted(workflow, seconds, node.task_id, state, "", node.written())


def first_of(handle: Handle) -> str:
    """Return the id of the first ancestor of a handle."""
    while handle[0][1] is not None:
        handle = handle[0][1]
    return handle[0][0]


def _is_alone(call: Call) -> bool:
    options = call.options
    names = ("chain", "chord", "link", "link_error", "group_id")
    return not any(options.get(name) for name in names)
