"""greenq: thousands of concurrent I/O-bound tasks, with Celery's wire protocol, on Redis or Valkey.

Public names are loaded on first use (PEP 562), so ``import greenq`` costs next to nothing. It loads
neither redis nor gevent, because gevent must be able to patch the standard library before any
module imports ``ssl``.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from greenq.app import Greenq as Greenq
    from greenq.app import Task as Task
    from greenq.app import shared_task as shared_task
    from greenq.canvas.primitives import chain as chain
    from greenq.canvas.primitives import chord as chord
    from greenq.canvas.primitives import chunks as chunks
    from greenq.canvas.primitives import group as group
    from greenq.canvas.primitives import xmap as xmap
    from greenq.canvas.primitives import xstarmap as xstarmap
    from greenq.canvas.signature import Signature as Signature
    from greenq.canvas.signature import maybe_signature as maybe_signature
    from greenq.canvas.signature import signature as signature
    from greenq.canvas.signature import subtask as subtask
    from greenq.canvas.stamps import StampingVisitor as StampingVisitor
    from greenq.commands.registry import control_command as control_command
    from greenq.commands.registry import inspect_command as inspect_command
    from greenq.config.queues import Binding as Binding
    from greenq.config.queues import Broadcast as Broadcast
    from greenq.config.queues import Exchange as Exchange
    from greenq.config.queues import Queue as Queue
    from greenq.errors import GreenqError as GreenqError
    from greenq.errors import Ignore as Ignore
    from greenq.errors import Reject as Reject
    from greenq.errors import Retry as Retry
    from greenq.result import AsyncResult as AsyncResult
    from greenq.result import AsyncResults as AsyncResults
    from greenq.result import GroupResult as GroupResult
    from greenq.result import ResultSet as ResultSet
    from greenq.result import allow_join_result as allow_join_result
    from greenq.sending.routing import worker_direct as worker_direct
    from greenq.utils.version import __version__ as __version__

_HOME = {
    "AsyncResult": "greenq.result",
    "AsyncResults": "greenq.result",
    "Binding": "greenq.config.queues",
    "Broadcast": "greenq.config.queues",
    "Exchange": "greenq.config.queues",
    "Greenq": "greenq.app",
    "GroupResult": "greenq.result",
    "GreenqError": "greenq.errors",
    "Ignore": "greenq.errors",
    "Queue": "greenq.config.queues",
    "Reject": "greenq.errors",
    "ResultSet": "greenq.result",
    "Retry": "greenq.errors",
    "Task": "greenq.app",
    "allow_join_result": "greenq.result",
    "control_command": "greenq.commands.registry",
    "inspect_command": "greenq.commands.registry",
    "worker_direct": "greenq.sending.routing",
    "shared_task": "greenq.app",
    "Signature": "greenq.canvas.signature",
    "StampingVisitor": "greenq.canvas.stamps",
    "maybe_signature": "greenq.canvas.signature",
    "signature": "greenq.canvas.signature",
    "subtask": "greenq.canvas.signature",
    "__version__": "greenq.utils.version",
    **dict.fromkeys(
        ("chain", "chord", "chunks", "group", "xmap", "xstarmap"), "greenq.canvas.primitives"
    ),
}

__all__ = sorted(_HOME)

# Celery's names that a ported module might import.
_NOT_HERE = {
    "Celery": "the app's class is Greenq: from greenq import Greenq",
    "current_app": "import your own app",
    "current_task": "use @app.task(bind=True) and self.request",
    "uuid": "use str(uuid.uuid4())",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load a public name's module when the name is first used."""
    if name in _NOT_HERE:
        sentence = why_not_here(name)
        # An import statement would replace an AttributeError's text and keep only the name.
        if sys._getframe(1).f_code.co_name == "_handle_fromlist":  # noqa: SLF001  inspect is slow
            raise ImportError(sentence, name="greenq")
        raise AttributeError(sentence)
    if name not in _HOME:
        raise AttributeError(f"module 'greenq' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def why_not_here(name: str) -> str:
    """Return the error text for one of Celery's names that greenq does not have."""
    return f"greenq has no {name!r}: {_NOT_HERE[name]}"


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *_HOME})
