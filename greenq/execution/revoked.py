"""Revoked: which tasks shall not run, by id and by stamp."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from greenq.protocol.message import TaskMessage

# Source: wire format, section 15.
_MOST = 50_000
_KEEP_S = 10_800.0

# Of all that is kept together. Anybody who may publish can revoke.
_MOST_CHARS = 4_000_000

# An id, and a stamp's name or value; longer ones no message has that runs here.
MOST_ID_CHARS = 1000


class _Aging:
    """Texts that are forgotten after a while, and the oldest of them when there are too many."""

    def __init__(self, most: int, keep_s: float, clock: Callable[[], float]) -> None:
        self._most = most
        self._keep_s = keep_s
        self._clock = clock
        # When each was added; the oldest come first, and go from there without a search.
        self._added_s: OrderedDict[tuple[str, ...], float] = OrderedDict()
        self._chars = 0

    def add(self, *texts: str) -> None:
        """Keep some texts together, as the newest ones, unless one of them is too long."""
        if max(map(len, texts)) > MOST_ID_CHARS:
            return
        self.discard(*texts)
        self._added_s[texts] = self._clock()
        self._chars += sum(map(len, texts))
        while len(self._added_s) > self._most or self._chars > _MOST_CHARS:
            self.discard(*next(iter(self._added_s)))

    def discard(self, *texts: str) -> None:
        if self._added_s.pop(texts, None) is not None:
            self._chars -= sum(map(len, texts))

    def has(self, *texts: str) -> bool:
        added_s = self._added_s.get(texts)
        return added_s is not None and self._clock() - added_s < self._keep_s

    def all(self) -> list[tuple[str, ...]]:
        """Return what is kept, the oldest first; what is too old is forgotten."""
        limit_s = self._clock() - self._keep_s
        while self._added_s and next(iter(self._added_s.values())) <= limit_s:
            self.discard(*next(iter(self._added_s)))
        return list(self._added_s)


class Revoked:
    """Ids and stamps of tasks that shall not run: 50,000 of each at most, for three hours each.

    Only what somebody has revoked is in it. An expired message is not: it expires again when it
    comes again, and whoever can send could push revocations out with such messages, or have
    another's task revoked by its id.

    Attributes:
        any: False as long as nothing was revoked: then no message needs to be looked at.
    """

    __slots__ = ("_ids", "_stamps", "any")

    def __init__(
        self,
        *,
        most: int = _MOST,
        keep_s: float = _KEEP_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with nothing; of ids, and of the stamps' values, keep `most` for `keep_s`."""
        self._ids = _Aging(most, keep_s, clock)
        # Pairs of name and value.
        self._stamps = _Aging(most, keep_s, clock)
        self.any = False

    def add(self, task_id: str) -> None:
        """Revoke a task; there is none with an id of more than `MOST_ID_CHARS`."""
        self._ids.add(task_id)
        self.any = True

    def update(self, task_ids: Iterable[str]) -> None:
        """Revoke several tasks, the oldest of them first."""
        for task_id in task_ids:
            self.add(task_id)

    def discard(self, task_id: str) -> None:
        """Let a task run after all."""
        self._ids.discard(task_id)

    def __contains__(self, task_id: str) -> bool:
        """Tell whether a task's id was revoked."""
        return self._ids.has(task_id)

    def ids(self) -> list[str]:
        """Return the revoked ids, the oldest first."""
        return [task_id for (task_id,) in self._ids.all()]

    @property
    def stamps(self) -> dict[str, set[str]]:
        """The revoked values of each stamp, as texts."""
        found: dict[str, set[str]] = {}
        for name, value in self._stamps.all():
            found.setdefault(name, set()).add(value)
        return found

    def add_stamps(self, stamps: Mapping[str, Any]) -> None:
        """Revoke the tasks that have one of these stamps, each with a value or a list of values."""
        for name, given in stamps.items():
            for value in _texts(given):
                self._stamps.add(name, value)
                self.any = True

    def matches(self, message: TaskMessage) -> bool:
        """Tell whether a call was revoked, by its id or by a stamp."""
        return self._ids.has(message.id) or self.is_stamped(message)

    def is_stamped(self, message: TaskMessage) -> bool:
        """Tell whether a call carries a revoked stamp."""
        return any(
            self._stamps.has(name, value)
            for name in message.stamped_headers or ()
            for value in _texts(message.stamps.get(name))
        )


def _texts(given: object) -> list[str]:
    """Return the values of a stamp, one or several, as texts: so the command line gives them."""
    several = given if isinstance(given, (list, tuple, set, frozenset)) else [given]
    return [str(value) for value in several]
