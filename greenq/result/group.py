"""`ResultSet` and `GroupResult`: the handles of many tasks, which are read and awaited together."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from greenq.errors import ResultTimeout
from greenq.result.many import AsyncResults
from greenq.result.result_base import (
    ResultBase,
    as_dict,
    fulfil,
    makers,
    newest_app,
    refuse_in_task,
    result_from_tuple,
    value_of,
)
from greenq.result.task_result import INTERVAL_S, AsyncResult, forget, revoke
from greenq.states import FAILURE, READY_STATES, SUCCESS

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.protocol.meta import ResultMeta


class ResultSet(ResultBase):
    """Handles of tasks, or of groups, whose outcomes are read together.

    Each query reads the states of all tasks in portions of 1,000, and waiting for all of them takes
    one subscription. All results must be on one server.

    Attributes:
        results: the handles, in order.
    """

    TimeoutError = ResultTimeout

    # The app, in the subclasses that an app provides.
    own_app: Any = None
    id: str | None = None
    parent: ResultBase | None = None

    def __init__(self, results: Iterable[Any] = (), app: Any = None) -> None:
        """Store `results`; `app` is the app they belong to, by default that of the first one."""
        self.results: Any = results if isinstance(results, Sequence) else list(results)
        self._app = self.own_app if app is None else app

    @property
    def app(self) -> Any:
        """The app that the results belong to."""
        if self._app is None:
            self._app = self.results[0].app if self.results else newest_app()
        return self._app

    @property
    def backend(self) -> Any:
        """The object that reads results from the server."""
        return self.results[0].backend if self.results else self.app.backend

    # --- its members ------------------------------------------------------------------------------

    def add(self, result: ResultBase) -> None:
        """Add a handle unless it is already present."""
        self.update([result])

    def update(self, results: Iterable[ResultBase]) -> None:
        """Add the handles that are not yet present."""
        own = self._own_list()
        known = set(own)
        for result in results:
            if result not in known:
                known.add(result)
                own.append(result)

    def remove(self, result: ResultBase | str) -> None:
        """Remove a handle; `result` is the handle or its id.

        Raises:
            KeyError: the handle is not present.
        """
        try:
            self._own_list().remove(result)
        except ValueError:
            raise KeyError(result) from None

    def discard(self, result: ResultBase | str) -> None:
        """Remove a handle if it is present."""
        if result in self.results:
            self.remove(result)

    def clear(self) -> None:
        """Remove all handles."""
        self._own_list().clear()

    def _own_list(self) -> list[Any]:
        """Return the handles as a list that can be changed."""
        if not isinstance(self.results, list):
            self.results = list(self.results)
        return self.results

    def handles(self) -> Iterator[AsyncResult[Any]]:
        """Yield the handles of all tasks, including those in groups among the results."""
        for result in self.results:
            yield from result.handles()

    # --- the stored states ------------------------------------------------------------------------

    def _states(self) -> dict[str, ResultMeta]:
        """Return the state of each task by id; read only the states not known to be final."""
        handles = list(self.handles())
        states = {handle.id: handle.final for handle in handles if handle.final is not None}
        unread = dict.fromkeys(handle.id for handle in handles if handle.final is None)
        if unread:
            states |= {meta.task_id: meta for meta in self.backend.get_many(unread)}
        for handle in handles:
            if states[handle.id].status in READY_STATES:
                handle.final = states[handle.id]
        return states

    def _statuses(self) -> list[list[str]]:
        """Return the state of each task, in one list for each result."""
        states = self._states()
        return [[states[each.id].status for each in result.handles()] for result in self.results]

    def ready(self) -> bool:
        """Return whether all tasks have ended, successfully or not."""
        return all(status in READY_STATES for statuses in self._statuses() for status in statuses)

    def waiting(self) -> bool:
        """Return whether any task has not ended."""
        return not self.ready()

    def successful(self) -> bool:
        """Return whether all tasks have succeeded."""
        return all(status == SUCCESS for statuses in self._statuses() for status in statuses)

    def failed(self) -> bool:
        """Return whether any task has raised an exception."""
        return any(status == FAILURE for statuses in self._statuses() for status in statuses)

    def completed_count(self) -> int:
        """Return how many of the results are successful."""
        return sum(all(each == SUCCESS for each in statuses) for statuses in self._statuses())

    def maybe_throw(
        self, callback: Callable[[str, Any], object] | None = None, propagate: bool = True
    ) -> None:
        """Raise the exception of the first failed task, if any.

        `callback` is called with the id and the current result of each task before the failed one.
        """
        states = self._states()
        for handle in self.handles():
            value = value_of(states[handle.id], propagate)
            if callback is not None:
                callback(handle.id, value)

    maybe_reraise = maybe_throw

    # --- waiting ----------------------------------------------------------------------------------

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float | None = None,
        callback: Callable[[str, Any], object] | None = None,
        no_ack: bool = True,
        on_message: Callable[[dict[str, Any]], object] | None = None,
        disable_sync_subtasks: bool = True,
        on_interval: Callable[[], object] | None = None,
    ) -> list[Any]:
        """Wait for all tasks and return their values, in the order of the results. Switches: yes.

        The value of a group among the results is the list of its members' values.

        Args:
            timeout: the longest wait in seconds, for all results together; None means no limit.
            propagate: raise the exception of the first task that fails; if False, return it among
                the values.
            interval: as for `AsyncResult.get`.
            callback: called with the id and the value of each result when its task has ended, in
                any order; the list returned is then empty.
            no_ack: accepted for compatibility with Celery; has no effect.
            on_message: called with each state that is announced, as for `AsyncResult.get`.
            disable_sync_subtasks: False allows waiting in a task, as `allow_join_result` does.
            on_interval: called when nothing has been announced for `interval` (by default 0.5 s).

        Raises:
            RuntimeError: a task waits for other tasks, which may need the slot that it occupies.
            ResultTimeout: not all tasks ended in time.
            Exception: a task's exception, with the worker's traceback as its cause.
        """
        if disable_sync_subtasks:
            refuse_in_task(str(self))
        if callback is None and on_message is None and isinstance(self.results, AsyncResults):
            found = self.backend.wait_in_order(
                self.results.ids,
                lambda meta: value_of(meta, propagate),
                timeout_s=timeout,
                interval_s=INTERVAL_S if interval is None and on_interval else interval,
                on_interval=on_interval,
            )
            return [meta.result for meta in found]
        states: dict[str, ResultMeta] = {}
        ended = self._wait(states, timeout, interval, on_message, on_interval, propagate=propagate)
        with closing(ended):
            for result in ended:
                if callback is not None:
                    callback(result.id, _value(result, states))
        return [] if callback is not None else [_value(each, states) for each in self.results]

    join = get
    join_native = get

    def iterate(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float | None = None,
    ) -> Iterator[Any]:
        """Yield the value of each result once its task has ended; arguments as for `get`."""
        refuse_in_task(str(self))
        states: dict[str, ResultMeta] = {}
        for result in self._wait(states, timeout, interval, propagate=propagate):
            yield _value(result, states)

    def iter_native(
        self,
        timeout: float | None = None,
        interval: float | None = None,
        no_ack: bool = True,
        on_message: Callable[[dict[str, Any]], object] | None = None,
        on_interval: Callable[[], object] | None = None,
    ) -> Iterator[tuple[str, Any]]:
        """Yield the id of each result when its task has ended, with its state as a dictionary.

        A group among the results comes with the list of its handles instead.
        """
        states: dict[str, ResultMeta] = {}
        for result in self._wait(states, timeout, interval, on_message, on_interval):
            if isinstance(result, ResultSet):
                yield str(result.id), result.results
            else:
                yield result.id, as_dict(states[result.id])

    def _wait(
        self,
        states: dict[str, ResultMeta],
        timeout_s: float | None,
        interval_s: float | None,
        on_message: Callable[[dict[str, Any]], object] | None = None,
        on_interval: Callable[[], object] | None = None,
        *,
        propagate: bool = False,
    ) -> Generator[Any]:
        """Yield each result when all its tasks have ended and their states are in `states`."""
        if on_interval is not None and interval_s is None:
            interval_s = INTERVAL_S
        needed, left = self._needs()
        yield from (
            result for result, missing in zip(self.results, left, strict=True) if not missing
        )
        for meta in self._ends(
            needed,
            timeout_s=timeout_s,
            interval_s=interval_s,
            on_message=None if on_message is None else lambda meta: on_message(as_dict(meta)),
            on_interval=on_interval,
        ):
            value_of(meta, propagate)
            states[meta.task_id] = meta
            for handle, position in needed[meta.task_id]:
                handle.final = meta
                left[position] -= 1
                if not left[position]:
                    yield self.results[position]

    def _needs(self) -> tuple[dict[str, list[tuple[AsyncResult[Any], int]]], list[int]]:
        """Return the results that wait for each task, and how many tasks each result waits for."""
        needed: dict[str, list[tuple[AsyncResult[Any], int]]] = {}
        left = []
        for position, result in enumerate(self.results):
            handles = list(result.handles())
            left.append(len(handles))
            for handle in handles:
                needed.setdefault(handle.id, []).append((handle, position))
        return needed, left

    def _ends(
        self, needed: Mapping[str, Sequence[tuple[AsyncResult[Any], int]]], **how: Any
    ) -> Iterator[ResultMeta]:
        """Yield the final state of each task: first those already known, then those awaited."""
        waiting = []
        for task_id, handles in needed.items():
            known = handles[0][0].known()
            if known is None:
                waiting.append(task_id)
            else:
                yield known
        if waiting:
            yield from self.backend.wait_many(waiting, **how)

    def then(
        self,
        callback: Callable[[Any], object],
        on_error: Callable[[Exception], object] | None = None,
        weak: bool = False,
    ) -> ResultSet:
        """Have `callback` called with this set after all tasks end; see `AsyncResult.then`."""
        handles: dict[str, list[AsyncResult[Any]]] = {}
        for handle in self.handles():
            if handle.known() is None:
                handles.setdefault(handle.id, []).append(handle)
        if not handles:
            fulfil(self, callback, on_error)
            return self

        def ended(meta: ResultMeta) -> None:
            for handle in handles.pop(meta.task_id):
                handle.final = meta
            if not handles:
                fulfil(self, callback, on_error)

        self.backend.call_when_ended(list(handles), ended)
        return self

    # --- all results ------------------------------------------------------------------------------

    def forget(self) -> None:
        """Delete the stored results, and those of their parents."""
        forget(self.results, self.backend)

    def revoke(
        self,
        *,
        terminate: bool = False,
        signal: str | None = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Send one message that prevents all tasks from running; see `AsyncResult.revoke`."""
        ids = [handle.id for handle in self.handles()]
        if ids:
            first = next(self.handles())
            revoke(first, ids, terminate=terminate, signal=signal, wait=wait, timeout=timeout)

    @property
    def children(self) -> Any:
        """The results."""
        return self.results

    def __len__(self) -> int:
        """Return the number of results."""
        return len(self.results)

    def __iter__(self) -> Iterator[Any]:
        """Yield the results in order."""
        return iter(self.results)

    def __getitem__(self, index: Any) -> Any:
        """Return one result, or those of a slice."""
        return self.results[index]

    def __eq__(self, other: object) -> bool:
        """Return whether `other` is a set of the same results in the same order."""
        if isinstance(other, ResultSet):
            return list(other.results) == list(self.results)
        return NotImplemented

    # Unhashable, like other mutable collections.
    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Show the number of results."""
        return f"<{type(self).__name__}: {len(self)} results>"


class GroupResult(ResultSet):
    """The handle of a group: its id, the handles of its tasks, and its predecessor."""

    id: str

    def __init__(
        self,
        id: str,
        results: Iterable[Any] = (),
        parent: ResultBase | None = None,
        *,
        app: Any = None,
    ) -> None:
        """Create the handle of the group `id`; `parent` is its predecessor in a chain."""
        super().__init__(results, app)
        self.id = id
        self.parent = parent

    def as_tuple(self) -> tuple[Any, Any]:
        """Return the ids and the parents as plain data, in Celery's format."""
        return self._own_tuple(), [result.as_tuple() for result in self.results]

    def save(self) -> GroupResult:
        """Store the list of the group's tasks for `restore`, for as long as results are kept."""
        self.backend.save_group(self.id, self.as_tuple())
        return self

    def delete(self) -> None:
        """Delete the group stored by `save`, but not the results of its tasks."""
        self.backend.delete_group(self.id)

    @classmethod
    def restore(cls, id: str, *, app: Any = None) -> GroupResult | None:
        """Return the group that was saved under `id`, or None.

        Raises:
            DecodeError: the stored value is not a group.
        """
        app = app or cls.own_app or newest_app()
        value = app.backend.restore_group(id)
        found: GroupResult | None = None if value is None else result_from_tuple(value, app)
        return found

    def __bool__(self) -> bool:
        """Return True, even if the group is empty."""
        return True

    def __eq__(self, other: object) -> bool:
        """Return whether `other` has the same id, results and parent, or is the group's id."""
        if isinstance(other, GroupResult):
            same = other.id == self.id and other.parent == self.parent
            return same and list(other.results) == list(self.results)
        return other == self.id if isinstance(other, str) else NotImplemented

    def __hash__(self) -> int:  # type: ignore[override]
        """Hash the id."""
        return hash(self.id)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the group without its app; when unpickled, it belongs to the newest app."""
        return GroupResult, (self.id, list(self.results), self.parent)

    def __str__(self) -> str:
        """Return the id."""
        return self.id

    def __repr__(self) -> str:
        """Show the id and the number of results."""
        return f"<GroupResult: {self.id} of {len(self)} results>"


makers["group"] = GroupResult


def _value(result: Any, states: Mapping[str, ResultMeta]) -> Any:
    """Return the value, or the exception, of a task; for a group, the list of its tasks' values."""
    if isinstance(result, ResultSet):
        return [_value(each, states) for each in result.results]
    return states[result.id].result
