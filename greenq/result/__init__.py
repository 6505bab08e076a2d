"""Handles of sent tasks: `AsyncResult` for one task, `GroupResult` for a group.

Everything that sends tasks or reads results uses this package, and so do applications.
"""

from __future__ import annotations

from greenq.result.eager_result import EagerResult
from greenq.result.group import GroupResult, ResultSet
from greenq.result.many import AsyncResults
from greenq.result.result_base import (
    ResultBase,
    allow_join_result,
    ask_for_app,
    denied_join_result,
    join_as_here,
    newest_app,
    result_from_tuple,
)
from greenq.result.task_result import AsyncResult

__all__ = [
    "AsyncResult", "AsyncResults", "EagerResult", "GroupResult", "ResultBase", "ResultSet",
    "allow_join_result", "ask_for_app", "denied_join_result", "join_as_here", "newest_app",
    "result_from_tuple",
]  # fmt: skip
