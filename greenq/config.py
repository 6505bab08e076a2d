"""Settings: their names, defaults, units and checks, and where they are read from.

The names are Celery's lower-case names, so that a Celery configuration carries over; a setting that
is greenq's own says so. One frozen section per part of the program: a part is given its section,
never the whole. Every wrong value is found at once, when the settings are built, and named in one
`ConfigError`. docs/settings.md is generated from the fields below.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import json
import math
import re
import zoneinfo
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, NamedTuple, Self

from greenq.errors import ConfigError, Problem

DEFAULT_CONCURRENCY: Final = 1000
"""Greenlets in the pool when `worker_concurrency` is not set."""

SERIALIZERS: Final = ("json", "msgpack", "pickle", "raw", "yaml")
COMPRESSIONS: Final = (
    "brotli", "bzip", "bzip2", "gzip", "lzma", "xz", "zlib", "zstandard", "zstd",
)  # fmt: skip

_MIB: Final = 1024 * 1024
# Text values in Redis end here (proto-max-bulk-len).
_REDIS_MAX_BYTES: Final = 512 * _MIB
_SHOWN_CHARS: Final = 200
_HIDDEN: Final = "********"


# --- secrets -------------------------------------------------------------------------------------


def mask_url(url: str) -> str:
    """Return `url` with every password in it replaced by asterisks; several URLs may be listed.

    Rather too much than too little is hidden: an unquoted "@" or "/" in a password stays covered.
    """
    parts = re.split(r"([;,]\s*)(?=[a-zA-Z][\w+.-]*://)", url)
    return "".join(_mask_one_url(part) for part in parts)


def _mask_one_url(url: str) -> str:
    hidden = re.sub(r"(://[^:@\s]*:).*@", rf"\g<1>{_HIDDEN}@", url, flags=re.DOTALL)
    return re.sub(r"([?&][^=&]*password=)[^&]*", rf"\g<1>{_HIDDEN}", hidden)


def _shown(name: str, value: object) -> object:
    """Return `value` as it may stand in a message or a repr: without secrets, not too long."""
    if re.search(r"password|passwd|secret|token", name, re.IGNORECASE):
        return _HIDDEN
    if isinstance(value, Mapping):
        return {key: _shown(str(key), item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        shown = [_shown(name, item) for item in value]
        return shown if isinstance(value, list) else tuple(shown)
    if isinstance(value, str):
        masked = mask_url(value)
        return masked if len(masked) <= _SHOWN_CHARS else masked[:_SHOWN_CHARS] + "…"
    return value


# --- kinds of values -----------------------------------------------------------------------------


class Kind(NamedTuple):
    """What values a setting takes.

    Attributes:
        accept: returns the value in its one normal form; raises ValueError with what is right.
        parse: turns text from the environment into something `accept` understands; ValueError too.
    """

    accept: Callable[[Any], Any]
    parse: Callable[[str], Any]


def _parse_text(text: str) -> str:
    return text


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"must be JSON ({error})") from error


def _parse_number(text: str) -> float:
    try:
        return int(text) if re.fullmatch(r"\s*[+-]?\d+\s*", text) else float(text)
    except ValueError:
        raise ValueError("must be a number") from None


def _flag() -> Kind:
    def accept(value: object) -> bool:
        if not isinstance(value, bool):
            raise ValueError("must be True or False")
        return value

    def parse(text: str) -> bool:
        words = {"true": True, "1": True, "false": False, "0": False}
        if text.strip().lower() not in words:
            raise ValueError("must be true, false, 1 or 0")
        return words[text.strip().lower()]

    return Kind(accept, parse)


def _seconds(*, zero_ok: bool = True) -> Kind:
    wanted = "must be a number of seconds, " + ("0 or more" if zero_ok else "more than 0")

    def accept(value: object) -> float:
        if isinstance(value, timedelta):
            value = value.total_seconds()
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(wanted)
        if not math.isfinite(value) or value < 0 or (value == 0 and not zero_ok):
            raise ValueError(wanted)
        return float(value)

    return Kind(accept, _parse_number)


def _whole(least: int, most: int | None = None) -> Kind:
    bounds = f"{least} or more" if most is None else f"from {least} to {most}"

    def accept(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"must be a whole number, {bounds}")
        if value < least or (most is not None and value > most):
            raise ValueError(f"must be a whole number, {bounds}")
        return value

    return Kind(accept, _parse_number)


def _text(*, empty_ok: bool = False) -> Kind:
    def accept(value: object) -> str:
        if not isinstance(value, str) or not (value or empty_ok):
            raise ValueError("must be text" if empty_ok else "must be text, not empty")
        return value

    return Kind(accept, _parse_text)


def _choice(*choices: str) -> Kind:
    wanted = "must be one of " + ", ".join(choices)

    def accept(value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(wanted)
        return value

    return Kind(accept, _parse_text)


def _texts(item: Kind) -> Kind:
    def accept(value: object) -> tuple[str, ...]:
        # A bare "json" would otherwise pass as the four names j, s, o, n.
        if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
            raise ValueError("must be a list of names")
        return tuple(item.accept(each) for each in value)

    def parse(text: str) -> Any:
        if text.lstrip().startswith("["):
            return _parse_json(text)
        return [part.strip() for part in text.split(",") if part.strip()]

    return Kind(accept, parse)


def _content() -> Kind:
    def accept(value: object) -> str:
        if isinstance(value, str) and (value in SERIALIZERS or "/" in value):
            return value
        raise ValueError(
            "must list content types or the names " + ", ".join(SERIALIZERS) + _nearest(value)
        )

    return Kind(accept, _parse_text)


def _nearest(value: object) -> str:
    close = difflib.get_close_matches(str(value), SERIALIZERS, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _steps() -> Kind:
    wanted = "must be rising whole numbers from 0 to 9 that begin with 0"

    def accept(value: object) -> tuple[int, ...]:
        if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
            raise ValueError(wanted)
        steps = tuple(value)
        whole = all(isinstance(step, int) and not isinstance(step, bool) for step in steps)
        if not whole or steps[:1] != (0,) or steps[-1] > 9 or list(steps) != sorted(set(steps)):
            raise ValueError(wanted)
        return steps

    return Kind(accept, _parse_json)


_URL = re.compile(r"(embedded|unix|sentinels?|(redis|rediss|valkey|valkeys)(\+[a-z]+)?)://\S*")


def _url(*, also: str = "") -> Kind:
    def accept(value: object) -> str:
        # Celery's own default, which a program may pass on for "not set".
        if value is None:
            return ""
        if not isinstance(value, str):
            raise ValueError("must be a URL as text")
        if value and value != also and not _URL.fullmatch(value):
            raise ValueError(
                "must be a Redis or Valkey URL such as redis://:password@host:6379/0, or empty"
                + (f", or {also}" if also else "")
            )
        return value

    return Kind(accept, _parse_text)


def _timezone() -> Kind:
    def accept(value: object) -> str:
        try:
            return zoneinfo.ZoneInfo(_text().accept(value)).key
        except (ValueError, zoneinfo.ZoneInfoNotFoundError, OSError):
            raise ValueError("must name a time zone, such as UTC or Europe/Berlin") from None

    return Kind(accept, _parse_text)


def _optional(kind: Kind) -> Kind:
    def accept(value: object) -> Any:
        return None if value is None else kind.accept(value)

    def parse(text: str) -> Any:
        return None if text.strip().lower() in ("none", "null") else kind.parse(text)

    return Kind(accept, parse)


def _lifetime() -> Kind:
    """Seconds that a key lives, 0 for ever; Redis counts a key's life in whole seconds here."""
    seconds = _seconds()

    def accept(value: object) -> float:
        lifetime_s = seconds.accept(value)
        if 0 < lifetime_s < 1:
            raise ValueError("must be a number of seconds, 1 or more, or 0 for ever")
        return float(lifetime_s)

    return Kind(accept, _parse_number)


def _part(section: type[Section]) -> Kind:
    """A mapping that becomes a section of its own; keys left out keep their defaults."""

    def accept(value: object) -> Section:
        if isinstance(value, section):
            return value
        if not isinstance(value, Mapping):
            raise ValueError("must be a mapping of " + ", ".join(_names(section)))
        known = {str(name): item for name, item in value.items() if name in _names(section)}
        problems = [
            _unknown(str(name), item, _names(section))
            for name, item in value.items()
            if name not in known
        ]
        try:
            built = section(**known)
        except ConfigError as error:
            problems += error.problems
        if problems:
            raise ConfigError(problems)
        return built

    return Kind(accept, _parse_json)


def _routes() -> Kind:
    """One mapping or a list of them; the normal form is a tuple of {name or glob: options}."""

    def accept(value: object) -> tuple[Mapping[str, Mapping[str, object]], ...]:
        routers = [value] if isinstance(value, Mapping) else value
        if isinstance(routers, (str, bytes)) or not isinstance(routers, Iterable):
            raise ValueError(
                "must be {task name or glob: queue name or options}, or a list of such"
            )
        return tuple(_router(router) for router in routers)

    return Kind(accept, _parse_json)


def _router(router: object) -> Mapping[str, Mapping[str, object]]:
    if not isinstance(router, Mapping):
        raise ValueError(
            f"{router!r} is no mapping of task names or globs (functions as routers do not work)"
        )
    return {str(pattern): _route(str(pattern), route) for pattern, route in router.items()}


def _route(pattern: str, route: object) -> Mapping[str, object]:
    options = {"queue": route} if isinstance(route, str) else route
    if not isinstance(options, Mapping) or not options or options.keys() - {"queue", "priority"}:
        raise ValueError(
            f"the route of {pattern!r} must be a queue name, or have queue and priority"
        )
    checks = {"queue": _text(), "priority": _whole(0, 9)}
    try:
        return {str(name): checks[str(name)].accept(item) for name, item in options.items()}
    except ValueError as error:
        raise ValueError(f"the route of {pattern!r} is wrong: {error}") from error


# --- sections ------------------------------------------------------------------------------------


def _setting(kind: Kind, default: object, doc: str, *, unit: str = "") -> Any:
    metadata = {"doc": doc, "unit": unit, "kind": kind}
    if isinstance(default, Section):
        return field(default_factory=lambda: default, metadata=metadata)
    return field(default=default, metadata=metadata)


def _names(section: type[Section]) -> tuple[str, ...]:
    return tuple(each.name for each in dataclasses.fields(section))


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Section:
    """Base of all sections: checks and normalises every field, reports all that is wrong.

    Raises: ConfigError: one or more fields are wrong.
    """

    def __post_init__(self) -> None:
        """Replace each value by its normal form."""
        problems: list[Problem] = []
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            try:
                object.__setattr__(self, each.name, each.metadata["kind"].accept(value))
            except ValueError as error:
                problems.append(Problem(each.name, _shown(each.name, value), str(error)))
            except ConfigError as error:
                problems += [p._replace(field=f"{each.name}.{p.field}") for p in error.problems]
        if not problems:
            problems += self._conflicts()
        if problems:
            raise ConfigError(problems)

    def _conflicts(self) -> list[Problem]:
        """Return what is wrong between fields that are each right."""
        return []

    def __repr__(self) -> str:
        """Show the fields without passwords."""
        shown = (f"{name}={_shown(name, getattr(self, name))!r}" for name in _names(type(self)))
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TransportOptions(Section):
    """`broker_transport_options`: how the keys are named and how long the server is waited for."""

    visibility_timeout: float = _setting(
        _seconds(zero_ok=False),
        3600.0,
        "When Celery workers on the same queues may take an unacknowledged message for abandoned. "
        "greenq renews its own messages long before.",
        unit="s",
    )
    global_keyprefix: str = _setting(
        _text(empty_ok=True), "", "Put in front of every key; all participants must agree."
    )
    sep: str = _setting(
        _text(),
        "\x06\x16",
        "Stands between a queue's name and a priority step; all participants must agree.",
    )
    priority_steps: tuple[int, ...] = _setting(
        _steps(),
        (0, 3, 6, 9),
        "Priorities that have a list of their own, 0 the most urgent; all participants must agree.",
    )
    queue_order_strategy: str = _setting(
        _choice("round_robin", "priority", "sorted"),
        "round_robin",
        "Which queue is served first: each in turn, in the order given, or by name.",
    )
    socket_timeout: float = _setting(
        _seconds(zero_ok=False),
        5.0,
        "Longest wait for the answer to a command, over the time the command itself may wait.",
        unit="s",
    )
    socket_connect_timeout: float | None = _setting(
        _optional(_seconds(zero_ok=False)),
        None,
        "Longest wait for a connection; None is `broker_connection_timeout`.",
        unit="s",
    )
    socket_keepalive: bool = _setting(
        _flag(), True, "Let the operating system notice connections whose other end is gone."
    )
    health_check_interval: float = _setting(
        _seconds(), 10.0, "Test a connection that was idle this long before use; 0 never.", unit="s"
    )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ResultTransportOptions(Section):
    """`result_backend_transport_options`: how result keys are named."""

    global_keyprefix: str = _setting(
        _text(empty_ok=True),
        "",
        "Put in front of every result key; an underscore follows unless it ends in one of : _ - .",
    )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RetryPolicy(Section):
    """`task_publish_retry_policy`: how often and when sending is tried again."""

    max_retries: int | None = _setting(
        _optional(_whole(0)), 3, "Tries after the first; None never gives up."
    )
    interval_start: float = _setting(_seconds(), 0.0, "Wait before the first retry.", unit="s")
    interval_step: float = _setting(
        _seconds(), 0.2, "Added to the wait with every retry.", unit="s"
    )
    interval_max: float = _setting(_seconds(), 1.0, "Longest wait between two tries.", unit="s")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class BrokerConfig(Section):
    """Where the queues are and how they are reached."""

    broker_url: str = _setting(
        _url(),
        "",
        "The Redis or Valkey server that holds the queues. Empty is embedded://, a server of "
        "one's own in a data folder.",
    )
    broker_pool_limit: int = _setting(
        _whole(1), 10, "Connections kept for user code that sends; others wait for a free one."
    )
    broker_connection_timeout: float = _setting(
        _seconds(zero_ok=False), 4.0, "Longest wait for a connection.", unit="s"
    )
    broker_connection_retry_on_startup: bool = _setting(
        _flag(), True, "Wait for a server that is not there yet when the worker starts."
    )
    broker_connection_max_retries: int | None = _setting(
        _optional(_whole(0)),
        None,
        "Tries to reach a lost server again before the worker ends; None (Celery: 100) never ends.",
    )
    broker_transport_options: TransportOptions = _setting(
        _part(TransportOptions), TransportOptions(), "See the table of its own."
    )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ResultConfig(Section):
    """Where results are, in which form, and how long they stay."""

    result_backend: str = _setting(
        _url(also="disabled://"),
        "",
        "The server that holds results. Empty is the broker's; disabled:// stores none.",
    )
    result_serializer: str = _setting(
        _choice(*SERIALIZERS), "json", "How results are written; their readers must have the same."
    )
    result_accept_content: tuple[str, ...] | None = _setting(
        _optional(_texts(_content())),
        None,
        "Serializers that are accepted in results; None is `accept_content`.",
    )
    result_compression: str | None = _setting(
        _optional(_choice(*COMPRESSIONS)), None, "How results are compressed; None not at all."
    )
    result_expires: float | None = _setting(
        _optional(_lifetime()), 86400.0, "How long results stay; None or 0 for ever.", unit="s"
    )
    result_failure_expires: float | None = _setting(
        _optional(_lifetime()),
        None,
        "How long failures stay, 0 for ever; None is `result_expires`.",
        unit="s",
    )
    result_extended: bool = _setting(
        _flag(), False, "Also store name, arguments, worker, retries and queue with a result."
    )
    result_backend_transport_options: ResultTransportOptions = _setting(
        _part(ResultTransportOptions), ResultTransportOptions(), "See the table of its own."
    )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TaskConfig(Section):
    """What holds for every task that does not say otherwise itself, and what messages may be."""

    task_default_queue: str = _setting(_text(), "celery", "Queue of tasks without a route.")
    task_default_priority: int | None = _setting(
        _optional(_whole(0, 9)), None, "Priority of tasks without one; None is 0, the most urgent."
    )
    task_queues: tuple[str, ...] = _setting(
        _texts(_text()),
        (),
        "Names of the queues a worker consumes unless -Q says which; empty is the default queue.",
    )
    task_routes: tuple[Mapping[str, Mapping[str, object]], ...] = _setting(
        _routes(),
        (),
        "Task name or glob to a queue name or to {queue, priority}; of several such mappings the "
        "first that matches counts, and in each a full name before a glob.",
    )
    task_create_missing_queues: bool = _setting(
        _flag(), True, "Allow sending to queues that `task_queues` does not name."
    )
    task_serializer: str = _setting(_choice(*SERIALIZERS), "json", "How task messages are written.")
    accept_content: tuple[str, ...] = _setting(
        _texts(_content()),
        ("json",),
        "Serializers or content types that are accepted. With pickle, senders can run code here.",
    )
    task_compression: str | None = _setting(
        _optional(_choice(*COMPRESSIONS)),
        None,
        "How task messages are compressed; None not at all.",
    )
    task_ignore_result: bool = _setting(_flag(), False, "Store no results.")
    task_store_errors_even_if_ignored: bool = _setting(
        _flag(), False, "Store failures also of tasks whose results are ignored."
    )
    task_acks_late: bool = _setting(
        _flag(),
        True,
        "Acknowledge after the run, not before: a task whose worker dies runs again elsewhere. "
        "(Celery: False.)",
    )
    task_acks_on_failure_or_timeout: bool = _setting(
        _flag(),
        True,
        "With late acknowledgement: acknowledge also after a failure or a time limit.",
    )
    task_reject_on_worker_lost: bool = _setting(
        _flag(),
        True,
        "Give a late-acknowledged task back to its queue when its worker is lost. (Celery: off.)",
    )
    task_max_deliveries: int = _setting(
        _whole(1),
        5,
        "greenq's own. A message delivered this often without an outcome is set aside as a dead "
        "letter: it kills its workers.",
    )
    task_track_started: bool = _setting(_flag(), False, "Store STARTED when a task starts.")
    task_publish_retry: bool = _setting(
        _flag(), True, "Try again when sending fails for want of a connection."
    )
    task_publish_retry_policy: RetryPolicy = _setting(
        _part(RetryPolicy), RetryPolicy(), "See the table of its own."
    )
    task_default_retry_delay: float = _setting(
        _seconds(), 180.0, "Wait before a retry that names no countdown or ETA.", unit="s"
    )
    task_time_limit: float | None = _setting(
        _optional(_seconds(zero_ok=False)), None, "A task is ended after this time.", unit="s"
    )
    task_soft_time_limit: float | None = _setting(
        _optional(_seconds(zero_ok=False)),
        None,
        "SoftTimeLimitExceeded is raised in a task after this time; less than `task_time_limit`.",
        unit="s",
    )
    task_inherit_parent_priority: bool = _setting(
        _flag(), False, "Tasks sent by a task take its priority."
    )
    task_max_body_bytes: int = _setting(
        _whole(1, _REDIS_MAX_BYTES),
        64 * _MIB,
        "greenq's own. Largest task body, before and after decompression; a larger one is set "
        "aside unread as a dead letter.",
        unit="bytes",
    )
    task_max_result_bytes: int = _setting(
        _whole(1, _REDIS_MAX_BYTES),
        64 * _MIB,
        "greenq's own. Largest result; a larger one makes the task a failure that says so.",
        unit="bytes",
    )
    enable_utc: bool = _setting(_flag(), True, "Write times in UTC; off writes them in `timezone`.")
    timezone: str = _setting(_timezone(), "UTC", "Time zone of schedules and of times without one.")
    imports: tuple[str, ...] = _setting(
        _texts(_text()), (), "Modules a worker imports at its start, for the tasks in them."
    )
    include: tuple[str, ...] = _setting(_texts(_text()), (), "More of the same as `imports`.")

    def _conflicts(self) -> list[Problem]:
        hard, soft = self.task_time_limit, self.task_soft_time_limit
        if hard is None or soft is None or soft < hard:
            return []
        return [
            Problem(
                "task_soft_time_limit", soft, f"must be below task_time_limit, which is {hard:g}"
            )
        ]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class WorkerConfig(Section):
    """How a worker process runs."""

    worker_concurrency: int | None = _setting(
        _optional(_whole(1)),
        None,
        f"Tasks that run at once, each in a greenlet; None is {DEFAULT_CONCURRENCY}.",
    )
    worker_prefetch_multiplier: int = _setting(
        _whole(1),
        1,
        "Messages held per greenlet, the running one included. (Celery: 4.) Fetching is cheap in "
        "batches, and what one worker holds in reserve no other can start.",
    )
    worker_autoscale_keepalive: float = _setting(
        _seconds(), 30.0, "greenq's own. How long a pool stays large after the load fell.", unit="s"
    )
    worker_autoscale_interval: float = _setting(
        _seconds(zero_ok=False),
        0.5,
        "greenq's own. Time between two autoscale decisions.",
        unit="s",
    )
    worker_hub_lag_warning: float = _setting(
        _seconds(zero_ok=False),
        1.0,
        "greenq's own. A task that keeps all others waiting this long is named in the log.",
        unit="s",
    )
    worker_shutdown_grace: float = _setting(
        _seconds(),
        30.0,
        "greenq's own. How long running tasks may take to finish after SIGTERM; the rest goes "
        "back to its queues. (Celery waits without end, and names another thing "
        "worker_soft_shutdown_timeout.)",
        unit="s",
    )
    worker_log_color: bool | None = _setting(
        _optional(_flag()), None, "Colour in the log; None: when it goes to a terminal."
    )
    worker_hijack_root_logger: bool = _setting(
        _flag(), True, "Set up the root logger, replacing handlers that are there."
    )


# --- the whole -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings, by section."""

    broker: BrokerConfig = field(default_factory=BrokerConfig)
    result: ResultConfig = field(default_factory=ResultConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    worker: WorkerConfig = field(default_factory=WorkerConfig)

    @classmethod
    def build(cls, settings: Mapping[str, object]) -> Self:
        """Return the settings named in `settings`, all others at their defaults.

        Raises: ConfigError: names are unknown or values wrong; all of them are listed.
        """
        problems = [
            _unknown(name, value, _OWNERS)
            for name, value in settings.items()
            if name not in _OWNERS
        ]
        parts: dict[str, Any] = {}
        for part, section in SECTIONS.items():
            given = {name: settings[name] for name in _names(section) if name in settings}
            try:
                parts[part] = section(**given)
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ConfigError(problems)
        return cls(**parts)

    @staticmethod
    def names() -> frozenset[str]:
        """Return the names of all settings."""
        return frozenset(_OWNERS)

    def get(self, name: str) -> Any:
        """Return the value of the setting `name`.

        Raises: ConfigError: there is no such setting.
        """
        if name not in _OWNERS:
            raise ConfigError([_unknown(name, None, _OWNERS)])
        return getattr(getattr(self, _OWNERS[name]), name)


SECTIONS: Final[Mapping[str, type[Section]]] = {
    "broker": BrokerConfig,
    "result": ResultConfig,
    "task": TaskConfig,
    "worker": WorkerConfig,
}
_OWNERS: Final[Mapping[str, str]] = {
    name: part for part, section in SECTIONS.items() for name in _names(section)
}


def _unknown(name: str, value: object, known: Iterable[str]) -> Problem:
    """Say that there is no setting `name`, and which one may be meant."""
    modern = _modern_name(name)
    if modern is not None and modern in known:
        reason = f"is an old name, now {modern}"
    else:
        close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.75)
        reason = "greenq has no such setting" + (f"; did you mean {close[0]}?" if close else "")
    return Problem(name, _shown(name, value), reason)


def _modern_name(name: str) -> str | None:
    """Return today's name of a setting in Celery's upper-case spelling, or None."""
    low = name.lower()
    if low == "celery_message_compression":
        return "task_compression"
    tails = [low]
    for prefix in ("celeryd_", "celery_task_", "celery_"):
        if low.startswith(prefix):
            tail = low.removeprefix(prefix)
            tails += [tail, f"task_{tail}", f"worker_{tail}"]
    return next((tail for tail in tails if tail in _OWNERS and tail != name), None)


# --- sources -------------------------------------------------------------------------------------


def settings_from_object(source: object, namespace: str | None = None) -> dict[str, object]:
    """Return the settings in `source`: a mapping, any object, or one named "module[:attribute]".

    Of an object its public lower-case attributes count, except modules, functions and classes.
    With a `namespace`, such as "CELERY" in Django's settings, the upper-case names that begin with
    it and an underscore count, and lose that prefix. The values are not checked yet.

    Raises: ConfigError: no such module or attribute.
    """
    if isinstance(source, str):
        source = _load(source)
    if namespace:
        return _prefixed(source, namespace.upper().rstrip("_") + "_")
    if isinstance(source, Mapping):
        return {str(name): value for name, value in source.items()}
    public = (name for name in dir(source) if not name.startswith("_") and name == name.lower())
    found = ((name, getattr(source, name)) for name in public)
    return {name: value for name, value in found if not _is_code(value)}


def _prefixed(source: object, prefix: str) -> dict[str, object]:
    if isinstance(source, Mapping):
        names, read = list(source), source.__getitem__
    else:
        names, read = dir(source), lambda name: getattr(source, name)
    return {
        name.removeprefix(prefix).lower(): read(name)
        for name in names
        if name.startswith(prefix) and name == name.upper()
    }


def _is_code(value: object) -> bool:
    return inspect.ismodule(value) or inspect.isroutine(value) or inspect.isclass(value)


def _load(path: str) -> object:
    module_name, _, attribute = path.partition(":")
    try:
        found: object = importlib.import_module(module_name)
    except (ModuleNotFoundError, ValueError, TypeError) as error:
        # Only what the path itself names: a module missing inside it is that module's own error.
        missing = getattr(error, "name", None)
        if missing is not None and not f"{module_name}.".startswith(f"{missing}."):
            raise
        reason = "no such module; is its folder on the Python path?"
        raise ConfigError([Problem("config source", path, reason)]) from error
    for name in attribute.split(".") if attribute else ():
        if not hasattr(found, name):
            raise ConfigError([Problem("config source", path, f"has no attribute {name!r}")])
        found = getattr(found, name)
    return found


ENV_PREFIX: Final = "GREENQ_"
_NOT_SETTINGS: Final = frozenset({"GREENQ_APP", "GREENQ_DATA", "GREENQ_RUN"})


def settings_from_env(environ: Mapping[str, str]) -> dict[str, object]:
    """Return the settings in `environ`: GREENQ_BROKER_URL is broker_url, and so on.

    Truth values are true, false, 1 or 0; lists are separated by commas or are JSON; mappings are
    JSON; None is none. No settings are GREENQ_APP (the command line's app), GREENQ_DATA (the
    embedded server's folder) and GREENQ_RUN (supervisord's folder).

    Raises: ConfigError: a variable names no setting, or cannot be read as its type.
    """
    kinds = {
        ENV_PREFIX + each.name.upper(): (each.name, each.metadata["kind"])
        for section in SECTIONS.values()
        for each in dataclasses.fields(section)
    }
    settings: dict[str, object] = {}
    problems: list[Problem] = []
    for variable, text in environ.items():
        if not variable.startswith(ENV_PREFIX) or variable in _NOT_SETTINGS:
            continue
        if variable not in kinds:
            close = difflib.get_close_matches(variable, kinds, n=1, cutoff=0.75)
            hint = f"; did you mean {close[0]}?" if close else ""
            reason = "greenq has no such setting" + hint
            problems.append(Problem(variable, _shown(variable, text), reason))
            continue
        name, kind = kinds[variable]
        try:
            settings[name] = kind.parse(text)
        except ValueError as error:
            problems.append(Problem(variable, _shown(variable, text), str(error)))
    if problems:
        raise ConfigError(problems)
    return settings
