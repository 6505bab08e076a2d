"""The logical clock shared by all members of a cluster, after Lamport."""

from __future__ import annotations

from itertools import count

# A larger number cannot be the result of counting, and is not adopted.
_MOST = 1 << 53


class LamportClock:
    """A counter that every send advances, and that every receipt moves past the received number.

    Source: wire format, section 12.4: *forward* adds one; *adjust* takes the larger of the two
        numbers and adds one.

    Any thread may call `forward`, but only one may call `adjust`.
    """

    __slots__ = ("_numbers", "value")

    def __init__(self, value: int = 0) -> None:
        """Start counting at `value`."""
        self.value = value
        self._numbers = count(value + 1)

    def forward(self) -> int:
        """Add one and return the new number."""
        # `next` is a single step, which no other thread can interrupt.
        self.value = number = next(self._numbers)
        return number

    def adjust(self, other: int) -> int:
        """Advance beyond a received number, and return the new number."""
        if self.value < other < _MOST:
            self._numbers = count(other + 1)
        return self.forward()
