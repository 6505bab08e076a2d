"""What waits to be dealt with, bounded: others decide how much comes."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")


class Backlog(Generic[T]):
    """Things that wait, oldest first; when there are too many or they are too large, they drop out.

    One thread may add and remove, another one may pop: each of them counts the bytes by itself, so
    that no lock is needed.

    Attributes:
        dropped: how many had to go.
    """

    __slots__ = ("_added_bytes", "_items", "_most", "_most_bytes", "_popped_bytes", "_size",
        "dropped")  # fmt: skip

    def __init__(self, most: int, most_bytes: int, size: Callable[[T], int]) -> None:
        """Keep at most so many things, and bytes as `size` tells of each."""
        self._items: deque[T] = deque()
        self._most, self._most_bytes, self._size = most, most_bytes, size
        self._added_bytes = self._popped_bytes = 0
        self.dropped = 0

    @property
    def bytes(self) -> int:
        """How many wait."""
        return self._added_bytes - self._popped_bytes

    @property
    def full(self) -> bool:
        """True when the next one may have another one dropped."""
        return len(self._items) >= self._most or self.bytes >= self._most_bytes

    def __len__(self) -> int:
        """Count what waits."""
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        """Go through what waits at this moment; any thread may."""
        return iter(list(self._items))

    def add(self, item: T) -> None:
        """Have something wait, and drop the oldest if that is too much."""
        self._items.append(item)
        self._added_bytes += self._size(item)
        while len(self._items) > self._most or self.bytes > self._most_bytes:
            try:
                self._added_bytes -= self._size(self._items.popleft())
            except IndexError:
                # The other thread has popped meanwhile.
                return
            self.dropped += 1

    def remove(self, item: T) -> bool:
        """Take something out before its turn; False if it has been popped. Who adds may call."""
        try:
            self._items.remove(item)
        except ValueError:
            return False
        self._added_bytes -= self._size(item)
        return True

    def pop(self) -> T:
        """Take the oldest.

        Raises:
            IndexError: nothing waits.
        """
        item = self._items.popleft()
        self._popped_bytes += self._size(item)
        return item

    def take_all(self) -> list[T]:
        """Take all there is. Who pops may call."""
        return [self.pop() for _ in range(len(self._items))]
