"""What the handles of tasks and of groups share: their app, their parent, and when one may wait."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from greenq.errors import ConfigError, Problem
from greenq.log import task_log_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Whether this context may wait for results; None: only if no task runs in it.
_joins: ContextVar[bool | None] = ContextVar("greenq_joins", default=None)


@contextmanager
def allow_join_result() -> Iterator[None]:
    """Let a task wait for the results of others, in a ``with`` statement."""
    with _set_joins(True):
        yield


@contextmanager
def denied_join_result() -> Iterator[None]:
    """Refuse to wait for results in a ``with`` statement, as in a task."""
    with _set_joins(False):
        yield


@contextmanager
def _set_joins(may: bool) -> Iterator[None]:
    before = _joins.set(may)
    try:
        yield
    finally:
        _joins.reset(before)


def refuse_in_task(what: str) -> None:
    """Raise a RuntimeError where a task runs, unless waiting is allowed; `what` is waited for."""
    may = _joins.get()
    if may or (may is None and task_log_context.get() is None):
        return
    raise RuntimeError(
        f"a task must not wait for the result of another one ({what}): "
        "when all slots of the workers wait like this, none is left for the other tasks. "
        "End the task and go on in the other one, or, where there is always a free slot, "
        "call get(disable_sync_subtasks=False) or use allow_join_result()"
    )


def ask_for_app(newest: Callable[[], Any]) -> None:
    """Register the function `newest` that provides the app for `newest_app`."""
    _newest[:] = [newest]


def newest_app() -> Any:
    """Return the app for handles that name none.

    Raises:
        ConfigError: no app was made.
    """
    if not _newest:
        reason = "a result is used before any Greenq app was made"
        raise ConfigError([Problem("app", None, reason)])
    return _newest[-1]()


# Provided by the module of apps, which is in a layer above this one.
_newest: list[Callable[[], Any]] = []


class ResultBase:
    """Base class of all handles.

    Attributes:
        id: the task's or the group's; None for a `ResultSet`.
        parent: the handle of what ran before it in a chain, or None.
    """

    id: str | None
    parent: ResultBase | None

    def as_tuple(self) -> tuple[Any, Any]:
        """Return ids and parents as plain data, in Celery's format; see `result_from_tuple`."""
        raise NotImplementedError

    def __json__(self) -> tuple[Any, Any]:
        """Let a task return a handle: the result holds its tuple."""
        return self.as_tuple()

    def _own_tuple(self) -> tuple[Any, Any]:
        return self.id, None if self.parent is None else self.parent.as_tuple()

    def _ancestors(self) -> Iterator[ResultBase]:
        """Yield the parent, its parent, and so on."""
        node = self.parent
        while node is not None:
            yield node
            node = node.parent


# How a handle is made of its tuple: the two classes register here, since each may hold the other.
makers: dict[str, Callable[..., ResultBase]] = {}


def result_from_tuple(value: Any, app: Any = None) -> Any:
    """Return the handle that `as_tuple` has written: an `AsyncResult` or a `GroupResult`.

    A handle is returned as it is.

    Raises:
        ValueError: it is no such tuple.
    """
    if isinstance(value, ResultBase):
        return value
    try:
        own, members = value
        found_id, parent = own if isinstance(own, (list, tuple)) else (own, None)
    except (TypeError, ValueError):
        raise ValueError(f"not a result tuple: {value!r}") from None
    if not isinstance(found_id, str) or not isinstance(members, (list, tuple, type(None))):
        raise ValueError(f"not a result tuple: {value!r}")
    above = None if parent is None else result_from_tuple(parent, app)
    if members is None:
        return makers["task"](found_id, app=app, parent=above)
    results = [result_from_tuple(member, app) for member in members]
    return makers["group"](found_id, results, app=app, parent=above)
