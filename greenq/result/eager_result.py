"""`EagerResult`: the outcome of a task that ran in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from greenq.errors import TaskRevokedError
from greenq.protocol.meta import ResultMeta
from greenq.result.task_result import AsyncResult
from greenq.states import PROPAGATE_STATES, READY_STATES, REVOKED

if TYPE_CHECKING:
    from collections.abc import Callable

R = TypeVar("R")


class EagerResult(AsyncResult[R]):
    """The outcome of `Task.apply`: the task has ended, and nothing is read from a server."""

    is_eager = True
    final: ResultMeta

    def __init__(
        self,
        id: str,
        ret_value: Any,
        state: str,
        traceback: str | None = None,
        name: str | None = None,
        *,
        app: Any = None,
    ) -> None:
        """Store the task's outcome: its value or exception, and its state."""
        super().__init__(id, name=name, app=app)
        self.final = ResultMeta(task_id=id, status=state, result=ret_value, traceback=traceback)

    def ready(self) -> bool:
        """Return True."""
        return True

    def exists(self) -> bool:
        """Return True."""
        return True

    def _deliver(
        self, meta: ResultMeta, propagate: bool, callback: Callable[[str, Any], object] | None
    ) -> Any:
        """Return the value, or None if the state is not final, as for an ignored task."""
        if propagate and meta.status in PROPAGATE_STATES:
            # The exception is raised with the traceback from this process.
            raise meta.result
        value = meta.result if meta.status in READY_STATES else None
        if callback is not None:
            callback(self.id, value)
        return value

    def forget(self) -> None:
        """Do nothing, since no result is stored."""

    def revoke(self, **how: Any) -> None:
        """Replace the outcome with that of a revoked task, although the task has already run."""
        self.final = ResultMeta(
            task_id=self.id, status=REVOKED, result=TaskRevokedError("revoked"), traceback=None
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the handle with the task's outcome."""
        meta = self.final
        return EagerResult, (self.id, meta.result, meta.status, meta.traceback, self._name)

    def __repr__(self) -> str:
        """Show the id."""
        return f"<EagerResult: {self.id}>"
