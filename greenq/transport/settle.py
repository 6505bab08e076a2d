"""Settling messages: states, moves and acknowledgements in one script call, all or nothing.

Events about them are published at the end of the same call.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from greenq.log import Repeated
from greenq.transport.client import load_script
from greenq.transport.dead_letters import DEAD_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from greenq.protocol.keys import Keys
    from greenq.transport.client import Client, Connection

_log = logging.getLogger(__name__)

SETTLE = load_script("settle")

# Any settling call may find a dead-letter list nearly full; their reports share one limit of log
# lines.
_crowded = Repeated(_log)

# The tag of a message that is known not to be held.
_NOT_HELD = "-"

# What to do with a message: the letters of the script.
Action = Literal["a", "b", "k", "l", "m"]


class StateWrite(NamedTuple):
    """A task's state on its way to the results.

    Attributes:
        key: where it is stored, and the channel on which it is announced.
        rule: ``s`` for a success, ``f`` for another final state, ``u`` for the failure of a message
            that could not run, ``n`` for any other, followed by the seconds until it expires, 0
            for never.
        payload: the encoded state.
    """

    key: str
    rule: str
    payload: bytes | str

    def of_unrun(self) -> StateWrite:
        """Return it as the failure of a message that could not run: it replaces no final state."""
        return self._replace(rule="u" + self.rule[1:])


class Move(NamedTuple):
    """A move of one reserved message.

    `side` is the end of the list ``key``, or a score in the zset ``key``; for a list of dead
    letters it is ``dead`` and the limits of that list (`DeadLimits.side`).
    """

    tag: str
    key: str
    side: str | float
    text: str | bytes


class Publication(NamedTuple):
    """A text to publish on a channel."""

    channel: str
    text: bytes | str


class Entry:
    """What to write when a message ends or changes its place; see lua/settle.lua.

    Attributes:
        tag: the delivery tag whose record makes it valid; "" for a message without a record.
        action: what to do with the message.
        result: a state to store and announce.
        move: where it goes.
        written: called with True when all of it is on the server, and with False when the message
            was no longer held; None if nobody waits for that.
        about: the message's name in the log; None logs nothing if it is not held.
    """

    __slots__ = ("about", "action", "move", "result", "tag", "written")

    def __init__(
        self,
        tag: str,
        action: Action = "a",
        result: StateWrite | None = None,
        move: Move | None = None,
        written: Callable[[bool], object] | None = None,
        about: object = None,
    ) -> None:
        """Keep the parts; without a move or another action, the message is acknowledged."""
        self.tag = tag
        self.action: Action = "m" if move else action
        self.result = result
        self.move = move
        self.written = written
        self.about = about

    @classmethod
    def moving(cls, move: Move, result: StateWrite | None = None) -> Entry:
        """Move a message, with a state to store."""
        return cls(move.tag, result=result, move=move)


class Settled(NamedTuple):
    """The outcome of a call.

    Attributes:
        not_held: the positions of the entries whose message was not held.
        unpublished: why something could not be published, "" if all was.
        misplaced: the target of a move that is not a queue, "" if all are; its messages stay
            reserved.
        stuck: the positions of the entries whose message stays reserved for that reason.
    """

    not_held: frozenset[int]
    unpublished: str
    misplaced: str
    stuck: frozenset[int] = frozenset()


class Guard(NamedTuple):
    """On whose behalf messages are settled.

    Attributes:
        incarnation: their owner; "" when they have none.
        member: the owner's member of the leases, when others recover its messages.
        score: the score that its ended lease must still have then.
    """

    incarnation: str
    member: str = ""
    score: str = ""

    @property
    def asks(self) -> str:
        """The script's argument for this rule."""
        return self.score or ("own" if self.incarnation else "any")


def settle_arguments(
    keys: Keys,
    entries: Sequence[Entry],
    publications: Sequence[Publication] = (),
    *,
    guard: Guard | None,
) -> tuple[list[str], list[Any]]:
    """Return the keys and arguments of `SETTLE`; without a guard there are only states.

    States alone name no other keys, so they suit a server that holds nothing else.
    """
    goals: dict[str, int] = {}
    results: list[str] = []
    arguments: list[Any] = [
        *(len(entries), 0, len(publications), DEAD_LIMIT),
        *(("", "") if guard is None else (guard.asks, guard.member)),
        *[entry.tag for entry in entries],
    ]
    for entry in entries:
        result, move = entry.result, entry.move
        if result is None:
            arguments.append(f"{entry.action}-")
        else:
            results.append(result.key)
            arguments += (entry.action + result.rule, result.payload)
        if move is not None:
            where = move.side if isinstance(move.side, str) else f"{move.side:.6f}"
            arguments += (goals.setdefault(move.key, len(goals) + 1), where, move.text)
    for channel, text in publications:
        arguments += (channel, text)
    if guard is None:
        arguments[1] = -1
        return results, arguments
    arguments[1] = len(goals)
    owner = guard.incarnation
    names = [
        *(keys.unacked, keys.unacked_index, keys.owner(owner), keys.begun(owner), keys.leases),
        *goals,
        *results,
    ]
    return names, arguments


def settle(
    server: Client | Connection,
    keys: Keys,
    entries: Sequence[Entry] = (),
    publications: Sequence[Publication] = (),
    *,
    guard: Guard | None = None,
    results: Client | Connection | None = None,
) -> Settled:
    """Run `SETTLE`; entries whose message is not held change nothing. Switches: yes.

    Args:
        guard: on whose behalf; None when there are only states.
        results: the results server, if separate. Then the broker is asked first which messages are
            held, and their states are stored before they are moved or acknowledged; a lease that
            ends between these steps goes unnoticed.

    Raises:
        ServerError: FORGOTTEN or LAPSED, when nothing was done; anything else stopped the script
            where it was.
        OperationalError: it may or may not have been carried out; repeating it is harmless.
    """
    if results is not None and any(entry.result is not None for entry in entries):
        _store_apart(server, keys, entries, guard, results)
        entries = [
            Entry(entry.tag, entry.action, move=entry.move, written=entry.written)
            for entry in entries
        ]
    answer = server.script(SETTLE, *settle_arguments(keys, entries, publications, guard=guard))
    unpublished, misplaced, crowded, *numbers = answer
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
    )


def _store_apart(
    server: Client | Connection,
    keys: Keys,
    entries: Sequence[Entry],
    guard: Guard | None,
    results: Client | Connection,
) -> None:
    """Store the states of held messages on their own server."""
    stating = [entry for entry in entries if entry.result is not None]
    looks = [Entry(entry.tag, "k") for entry in stating]
    _, _, _, *numbers = server.script(SETTLE, *settle_arguments(keys, looks, guard=guard))
    gone = {number - 1 for number in numbers}
    states = [
        Entry(_NOT_HELD if i in gone else "", "k", result=entry.result)
        for i, entry in enumerate(stating)
    ]
    results.script(SETTLE, *settle_arguments(keys, states, guard=None))
