"""The nodes of a workflow, as the index stores them: one for each message, sent or to be created.

A workflow is identified by its root id. If a Celery client sends a group or a header, each member
is its own root; greenq's workers use the id of the outermost group for all members.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from greenq.canvas.plan import freeze, kind
from greenq.protocol.message import has_successors

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence

    from greenq.canvas.plan import Call
    from greenq.protocol.message import TaskMessage

# States of a node, one letter each. A node that has not ended is in one of the first four.
PLANNED, WAITING, RUNNING, AGAIN, SUCCEEDED, FAILED, REVOKED = "pwrysfv"
OPEN = (PLANNED, WAITING, RUNNING, AGAIN)

# How many characters of a task's name are stored.
_MOST_NAME_CHARS = 200

# How many levels of enclosing chords and chains are followed; signatures in messages cannot be
# nested more deeply.
_MOST_LEVELS = 100


class WorkflowNode(NamedTuple):
    """A task and its place in a workflow, without its state.

    Attributes:
        parent: the task that sent it; None if the sender is unknown or is not a task.
        group: the group that it is a member of or, for a chord's body, the chord's header.
        place: its index in that group.
        is_part: whether the body of a chord waits for it.
        after: the task or the group that it follows in its workflow; None for the first.
        within: the groups in which a member, at any depth, begins with this task, outermost first;
            of a chain's steps, only the first has any.
    """

    task_id: str
    task: str
    parent: str | None = None
    group: str | None = None
    place: int | None = None
    is_part: bool = False
    after: str | None = None
    within: tuple[str, ...] = ()

    def written(self) -> str:
        """Return all fields except the id as text."""
        name = self.task[:_MOST_NAME_CHARS]
        place = (self.parent, self.group, self.place, int(self.is_part), self.after, self.within)
        return json.dumps((name, *place), separators=(",", ":"))

    @classmethod
    def read(cls, task_id: str, text: str) -> WorkflowNode:
        """Return the node for a text from `written`; empty text means a node without a name."""
        if not text:
            return cls(task_id, "")
        name, parent, group, place, is_part, after, within = json.loads(text)
        return cls(task_id, name, parent, group, place, bool(is_part), after, tuple(within))


def unrun(letter: str) -> str:
    """Return the letter for a task that ended without running; it replaces no other final state."""
    return letter.upper()


def workflow_of(message: TaskMessage) -> str | None:
    """Return the id of the workflow that a message belongs to; None for a task on its own."""
    root = message.root_id
    if root is not None and root != message.id:
        return root
    if message.group is None and not has_successors(message):
        return None
    within = _within(message.group, message.chord, message.chain)
    return within[0] if within else message.id


def _within(
    group: str | None, chord: Mapping[str, Any] | None, chain: Sequence[Mapping[str, Any]] | None
) -> tuple[str, ...]:
    """Return the groups that the first task of a sequence belongs to, outermost first.

    The sequence is everything that must end before its group continues: the task, the rest of its
    chain, and the bodies of chords.
    """
    found: list[str] = []
    for _ in range(_MOST_LEVELS):
        if chain:
            options = _end_of(chain[0])["options"]
        else:
            if group and group not in found:
                found.append(group)
            if not chord:
                break
            options = _end_of(chord)["options"]
        group, chord, chain = (options.get(name) for name in ("group_id", "chord", "chain"))
    return tuple(reversed(found))


def _end_of(signature: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the last part of a signature: a task, or the group that the signature ends with."""
    for _ in range(_MOST_LEVELS):
        what = kind(signature)
        if what == "chain" and signature["kwargs"]["tasks"]:
            signature = signature["kwargs"]["tasks"][-1]
        elif what == "chord":
            signature = signature["kwargs"]["body"]
        else:
            break
    return signature


def of_message(message: TaskMessage) -> WorkflowNode:
    """Return the node for a message."""
    within: tuple[str, ...] = ()
    if message.parent_id is None:
        within = _within(message.group, message.chord, message.chain)
    return WorkflowNode(
        message.id, message.task, message.parent_id, message.group, message.group_index,
        bool(message.chord), None, within,
    )  # fmt: skip


def of_call(call: Call) -> WorkflowNode:
    """Return the node for a call that is to be sent."""
    options = call.options
    group, chord, chain = (options.get(name) for name in ("group_id", "chord", "chain"))
    place = None if group is None else options.get("group_index")
    return WorkflowNode(
        options["task_id"], call.task, options.get("parent_id"), group, place, bool(chord), None,
        _within(group, chord, chain),
    )  # fmt: skip


class Following:
    """Finds the nodes that follow tasks; yields the body of each chord only once."""

    def __init__(self) -> None:
        """Create a finder that has not seen any chord."""
        self._chords: set[str] = set()

    def call(self, call: Call) -> Iterator[WorkflowNode]:
        """Yield the nodes that follow a call."""
        options = call.options
        return self.task(
            options["task_id"], options.get("group_id"), options.get("chain"), options.get("chord")
        )

    def task(
        self,
        task_id: str,
        group: str | None,
        chain: Iterable[Mapping[str, Any]] | None,
        chord: Mapping[str, Any] | None,
    ) -> Iterator[WorkflowNode]:
        """Yield the nodes that follow a task; `chain` is in reverse order."""
        after = task_id
        for step in reversed(list(chain or ())):
            after = yield from self._planned(freeze(step)[0], after, (), None, False)
        if chord and group:
            yield from self._body(freeze(chord)[0], group, None, False)

    def _body(
        self, body: Mapping[str, Any], header: str, group: str | None, is_part: bool
    ) -> Iterator[WorkflowNode]:
        if header not in self._chords:
            self._chords.add(header)
            yield from self._planned(body, header, (), group, is_part)

    def _planned(
        self,
        sig: Mapping[str, Any],
        after: str,
        within: tuple[str, ...],
        group: str | None,
        is_part: bool,
    ) -> Generator[WorkflowNode, None, str]:
        """Yield the nodes of a frozen signature; return the id that the next step follows.

        The signature is a member of `group` unless it names another group. If `is_part`, the body
        of the group's chord waits for it.
        """
        options, kwargs, what = sig["options"], sig["kwargs"], kind(sig)
        group = options.get("group_id") or group
        is_part = is_part or bool(options.get("chord"))
        end: str = options.get("task_id") or after
        if what == "group":
            end = group or end
            within = within if end in within else (*within, end)
            for each in kwargs["tasks"]:
                yield from self._planned(each, after, within, end, is_part)
        elif what == "chord":
            header = kwargs["header"]
            end = header["options"]["task_id"]
            for each in header["kwargs"]["tasks"]:
                yield from self._planned(each, after, (*within, end), end, True)
            yield from self._body(kwargs["body"], end, group, is_part)
            end = kwargs["body"]["options"].get("task_id") or end
        elif what == "chain":
            end = after
            for at, each in enumerate(kwargs["tasks"], 1):
                is_last = at == len(kwargs["tasks"])
                end = yield from self._planned(
                    each, end, within, group if is_last else None, is_last and is_part
                )
                within = ()
        else:
            place = None if group is None else options.get("group_index")
            is_part = is_part and group is not None
            yield WorkflowNode(end, sig["task"], None, group, place, is_part, after, within)
        yield from self.task(end, group, options.get("chain"), options.get("chord"))
        return end
