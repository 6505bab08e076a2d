"""Leases: which worker owns reserved messages, and which workers have died.

A worker incarnation owns all records whose delivery tag begins with its name. Its lease is one
member of a zset, and is renewed about every second; nothing is written per task. When a lease ends,
other workers recover the messages (recovery.py).
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from greenq.transport.client import load_script
from greenq.transport.fetch import BLOCKING_QUEUES, KNOWN_S, in_portions, tag_number
from greenq.transport.owner import Owner
from greenq.transport.schedule_store import Lead
from greenq.transport.settle import Fence, settle

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    from greenq.transport.broker import Broker
    from greenq.transport.client import Connection
    from greenq.transport.recovery import Recovery
    from greenq.transport.schedule_store import LeadCall
    from greenq.transport.settle import Publication, Settlement

_log = logging.getLogger(__name__)

_LEASE = load_script("lease")
_LEAVE = load_script("leave")
_RELAY = load_script("relay")

# The maximum number of parked messages that one script call moves, so that the call blocks the
# server for at most a few ms.
_PROMOTED = 1000

# How long a worker holds the mutex. Celery's workers use the same mutex, so that they and greenq's
# workers do not scan at the same time. The mutex expires soon, since a process that dies while
# holding it must not keep the others waiting; moving messages is safe even without it.
_MUTEX_MS = 10_000

# How long the server remembers that an owner has left.
_REMEMBERED_S = 3600


class Renewal(NamedTuple):
    """The server's reply to a lease renewal.

    Attributes:
        held: False if the lease had ended before the renewal, or did not exist.
        server_time: the server's time, in unix seconds.
        work: True if this worker's queues or inboxes have messages.
        next_due: when the next parked message of this worker's queues is due, in unix seconds.
        expired: the owners whose lease has ended.
        paused: the queues that are paused for the whole cluster.
        unpublished: why `publication` could not be published; "" if it was.
        first_unused: the number of this owner's first unused tag; 0 if the server does not know
            this owner, because the owner is new or the server has lost its data.
        question: the challenge that the owner must return when it registers; "" if the server knows
            the owner.
        relays: True if this worker should relay messages from lists that no worker is waiting on.
        lead: the reply to this worker's beat; None if the beat has not asked, or was refused.
    """

    held: bool
    server_time: float
    work: bool
    next_due: float | None
    expired: list[Owner]
    paused: frozenset[str] = frozenset()
    unpublished: str = ""
    first_unused: int = 0
    question: str = ""
    relays: bool = False
    lead: Lead | None = None


class _Looks(NamedTuple):
    """The data that a renewal checks in addition to the leases.

    Attributes:
        queues: this worker's queues.
        keys: the keys of the renewal.
        steps: the lists of each queue in order, for the relay.
        unwatched: the lists among `steps` that no worker is waiting on.
    """

    queues: tuple[str, ...]
    keys: list[str]
    steps: list[str]
    unwatched: list[str]


class Leases:
    """The lease of one owner, and its view of other owners; for a single thread or greenlet.

    Only `set_queues` and `announce_queues` may be called from another thread or greenlet.
    """

    def __init__(
        self,
        connection: Connection,
        broker: Broker,
        owner: Owner,
        *,
        queues: Sequence[str],
        lease_s: float,
        visibility_timeout_s: float,
        recovery: Recovery,
    ) -> None:
        """Act for `owner` over `connection`.

        Args:
            queues: the queues that this worker takes from, and whose parked messages it promotes.
            lease_s: how long a lease lasts after its renewal.
            visibility_timeout_s: the age at which records that no lease covers are requeued.
            recovery: recovers messages that other workers have left behind.
        """
        self.connection = connection
        self.recovery = recovery
        self._broker = broker
        self._keys = broker.keys
        self._owner = owner
        self.incarnation = owner.incarnation
        self._looks = self._looks_at(queues)
        # The queues to report to the server, and the queues that it already knows.
        self._queues_json = self._reported_json = ""
        self._lease_s = lease_s
        self._visibility_timeout_s = visibility_timeout_s

    def set_queues(self, queues: Iterable[str]) -> None:
        """Check these queues from the next renewal on; any thread may call this.

        If a queue is dropped, its parked messages are promoted by other workers that take from it.
        """
        self._looks = self._looks_at(queues)
        # Set the lists before `noticed`: `relay` first resets `noticed`, then reads the lists. It
        # must be set here, because the server has not announced changes in the new lists yet.
        self.connection.noticed = True

    def announce_queues(self, queues: Iterable[str]) -> None:
        """Report the worker's queues, paused or not, to the server from the next renewal on.

        The server then knows which workers take from a queue, even if some are blocked or silent.
        Any thread may call this.
        """
        self._queues_json = json.dumps(list(queues))

    def _looks_at(self, queues: Iterable[str]) -> _Looks:
        keys, names = self._keys, tuple(dict.fromkeys(queues))
        lists = [key for name in names for key in (keys.inbox(name), *keys.queue_steps(name))]
        parked = [keys.eta(name) for name in names]
        fixed = [keys.leases, keys.owner(self.incarnation), keys.paused, keys.relay(names)]
        steps = [key for name in names for key in keys.queue_steps(name)]
        waited = {keys.queue(name) for name in names[:BLOCKING_QUEUES]}
        unwatched = [key for key in steps if key not in waited]
        return _Looks(names, [*fixed, *parked, *lists], steps, unwatched)

    def renew(
        self,
        publication: Publication | None = None,
        *,
        would_relay: bool = False,
        lead: LeadCall | None = None,
    ) -> Renewal:
        """Renew the lease, publish `publication`, and read the state of other workers.

        Among the workers with the same queues, only one relays. `lead` asks for the lead of this
        worker's beat.
        """
        looks = self._looks
        would = int(would_relay and bool(looks.unwatched))
        queues = self._queues_json
        unreported = "" if queues == self._reported_json else queues
        keys = looks.keys
        args: list[Any] = [str(self._owner), self._lease_s, len(looks.queues), would, unreported]
        args += publication or ("", "")
        if lead is not None:
            keys = [*keys, lead.leader, lead.changes]
            args += [lead.who, int(lead.term_s * 1000)]
        (
            held, now, work, due, paused, unpublished, first_unused, question, relays, led, *expired
        ) = self.connection.script(_LEASE, keys, args)  # fmt: skip
        # A server that does not know this owner has also lost the owner's queues.
        self._reported_json = queues if first_unused else ""
        return Renewal(
            held=bool(held),
            server_time=float(now),
            work=bool(work),
            next_due=float(due) if due else None,
            expired=[Owner.parse(member.decode()) for member in expired],
            paused=frozenset(queue.decode(errors="replace") for queue in paused),
            unpublished=unpublished.decode(errors="replace"),
            first_unused=first_unused,
            question=question.decode(),
            relays=bool(relays),
            lead=_read_lead(float(now), led),
        )

    def changes(self, key: str) -> int:
        """Return how many times beat entries have changed, and request the next announcement.

        Raises:
            ServerError, AccessRefused: this server does not announce changes.
        """
        connection = self.connection
        connection.watched, connection.changed = key, False
        *_, number = connection.pipeline(
            [("CLIENT", "TRACKING", "ON", "OPTIN"), ("CLIENT", "CACHING", "YES"), ("GET", key)]
        )
        return int(number or 0)

    def relay(self) -> bool:
        """Relay messages from lists that no worker is waiting on; request the next announcement.

        Returns:
            True if any queue without a waiting connection has messages.

        Raises:
            ServerError, AccessRefused: this server does not announce changes.
        """
        connection = self.connection
        connection.noticed = False
        # Relay first, since a message is waiting. Relay again if more messages arrived before the
        # server began to announce changes.
        beyond = self._relay()
        *_, there = connection.pipeline(
            [
                ("CLIENT", "TRACKING", "ON", "OPTIN"),
                ("CLIENT", "CACHING", "YES"),
                ("EXISTS", *self._looks.unwatched),
            ]
        )
        return self._relay() if there else beyond

    def _relay(self) -> bool:
        """Relay waiting messages; return True if a queue without a connection has messages."""
        steps, connection = self._looks.steps, self.connection
        waited = len(self._keys.steps) * BLOCKING_QUEUES
        connection.script(_RELAY, steps[:waited], [len(self._keys.steps)])
        return bool(steps[waited:] and connection.call("EXISTS", *steps[waited:]))

    def promote(self) -> int:
        """Move due parked messages to their queues; return how many were moved."""
        promote, connection = self._broker.promote, self.connection
        return sum(promote(connection, queue, _PROMOTED) for queue in self._looks.queues)

    def renew_scores(self, tags: Sequence[str]) -> None:
        """Update the scores of held records, so that Celery workers leave the records alone."""
        now, keys = self._server_time(), self._keys
        for portion in in_portions(tags, len):
            pairs = [part for tag in portion for part in (f"{now:.6f}", tag)]
            self.connection.call("ZADD", keys.unacked_index, "XX", *pairs)
        known = (keys.owner(self.incarnation), keys.begun(self.incarnation))
        self.connection.pipeline([("EXPIRE", key, KNOWN_S) for key in known])

    def others(self) -> list[Owner]:
        """Return all other owners, alive or not."""
        members = self.connection.call("ZRANGE", self._keys.leases, 0, -1)
        owners = [Owner.parse(member.decode()) for member in members]
        return [owner for owner in owners if owner != self._owner]

    def uptime_s(self) -> float:
        """Return how many seconds the server has been up."""
        for line in self.connection.call("INFO", "server").decode().splitlines():
            name, _, value = line.partition(":")
            if name == "uptime_in_seconds":
                return float(value)
        return 0.0

    def overdue(self) -> list[str]:
        """Return the tags of ownerless records that are older than the timeout, oldest first.

        Such records were abandoned by Celery workers, or belong to owners whose lease has been
        forgotten.
        """
        before = f"{self._server_time() - self._visibility_timeout_s:.6f}"
        tags = self.connection.call("ZRANGEBYSCORE", self._keys.unacked_index, "-inf", before)
        living = [owner.incarnation for owner in self.others()]
        covered = tuple(f"{incarnation}:" for incarnation in (*living, self.incarnation))
        found = [tag.decode() for tag in tags if not tag.decode().startswith(covered)]
        mutex = self._keys.unacked_mutex
        if found and self.connection.call("SET", mutex, self.incarnation, "NX", "PX", _MUTEX_MS):
            return found
        return []

    def held(self) -> set[str]:
        """Return the tags of this owner's records."""
        return self.recovery.held(self.incarnation)

    def forgotten(self, known: Container[str], first_unused: int) -> set[str]:
        """Return the tags of records that this owner has already settled.

        The server has since lost its last writes, because of a power cut or a failover to a replica
        that was behind.
        """
        return {tag for tag in self.held() if tag not in known and tag_number(tag) < first_unused}

    def give_back_forgotten(self, tags: Iterable[str]) -> None:
        """Requeue records of this owner that the owner no longer holds."""
        moved = self.recovery.give_back_all(self.incarnation, tags)
        if moved:
            _log.warning("the server has lost the outcomes of %d tasks; they will run again", moved)

    def leave(self, unwritten: Sequence[Settlement]) -> int:
        """End this owner: requeue whatever the server still holds for it, then end its lease.

        Args:
            unwritten: outcomes that could not be written; the moves among them are tried once more,
                since no other worker requeues a stub.

        Returns:
            How many messages were requeued because their outcomes could not be written.
        """
        names = [self._keys.leases, self._keys.owner(self.incarnation)]
        member = str(self._owner)
        # After this, no take succeeds for this owner, however late the call arrives.
        self.connection.script(_LEAVE, names, [member, "close", _REMEMBERED_S])
        moves = [entry for entry in unwritten if entry.result is None]
        for portion in in_portions(moves, _size_of):
            settle(self.connection, self._keys, portion, fence=Fence(self.incarnation))
        moved = 0
        while given_back := self.recovery.give_back_all(self.incarnation):
            moved += given_back
        self.connection.script(_LEAVE, names, [member, "leave", _REMEMBERED_S])
        return moved

    def _server_time(self) -> float:
        seconds, microseconds = self.connection.call("TIME")
        return int(seconds) + int(microseconds) / 1e6


def _read_lead(now_s: float, answer: list[Any]) -> Lead | None:
    if not answer:
        return None
    leads, changes, leader = answer
    return Lead(int(now_s * 1e6), bool(leads), int(changes), leader.decode(errors="replace"))


def _size_of(entry: Settlement) -> int:
    return 0 if entry.move is None else len(entry.move.text)
