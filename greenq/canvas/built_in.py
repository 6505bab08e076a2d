"""Celery's built-in tasks, which workers run for `map`, `starmap`, `chunks` and counted groups.

Every worker has these tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from greenq.canvas.primitives import chunks
from greenq.canvas.signature import Signature


def accumulate(_task: Any, *args: Any, index: int | None = None) -> Any:
    """Return the arguments, or only the one at `index`."""
    return args if index is None else args[index]


def map_items(task_: Any, task: Mapping[str, Any], it: Iterable[Any]) -> list[Any]:
    """Call a task with each item, and return the results."""
    call = Signature.from_dict(task, app=task_.app)
    return [call(item) for item in it]


def map_arguments(task_: Any, task: Mapping[str, Any], it: Iterable[Sequence[Any]]) -> list[Any]:
    """Call a task with each item as its arguments, and return the results."""
    call = Signature.from_dict(task, app=task_.app)
    return [call(*args) for args in it]


def send_chunks(task_: Any, task: Mapping[str, Any], it: Iterable[Any], n: int) -> Any:
    """Send the items in parts and return the group's handle."""
    return chunks(task, it, n, app=task_.app).apply_async()


def clean_up(_task: Any) -> None:
    """Do nothing: results expire by themselves."""


BUILT_IN: Final[Mapping[str, Callable[..., Any]]] = {
    "celery.accumulate": accumulate,
    "celery.backend_cleanup": clean_up,
    "celery.chunks": send_chunks,
    "celery.map": map_items,
    "celery.starmap": map_arguments,
}
"""The functions by task name; each one gets its task as the first argument."""
