"""Growing pauses between attempts, with jitter."""

from __future__ import annotations

import random


class Backoff:
    """Pauses that double from `first_s` to `max_s`, each shortened at random by up to half.

    The jitter keeps workers that lost their server at the same time from returning all at once.
    """

    def __init__(self, first_s: float, max_s: float) -> None:
        """Start with the shortest pause."""
        self._first_s = first_s
        self._max_s = max_s
        self._next_s = first_s

    def next_s(self) -> float:
        """Return how long to pause now, in seconds; the next pause is longer."""
        pause_s = self._next_s * random.uniform(0.5, 1.0)
        self._next_s = min(self._next_s * 2, self._max_s)
        return pause_s

    def reset(self) -> None:
        """Start again with the shortest pause."""
        self._next_s = self._first_s
