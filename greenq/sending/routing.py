"""The destination of a task: the caller's choice, then `task_routes`, then the default queue.

This module also determines the queues that a worker takes from.
"""

from __future__ import annotations

import fnmatch
import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from greenq.config.imports import import_object
from greenq.config.queue_table import declared
from greenq.config.queues import Broadcast, Exchange, Queue
from greenq.config.routes import Table, route
from greenq.errors import ConfigError, Problem
from greenq.protocol.keys import DIRECT_SUFFIX
from greenq.utils.suggest import suggestion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from greenq.config.routes import Router as AnyRouter
    from greenq.config.settings import TaskConfig

__all__ = [
    "Broadcast", "Router", "Target", "merge_options", "select_queues", "worker_direct",
]  # fmt: skip

_log = logging.getLogger(__name__)

# The maximum number of names whose routes are cached, since a program may use any task name.
_KNOWN = 10_000

# The options of a route that determine the destination.
_WHERE = frozenset({"queue", "exchange", "exchange_type", "routing_key"})


class Target(NamedTuple):
    """Where messages go.

    Attributes:
        queue: the queue's name; "" if the bindings of the exchange decide.
        exchange: the exchange's name; "" sends directly to the queue.
        routing_key: the routing key as written in the message.
        is_fanout: whether to publish to listeners instead of pushing.
    """

    queue: str
    exchange: str
    routing_key: str
    is_fanout: bool = False


class Router:
    """The routes of an app, looked up once for each task name, unless a function decides.

    Attributes:
        queues: the names of the queues in the settings.
        asks: True if a function decides; it is then called for each message.
    """

    def __init__(
        self, config: TaskConfig, find_task: Callable[[str], Any] = lambda _name: None
    ) -> None:
        """Read the routes from the task section of the settings.

        `find_task` returns the registered task with a name, or None; router functions receive it.
        """
        self._default = config.task_default_queue
        self._default_exchange = config.task_default_exchange or config.task_default_queue
        self._default_key = config.task_default_routing_key or config.task_default_queue
        self._routers = config.task_routes
        self._find_task = find_task
        self.asks = any(not isinstance(router, Mapping) for router in config.task_routes)
        self._made: tuple[Any, ...] = ()
        self._known: dict[str, Mapping[str, Any]] = {}
        self._declared = declared(config)
        self.queues = tuple(self._declared)
        self._fanouts = {
            each.exchange: each for each in self._declared.values() if isinstance(each, Broadcast)
        }
        self._bound = {
            (binding.exchange.name, binding.routing_key)
            for each in self._declared.values()
            if isinstance(each, Queue)
            for binding in each.sources
        }

    # --- routes -----------------------------------------------------------------------------------

    def route(self, task: str) -> Mapping[str, Any]:
        """Return a task name's route: exact entries before patterns, earlier routers first."""
        found = self._known.get(task)
        if found is None:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            tables = (router for router in self._routers if isinstance(router, Mapping))
            found = next((each for table in tables if (each := _look_up(table, task))), {})
            self._known[task] = found
        return found

    def ask(
        self,
        task: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Merge send options with the first route that a router returns for this message.

        Raises:
            ConfigError: a router cannot be imported, or returns a value that is not a route.
        """
        if not self._made:
            self._made = tuple(_made(router) for router in self._routers)
        for router in self._made:
            if isinstance(router, Mapping):
                found = _look_up(router, task)
            else:
                found = self._call(router, task, args, kwargs, options)
            if found:
                return self.merge(found, options)
        return dict(options)

    def _call(
        self,
        router: Any,
        task: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> Mapping[str, Any] | None:
        if hasattr(router, "route_for_task"):
            answer = router.route_for_task(task, args, kwargs)
        else:
            answer = router(task, args, kwargs, dict(options), task=self._find_task(task))
        if answer is None:
            return None
        try:
            return route(f"task {task!r}", answer)
        except ValueError as error:
            raise _problem(router, f"it must return a route or None: {error}") from error

    def merge(self, found: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        """Merge a route with a caller's send options, which take precedence; None means unset.

        A caller that names a queue or an exchange has determined the destination. A routing key
        alone is used with the route's exchange, or with the exchange of the route's queue; on a
        direct exchange, the key is a queue's name.
        """
        if options.get("queue") or options.get("exchange"):
            found = {name: value for name, value in found.items() if name not in _WHERE}
        elif options.get("routing_key") and not self._takes_keys(found.get("queue")):
            found = {name: value for name, value in found.items() if name != "queue"}
        return {**found, **{name: item for name, item in options.items() if item is not None}}

    # --- destinations -----------------------------------------------------------------------------

    def target(self, options: Mapping[str, Any]) -> Target:
        """Return the destination of messages with these options; None means not given."""
        queue, exchange = options.get("queue"), options.get("exchange")
        key = options.get("routing_key") or ""
        if not queue and exchange:
            return self._by_exchange(exchange, options.get("exchange_type"), key)
        if not queue and key and not self._takes_keys(self._default):
            if (self._default_exchange, key) in self._bound and key not in self._declared:
                return Target("", self._default_exchange, key)
            queue = key
        queue = queue or self._default
        known = self._declared.get(queue)
        if isinstance(known, Broadcast):
            # A routing key that merely names the queue is not a key of its exchange.
            own_key = known.routing_key or ""
            return Target(queue, known.exchange, key if key not in ("", queue) else own_key, True)
        if key not in ("", queue) and known is not None and self._takes_keys(queue):
            return Target("", known.sources[0].exchange.name, key)
        return Target(queue, "", queue)

    def _by_exchange(self, exchange: str | Exchange, kind: str | None, key: str) -> Target:
        if isinstance(exchange, Exchange):
            kind = exchange.type
            exchange = exchange.name
        known = self._fanouts.get(exchange)
        if kind in (None, "fanout") and (known is not None or kind):
            own_key = self._default_key if known is None else known.routing_key or ""
            key = key if key not in ("", exchange) else own_key
            return Target(exchange, exchange, key, True)
        return Target("", exchange, key)

    def _takes_keys(self, queue: str | None) -> bool:
        """Return whether routing keys matter for messages sent to a queue."""
        known = self._declared.get(queue or "")
        return isinstance(known, Broadcast) or (
            known is not None and known.sources[0].exchange.type == "topic"
        )


def _look_up(table: Table, task: str) -> Mapping[str, Any] | None:
    """Return a task's options in a table: by exact name, or by the first pattern that matches."""
    found = table.get(task)
    if found is not None:
        return found
    return next((each for pattern, each in table.items() if _fits(pattern, task)), None)


def _fits(pattern: str | re.Pattern[str], task: str) -> bool:
    if isinstance(pattern, str):
        return fnmatch.fnmatchcase(task, pattern)
    return pattern.match(task) is not None


def _made(router: AnyRouter) -> Any:
    """Return a router that is ready for use; instantiate a class, given directly or by name."""
    if isinstance(router, str):
        try:
            router = import_object(router)
        except (ImportError, AttributeError) as exc:
            raise _problem(router, f"it cannot be imported: {exc}") from exc
    if isinstance(router, type):
        router = router()
    if isinstance(router, Mapping):
        return {pattern: route(repr(pattern), given) for pattern, given in router.items()}
    return router


def _problem(router: object, reason: str) -> ConfigError:
    return ConfigError([Problem("task_routes", router, reason)])


def merge_options(*options: Mapping[str, Any]) -> dict[str, Any]:
    """Merge send options. Later ones take precedence, and None means not given."""
    merged: dict[str, Any] = {}
    for each in options:
        merged.update({name: value for name, value in each.items() if value is not None})
    return merged


def worker_direct(hostname: str) -> str:
    """Return the queue of a worker with this node name; see the setting `worker_direct`."""
    return f"{hostname}{DIRECT_SUFFIX}"


def select_queues(
    config: TaskConfig, wanted: Iterable[str], excluded: Iterable[str] = ()
) -> tuple[str | Broadcast, ...]:
    """Return the queues that a worker takes from.

    Args:
        config: names the existing queues, and says whether others are created on demand.
        wanted: names of queues; if empty, all queues in the settings, or the default queue.
        excluded: names to omit; an unknown name only causes a warning.

    Raises:
        ConfigError: a wanted queue is unknown and `task_create_missing_queues` is off.
    """
    known = {
        name: queue if isinstance(queue, Broadcast) else name
        for name, queue in declared(config).items()
    }
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
            "cannot exclude queue %s: there is no such queue%s", name, suggestion(name, names)
        )
    return tuple(known.get(name, name) for name in names if name not in left_out)
