"""The errors that task code knows, under Celery's names; all of them stand in `greenq.errors`."""

from __future__ import annotations

from greenq.errors import (
    AlreadyRegistered,
    ChordError,
    Ignore,
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
    "AlreadyRegistered", "ChordError", "Ignore", "ImproperlyConfigured", "MaxRetriesExceededError",
    "NotRegistered", "OperationalError", "Reject", "Retry", "SoftTimeLimitExceeded",
    "TaskRevokedError", "TimeLimitExceeded", "TimeoutError", "WorkerLostError",
]  # fmt: skip
