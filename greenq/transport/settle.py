"""Settling messages: states, moves and acknowledgements in one script call, all or nothing.

The same call ends by publishing the events about these messages.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from greenq.transport.client import load_script
from greenq.transport.continuation import Continuation, index_arguments
from greenq.transport.continuation import StateWrite as StateWrite
from greenq.transport.dead_letters import DEAD_LIMIT
from greenq.utils.log import Repeated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from greenq.protocol.keys import Keys
    from greenq.transport.client import Client, Connection

_log = logging.getLogger(__name__)

SETTLE = load_script("settle")

# Any settling call may find a dead-letter list nearly full; all of these reports share one limit on
# log lines.
_crowded = Repeated(_log)

# The tag of a message known not to be held.
_NOT_HELD = "-"

# The prefix of the text that says why the index of workflows could not be written.
INDEX = "INDEX "

# What to do with a message; lua/settle.lua lists these actions under the same names. The values are
# single letters, since one is sent for each message that ends. If the message has a continuation,
# the letter is a capital.

# The message is finished.
ACKNOWLEDGE: Final = "a"
# The message is acknowledged before its run; a stub remains, which the outcome will belong to.
BEGIN: Final = "b"
# The same for a message of a workflow, whose record also remains, since other tasks
# wait for its end.
BEGIN_STEP: Final = "e"
# The message goes back to its queue, unless it has begun.
REQUEUE: Final = "g"
# The message stays as it is: there is only a state to store.
KEEP: Final = "k"
# The message is about to run alone in its worker; without a tag, no message runs alone any longer.
RUN_ALONE: Final = "l"
# The message is moved elsewhere.
MOVE: Final = "m"

Action = Literal["a", "b", "e", "g", "k", "l", "m"]


class Move(NamedTuple):
    """A move of a reserved message.

    `side` is the end of the list ``key``, or a score in the zset ``key``. For a list of dead
    letters, `side` is ``dead`` and the limits of that list (`DeadLimits.side`).
    """

    tag: str
    key: str
    side: str | float
    text: str | bytes


class Publication(NamedTuple):
    """A text to publish on a channel."""

    channel: str
    text: bytes | str


class Settlement:
    """The writes for a message that ends or is moved; see lua/settle.lua.

    Attributes:
        tag: the delivery tag whose record makes the settlement valid; "" for a message without a
            record.
        action: the letter that says what to do with the message.
        result: a state to store and announce.
        move: where to move the message.
        written: called with True when everything is on the server, and with False if the message
            was no longer held; None if no caller waits for this.
        about: names the message in the log; None means that nothing is logged if the message is not
            held.
        workflow: what else happens when the message ends; None for nothing else.
    """

    __slots__ = ("about", "action", "move", "result", "tag", "workflow", "written")

    def __init__(
        self,
        tag: str,
        action: Action = ACKNOWLEDGE,
        result: StateWrite | None = None,
        move: Move | None = None,
        written: Callable[[bool], object] | None = None,
        about: object = None,
        workflow: Continuation | None = None,
    ) -> None:
        """Store the parts; if there is no move or other action, the message is acknowledged."""
        self.tag = tag
        self.action: Action = MOVE if move and action != REQUEUE else action
        self.result = result
        self.move = move
        self.written = written
        self.about = about
        self.workflow = workflow

    @classmethod
    def moving(
        cls, move: Move, result: StateWrite | None = None, workflow: Continuation | None = None
    ) -> Settlement:
        """Return the settlement that moves a message, and stores a state if there is one."""
        return cls(move.tag, result=result, move=move, workflow=workflow)


class Settled(NamedTuple):
    """The outcome of a call to `settle`.

    Attributes:
        not_held: the positions of the entries whose message was not held.
        unpublished: why a publication failed or, after `INDEX`, why the index of workflows could
            not be written; "" if neither failed.
        misplaced: a target of moves that is not a queue, so the messages for it stay reserved; ""
            if all targets are queues.
        stuck: the positions of the entries whose message stays reserved for that reason.
        withheld: the positions of the entries that complete a chord: only their states are stored,
            and their workflow must then complete the chord.
        void: the positions of the entries that send nothing, because another worker has completed
            their chord.
    """

    not_held: frozenset[int]
    unpublished: str
    misplaced: str
    stuck: frozenset[int] = frozenset()
    withheld: frozenset[int] = frozenset()
    void: frozenset[int] = frozenset()


class Fence(NamedTuple):
    """The condition for settling messages: on whose behalf, and with which valid lease.

    Attributes:
        incarnation: the messages' owner; "" if they have none.
        member: the owner's member of the leases, if others recover its messages.
        score: the score that this owner's ended lease must still have.
    """

    incarnation: str
    member: str = ""
    score: str = ""

    @property
    def asks(self) -> str:
        """The script's argument for this fence."""
        return self.score or ("own" if self.incarnation else "any")


def settle_arguments(
    keys: Keys,
    entries: Sequence[Settlement],
    publications: Sequence[Publication] = (),
    *,
    fence: Fence | None,
    looks: bool = False,
) -> tuple[list[str], list[Any]]:
    """Return the keys and arguments of `SETTLE`; without a fence, the entries have only states.

    A call with only states uses no other keys, so it suits a server that stores only results. If
    `looks` is true, no chord is cleared yet.
    """
    goals: dict[str, int] = {}
    results: list[str] = []
    arguments: list[Any] = [
        *(len(entries), 0, len(publications), DEAD_LIMIT),
        *(("", "") if fence is None else (fence.asks, fence.member)),
        *[entry.tag for entry in entries],
    ]
    is_indexed = False
    for entry in entries:
        result, move, workflow = entry.result, entry.move, entry.workflow
        action = entry.action if workflow is None else entry.action.upper()
        if result is None:
            arguments.append(f"{action}-")
        else:
            results.append(result.key)
            arguments += (action + result.rule, result.payload)
        if move is not None:
            where = move.side if isinstance(move.side, str) else f"{move.side:.6f}"
            arguments += (goals.setdefault(move.key, len(goals) + 1), where, move.text)
        if workflow is not None:
            workflow.write(arguments, goals, results, looks=looks)
            is_indexed = is_indexed or bool(workflow.index)
    for channel, text in publications:
        arguments += (channel, text)
    if is_indexed:
        noted = [
            (number, entry.workflow.index)
            for number, entry in enumerate(entries, 1)
            if entry.workflow is not None
        ]
        arguments += index_arguments(keys, noted)
    if fence is None:
        arguments[1] = -1
        return results, arguments
    arguments[1] = len(goals)
    owner = fence.incarnation
    return [*_keys_of(keys, owner), *goals, *results], arguments


@lru_cache(maxsize=100)
def _keys_of(keys: Keys, owner: str) -> tuple[str, ...]:
    """Return the keys of an owner's messages, which each settling call needs."""
    return keys.unacked, keys.unacked_index, keys.owner(owner), keys.begun(owner), keys.leases


def settle(
    server: Client | Connection,
    keys: Keys,
    entries: Sequence[Settlement] = (),
    publications: Sequence[Publication] = (),
    *,
    fence: Fence | None = None,
    results: Client | Connection | None = None,
) -> Settled:
    """Run `SETTLE`; entries whose message is not held have no effect. Switches: yes.

    Args:
        fence: on whose behalf to settle; None if there are only states.
        results: the results server, if separate. In that case the broker is asked first which
            messages are held, and their states are stored before they are moved or acknowledged; a
            lease that ends between these steps goes unnoticed.

    Raises:
        ServerError: FORGOTTEN or LAPSED, if nothing was done; any other error stopped the script
            midway.
        OperationalError: the call may or may not have been carried out; repeating it is harmless.
    """
    if results is not None and any(entry.result or entry.workflow for entry in entries):
        return _settle_apart(server, keys, entries, publications, fence, results)
    arguments = settle_arguments(keys, entries, publications, fence=fence)
    return _answered(server.script(SETTLE, *arguments))


def _answered(answer: list[Any]) -> Settled:
    """Read the script's reply."""
    unpublished, misplaced, crowded, *numbers = answer
    withheld: frozenset[int] = frozenset()
    void: frozenset[int] = frozenset()
    if numbers and isinstance(numbers[-1], list):
        *numbers, first, second = numbers
        withheld = frozenset(number - 1 for number in first)
        void = frozenset(number - 1 for number in second)
    if crowded:
        _crowded.log(
            "dead letters are close to their limit, and the oldest are dropped first: %s; inspect "
            "them (greenq dead list), then replay or purge them",
            crowded.decode(errors="replace"),
        )
    return Settled(
        frozenset(number - 1 for number in numbers if number > 0),
        unpublished.decode(errors="replace"),
        misplaced.decode(errors="replace"),
        frozenset(-number - 1 for number in numbers if number < 0),
        withheld,
        void,
    )


def _settle_apart(
    server: Client | Connection,
    keys: Keys,
    entries: Sequence[Settlement],
    publications: Sequence[Publication],
    fence: Fence | None,
    results: Client | Connection,
) -> Settled:
    """Settle with a separate server for results.

    First the states of held messages and the parts of chords are written. Then everything else is
    written on the broker. Finally, each chord whose body was sent by that write is cleared.
    """
    withheld, void = _store_apart(server, keys, entries, fence, results)
    left = [_of_broker(entry, i in withheld, i in void) for i, entry in enumerate(entries)]
    answer = server.script(SETTLE, *settle_arguments(keys, left, publications, fence=fence))
    settled = _answered(answer)
    over = withheld | void | settled.not_held | settled.stuck
    clears = [
        Settlement("", KEEP, workflow=Continuation(clears=entry.workflow.clears))
        for i, entry in enumerate(entries)
        if entry.workflow is not None and entry.workflow.clears and i not in over
    ]
    if clears:
        results.script(SETTLE, *settle_arguments(keys, clears, fence=None))
    return settled._replace(withheld=withheld - settled.not_held, void=void)


def _of_broker(entry: Settlement, withheld: bool, void: bool) -> Settlement:
    """Return what the broker must still do for an entry after its state has been stored."""
    if withheld:
        return Settlement(entry.tag, KEEP)
    workflow = None
    if entry.workflow is not None:
        index = entry.workflow.index
        workflow = Continuation(index=index) if void else entry.workflow.of_broker()
    return Settlement(
        entry.tag, entry.action, move=entry.move, written=entry.written, workflow=workflow
    )


def _store_apart(
    server: Client | Connection,
    keys: Keys,
    entries: Sequence[Settlement],
    fence: Fence | None,
    results: Client | Connection,
) -> tuple[frozenset[int], frozenset[int]]:
    """Store the states and parts of held messages on the results server.

    Returns:
        The positions of the entries that are withheld, and of those whose chord another worker has
        completed.
    """
    places = [i for i, entry in enumerate(entries) if entry.result or entry.workflow]
    looks = [Settlement(entries[i].tag, KEEP) for i in places]
    looked = _answered(server.script(SETTLE, *settle_arguments(keys, looks, fence=fence)))
    states = []
    for number, i in enumerate(places):
        tag = _NOT_HELD if number in looked.not_held else ""
        workflow = entries[i].workflow
        states.append(
            Settlement(
                tag, KEEP, result=entries[i].result, workflow=workflow and workflow.of_results()
            )
        )
    arguments = settle_arguments(keys, states, fence=None, looks=True)
    settled = _answered(results.script(SETTLE, *arguments))
    return (
        frozenset(places[i] for i in settled.withheld),
        frozenset(places[i] for i in settled.void),
    )
