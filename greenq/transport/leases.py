"""Leases: who owns reserved messages, who has died, and giving the messages of the dead back.

A worker incarnation owns all records whose delivery tag begins with its name. Its lease is one
member of a zset, renewed every second or so; nothing is written per task. When a lease ends,
whoever sees it first returns the owner's messages to their queues, in the order in which they were
taken. Each message moves by lua/move.lua, so two that do it at once, or one that dies in the
middle, neither lose nor double one.
"""

from __future__ import annotations

import json
import logging
import os
import re
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from greenq.errors import DecodeError
from greenq.protocol import envelope
from greenq.transport.client import load_script
from greenq.transport.intake import tag_number
from greenq.transport.settle import settle

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Sequence

    from greenq.transport.broker import Broker
    from greenq.transport.client import Connection
    from greenq.transport.settle import Move, Publication, Stored

_log = logging.getLogger(__name__)

_LEASE = load_script("lease")

# Messages moved by one script call, records and parked ones, so that it holds the server for a few
# ms at most.
_PORTION = 500
_PROMOTED = 1000

# The end of a record that a take has written.
_ENDING = re.compile(rb', "", ("(?:[^"\\\\]|\\\\.)*")\]\Z')

# The mutex is Celery's, so that its workers and ours do not scan at the same time. One who dies in
# it must not keep the others waiting: moving is safe without it.
_MUTEX_MS = 10_000


class Owner(NamedTuple):
    """One worker incarnation.

    Attributes:
        incarnation: what its delivery tags begin with; never the same twice.
        node: its node name, for people.
        process: what tells on this machine whether its process lives; empty when nothing does.
    """

    incarnation: str
    node: str
    process: str

    def __str__(self) -> str:
        """Return the member of the leases."""
        return "|".join(self)

    @classmethod
    def parse(cls, member: str) -> Owner:
        """Read a member of the leases."""
        incarnation, node, process = (*member.split("|"), "", "")[:3]
        return cls(incarnation, node, process)

    @property
    def is_dead(self) -> bool:
        """True when its process has provably ended: it was on this machine and is not there now."""
        where, _, pid_and_start = self.process.rpartition("/")
        pid, _, start = pid_and_start.partition(":")
        return bool(where) and where == _where() and _start_of(pid) != start


def new_owner(node: str) -> Owner:
    """Return this process as a new incarnation of `node`."""
    where, pid = _where(), str(os.getpid())
    process = f"{where}/{pid}:{_start_of(pid)}" if where else ""
    return Owner(uuid.uuid4().hex, node, process)


def _where() -> str:
    """Name this boot of this machine and this space of process numbers; empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot}-{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start_of(pid: str) -> str:
    """Return when a process began, in the kernel's ticks; empty if there is none."""
    try:
        stat = Path("/proc", pid, "stat").read_text("ascii", "replace")
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    # A zombie runs nothing any more.
    return "" if fields[0] == "Z" else fields[19]


class Renewal(NamedTuple):
    """What renewing a lease has told.

    Attributes:
        held: False when the lease had ended meanwhile, or there was none.
        server_time: unix seconds.
        work: True when messages lie in this worker's queues, or on their way to somebody.
        next_due: when the next parked message of this worker's queues is due, unix seconds.
        expired: the owners whose lease has ended.
        paused: the queues that are paused for the whole cluster.
        unheard: why the news could not be published, "" if it was.
    """

    held: bool
    server_time: float
    work: bool
    next_due: float | None
    expired: list[Owner]
    paused: frozenset[str] = frozenset()
    unheard: str = ""


class Verdict(NamedTuple):
    """Where a lost worker's message goes, and what to store for whoever waits for its result."""

    move: Move
    result: Stored | None = None


class _Looks(NamedTuple):
    """What a renewal looks at besides the leases: some queues and their keys."""

    queues: tuple[str, ...]
    keys: list[str]


class Leases:
    """The lease of one owner and its view of the others; one thread or greenlet uses it.

    Only `set_queues` may be called by another one.
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
        max_deliveries: int,
        results: Connection,
        may_run_again: Callable[[bytes], bool],
        bury: Callable[[str, str, bytes, str], Verdict],
    ) -> None:
        """Speak for `owner` over `connection`.

        Args:
            queues: those that this worker takes from, and whose parked messages it moves back.
            lease_s: how long a lease holds after its renewal.
            visibility_timeout_s: after which records that nobody's lease covers are given back.
            max_deliveries: a message whose workers died so often is buried.
            results: where results are written; may be `connection`.
            may_run_again: says of a message whether its task runs again when its worker is lost.
            bury: decides on (tag, queue, message, reason) when a message may not run again.
        """
        self.connection = connection
        self._broker = broker
        self._keys = broker.keys
        self._owner = owner
        self.incarnation = owner.incarnation
        self._looks = self._looks_at(queues)
        self._lease_s = lease_s
        self._visibility_timeout_s = visibility_timeout_s
        self._max_deliveries = max_deliveries
        self._results = results
        self._may_run_again = may_run_again
        self._bury = bury

    def set_queues(self, queues: Iterable[str]) -> None:
        """Look at these queues from now on; any thread may call it.

        What is parked in one that is left out, whoever else takes from it moves back when it is
        due.
        """
        self._looks = self._looks_at(queues)

    def _looks_at(self, queues: Iterable[str]) -> _Looks:
        keys, names = self._keys, tuple(dict.fromkeys(queues))
        lists = [key for name in names for key in (keys.inbox(name), *keys.queue_steps(name))]
        parked = [keys.eta(name) for name in names]
        return _Looks(names, [keys.leases, keys.paused, *parked, *lists])

    def renew(self, news: Publication | None = None) -> Renewal:
        """Renew the lease, publish `news`, and hear what the server knows of others and of work."""
        looks = self._looks
        args = [str(self._owner), self._lease_s, len(looks.queues), *(news or ())]
        held, now, work, due, paused, unheard, *expired = self.connection.script(
            _LEASE, looks.keys, args
        )
        return Renewal(
            held=bool(held),
            server_time=float(now),
            work=bool(work),
            next_due=float(due) if due else None,
            expired=[Owner.parse(member.decode()) for member in expired],
            paused=frozenset(queue.decode(errors="replace") for queue in paused),
            unheard=unheard.decode(errors="replace"),
        )

    def promote(self) -> int:
        """Move parked messages that are due to their queues; return how many there were."""
        promote, connection = self._broker.promote, self.connection
        return sum(promote(connection, queue, _PROMOTED) for queue in self._looks.queues)

    def renew_scores(self, tags: Sequence[str]) -> None:
        """Make held records look just taken, so that Celery workers beside us leave them alone."""
        now = self._server_time()
        for portion in _portions(tags):
            pairs = [part for tag in portion for part in (f"{now:.6f}", tag)]
            self.connection.call("ZADD", self._keys.unacked_index, "XX", *pairs)

    def others(self) -> list[Owner]:
        """Return all owners but this one, alive or not."""
        members = self.connection.call("ZRANGE", self._keys.leases, 0, -1)
        owners = [Owner.parse(member.decode()) for member in members]
        return [owner for owner in owners if owner != self._owner]

    def uptime_s(self) -> float:
        """Return how long the server has been up, seconds."""
        for line in self.connection.call("INFO", "server").decode().splitlines():
            name, _, value = line.partition(":")
            if name == "uptime_in_seconds":
                return float(value)
        return 0.0

    def recover(self, dead: Owner) -> int:
        """Give the messages of a dead owner back, forget its lease, and return their number."""
        tags = self._tags_of(dead)
        moved = self._give_back(tags)
        self.connection.call("ZREM", self._keys.leases, str(dead))
        if moved:
            _log.warning(
                "worker %s died: %d messages are back on their queues", dead.node or "?", moved
            )
        return moved

    def recover_overdue(self, living: Iterable[str]) -> int:
        """Give back what no living owner holds and was taken before the visibility timeout.

        That is what Celery workers abandon, and what an owner left behind whose lease is forgotten.
        """
        before = f"{self._server_time() - self._visibility_timeout_s:.6f}"
        tags = self.connection.call("ZRANGEBYSCORE", self._keys.unacked_index, "-inf", before)
        covered = tuple(f"{incarnation}:" for incarnation in living)
        overdue = [tag.decode() for tag in tags if not tag.decode().startswith(covered)]
        if not overdue:
            return 0
        token = uuid.uuid4().hex
        mutex = self._keys.unacked_mutex
        if not self.connection.call("SET", mutex, token, "NX", "PX", _MUTEX_MS):
            return 0
        moved = self._give_back(overdue)
        if self.connection.call("GET", mutex) == token.encode():
            self.connection.call("DEL", mutex)
        if moved:
            _log.warning("%d messages were abandoned and are back on their queues", moved)
        return moved

    def forgotten(self, known: Container[str], first_unused: int) -> set[str]:
        """Return the tags of this owner's records that are not `known` to it, and have been used.

        That is what it has settled, after which the server has lost what was written last: a power
        cut, or a failover to a replica that was behind.
        """
        return {
            tag
            for tag in self._tags_of(self._owner)
            if tag not in known and tag_number(tag) < first_unused
        }

    def give_back_forgotten(self, tags: Iterable[str]) -> int:
        """Give back records of this owner that it does not hold any more."""
        moved = self._give_back(sorted(tags, key=tag_number))
        if moved:
            _log.warning("the server has forgotten the outcome of %d tasks; they run again", moved)
        return moved

    def release(self) -> None:
        """End the own lease: nothing is owned any more."""
        self.connection.call("ZREM", self._keys.leases, str(self._owner))

    def _tags_of(self, owner: Owner) -> list[str]:
        """Find the tags of an owner without reading a message, in the order of their making."""
        tags: list[str] = []
        cursor: Any = 0
        match = f"{owner.incarnation}:*"
        while True:
            cursor, found = self.connection.call(
                "ZSCAN", self._keys.unacked_index, cursor, "MATCH", match, "COUNT", 1000
            )
            tags += [tag.decode() for tag in found[::2]]
            if int(cursor) == 0:
                return sorted(set(tags), key=tag_number)

    def _give_back(self, tags: Sequence[str]) -> int:
        """Move records back to their queues so that they are taken next, oldest first."""
        moved = 0
        # The last one pushed is taken first, so the newest goes first.
        for portion in _portions(tags[::-1]):
            records = self.connection.call("HMGET", self._keys.unacked, *portion)
            held = [(tag, record) for tag, record in zip(portion, records, strict=True) if record]
            gone = [tag for tag, record in zip(portion, records, strict=True) if not record]
            if gone:
                self.connection.call("ZREM", self._keys.unacked_index, *gone)
            if held:
                self._move_all([self._verdict(tag, record) for tag, record in held])
                moved += len(held)
        return moved

    def _move_all(self, verdicts: Sequence[Verdict]) -> None:
        """Store what is to be known of buried messages, then move all of them."""
        results = [verdict.result for verdict in verdicts if verdict.result is not None]
        if results:
            settle(self._results, self._keys, results)
        moves = [verdict.move for verdict in verdicts]
        settle(self.connection, self._keys, moves=moves)

    def _verdict(self, tag: str, record: bytes) -> Verdict:
        """Decide where a message goes whose worker is lost."""
        try:
            text, exchange, routing_key = envelope.unhold(record)
        except DecodeError as exc:
            message, queue = _taken_apart(record)
            return self._bury(tag, queue, message, f"its record is no message: {exc}")
        queue = self._queue(exchange, routing_key)
        message = text.encode()
        deliveries = envelope.deliveries_of(message)
        if deliveries >= self._max_deliveries:
            reason = f"its workers died {deliveries} times while they held it"
            return self._bury(tag, queue, message, reason)
        if not self._may_run_again(message):
            reason = "its worker died, and reject_on_worker_lost is off"
            return self._bury(tag, queue, message, reason)
        move = self._broker.requeue(tag, queue, message, "next", deliveries=deliveries + 1)
        return Verdict(move)

    def _queue(self, exchange: str, routing_key: str) -> str:
        """Return the queue that a record goes back to; ours name it as the routing key."""
        if not exchange:
            return routing_key
        queues = self._broker.bound_queues(self.connection, exchange, routing_key)
        return queues[0] if queues else routing_key

    def _server_time(self) -> float:
        seconds, microseconds = self.connection.call("TIME")
        return int(seconds) + int(microseconds) / 1e6


def _taken_apart(record: bytes) -> tuple[bytes, str]:
    """Return the bytes and the queue in a record that is no JSON, as our take has joined it."""
    ending = _ENDING.search(record)
    if ending is None:
        return record, "celery"
    return record[1 : ending.start()], json.loads(ending[1])


def _portions(items: Sequence[str]) -> list[Sequence[str]]:
    return [items[i : i + _PORTION] for i in range(0, len(items), _PORTION)]
