"""The places where a message can be, and the moves between them that are not the take.

queued     list per queue and priority step        `publish` puts it there
reserved   `unacked` hash + `unacked_index` zset   `take` (intake.py) moves it there
parked     zset per queue, by ETA                  `park`, until `promote` moves it back
buried     dead-letter list per queue              `bury` moves it there
done       acknowledged: gone                      the outbox writes it

Every move of a reserved message is one script (lua/move.lua) that does nothing when the record is
gone, so it can be repeated when an answer got lost.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Literal, NamedTuple

from greenq.errors import DecodeError
from greenq.protocol import envelope
from greenq.protocol.keys import binding_member, matching_queues
from greenq.transport.client import load_script
from greenq.transport.dead import DEAD_LIMIT, write_letter

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from greenq.protocol.keys import Keys
    from greenq.transport.client import Client, Command, Connection

_MOVE = load_script("move")
_PROMOTE = load_script("promote")
_PUBLISH_ONCE = load_script("publish_once")


class Move(NamedTuple):
    """One reserved message on its way elsewhere.

    `side` is the end of the list ``key``, or a score in the zset ``key``.
    """

    tag: str
    key: str
    side: Literal["next", "last"] | float
    text: str | bytes


class Broker:
    """Queues on one server: declare, publish, look, give back, bury. Switches: yes, all of it."""

    def __init__(self, client: Client, keys: Keys) -> None:
        """Work on `client`'s server with the key names of `keys`."""
        self.client = client
        self.keys = keys
        # Queues whose binding this process has written; written twice is harmless, so no lock.
        self._declared: set[str] = set()

    def declare_commands(self, queue: str) -> list[Command]:
        """Return the commands that make a queue known, or none if this process did it already.

        Both binding sets, as for a queue without expiry: with the first alone, a Celery process
            that
        sweeps expired bindings could remove it. The default exchange of a queue has the queue's
        name.
        """
        if queue in self._declared:
            return []
        member = binding_member(queue, "", queue)
        return [
            ("SADD", self.keys.binding(queue), member),
            ("SADD", self.keys.permanent_binding(queue), member),
        ]

    def declare(self, queues: Iterable[str]) -> None:
        """Make queues known to all who publish by exchange."""
        names = list(queues)
        commands = [command for queue in names for command in self.declare_commands(queue)]
        if commands:
            self.client.pipeline(commands)
            self._declared.update(names)

    def publish(
        self, queue: str, text: str, priority: object = 0, *, timeout_s: float | None = None
    ) -> None:
        """Push one message, in one round trip, declaring its queue the first time."""
        declare = self.declare_commands(queue)
        key = self.keys.queue(queue, self.keys.step_of(priority))
        self.client.pipeline([*declare, ("LPUSH", key, text)], timeout_s=timeout_s)
        if declare:
            self._declared.add(queue)

    def publish_once(
        self,
        queue: str,
        text: str,
        priority: object = 0,
        *,
        new_id: str | None = None,
        timeout_s: float | None = None,
    ) -> bool:
        """Push a message whose first push may have arrived; False if the server has traces of it.

        `new_id` is its task's id if that was made for this sending: then a result is a trace, too.
        """
        keys = self.keys
        step = keys.step_of(priority)
        names = [keys.queue(queue, step), keys.inbox(queue), keys.unacked, keys.eta(queue)]
        if new_id is not None:
            names.append(keys.result(new_id))
        args = [text, f', "", {json.dumps(queue)}]', f"{keys.steps.index(step) + 1}|{text}"]
        declare = self.declare_commands(queue)
        with self.client.pooled(timeout_s) as connection:
            if declare:
                connection.pipeline(declare)
            pushed = bool(connection.script(_PUBLISH_ONCE, names, args))
        self._declared.add(queue)
        return pushed

    def depth(self, queues: Iterable[str], *, timeout_s: float | None = None) -> int:
        """Count the messages that wait in queues, all priorities together."""
        commands: list[Command] = [("LLEN", key) for key in self._lists(queues)]
        return sum(self.client.pipeline(commands, timeout_s=timeout_s))

    def purge(self, queue: str) -> int:
        """Delete all waiting messages of a queue and return how many there were."""
        lists = self._lists([queue])
        commands: list[Command] = [("MULTI",), *(("LLEN", key) for key in lists)]
        answers = self.client.pipeline([*commands, ("DEL", *lists), ("EXEC",)])
        return sum(answers[-1][:-1])

    @staticmethod
    def move(tag: str, key: str, text: str) -> Move:
        """Make the move that puts a new message in the place of a reserved one."""
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
        """Make the move that gives a message back to its queue, marked as redelivered.

        `deliveries` is the new count of workers that died with it, if one has.
        """
        try:
            priority = envelope.unwrap(raw).properties.get("priority")
            text: str | bytes = envelope.mark_redelivered(raw, deliveries)
        except DecodeError:
            priority, text = 0, raw
        return Move(tag, self.keys.queue(queue, self.keys.step_of(priority)), side, text)

    def park(self, tag: str, queue: str, raw: bytes, priority: object, due: float) -> Move:
        """Make the move that puts a message aside until `due`, unix seconds, server's clock."""
        place = self.keys.steps.index(self.keys.step_of(priority)) + 1
        return Move(tag, self.keys.eta(queue), due, b"%d|%b" % (place, raw))

    def promote(self, connection: Connection, queue: str, most: int) -> int:
        """Move up to `most` parked messages that are due to their queue; return how many were."""
        keys = [self.keys.eta(queue), *self.keys.queue_steps(queue)]
        moved: int = connection.script(_PROMOTE, keys, [most])
        return moved

    def bury(
        self, tag: str, queue: str, raw: bytes, *, reason: str, worker: str, now: datetime
    ) -> Move:
        """Make the move that puts a message into its queue's dead-letter list."""
        letter = write_letter(raw, reason=reason, worker=worker, now=now)
        return Move(tag, self.keys.dead(queue), "last", letter)

    def move_command(self, moves: Sequence[Move]) -> Command:
        """Write moves as one script call, for a pipeline; the server must know the script."""
        keys = list(dict.fromkeys(move.key for move in moves))
        args: list[object] = []
        for move in moves:
            side = move.side if isinstance(move.side, str) else f"{move.side:.6f}"
            args += (move.tag, keys.index(move.key) + 1, side, move.text)
        fixed = (self.keys.unacked, self.keys.unacked_index)
        return ("EVALSHA", _MOVE.sha, 2 + len(keys), *fixed, *keys, *args)

    def bound_commands(self, moves: Sequence[Move]) -> list[Command]:
        """Return the commands that keep the dead-letter lists among the moves' goals bounded."""
        dead = {move.key for move in moves if move.key.startswith(self.keys.dead(""))}
        return [("LTRIM", key, 0, DEAD_LIMIT - 1) for key in dead]

    def is_taken_away(self, tag: str) -> bool:
        """Tell whether a message that was reserved under a tag has been given to somebody else.

        A server that has lost its data has given it to nobody: then the owner's counter is gone.
        """
        owner, _, number = tag.rpartition(":")
        held, first_unused = self.client.pipeline(
            [("HEXISTS", self.keys.unacked, tag), ("GET", self.keys.taken(owner))]
        )
        return not held and int(first_unused or 0) > int(number)

    def ack_commands(self, tags: Sequence[str]) -> list[Command]:
        """Return the commands that acknowledge messages."""
        return [
            ("ZREM", self.keys.unacked_index, *tags),
            ("HDEL", self.keys.unacked, *tags),
        ]

    def bound_queues(self, connection: Connection, exchange: str, routing_key: str) -> list[str]:
        """Return the queues that an exchange's bindings lead to for a routing key."""
        members = connection.call("SMEMBERS", self.keys.binding(exchange))
        return matching_queues(members, routing_key, self.keys.sep)

    @staticmethod
    def load_scripts(connection: Connection) -> None:
        """Make the scripts of `move_command` known to the server."""
        connection.call("SCRIPT", "LOAD", _MOVE.source)

    def _lists(self, queues: Iterable[str]) -> list[str]:
        return [
            key
            for queue in queues
            for key in (self.keys.inbox(queue), *self.keys.queue_steps(queue))
        ]
