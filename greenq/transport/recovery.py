"""Recovery: requeues the messages of dead workers, in portions that take milliseconds.

Messages pass through the recovering worker, and are not moved within the server, because their
content decides whether they run again and how they are marked. Recovery uses a separate connection,
since a server lets only a few MB of replies wait for a subscribed connection. Each portion is moved
by one script, which does nothing if the owner's lease was renewed in the meantime. So a worker that
comes back keeps the messages that have not been moved yet. No message is lost or duplicated if two
workers recover at the same time or if one dies midway.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from typing import TYPE_CHECKING, Literal, NamedTuple

from greenq.errors import DecodeError, OperationalError, ServerError
from greenq.protocol import envelope
from greenq.protocol.message import parse_time
from greenq.transport.client import load_script
from greenq.transport.continuation import ChordClaim, Continuation, claim_of
from greenq.transport.fetch import in_portions, tag_number, taken_apart
from greenq.transport.settle import REQUEUE, Fence, Move, Settlement, settle
from greenq.utils.log import OutageLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from greenq.protocol.envelope import Held
    from greenq.transport.broker import Broker
    from greenq.transport.client import Connection
    from greenq.transport.owner import Owner

_log = logging.getLogger(__name__)

_CLAIM = load_script("claim")
_LEAVE = load_script("leave")

# How many record sizes are read at a time.
_SIZES = 500

# How long the server remembers that an owner was recovered, so that the owner's writes are refused
# if it comes back.
_REMEMBERED_S = 86400

# How many dead workers are reported, and for how long.
_GONE = 100
_GONE_S = 3600

# Why a message that was acknowledged early is not run again.
_BEGUN = "its worker was lost while running it, and it had already been acknowledged"

# If this many workers died while running a message, it is a suspect and runs alone in its worker.
_SUSPECT = 2


def is_suspect(deliveries: int, max_deliveries: int) -> bool:
    """Return whether a message must run alone because this many workers died while running it."""
    return deliveries >= max(1, min(_SUSPECT, max_deliveries - 1))


def newest_first(tags: Iterable[str]) -> list[str]:
    """Sort an owner's tags so that pushing them back in this order makes the oldest next."""
    return sorted(tags, key=tag_number, reverse=True)


class Lot(NamedTuple):
    """What is known about messages that are requeued together.

    Attributes:
        fence: on whose behalf to move the messages.
        owner: their owner; "" if unknown.
        alone: the tag of the message that was running alone when its worker died; "" if there was
            none.
        counts: True if the worker has died, so that its death is counted.
    """

    fence: Fence
    owner: str = ""
    alone: str = ""
    counts: bool = False


class Recovery:
    """Requeues messages, a portion at a time, over its own connection; used by a single thread."""

    def __init__(
        self,
        connection: Connection,
        results: Connection | None,
        broker: Broker,
        *,
        claimant: str,
        claim_s: float,
        max_deliveries: int,
        may_run_again: Callable[[str | None], bool],
        bury: Callable[[str, str, bytes, str, str | None], Settlement],
        now_s: Callable[[], float],
    ) -> None:
        """Requeue over `connection`, which is opened when it is first needed.

        Args:
            results: where states are stored; None means the same server.
            claimant: the owner that claims a dead owner, for `claim_s` seconds at a time.
            max_deliveries: a message is buried once this many workers have died while running it.
            may_run_again: returns, for a task's name, whether the task runs again if its worker
                dies.
            bury: decides about a message that must not run again; called with (tag, queue, message,
                reason, task id).
            now_s: returns the server's time, in unix seconds.
        """
        self._connection = connection
        self._results = results
        self._broker = broker
        self._keys = broker.keys
        self._claimant = claimant
        self._claim_s = claim_s
        self._max_deliveries = max_deliveries
        self._may_run_again = may_run_again
        self._bury = bury
        self._now_s = now_s
        self._jobs: deque[tuple[str, Iterator[None]]] = deque()
        self._outage = OutageLog(_log)

    @property
    def busy(self) -> bool:
        """True while work is left."""
        return bool(self._jobs)

    def add(self, dead: Owner) -> None:
        """Recover an owner whose lease has ended, unless another worker is doing so."""
        self._begin(str(dead), self._recover(dead))

    def add_overdue(self, tags: Callable[[], list[str]]) -> None:
        """Requeue messages without an owner; `tags` finds them."""
        self._begin("overdue", self._overdue(tags))

    def _begin(self, name: str, job: Iterator[None]) -> None:
        if all(name != other for other, _job in self._jobs):
            self._jobs.append((name, job))

    def step(self) -> None:
        """Process the next portion. A failure for one owner does not delay the other owners."""
        _name, job = self._jobs[0]
        try:
            next(job)
        except StopIteration:
            self._jobs.popleft()
        except OperationalError as exc:
            self._jobs.popleft()
            if not (isinstance(exc, ServerError) and exc.reply.startswith("LAPSED")):
                self._outage.failed("could not requeue messages of lost workers", exc)
                self._connection.close()
        else:
            self._jobs.rotate(-1)
        if not self._jobs:
            self._connection.close()

    def close(self) -> None:
        """Leave the remaining messages to other workers."""
        self._jobs.clear()
        self._connection.close()

    def tags_of(self, incarnation: str) -> Iterator[list[str]]:
        """Yield an owner's tags in portions, without reading any messages."""
        return self._broker.tags_of(self._connection, incarnation)

    def held(self, incarnation: str) -> set[str]:
        """Return the tags of all records of an owner."""
        return {tag for found in self.tags_of(incarnation) for tag in found}

    def _recover(self, dead: Owner) -> Iterator[None]:
        incarnation = dead.incarnation
        claim = self._claim(dead)
        if claim is None:
            return
        score, alone = claim
        lot = Lot(Fence(incarnation, str(dead), score), incarnation, alone, counts=True)
        tags: set[str] = set()
        for found in self.tags_of(incarnation):
            tags.update(found)
            yield
        moved, left = 0, newest_first(tags)
        while left:
            portions, left = self._portions(left), []
            for portion in portions:
                if self._claim(dead) != claim:
                    return
                given, not_held = self._give_back(portion, lot)
                moved += given
                # Since these messages were read, a late call may have acknowledged them early, or
                # other workers may have moved them. So decide about them again; the tags of moved
                # messages no longer exist then.
                left += not_held
                yield
        # The score of a lease that was ended early does not show when it ended.
        now = self._now_s()
        died = float(score) if 0 <= now - float(score) < _GONE_S else now
        entry = json.dumps({"node": dead.node, "at": died, "moved": moved})
        self._connection.script(
            _LEAVE,
            [self._keys.leases, self._keys.owner(incarnation), self._keys.gone],
            [str(dead), score, _REMEMBERED_S, entry, _GONE, _GONE_S],
        )
        self._outage.recovered("messages of lost workers can be requeued again")
        if moved:
            node = dead.node or "?"
            _log.warning("worker %s died: %d messages are back on their queues", node, moved)

    def _claim(self, dead: Owner) -> tuple[str, str] | None:
        """Claim an owner; return its lease's score and its lone message's tag, or None."""
        keys = [self._keys.leases, self._keys.owner(dead.incarnation)]
        arguments = [str(dead), self._claimant, self._claim_s]
        answer = [part.decode() for part in self._connection.script(_CLAIM, keys, arguments)]
        return (answer[0], answer[1]) if answer and answer[0] else None

    def _overdue(self, find: Callable[[], list[str]]) -> Iterator[None]:
        moved = 0
        for portion in self._portions(find()[::-1]):
            moved += self._give_back(portion, Lot(Fence("")))[0]
            yield
        if moved:
            _log.warning("%d messages were abandoned and are back on their queues", moved)

    def give_back_all(self, incarnation: str, tags: Iterable[str] | None = None) -> int:
        """Requeue the records `tags` of an owner, or all of them if None, without counting a death.

        The owner is alive, or is leaving.

        Returns:
            How many messages were moved.
        """
        portions = self._portions(newest_first(self.held(incarnation) if tags is None else tags))
        lot = Lot(Fence(""), incarnation)
        return sum(self._give_back(portion, lot)[0] for portion in portions)

    def _portions(self, tags: Sequence[str]) -> Iterator[list[str]]:
        """Split tags into portions, limited in number and in the size of their records."""
        for start in range(0, len(tags), _SIZES):
            some = tags[start : start + _SIZES]
            commands = [("HSTRLEN", self._keys.unacked, tag) for tag in some]
            sizes = dict(zip(some, self._connection.pipeline(commands), strict=True))
            yield from in_portions(some, sizes.__getitem__)

    def _give_back(self, tags: Sequence[str], lot: Lot) -> tuple[int, list[str]]:
        """Move one portion of records to their queues.

        Returns:
            How many records were moved, and the tags of those that were read but not held.
        """
        begun_key = self._keys.begun(lot.owner)
        records, *begun = self._connection.pipeline(
            [
                ("HMGET", self._keys.unacked, *tags),
                *(("SISMEMBER", begun_key, tag) for tag in tags),
            ]
        )
        gone = [tag for tag, record in zip(tags, records, strict=True) if record is None]
        if gone:
            self._connection.call("ZREM", self._keys.unacked_index, *gone)
        entries = [
            self._decide(tag, record, lot, bool(early))
            for tag, record, early in zip(tags, records, begun, strict=True)
            if record is not None
        ]
        if not entries:
            return 0, []
        settled = settle(
            self._connection, self._keys, entries, fence=lot.fence, results=self._results
        )
        if settled.misplaced:
            _log.error("messages of a lost worker stay reserved: %s", settled.misplaced)
        not_held = [entries[i].tag for i in sorted(settled.not_held)]
        return len(entries) - len(not_held) - len(settled.stuck), not_held

    def _decide(self, tag: str, record: bytes, lot: Lot, early: bool) -> Settlement:
        """Decide where a message of a dead worker goes.

        `early` means that the message was acknowledged before its run, and that its record was kept
        for the tasks that depend on it.
        """
        try:
            held = envelope.unhold(record)
            queue = self._queue(held.exchange, held.routing_key)
            key = self._keys.queue(queue, self._keys.step_of(held.priority))
            signer = self._broker.signer
            if signer is not None and not signer.trusts("message", queue, held.text.encode()):
                # The message never ran, and its content, such as the number of deaths, cannot be
                # trusted. The worker that takes it next buries it.
                return Settlement.moving(Move(tag, key, "next", held.text))
            deaths = self._count_deaths(tag, held, lot)
            reason = _BEGUN if early else self._find_guilt(tag, held, lot, deaths)
            if reason is not None:
                return self._bury(tag, queue, held.text.encode(), reason, held.header("id"))
            # A message that was running alone when its worker died goes last, since it may be the
            # cause.
            side: Literal["next", "last"] = "last" if tag == lot.alone else "next"
            text = self._broker.resealed(queue, held.text, held.redelivered(deaths))
            # REQUEUE, since the owner may have come back and may begin the message at this moment.
            move = Move(tag, key, side, text)
            return Settlement(tag, REQUEUE, move=move, workflow=self._freed(held))
        except DecodeError as exc:
            queue, message = taken_apart(record)
            return self._bury(tag, queue, message, f"its record is not a message: {exc}", None)

    def _freed(self, held: Held) -> Continuation | None:
        """Let other workers complete the chord of a message whose worker has died.

        The message's part may have been the last one of the chord. In that case its claim would
        keep Celery's workers from completing the chord.
        """
        group_id, task_id = held.header("group"), held.header("id")
        if group_id is None or task_id is None:
            return None
        index = held.number("group_index")
        claim = claim_of(f"{task_id}:{'+inf' if index is None else index}")
        return Continuation(frees=[ChordClaim(self._keys.group(group_id), claim)])

    def _count_deaths(self, tag: str, held: Held, lot: Lot) -> int | None:
        """Return how many workers have died running a message; None if this death is not counted.

        A suspect that was not announced as running alone was still waiting for its turn. So workers
        that are killed while the suspect waits do not add up. (Nor is a death counted if the
        suspect ran alongside tasks that took too long to end.)
        """
        is_other = tag != lot.alone and (
            bool(lot.alone) or is_suspect(held.deliveries, self._max_deliveries)
        )
        if not lot.counts or is_other or self._is_due_later(held):
            return None
        return held.deliveries + 1

    def _find_guilt(self, tag: str, held: Held, lot: Lot, deaths: int | None) -> str | None:
        """Return why a message must not run again; None if it may."""
        if deaths is None:
            return None
        if not self._may_run_again(held.header("task")):
            return "its worker died, and reject_on_worker_lost is off"
        if deaths >= self._max_deliveries and (tag == lot.alone or self._max_deliveries == 1):
            return f"its worker died {deaths} times while running it, the last time alone"
        return None

    def _is_due_later(self, held: Held) -> bool:
        """Return whether a task cannot have begun because its ETA is still in the future."""
        eta = held.header("eta")
        try:
            return eta is not None and parse_time(eta).timestamp() > self._now_s()
        except DecodeError:
            # The worker that takes the message reports the problem.
            return False

    def _queue(self, exchange: str, routing_key: str) -> str:
        """Return the queue of a record; greenq's records name the queue as the routing key."""
        if not exchange:
            return routing_key
        queues = self._broker.bound_queues(self._connection, exchange, routing_key)
        return queues[0] if queues else routing_key
