"""Why no Python ran in the process for a while."""

from __future__ import annotations

import pytest

from greenq.watchdog.silence import account


@pytest.mark.parametrize(
    ("gap_s", "cpu_s", "suspended_s", "why"),
    [
        (10.7, 10.5, 0.0, "no Python code ran in this process for 10.7 s: a call held the GIL"),
        (10.7, 0.01, 0.0, "it was stopped, got no CPU, or a call held the GIL while it waited"),
        (3600.0, 0.1, 3599.0, "for 3600.0 s: the machine was suspended"),
    ],
)
def test_a_gap_is_accounted_for(gap_s: float, cpu_s: float, suspended_s: float, why: str) -> None:
    assert why in account(gap_s, cpu_s, suspended_s)
