"""Tells code that imports Celery's schedules what to use instead."""

from __future__ import annotations

from greenq import why_not_here

raise ImportError(why_not_here("schedules"), name=__name__)
