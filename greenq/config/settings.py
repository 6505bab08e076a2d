"""Settings: their names, defaults, units and checks.

The names are Celery's lower-case names, so that a Celery configuration carries over; a setting that
is greenq's own says so. One frozen section per part of the program: a part is given its section,
never the whole. Every wrong value is found at once, when the settings are built, and named in one
`ConfigError`. docs/settings.md is generated from the fields below.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Self

from greenq import suggest
from greenq.config import celery_names, validators
from greenq.errors import ConfigError, Problem, UnknownSetting

DEFAULT_CONCURRENCY: Final = 1000
"""Greenlets in the pool when `worker_concurrency` is not set."""

_MIB: Final = 1024 * 1024
# Text values in Redis end here (proto-max-bulk-len).
_REDIS_MAX_BYTES: Final = 512 * _MIB


# --- sections ------------------------------------------------------------------------------------


def _setting(
    kind: validators.Validator, default: object, doc: str, *, unit: str = "", none_ok: bool = False
) -> Any:
    """Describe one setting; with `none_ok` None, Celery's own default, stands for the default."""
    if none_ok:
        kind = validators.or_default(kind, default)
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
                problems.append(Problem(each.name, validators.shown(each.name, value), str(error)))
            except ConfigError as error:
                problems += [p._replace(field=f"{each.name}.{p.field}") for p in error.problems]
        if problems:
            raise ConfigError(problems)

    def __repr__(self) -> str:
        """Show the fields without passwords."""
        shown = (
            f"{name}={validators.shown(name, getattr(self, name))!r}" for name in _names(type(self))
        )
        return f"{type(self).__name__}({', '.join(shown)})"


def _part(section: type[Section]) -> validators.Validator:
    """A mapping that becomes a section of its own; keys left out keep their defaults."""

    def accept(value: object) -> Section:
        if isinstance(value, section):
            return value
        if not isinstance(value, Mapping):
            raise ValueError("must be a mapping of " + ", ".join(_names(section)))
        known = {str(name): item for name, item in value.items() if name in _names(section)}
        foreign = celery_names.TRANSPORT_OPTIONS if section is TransportOptions else {}
        sifted = _sift({str(n): item for n, item in value.items() if n not in known}, foreign)
        problems = [*sifted.problems]
        problems += [_unknown(name, item, _names(section)) for name, item in sifted.kept.items()]
        try:
            built = section(**known)
        except ConfigError as error:
            problems += error.problems
        if problems:
            raise ConfigError(problems)
        return built

    return validators.Validator(accept, validators.parse_json)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TransportOptions(Section):
    """`broker_transport_options`: how the keys are named and how long the server is waited for."""

    visibility_timeout: float = _setting(
        validators.seconds(zero_ok=False),
        3600.0,
        "When Celery workers on the same queues may take an unacknowledged message for abandoned. "
        "greenq renews its own messages long before.",
        unit="s",
    )
    global_keyprefix: str = _setting(
        validators.text(empty_ok=True),
        "",
        "Put in front of every key; all participants must agree.",
    )
    sep: str = _setting(
        validators.text(),
        "\x06\x16",
        "Stands between a queue's name and a priority step; all participants must agree.",
    )
    priority_steps: tuple[int, ...] = _setting(
        validators.steps(),
        (0, 3, 6, 9),
        "Priorities that have a list of their own, 0 the most urgent; all participants must agree.",
    )
    queue_order_strategy: str = _setting(
        validators.choice("round_robin", "priority", "sorted"),
        "round_robin",
        "Which queue is served first: each in turn, in the order given, or by name.",
    )
    socket_timeout: float = _setting(
        validators.seconds(zero_ok=False),
        3.0,
        "Longest wait for the answer to a command. A call to send or to read a result takes no "
        "longer than this and `broker_connection_timeout` together.",
        unit="s",
    )
    socket_connect_timeout: float | None = _setting(
        validators.optional(validators.seconds(zero_ok=False)),
        None,
        "Longest wait for a connection; None is `broker_connection_timeout`.",
        unit="s",
    )
    socket_keepalive: bool = _setting(
        validators.flag(),
        True,
        "Let the operating system notice connections whose other end is gone.",
    )
    health_check_interval: float = _setting(
        validators.seconds(),
        2.0,
        "Test a connection on which results are waited for after so much silence; 0 is the same as "
        "2. (Celery: 25.)",
        unit="s",
    )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ResultTransportOptions(Section):
    """`result_backend_transport_options`: how result keys are named."""

    global_keyprefix: str = _setting(
        validators.text(empty_ok=True),
        "",
        "Put in front of every result key; an underscore follows unless it ends in one of : _ - .",
    )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RetryPolicy(Section):
    """`task_publish_retry_policy`: how often and when sending is tried again.

    However slowly the tries fail, sending ends after `broker_connection_timeout` and
    `socket_timeout` together, or after the sum of the waits if that is longer.
    """

    max_retries: int | None = _setting(
        validators.optional(validators.whole(0)), 3, "Tries after the first; None never gives up."
    )
    interval_start: float = _setting(
        validators.seconds(), 0.0, "Wait before the first retry.", unit="s"
    )
    interval_step: float = _setting(
        validators.seconds(), 0.2, "Added to the wait with every retry.", unit="s"
    )
    interval_max: float = _setting(
        validators.seconds(), 1.0, "Longest wait between two tries.", unit="s"
    )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class BrokerConfig(Section):
    """Where the queues are and how they are reached."""

    broker_url: str = _setting(
        validators.url(),
        "",
        "The Redis or Valkey server that holds the queues. Empty is embedded://, a server of "
        "one's own in a data folder.",
    )
    broker_pool_limit: int = _setting(
        validators.whole(1),
        10,
        "Connections kept for user code that sends; others wait for a free one.",
    )
    broker_connection_timeout: float = _setting(
        validators.seconds(zero_ok=False),
        2.0,
        "Longest wait for a connection. (Celery: 4.)",
        unit="s",
    )
    broker_connection_retry_on_startup: bool = _setting(
        validators.flag(),
        True,
        "Wait for a server that is not there yet when the worker starts.",
        none_ok=True,
    )
    broker_connection_max_retries: int | None = _setting(
        validators.optional(validators.whole(0)),
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
        validators.url(also="disabled://"),
        "",
        "The server that holds results. Empty is the broker's; disabled:// stores none.",
    )
    result_serializer: str = _setting(
        validators.choice(*validators.SERIALIZERS),
        "json",
        "How results are written; their readers must have the same.",
    )
    result_accept_content: tuple[str, ...] | None = _setting(
        validators.optional(validators.texts(validators.content())),
        None,
        "Serializers that are accepted in results; None is `accept_content`, an empty list none.",
    )
    result_compression: str | None = _setting(
        validators.optional(validators.choice(*validators.COMPRESSIONS)),
        None,
        "How results are compressed; None not at all.",
    )
    result_expires: float | None = _setting(
        validators.optional(validators.lifetime()),
        86400.0,
        "How long results stay; None or 0 for ever.",
        unit="s",
    )
    result_failure_expires: float | None = _setting(
        validators.optional(validators.lifetime()),
        None,
        "How long failures stay, 0 for ever; None is `result_expires`.",
        unit="s",
    )
    result_extended: bool = _setting(
        validators.flag(),
        False,
        "Also store name, arguments, worker, retries and queue with a result.",
    )
    result_backend_transport_options: ResultTransportOptions = _setting(
        _part(ResultTransportOptions), ResultTransportOptions(), "See the table of its own."
    )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TaskConfig(Section):
    """What holds for every task that does not say otherwise itself, and what messages may be."""

    task_default_queue: str = _setting(
        validators.text(), "celery", "Queue of tasks without a route."
    )
    task_default_priority: int | None = _setting(
        validators.optional(validators.whole(0, 9)),
        None,
        "Priority of tasks without one; None is 0, the most urgent.",
    )
    task_queues: tuple[str | validators.Broadcast, ...] = _setting(
        validators.texts(validators.queue()),
        (),
        "The queues a worker consumes unless -Q says which: names, and `Broadcast(name)` for those "
        "whose messages go to every worker; empty is the default queue.",
        none_ok=True,
    )
    task_routes: tuple[Mapping[str, Mapping[str, object]], ...] = _setting(
        validators.routes(),
        (),
        "Task name or glob to a queue name or to {queue, priority}; of several such mappings the "
        "first that matches counts, and in each a full name before a glob.",
        none_ok=True,
    )
    task_annotations: tuple[object, ...] = _setting(
        validators.task_annotations(),
        (),
        "Attributes that tasks get: {task name, or * for all: {attribute: value}}, an object with "
        "annotate(task), its class or the name of that, or a list of such.",
        none_ok=True,
    )
    task_create_missing_queues: bool = _setting(
        validators.flag(), True, "Allow sending to queues that `task_queues` does not name."
    )
    task_serializer: str = _setting(
        validators.choice(*validators.SERIALIZERS), "json", "How task messages are written."
    )
    accept_content: tuple[str, ...] = _setting(
        validators.texts(validators.content()),
        ("json",),
        "Serializers or content types that are accepted. With pickle, senders can run code here.",
    )
    accept_compression: tuple[str, ...] = _setting(
        validators.texts(validators.choice(*validators.COMPRESSIONS)),
        ("gzip",),
        "greenq's own. Compressions that are accepted in messages and results, besides "
        "`task_compression` and `result_compression`.",
    )
    task_compression: str | None = _setting(
        validators.optional(validators.choice(*validators.COMPRESSIONS)),
        None,
        "How task messages are compressed; None not at all.",
    )
    task_ignore_result: bool = _setting(validators.flag(), False, "Store no results.")
    task_store_errors_even_if_ignored: bool = _setting(
        validators.flag(), False, "Store failures also of tasks whose results are ignored."
    )
    task_acks_late: bool = _setting(
        validators.flag(),
        True,
        "Acknowledge after the run, not before: a task whose worker dies runs again elsewhere. "
        "(Celery: False.)",
    )
    task_acks_on_failure_or_timeout: bool = _setting(
        validators.flag(),
        True,
        "With late acknowledgement: acknowledge also after a failure or a time limit.",
    )
    task_reject_on_worker_lost: bool = _setting(
        validators.flag(),
        True,
        "Give a late-acknowledged task back to its queue when its worker is lost. (Celery: off.)",
        none_ok=True,
    )
    task_eta_horizon: float = _setting(
        validators.seconds(),
        300.0,
        "greenq's own. A task that is due later than this is parked on the server; a nearer one "
        "waits in the worker that took it.",
        unit="s",
    )
    task_max_deliveries: int = _setting(
        validators.whole(1),
        5,
        "greenq's own. A message is set aside as a dead letter at this many deaths of workers that "
        "died while it ran, the last of them with nothing else running; what only waited there is "
        "not counted.",
    )
    task_track_started: bool = _setting(
        validators.flag(), False, "Store STARTED when a task starts."
    )
    task_time_limit: float | None = _setting(
        validators.optional(validators.seconds(zero_ok=False)),
        None,
        "A task that runs longer is ended and fails; None lets it run.",
        unit="s",
    )
    task_soft_time_limit: float | None = _setting(
        validators.optional(validators.seconds(zero_ok=False)),
        None,
        "In a task that runs longer SoftTimeLimitExceeded is raised, once; None lets it run.",
        unit="s",
    )
    task_default_rate_limit: str | None = _setting(
        validators.optional(validators.text()),
        None,
        "How many of a task one worker starts, as in 10/s, 100/m or 5/h, unless the task says "
        "otherwise; None is no limit.",
    )
    task_send_sent_event: bool = _setting(
        validators.flag(), False, "Senders tell of each task that they send: task-sent."
    )
    task_publish_retry: bool = _setting(
        validators.flag(), True, "Try again when sending fails for want of a connection."
    )
    task_publish_retry_policy: RetryPolicy = _setting(
        _part(RetryPolicy), RetryPolicy(), "See the table of its own."
    )
    task_default_retry_delay: float = _setting(
        validators.seconds(), 180.0, "Wait before a retry that names no countdown or ETA.", unit="s"
    )
    task_inherit_parent_priority: bool = _setting(
        validators.flag(), False, "Tasks sent by a task take its priority."
    )
    task_max_body_bytes: int = _setting(
        validators.whole(1, _REDIS_MAX_BYTES),
        8 * _MIB,
        "greenq's own. Largest task body, before and after decompression; a larger one is set "
        "aside unread as a dead letter, and so is one with more than a value for each 64 of these "
        "bytes.",
        unit="bytes",
    )
    task_max_dead_letter_bytes: int = _setting(
        validators.whole(1024 * 1024),
        64 * _MIB,
        "greenq's own. How much memory of the server the dead letters of one queue may take; the "
        "oldest go first. A letter that would take more than half of it is cut, and cannot be "
        "replayed.",
        unit="bytes",
    )
    task_dead_letter_expires: float = _setting(
        validators.lifetime(),
        30 * 86400.0,
        "greenq's own. How long dead letters stay; 0 for ever.",
        unit="s",
    )
    task_max_result_bytes: int = _setting(
        validators.whole(1, _REDIS_MAX_BYTES),
        64 * _MIB,
        "greenq's own. Largest result; a larger one makes the task a failure that says so, and is "
        "not read.",
        unit="bytes",
    )
    enable_utc: bool = _setting(
        validators.flag(),
        True,
        "Accepted for Celery's sake, without effect: times on the wire always carry their offset.",
    )
    timezone: str = _setting(
        validators.timezone(),
        "UTC",
        "Time zone in which times are written. A time without one is in UTC, as with Celery.",
        none_ok=True,
    )
    imports: tuple[str, ...] = _setting(
        validators.texts(validators.text()),
        (),
        "Modules a worker imports at its start, for the tasks in them.",
    )
    include: tuple[str, ...] = _setting(
        validators.texts(validators.text()), (), "More of the same as `imports`."
    )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class WorkerConfig(Section):
    """How a worker process runs."""

    worker_concurrency: int | None = _setting(
        validators.optional(validators.whole(1)),
        None,
        f"Tasks that run at once, each in a greenlet; None is {DEFAULT_CONCURRENCY}.",
    )
    worker_prefetch_multiplier: int = _setting(
        validators.whole(1),
        1,
        "Messages held per greenlet, the running one included. (Celery: 4.) Fetching is cheap in "
        "batches, and what one worker holds in reserve no other can start.",
    )
    worker_autoscale_keepalive: float = _setting(
        validators.seconds(),
        30.0,
        "greenq's own. How long a pool stays large after the load fell.",
        unit="s",
    )
    worker_autoscale_interval: float = _setting(
        validators.seconds(zero_ok=False),
        0.5,
        "greenq's own. Time between two autoscale decisions.",
        unit="s",
    )
    worker_send_task_events: bool = _setting(
        validators.flag(), False, "Workers tell of what happens to their tasks, as -E does."
    )
    worker_enable_remote_control: bool | str = _setting(
        validators.flag_or("inspect"),
        True,
        "Workers answer `greenq inspect` and `control`, and Celery's; `inspect`: they are looked "
        "at, and refuse what would change something.",
    )
    worker_show_arguments: bool = _setting(
        validators.flag(),
        True,
        "greenq's own. `inspect` shows the arguments of tasks. Without, it shows what the sender "
        "has given as `argsrepr` and `kwargsrepr`.",
    )
    worker_remote_control_pcre: bool = _setting(
        validators.flag(),
        False,
        "greenq's own. Requests of remote control may choose workers by a regular expression "
        "(matcher pcre). Whoever may publish can send one; those that may take long are refused.",
    )
    worker_disable_rate_limits: bool = _setting(
        validators.flag(), False, "Start tasks without regard to their rate limits."
    )
    worker_direct: bool = _setting(
        validators.flag(),
        False,
        "Each worker has a queue of its own, too, named like its node with .dq2 behind it.",
    )
    worker_agent: str | None = _setting(
        validators.optional(validators.text()),
        None,
        "A class, as module:name, that is made with the consumer, and started and stopped with it.",
    )
    worker_hub_lag_warning: float = _setting(
        validators.seconds(zero_ok=False),
        1.0,
        "greenq's own. A task that keeps all others waiting this long is named in the log.",
        unit="s",
    )
    worker_hub_blocked_limit: float = _setting(
        validators.seconds(),
        600.0,
        "greenq's own. A worker whose hub one task has kept from everybody for so long logs all "
        "stacks and ends (exit code 1), and its messages go to others; 0: never.",
        unit="s",
    )
    worker_lease: float = _setting(
        validators.seconds(zero_ok=False),
        3.0,
        "greenq's own. A worker that has not been heard of for so long is dead, and its messages "
        "go back to their queues.",
        unit="s",
    )
    worker_task_locals: str = _setting(
        validators.choice("clear", "keep"),
        "clear",
        "greenq's own. What a task leaves in `threading.local` is gone before the next one: "
        "`clear`. With `keep` a later task on the same greenlet finds it, as on a pool of threads.",
    )
    worker_silence_limit: float = _setting(
        validators.seconds(),
        60.0,
        "greenq's own. For so long a worker in which no Python runs (a call holds the GIL, or the "
        "process is stopped) keeps its messages, if its process lives; 0 is `worker_lease`.",
        unit="s",
    )
    worker_shutdown_grace: float = _setting(
        validators.seconds(),
        30.0,
        "greenq's own. How long running tasks may take to finish after SIGTERM; the rest goes "
        "back to its queues. (Celery waits without end, and names another thing "
        "worker_soft_shutdown_timeout.)",
        unit="s",
    )
    worker_log_color: bool | None = _setting(
        validators.optional(validators.flag()),
        None,
        "Colour in the log; None: when it goes to a terminal.",
    )
    worker_hijack_root_logger: bool = _setting(
        validators.flag(), True, "Set up the root logger, replacing handlers that are there."
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
        sifted = sift(settings)
        settings, problems = sifted.kept, [*sifted.problems]
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

        Raises: UnknownSetting: there is no such setting.
        """
        if name not in _OWNERS:
            raise UnknownSetting(name, unknown_reason(name))
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


class Sifted(NamedTuple):
    """Settings, and what is to be said of them.

    Attributes:
        kept: those that greenq has.
        notes: a line for each of Celery's that has no effect here, for a warning.
        problems: names that nobody knows, and Celery's that must not be left out in silence.
    """

    kept: dict[str, object]
    notes: tuple[str, ...]
    problems: tuple[Problem, ...]


def sift(settings: Mapping[str, object]) -> Sifted:
    """Tell greenq's own settings in `settings` from Celery's other ones, and from wrong names."""
    sifted = _sift(
        {name: value for name, value in settings.items() if name not in _OWNERS},
        celery_names.SETTINGS,
    )
    notes = [*sifted.notes]
    options = settings.get("broker_transport_options")
    if isinstance(options, Mapping):
        inner = _sift({str(k): v for k, v in options.items()}, celery_names.TRANSPORT_OPTIONS)
        notes += [f"broker_transport_options.{note}" for note in inner.notes]
    return Sifted(
        {name: value for name, value in settings.items() if name in _OWNERS},
        tuple(notes),
        (*sifted.problems, *(_unknown(n, value, _OWNERS) for n, value in sifted.kept.items())),
    )


def _sift(values: Mapping[str, object], foreign: Mapping[str, celery_names.Foreign]) -> Sifted:
    """Take what Celery knows from `values`; `kept` is the rest."""
    notes, problems, rest = [], [], {}
    for name, value in values.items():
        about = foreign.get(name)
        if about is None:
            rest[name] = value
        elif _asks_for_nothing(value, about.default):
            continue
        elif about.harmless:
            notes.append(f"{name} = {validators.shown(name, value)!r}: {about.advice}")
        else:
            reason = f"is a setting of Celery's: {about.advice}"
            problems.append(Problem(name, validators.shown(name, value), reason))
    return Sifted(rest, tuple(notes), tuple(problems))


def _asks_for_nothing(value: object, default: object) -> bool:
    return value is None or (not value and not default) or bool(value == default)


def unknown_reason(name: str, known: Iterable[str] | None = None) -> str:
    """Say why there is no setting `name`, and which one may be meant."""
    known = _OWNERS if known is None else known
    about = celery_names.SETTINGS.get(name)
    if about is not None:
        return f"is a setting of Celery's: {about.advice}"
    modern = celery_names.modern_name(name, _OWNERS)
    if known is _OWNERS and modern is not None:
        return f"is an old name, now {modern}"
    near = nearest(name, known, cutoff=0.75)
    return "greenq has no such setting" + (f"; did you mean {near}?" if near else "")


def nearest(name: str, known: Iterable[str] | None = None, *, cutoff: float = 0.85) -> str | None:
    """Return the setting that `name` is almost spelt like, or None."""
    return suggest.nearest(name.lower(), _OWNERS if known is None else known, cutoff=cutoff)


def _unknown(name: str, value: object, known: Iterable[str]) -> Problem:
    """Say that there is no setting `name`, and which one may be meant."""
    return Problem(name, validators.shown(name, value), unknown_reason(name, known))
