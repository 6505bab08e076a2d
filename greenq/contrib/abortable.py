"""Tasks that check from time to time whether they should stop: `AbortableTask`.

To abort a task, the caller stores the state ABORTED, which the task reads at its next check.
"""

from __future__ import annotations

from typing import Any, ParamSpec, TypeVar

from greenq.app import Task
from greenq.result import AsyncResult

P = ParamSpec("P")
R = TypeVar("R")

ABORTED = "ABORTED"


class AbortableAsyncResult(AsyncResult[R]):
    """The handle of a task that can be aborted."""

    def is_aborted(self) -> bool:
        """Return whether the task should stop."""
        return self.state == ABORTED

    def abort(self) -> None:
        """Ask the task to stop; it continues until its next check.

        A task that has already ended keeps its state. A task that has not started yet still runs,
        and notices the request at its first check. However, if the task stores STARTED when it
        starts, that state replaces ABORTED, and the request is lost.
        """
        self.backend.store(self.id, ABORTED, None)


class AbortableTask(Task[P, R]):
    """The base class of tasks that call `is_aborted` from time to time."""

    def AsyncResult(self, task_id: str) -> AbortableAsyncResult[R]:  # noqa: N802  Celery's name
        """Return the handle of an execution of this task."""
        return AbortableAsyncResult(task_id, name=self.name, app=self.app)

    def apply_async(self, *args: Any, **options: Any) -> Any:
        """Send the task as `Task.apply_async` does; the handle can abort it."""
        sent = super().apply_async(*args, **options)
        if sent.is_eager:
            return sent
        return AbortableAsyncResult(sent.id, name=self.name, app=self.app, ignored=sent.ignored)

    def is_aborted(self, task_id: str | None = None) -> bool:
        """Read from the server whether this run, or the task `task_id`, should stop. Switches: yes.

        In a loop of short steps, do not call this in every step, since each call takes a round trip
        to the server.
        """
        if task_id is None and not self.request.stores:
            return False
        return self.AsyncResult(task_id or self.request.id).is_aborted()
