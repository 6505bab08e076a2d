"""`greenq.log` under Celery's name: ``from greenq.utils.log import get_task_logger``."""

from __future__ import annotations

from greenq.log import get_task_logger

__all__ = ["get_task_logger"]
