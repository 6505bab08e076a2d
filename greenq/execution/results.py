"""The outcome of a task as a stored state: whether to store the state, and its content."""

from __future__ import annotations

from typing import TYPE_CHECKING

from greenq.errors import EncodeError, Retry
from greenq.running.outcome import Outcome, text_of
from greenq.states import FAILURE, RETRY, SUCCESS

if TYPE_CHECKING:
    from greenq.config.settings import TaskConfig
    from greenq.running.request import Request
    from greenq.transport.backend import Backend
    from greenq.transport.settle import StateWrite
    from greenq.transport.transport import Transport

# How many characters of each text are kept if an outcome cannot be stored as it is.
STORED_CHARS = 4000


class ResultWriter:
    """Converts the outcomes of one worker's tasks to states for the results."""

    def __init__(self, config: TaskConfig, transport: Transport, hostname: str) -> None:
        """Convert outcomes on behalf of the node `hostname`."""
        self._config = config
        # None if results are disabled.
        self._backend = transport.backend if transport.stores_results else None
        self._hostname = hostname

    def write(
        self, request: Request, outcome: Outcome, children: tuple[object, ...] = ()
    ) -> tuple[Outcome, StateWrite | None]:
        """Return the outcome, or a failure if it cannot be stored, and the write of its state.

        `children` are the tasks that the task sent, in the form used in results.
        """
        backend = self._backend
        if backend is None or not self._is_stored(request, outcome):
            return outcome, None
        try:
            return outcome, self._encode(backend, request, outcome, children)
        except EncodeError as exc:
            what = f"the result of {request} cannot be stored: {exc}"
        except Exception as exc:
            # The value's own repr, __json__ or __reduce__ may raise any exception.
            text = text_of(exc)
            what = f"the result of {request} cannot be stored: {type(exc).__name__}: {text}"
        failure = Outcome(
            FAILURE if outcome.state == SUCCESS else outcome.state,
            EncodeError(what[:STORED_CHARS]),
            outcome.traceback and outcome.traceback[-STORED_CHARS:],
        )
        result = self._encode(backend, request, failure, bare=True)
        # A retry or a rejection keeps its outcome, which decides where the message goes.
        return (failure if outcome.state == SUCCESS else outcome), result

    def write_plain(
        self, task_id: str, state: str, value: object, traceback: str | None = None
    ) -> StateWrite | None:
        """Return the write of a state that is stored regardless of the task's options.

        Return None if results are disabled.

        Raises:
            EncodeError: `value` cannot be serialized.
        """
        if self._backend is None:
            return None
        return self._backend.stored(task_id, state, value, traceback=traceback)

    def _is_stored(self, request: Request, outcome: Outcome) -> bool:
        task, ignored = request.task, request.message.ignore_result
        if ignored is None:
            ignored = task.ignore_result
        if ignored is None:
            ignored = self._config.task_ignore_result
        if not ignored or outcome.state in (SUCCESS, RETRY):
            return not ignored
        own = task.store_errors_even_if_ignored
        return self._config.task_store_errors_even_if_ignored if own is None else own

    def _encode(
        self,
        backend: Backend,
        request: Request,
        outcome: Outcome,
        children: tuple[object, ...] = (),
        *,
        bare: bool = False,
    ) -> StateWrite:
        """Encode a state for the backend; `bare` omits parts that may be too large."""
        message, value = request.message, outcome.value
        if outcome.state == RETRY and isinstance(value, Retry):
            value = value.exc or value
        result = backend.stored(
            message.id,
            outcome.state,
            value,
            traceback=outcome.traceback,
            children=children,
            group_id=message.group,
            parent_id=message.parent_id,
            extended=request.extended(self._hostname) if backend.extends and not bare else None,
        )
        size_bytes = len(result.payload)
        if size_bytes > self._config.task_max_result_bytes and not bare:
            raise EncodeError(
                f"it has {size_bytes} bytes, more than task_max_result_bytes = "
                f"{self._config.task_max_result_bytes}; store it elsewhere and return its location"
            )
        return result
