"""Task routes, as configured in `task_routes`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from greenq.config.queues import Exchange, check_type
from greenq.config.validators import (
    Validator,
    compression,
    or_default,
    parse_json,
    serializer,
    text,
    whole,
)

Table = Mapping[str | re.Pattern[str], Mapping[str, Any]]
"""Send options by task name, glob or regular expression."""

Router = Table | str | Callable[..., Any]
"""A table, the full name of a router, or a router, which is a function, a class or an object."""


def _queue(value: object) -> str:
    # The name of a Queue is in `name`, and that of kombu's Broadcast in `alias`.
    name = getattr(value, "alias", None) or getattr(value, "name", value)
    return str(text().accept(name))


def _exchange(value: Any) -> str | Exchange:
    name, kind = getattr(value, "name", value), getattr(value, "type", None)
    return Exchange(name, kind) if kind else str(text().accept(name))


_OPTIONS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "queue": _queue,
    "exchange": _exchange,
    "exchange_type": check_type,
    "routing_key": text().accept,
    "priority": whole(0, 9).accept,
    "serializer": serializer().accept,
    "compression": compression().accept,
    "delivery_mode": whole(1, 2).accept,
}


def route(what: str, given: object) -> Mapping[str, Any]:
    """Return the send options of a route: a queue's name, or a mapping.

    Raises:
        ValueError: `given` is neither, or an option is unknown or wrong; `what` names the route.
    """
    options = {"queue": given} if isinstance(given, str) or hasattr(given, "exchange") else given
    if not isinstance(options, Mapping) or not options or options.keys() - _OPTIONS.keys():
        raise ValueError(
            f"the route of {what} must be a queue name, or have {', '.join(_OPTIONS)}, "
            f"not {given!r}"
        )
    try:
        return {
            str(name): _OPTIONS[name](value) for name, value in options.items() if value is not None
        }
    except ValueError as error:
        raise ValueError(f"the route of {what} is wrong: {error}") from error


def routes() -> Validator:
    """Accept one router or a list of them; the normal form is a tuple, with tables as mappings."""

    def accept(value: object) -> tuple[Router, ...]:
        if isinstance(value, (str, Mapping)) or _is_router(value):
            return (_router(value),)
        if isinstance(value, bytes) or not isinstance(value, Iterable):
            raise ValueError(_WANTED)
        routers = list(value)
        # Celery also accepts a mapping given as a list of pairs.
        if routers and all(_is_pair(each) for each in routers):
            routers = [dict(routers)]
        return tuple(_router(router) for router in routers)

    return or_default(Validator(accept, parse_json), ())


_WANTED: Final = (
    "must be {task name, glob or regular expression: queue name or options}, a router function, an "
    "object or class with route_for_task, the full name of one with its module, or a list of these"
)


def _is_pair(value: object) -> bool:
    is_pair = isinstance(value, (list, tuple)) and len(value) == 2
    return is_pair and isinstance(value[0], (str, re.Pattern))  # type: ignore[index]


def _is_router(value: object) -> bool:
    return callable(value) or hasattr(value, "route_for_task")


def _router(router: Any) -> Router:
    if isinstance(router, (list, tuple)) and all(_is_pair(each) for each in router):
        router = dict(router)
    if isinstance(router, Mapping):
        return {
            key if isinstance(key, re.Pattern) else str(key): route(_shown(key), given)
            for key, given in router.items()
        }
    if (isinstance(router, str) and "." in router.strip(".")) or _is_router(router):
        return router  # type: ignore[no-any-return]
    raise ValueError(f"{router!r}: {_WANTED}")


def _shown(key: object) -> str:
    return repr(key.pattern if isinstance(key, re.Pattern) else key)
