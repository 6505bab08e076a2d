"""What the server shows of greenq's workers: who is alive, who has died, and their shared clock.

Any program that has a client may read this information.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from greenq.errors import OperationalError
from greenq.protocol.keys import DIRECT_SUFFIX
from greenq.protocol.mailbox import EXCHANGE
from greenq.transport.client import load_script
from greenq.transport.owner import Owner, here

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from greenq.protocol.keys import Keys
    from greenq.transport.client import Client

_LOOK_AROUND = load_script("look_around")
_RECYCLE = load_script("recycle")

# For how long a death is reported.
_GONE_S = 3600

# The timeout of each query. An election is decided after two seconds even without an answer.
_TIMEOUT_S = 2.0

# The only member of the clock's zset, and how long it is kept if no worker is left.
_MEMBER = "highest"
_KEPT_S = 7 * 24 * 3600


class Gone(NamedTuple):
    """A worker that died.

    Attributes:
        node: the worker's node name.
        for_s: how many seconds ago it died.
        moved: how many of its messages were requeued.
    """

    node: str
    for_s: float
    moved: int


class Roll(NamedTuple):
    """The workers that hold a lease, and those that no longer do.

    Attributes:
        living: for each node, how many more seconds its lease is valid.
        ended: for each node, how many seconds ago its lease ended, if the node has not been
            recovered yet.
        twins: node names that two workers share.
        gone: workers that died recently, latest first, without nodes that are alive again.
        skew_s: how far this machine's clock is ahead of the server's.
        queues: for each node with a lease, the queues that it takes from; nodes that have not
            reported any yet are omitted.
        strangers: the nodes of Celery workers that listen for commands, including any that were
            killed.
    """

    living: dict[str, float]
    ended: dict[str, float]
    twins: set[str]
    gone: list[Gone]
    skew_s: float
    queues: dict[str, list[str]]
    strangers: set[str]


def call_roll(client: Client, keys: Keys) -> Roll:
    """Ask the server, not the workers, which greenq workers are alive and which have died.

    Raises:
        OperationalError: the server cannot be reached, or refuses to answer.
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
        foreign, *texts = connection.try_pipeline(
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
    for owner, end, text in zip(owners, leases[1::2], texts, strict=True):
        left_s = float(end) - now
        if left_s <= 0 or owner.is_dead:
            ended[owner.node] = max(0.0, -left_s)
            continue
        if owner.node in living:
            twins.add(owner.node)
        else:
            living[owner.node] = left_s
        names = _parse_queues(text)
        if names is not None:
            queues[owner.node] = [*queues.get(owner.node, ()), *names]
    dead = {} if isinstance(gone, OperationalError) else _parse_dead(gone, now)
    there = living.keys() | ended.keys()
    return Roll(
        living,
        {node: ended[node] for node in ended.keys() - living.keys()},
        twins,
        [each for node, each in dead.items() if node not in there],
        asked_s - now,
        queues,
        _parse_strangers(foreign, keys.sep),
    )


def _parse_queues(text: Any) -> list[str] | None:
    """Parse the queues that a worker takes from; None if it has not reported any."""
    try:
        return [str(name) for name in json.loads(text)]
    except (ValueError, TypeError):
        return None


def _parse_strangers(members: list[bytes] | OperationalError, sep: str) -> set[str]:
    """Parse the nodes that are bound to the command exchange, as Celery's workers are."""
    if isinstance(members, OperationalError):
        # If this user is not allowed to check, assume that a Celery worker exists.
        return {""}
    queues = (member.decode(errors="replace").rpartition(sep)[2] for member in members)
    return {queue.removesuffix(f".{EXCHANGE}") for queue in queues}


def _parse_dead(entries: list[bytes], now: float) -> dict[str, Gone]:
    """Parse the list of deaths; only a node's last death counts."""
    found: dict[str, Gone] = {}
    for text in entries:
        try:
            each = json.loads(text)
            gone = Gone(str(each["node"]), now - float(each["at"]), int(each["moved"]))
        except (ValueError, TypeError, KeyError):
            # This entry was not written by greenq.
            continue
        if gone.for_s < _GONE_S:
            found.setdefault(gone.node, gone)
    return found


def look_around(client: Client, keys: Keys, clock: int) -> tuple[set[str], int]:
    """Return the nodes whose lease has not ended, and the highest clock that any node reported.

    Args:
        clock: this worker's clock, which the same call reports to the others.

    Raises:
        OperationalError: the server cannot be reached, or refuses to answer.
    """
    now_s, leases, highest = client.script(
        _LOOK_AROUND,
        [keys.leases, keys.clock],
        [clock, _MEMBER, _KEPT_S],
        timeout_s=_TIMEOUT_S,
    )
    living = {owner.node for owner in _parse_living(leases, float(now_s))}
    return living, int(float(highest))


def nodes_here(client: Client, keys: Keys) -> dict[int, str]:
    """Return the nodes of this machine whose lease is valid, by process id.

    Raises:
        OperationalError: the server cannot be reached, or refuses to answer.
    """
    with client.pooled(_TIMEOUT_S) as connection:
        seconds, leases = connection.pipeline(
            [("TIME",), ("ZRANGE", keys.leases, 0, -1, "WITHSCORES")]
        )
    owners = _parse_living(leases, float(seconds[0]))
    machine = here()
    return {owner.pid: owner.node for owner in owners if machine and owner.where == machine}


def count_peers(client: Client, keys: Keys, queues: Collection[str]) -> int:
    """Return how many workers with a lease take from exactly these queues.

    The private queue that each worker may have (`worker_direct`) is not counted.

    Raises:
        OperationalError: the server cannot be reached, or refuses to answer.
    """
    clock, leases = client.pipeline([("TIME",), ("ZRANGE", keys.leases, 0, -1, "WITHSCORES")])
    owners = _parse_living(leases, float(clock[0]))
    if not owners:
        return 0
    texts = client.pipeline([("HGET", keys.owner(each.incarnation), "queues") for each in owners])
    wanted = shared_queues(queues)
    return sum(shared_queues(_parse_queues(text) or ()) == wanted for text in texts)


def shared_queues(queues: Iterable[str]) -> frozenset[str]:
    """Return these queues without the private queues of single workers."""
    return frozenset(queue for queue in queues if not queue.endswith(DIRECT_SUFFIX))


class Recycling:
    """The workers of one group (those with the same queues) that are restarting."""

    def __init__(
        self, client: Client, keys: Keys, node: str, queues: Callable[[], Collection[str]]
    ) -> None:
        """Act for `node`, which takes from the queues that `queues` returns."""
        self._client = client
        self._keys = keys
        self._node = node
        self._queues = queues

    def claim(self, most: int, hold_s: float) -> list[str]:
        """Ask to restart; return the restarting nodes to wait for, if any. Switches: yes.

        Args:
            most: how many workers of the group may restart at once; if the group has several
                workers, at least one always keeps running.
            hold_s: how long the restart is counted unless `returned` is called first.

        Raises:
            OperationalError: the server cannot be reached, or refuses.
        """
        peers = count_peers(self._client, self._keys, self._queues())
        allowed = max(1, min(most, peers - 1))
        away = self._client.script(_RECYCLE, [self._key()], [self._node, allowed, hold_s])
        return [node.decode(errors="replace") for node in away]

    def returned(self) -> None:
        """Record that this node has restarted. Switches: yes.

        Raises:
            OperationalError: the server cannot be reached, or refuses.
        """
        self._client.call("ZREM", self._key(), self._node)

    def _key(self) -> str:
        return self._keys.recycling(shared_queues(self._queues()))


def _parse_living(leases: list[bytes], now: float) -> list[Owner]:
    ends = zip(leases[::2], leases[1::2], strict=True)
    living = [member for member, end in ends if float(end) > now]
    return [Owner.parse(member.decode(errors="replace")) for member in living]
