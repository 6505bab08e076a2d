"""The base class of task and group handles, and the rule for waiting in tasks."""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from greenq.errors import ConfigError, IncompleteStream, Problem, RemoteTraceback
from greenq.result.result_graph import ResultGraph
from greenq.states import PENDING, PROPAGATE_STATES
from greenq.utils.log import task_log_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from greenq.protocol.meta import ResultMeta

# Whether code in this context is allowed to wait for results; None means only outside tasks.
_joins: ContextVar[bool | None] = ContextVar("greenq_joins", default=None)


@contextmanager
def allow_join_result() -> Iterator[None]:
    """Allow a task to wait for the results of other tasks inside a ``with`` statement."""
    with _set_joins(True):
        yield


@contextmanager
def denied_join_result() -> Iterator[None]:
    """Forbid waiting for results inside a ``with`` statement, as in a task."""
    with _set_joins(False):
        yield


@contextmanager
def _set_joins(may: bool) -> Iterator[None]:
    before = _joins.set(may)
    try:
        yield
    finally:
        _joins.reset(before)


@contextmanager
def join_as_here() -> Iterator[None]:
    """Inside a ``with`` statement, keep the rule that applies outside, even if a task begins."""
    with _set_joins(_may_wait()):
        yield


def _may_wait() -> bool:
    may = _joins.get()
    return task_log_context.get() is None if may is None else may


def refuse_in_task(what: str) -> None:
    """Raise a RuntimeError in a task, unless waiting is allowed; `what` names the result."""
    if _may_wait():
        return
    raise RuntimeError(
        f"a task must not wait for the result of another one ({what}): "
        "if the tasks in all slots of the workers wait like this, no slot is left for the others. "
        "Let this task end and continue in the other one or, if a slot is always free, "
        "call get(disable_sync_subtasks=False) or use allow_join_result()"
    )


def ask_for_app(newest: Callable[[], Any]) -> None:
    """Register `newest`, the function from which `newest_app` gets the app."""
    _newest[:] = [newest]


def newest_app() -> Any:
    """Return the app for handles that do not name one.

    Raises:
        ConfigError: no app has been created.
    """
    if not _newest:
        reason = "a result was used before any Greenq app was created"
        raise ConfigError([Problem("app", None, reason)])
    return _newest[-1]()


# Set by `greenq.registry`, which is in a layer above this one.
_newest: list[Callable[[], Any]] = []


class ResultBase:
    """The base class of all handles.

    Attributes:
        id: the id of the task or group; None for a `ResultSet`.
        parent: the handle of its predecessor in a chain, or None.
    """

    # As in Celery, this says that results are awaited without polling.
    supports_native_join = True

    id: str | None
    parent: ResultBase | None

    def as_tuple(self) -> tuple[Any, Any]:
        """Return ids and parents as plain data in Celery's format; see `result_from_tuple`."""
        raise NotImplementedError

    def __json__(self) -> tuple[Any, Any]:
        """Return the tuple that is stored if a task returns this handle."""
        return self.as_tuple()

    @property
    def app(self) -> Any:
        """The app that the result belongs to."""
        raise NotImplementedError

    def handles(self) -> Iterator[Any]:
        """Yield the handles of the tasks that this handle stands for."""
        raise NotImplementedError

    def ready(self) -> bool:
        """Return whether the task or group has ended."""
        raise NotImplementedError

    @property
    def children(self) -> Any:
        """The handles one level below: the tasks that a task has sent, or a group's members."""
        raise NotImplementedError

    def get(self, *args: Any, **kwargs: Any) -> Any:
        """Wait for the task or group, and return its value."""
        raise NotImplementedError

    def revoke_by_stamped_headers(self, headers: Mapping[str, Any], **how: Any) -> None:
        """Revoke all tasks that have one of these stamps, in this group or any other."""
        self.app.control.revoke_by_stamped_headers(headers, **how)

    def iterdeps(self, intermediate: bool = False) -> Iterator[tuple[ResultBase | None, Any]]:
        """Yield pairs of parent and handle: this one, its children, their children, and so on.

        Raises:
            IncompleteStream: a task has not ended, so its children are not known yet;
                `intermediate` skips such tasks.
        """
        level: deque[tuple[ResultBase | None, ResultBase]] = deque([(None, self)])
        while level:
            parent, node = level.popleft()
            yield parent, node
            if node.ready():
                level.extend((node, child) for child in node.children)
            elif not intermediate:
                raise IncompleteStream(f"{node} has not ended: its children are not known yet")

    def collect(self, intermediate: bool = False, **how: Any) -> Iterator[tuple[Any, Any]]:
        """Yield each handle from `iterdeps` with its value, which is awaited by ``get(**how)``."""
        for _, node in self.iterdeps(intermediate):
            yield node, node.get(**how)

    def get_leaf(self) -> Any:
        """Return the value of the last handle that `collect` yields."""
        return deque(self.collect(), maxlen=1).pop()[1]

    def build_graph(self, intermediate: bool = False) -> ResultGraph:
        """Return the tree of `iterdeps` as a graph."""
        graph = ResultGraph()
        for parent, node in self.iterdeps(intermediate):
            graph.add_arc(node)
            if parent is not None:
                graph.add_edge(parent, node)
        return graph

    @property
    def graph(self) -> ResultGraph:
        """The tree of the tasks that this one has sent; see `build_graph`."""
        return self.build_graph()

    def _own_tuple(self) -> tuple[Any, Any]:
        return self.id, None if self.parent is None else self.parent.as_tuple()

    def ancestors(self) -> Iterator[ResultBase]:
        """Yield the parent, its parent, and so on."""
        node = self.parent
        while node is not None:
            yield node
            node = node.parent


# The functions that create a handle from its tuple. The two classes of handles register themselves
# here, since a handle of either class may contain handles of the other.
makers: dict[str, Callable[..., ResultBase]] = {}


def result_from_tuple(value: Any, app: Any = None) -> Any:
    """Return the handle that a tuple from `as_tuple` describes: `AsyncResult` or `GroupResult`.

    If `value` is already a handle, it is returned unchanged.

    Raises:
        ValueError: `value` does not come from `as_tuple`.
    """
    # Parents are read without recursion, since a chain may be long.
    line, above = [], value
    while not isinstance(above, ResultBase):
        found_id, above, members = _read_tuple(above)
        line.append((found_id, members))
        if above is None:
            break
    made: Any = above
    for found_id, members in reversed(line):
        if members is None:
            made = makers["task"](found_id, app=app, parent=made)
        else:
            results = [result_from_tuple(member, app) for member in members]
            made = makers["group"](found_id, results, app=app, parent=made)
    return made


def _read_tuple(value: Any) -> tuple[str, Any, Any]:
    """Return the id, the parent and the members of a tuple from `as_tuple`."""
    try:
        own, members = value
        found_id, parent = own if isinstance(own, (list, tuple)) else (own, None)
    except (TypeError, ValueError):
        raise ValueError(f"not a result tuple: {value!r}") from None
    if not isinstance(found_id, str) or not isinstance(members, (list, tuple, type(None))):
        raise ValueError(f"not a result tuple: {value!r}")
    return found_id, parent, members


def fulfil(
    result: ResultBase,
    callback: Callable[[Any], object],
    on_error: Callable[[Exception], object] | None,
) -> None:
    """Call the function that was passed to `then`; `on_error` receives its exception, if any."""
    try:
        callback(result)
    except Exception as exc:
        if on_error is None:
            raise
        on_error(exc)


def value_of(meta: ResultMeta, propagate: bool) -> Any:
    """Return the value of a state; if `propagate`, raise the exception of a failed task."""
    if propagate and meta.status in PROPAGATE_STATES and isinstance(meta.result, BaseException):
        raise meta.result from RemoteTraceback.of(meta.traceback)
    return meta.result


def children_of(meta: ResultMeta, app: Any) -> list[Any]:
    """Return the handles of a task's children; skip values that are not result tuples."""
    found = []
    for child in meta.children or ():
        with suppress(ValueError):
            found.append(result_from_tuple((child, None) if isinstance(child, str) else child, app))
    return found


def as_dict(meta: ResultMeta) -> dict[str, Any]:
    """Return a state as the dict that ``on_message`` receives."""
    return {
        "task_id": meta.task_id,
        "status": meta.status or PENDING,
        "result": meta.result,
        "traceback": meta.traceback,
        "children": meta.children,
    }
