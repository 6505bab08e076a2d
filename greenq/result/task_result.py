"""`AsyncResult`: the handle of one task."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from greenq.config.celery_names import name_what_is_not_here
from greenq.errors import ResultTimeout
from greenq.protocol.meta import ResultMeta
from greenq.result.result_base import (
    ResultBase,
    as_dict,
    children_of,
    fulfil,
    makers,
    newest_app,
    refuse_in_task,
    value_of,
)
from greenq.states import FAILURE, READY_STATES, SUCCESS
from greenq.transport.mailbox import Mailbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from greenq.transport.transport import Transport

R = TypeVar("R")

# The interval at which `on_interval` is called.
INTERVAL_S = 0.5


class AsyncResult(ResultBase, Generic[R]):
    """The outcome of one task, read from the result server on demand.

    A final state is remembered, so reading it again costs nothing. Handles work in plain threads
    and in greenlets; all waiting callers in a process share one connection.
    """

    # This allows ``except result.TimeoutError``, as in Celery.
    TimeoutError = ResultTimeout

    # True if the task ran in this process, so that the server does not know it; see `EagerResult`.
    is_eager = False
    id: str

    def __init__(
        self,
        id: str,
        transport: Transport | None = None,
        name: str | None = None,
        *,
        app: Any = None,
        parent: ResultBase | None = None,
        ignored: bool = False,
    ) -> None:
        """Create the handle of task `id`, whose result is read through `transport`.

        Args:
            id: the task's id.
            transport: where to read; None means the transport of `app`, or of the newest app.
            name: the task's name, if known.
            app: the app whose transport is used.
            parent: the handle of its predecessor in a chain.
            ignored: True if the sender does not want a result, so there is nothing to wait for.
        """
        self.id = id
        self._name = name
        self.parent = parent
        self.ignored = ignored
        # The backend is looked up on demand, since tasks can be sent even without one.
        self._own_transport = transport
        self._app = app
        self.final: ResultMeta | None = None

    @property
    def transport(self) -> Transport:
        """The connection to the server that stores the result."""
        if self._own_transport is None:
            self._own_transport = self.app.transport
        return self._own_transport

    @property
    def app(self) -> Any:
        """The app that the handle was created for, or else the newest one.

        Raises:
            ConfigError: no app has been created.
        """
        return newest_app() if self._app is None else self._app

    @property
    def backend(self) -> Any:
        """The object that reads results from the server."""
        return self.transport.backend

    @property
    def task_id(self) -> str:
        """The task's id."""
        return self.id

    @property
    def state(self) -> str:
        """The current state: PENDING, STARTED, RETRY, SUCCESS, FAILURE, REVOKED or a custom one."""
        return self._read().status

    status = state

    @property
    def result(self) -> R | BaseException | Any:
        """The return value, the exception, or a custom state's meta; None if no state is stored."""
        return self._read().result

    info = result

    @property
    def traceback(self) -> str | None:
        """The traceback of a failed task, as text."""
        return self._read().traceback

    @property
    def date_done(self) -> str | None:
        """When the task ended, in ISO 8601, or None."""
        return self._read().date_done

    @property
    def children(self) -> list[Any]:
        """The handles of the tasks and groups that this one sent, known once it has ended."""
        return children_of(self._read(), self._app)

    @property
    def root(self) -> ResultBase:
        """The handle's first ancestor, or the handle itself."""
        return next(reversed([self, *self.ancestors()]))

    # The following values are stored only with result_extended; otherwise they are None.

    @property
    def name(self) -> str | None:
        """The task's name; unless this process sent the task, it is read from the result."""
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
        """The node name of the worker that ran the task."""
        return self._read().extra.get("worker")

    @property
    def retries(self) -> int | None:
        """The number of times that the task was retried."""
        return self._read().extra.get("retries")

    @property
    def queue(self) -> str | None:
        """The queue that the task was taken from."""
        return self._read().extra.get("queue")

    def as_tuple(self) -> tuple[Any, None]:
        """Return the id and the parents as plain data, in Celery's format."""
        return self._own_tuple(), None

    def as_list(self) -> list[str]:
        """Return the task's id and those of its parents."""
        return [self.id, *(node.id for node in self.ancestors() if node.id is not None)]

    def maybe_throw(
        self, propagate: bool = True, callback: Callable[[str, Any], object] | None = None
    ) -> Any:
        """Return the current result; raise it if the task has failed.

        `callback` is called with the id and the returned value.
        """
        return self._deliver(self._read(), propagate, callback)

    maybe_reraise = maybe_throw

    def ready(self) -> bool:
        """Return True if the task has ended, successfully or not."""
        return self.state in READY_STATES

    def successful(self) -> bool:
        """Return True if the task has succeeded."""
        return self.state == SUCCESS

    def failed(self) -> bool:
        """Return True if the task has raised an exception."""
        return self.state == FAILURE

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float | None = None,
        on_message: Callable[[dict[str, Any]], object] | None = None,
        *,
        callback: Callable[[str, Any], object] | None = None,
        on_interval: Callable[[], object] | None = None,
        no_ack: bool = True,
        follow_parents: bool = True,
        disable_sync_subtasks: bool = True,
    ) -> R:
        """Wait for the task and return its value. Switches: yes.

        Return None immediately if the result is `ignored`.

        Args:
            timeout: the longest wait in seconds; None means no limit.
            propagate: raise the task's exception; if False, return it.
            interval: also read the stored result when nothing has been announced for this many
                seconds; normally unnecessary, since the end of a task is announced.
            on_message: called with each state that is announced: task_id, status, result,
                traceback, children.
            callback: called with the id and the returned value.
            on_interval: called when nothing has been announced for `interval` (by default 0.5 s).
            follow_parents: also raise the exception of an earlier task in the chain, since this
                task may then never run.
            no_ack: accepted for compatibility with Celery; has no effect.
            disable_sync_subtasks: False allows waiting in a task, as `allow_join_result` does.

        Raises:
            RuntimeError: a task waits for another task, which may need the slot that it occupies.
            ResultTimeout: the task did not end in time.
            Exception: the task's exception, with the worker's traceback as its cause.
        """
        if self.ignored:
            return None  # type: ignore[return-value]  # None if no result is wanted
        if disable_sync_subtasks:
            refuse_in_task(self._name or self.id)

        def announce(meta: ResultMeta) -> None:
            if on_message is not None and meta.task_id == self.id:
                on_message(as_dict(meta))

        if self.final is None:
            if on_interval is not None and interval is None:
                interval = INTERVAL_S
            self.final = self._wait(
                follow_parents and propagate,
                timeout_s=timeout,
                interval_s=interval,
                on_message=None if on_message is None else announce,
                on_interval=on_interval,
            )
        value: R = self._deliver(self.final, propagate, callback)
        return value

    def _wait(self, follow_parents: bool, **how: Any) -> ResultMeta:
        """Wait for the final state; raise the exception of a parent that fails first."""
        above = [node for node in self.ancestors() if isinstance(node, AsyncResult)]
        if not above or not follow_parents:
            return self.backend.wait(self.id, **how)  # type: ignore[no-any-return]
        ids = [self.id, *(node.id for node in above)]
        with closing(self.backend.wait_many(ids, **how)) as ended:
            meta: ResultMeta = next(ended)
            while meta.task_id != self.id:
                value_of(meta, propagate=True)
                meta = next(ended)
            return meta

    def _deliver(
        self, meta: ResultMeta, propagate: bool, callback: Callable[[str, Any], object] | None
    ) -> Any:
        value = value_of(meta, propagate)
        if callback is not None:
            callback(self.id, value)
        return value

    wait = get

    def revoke(
        self,
        *,
        terminate: bool = False,
        signal: str | None = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Prevent the task from running; if `terminate` is true, end it even if it is running.

        Running workers are notified; workers that start later learn of the revocation.

        Args:
            signal: a name shown in events; greenlets receive no signal.
            wait: wait until every worker has replied, for at most `timeout` seconds (by default 1).

        Raises:
            OperationalError: the server could not be reached.
        """
        revoke(self, self.id, terminate=terminate, signal=signal, wait=wait, timeout=timeout)

    def forget(self) -> None:
        """Delete the stored result, and those of its parents."""
        forget([self], self.backend)

    def known(self) -> ResultMeta | None:
        """Return the final state if it is known, SUCCESS if none will be stored, or None."""
        if self.final is None and self.ignored:
            return ResultMeta(task_id=self.id, status=SUCCESS)
        return self.final

    def handles(self) -> Iterator[AsyncResult[Any]]:
        """Yield the handles of the tasks that this one represents: only itself."""
        yield self

    def exists(self) -> bool:
        """Return whether a state is stored, which the state PENDING alone does not show."""
        found: bool = self.backend.exists(self.id)
        return found

    def then(
        self,
        callback: Callable[[AsyncResult[R]], object],
        on_error: Callable[[Exception], object] | None = None,
        weak: bool = False,
    ) -> AsyncResult[R]:
        """Have `callback` called with this handle when the task has succeeded or failed.

        The callback is called immediately if the task is known to have ended. Otherwise it is
        called later, in a thread (under gevent, a greenlet) that calls all such callbacks in the
        process, one after another. A program that ends does not wait for that thread.

        Args:
            on_error: called with the exception that the callback raises, such as the task's own
                from ``result.get()``; otherwise the exception is logged.
            weak: accepted for compatibility with Celery; has no effect.
        """

        def ended(meta: ResultMeta) -> None:
            self.final = meta
            fulfil(self, callback, on_error)

        if self.final is None:
            self.backend.call_when_ended([self.id], ended)
        else:
            fulfil(self, callback, on_error)
        return self

    def _read(self) -> ResultMeta:
        if self.final is not None:
            return self.final
        meta = self.transport.backend.get(self.id)
        if meta.status in READY_STATES:
            self.final = meta
        return meta

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the handle without its app; when unpickled, it belongs to the newest app."""
        return _again, (self.id, self._name, self.parent, self.ignored)

    def __repr__(self) -> str:
        """Show the id."""
        return f"<AsyncResult: {self.id}>"

    def __str__(self) -> str:
        """Return the id."""
        return self.id

    def __eq__(self, other: object) -> bool:
        """Return whether `other` is a handle of the same task, or its id."""
        if isinstance(other, AsyncResult):
            return other.id == self.id
        return other == self.id if isinstance(other, str) else NotImplemented

    def __hash__(self) -> int:
        """Hash the id."""
        return hash(self.id)


name_what_is_not_here(AsyncResult)


makers["task"] = AsyncResult


def revoke(
    handle: AsyncResult[Any],
    ids: str | list[str],
    *,
    terminate: bool,
    signal: str | None,
    wait: bool,
    timeout: float | None,
) -> None:
    """Revoke one or several tasks through the app or the transport of `handle`."""
    signal = signal or "SIGTERM"
    if wait:
        handle.app.control.revoke(
            ids,
            terminate=terminate,
            signal=signal,
            reply=True,
            timeout=1.0 if timeout is None else timeout,
        )
        return
    transport = handle.transport
    arguments = {"task_id": ids, "terminate": terminate, "signal": signal}
    Mailbox(transport.client, transport.keys, signer=transport.signer).tell("revoke", arguments)


def forget(results: Iterable[ResultBase], backend: Any) -> None:
    """Delete the stored results of these handles and of their parents."""
    ids: dict[str, None] = {}
    for result in results:
        for node in (result, *result.ancestors()):
            for handle in node.handles():
                if not handle.is_eager:
                    handle.final = None
                    ids[handle.id] = None
    if ids:
        backend.forget(*ids)


def _again(id: str, name: str | None, parent: ResultBase | None, ignored: bool) -> AsyncResult[Any]:
    return AsyncResult(id, name=name, parent=parent, ignored=ignored)
