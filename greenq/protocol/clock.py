"""The logical clock that all members of a cluster share, after Lamport."""

from __future__ import annotations

from itertools import count

# A number beyond this is none that a cluster has counted up to, and is not followed.
_MOST = 1 << 53


class LamportClock:
    """A number that grows with everything sent, and past every number heard.

    Source: wire format, section 12.4: *forward* adds one, *adjust* takes the larger of both
        numbers and adds one.

    Any thread may call `forward`, one alone `adjust`.
    """

    __slots__ = ("_numbers", "value")

    def __init__(self, value: int = 0) -> None:
        """Begin at `value`."""
        self.value = value
        self._numbers = count(value + 1)

    def forward(self) -> int:
        """Add one and return the new number."""
        # The one step that no other thread can come between.
        self.value = number = next(self._numbers)
        return number

    def adjust(self, other: int) -> int:
        """Go past a number that was heard and return the new one."""
        if self.value < other < _MOST:
            self._numbers = count(other + 1)
        return self.forward()
