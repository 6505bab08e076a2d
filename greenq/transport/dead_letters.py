"""Dead letters: messages that no worker may run, to be inspected, replayed or purged.

The dead letters of a queue are a list of JSON texts, newest first. Each letter keeps its message as
base64, so that bytes that are not text are also preserved. Workers write the letters
(`Broker.bury`); operators decide what to do with them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from heapq import merge
from typing import TYPE_CHECKING, Final, NamedTuple

from greenq.errors import DecodeError, OperationalError
from greenq.protocol import envelope
from greenq.protocol.limits import KEY
from greenq.protocol.text import cut
from greenq.transport.client import load_script

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from greenq.protocol.keys import Keys
    from greenq.transport.client import Client, Command

# How many dead letters a queue keeps; the oldest are dropped first.
DEAD_LIMIT = 10_000

# How many bytes are kept of a message that no worker can read. This is enough to recognise it.
_UNREADABLE_BYTES = 65_536

# A single letter may take at most the memory allowed for all letters of a queue, divided by this
# number.
_SHARE = 2

# The maximum length of a reason, which may quote untrusted text.
_REASON_CHARS = 2000

# How many letters are read at a time; each may be as large as the largest message.
_PORTION = 20

_REPLAY = load_script("replay")
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


class DeadLimits(NamedTuple):
    """The limits on the dead letters of one queue.

    Attributes:
        most_bytes: how much memory the letters may take on the server.
        expires_s: how long each dead letter is kept; 0 means no limit.
    """

    most_bytes: int
    expires_s: float

    @property
    def most_letter_bytes(self) -> int:
        """The maximum number of bytes of a message that one letter keeps; base64 adds a third."""
        return self.most_bytes * 3 // 4 // _SHARE

    def side(self, now: datetime) -> str:
        """Return the limits as text for lua/settle.lua: bytes, seconds, and a cut-off time.

        A letter buried before ``now - expires_s`` is dropped when the next letter arrives; the
        whole list expires if no letter arrives for `expires_s` seconds.
        """
        if not self.expires_s:
            return f"dead {self.most_bytes} 0 -"
        before = (now - timedelta(seconds=self.expires_s)).astimezone(UTC).isoformat()
        return f"dead {self.most_bytes} {self.expires_s:.0f} {before}"


DEAD_LIMITS: Final = DeadLimits(64 * 1024 * 1024, 30 * 86400.0)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that no worker may run.

    Attributes:
        queue: the queue that it was taken from.
        reason: why no worker may run it, as a sentence.
        buried_at: when it was buried, by the clock of the worker that buried it.
        worker: the node name of the worker that buried it.
        task_id: the task's id; None if it could not be read.
        task: the task's name; None if it could not be read.
        raw: the message as it was on the queue, or its beginning.
        element: the letter as stored in the list.
        size: the message's size in bytes.
    """

    queue: str
    reason: str
    buried_at: datetime
    worker: str
    task_id: str | None
    task: str | None
    raw: bytes
    element: bytes
    size: int = 0

    @property
    def is_cut(self) -> bool:
        """True if only the beginning of the message was kept, so that it cannot be replayed."""
        return len(self.raw) < self.size

    @property
    def id(self) -> str:
        """The task id; for a message without one, a name derived from the letter's bytes."""
        if self.task_id is not None:
            return self.task_id
        return f"raw-{hashlib.sha256(self.element).hexdigest()[:12]}"


def write_letter(
    raw: bytes,
    *,
    reason: str,
    worker: str,
    now: datetime,
    most_bytes: int = DEAD_LIMITS.most_letter_bytes,
) -> str:
    """Return a message as a dead letter in JSON.

    If the message is larger than `most_bytes`, only its beginning is kept. The limit is lower for a
    message that names no task, since it can never run.
    """
    task_id, task = (_read_header(raw, name) for name in ("id", "task"))
    most = most_bytes if task is not None else min(most_bytes, _UNREADABLE_BYTES)
    kept = raw if len(raw) <= most else raw[: min(most, _UNREADABLE_BYTES)]
    letter: dict[str, object] = {
        # `buried_at` comes first, where the script that drops old letters expects it.
        "buried_at": now.astimezone(UTC).isoformat(),
        "reason": cut(reason, _REASON_CHARS),
        "worker": worker,
        "task_id": task_id,
        "task": task,
        "raw": base64.b64encode(kept).decode("ascii"),
    }
    if kept is not raw:
        letter["size"] = len(raw)
    return json.dumps(letter)


def _read_header(raw: bytes, header: str) -> str | None:
    text = envelope.header(raw, header)
    return cut(text, KEY.most) if isinstance(text, str) else None


def read_letter(queue: str, element: bytes) -> DeadLetter:
    """Parse a dead letter; if greenq did not write the element, the letter's reason says so."""
    try:
        fields = json.loads(element)
        raw = base64.b64decode(fields["raw"], validate=True)
        size = fields.get("size")
        return DeadLetter(
            queue=queue,
            reason=str(fields["reason"]),
            buried_at=datetime.fromisoformat(fields["buried_at"]).astimezone(UTC),
            worker=str(fields["worker"]),
            task_id=_text_or_none(fields["task_id"]),
            task=_text_or_none(fields["task"]),
            raw=raw,
            element=element,
            size=size if type(size) is int else len(raw),
        )
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as exc:
        reason = f"not a dead letter of greenq: {type(exc).__name__}: {exc}"
        return DeadLetter(queue, reason, _LONG_AGO, "", None, None, element, element)


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None


def anything(_letter: DeadLetter) -> bool:
    """Accept every letter."""
    return True


class DeadLetters:
    """The dead letters on one server, which are read in portions. Switches: yes."""

    def __init__(self, client: Client, keys: Keys) -> None:
        """Use `client`'s server with the key names of `keys`."""
        self._client = client
        self._keys = keys

    def queues(self) -> tuple[str, ...]:
        """Return the queues that have dead letters, sorted; this scans all keys."""
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
        """Iterate over the dead letters of queues, newest first."""
        newest_first = [self._list(queue) for queue in queues]
        return merge(*newest_first, key=lambda letter: letter.buried_at, reverse=True)

    def replay(
        self,
        queues: Iterable[str],
        wanted: Callable[[DeadLetter], bool] = anything,
        limit: int | None = None,
    ) -> Iterator[DeadLetter]:
        """Put messages back on their queues unchanged, queue by queue, oldest first.

        Yield each letter whose message was moved. Truncated letters stay where they are. At any
        moment, a message is either still a dead letter or back on its queue.

        Args:
            queues: the queues whose letters to replay.
            wanted: returns whether to replay a letter.
            limit: the maximum number of letters to replay.
        """
        with self._client.pooled() as connection:
            connection.call("SCRIPT", "LOAD", _REPLAY.source)

        def whole(letter: DeadLetter) -> bool:
            return wanted(letter) and not letter.is_cut

        return self._remove(queues, whole, limit, self._replay_command)

    def purge(
        self,
        queues: Iterable[str],
        wanted: Callable[[DeadLetter], bool] = anything,
        limit: int | None = None,
    ) -> Iterator[DeadLetter]:
        """Delete letters for good and yield them; order and arguments are as for `replay`."""
        return self._remove(queues, wanted, limit, self._purge_command)

    def _list(self, queue: str) -> Iterator[DeadLetter]:
        key = self._keys.dead(queue)
        # Count from the end of the list, so that letters arriving in the meantime do not shift any
        # positions.
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
        """Carry out `command`, which removes one letter, for each wanted letter."""
        left = sys.maxsize if limit is None else limit
        for queue in queues:
            # Messages that are buried again during the replay are left for the next call.
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
        """Remove letters in one round trip; yield those that no other program removed first."""
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
        """Skip the `kept` oldest letters, and return the next `count` letters, oldest first."""
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
