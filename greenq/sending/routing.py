"""Which queue a task goes to: the caller's choice, then `task_routes`, then the default.

Also which queues a worker takes from.
"""

from __future__ import annotations

import fnmatch
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from greenq.config.validators import Broadcast
from greenq.errors import ConfigError, Problem
from greenq.protocol.keys import DIRECT_SUFFIX
from greenq.suggest import suggestion

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from greenq.config.settings import TaskConfig

__all__ = [
    "Broadcast", "QueueSource", "Route", "Router", "merge_options", "select_queues",
    "worker_direct",
]  # fmt: skip

_log = logging.getLogger(__name__)

# For how many names routes are cached; a program may send tasks by any name.
_KNOWN = 10_000


class Route(NamedTuple):
    """Where a task goes: its queue, and its priority if the route sets one."""

    queue: str
    priority: int | None


class QueueSource(NamedTuple):
    """The source of a queue's messages: an exchange, direct or topic, and its routing key."""

    exchange: str
    exchange_type: str
    routing_key: str


class Router:
    """The routes of an app, looked up once for each task name.

    Attributes:
        queues: the names of the queues in the settings.
        broadcasts: the names of the broadcast queues.
        routing_key: for broadcast messages, unless the sender names another.
    """

    def __init__(self, config: TaskConfig) -> None:
        """Read the routes from the task section of the settings."""
        self._default = Route(config.task_default_queue, None)
        self._routers = config.task_routes
        self._known: dict[str, Route] = {}
        self.queues = tuple(map(str, _known_queues(config)))
        self.broadcasts = frozenset(
            queue.name for queue in config.task_queues if isinstance(queue, Broadcast)
        )
        self.routing_key = config.task_default_queue

    def route(self, task: str) -> Route:
        """Return the route of a task name: exact entries before globs, earlier routers first."""
        route = self._known.get(task)
        if route is None:
            if len(self._known) >= _KNOWN:
                self._known.clear()
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


def worker_direct(hostname: str) -> str:
    """Return the name of a worker's own queue by its node name; see setting `worker_direct`."""
    return f"{hostname}{DIRECT_SUFFIX}"


def select_queues(
    config: TaskConfig, wanted: Iterable[str], excluded: Iterable[str] = ()
) -> tuple[str | Broadcast, ...]:
    """Return the queues that a worker takes from.

    Args:
        config: names the existing queues, and whether others may be created.
        wanted: names; none means all that the settings name, or the default queue.
        excluded: names to leave out; an unknown name only causes a warning.

    Raises:
        ConfigError: a wanted queue is unknown, and `task_create_missing_queues` is off.
    """
    known: dict[str, str | Broadcast] = {str(queue): queue for queue in _known_queues(config)}
    names = list(dict.fromkeys(wanted)) or list(known)
    missing = [name for name in names if name not in known]
    if missing and not config.task_create_missing_queues:
        raise ConfigError(
            [
                Problem(
                    "queues",
                    name,
                    f"task_queues has no such queue{suggestion(name, known)}, and "
                    "task_create_missing_queues is off",
                )
                for name in missing
            ]
        )
    left_out = frozenset(excluded)
    for name in sorted(left_out.difference(names, known)):
        _log.warning(
            "cannot exclude queue %s: it is not among the queues%s", name, suggestion(name, names)
        )
    return tuple(known.get(name, name) for name in names if name not in left_out)


def _known_queues(config: TaskConfig) -> tuple[str | Broadcast, ...]:
    return config.task_queues or (config.task_default_queue,)
