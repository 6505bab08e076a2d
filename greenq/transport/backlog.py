"""A bounded queue for items that others may produce at any rate."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")


class Backlog(Generic[T]):
    """A queue that drops its oldest items when it has too many items, or too many bytes.

    One thread may add and remove items while another thread pops them. Each thread has its own
    count of bytes, so no lock is needed.

    Attributes:
        dropped: the number of dropped items.
    """

    __slots__ = ("_added_bytes", "_items", "_most", "_most_bytes", "_popped_bytes", "_size",
        "dropped")  # fmt: skip

    def __init__(self, most: int, most_bytes: int, size: Callable[[T], int]) -> None:
        """Keep at most `most` items and `most_bytes` bytes; `size` measures an item in bytes."""
        self._items: deque[T] = deque()
        self._most, self._most_bytes, self._size = most, most_bytes, size
        self._added_bytes = self._popped_bytes = 0
        self.dropped = 0

    @property
    def bytes(self) -> int:
        """The total number of bytes of the waiting items."""
        return self._added_bytes - self._popped_bytes

    @property
    def full(self) -> bool:
        """True if adding another item might drop one."""
        return len(self._items) >= self._most or self.bytes >= self._most_bytes

    def __len__(self) -> int:
        """Return the number of waiting items."""
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        """Iterate over a copy of the waiting items; any thread may call this."""
        return iter(list(self._items))

    def add(self, item: T) -> None:
        """Add an item; drop the oldest items if there is no room."""
        self._items.append(item)
        self._added_bytes += self._size(item)
        while len(self._items) > self._most or self.bytes > self._most_bytes:
            try:
                self._added_bytes -= self._size(self._items.popleft())
            except IndexError:
                # The other thread has already popped the item.
                return
            self.dropped += 1

    def remove(self, item: T) -> bool:
        """Remove an item early, in the adding thread; return False if it was already popped."""
        try:
            self._items.remove(item)
        except ValueError:
            return False
        self._added_bytes -= self._size(item)
        return True

    def pop(self) -> T:
        """Remove and return the oldest item.

        Raises:
            IndexError: no item is waiting.
        """
        item = self._items.popleft()
        self._popped_bytes += self._size(item)
        return item

    def take_all(self) -> list[T]:
        """Remove and return all items. Only the popping thread may call this."""
        return [self.pop() for _ in range(len(self._items))]
