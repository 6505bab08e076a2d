"""Taking messages: one atomic script, and waiting for work without losing or waking too much.

How a worker waits (docs/design.md, decision 3, has the measurements):

* On the first list of a queue (priority 0, where nearly all work arrives) it blocks with
  ``BLMOVE queue inbox``: the server hands one message to exactly one waiting worker, the one that
  has waited longest. The message goes to the queue's *inbox*, a list that every greenq worker of
  the queue drains first. So it is in a durable place all the time: if the woken worker dies, the
  next take of any other one finds it.
* The other lists (higher priority steps; queues beyond the first few) are watched by the server's
  client-side-caching notices on the same connection. These wake all waiting workers, which is the
  price for watching any number of lists with one socket.
* The renewal of the lease sees whether any of the lists has messages, and ends the wait then. So a
  wait may be long although its connection may be dead, and what a worker that died has left in an
  inbox is found.

A plain ``BRPOP`` loses what was popped when the worker dies before it is recorded; ``BLMOVE queue
queue`` (a blocking peek) wakes the whole fleet, since the list never gets empty.
"""

from __future__ import annotations

import json
import logging
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from greenq.errors import OperationalError, ServerError
from greenq.hub import Event, run_all, sleep
from greenq.transport.client import Push, load_script

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from greenq.protocol.keys import Keys
    from greenq.transport.client import Client, Connection

# One script call moves at most this many messages, so that it holds the server for a few ms at
# most.
TAKE_LIMIT = 1000

# How long one BLMOVE blocks: short enough for whatever on the way forgets silent connections.
_BLOCK_S = 60

# How long a take may last before its connection counts as dead.
_ANSWER_S = 3.5

# How long the end of a BLMOVE may last, asked for or due. With what the renewal of a lease takes
# before, and the pause after, work that comes meanwhile begins within five seconds.
_GRACE_S = 1.5

# First and longest pause before a BLMOVE that the server did not find waiting is looked for again.
_RETRY_FIRST_S = 0.0005
_RETRY_MOST_S = 0.05

# Queues that get a waiting connection of their own.
_BLOCKING_QUEUES = 4

_TAKE = load_script("take")

_log = logging.getLogger(__name__)


class Delivery(NamedTuple):
    """One reserved message: its delivery tag, the queue it came from, its bytes."""

    tag: str
    queue: str
    raw: bytes


def tag_number(tag: str) -> int:
    """Return an own tag's number: the order in which its owner took the messages."""
    return int(tag.rpartition(":")[2])


class Batch(NamedTuple):
    """What one take brought: deliveries, and how many messages are left in the queues."""

    deliveries: list[Delivery]
    depth: int


class Intake:
    """The taking side of one worker incarnation; one greenlet uses it.

    Delivery tags are ``<owner>:<number>``. A take names the number of its first tag, so a take that
    is repeated because its answer got lost returns what the first one reserved.
    """

    def __init__(
        self,
        client: Client,
        keys: Keys,
        queues: Sequence[str],
        owner: str,
        *,
        rotate: bool = True,
        member: str = "",
        lease_s: float = 10.0,
    ) -> None:
        """Take from `queues` in the name of `owner`.

        Args:
            client, keys: the server, and the names there.
            queues: to take from.
            owner: the incarnation that delivery tags name.
            rotate: the queues take turns.
            member: the owner's member of the leases, if that is more than its name.
            lease_s: how long the lease holds that comes with the first messages.
        """
        self.queues = tuple(queues)
        self._keys = keys
        self._rotate = rotate
        self._prefix = f"{owner}:"
        self._member = member or owner
        self._lease_s = lease_s
        self._next = 1
        self._turn = 0
        self._endings = [f', "", {json.dumps(queue)}]' for queue in self.queues]
        groups = [[keys.inbox(queue) for queue in self.queues]]
        groups += [[keys.queue(queue, step) for queue in self.queues] for step in keys.steps]
        self._inboxes, lists = groups[0], groups[1:]
        self._keys_of_take = [
            keys.unacked,
            keys.unacked_index,
            keys.taken(owner),
            keys.leases,
            *chain(*groups),
        ]
        blocking, rest = lists[0][:_BLOCKING_QUEUES], lists[0][_BLOCKING_QUEUES:]
        self._watched = [*rest, *chain(*lists[1:])]
        self._waiters = [
            _Waiter(client.connection(pushes=not number, timeout_s=_ANSWER_S), *lists)
            for number, lists in enumerate(zip(blocking, self._inboxes, strict=False))
        ]
        self._first = self._waiters[0]
        self._client = client
        # True when the waits are to end, and when a take may find something although none of them
        # has been told of it.
        self._woken = self._look = False
        # True when the server has given messages or let us wait since the connections were closed.
        self.working = False

    @property
    def connections(self) -> list[Connection]:
        """The connections this intake holds: one for each of the first few queues."""
        return [waiter.connection for waiter in self._waiters]

    @property
    def first_unused(self) -> int:
        """The number of the tag that the next take uses first; any thread may ask."""
        return self._next

    def take(self, most: int) -> Batch:
        """Reserve up to `most` messages, most urgent first, and return them. Switches: yes.

        Raises:
            OperationalError: nothing is lost; the next call returns what this one may have
                reserved.
        """
        most = min(most, TAKE_LIMIT)
        answer = self._first.connection.script(
            _TAKE,
            self._keys_of_take,
            [
                *(self._prefix, self._next, most, len(self.queues), self._turn),
                *(self._member, self._lease_s, *self._endings),
            ],
        )
        queues, prefix, number = self.queues, self._prefix, self._next
        depth, self._next, *pairs = answer
        deliveries = [
            Delivery(f"{prefix}{number + i}", queues[pairs[2 * i] - 1], pairs[2 * i + 1])
            for i in range(len(pairs) // 2)
        ]
        self.working = self.working or bool(deliveries)
        if self._rotate and deliveries:
            self._turn = (self._turn + 1) % len(queues)
        return Batch(deliveries, depth)

    def wait(self) -> bool:
        """Wait until there is work, or `wake`, or a minute; True when a take may find some.

        Call it after a take that left nothing: what came in between ends the wait at once.
        Switches: yes. Raises OperationalError when the server is lost.
        """
        self._woken = self._look = False
        return self._watch() or self._block_all() or self._look

    def _block_all(self) -> bool:
        if len(self._waiters) == 1:
            return self._block(self._first)
        answers = run_all([(f"wait {w.source}", partial(self._block, w)) for w in self._waiters])
        return any(answers)

    def wake(self, *, look: bool = False) -> None:
        """End the wait that is under way, if any; with `look` a take follows. Switches: yes."""
        self._look = look
        self._wake_others(None)

    def close(self) -> None:
        """Close the connections; a message that is handed over just now stays in the inbox."""
        self.working = False
        for waiter in self._waiters:
            waiter.connection.close()

    def _watch(self) -> bool:
        """Have changes of the watched lists announced; True if one of them has messages already."""
        connection = self._first.connection
        connection.connect()
        if not connection.noticed or not self._watched:
            return False
        connection.noticed = False
        try:
            answers = connection.pipeline(
                [
                    ("CLIENT", "TRACKING", "ON", "OPTIN"),
                    ("CLIENT", "CACHING", "YES"),
                    ("EXISTS", *self._watched),
                ]
            )
        except ServerError as exc:
            # Some proxies and managed servers refuse it.
            _log.info("only renewing the lease looks for changes of %s: %s", self._watched, exc)
            answers = [0]
        return bool(answers[-1])

    def _block(self, waiter: _Waiter) -> bool:
        """Let the server hold this connection until a message is moved into the inbox."""
        connection = waiter.connection
        connection.identify()
        if self._woken:
            return False
        connection.send([("BLMOVE", waiter.source, waiter.inbox, "RIGHT", "LEFT", _BLOCK_S)])
        waiter.ended.clear()
        self.working = True
        try:
            answer = self._receive(waiter)
        finally:
            waiter.ended.set()
            # When one is over, for whatever reason, all are.
            if not self._woken:
                self._wake_others(waiter)
        return answer is not None or waiter.connection.noticed

    def _receive(self, waiter: _Waiter) -> bytes | None:
        """Read until BLMOVE is answered; a notice on the way ends the wait of all."""
        connection = waiter.connection
        limit_s = _BLOCK_S + _GRACE_S
        while True:
            if self._woken:
                # End the BLMOVE, unless its answer is here already or on its way.
                for pause_s in _pauses():
                    if connection.has_answer() or self._unblock(waiter):
                        break
                    sleep(pause_s)
                limit_s = _GRACE_S
            answer = connection.receive("BLMOVE", push=True, timeout_s=limit_s)
            if isinstance(answer, Push):
                self._wake_others(waiter)
            elif isinstance(answer, OperationalError):
                # A server without memory lets us look for messages, but not wait for them.
                self.working = False
                raise answer
            else:
                moved: bytes | None = answer
                return moved

    def _wake_others(self, waiter: _Waiter | None) -> None:
        """End the waits of all but `waiter`, whose greenlet calls this and ends its own."""
        self._woken = True
        others = [other for other in self._waiters if other is not waiter]
        for other in others:
            problem: object = "no answer"
            try:
                ended = self._end(other)
            except OperationalError as exc:
                ended, problem = False, exc
            if not ended:
                _log.info("waiting on %s does not end, reconnecting: %s", other.source, problem)
                for each in others:
                    each.connection.close()
                return

    def _end(self, waiter: _Waiter) -> bool:
        """End a BLMOVE from outside; True when its greenlet has read the answer, whichever it is.

        Raises:
            OperationalError: the server could not be asked to.
        """
        for pause_s in _pauses():
            if waiter.ended.is_set():
                return True
            if self._unblock(waiter):
                return bool(waiter.ended.wait(_GRACE_S))
            waiter.ended.wait(pause_s)
        return bool(waiter.ended.is_set())

    def _unblock(self, waiter: _Waiter) -> bool:
        """End one BLMOVE: it answers nil, or the message that it got just before.

        False when the server did not find it waiting: it has answered, or has not read the command
        yet, whose bytes are on another socket.
        """
        number = waiter.connection.number
        return bool(self._client.call("CLIENT", "UNBLOCK", number, timeout_s=_GRACE_S))


def _pauses() -> Iterator[float]:
    """Short at first, for an answer that is under way; an end, for a connection that is dead."""
    pause_s, left_s = _RETRY_FIRST_S, _GRACE_S
    while left_s > 0:
        yield pause_s
        left_s -= pause_s
        pause_s = min(pause_s * 2, _RETRY_MOST_S)


class _Waiter:
    """One connection that waits on one list, and its state."""

    __slots__ = ("connection", "ended", "inbox", "source")

    def __init__(self, connection: Connection, source: str, inbox: str) -> None:
        self.connection = connection
        self.source = source
        self.inbox = inbox
        # Set unless a BLMOVE is under way.
        self.ended = Event()
        self.ended.set()
