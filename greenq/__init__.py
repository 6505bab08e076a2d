"""greenq: thousands of I/O-bound tasks at once, in Celery's wire protocol, on Redis or Valkey.

Public names load on first use (PEP 562), so that ``import greenq`` costs next to nothing and loads
neither redis nor gevent: gevent must be able to patch before anything imports ``ssl``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from greenq.app import Greenq as Greenq
    from greenq.app import shared_task as shared_task
    from greenq.errors import GreenqError as GreenqError
    from greenq.errors import Ignore as Ignore
    from greenq.errors import Reject as Reject
    from greenq.errors import Retry as Retry
    from greenq.result import AsyncResult as AsyncResult
    from greenq.result import AsyncResults as AsyncResults
    from greenq.task import Task as Task

__version__ = "0.1.0"

_HOME = {
    "AsyncResult": "greenq.result",
    "AsyncResults": "greenq.result",
    "Greenq": "greenq.app",
    "GreenqError": "greenq.errors",
    "Ignore": "greenq.errors",
    "Reject": "greenq.errors",
    "Retry": "greenq.errors",
    "Task": "greenq.task",
    "shared_task": "greenq.app",
}

__all__ = [*sorted(_HOME), "__version__"]


def __getattr__(name: str) -> Any:
    """Load a public name's module when the name is first used."""
    if name not in _HOME:
        raise AttributeError(f"module 'greenq' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *_HOME})
