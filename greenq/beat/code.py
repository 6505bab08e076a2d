"""Entries that code adds with `app.add_periodic_task`, in the form of `beat_schedule`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def entry_in_code(
    schedule: Any,
    sig: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    name: str | None,
    options: Mapping[str, Any],
) -> tuple[str, dict[str, Any]]:
    """Return an entry's name and its fields; see `Greenq.add_periodic_task`.

    Raises:
        TypeError: `sig` is not a task, a task's name or a signature.
    """
    task: Any = sig
    if isinstance(sig, Mapping):
        task = sig.get("task")
        args = (*sig.get("args", ()), *args)
        kwargs = {**sig.get("kwargs", {}), **kwargs}
        options = {**sig.get("options", {}), **options}
    task = getattr(task, "name", task)
    if not isinstance(task, str):
        raise TypeError(f"add_periodic_task takes a task or its name, not {sig!r}")
    if name is None:
        shown = [*map(repr, args), *(f"{key}={value!r}" for key, value in kwargs.items())]
        name = f"{task}({', '.join(shown)})"
    return name, {
        "task": task,
        "schedule": schedule,
        "args": tuple(args),
        "kwargs": dict(kwargs),
        "options": options,
    }
