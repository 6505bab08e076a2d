"""Dead letters: the messages that no worker may run, with the reason; looked at, replayed, purged.

A queue's dead letters are one list, newest first, of JSON texts that keep the message as base64, so
bytes that are no text are kept as well. Workers write them (`Broker.bury`); a person decides what
becomes of them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from heapq import merge
from typing import TYPE_CHECKING

from greenq.errors import DecodeError, OperationalError
from greenq.protocol import envelope
from greenq.transport.client import load_script

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from greenq.protocol.keys import Keys
    from greenq.transport.client import Client, Command

# Dead letters a queue keeps; the oldest go first.
DEAD_LIMIT = 10_000

# Letters read at a time. Each may be as large as the largest message.
_PORTION = 20

_REPLAY = load_script("replay")
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that no worker may run.

    Attributes:
        queue: from which it was taken.
        reason: why, a sentence.
        buried_at: when, by the clock of the worker that buried it.
        worker: that worker's node name.
        task_id: if it could be read, else None.
        task: the task's name, likewise.
        raw: the message as it was on the queue.
        element: the letter as it is in the list.
    """

    queue: str
    reason: str
    buried_at: datetime
    worker: str
    task_id: str | None
    task: str | None
    raw: bytes
    element: bytes

    @property
    def id(self) -> str:
        """The task's id, or for a message without one a name made of the letter's own bytes."""
        if self.task_id is not None:
            return self.task_id
        return f"raw-{hashlib.sha256(self.element).hexdigest()[:12]}"


def write_letter(raw: bytes, *, reason: str, worker: str, now: datetime) -> str:
    """Write a message as a dead letter."""
    headers = envelope.text_headers(raw)
    return json.dumps(
        {
            "reason": reason,
            "buried_at": now.isoformat(),
            "worker": worker,
            "task_id": headers.get("id"),
            "task": headers.get("task"),
            "raw": base64.b64encode(raw).decode("ascii"),
        }
    )


def read_letter(queue: str, element: bytes) -> DeadLetter:
    """Read a dead letter; one that somebody else wrote is a message in itself, and says so."""
    try:
        fields = json.loads(element)
        return DeadLetter(
            queue=queue,
            reason=str(fields["reason"]),
            buried_at=datetime.fromisoformat(fields["buried_at"]).astimezone(UTC),
            worker=str(fields["worker"]),
            task_id=_text_or_none(fields["task_id"]),
            task=_text_or_none(fields["task"]),
            raw=base64.b64decode(fields["raw"], validate=True),
            element=element,
        )
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as exc:
        reason = f"not a dead letter of greenq's: {type(exc).__name__}: {exc}"
        return DeadLetter(queue, reason, _LONG_AGO, "", None, None, element, element)


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None


def anything(_letter: DeadLetter) -> bool:
    """Want every letter."""
    return True


class DeadLetters:
    """The dead letters on one server; all are read in portions. Switches: yes."""

    def __init__(self, client: Client, keys: Keys) -> None:
        """Work on `client`'s server with the key names of `keys`."""
        self._client = client
        self._keys = keys

    def queues(self) -> tuple[str, ...]:
        """Return the queues that have dead letters, by name. Takes a walk through all keys."""
        prefix = self._keys.dead("")
        pattern = re.sub(r"([*?\[\]\\])", r"\\\1", prefix) + "*"
        found: set[str] = set()
        cursor = "0"
        while True:
            answer = self._client.call("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
            cursor = answer[0].decode()
            found.update(key.decode("utf-8", "replace") for key in answer[1])
            if cursor == "0":
                return tuple(sorted(key.removeprefix(prefix) for key in found))

    def list(self, queues: Iterable[str]) -> Iterator[DeadLetter]:
        """Go through the dead letters of queues, newest first."""
        newest_first = [self._list(queue) for queue in queues]
        return merge(*newest_first, key=lambda letter: letter.buried_at, reverse=True)

    def replay(
        self,
        queues: Iterable[str],
        wanted: Callable[[DeadLetter], bool] = anything,
        limit: int | None = None,
    ) -> Iterator[DeadLetter]:
        """Put messages back on their queues as they were, queue by queue, oldest first.

        Yields each letter that it has moved. Whatever happens on the way, a message is either still
        a dead letter or on its queue.

        Args:
            queues: whose dead letters.
            wanted: picks letters.
            limit: the most to replay.
        """
        with self._client.pooled() as connection:
            connection.call("SCRIPT", "LOAD", _REPLAY.source)
        return self._remove(queues, wanted, limit, self._replay_command)

    def purge(
        self,
        queues: Iterable[str],
        wanted: Callable[[DeadLetter], bool] = anything,
        limit: int | None = None,
    ) -> Iterator[DeadLetter]:
        """Delete letters for good, like `replay` in order and arguments; yields those deleted."""
        return self._remove(queues, wanted, limit, self._purge_command)

    def _list(self, queue: str) -> Iterator[DeadLetter]:
        key = self._keys.dead(queue)
        # Counted from the end of the list, so that letters that come meanwhile shift nothing.
        left = self._client.call("LLEN", key)
        while left > 0:
            portion = self._client.call("LRANGE", key, -left, min(-left + _PORTION - 1, -1))
            for element in portion:
                yield read_letter(queue, element)
            left -= _PORTION

    def _remove(
        self,
        queues: Iterable[str],
        wanted: Callable[[DeadLetter], bool],
        limit: int | None,
        command: Callable[[DeadLetter], Command],
    ) -> Iterator[DeadLetter]:
        """Carry out `command`, which removes one letter, for all that are wanted."""
        left = sys.maxsize if limit is None else limit
        for queue in queues:
            # What is buried anew meanwhile, for the same reason, is not for this time.
            unseen, kept = self._client.call("LLEN", self._keys.dead(queue)), 0
            while left > 0 and (portion := self._oldest(queue, kept, min(unseen, _PORTION))):
                unseen -= len(portion)
                chosen = [letter for letter in portion if wanted(letter)]
                kept += len(portion) - len(chosen)
                for letter in self._carry_out(command, chosen[:left]):
                    left -= 1
                    yield letter

    def _carry_out(
        self, command: Callable[[DeadLetter], Command], letters: Sequence[DeadLetter]
    ) -> Iterator[DeadLetter]:
        """Remove letters in one round trip; yields those that nobody else has removed before."""
        if not letters:
            return
        with self._client.pooled() as connection:
            answers = connection.try_pipeline([command(letter) for letter in letters])
        for letter, answer in zip(letters, answers, strict=True):
            if answer == 1:
                yield letter
        for answer in answers:
            if isinstance(answer, OperationalError):
                raise answer

    def _oldest(self, queue: str, kept: int, count: int) -> tuple[DeadLetter, ...]:
        """Return the next `count` letters, oldest first, when the `kept` oldest are to stay."""
        key = self._keys.dead(queue)
        portion = self._client.call("LRANGE", key, -kept - count, -kept - 1) if count > 0 else []
        return tuple(read_letter(queue, element) for element in reversed(portion))

    def _replay_command(self, letter: DeadLetter) -> Command:
        try:
            priority = envelope.unwrap(letter.raw).properties.get("priority")
        except DecodeError:
            priority = 0
        goal = self._keys.queue(letter.queue, self._keys.step_of(priority))
        dead = self._keys.dead(letter.queue)
        return ("EVALSHA", _REPLAY.sha, 2, dead, goal, letter.element, letter.raw)

    def _purge_command(self, letter: DeadLetter) -> Command:
        return ("LREM", self._keys.dead(letter.queue), -1, letter.element)
