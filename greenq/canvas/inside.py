"""How a running task changes its workflow: it is replaced, or its chord gets another part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greenq.canvas.plan import WorkflowPlan, gathered, kind, plan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from greenq.protocol.message import TaskMessage


def replacement(message: TaskMessage, signature: Mapping[str, Any]) -> WorkflowPlan:
    """Return the plan that replaces a message; the plan's last task has the message's id.

    The plan takes over the message's callbacks, chain and chord. If it is a group, its results are
    gathered in a list.
    """
    if kind(signature) == "group":
        signature = gathered(signature)
    options = {
        **_shared(message),
        "task_id": message.id,
        "parent_id": message.parent_id,
        "link": message.callbacks,
        "link_error": message.errbacks,
        "chain": message.chain,
        "replaced_task_nesting": message.replaced_task_nesting + 1,
        "group_index": message.group_index,
    }
    return plan(signature, **options)


def addition(message: TaskMessage, signature: Mapping[str, Any]) -> WorkflowPlan:
    """Return the plan of an additional part for the chord that a message belongs to.

    Raises:
        ValueError: the message belongs to no chord.
    """
    if message.chord is None or message.group is None:
        raise ValueError(f"task {message.task}[{message.id}] belongs to no chord")
    return plan(signature, **_shared(message), parent_id=message.id)


def _shared(message: TaskMessage) -> dict[str, Any]:
    """Return the options that a message shares with other parts of its workflow."""
    return {
        "root_id": message.root_id or message.id,
        "group_id": message.group,
        "chord": message.chord,
        **message.stamps,
        "stamped_headers": list(message.stamps) or None,
    }
