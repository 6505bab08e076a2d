"""`ResultSet` and `GroupResult`: the handles of many tasks, read and waited for together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from greenq.result.base import ResultBase, makers, newest_app, result_from_tuple


class ResultSet(ResultBase):
    """Handles of tasks, or of groups, whose outcomes are read together.

    Attributes:
        results: the handles, in order.
    """

    id: str | None = None
    parent: ResultBase | None = None

    def __init__(self, results: Iterable[Any] = (), app: Any = None) -> None:
        """Hold `results`; `app` is whose results they are, by default that of the first."""
        self.results: Any = results if isinstance(results, Sequence) else list(results)
        self._app = app

    @property
    def app(self) -> Any:
        """The app whose results they are."""
        if self._app is not None:
            return self._app
        return self.results[0].app if self.results else newest_app()

    @property
    def backend(self) -> Any:
        """What reads results from the server."""
        return self.app.backend

    def __len__(self) -> int:
        """Count the handles."""
        return len(self.results)

    def __iter__(self) -> Any:
        """Yield the handles in order."""
        return iter(self.results)

    def __getitem__(self, index: Any) -> Any:
        """Return one handle, or those of a slice."""
        return self.results[index]


class GroupResult(ResultSet):
    """The handle of a group: its id, the handles of its tasks, and what ran before it."""

    id: str

    def __init__(
        self,
        id: str,
        results: Iterable[Any] = (),
        parent: ResultBase | None = None,
        *,
        app: Any = None,
    ) -> None:
        """Refer to the group `id`; `parent` is the handle of what precedes it in a chain."""
        super().__init__(results, app)
        self.id = id
        self.parent = parent

    @property
    def children(self) -> Any:
        """The handles of its tasks."""
        return self.results

    def as_tuple(self) -> tuple[Any, Any]:
        """Return ids and parents as plain data, in Celery's format."""
        return self._own_tuple(), [result.as_tuple() for result in self.results]

    def save(self) -> GroupResult:
        """Store which tasks belong to it, for `restore`, as long as results are kept."""
        self.backend.save_group(self.id, self.as_tuple())
        return self

    def delete(self) -> None:
        """Delete what `save` has stored, not the results of its tasks."""
        self.backend.delete_group(self.id)

    @classmethod
    def restore(cls, id: str, *, app: Any = None) -> GroupResult | None:
        """Return the group that was saved under `id`, or None."""
        app = newest_app() if app is None else app
        value = app.backend.restore_group(id)
        found: GroupResult | None = None if value is None else result_from_tuple(value, app)
        return found


makers["group"] = GroupResult
