"""`AsyncResults`: the handles of tasks that were sent together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from greenq.result.task_result import AsyncResult

if TYPE_CHECKING:
    from greenq.transport.transport import Transport

R = TypeVar("R")


class AsyncResults(Sequence[AsyncResult[R]], Generic[R]):
    """The handles of tasks that were sent together, in order.

    The sequence has a length and supports indexes and slices. It stores only ids: each access
    creates a new handle.
    """

    def __init__(
        self,
        ids: Sequence[str],
        transport: Transport,
        name: str | None = None,
        *,
        app: Any = None,
    ) -> None:
        """Create the handles of the tasks `ids`; the other arguments are those of `AsyncResult`."""
        self.ids = ids
        self.name = name
        self._transport = transport
        self._app = app

    def __len__(self) -> int:
        """Return the number of tasks."""
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> AsyncResult[R]: ...
    @overload
    def __getitem__(self, index: slice) -> AsyncResults[R]: ...
    def __getitem__(self, index: int | slice) -> AsyncResult[R] | AsyncResults[R]:
        """Return the handle of one task, or the handles of a slice."""
        if isinstance(index, slice):
            return AsyncResults(self.ids[index], self._transport, self.name, app=self._app)
        return self._handle(self.ids[index])

    def __iter__(self) -> Iterator[AsyncResult[R]]:
        """Yield the handles one by one."""
        return map(self._handle, self.ids)

    def _handle(self, task_id: str) -> AsyncResult[R]:
        return AsyncResult(task_id, self._transport, self.name, app=self._app)

    def __repr__(self) -> str:
        """Show the number of tasks."""
        return f"<AsyncResults: {len(self)} of {self.name}>"
