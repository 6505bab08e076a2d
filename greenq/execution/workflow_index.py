"""A worker's entries in the index of workflows: when each task of a workflow begins and ends.

The calls that store states and results also write these entries (`greenq.transport.outbox`).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from greenq.canvas.index import noted
from greenq.canvas.nodes import (
    AGAIN,
    FAILED,
    PLANNED,
    REVOKED,
    RUNNING,
    SUCCEEDED,
    WAITING,
    Following,
    WorkflowNode,
    of_call,
    of_message,
    unrun,
    workflow_of,
)
from greenq.states import FAILURE, IGNORED, REJECTED, RETRY, SUCCESS
from greenq.states import REVOKED as REVOKED_STATE
from greenq.transport.continuation import Continuation, Noted
from greenq.transport.settle import KEEP, Move, Settlement
from greenq.transport.workflows import CANCELLED, item

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from greenq.canvas.plan import Call
    from greenq.execution.revoked import Revoked
    from greenq.protocol.message import TaskMessage
    from greenq.running.request import Request
    from greenq.transport.broker import Broker
    from greenq.transport.fetch import Delivery

_LETTERS = {
    SUCCESS: SUCCEEDED, FAILURE: FAILED, IGNORED: FAILED, REJECTED: FAILED,
    REVOKED_STATE: REVOKED, RETRY: AGAIN,
}  # fmt: skip

# The maximum number of groups remembered as having their successors in the index.
_MOST_GROUPS = 1000


class WorkflowIndex:
    """Enters the tasks of one worker into the index."""

    def __init__(self, broker: Broker, revoked: Revoked, hostname: str, seconds: int) -> None:
        """Write as the node `hostname`; the index keeps a workflow for `seconds`."""
        self._broker = broker
        self._revoked = revoked
        # The node name comes last in a node's times and is followed by a bar, so it contains none.
        self._hostname = hostname.replace("|", "/")
        self._seconds = seconds
        # Called when a message has been put aside.
        self.on_held: Callable[[bool], object] | None = None
        # Clients' groups whose successors have been entered; the latest group comes last.
        self._groups: OrderedDict[str, None] = OrderedDict()

    @staticmethod
    def adopt(message: TaskMessage) -> None:
        """Set the root of a message whose sender has given its workflow no common root."""
        message.root_id = workflow_of(message) or message.root_id

    def is_cancelled(self, message: TaskMessage) -> bool:
        """Return whether a message belongs to a cancelled workflow."""
        return self._revoked.workflows.get(message.root_id or message.id) == CANCELLED

    def began(self, request: Request) -> Settlement | None:
        """Return the entry for a task that begins; None if the task belongs to no workflow."""
        message = request.message
        workflow = workflow_of(message)
        if workflow is None:
            return None
        times = f"{time.time():.3f}  {self._hostname}"
        items = [self._noted(workflow, of_message(message), RUNNING, times)]
        if message.parent_id is None and self._is_new(message):
            found = Following().task(message.id, message.group, message.chain, message.chord)
            items += noted(workflow, self._seconds, PLANNED, found)
        return Settlement(request.delivery.tag, KEEP, workflow=Continuation(index=items))

    def _is_new(self, message: TaskMessage) -> bool:
        """Return whether the successors of a client's message may be missing from the index."""
        if not (message.chain or message.chord):
            return False
        if message.chain or message.group is None:
            return True
        if message.group in self._groups:
            return False
        self._groups[message.group] = None
        if len(self._groups) > _MOST_GROUPS:
            self._groups.popitem(last=False)
        return True

    def ended(
        self,
        delivery: Delivery,
        message: TaskMessage,
        state: str,
        workflow: Continuation | None,
        *,
        began_s: float | None = None,
        children: Sequence[str] = (),
        goes_on: bool = False,
        has_run: bool = True,
    ) -> Continuation | None:
        """Return `workflow`, with a note of a task's end if the task is in the index.

        Args:
            delivery: the task's message, which is kept if the task has failed.
            message: the decoded message.
            state: the task's state.
            workflow: the task's continuation, or None.
            began_s: when the task began, in Unix time.
            children: the ids of the tasks that the task has sent.
            goes_on: whether the task runs again or is replaced.
            has_run: False if the message cannot run.
        """
        name = workflow_of(message) or (message.id if children else None)
        if name is None:
            return workflow
        letter = AGAIN if goes_on else _LETTERS.get(state, FAILED)
        began = "" if began_s is None else f"{began_s:.3f}"
        times = "" if goes_on else f"{began} {time.time():.3f} {self._hostname}"
        kept: str | bytes = ""
        if letter in (FAILED, REVOKED):
            back = self._broker.requeue(delivery.tag, delivery.queue, delivery.raw, "last")
            kept = item(back.key, delivery.raw)
        letter = letter if has_run else unrun(letter)
        made = Continuation() if workflow is None else workflow
        made.index = [
            *made.index,
            self._noted(name, of_message(message), letter, times, kept),
            *[self._noted(name, WorkflowNode(each, ""), WAITING, "") for each in children],
        ]
        return made

    def held(self, request: Request) -> Settlement:
        """Return the entry that keeps a message until its workflow is resumed."""
        message, delivery = request.message, request.delivery
        back = self._broker.requeue(*delivery, "next")
        key = self._broker.keys.workflow(message.root_id or message.id)
        move = Move(delivery.tag, f"{key}.held", "next", item(back.key, back.text))
        # This note makes the list expire.
        note = self._noted(message.root_id or message.id, of_message(message), WAITING, "")
        entry = Settlement.moving(move, workflow=Continuation(index=[note]))
        entry.written = self.on_held
        return entry

    def sent(self, calls: Iterable[Call]) -> list[Noted]:
        """Return the notes about the calls that are sent when a task ends."""
        return [
            self._noted(call.options["root_id"], of_call(call), WAITING, "")
            for call in calls
            if call.options.get("root_id")
        ]

    def never(self, message: TaskMessage, tasks: Iterable[tuple[str, str]]) -> list[Noted]:
        """Return the notes about tasks that can no longer run, given with their states."""
        name = message.root_id or message.id
        return [
            Noted(name, self._seconds, task_id, unrun(_LETTERS.get(state, FAILED)))
            for task_id, state in tasks
        ]

    def _noted(
        self, workflow: str, node: WorkflowNode, state: str, times: str, kept: str | bytes = ""
    ) -> Noted:
        text = node.written() if node.task else ""
        return Noted(workflow, self._seconds, node.task_id, state, times, text, kept)
