"""A module with tasks that connects a receiver too late."""

from __future__ import annotations

from typing import Any

from greenq import signals


@signals.setup_logging.connect
def log(**_: Any) -> None:
    """Never called."""
