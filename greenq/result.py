"""The handles of tasks that were sent: `AsyncResult` of one, `AsyncResults` of many."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from greenq.errors import RemoteTraceback
from greenq.log import task_log_context
from greenq.protocol.states import FAILURE, PENDING, PROPAGATE_STATES, READY_STATES, SUCCESS
from greenq.transport.mailbox import Mailbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from greenq.protocol.meta import ResultMeta
    from greenq.transport.links import Transport

R = TypeVar("R")


# True in a context that may wait for results though a task runs there.
_joins: ContextVar[bool] = ContextVar("greenq_joins", default=False)


@contextmanager
def allow_join_result() -> Iterator[None]:
    """Let a task wait for the results of others, in a ``with`` statement."""
    before = _joins.set(True)
    try:
        yield
    finally:
        _joins.reset(before)


def _may_wait() -> bool:
    return task_log_context.get() is None or _joins.get()


class AsyncResult(Generic[R]):
    """The outcome of one task, read from the result server when it is asked for.

    A final state is remembered, so reading it again costs nothing. Works in plain threads and in
    greenlets; all waiting callers of a process share one connection.
    """

    def __init__(self, id: str, transport: Transport, name: str | None = None) -> None:
        """Refer to task `id`, whose result `transport` leads to; `name` is for people."""
        self.id = id
        self.name = name
        # Its backend is asked for when it is needed: without one, tasks can still be sent.
        self._transport = transport
        self._final: ResultMeta | None = None

    @property
    def task_id(self) -> str:
        """The task's id."""
        return self.id

    @property
    def state(self) -> str:
        """The task's state now: PENDING, STARTED, RETRY, SUCCESS, FAILURE, REVOKED, or its own."""
        return self._read().status

    status = state

    @property
    def result(self) -> R | BaseException | Any:
        """The return value, the exception, or a state's meta; None while nothing is stored."""
        return self._read().result

    info = result

    @property
    def traceback(self) -> str | None:
        """The traceback of a failed task, as text."""
        return self._read().traceback

    @property
    def date_done(self) -> str | None:
        """When the task ended, ISO 8601, or None."""
        return self._read().date_done

    def ready(self) -> bool:
        """True when the task has ended, well or badly."""
        return self.state in READY_STATES

    def successful(self) -> bool:
        """True when the task returned."""
        return self.state == SUCCESS

    def failed(self) -> bool:
        """True when the task raised."""
        return self.state == FAILURE

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float | None = None,
        on_message: Callable[[dict[str, Any]], object] | None = None,
        disable_sync_subtasks: bool = True,
    ) -> R:
        """Wait for the task and return its value. Switches: yes.

        Args:
            timeout: seconds to wait at most; None waits for ever.
            propagate: raise the task's exception; False returns it.
            interval: look at the stored result after so many seconds of silence, too; the
                notification makes that unnecessary.
            on_message: called with each state that is announced: task_id, status, result,
                traceback, children.
            disable_sync_subtasks: False allows it in a task, as `allow_join_result` does.

        Raises:
            RuntimeError: a task waits for another one, which may need the slot that it holds.
            ResultTimeout: it did not end in time.
            Exception: what the task raised, with the worker's traceback as its cause.
        """
        if disable_sync_subtasks and not _may_wait():
            raise RuntimeError(
                f"a task must not wait for the result of another one ({self.name or self.id}): "
                "when all slots of the workers wait so, none is left for what they wait for. "
                "End the task and go on in the other one, or, where there is always a free slot, "
                "call get(disable_sync_subtasks=False) or use allow_join_result()"
            )
        if self._final is None:
            announce = None if on_message is None else lambda meta: on_message(_as_dict(meta))
            self._final = self._transport.backend.wait(
                self.id, timeout_s=timeout, interval_s=interval, on_message=announce
            )
        meta = self._final
        if propagate and meta.status in PROPAGATE_STATES and isinstance(meta.result, BaseException):
            raise meta.result from RemoteTraceback.of(meta.traceback)
        value: R = meta.result
        return value

    wait = get

    def revoke(self, *, terminate: bool = False, signal: str | None = None) -> None:
        """Have no worker run the task; with `terminate`, end it where it runs.

        Workers that are there hear it; who starts later learns it from them.

        Args:
            signal: a name for events to tell; greenlets get none.

        Raises:
            OperationalError: the server could not be reached.
        """
        arguments = {"task_id": self.id, "terminate": terminate, "signal": signal or "SIGTERM"}
        Mailbox(self._transport.client, self._transport.keys).tell("revoke", arguments)

    def forget(self) -> None:
        """Delete the stored result."""
        self._final = None
        self._transport.backend.forget(self.id)

    def _read(self) -> ResultMeta:
        if self._final is not None:
            return self._final
        meta = self._transport.backend.get(self.id)
        if meta.status in READY_STATES:
            self._final = meta
        return meta

    def __repr__(self) -> str:
        """Show the id."""
        return f"<AsyncResult: {self.id}>"

    def __str__(self) -> str:
        """Return the id."""
        return self.id

    def __eq__(self, other: object) -> bool:
        """Two handles of one task are equal."""
        return isinstance(other, AsyncResult) and other.id == self.id

    def __hash__(self) -> int:
        """Hash the id."""
        return hash(self.id)


class AsyncResults(Sequence[AsyncResult[R]], Generic[R]):
    """The handles of tasks that were sent together, in their order, made when they are asked for.

    It has a length, an index and slices, and takes no memory for its handles; each one that is
    asked for is new.
    """

    def __init__(self, ids: Sequence[str], transport: Transport, name: str | None = None) -> None:
        """Refer to the tasks `ids`; the rest as for `AsyncResult`."""
        self.ids = ids
        self.name = name
        self._transport = transport

    def __len__(self) -> int:
        """Count the tasks."""
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> AsyncResult[R]: ...
    @overload
    def __getitem__(self, index: slice) -> AsyncResults[R]: ...
    def __getitem__(self, index: int | slice) -> AsyncResult[R] | AsyncResults[R]:
        """Return the handle of one task, or the handles of a slice."""
        if isinstance(index, slice):
            return AsyncResults(self.ids[index], self._transport, self.name)
        return AsyncResult(self.ids[index], self._transport, self.name)

    def __iter__(self) -> Iterator[AsyncResult[R]]:
        """Make one handle after another."""
        return (AsyncResult(task_id, self._transport, self.name) for task_id in self.ids)

    def __repr__(self) -> str:
        """Show how many they are."""
        return f"<AsyncResults: {len(self)} of {self.name}>"


def _as_dict(meta: ResultMeta) -> dict[str, Any]:
    return {
        "task_id": meta.task_id,
        "status": meta.status or PENDING,
        "result": meta.result,
        "traceback": meta.traceback,
        "children": meta.children,
    }
