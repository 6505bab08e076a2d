"""Running workflows in this process: how values pass from one part to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from greenq.errors import ChordError
from greenq.protocol.ids import new_id
from greenq.result import EagerResult, GroupResult
from greenq.states import FAILURE, SUCCESS


def value_here(result: Any) -> Any:
    """Return the value of a part that has run; for a group, the list of its members' values."""
    if isinstance(result, GroupResult):
        return [value_here(each) for each in result.results]
    return result.result


def first_failed(result: Any) -> Any:
    """Return the handle of the first task that did not succeed, or None."""
    return next((each for each in result.handles() if each.state != SUCCESS), None)


def run_in_place(sig: Any) -> Any:
    """Run a signature that replaces a task, and return the signature's value.

    Raises:
        Exception: the exception of a task that failed.
    """
    result = sig.apply()
    failed = first_failed(result)
    if failed is not None:
        raise failed.result
    return value_here(result)


def after(before: Any, result: Any) -> Any:
    """Make `before` the first ancestor of `result`, and return `result`."""
    first = result
    while first.parent is not None:
        first = first.parent
    first.parent = before
    return result


def unreached(body: Mapping[str, Any], header: Any, failed: Any) -> EagerResult[Any]:
    """Return the handle of a body that will not run because a task before it failed."""
    error = ChordError(f"Dependency {failed.id} raised {failed.result!r}")
    task_id = body["options"].get("task_id") or new_id()
    result: EagerResult[Any] = EagerResult(task_id, error, FAILURE, name=body["task"])
    return after(header, result)  # type: ignore[no-any-return]
