"""The states of tasks, `greenq.protocol.states`, where Celery's users look for them."""

from __future__ import annotations

from greenq.protocol.states import (
    EXCEPTION_STATES,
    FAILURE,
    IGNORED,
    PENDING,
    PROPAGATE_STATES,
    READY_STATES,
    RECEIVED,
    REJECTED,
    RETRY,
    REVOKED,
    STARTED,
    SUCCESS,
)

__all__ = [
    "EXCEPTION_STATES", "FAILURE", "IGNORED", "PENDING", "PROPAGATE_STATES", "READY_STATES",
    "RECEIVED", "REJECTED", "RETRY", "REVOKED", "STARTED", "SUCCESS",
]  # fmt: skip
