"""Which queue a task goes to: the caller's word, then `task_routes`, then the default."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from greenq.config import TaskConfig


class Route(NamedTuple):
    """Where a task goes: its queue, and its priority if the route sets one."""

    queue: str
    priority: int | None


class Router:
    """The routes of an app, looked up once for each task name."""

    def __init__(self, config: TaskConfig) -> None:
        """Take the routes from the task section of the settings."""
        self._default = Route(config.task_default_queue, None)
        self._routers = config.task_routes
        self._known: dict[str, Route] = {}

    def route(self, task: str) -> Route:
        """Return the route of a task name: an exact entry before a glob, earlier routers first."""
        route = self._known.get(task)
        if route is None:
            route = self._known[task] = self._find(task)
        return route

    def _find(self, task: str) -> Route:
        for router in self._routers:
            options = router.get(task) or next(
                (found for glob, found in router.items() if fnmatch.fnmatchcase(task, glob)), None
            )
            if options is not None:
                options = dict[str, Any](options)
                return Route(options.get("queue", self._default.queue), options.get("priority"))
        return self._default


def merge_options(*options: Mapping[str, Any]) -> dict[str, Any]:
    """Merge send options, later ones winning; None means not given."""
    merged: dict[str, Any] = {}
    for each in options:
        merged.update({name: value for name, value in each.items() if value is not None})
    return merged
