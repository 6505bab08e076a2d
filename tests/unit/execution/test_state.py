"""What a worker knows of its lease: whether a message is surely its own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from greenq.execution.executor import surely_holds
from greenq.execution.state import WorkerState


@pytest.mark.parametrize(
    ("now_s", "taken_s", "lost_s", "holds"),
    [
        (9.9, 5.0, 0.0, True),
        (10.0, 5.0, 0.0, False),  # the lease has ended
        (9.9, 5.0, 6.0, False),  # it had ended once since the message was taken
        (9.9, 5.0, 5.0, False),
        (9.9, 7.0, 6.0, True),  # the message was taken under the present one
    ],
)
def test_a_message_is_surely_held_while_the_lease_has_held_since_it_was_taken(
    now_s: float, taken_s: float, lost_s: float, holds: bool
) -> None:
    state = WorkerState(lambda: now_s)
    state.lease_until_s, state.lease_lost_s = 10.0, lost_s
    request: Any = SimpleNamespace(taken_s=taken_s)
    assert surely_holds(state, request) is holds


def test_without_a_lease_nothing_is_surely_held() -> None:
    request: Any = SimpleNamespace(taken_s=1.0)
    assert not surely_holds(WorkerState(lambda: 0.0), request)
