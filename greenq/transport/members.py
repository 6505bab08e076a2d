"""What the live workers of greenq know of each other by the server: who they are, and their clock.

Anybody may ask who has a client.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from greenq.errors import OperationalError
from greenq.protocol.mailbox import EXCHANGE
from greenq.transport.owner import Owner

if TYPE_CHECKING:
    from greenq.protocol.keys import Keys
    from greenq.transport.client import Client

# A death is told of for so long.
_GONE_S = 3600

# An election is decided without an answer after two seconds.
_TIMEOUT_S = 2.0

# The one member of the clock's set, and how long that is kept when nobody is left.
_MEMBER = "highest"
_KEPT_S = 7 * 24 * 3600


class Gone(NamedTuple):
    """A worker that died.

    Attributes:
        node: its name.
        for_s: since when, seconds.
        moved: how many messages were given back.
    """

    node: str
    for_s: float
    moved: int


class Roll(NamedTuple):
    """Who holds a lease, and who does no longer.

    Attributes:
        living: by node, for how many seconds its lease still holds.
        ended: by node, since how many seconds its lease has ended, though nobody has seen to it.
        twins: nodes of which there are two.
        gone: those that died lately, the latest first, without nodes that live again.
        skew_s: how much this machine's clock is ahead of the server's.
        queues: by node of those whose lease holds, what they take from; without those that have
            not told yet.
        strangers: the nodes of Celery's workers that hear commands; those that were killed stay
            among them.
    """

    living: dict[str, float]
    ended: dict[str, float]
    twins: set[str]
    gone: list[Gone]
    skew_s: float
    queues: dict[str, list[str]]
    strangers: set[str]


def call_roll(client: Client, keys: Keys) -> Roll:
    """Ask the server, and no worker, who is there and who was; greenq's workers only.

    Raises:
        OperationalError: the server is lost, or refuses to tell.
    """
    with client.pooled(_TIMEOUT_S) as connection:
        before_s = time.time()
        clock, leases, gone = connection.try_pipeline(
            [
                ("TIME",),
                ("ZRANGE", keys.leases, 0, -1, "WITHSCORES"),
                ("LRANGE", keys.gone, 0, -1),
            ]
        )
        asked_s = (before_s + time.time()) / 2
        for answer in (clock, leases):
            if isinstance(answer, OperationalError):
                raise answer
        owners = [Owner.parse(member.decode(errors="replace")) for member in leases[::2]]
        foreign, *told = connection.try_pipeline(
            [
                ("SMEMBERS", keys.binding(EXCHANGE)),
                *(("HGET", keys.owner(owner.incarnation), "queues") for owner in owners),
            ]
        )
    now = int(clock[0]) + int(clock[1]) / 1e6
    living: dict[str, float] = {}
    ended: dict[str, float] = {}
    twins: set[str] = set()
    queues: dict[str, list[str]] = {}
    for owner, end, text in zip(owners, leases[1::2], told, strict=True):
        left_s = float(end) - now
        if left_s <= 0 or owner.is_dead:
            ended[owner.node] = max(0.0, -left_s)
            continue
        if owner.node in living:
            twins.add(owner.node)
        else:
            living[owner.node] = left_s
        names = _told(text)
        if names is not None:
            queues[owner.node] = [*queues.get(owner.node, ()), *names]
    dead = {} if isinstance(gone, OperationalError) else _dead(gone, now)
    there = living.keys() | ended.keys()
    return Roll(
        living,
        {node: ended[node] for node in ended.keys() - living.keys()},
        twins,
        [each for node, each in dead.items() if node not in there],
        asked_s - now,
        queues,
        _strangers(foreign, keys.sep),
    )


def _told(text: Any) -> list[str] | None:
    """Read the queues that a worker takes from; None if it has not told."""
    try:
        return [str(name) for name in json.loads(text)]
    except (ValueError, TypeError):
        return None


def _strangers(members: list[bytes] | OperationalError, sep: str) -> set[str]:
    """Read the nodes that are bound to the exchange of commands, as Celery's are."""
    if isinstance(members, OperationalError):
        # Who may not ask must reckon with somebody.
        return {""}
    queues = (member.decode(errors="replace").rpartition(sep)[2] for member in members)
    return {queue.removesuffix(f".{EXCHANGE}") for queue in queues}


def _dead(told: list[bytes], now: float) -> dict[str, Gone]:
    """Read the list of the dead; of each node its last death counts."""
    found: dict[str, Gone] = {}
    for text in told:
        try:
            each = json.loads(text)
            gone = Gone(str(each["node"]), now - float(each["at"]), int(each["moved"]))
        except (ValueError, TypeError, KeyError):
            # Somebody else's.
            continue
        if gone.for_s < _GONE_S:
            found.setdefault(gone.node, gone)
    return found


def look_around(client: Client, keys: Keys, clock: int) -> tuple[set[str], int]:
    """Return the nodes whose lease has not ended, and the highest clock that any of them has told.

    Args:
        clock: this worker's, which the others are told in the same round trip.

    Raises:
        OperationalError: the server is lost, or refuses to tell who is there.
    """
    with client.pooled(_TIMEOUT_S) as connection:
        clock_now, leases, *rest = connection.try_pipeline(
            [
                ("TIME",),
                ("ZRANGE", keys.leases, 0, -1, "WITHSCORES"),
                # The larger of both numbers stays.
                ("ZADD", keys.clock, "GT", clock, _MEMBER),
                ("EXPIRE", keys.clock, _KEPT_S),
                ("ZSCORE", keys.clock, _MEMBER),
            ]
        )
    for answer in (clock_now, leases):
        if isinstance(answer, OperationalError):
            raise answer
    # A server without memory does not take the clock; that must not hide who is there.
    highest = 0 if isinstance(rest[-1], OperationalError) else int(float(rest[-1] or 0))
    return _living(leases, float(clock_now[0])), highest


def _living(leases: list[bytes], now: float) -> set[str]:
    ends = zip(leases[::2], leases[1::2], strict=True)
    living = [member for member, end in ends if float(end) > now]
    return {Owner.parse(member.decode(errors="replace")).node for member in living}
