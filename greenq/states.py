"""The names of task states, and what they mean."""

from __future__ import annotations

PENDING = "PENDING"
RECEIVED = "RECEIVED"
STARTED = "STARTED"
SUCCESS = "SUCCESS"
FAILURE = "FAILURE"
REVOKED = "REVOKED"
RETRY = "RETRY"
REJECTED = "REJECTED"
IGNORED = "IGNORED"

# Nothing more will happen to the task.
READY_STATES = frozenset({SUCCESS, FAILURE, REVOKED})
# The stored result is an exception.
EXCEPTION_STATES = frozenset({RETRY, FAILURE, REVOKED})
# ``get()`` raises the stored exception.
PROPAGATE_STATES = frozenset({FAILURE, REVOKED})

_RANKS = {
    SUCCESS: 0,
    FAILURE: 1,
    REVOKED: 3,
    STARTED: 4,
    RECEIVED: 5,
    REJECTED: 6,
    RETRY: 7,
    PENDING: 8,
}
_CUSTOM_RANK = 2


def precedence(state: str) -> int:
    """Rank a state for monitors that receive events out of order; 0 is the strongest.

    A custom state ranks between FAILURE and REVOKED.
    """
    return _RANKS.get(state, _CUSTOM_RANK)
