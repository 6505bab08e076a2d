"""Revoked: which tasks shall not run, by id and by stamp."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from greenq.protocol.message import TaskMessage

# Source: wire format, 17.25.
_MOST = 50_000
_KEEP_S = 10_800.0


class _Aging:
    """Values that are forgotten after a while, and the oldest of them when there are too many."""

    def __init__(self, most: int, keep_s: float, clock: Callable[[], float]) -> None:
        self._most = most
        self._keep_s = keep_s
        self._clock = clock
        # When each was added; the oldest come first.
        self._added_s: dict[object, float] = {}

    def add(self, value: object) -> None:
        """Keep a value, as the newest one."""
        self._added_s.pop(value, None)
        self._added_s[value] = self._clock()
        if len(self._added_s) > self._most:
            del self._added_s[next(iter(self._added_s))]

    def discard(self, value: object) -> None:
        self._added_s.pop(value, None)

    def __contains__(self, value: object) -> bool:
        added_s = self._added_s.get(value)
        return added_s is not None and self._clock() - added_s < self._keep_s

    def __iter__(self) -> Iterator[Any]:
        """Go through the values, the oldest first; those that are too old are forgotten."""
        limit_s = self._clock() - self._keep_s
        while self._added_s and next(iter(self._added_s.values())) <= limit_s:
            del self._added_s[next(iter(self._added_s))]
        return iter(list(self._added_s))


class Revoked:
    """Ids and stamps of tasks that shall not run; at most 50,000 ids, for three hours each.

    Attributes:
        any: False as long as nothing was revoked: then no message needs to be looked at.
    """

    __slots__ = ("_clock", "_ids", "_keep_s", "_most", "_stamps", "any")

    def __init__(
        self,
        *,
        most: int = _MOST,
        keep_s: float = _KEEP_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with nothing; of ids, and of each stamp's values, keep `most` for `keep_s`."""
        self._most = most
        self._keep_s = keep_s
        self._clock = clock
        self._ids = _Aging(most, keep_s, clock)
        self._stamps: dict[str, _Aging] = {}
        self.any = False

    def add(self, task_id: str) -> None:
        """Revoke a task."""
        self._ids.add(task_id)
        self.any = True

    def update(self, task_ids: Iterable[str]) -> None:
        """Revoke several tasks, the oldest of them first."""
        for task_id in task_ids:
            self.add(task_id)

    def discard(self, task_id: str) -> None:
        """Let a task run after all."""
        self._ids.discard(task_id)

    def __contains__(self, task_id: object) -> bool:
        """Tell whether a task's id was revoked."""
        return task_id in self._ids

    def ids(self) -> list[str]:
        """Return the revoked ids, the oldest first."""
        return list(self._ids)

    @property
    def stamps(self) -> dict[str, set[str]]:
        """The revoked values of each stamp, as texts."""
        return {name: values for name, kept in self._stamps.items() if (values := set(kept))}

    def add_stamps(self, stamps: Mapping[str, Any]) -> None:
        """Revoke the tasks that have one of these stamps, each with a value or a list of values."""
        for name, given in stamps.items():
            kept = self._stamps.setdefault(name, _Aging(self._most, self._keep_s, self._clock))
            for value in _texts(given):
                kept.add(value)
                self.any = True

    def matches(self, message: TaskMessage) -> bool:
        """Tell whether a call was revoked, by its id or by a stamp."""
        return message.id in self._ids or self.is_stamped(message)

    def is_stamped(self, message: TaskMessage) -> bool:
        """Tell whether a call carries a revoked stamp."""
        return any(
            value in kept
            for name in message.stamped_headers or ()
            if (kept := self._stamps.get(name)) is not None
            for value in _texts(message.stamps.get(name))
        )


def _texts(given: object) -> list[str]:
    """Return the values of a stamp, one or several, as texts: so the command line gives them."""
    several = given if isinstance(given, (list, tuple, set, frozenset)) else [given]
    return [str(value) for value in several]
