"""How messages end: results, moves and acknowledgements in one script call, all or nothing.

What is to be told of them, events, is published behind them in the same call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from greenq.transport.client import load_script
from greenq.transport.dead import DEAD_LIMIT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from greenq.protocol.keys import Keys
    from greenq.transport.client import Client, Connection

SETTLE = load_script("settle")


class Stored(NamedTuple):
    """A task's state on its way to the results.

    `expiry` is the seconds until it expires as text, 0 for never, with a ! in front if it must not
    replace a success.
    """

    key: str
    expiry: str
    payload: bytes | str


class Move(NamedTuple):
    """One reserved message on its way elsewhere.

    `side` is the end of the list ``key`` (``dead``: of a dead-letter list), or a score in the zset
    ``key``. A message without a record that reserves it has the tag "".
    """

    tag: str
    key: str
    side: Literal["next", "last", "dead"] | float
    text: str | bytes


class Publication(NamedTuple):
    """A text to publish on a channel."""

    channel: str
    text: bytes | str


def settle_arguments(
    keys: Keys,
    results: Sequence[Stored] = (),
    moves: Sequence[Move] = (),
    acks: Sequence[str] = (),
    news: Sequence[Publication] = (),
) -> tuple[list[str], list[Any]]:
    """Return the keys and arguments of `SETTLE`.

    Results alone name no other key, for a server that holds nothing else.
    """
    goals = list(dict.fromkeys(move.key for move in moves))
    names = [each.key for each in results]
    if moves or acks:
        names += (keys.unacked, keys.unacked_index, *goals)
    arguments: list[Any] = [len(results), len(moves), len(news), DEAD_LIMIT]
    for _, expiry, payload in results:
        arguments += (expiry, payload)
    for tag, key, side, text in moves:
        where = side if isinstance(side, str) else f"{side:.6f}"
        arguments += (tag, goals.index(key) + 1, where, text)
    for channel, text in news:
        arguments += (channel, text)
    return names, [*arguments, *acks]


def settle(
    server: Client | Connection,
    keys: Keys,
    results: Sequence[Stored] = (),
    moves: Sequence[Move] = (),
    acks: Sequence[str] = (),
    news: Sequence[Publication] = (),
) -> str:
    """Carry out `SETTLE`; return why something could not be published, "" if all was.

    Switches: yes.

    Raises:
        ServerError: WRONGTYPE, when a move's goal is of another type and all else is done; anything
            else stopped the script where it was.
        OperationalError: it may or may not have been carried out; repeating it is harmless.
    """
    arguments = settle_arguments(keys, results, moves, acks, news)
    _moved, refused = server.script(SETTLE, *arguments)
    return str(refused.decode())
