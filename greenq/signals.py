"""Tells code that imports Celery's signals what to use instead."""

from __future__ import annotations

from greenq import why_not_here

raise ImportError(why_not_here("signals"), name=__name__)
