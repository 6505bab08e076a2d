"""Waiting in tests: for a condition, never for a duration."""

from __future__ import annotations

import time
from collections.abc import Callable

_POLL_S = 0.01


def wait_until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Return as soon as `condition` is true; fail with its name when that takes too long."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            name = getattr(condition, "__qualname__", repr(condition))
            raise AssertionError(f"not within {timeout_s:g} s: {name}")
        time.sleep(_POLL_S)
