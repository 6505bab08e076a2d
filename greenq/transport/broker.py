"""The places where a message can be, and all moves between them except the take.

queued     list per queue and priority step        `publish` puts it there
reserved   `unacked` hash + `unacked_index` zset   `take` (fetch.py) moves it there
parked     zset per queue, by ETA                  `park`, until `promote` moves it back
buried     dead-letter list per queue              `bury` moves it there
done       acknowledged: gone                      the outbox writes it

Every move of a reserved message is one script (lua/settle.lua), which does nothing if the record is
gone. So repeating a move after a lost reply is harmless.
"""

from __future__ import annotations

import json
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from greenq.config.queues import Binding, Exchange, Queue
from greenq.errors import AccessRefused, DecodeError, OperationalError, QueueFull
from greenq.protocol import envelope
from greenq.protocol.ids import sent_at
from greenq.protocol.keys import (
    DIRECT_EXCHANGE,
    DIRECT_SUFFIX,
    binding_member,
    matching_queues,
    topic_pattern,
)
from greenq.protocol.limits import KEPT_NAME, named
from greenq.transport.client import load_script
from greenq.transport.dead_letters import DEAD_LIMITS, DeadLimits, write_letter
from greenq.transport.settle import Move
from greenq.transport.takers import Takers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from greenq.config.queues import Broadcast
    from greenq.protocol.keys import Keys
    from greenq.protocol.signer import Signer
    from greenq.transport.client import Client, Command, Connection

_PROMOTE = load_script("promote")
_PUBLISH_ONCE = load_script("publish_once")
_PAUSE = load_script("pause")
_BIND_EXPIRING = load_script("bind_expiring")
_PUSH_LIMITED = load_script("push_limited")

# How many queues may be paused at once.
_PAUSED = 1000

# How many declared queues, and how many names of lists, are cached. If there are more, queues are
# declared again and names are computed again.
_DECLARED = 10_000

# The death counts that a message may carry. They are used to find the message on the server when it
# is sent again.
_DEATHS = (None, 1, 2)


# As in Celery, the bindings of an expiring queue are kept for twice the queue's expiry, and for at
# least an hour. The pause between renewals is a third of the expiry.
_BINDING_LIVES = 2
_LEAST_BINDING_S = 3600.0
_RENEWALS = 3

# How many exchanges whose bindings have expired are cleaned up at once.
_SWEPT = 100


def own_binding(queue: str) -> Binding:
    """Return the binding of a queue that the settings do not name.

    Its exchange has the queue's name; the private queues of workers, ``<node>.dq2``, share one
    exchange.
    """
    node = queue.removesuffix(DIRECT_SUFFIX)
    if node != queue and "@" in node:
        return Binding(Exchange(DIRECT_EXCHANGE), node)
    return Binding(Exchange(queue), queue)


class Broker:
    """The queues on one server, and all calls for them except the take. Switches: yes."""

    def __init__(
        self,
        client: Client,
        keys: Keys,
        dead_limits: DeadLimits = DEAD_LIMITS,
        signer: Signer | None = None,
        queues: Mapping[str, Queue | Broadcast] | None = None,
    ) -> None:
        """Use the server of `client`.

        Args:
            client, keys: the server, and its key names.
            dead_limits: the limits on dead letters.
            signer: signs messages; None leaves them unsigned.
            queues: the queues that the settings declare, by name.
        """
        self.client = client
        self.keys = keys
        self.signer = signer
        self._dead_limits = dead_limits
        declared = (queues or {}).values()
        self._queues = {queue.name: queue for queue in declared if isinstance(queue, Queue)}
        # The queues with limits. Pushing to any other queue is one plain command.
        self._limited = {
            name: queue
            for name, queue in self._queues.items()
            if queue.expires is not None or queue.max_length is not None
        }
        # Queues whose binding this process has written. Writing twice is harmless, so there is no
        # lock.
        self._declared: set[str] = set()
        self._takers = Takers(keys)
        # The names of lists are cached, since senders use the same few lists repeatedly.
        self._list: Callable[[str, object], str] = lru_cache(_DECLARED)(
            lambda queue, priority: keys.queue(queue, keys.step_of(priority))
        )

    def bindings_of(self, queue: str) -> tuple[Binding, ...]:
        """Return the bindings of a queue: those of the settings, or one to its own exchange."""
        known = self._queues.get(queue)
        # A queue given by name may also be the private queue of a worker.
        if known is None or known.sources == (Binding(Exchange(queue), queue),):
            return (own_binding(queue),)
        return known.sources

    def declare_commands(self, queue: str) -> list[Command]:
        """Return the commands that declare a queue, or none if this process has already sent them.

        Unless the queue expires, the commands also add its binding to the permanent bindings.
        Otherwise, a Celery process that removes expired bindings could remove this one too.
        """
        if queue in self._declared:
            return []
        return [
            command
            for binding in self.bindings_of(queue)
            for command in self._bind_commands(queue, binding)
        ]

    def _bind_commands(self, queue: str, binding: Binding) -> list[Command]:
        exchange, keys = binding.exchange, self.keys
        pattern = topic_pattern(binding.routing_key) if exchange.type == "topic" else ""
        member = binding_member(binding.routing_key, pattern, queue, keys.sep)
        limited = self._limited.get(queue)
        if limited is None or limited.expires is None:
            return [
                ("SADD", keys.binding(exchange.name), member),
                ("SADD", keys.permanent_binding(exchange.name), member),
            ]
        kept_ms = round(max(limited.expires * _BINDING_LIVES, _LEAST_BINDING_S) * 1000)
        return [
            (
                *("EVAL", _BIND_EXPIRING.source, 2),
                *(keys.binding(exchange.name), keys.binding_deadlines),
                *(member, exchange.name, kept_ms),
                *(keys.binding(""), keys.permanent_binding(""), _SWEPT),
            )
        ]

    def bind(self, queue: str, binding: Binding) -> None:
        """Route messages published on an exchange to a queue, which then counts as declared."""
        self.client.pipeline(self._bind_commands(queue, binding))
        self._note_declared(queue)

    def limits_of(self, queue: str) -> tuple[float | None, int | None]:
        """Return a queue's expiry in seconds, and its maximum length; None means no limit."""
        limited = self._limited.get(queue)
        return (None, None) if limited is None else (limited.expires, limited.max_length)

    def expires_of(self, queues: Iterable[str]) -> dict[str, float]:
        """Return, for each expiring queue, how many seconds it lives without use."""
        limited = (self._limited.get(queue) for queue in queues)
        return {
            queue.name: queue.expires
            for queue in limited
            if queue is not None and queue.expires is not None
        }

    def renewal_s(self, queues: Iterable[str]) -> float | None:
        """Return how often to call `renew` for queues, in seconds; None if no queue expires."""
        lives = self.expires_of(queues).values()
        return min(*lives, _LEAST_BINDING_S) / _RENEWALS if lives else None

    def renew(self, queues: Iterable[str]) -> None:
        """Keep expiring queues and their bindings while a worker takes from them. Switches: yes.

        Raises:
            OperationalError: the server could not be reached; the queues remain for a while.
        """
        commands: list[Command] = []
        for queue in self.expires_of(queues):
            commands += self._expire_commands(queue)
            for binding in self.bindings_of(queue):
                commands += self._bind_commands(queue, binding)
        if commands:
            self.client.pipeline(commands)

    def _expire_commands(self, queue: str) -> list[Command]:
        limited = self._limited.get(queue)
        if limited is None or limited.expires is None:
            return []
        left_ms = round(limited.expires * 1000)
        return [("PEXPIRE", key, left_ms) for key in self.lists([queue])]

    def _push_command(self, queue: str, key: str, texts: Sequence[str | bytes]) -> Command:
        limited = self._limited.get(queue)
        if limited is None or limited.max_length is None:
            return ("LPUSH", key, *texts)
        keys = (key, *self.lists([queue]))
        return ("EVAL", _PUSH_LIMITED.source, len(keys), *keys, limited.max_length, *texts)

    def declare(self, queues: Iterable[str]) -> None:
        """Declare queues for senders that publish by exchange."""
        names = list(queues)
        commands = [command for queue in names for command in self.declare_commands(queue)]
        if commands:
            self.client.pipeline(commands)
            self._note_declared(*names)

    def _note_declared(self, *queues: str) -> None:
        if len(self._declared) >= _DECLARED:
            self._declared.clear()
        self._declared.update(queues)

    def kind(self, queue: str) -> str:
        """Return the type of a queue's key: ``list``, or ``none`` if the queue is empty."""
        kind: bytes = self.client.call("TYPE", self.keys.queue(queue))
        return kind.decode()

    def publish(
        self,
        queue: str,
        texts: Sequence[str | bytes],
        priority: object = 0,
        *,
        timeout_s: float | None = None,
    ) -> None:
        """Push messages in one command and one round trip: all of them or none, in this order.

        The first push also declares the queue. It is not an error if this user is not allowed to
        declare it, since the workers also do so. From time to time, the same round trip also asks
        which workers take from the queue.

        Raises:
            QueueFull: the queue has a length limit and no room for the messages.
        """
        declare, takers = self.declare_commands(queue), self._takers
        is_known = takers.clock() < takers.ask_at_s.get(queue, 0.0)
        question = [] if is_known else takers.question(queue)
        key = self._list(queue, priority)
        with self.client.pooled(timeout_s, patient=True) as connection:
            if queue in self._limited:
                push = [self._push_command(queue, key, texts), *self._expire_commands(queue)]
            else:
                push = [("LPUSH", key, *texts)]
            answers = connection.try_pipeline([*declare, *push, *question])
        pushed = answers[len(declare)]
        for answer in answers[: len(declare) + 1]:
            if isinstance(answer, OperationalError) and (
                answer is pushed or not isinstance(answer, AccessRefused)
            ):
                raise answer
        if pushed < 0:
            raise QueueFull(
                f"queue {queue!r} has {-1 - pushed:,} waiting messages, and its max_length is "
                f"{self._queues[queue].max_length:,}: send again when its workers have caught up"
            )
        if question:
            self._takers.warn_if_untaken(queue, answers[-1])
        if declare:
            self._note_declared(queue)

    def publish_once(
        self,
        queue: str,
        texts: Sequence[str | bytes],
        priority: object = 0,
        *,
        new_ids: Iterable[str] = (),
        timeout_s: float | None = None,
    ) -> bool:
        """Push messages unless an earlier push has left traces; return False in that case.

        The messages are pushed together or not at all, so a trace of one proves that all arrived.
        If their task ids were generated for this call, `new_ids` are these ids, and a result then
        also counts as a trace.
        """
        keys = self.keys
        step = keys.step_of(priority)
        names = [
            *(keys.queue(queue, step), keys.queue(queue, keys.steps[0]), keys.inbox(queue)),
            *(keys.unacked, keys.eta(queue), *map(keys.result, new_ids)),
        ]
        newest = texts[-1]
        # The forms that the message may have if it was requeued, possibly after workers died while
        # running it.
        marked = [self._marked(queue, newest, deaths) for deaths in _DEATHS]
        args = [
            *(f', "", {json.dumps(queue)}]', f"{keys.steps.index(step) + 1}|"),
            *(len(marked), *marked, *texts),
        ]
        declare = self.declare_commands(queue)
        with self.client.pooled(timeout_s, patient=True) as connection:
            if declare:
                connection.try_pipeline(declare)
            pushed = bool(connection.script(_PUBLISH_ONCE, names, args))
        self._note_declared(queue)
        return pushed

    def broadcast(
        self,
        exchange: str,
        texts: Sequence[str | bytes],
        routing_key: str,
        *,
        timeout_s: float | None = None,
    ) -> int:
        """Publish messages to all subscribers of a fanout exchange; return how many there are.

        Either all messages are published or none. Nothing is stored.
        """
        channel = self.keys.fanout(exchange, routing_key)
        publishing: list[Command] = [("PUBLISH", channel, text) for text in texts]
        with self.client.pooled(timeout_s, patient=True) as connection:
            answers = connection.pipeline([("MULTI",), *publishing, ("EXEC",)])
        return int(min(answers[-1]))

    def depth(self, queues: Iterable[str], *, timeout_s: float | None = None) -> int:
        """Count the messages waiting in these queues, of all priorities together."""
        commands: list[Command] = [("LLEN", key) for key in self.lists(queues)]
        return sum(self.client.pipeline(commands, timeout_s=timeout_s)) if commands else 0

    def depths(self, queues: Iterable[str]) -> dict[str, dict[int | str, int]]:
        """Count the messages in each place of each queue, all in one round trip.

        Shape: waiting messages by priority step, as a number; messages handed to a waiting worker
            as ``inbox``, messages parked until their ETA as ``parked``, and dead letters as
            ``dead``.
        """
        keys, names = self.keys, tuple(dict.fromkeys(queues))
        if not names:
            return {}
        places: tuple[int | str, ...] = (*keys.steps, "inbox", "parked", "dead")
        commands: list[Command] = []
        for queue in names:
            commands += [("LLEN", key) for key in keys.queue_steps(queue)]
            commands += [
                ("LLEN", keys.inbox(queue)),
                ("ZCARD", keys.eta(queue)),
                ("LLEN", keys.dead(queue)),
            ]
        counts = iter(self.client.pipeline(commands))
        return {queue: {place: next(counts) for place in places} for queue in names}

    def parked(
        self, queues: Iterable[str], offset: int, limit: int
    ) -> list[tuple[float, str, bytes]]:
        """Return a page of the parked messages, queue by queue.

        Shape: the due time (unix), the queue and the bytes of each message; within a queue, the
            message that is due soonest comes first.
        """
        names = tuple(dict.fromkeys(queues))
        if limit <= 0 or not names:
            return []
        sizes = self.client.pipeline([("ZCARD", self.keys.eta(queue)) for queue in names])
        page: list[tuple[float, str, bytes]] = []
        for queue, size in zip(names, sizes, strict=True):
            last = min(size, offset + limit - len(page)) - 1
            if offset <= last:
                found = self.client.call("ZRANGE", self.keys.eta(queue), offset, last, "WITHSCORES")
                # Each message is preceded by the number of the list that it goes back to.
                page += [
                    (float(due), queue, text.partition(b"|")[2])
                    for text, due in zip(found[::2], found[1::2], strict=True)
                ]
            offset = max(0, offset - size)
        return page

    def oldest(self, queues: Iterable[str]) -> dict[str, float]:
        """Return when the oldest message waiting in each queue was sent, in unix time.

        Empty queues are omitted, and so are queues whose next messages contain no time: greenq's
        senders write the time into the delivery tag, but Celery's do not.
        """
        names = tuple(dict.fromkeys(queues))
        commands: list[Command] = [
            ("LINDEX", key, -1) for queue in names for key in self.lists([queue])
        ]
        lists = len(self.lists(names[:1]))
        firsts = self.client.pipeline(commands) if commands else []
        found: dict[str, float] = {}
        for number, queue in enumerate(names):
            firsts_of = firsts[number * lists : (number + 1) * lists]
            moments = [at for raw in firsts_of if raw and (at := _sent_at(raw)) is not None]
            if moments:
                found[queue] = min(moments)
        return found

    def pause(self, queue: str, by: str) -> None:
        """Stop all greenq workers in the cluster from taking from a queue, until `resume`.

        Each worker learns of the pause at its next lease renewal. Messages already taken still run.

        Args:
            queue: its name; sending to it still works.
            by: the node or client that pauses it, for display.

        Raises:
            ValueError: the name is too long, or too many queues are paused.
        """
        wrong = KEPT_NAME.wrong(queue)
        if wrong:
            raise ValueError(named("the queue's name", wrong))
        note = json.dumps({"by": by[: KEPT_NAME.most], "at": time.time()})
        if not self.client.script(_PAUSE, [self.keys.paused], [queue, note, _PAUSED]):
            raise ValueError(
                f"{_PAUSED:,} queues are already paused; resume one first: greenq control resume"
            )

    def resume(self, queue: str) -> bool:
        """Let workers take from a paused queue again; return False if it was not paused."""
        return bool(self.client.call("HDEL", self.keys.paused, queue))

    def paused(self) -> dict[str, dict[str, Any]]:
        """Return the paused queues, each with the node or client that paused it, and the time.

        Shape: ``{queue: {"by": node or client, "at": unix seconds}}``.
        """
        answer = self.client.call("HGETALL", self.keys.paused)
        pairs = zip(answer[::2], answer[1::2], strict=True)
        return {queue.decode(errors="replace"): _parse_note(text) for queue, text in pairs}

    def purge(self, queue: str) -> int:
        """Delete all messages waiting in a queue, and return how many there were."""
        lists = self.lists([queue])
        commands: list[Command] = [("MULTI",), *(("LLEN", key) for key in lists)]
        answers = self.client.pipeline([*commands, ("DEL", *lists), ("EXEC",)])
        return sum(answers[-1][:-1])

    @staticmethod
    def move(tag: str, key: str, text: str | bytes) -> Move:
        """Build the move that replaces a reserved message with a new one."""
        return Move(tag, key, "last", text)

    def requeue(
        self,
        tag: str,
        queue: str,
        raw: bytes,
        side: Literal["next", "last"],
        *,
        deliveries: int | None = None,
    ) -> Move:
        """Build the move that requeues a message, marked as redelivered.

        `deliveries` is the new count of workers that died while running the message, if any did.
        """
        try:
            priority = envelope.unwrap(raw).properties.get("priority")
            text = self._marked(queue, raw, deliveries)
        except DecodeError:
            priority, text = 0, raw
        return Move(tag, self.keys.queue(queue, self.keys.step_of(priority)), side, text)

    def _marked(self, queue: str, raw: str | bytes, deliveries: int | None) -> str | bytes:
        return self.resealed(queue, raw, envelope.mark_redelivered(raw, deliveries))

    def resealed(self, queue: str, raw: str | bytes, changed: str) -> str | bytes:
        """Return `changed`, a new form of a message of `queue`, signed if that message was signed.

        If the message has no valid signature, `changed` is returned as it is.
        """
        if self.signer is None:
            return changed
        data = raw if isinstance(raw, bytes) else raw.encode()
        return self.signer.reseal("message", queue, data, changed)

    def park(self, tag: str, queue: str, raw: bytes, priority: object, due: float) -> Move:
        """Build the move that parks a message until `due` (unix seconds by the server's clock)."""
        place = self.keys.steps.index(self.keys.step_of(priority)) + 1
        return Move(tag, self.keys.eta(queue), due, b"%d|%b" % (place, raw))

    def promote(self, connection: Connection, queue: str, most: int) -> int:
        """Move up to `most` due parked messages to their queue; return how many were moved."""
        keys = [self.keys.eta(queue), *self.keys.queue_steps(queue)]
        moved: int = connection.script(_PROMOTE, keys, [most])
        return moved

    def bury(
        self, tag: str, queue: str, raw: bytes, *, reason: str, worker: str, now: datetime
    ) -> Move:
        """Build the move that puts a message on its queue's dead-letter list."""
        limits = self._dead_limits
        most_bytes = limits.most_letter_bytes
        letter = write_letter(raw, reason=reason, worker=worker, now=now, most_bytes=most_bytes)
        return Move(tag, self.keys.dead(queue), limits.side(now), letter)

    def tags_of(self, server: Client | Connection, owner: str) -> Iterator[list[str]]:
        """Yield the tags of an owner's records in portions, without reading any messages."""
        cursor: Any = 0
        while True:
            cursor, found = server.call(
                *("ZSCAN", self.keys.unacked_index, cursor, "MATCH", f"{owner}:*", "COUNT", 1000)
            )
            yield [tag.decode() for tag in found[::2]]
            if int(cursor) == 0:
                return

    def is_taken_away(self, tag: str) -> bool:
        """Return whether a message reserved under a tag has since been given to another worker.

        A server that has lost its data does not know the owner; the result is then False.
        """
        owner, _, number = tag.rpartition(":")
        held, first_unused = self.client.pipeline(
            [("HEXISTS", self.keys.unacked, tag), ("HGET", self.keys.owner(owner), "next")]
        )
        return not held and int(first_unused or 0) > int(number)

    def bound_queues(self, connection: Connection, exchange: str, routing_key: str) -> list[str]:
        """Return the queues that an exchange's bindings lead to for a routing key.

        Queues that the settings name are declared first, so that messages wait there even if the
        workers of these queues have never run.
        """
        names = [
            queue.name
            for queue in self._queues.values()
            if queue.name not in self._declared
            and any(exchange == binding.exchange.name for binding in queue.sources)
        ]
        if names:
            commands = [command for queue in names for command in self.declare_commands(queue)]
            answers = connection.try_pipeline(commands)
            if not any(isinstance(answer, OperationalError) for answer in answers):
                self._note_declared(*names)
        members = connection.call("SMEMBERS", self.keys.binding(exchange))
        return matching_queues(members, routing_key, self.keys.sep)

    def lists(self, queues: Iterable[str]) -> list[str]:
        """Return all lists that messages of these queues wait in."""
        return [
            key
            for queue in queues
            for key in (self.keys.inbox(queue), *self.keys.queue_steps(queue))
        ]


def _sent_at(raw: bytes) -> float | None:
    """Return when a message was sent, according to its delivery tag."""
    try:
        tag = envelope.unwrap(raw).properties.get("delivery_tag")
    except DecodeError:
        return None
    return sent_at(tag) if isinstance(tag, str) else None


def _parse_note(text: bytes) -> dict[str, Any]:
    """Parse the note about a paused queue, which stays paused even if its note is unreadable."""
    try:
        note = json.loads(text)
    except ValueError:
        note = None
    return note if isinstance(note, dict) else {"by": "?", "at": None}
