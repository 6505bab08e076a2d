"""Takes messages in one atomic script; waits without losing messages or waking too many workers.

How a worker waits (docs/design.md, decision 3, has the measurements):

* On the first list of a queue (priority 0, where nearly all work arrives) it blocks with
  ``BLMOVE queue inbox``: the server hands one message to exactly one waiting worker, the one that
  has waited longest. The message goes to the queue's *inbox*, a list that every greenq worker
  taking from the queue empties first. So the message is always in a durable place: if the woken
  worker dies, the next take by any other worker finds it.
* The other lists (those of less urgent priority steps, and of queues beyond the first few) are
  watched by one idle worker among those with the same queues. Its watchdog thread makes the server
  announce changes (client-side caching) and moves a message to the first list of its queue, where
  the others wait (lua/relay.lua). So a push to such a list also wakes only one worker.
* The renewal of the lease checks whether any of the lists has messages, and if so ends the wait.
  Therefore, long waits are safe even if a connection is dead, and messages that a dead worker left
  in an inbox are found.

A plain ``BRPOP`` loses the popped message if the worker dies before recording it. ``BLMOVE queue
queue`` (a blocking peek) wakes the whole fleet, because the list never becomes empty.
"""

from __future__ import annotations

import json
import logging
import math
import re
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from greenq.errors import OperationalError
from greenq.hub import Event, run_all, sleep
from greenq.transport.client import load_script

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from greenq.protocol.keys import Keys
    from greenq.transport.client import Client, Connection

# The maximum number of messages that one script call moves, so that the call blocks the server for
# at most a few ms.
TAKE_LIMIT = 1000

# A take stops after this many bytes; a single message may be larger.
TAKE_BYTES = 4_000_000

# The server forgets an owner after a week without a call, which is far longer than a call can
# be delayed or a process is likely to be cut off.
KNOWN_S = 7 * 86400

# How many messages, and how many bytes, the worker sends in one call, so that the call takes only a
# few ms.
PORTION_COUNT = 500
PORTION_BYTES = 1_000_000

# How long one BLMOVE blocks. Network devices that drop idle connections keep them for at least this
# long.
_BLOCK_S = 60

# How long a take may last before its connection is considered dead.
_ANSWER_S = 3.5

# How long ending a BLMOVE may take, whether on request or by its timeout. The preceding lease
# renewal, this time and the following pause together take less than five seconds, so work that
# arrives in the meantime starts within five seconds.
_GRACE_S = 1.5

# The first and the longest pause before trying to unblock a BLMOVE again, after the server did not
# find it waiting.
_RETRY_FIRST_S = 0.0005
_RETRY_MOST_S = 0.05

# How many queues get their own waiting connection.
BLOCKING_QUEUES = 4

_TAKE = load_script("take")
_REGISTER = load_script("register")

# The end of a record written by a take.
_ENDING = re.compile(rb', "", ("(?:[^"\\\\]|\\\\.)*")\]\Z')

_T = TypeVar("_T")

_log = logging.getLogger(__name__)


class Delivery(NamedTuple):
    """A reserved message: its delivery tag, the queue that it came from, and its bytes."""

    tag: str
    queue: str
    raw: bytes


def tag_number(tag: str) -> int:
    """Return the number in one of greenq's tags; an owner's messages are ordered by it."""
    return int(tag.rpartition(":")[2])


def _ending(queue: str) -> str:
    """Return the text that ends the records of a queue's messages."""
    return f', "", {json.dumps(queue)}]'


def taken_apart(record: bytes) -> tuple[str, bytes]:
    """Split a record that a take has made into the queue and the message; any bytes are safe."""
    ending = _ENDING.search(record)
    if ending is None:
        return "celery", record
    return json.loads(ending[1]), record[1 : ending.start()]


def in_portions(items: Iterable[_T], size_of: Callable[[_T], int]) -> Iterator[list[_T]]:
    """Split items into portions, limited in number and in bytes.

    An item that exceeds the byte limit becomes a portion of its own.
    """
    portion: list[_T] = []
    left = PORTION_BYTES
    for item in items:
        size = size_of(item)
        if portion and (size > left or len(portion) == PORTION_COUNT):
            yield portion
            portion, left = [], PORTION_BYTES
        portion.append(item)
        left -= size
    if portion:
        yield portion


def turns_of(weights: Mapping[str, int]) -> tuple[str, ...]:
    """Return the turns of one round, spread evenly; a queue's weight is its number of turns.

    For each turn, all queues gain credit equal to their weight. The queue with the most credit gets
    the turn, and pays the sum of all weights for it.
    """
    # Divide the weights by their greatest common divisor, which would only make the rounds longer.
    divisor = math.gcd(*weights.values()) or 1
    gains = {name: weight // divisor for name, weight in weights.items()}
    gained = dict.fromkeys(gains, 0)
    total = sum(gains.values())
    turns: list[str] = []
    for _ in range(total):
        for name, gain in gains.items():
            gained[name] += gain
        name = max(gained, key=gained.__getitem__)
        gained[name] -= total
        turns.append(name)
    return tuple(turns)


class Taken(NamedTuple):
    """The result of one take: deliveries, and how many messages are left in the queues."""

    deliveries: list[Delivery]
    depth: int


class _TakePlan(NamedTuple):
    """The data shared by takes and waits on one set of queues.

    Attributes:
        queues: the queues to take from.
        turns: the same queues, each listed once for each of its turns.
        endings: for each turn, the text that ends the records of its queue.
        keys: the keys of a take.
        lists: the keys of the lists that messages are pushed to.
        blocking: the list and the inbox of each queue that has its own waiting connection.
    """

    queues: tuple[str, ...]
    turns: tuple[str, ...]
    endings: list[str]
    keys: list[str]
    lists: frozenset[str]
    blocking: list[tuple[str, str]]


class Fetcher:
    """The part of one worker incarnation that takes messages; one greenlet takes and waits.

    Delivery tags are ``<owner>:<number>``. A take names the number of its first tag, so a take
    repeated after a lost reply returns the messages that the first take reserved. Each call also
    has a number of its own, so a call that arrives after a later call takes nothing.

    The queues may change during a take or a wait. Each take or wait uses a plan prepared
    beforehand, and the next one uses the new plan.
    """

    def __init__(
        self,
        client: Client,
        keys: Keys,
        queues: Iterable[str],
        owner: str,
        *,
        rotate: bool = True,
        weights: Mapping[str, int] | None = None,
        member: str = "",
    ) -> None:
        """Take from `queues` on behalf of `owner`.

        Args:
            client, keys: the server, and its key names.
            queues: the queues to take from.
            owner: the incarnation named in delivery tags.
            rotate: if True, the queues are served in turn; otherwise, each queue is emptied before
                the next one.
            weights: the numbers of turns of the queues that have more than one.
            member: the owner's member of the leases, if that is more than its name.
        """
        self._client = client
        self._keys = keys
        self._owner = owner
        self._rotate = rotate
        self._weights = weights or {}
        self._prefix = f"{owner}:"
        self._member = member or owner
        self._next = 1
        self._calls = 0
        # True while it is unknown which messages the last take reserved.
        self.unsure = False
        # The first turn of the next take; negative if the queues have no turns.
        self._turn = 0 if rotate else -1
        self._plan = self._make_plan(queues)
        # The first connection takes messages, and waits on the first queue.
        self._connection = client.connection(timeout_s=_ANSWER_S)
        # The queues that the last wait set up its connections for.
        self._arranged: tuple[str, ...] = ()
        self._waiters: list[_Waiter] = []
        self._arrange(self._plan)
        # Set to end a wait without queues.
        self._rested = Event()
        # `_woken` means that the current wait must end. `_look` means that a take may find messages
        # that no wait was notified of.
        self._woken = self._look = False
        # True during a wait; any thread may read this.
        self.waiting = False
        # True if the server has returned messages or accepted a wait since the connections were
        # last closed.
        self.working = False

    @property
    def queues(self) -> tuple[str, ...]:
        """The queues for the next take."""
        return self._plan.queues

    @property
    def lists(self) -> frozenset[str]:
        """The lists of these queues that messages are pushed to."""
        return self._plan.lists

    @property
    def connections(self) -> list[Connection]:
        """The connections that this fetcher waits on: one for each of the first few queues."""
        return [waiter.connection for waiter in self._waiters]

    @property
    def first_unused(self) -> int:
        """The number of the first tag of the next take; any thread may read it."""
        return self._next

    def set_queues(self, queues: Iterable[str]) -> None:
        """Take from these queues, or from none, from now on; end a wait and trigger a take.

        Any greenlet of this thread may call this. A take in progress may still return messages from
        the old queues. Switches: yes.
        """
        plan = self._make_plan(queues)
        if plan.queues != self._plan.queues:
            self._plan = plan
            self.wake(look=True)

    def take(self, most: int) -> Taken:
        """Reserve up to `most` messages, most urgent first, and return them. Switches: yes.

        If `most` is 0, return only messages that were reserved by a take whose reply was lost.

        Raises:
            OperationalError: no message is lost; the next call returns the messages that this call
                may have reserved.
        """
        plan, prefix = self._plan, self._prefix
        if not plan.queues and not self.unsure:
            return Taken([], 0)
        self._calls += 1
        self.unsure = True
        answer = self._connection.script(
            _TAKE,
            plan.keys,
            [
                *(prefix, self._next, self._calls, min(most, TAKE_LIMIT), TAKE_BYTES),
                *(len(plan.turns), self._turn, self._member, *plan.endings),
            ],
        )
        depth, self._next, *triples = answer
        self.unsure = False
        queues = plan.turns
        numbers = iter(triples)
        deliveries = [
            Delivery(f"{prefix}{number}", queues[queue - 1], text)
            if queue
            else Delivery(f"{prefix}{number}", *taken_apart(text))
            for number, queue, text in zip(numbers, numbers, numbers, strict=True)
        ]
        self.working = self.working or bool(deliveries)
        if self._rotate and deliveries and queues:
            self._turn = (self._turn + 1) % len(queues)
        return Taken(deliveries, depth)

    def register(
        self, question: str, held: Iterable[Delivery], begun: Iterable[str], timeout_s: float
    ) -> bool:
        """Register this owner on a server that does not know it. Switches: yes.

        Args:
            question: the challenge that the last renewal of the lease returned.
            held: the deliveries that this owner believes it holds.
            begun: the tags of messages acknowledged before their run whose outcomes have not been
                written yet.
            timeout_s: the timeout for each call; held deliveries are sent in portions.

        Returns:
            True if the server did not know the owner, because the owner is new or because the
            server has lost its data.
        """
        keys, owner = self._keys, self._owner
        names = [
            *(keys.unacked, keys.unacked_index, keys.owner(owner), keys.begun(owner), keys.leases)
        ]
        first, calls, stubs = self._next, self._calls, list(begun)
        records = [(tag, b"[%b%b" % (raw, _ending(queue).encode())) for tag, queue, raw in held]
        portions = list(in_portions(records, lambda record: len(record[1]))) or [[]]
        known = False
        for number, portion in enumerate(portions, 1):
            is_last = number == len(portions)
            arguments: list[Any] = [
                *(self._member, first if is_last else "", calls, KNOWN_S, question, len(portion)),
            ]
            arguments += [part for record in portion for part in record]
            arguments += stubs if is_last else ()
            known = not self._client.script(
                _REGISTER, names, arguments, timeout_s=timeout_s, patient=True
            )
        return not known

    def _make_plan(self, queues: Iterable[str]) -> _TakePlan:
        """Prepare takes and waits on `queues`."""
        keys = self._keys
        names = tuple(dict.fromkeys(queues))
        turns = turns_of({name: self._weights.get(name, 1) for name in names})
        inboxes = [keys.inbox(queue) for queue in turns]
        lists = [[keys.queue(queue, step) for queue in turns] for step in keys.steps]
        return _TakePlan(
            queues=names,
            turns=turns,
            endings=[_ending(queue) for queue in turns],
            keys=[
                *(keys.unacked, keys.unacked_index, keys.owner(self._owner), keys.leases),
                *chain(inboxes, *lists),
            ],
            lists=frozenset(chain.from_iterable(lists)),
            blocking=[(keys.queue(name), keys.inbox(name)) for name in names[:BLOCKING_QUEUES]],
        )

    def wait(self) -> bool:
        """Wait for work, for `wake`, or for a minute; return True if a take may find messages.

        Call this after a take that left no messages in the queues. If a message has arrived since
        that take, the wait ends immediately. Switches: yes.

        Raises:
            OperationalError: the server cannot be reached.
        """
        plan = self._plan
        self._woken = False
        if plan.queues != self._arranged:
            self._arrange(plan)
        self.waiting = True
        try:
            found = self._look or self._block_all()
        finally:
            self.waiting = False
        look, self._look = self._look, False
        return found or look

    def _arrange(self, plan: _TakePlan) -> None:
        """Set up a waiter for each of the first few queues; call it only between waits.

        Connections are reused by position; only surplus ones are closed.
        """
        connections = [self._connection, *(waiter.connection for waiter in self._waiters[1:])]
        kept = len(plan.blocking)
        for connection in connections[kept:]:
            connection.close()
        while len(connections) < kept:
            connections.append(self._client.connection(timeout_s=_ANSWER_S))
        self._waiters = [
            _Waiter(connection, source, inbox)
            for connection, (source, inbox) in zip(connections, plan.blocking, strict=False)
        ]
        self._arranged = plan.queues

    def _block_all(self) -> bool:
        if not self._waiters:
            self._rested.clear()
            if not self._woken:
                self._rested.wait(_BLOCK_S)
            return False
        if len(self._waiters) == 1:
            return self._block(self._waiters[0])
        answers = run_all([(f"wait {w.source}", partial(self._block, w)) for w in self._waiters])
        return any(answers)

    def wake(self, *, look: bool = False) -> None:
        """End the wait in progress, if any. Switches: yes.

        If `look` is true, the wait reports that a take may find messages; if no wait is in
        progress, the next one ends immediately.
        """
        self._look = self._look or look
        self._wake_others(None)
        self._rested.set()

    def leave(self) -> None:
        """Put unfetched inbox messages back on their queues, because only greenq reads inboxes.

        Raises:
            OperationalError: the next take of another worker will find the remaining messages.
        """
        for source, inbox in self._plan.blocking:
            moved = True
            while moved:
                moved = self._client.call("LMOVE", inbox, source, "LEFT", "RIGHT")

    def cut(self, connection: Connection) -> None:
        """End the waits of a blocked fetcher, and put back their messages; for another thread.

        Raises:
            OperationalError: the next take of another worker will find the remaining messages.
        """
        numbers = [waiter.connection.number for waiter in self._waiters]
        kills = [("CLIENT", "KILL", "ID", number) for number in numbers if number is not None]
        if kills:
            connection.try_pipeline(kills)
        for source, inbox in self._plan.blocking:
            while connection.call("LMOVE", inbox, source, "LEFT", "RIGHT"):
                pass

    def close(self) -> None:
        """Close the connections; a message being handed over at this moment stays in the inbox."""
        self.working = False
        self._connection.close()
        for waiter in self._waiters:
            waiter.connection.close()

    def _block(self, waiter: _Waiter) -> bool:
        """Block on the waiter's connection until the server moves a message into the inbox."""
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
            # When one wait ends, for any reason, all other waits must end too.
            if not self._woken:
                self._wake_others(waiter)
        if answer is not None and self._plan.queues != self._arranged and self._is_former(waiter):
            # The message arrived while the queues were being changed. Put it back, since it may be
            # a long time before another worker reads this inbox.
            connection.call("LMOVE", waiter.inbox, waiter.source, "LEFT", "RIGHT")
        return answer is not None

    def _is_former(self, waiter: _Waiter) -> bool:
        """Return whether a waiter's queue is no longer among the queues to take from."""
        return all(waiter.inbox != self._keys.inbox(queue) for queue in self._plan.queues)

    def _receive(self, waiter: _Waiter) -> bytes | None:
        """Return the reply to the BLMOVE; if the wait must end, end the BLMOVE first."""
        connection = waiter.connection
        limit_s = _BLOCK_S + _GRACE_S
        if self._woken:
            # End the BLMOVE, unless its reply has arrived or is in transit.
            for pause_s in _pauses():
                if connection.has_answer() or self._unblock(waiter):
                    break
                sleep(pause_s)
            limit_s = _GRACE_S
        answer = connection.receive("BLMOVE", timeout_s=limit_s)
        if isinstance(answer, OperationalError):
            # A server that has run out of memory still accepts takes that find nothing, but refuses
            # a BLMOVE that would block.
            self.working = False
            raise answer
        moved: bytes | None = answer
        return moved

    def _wake_others(self, waiter: _Waiter | None) -> None:
        """End all waits except that of `waiter`, whose greenlet calls this, and ends its own."""
        self._woken = True
        others = [other for other in self._waiters if other is not waiter]
        for other in others:
            problem: object = "no answer"
            try:
                ended = self._end(other)
            except OperationalError as exc:
                ended, problem = False, exc
            if not ended:
                _log.info("reconnecting: could not end the wait on %s: %s", other.source, problem)
                for each in others:
                    each.connection.close()
                return

    def _end(self, waiter: _Waiter) -> bool:
        """End a BLMOVE from outside; return True if its greenlet has read the reply.

        Raises:
            OperationalError: the server could not be reached.
        """
        for pause_s in _pauses():
            if waiter.ended.is_set():
                return True
            if self._unblock(waiter):
                return bool(waiter.ended.wait(_GRACE_S))
            waiter.ended.wait(pause_s)
        return bool(waiter.ended.is_set())

    def _unblock(self, waiter: _Waiter) -> bool:
        """Unblock one BLMOVE, which then returns nil, or a message that arrived just before.

        Return False if the server did not find the BLMOVE blocked: either the server has already
        answered it, or it has not read it yet, because it was sent on another socket.
        """
        number = waiter.connection.number
        # The call is patient, since the tasks use the same connections.
        return bool(
            self._client.call("CLIENT", "UNBLOCK", number, timeout_s=_GRACE_S, patient=True)
        )


def _pauses() -> Iterator[float]:
    """Yield growing pauses while a reply is in transit, up to a total of `_GRACE_S`."""
    pause_s, left_s = _RETRY_FIRST_S, _GRACE_S
    while left_s > 0:
        yield pause_s
        left_s -= pause_s
        pause_s = min(pause_s * 2, _RETRY_MOST_S)


class _Waiter:
    """A connection that waits on one list, and its state."""

    __slots__ = ("connection", "ended", "inbox", "source")

    def __init__(self, connection: Connection, source: str, inbox: str) -> None:
        self.connection = connection
        self.source = source
        self.inbox = inbox
        # Set unless a BLMOVE is in progress.
        self.ended = Event()
        self.ended.set()
