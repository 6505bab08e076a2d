"""Handles of tasks that were sent: `AsyncResult` for one, `AsyncResults` for many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from greenq.config.celery_names import name_what_is_not_here
from greenq.errors import ConfigError, Problem, RemoteTraceback
from greenq.log import task_log_context
from greenq.states import FAILURE, PENDING, PROPAGATE_STATES, READY_STATES, SUCCESS
from greenq.transport.mailbox import Mailbox

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.protocol.meta import ResultMeta
    from greenq.transport.transport import Transport

R = TypeVar("R")


# True in a context where even a task may wait for results.
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


def ask_for_app(newest: Callable[[], Any]) -> None:
    """Register the function `newest` that provides the app for `newest_app`."""
    _newest[:] = [newest]


def newest_app() -> Any:
    """Return the app for handles created without one.

    Raises:
        ConfigError: no app was made.
    """
    if not _newest:
        reason = "a result is used before any Greenq app was made"
        raise ConfigError([Problem("app", None, reason)])
    return _newest[-1]()


# Provided by `greenq.app`, which is in a layer above this one.
_newest: list[Callable[[], Any]] = []


class AsyncResult(Generic[R]):
    """The outcome of one task, read from the result server on demand.

    A final state is remembered, so reading it again costs nothing. Works in plain threads and in
    greenlets; all waiting callers of a process share one connection.
    """

    def __init__(
        self,
        id: str,
        transport: Transport | None = None,
        name: str | None = None,
        *,
        app: Any = None,
        parent: AsyncResult[Any] | None = None,
        ignored: bool = False,
    ) -> None:
        """Refer to task `id`, whose result is read through `transport`.

        Args:
            id: the task's.
            transport: where to read; None means that of the `app`, or of the newest app.
            name: the task's, if known.
            app: whose transport to use.
            parent: the result of the task that sent this one.
            ignored: no result is stored, so there is nothing to wait for.
        """
        self.id = id
        self._name = name
        self.parent = parent
        self.ignored = ignored
        # The backend is looked up on demand: tasks can be sent even without one.
        self._own_transport = transport
        self._app = app
        self._final: ResultMeta | None = None

    @property
    def _transport(self) -> Transport:
        if self._own_transport is None:
            self._own_transport = self.app.transport
        return self._own_transport

    @property
    def app(self) -> Any:
        """The app it was made for, or else the newest one.

        Raises:
            ConfigError: no app was made.
        """
        return newest_app() if self._app is None else self._app

    @property
    def backend(self) -> Any:
        """What reads results from the server."""
        return self._transport.backend

    @property
    def task_id(self) -> str:
        """The task's id."""
        return self.id

    @property
    def state(self) -> str:
        """The current state: PENDING, STARTED, RETRY, SUCCESS, FAILURE, REVOKED, or its own."""
        return self._read().status

    status = state

    @property
    def result(self) -> R | BaseException | Any:
        """The return value, the exception, or a custom state's meta; None if nothing is stored."""
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

    @property
    def children(self) -> list[AsyncResult[Any]]:
        """Handles of the tasks that this one sent; available once it has ended."""
        found: list[AsyncResult[Any]] = []
        for child in self._read().children or ():
            task_id = child
            while isinstance(task_id, (list, tuple)) and task_id:
                task_id = task_id[0]
            if isinstance(task_id, str):
                found.append(AsyncResult(task_id, self._own_transport, app=self._app, parent=self))
        return found

    @property
    def root(self) -> AsyncResult[Any]:
        """The first of its ancestors, or itself."""
        found: AsyncResult[Any] = self
        while found.parent is not None:
            found = found.parent
        return found

    # Stored only with result_extended; otherwise None.

    @property
    def name(self) -> str | None:
        """The task's name: known where it was sent, elsewhere read from the stored result."""
        return self._read().extra.get("name") if self._name is None else self._name

    @property
    def args(self) -> Any:
        """The task's positional arguments."""
        return self._read().extra.get("args")

    @property
    def kwargs(self) -> Any:
        """The task's keyword arguments."""
        return self._read().extra.get("kwargs")

    @property
    def worker(self) -> str | None:
        """The node name of the worker that ran it."""
        return self._read().extra.get("worker")

    @property
    def retries(self) -> int | None:
        """How often it was retried."""
        return self._read().extra.get("retries")

    @property
    def queue(self) -> str | None:
        """The queue it was taken from."""
        return self._read().extra.get("queue")

    def as_tuple(self) -> tuple[tuple[str, Any], None]:
        """Return id and parent as plain data, in Celery's format."""
        return (self.id, None if self.parent is None else self.parent.as_tuple()), None

    def maybe_throw(self, propagate: bool = True) -> Any:
        """Return the current result; raise it if the task has failed."""
        return self._value(self._read(), propagate)

    maybe_reraise = maybe_throw

    def ready(self) -> bool:
        """True when the task has ended, in success or failure."""
        return self.state in READY_STATES

    def successful(self) -> bool:
        """True when the task has returned."""
        return self.state == SUCCESS

    def failed(self) -> bool:
        """True when the task has raised."""
        return self.state == FAILURE

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float | None = None,
        on_message: Callable[[dict[str, Any]], object] | None = None,
        *,
        callback: Callable[[str, Any], object] | None = None,
        no_ack: bool = True,
        follow_parents: bool = True,
        disable_sync_subtasks: bool = True,
    ) -> R:
        """Wait for the task and return its value. Switches: yes.

        Returns None at once if the result is `ignored`.

        Args:
            timeout: longest wait in seconds; None waits for ever.
            propagate: raise the task's exception; False returns it.
            interval: also read the stored result after this many seconds of silence; not needed,
                since each result is announced.
            on_message: called with each state that is announced: task_id, status, result,
                traceback, children.
            callback: called with the id and the value that is returned.
            no_ack, follow_parents: accepted for compatibility with Celery, no effect.
            disable_sync_subtasks: False allows waiting in a task, as `allow_join_result` does.

        Raises:
            RuntimeError: a task waits for another one, which may need the slot that it holds.
            ResultTimeout: it did not end in time.
            Exception: what the task raised, with the worker's traceback as its cause.
        """
        if self.ignored:
            return None  # type: ignore[return-value]  # a sender that wants no result gets none
        if disable_sync_subtasks and not _may_wait():
            raise RuntimeError(
                f"a task must not wait for the result of another one ({self._name or self.id}): "
                "when all slots of the workers wait like this, none is left for the other tasks. "
                "End the task and go on in the other one, or, where there is always a free slot, "
                "call get(disable_sync_subtasks=False) or use allow_join_result()"
            )
        if self._final is None:
            announce = None if on_message is None else lambda meta: on_message(_as_dict(meta))
            self._final = self._transport.backend.wait(
                self.id, timeout_s=timeout, interval_s=interval, on_message=announce
            )
        value: R = self._value(self._final, propagate)
        if callback is not None:
            callback(self.id, value)
        return value

    @staticmethod
    def _value(meta: ResultMeta, propagate: bool) -> Any:
        if propagate and meta.status in PROPAGATE_STATES and isinstance(meta.result, BaseException):
            raise meta.result from RemoteTraceback.of(meta.traceback)
        return meta.result

    wait = get

    def revoke(
        self,
        *,
        terminate: bool = False,
        signal: str | None = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Prevent the task from running; with `terminate`, end it if it is running.

        Running workers are notified; workers that start later get it from them.

        Args:
            signal: a name shown in events; greenlets receive no signal.
            wait: until every worker has answered, `timeout` seconds at most (1).

        Raises:
            OperationalError: the server could not be reached.
        """
        arguments = {"task_id": self.id, "terminate": terminate, "signal": signal or "SIGTERM"}
        if wait:
            self.app.control.revoke(
                self.id,
                terminate=terminate,
                signal=signal or "SIGTERM",
                reply=True,
                timeout=1.0 if timeout is None else timeout,
            )
            return
        transport = self._transport
        Mailbox(transport.client, transport.keys, signer=transport.signer).tell("revoke", arguments)

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

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle it without its app: unpickled, it belongs to the newest one."""
        return _again, (self.id, self._name, self.parent, self.ignored)

    def __repr__(self) -> str:
        """Show the id."""
        return f"<AsyncResult: {self.id}>"

    def __str__(self) -> str:
        """Return the id."""
        return self.id

    def __eq__(self, other: object) -> bool:
        """Handles of the same task are equal."""
        return isinstance(other, AsyncResult) and other.id == self.id

    def __hash__(self) -> int:
        """Hash the id."""
        return hash(self.id)


name_what_is_not_here(AsyncResult)


class AsyncResults(Sequence[AsyncResult[R]], Generic[R]):
    """The handles of tasks that were sent together, in order; created on access.

    It has a length, an index and slices, and takes no memory for its handles; each access returns
    a new one.
    """

    def __init__(self, ids: Sequence[str], transport: Transport, name: str | None = None) -> None:
        """Refer to the tasks `ids`; the other arguments are as for `AsyncResult`."""
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
        """Yield the handles one by one."""
        return (AsyncResult(task_id, self._transport, self.name) for task_id in self.ids)

    def __repr__(self) -> str:
        """Show their number."""
        return f"<AsyncResults: {len(self)} of {self.name}>"


def _again(
    id: str, name: str | None, parent: AsyncResult[Any] | None, ignored: bool
) -> AsyncResult[Any]:
    return AsyncResult(id, name=name, parent=parent, ignored=ignored)


def _as_dict(meta: ResultMeta) -> dict[str, Any]:
    return {
        "task_id": meta.task_id,
        "status": meta.status or PENDING,
        "result": meta.result,
        "traceback": meta.traceback,
        "children": meta.children,
    }
