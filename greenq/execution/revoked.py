"""Revoked tasks: those that must not run, by id and by stamp."""

from __future__ import annotations

import time
from collections import OrderedDict
from itertools import islice
from typing import TYPE_CHECKING, Any

from greenq.protocol.limits import KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from greenq.protocol.message import TaskMessage

# The maximum number of ids; this is Celery's limit. Source: wire format, section 15.
_MOST = 50_000
_KEEP_S = 10_800.0

# The maximum number of stopped workflows: as many as the server keeps.
_MOST_WORKFLOWS = 10_000

# The maximum total length of all ids, or of all stamps. A limit is needed because anyone who is
# allowed to publish can revoke tasks.
_MOST_CHARS = 4_000_000


class _Aging:
    """Texts that expire after a while; the oldest are dropped when there are too many."""

    def __init__(self, most: int, keep_s: float, clock: Callable[[], float]) -> None:
        self._most = most
        self._keep_s = keep_s
        self._clock = clock
        # The time at which each entry was added; the oldest come first, so they can be removed
        # without a search.
        self._added_s: OrderedDict[tuple[str, ...], float] = OrderedDict()
        self._chars = 0

    def add(self, *texts: str, age_s: float = 0.0) -> None:
        """Add some texts, together, as the newest entry, unless one of them is too long."""
        if max(map(len, texts)) > KEY.most:
            return
        self.discard(*texts)
        self._added_s[texts] = self._clock() - age_s
        self._chars += sum(map(len, texts))
        while len(self._added_s) > self._most or self._chars > _MOST_CHARS:
            self.discard(*next(iter(self._added_s)))

    def emptied(self) -> _Aging:
        """Return an empty collection with the same limits."""
        return _Aging(self._most, self._keep_s, self._clock)

    def discard(self, *texts: str) -> None:
        if self._added_s.pop(texts, None) is not None:
            self._chars -= sum(map(len, texts))

    def has(self, *texts: str) -> bool:
        added_s = self._added_s.get(texts)
        return added_s is not None and self._clock() - added_s < self._keep_s

    def all(self) -> list[tuple[str, ...]]:
        """Drop the expired entries and return all others, oldest first."""
        return [texts for texts, _age_s in self.aged()]

    def aged(self) -> list[tuple[tuple[str, ...], float]]:
        """Return the same entries as `all`, each with its age."""
        now_s = self._clock()
        # Among entries read from a file or the server, an older one may follow a newer one.
        for texts, added_s in list(self._added_s.items()):
            if now_s - added_s >= self._keep_s:
                self.discard(*texts)
        return [(texts, now_s - added_s) for texts, added_s in self._added_s.items()]


class Revoked:
    """Ids and stamps of tasks that must not run: at most 50,000 of each, kept for a while.

    Only explicit revocations are kept. Expired messages are not added: they expire again when
    redelivered, and any sender could use them to displace revocations, or to revoke another
    sender's task by its id.

    Attributes:
        any: False until a task is revoked; until then, messages need no check.
        changes: the number of revocations so far.
        on_new: called after a revocation that `take_new` has not returned yet.
        workflows: the workflows, by root id, that are ``cancelled`` or ``paused``.
    """

    __slots__ = ("_ids", "_new", "_stamps", "any", "changes", "on_new", "workflows")

    def __init__(
        self,
        *,
        most: int = _MOST,
        keep_s: float = _KEEP_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create an empty set of up to `most` ids and as many stamps, each kept for `keep_s`."""
        self._ids = _Aging(most, keep_s, clock)
        # Pairs of name and value.
        self._stamps = _Aging(most, keep_s, clock)
        # The revocations made by commands rather than by `put`: ids, and pairs of name and value.
        self._new = _Aging(most, keep_s, clock)
        self.any = False
        self.changes = 0
        self.on_new: Callable[[], object] = _nothing
        self.workflows: Mapping[str, str] = {}

    def stop_workflows(self, stopped: Mapping[str, str]) -> None:
        """Replace the stopped workflows, a mapping from root id to ``cancelled`` or ``paused``."""
        self.workflows = dict(islice(stopped.items(), _MOST_WORKFLOWS))
        self.any = self.any or bool(stopped)

    def is_paused(self, message: TaskMessage) -> bool:
        """Return whether a call belongs to a paused workflow."""
        return self.workflows.get(message.root_id or message.id) == "paused"

    def add(self, task_id: str) -> None:
        """Revoke a task; an id longer than `KEY` allows is ignored, since no task can have it."""
        self._ids.add(task_id)
        self._note(task_id)

    def put(self, texts: tuple[str, ...], *, age_s: float) -> None:
        """Adopt an earlier revocation: an id, or a stamp's name and value."""
        known = self._ids if len(texts) == 1 else self._stamps
        if not known.has(*texts):
            known.add(*texts, age_s=age_s)
            self.any = True
            self.changes += 1

    def aged(self) -> list[tuple[tuple[str, ...], float]]:
        """Return all ids and stamps, each with its age in seconds."""
        return self._ids.aged() + self._stamps.aged()

    def take_new(self) -> list[tuple[str, ...]]:
        """Return the revocations since the last call, except those from `put`."""
        new, self._new = self._new, self._new.emptied()
        return new.all()

    def return_new(self, new: list[tuple[str, ...]]) -> None:
        """Make the next `take_new` also return these revocations."""
        for texts in new:
            self._new.add(*texts)

    def _note(self, *texts: str) -> None:
        self._new.add(*texts)
        self.any = True
        self.changes += 1
        self.on_new()

    def update(self, task_ids: Iterable[str]) -> None:
        """Revoke several tasks, given oldest first."""
        for task_id in task_ids:
            self.add(task_id)

    def discard(self, task_id: str) -> None:
        """Withdraw the revocation of a task, so that the task can run after all."""
        self._ids.discard(task_id)

    def __contains__(self, task_id: str) -> bool:
        """Return whether a task's id was revoked."""
        return self._ids.has(task_id)

    def ids(self) -> list[str]:
        """Return the revoked ids, oldest first."""
        return [task_id for (task_id,) in self._ids.all()]

    @property
    def stamps(self) -> dict[str, set[str]]:
        """The revoked values of each stamp, as strings."""
        found: dict[str, set[str]] = {}
        for name, value in self._stamps.all():
            found.setdefault(name, set()).add(value)
        return found

    def add_stamps(self, stamps: Mapping[str, Any]) -> None:
        """Revoke the tasks that have one of these stamps, each with a value or a list of values."""
        for name, given in stamps.items():
            for value in _texts(given):
                self._stamps.add(name, value)
                self._note(name, value)

    def matches(self, message: TaskMessage) -> bool:
        """Return whether a call was revoked by its id, by a stamp, or with its workflow."""
        return (
            self._ids.has(message.id)
            or self.is_stamped(message)
            or self.workflows.get(message.root_id or message.id) == "cancelled"
        )

    def is_stamped(self, message: TaskMessage) -> bool:
        """Return whether a call has a revoked stamp."""
        return any(
            self._stamps.has(name, value)
            for name in message.stamped_headers or ()
            for value in _texts(message.stamps.get(name))
        )


def _nothing() -> None:
    """Do nothing, since new revocations wait for `take_new`."""


def _texts(given: object) -> list[str]:
    """Return a stamp's value or values as strings, which is how the command line passes them."""
    several = given if isinstance(given, (list, tuple, set, frozenset)) else [given]
    return [str(value) for value in several]
