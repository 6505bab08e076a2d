"""The exceptions for task code, under Celery's names; all are defined in `greenq.errors`."""

from __future__ import annotations

from greenq.errors import (
    AlreadyRegistered,
    ChordError,
    Ignore,
    IncompleteStream,
    MaxRetriesExceededError,
    NotRegistered,
    OperationalError,
    Reject,
    Retry,
    SoftTimeLimitExceeded,
    TaskRevokedError,
    TimeLimitExceeded,
    WorkerLostError,
)
from greenq.errors import ConfigError as ImproperlyConfigured
from greenq.errors import ResultTimeout as TimeoutError

__all__ = [
    "AlreadyRegistered", "ChordError", "Ignore", "ImproperlyConfigured", "IncompleteStream",
    "MaxRetriesExceededError", "NotRegistered", "OperationalError", "Reject", "Retry",
    "SoftTimeLimitExceeded", "TaskRevokedError", "TimeLimitExceeded", "TimeoutError",
    "WorkerLostError",
]  # fmt: skip
