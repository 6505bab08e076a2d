"""The options for sending, and checks that refuse wrong options where they are set."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, TypedDict

from greenq.config import celery_names, validators
from greenq.config.queues import Exchange, check_type
from greenq.config.settings import RetryPolicy
from greenq.errors import ConfigError, WrongOption
from greenq.protocol.limits import KEY, MESSAGE, SECONDS, Rule
from greenq.utils.suggest import suggestion

MOST_URGENT, LEAST_URGENT = 0, 9


class SendOptions(TypedDict, total=False):
    """The options for sending a task; each may be omitted or None.

    task_id: the task's id; None creates one.
    countdown: seconds from now.
    eta: a datetime; the task does not run before it.
    expires: seconds from now or a datetime; the task does not run after it.
    queue, or exchange and routing_key: the destination; exchange is a name or an `Exchange`.
    exchange_type: fanout, if the exchange has this type and `task_queues` does not contain it.
    priority: 0 (first) to 9; other numbers are clamped.
    serializer, compression: names.
    delivery_mode: 1 (transient) or 2 (persistent); has no effect on Redis.
    ignore_result: True stores no result; None leaves that to the task and the settings.
    time_limit, soft_time_limit: seconds.
    reply_to, correlation_id: shown to the task; by default, the sender's id and the task's id.
    argsrepr, kwargsrepr: what events and `inspect` show in place of the arguments.
    retry, retry_policy: whether and how to retry the send itself.
    headers: extra headers, which the task sees.
    shadow: a name to show instead of the task's.
    link, link_error: signatures to call when the task returns or fails.
    stamped_headers, stamps: names and values of the task's stamps.
    add_to_parent: False omits the task from the children of the task that sends it.
    root_id, parent_id: the first task of the workflow, and the task that sends this one.
    group_id, group_index, chain, chord, replaced_task_nesting: the task's place in a workflow.
    """

    task_id: str | None
    countdown: float | None
    eta: datetime | str | None
    expires: float | datetime | str | None
    queue: str | None
    exchange: str | Exchange | None
    exchange_type: str | None
    routing_key: str | None
    priority: int | None
    serializer: str | None
    compression: str | None
    headers: Mapping[str, Any] | None
    ignore_result: bool | None
    time_limit: float | None
    soft_time_limit: float | None
    shadow: str | None
    retry: bool | None
    retry_policy: Mapping[str, Any] | None
    root_id: str | None
    parent_id: str | None
    group_id: str | None
    group_index: int | None
    reply_to: str | None
    correlation_id: str | None
    delivery_mode: int | None
    argsrepr: str | None
    kwargsrepr: str | None
    link: Any
    link_error: Any
    chain: Sequence[Any] | None
    chord: Mapping[str, Any] | None
    stamped_headers: Sequence[str] | None
    stamps: Mapping[str, Any] | None
    replaced_task_nesting: int | None
    add_to_parent: bool | None


SEND_OPTIONS: Final = frozenset(SendOptions.__annotations__)


def with_stamps(options: Mapping[str, Any]) -> dict[str, Any]:
    """Move stamps that are given as separate options, as in Celery, into the option `stamps`."""
    names = set(options["stamped_headers"])
    kept = {name: value for name, value in options.items() if name not in names}
    kept["stamps"] = {name: options[name] for name in names if name in options}
    return kept


def without_foreign(task: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Omit Celery-only options that have no effect.

    Raises:
        TypeError: an option is unknown, or asks for something that only Celery does.
    """
    kept = {option: value for option, value in options.items() if option in SEND_OPTIONS}
    for option in sorted(options.keys() - kept.keys()):
        foreign = celery_names.SEND_OPTIONS.get(option)
        if foreign is None:
            hint = suggestion(option, SEND_OPTIONS)
            raise TypeError(f"task {task}: no send option {option!r}{hint}")
        if celery_names.asks_for_something(foreign, options[option]):
            raise TypeError(f"task {task}: send option {option!r}: {foreign.advice}")
    return kept


def check_task_option(task: str, option: str, value: Any) -> Any:
    """Return the value of a task's option, with a `timedelta` turned into seconds.

    Raises:
        WrongOption: the value is invalid; the error names the task and the option.
    """
    return _checked(task, option, value, _OF_TASKS)


def check_send_options(task: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task's send options, with priorities clamped to 0..9 and durations in seconds.

    Raises:
        WrongOption: a value is invalid; the error names the task and the option.
    """
    return {name: _checked(task, name, value, _OF_SENDINGS) for name, value in options.items()}


def _checked(task: str, option: str, value: Any, known: Mapping[str, Callable[[Any], Any]]) -> Any:
    check = known.get(option)
    if check is None or value is None:
        return value
    try:
        accepted = check(value)
    except (ValueError, TypeError, ConfigError) as exc:
        reason = exc.problems[0].reason if isinstance(exc, ConfigError) else exc
        raise WrongOption(task, option, validators.shown(option, value), str(reason)) from None
    # Keep any other value as given, so that a whole number of seconds stays whole on the wire.
    return accepted if isinstance(value, timedelta) or option in _NORMALISED else value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _countdown(value: object) -> object:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if not _is_number(value):
        raise ValueError("must be a number of seconds")
    return value


def _moment(value: object) -> object:
    if isinstance(value, datetime):
        return value
    if isinstance(value, str):
        try:
            datetime.fromisoformat(value)
        except ValueError:
            raise ValueError("is not an ISO 8601 time (like 2030-01-31T12:00:00+00:00)") from None
        return value
    hint = "; for seconds from now, use countdown" if _is_number(value) else ""
    raise ValueError(f"must be a datetime, or text in ISO 8601{hint}")


def _expiry(value: object) -> object:
    if isinstance(value, timedelta):
        return value.total_seconds()
    return value if _is_number(value) else _moment(value)


def _priority(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("must be a whole number, 0 (the most urgent) to 9")
    return clamped(value)


def clamped(priority: int) -> int:
    """Return the nearest priority from 0 to 9."""
    return max(MOST_URGENT, min(LEAST_URGENT, priority))


def _queue(value: object) -> str:
    # A Queue has its name in `name`; kombu's Broadcast has it in `alias`.
    name = getattr(value, "alias", None) or getattr(value, "name", value)
    if not isinstance(name, str) or not name:
        raise ValueError("must be the name of a queue, as text")
    wrong = KEY.wrong(name)
    if wrong:
        raise ValueError(wrong)
    return name


def _exchange(value: object) -> object:
    """Accept a name or an `Exchange`; kombu's exchange becomes greenq's."""
    if isinstance(value, Exchange):
        return value
    name = getattr(value, "name", None)
    if name:
        return Exchange(name, getattr(value, "type", None) or "direct")
    return _any_text(value)


def _mapping(value: object) -> object:
    if not isinstance(value, Mapping):
        raise ValueError("must be a mapping")
    return value


def _signature(value: object) -> object:
    # Check the exact type first, which is fast, since a message may have a thousand signatures.
    found = value if type(value) is dict or isinstance(value, Mapping) else {}
    if not isinstance(found.get("task"), str):
        raise ValueError("must be a signature, such as add.s(2)")
    return value


def _signatures(value: object) -> object:
    for each in value if isinstance(value, (list, tuple)) else [value]:
        _signature(each)
    return value


def _policy(value: object) -> object:
    given = {name: item for name, item in dict(_mapping(value)).items() if item is not None}  # type: ignore[call-overload]
    unknown = given.keys() - set(RetryPolicy.__dataclass_fields__)
    if unknown:
        known = ", ".join(RetryPolicy.__dataclass_fields__)
        raise ValueError(f"has the unknown key {min(unknown)!r}; the known keys are {known}")
    RetryPolicy(**given)
    return value


def _backoff(value: object) -> object:
    return value if isinstance(value, bool) else validators.seconds().accept(value)


_flag = validators.flag().accept
_text = validators.text().accept
_any_text = validators.text(empty_ok=True).accept


def _readable(accept: Callable[[Any], Any], rule: Rule) -> Callable[[Any], Any]:
    """Narrow `accept` to the values that workers can read in a message's header."""

    def check(value: object) -> object:
        accepted = accept(value)
        wrong = rule.wrong(accepted)
        if wrong:
            raise ValueError(wrong)
        return accepted

    return check


_limit = _readable(validators.seconds().accept, SECONDS)

# The options whose normal form replaces the given value.
_NORMALISED: Final = frozenset({"exchange", "priority", "queue"})

_OF_TASKS: Final[Mapping[str, Callable[[Any], Any]]] = {
    **dict.fromkeys(
        (
            "acks_late", "acks_on_failure_or_timeout", "ignore_result", "reject_on_worker_lost",
            "pydantic", "pydantic_strict", "retry_jitter", "store_eager_result",
            "store_errors_even_if_ignored", "track_started", "typing",
        ),
        _flag,
    ),
    "compression": validators.compression().accept,
    "default_retry_delay": validators.seconds().accept,
    "delivery_mode": validators.whole(1, 2).accept,
    "exchange": _exchange,
    "expires": _expiry,
    "max_retries": validators.whole(0).accept,
    "priority": _priority,
    "queue": _queue,
    "retry_backoff": _backoff,
    "retry_backoff_max": validators.seconds().accept,
    "routing_key": _text,
    "serializer": validators.serializer().accept,
    "soft_time_limit": _limit,
    "time_limit": _limit,
}  # fmt: skip

_OF_SENDINGS: Final[Mapping[str, Callable[[Any], Any]]] = {
    **{
        name: _readable(_any_text, MESSAGE[name])
        for name in ("argsrepr", "kwargsrepr", "parent_id", "root_id", "shadow")
    },
    "task_id": _readable(_any_text, MESSAGE["id"]),
    "group_id": _readable(_any_text, MESSAGE["group"]),
    "group_index": _readable(validators.whole(0).accept, MESSAGE["group_index"]),
    **dict.fromkeys(("chain", "link", "link_error"), _signatures),
    "chord": _signature,
    **{
        name: _readable(accept, MESSAGE[name])
        for name, accept in {
            "replaced_task_nesting": validators.whole(0).accept,
            "stamped_headers": validators.texts(validators.text()).accept,
            "stamps": _mapping,
        }.items()
    },
    **dict.fromkeys(("correlation_id", "reply_to", "routing_key"), _any_text),
    "exchange": _exchange,
    "exchange_type": check_type,
    "countdown": _countdown,
    "eta": _moment,
    "expires": _expiry,
    "headers": _mapping,
    "ignore_result": _flag,
    "priority": _priority,
    "queue": _queue,
    "retry": _flag,
    "retry_policy": _policy,
    "soft_time_limit": _limit,
    "time_limit": _limit,
}  # fmt: skip
