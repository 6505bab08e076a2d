"""The effects of a task's end other than its state; the call that settles the task writes them.

See lua/settle.lua for what is done with each list, and docs/design.md for why there is only a
single call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from greenq.protocol.keys import Keys


# How many seconds a completed chord is remembered, as in Celery. During this time, late copies of
# its parts change nothing.
_DONE_S = 300


# How a state relates to a state stored before it; lua/settle.lua uses the same names.

# A success, which nothing replaces.
KIND_SUCCESS: Final = "s"
# Another final state.
KIND_FINAL: Final = "f"
# The failure of a message that could not run. It replaces no final state, since its id may be that
# of another task.
KIND_UNRUN: Final = "u"
# A state that is not final.
KIND_PASSING: Final = "n"

# How the parts of a chord are kept: in a zset, by their places, or in a list, as they arrive.
PARTS_ORDERED: Final = "z"
PARTS_LISTED: Final = "l"


class StateWrite(NamedTuple):
    """A task's state, to be stored as its result.

    Attributes:
        key: the key that it is stored under, which is also the channel that it is announced on.
        rule: the letter of its kind, followed by the seconds until it expires (0 means never).
        payload: the encoded state.
    """

    key: str
    rule: str
    payload: bytes | str

    def of_unrun(self) -> StateWrite:
        """Return this state as that of a message that could not run; it replaces no final state."""
        return self._replace(rule=KIND_UNRUN + self.rule[1:])


class ChordPart(NamedTuple):
    """A part of a chord.

    Attributes:
        group: the key of its group.
        member: ``<task id>:<place>``; each member is counted once.
        place: the group index, or ``+inf``.
        value: the encoded state and result.
        rule: see `chord_rule`.
    """

    group: str
    member: str
    place: str
    value: bytes | str
    rule: str

    @property
    def claim(self) -> str:
        """The value of the chord's claim if this part is the last."""
        return claim_of(self.member)


class MessagePush(NamedTuple):
    """A message to be sent: the key of its list, the end of that list, and its text.

    With the side ``all``, `key` is the channel that the message is published on.
    """

    key: str
    side: str
    text: str | bytes


class Seal(NamedTuple):
    """A chord that begins: its group's key, the number of its parts, and how long it is kept."""

    group: str
    size: int
    seconds: int


class Addition(NamedTuple):
    """A task that joins a chord: the group's key, the task's id, and how long the chord is kept."""

    group: str
    task_id: str
    seconds: int


class Noted(NamedTuple):
    """What happens to a task, for the index of workflows.

    Attributes:
        workflow: the id of the workflow.
        seconds: how long the index keeps the workflow.
        state: the letter of the task's new state (`greenq.canvas.nodes`), or ``+`` when the sending
            of a part of the workflow begins, and ``-`` when it ends.
        times: when the task began and ended, in unix seconds, and its worker, if known.
        node: the other data of the node, as text; the first text that is not empty is kept.
        kept: the task's message, for a retry; "" for none.
    """

    workflow: str
    seconds: int
    task_id: str
    state: str
    times: str = ""
    node: str = ""
    kept: str | bytes = ""


class ChordClaim(NamedTuple):
    """A chord that one of its parts has completed: the group's key, and the part's claim."""

    group: str
    claim: str


def claim_of(member: str) -> str:
    """Return the value that this member writes as the chord's claim if it is the last."""
    return f"greenq {member}"


def chord_rule(ordered: bool, chord_seconds: int, group_seconds: int) -> str:
    """Return the rule of a chord's parts: whether they are ordered, and the keys' lifetimes."""
    return f"{PARTS_ORDERED if ordered else PARTS_LISTED}{chord_seconds} {group_seconds}"


class Continuation:
    """What else happens when a message of a workflow ends.

    Attributes:
        adds: tasks that join a chord before its parts are counted.
        parts: parts of chords to be counted.
        states: states of other tasks.
        pushes: messages to send.
        seals: chords that begin.
        clears: chords whose body is among the pushes, or has failed.
        frees: chords that other workers may now complete.
        index: the notes for the index, if workflows are indexed.
        written: functions that are called, in a separate greenlet, when the pushes are on the
            server.
        complete: called if the ending is withheld because a part was the last of its chord; the
            function then puts the ending that completes the chord into the outbox. Switches: no.
        refused: called with the reason if the server refuses the ending permanently. Switches: no.
    """

    __slots__ = (
        "adds", "clears", "complete", "frees", "index", "parts", "pushes", "refused", "seals",
        "states", "written",
    )  # fmt: skip

    def __init__(
        self,
        *,
        adds: Sequence[Addition] = (),
        parts: Sequence[ChordPart] = (),
        states: Sequence[StateWrite] = (),
        pushes: Sequence[MessagePush] = (),
        seals: Sequence[Seal] = (),
        clears: Sequence[ChordClaim] = (),
        frees: Sequence[ChordClaim] = (),
        index: Sequence[Noted] = (),
        written: Sequence[Callable[[], object]] = (),
        complete: Callable[[Any], object] | None = None,
        refused: Callable[[Any, str], object] | None = None,
    ) -> None:
        """Store the lists; a list that is not given is empty.

        Nothing is created for a list that is not given: a thousand parts of a chord that end
        together would have nine thousand empty lists, which the garbage collector would traverse
        again and again.
        """
        self.adds = adds
        self.parts = parts
        self.states = states
        self.pushes = pushes
        self.seals = seals
        self.clears = clears
        self.frees = frees
        self.index = index
        self.written = written
        self.complete = complete
        self.refused = refused

    def is_empty(self) -> bool:
        """Return whether nothing else happens."""
        return not (
            self.parts or self.pushes or self.states or self.seals
            or self.clears or self.frees or self.adds
        )  # fmt: skip

    def write(
        self, arguments: list[Any], goals: dict[str, int], results: list[str], *, looks: bool
    ) -> None:
        """Append the script's arguments, and add the goals and the keys of states that they name.

        If `looks` is true, chords are not cleared yet.
        """
        write = arguments.extend
        for listed in (self.adds, self.parts):
            arguments.append(len(listed))
            for item in listed:
                write(item)
        arguments.append(len(self.states))
        for state in self.states:
            results.append(state.key)
            write((state.rule, state.payload))
        arguments.append(len(self.pushes))
        for push in self.pushes:
            is_channel = push.side == "all"
            goal = push.key if is_channel else goals.setdefault(push.key, len(goals) + 1)
            write((goal, push.side, push.text))
        arguments.append(len(self.seals))
        for seal in self.seals:
            write(seal)
        arguments.append(len(self.clears))
        for clear in self.clears:
            write((*clear, "" if looks else _DONE_S))
        arguments.append(len(self.frees))
        for free in self.frees:
            write(free)

    def of_results(self) -> Continuation:
        """Return the part that is written first if results have a separate server."""
        return Continuation(
            adds=self.adds, parts=self.parts, states=self.states, seals=self.seals,
            clears=self.clears, frees=self.frees,
        )  # fmt: skip

    def of_broker(self) -> Continuation:
        """Return the part that is then written on the broker."""
        return Continuation(pushes=self.pushes, index=self.index)


def index_arguments(
    keys: Keys, noted: Iterable[tuple[int, Sequence[Noted]]]
) -> Iterator[str | bytes | int]:
    """Yield the script's arguments for the index; `noted` includes the numbers of the endings."""
    by_workflow: dict[str, list[tuple[int, Noted]]] = {}
    for number, items in noted:
        for item in items:
            by_workflow.setdefault(item.workflow, []).append((number, item))
    yield keys.workflows
    for workflow, found in by_workflow.items():
        yield from (keys.workflow(workflow), workflow, found[0][1].seconds, len(found))
        for number, item in found:
            yield from (number, *item[2:])
