"""Workflows: signatures and the messages they send, with Celery's API and wire format.

Tasks, the app and workers use this package. It sends messages through the app that it is given, and
does not import gevent.
"""

from __future__ import annotations

from greenq.canvas.primitives import chain, chord, chunks, group, xmap, xstarmap
from greenq.canvas.signature import Signature, maybe_signature, signature, subtask
from greenq.canvas.stamps import StampingVisitor

__all__ = [
    "Signature", "StampingVisitor", "chain", "chord", "chunks", "group", "maybe_signature",
    "signature", "subtask", "xmap", "xstarmap",
]  # fmt: skip
