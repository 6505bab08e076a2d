"""Settings: their names, defaults, units and checks.

The names are Celery's lower-case names, so a Celery configuration carries over. If a setting is
greenq's own, its description says so. Each part of the program has its own frozen section and
receives only that section. Building the settings reports all wrong values at once, in one
`ConfigError`. docs/settings.md is generated from the fields below.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Self

from greenq.config import celery_names, queues, routes, validators
from greenq.errors import ConfigError, Problem, UnknownSetting
from greenq.utils import suggest

DEFAULT_CONCURRENCY: Final = 1000
"""The number of greenlets in the pool if `worker_concurrency` is not set."""

_MIB: Final = 1024 * 1024
# Redis limits text values to this size (proto-max-bulk-len).
_REDIS_MAX_BYTES: Final = 512 * _MIB


# --- sections ------------------------------------------------------------------------------------


def _setting(
    kind: validators.Validator, default: object, doc: str, *, unit: str = "", none_ok: bool = False
) -> Any:
    """Describe one setting; if `none_ok`, None (Celery's default) means `default`."""
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
    """The base of all sections: checks and normalises the fields, and reports all problems at once.

    Raises:
        ConfigError: at least one field is wrong.
    """

    def __post_init__(self) -> None:
        """Replace each value with its normalised form."""
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
    """Accept a mapping and build a section from it; missing keys keep their defaults."""

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
    """`broker_transport_options`: how keys are named and how long to wait for the server."""

    visibility_timeout: float = _setting(
        validators.seconds(zero_ok=False),
        3600.0,
        "How long a message may stay unacknowledged before Celery workers on the same queues "
        "consider it abandoned. greenq renews its own messages long before that.",
        unit="s",
    )
    global_keyprefix: str = _setting(
        validators.text(empty_ok=True),
        "",
        "Prefix of every key; all senders and workers must use the same prefix.",
    )
    sep: str = _setting(
        validators.text(),
        "\x06\x16",
        "Separates a queue's name from its priority step; all senders and workers must use the "
        "same separator.",
    )
    priority_steps: tuple[int, ...] = _setting(
        validators.steps(),
        (0, 3, 6, 9),
        "Priorities that have their own lists; 0 is the most urgent. All senders and workers must "
        "use the same steps.",
    )
    queue_order_strategy: str = _setting(
        validators.choice("round_robin", "priority", "sorted"),
        "round_robin",
        "The order in which queues are served: `round_robin` (in turn), `priority` (in the order "
        "given) or `sorted` (by name).",
    )
    socket_timeout: float = _setting(
        validators.seconds(zero_ok=False),
        3.0,
        "Longest wait for the reply to a command. A call that sends or reads a result takes no "
        "longer than the sum of this and `broker_connection_timeout`.",
        unit="s",
    )
    socket_connect_timeout: float | None = _setting(
        validators.optional(validators.seconds(zero_ok=False)),
        None,
        "Longest wait for a connection; None means `broker_connection_timeout`.",
        unit="s",
    )
    socket_keepalive: bool = _setting(
        validators.flag(),
        True,
        "Let the operating system detect connections whose other end is gone.",
    )
    health_check_interval: float = _setting(
        validators.seconds(),
        2.0,
        "Test a connection that waits for results if it has received nothing for this long; 0 "
        "means 2. (Celery: 25.)",
        unit="s",
    )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ResultTransportOptions(Section):
    """`result_backend_transport_options`: how result keys are named."""

    global_keyprefix: str = _setting(
        validators.text(empty_ok=True),
        "",
        "Prefix of every result key; an underscore is added unless it ends in one of : _ - .",
    )
    result_chord_ordered: bool = _setting(
        validators.flag(),
        True,
        "Give a chord's body the results in the order of the tasks in its header, not in the order "
        "in which the tasks end. All workers must have the same value.",
    )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RetryPolicy(Section):
    """`task_publish_retry_policy`: how often and when to retry sending.

    However slowly attempts fail, sending gives up after `broker_connection_timeout` plus
    `socket_timeout`, or after the sum of the waits if that sum is longer. The time that a caller
    waits for a pooled connection is not counted while the server replies to other callers.
    """

    max_retries: int | None = _setting(
        validators.optional(validators.whole(0)),
        3,
        "Maximum number of retries; None means no limit.",
    )
    interval_start: float = _setting(
        validators.seconds(), 0.0, "Time to wait before the first retry.", unit="s"
    )
    interval_step: float = _setting(
        validators.seconds(), 0.2, "Time added to the wait at every retry.", unit="s"
    )
    interval_max: float = _setting(
        validators.seconds(), 1.0, "Longest wait between attempts.", unit="s"
    )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class BrokerConfig(Section):
    """Where the queues are, and how to reach them."""

    broker_url: str = _setting(
        validators.url(),
        "",
        "The Redis or Valkey server with the queues. Empty means embedded://, an embedded "
        "server in a data directory.",
    )
    broker_pool_limit: int = _setting(
        validators.whole(1),
        10,
        "Size of the connection pool for user code that sends. When all connections are in use, "
        "callers wait for a free one while the server keeps replying on the others.",
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
        "At startup, wait for a server that is not reachable yet.",
        none_ok=True,
    )
    broker_connection_max_retries: int | None = _setting(
        validators.optional(validators.whole(0)),
        None,
        "Maximum number of attempts to reconnect to a lost server before the worker exits; None "
        "(Celery: 100) means no limit.",
    )
    broker_transport_options: TransportOptions = _setting(
        _part(TransportOptions), TransportOptions(), "See its own table below."
    )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ResultConfig(Section):
    """Where results are stored, in which form, and for how long."""

    result_backend: str = _setting(
        validators.url(also="disabled://"),
        "",
        "The server that stores results. Empty means the broker; with disabled://, results are not "
        "stored.",
    )
    result_serializer: str = _setting(
        validators.serializer(),
        "json",
        "Serializer of results; readers of results must use the same one.",
    )
    result_accept_content: tuple[str, ...] | None = _setting(
        validators.optional(validators.texts(validators.content())),
        None,
        "Serializers accepted in results; None means `accept_content`, and an empty list accepts "
        "none.",
    )
    result_compression: str | None = _setting(
        validators.optional(validators.compression()),
        None,
        "Compression of results; None means no compression.",
    )
    result_expires: float | None = _setting(
        validators.optional(validators.lifetime()),
        86400.0,
        "How long results are kept; None or 0 means no limit.",
        unit="s",
    )
    result_failure_expires: float | None = _setting(
        validators.optional(validators.lifetime()),
        None,
        "How long failures are kept; 0 means no limit, and None means `result_expires`.",
        unit="s",
    )
    result_chord_expires: float | None = _setting(
        validators.optional(validators.lifetime()),
        None,
        "How long a chord is kept after its last part has ended; 0 means no limit, and None "
        "means `result_expires`.",
        unit="s",
    )
    result_extended: bool = _setting(
        validators.flag(),
        False,
        "Also store the name, arguments, worker, retries and queue with a result.",
    )
    result_backend_transport_options: ResultTransportOptions = _setting(
        _part(ResultTransportOptions), ResultTransportOptions(), "See its own table below."
    )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TaskConfig(Section):
    """Defaults for all tasks, and limits on their messages."""

    task_default_queue: str = _setting(
        validators.text(), "celery", "Queue for tasks without a route."
    )
    task_default_priority: int | None = _setting(
        validators.optional(validators.whole(0, 9)),
        None,
        "Priority of tasks that have none; None means 0, the most urgent.",
    )
    task_queues: tuple[str | queues.Queue | queues.Broadcast, ...] = _setting(
        queues.queues(),
        (),
        "The queues that a worker consumes from unless -Q names others: names, `Queue(name, ...)` "
        "with bindings or limits, or `Broadcast(name)` for queues whose messages go to every "
        "worker. Empty means the default queue.",
    )
    task_default_exchange: str | None = _setting(
        validators.optional(validators.text()),
        None,
        "Exchange of each `Queue` in `task_queues` that has none; None means the name of the "
        "default queue.",
    )
    task_default_exchange_type: str = _setting(
        validators.choice(*queues.EXCHANGE_TYPES), "direct", "Type of `task_default_exchange`."
    )
    task_default_routing_key: str | None = _setting(
        validators.optional(validators.text()),
        None,
        "Routing key of each `Queue` or `Broadcast` in `task_queues` that has none; None means "
        "the name of the default queue.",
    )
    task_routes: tuple[routes.Router, ...] = _setting(
        routes.routes(),
        (),
        "Maps a task name, glob or regular expression to a queue name or to send options. It can "
        "also be a router function, object or class, or the full name of one. In a list, the first "
        "match applies; within a mapping, a full name takes precedence over patterns.",
    )
    task_annotations: tuple[object, ...] = _setting(
        validators.task_annotations(),
        (),
        "Attributes to set on tasks: {task name, or * for all: {attribute: value}}; an object with "
        "annotate(task), its class, or the full name of its class; or a list of these.",
        none_ok=True,
    )
    task_create_missing_queues: bool = _setting(
        validators.flag(), True, "Allow sending to queues that `task_queues` does not name."
    )
    task_serializer: str = _setting(validators.serializer(), "json", "Serializer of task messages.")
    accept_content: tuple[str, ...] = _setting(
        validators.texts(validators.content()),
        ("json",),
        "Serializers or content types to accept. Accepting pickle lets senders run any code in the "
        "receiving process.",
    )
    accept_compression: tuple[str, ...] = _setting(
        validators.texts(validators.compression()),
        ("gzip",),
        "greenq's own. Compressions accepted in messages and results, in addition to "
        "`task_compression` and `result_compression`.",
    )
    task_compression: str | None = _setting(
        validators.optional(validators.compression()),
        None,
        "Compression of task messages; None means no compression.",
    )
    task_allow_error_cb_on_chord_header: bool = _setting(
        validators.flag(), False, "A chord's `link_error` also applies to each task of its header."
    )
    task_ignore_result: bool = _setting(validators.flag(), False, "Store no results.")
    task_store_errors_even_if_ignored: bool = _setting(
        validators.flag(), False, "Store failures even for tasks whose results are ignored."
    )
    task_acks_late: bool = _setting(
        validators.flag(),
        True,
        "Acknowledge a message after its task has run rather than before, so that the task runs "
        "again elsewhere if the worker dies. (Celery: False.)",
    )
    task_acks_on_failure_or_timeout: bool = _setting(
        validators.flag(),
        True,
        "With late acknowledgement, also acknowledge after a failure or a time limit.",
    )
    task_reject_on_worker_lost: bool = _setting(
        validators.flag(),
        True,
        "Requeue a late-acknowledged task when its worker is lost. (Celery: off.)",
        none_ok=True,
    )
    task_eta_horizon: float = _setting(
        validators.seconds(),
        300.0,
        "greenq's own. A task that is due in more than this time is parked on the server; a task "
        "that is due sooner waits in the worker that took it.",
        unit="s",
    )
    task_max_deliveries: int = _setting(
        validators.whole(1),
        5,
        "greenq's own. A message becomes a dead letter after this many workers have died while "
        "running it, provided that the last of them was running nothing else. Messages that were "
        "only waiting in a worker that died are not counted.",
    )
    task_always_eager: bool = _setting(
        validators.flag(),
        False,
        "For tests: sending a task runs it immediately in the caller, without a server, and "
        "`delay` and `apply_async` return an `EagerResult`.",
    )
    task_eager_propagates: bool = _setting(
        validators.flag(),
        False,
        "If a task that runs in the caller (by `apply`, or with `task_always_eager`) fails, its "
        "exception is raised in the caller.",
    )
    task_store_eager_result: bool = _setting(
        validators.flag(),
        False,
        "Also store the results of tasks that run in the caller.",
    )
    task_track_started: bool = _setting(
        validators.flag(), False, "Store STARTED when a task starts."
    )
    task_time_limit: float | None = _setting(
        validators.optional(validators.seconds(zero_ok=False)),
        None,
        "A task that runs longer is terminated and fails; None means no limit.",
        unit="s",
    )
    task_soft_time_limit: float | None = _setting(
        validators.optional(validators.seconds(zero_ok=False)),
        None,
        "SoftTimeLimitExceeded is raised once in a task that runs longer; None means no limit.",
        unit="s",
    )
    task_default_rate_limit: str | None = _setting(
        validators.optional(validators.text()),
        None,
        "How often each worker may start a task, for example 10/s, 100/m or 5/h, unless the task "
        "sets its own limit; None means no limit.",
    )
    task_send_sent_event: bool = _setting(
        validators.flag(), False, "Senders publish a task-sent event for each task."
    )
    task_publish_retry: bool = _setting(
        validators.flag(), True, "Retry sending when the connection fails."
    )
    task_publish_retry_policy: RetryPolicy = _setting(
        _part(RetryPolicy), RetryPolicy(), "See its own table below."
    )
    task_default_retry_delay: float = _setting(
        validators.seconds(),
        180.0,
        "Time to wait before a retry without a countdown or ETA.",
        unit="s",
    )
    task_inherit_parent_priority: bool = _setting(
        validators.flag(), False, "Tasks sent by a task inherit its priority."
    )
    workflow_index: bool = _setting(
        validators.flag(),
        False,
        "greenq's own. Senders and workers keep an index of workflows, which `app.workflow(id)` "
        "and `greenq workflow` need.",
    )
    task_max_body_bytes: int = _setting(
        validators.whole(1, _REDIS_MAX_BYTES),
        8 * _MIB,
        "greenq's own. Maximum size of a task body, before and after decompression. A larger body "
        "becomes a dead letter without being read, as does a body with more than one value for "
        "each 64 bytes of this limit.",
        unit="bytes",
    )
    task_max_dead_letter_bytes: int = _setting(
        validators.whole(1024 * 1024),
        64 * _MIB,
        "greenq's own. How much of the server's memory the dead letters of one queue may use; the "
        "oldest are dropped first. A letter that would use more than half of this limit is "
        "truncated and cannot be replayed.",
        unit="bytes",
    )
    task_dead_letter_expires: float = _setting(
        validators.lifetime(),
        30 * 86400.0,
        "greenq's own. How long dead letters are kept; 0 means no limit.",
        unit="s",
    )
    task_max_result_bytes: int = _setting(
        validators.whole(1, _REDIS_MAX_BYTES),
        64 * _MIB,
        "greenq's own. Maximum size of a result. A task whose result is larger fails with an "
        "error that says so, and larger results are not read.",
        unit="bytes",
    )
    enable_utc: bool = _setting(
        validators.flag(),
        True,
        "Accepted for compatibility but has no effect: times on the wire always carry their UTC "
        "offset.",
    )
    timezone: str = _setting(
        validators.timezone(),
        "UTC",
        "Time zone of the times that greenq writes. Times without a zone are read as UTC, as in "
        "Celery.",
        none_ok=True,
    )
    imports: tuple[str, ...] = _setting(
        validators.texts(validators.text()),
        (),
        "Modules that a worker imports at startup because they define tasks.",
    )
    include: tuple[str, ...] = _setting(
        validators.texts(validators.text()), (), "Further modules, in addition to `imports`."
    )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class WorkerConfig(Section):
    """How a worker process runs."""

    worker_concurrency: int | None = _setting(
        validators.optional(validators.whole(1)),
        None,
        f"Number of tasks that run at once, each in a greenlet; None means {DEFAULT_CONCURRENCY}.",
    )
    worker_prefetch_multiplier: int = _setting(
        validators.whole(1),
        1,
        "Number of messages held for each greenlet, including the running one. (Celery: 4.) "
        "Messages are fetched in cheap batches anyway, and no other worker can start messages "
        "that this worker holds in reserve.",
    )
    worker_autoscale_keepalive: float = _setting(
        validators.seconds(),
        30.0,
        "greenq's own. How long a pool stays large after the load has fallen.",
        unit="s",
    )
    worker_autoscale_interval: float = _setting(
        validators.seconds(zero_ok=False),
        0.5,
        "greenq's own. Time between autoscaling decisions.",
        unit="s",
    )
    worker_autoscale_adaptive: bool = _setting(
        validators.flag(),
        False,
        "greenq's own. With --autoscale, find the number of concurrent tasks beyond which "
        "throughput no longer grows, and do not exceed it. Use this with services that do not "
        "complete more calls per second when more calls are made at once.",
    )
    worker_processes_interval: float = _setting(
        validators.seconds(zero_ok=False),
        2.0,
        "greenq's own. With --processes, the time between reports of a process's load.",
        unit="s",
    )
    worker_processes_grow_after: float = _setting(
        validators.seconds(),
        10.0,
        "greenq's own. With --processes, start another process when the hubs have been saturated "
        "for this long.",
        unit="s",
    )
    worker_processes_keepalive: float = _setting(
        validators.seconds(),
        120.0,
        "greenq's own. With --processes, drain a process when one process fewer would have been "
        "enough for this long.",
        unit="s",
    )
    worker_send_task_events: bool = _setting(
        validators.flag(), False, "Workers publish task events, as with -E."
    )
    worker_enable_remote_control: bool | str = _setting(
        validators.flag_or("inspect"),
        True,
        "Workers reply to `greenq inspect`, `greenq control`, and Celery's equivalents. With "
        "`inspect`, they run only inspect commands and refuse those that would change something.",
    )
    worker_show_arguments: bool = _setting(
        validators.flag(),
        True,
        "greenq's own. `inspect` shows the tasks' arguments. If False, it shows the `argsrepr` "
        "and `kwargsrepr` that the sender gave.",
    )
    worker_remote_control_pcre: bool = _setting(
        validators.flag(),
        False,
        "greenq's own. Remote control requests may select workers by a regular expression (matcher "
        "pcre). Anyone who is allowed to publish can send such an expression; expressions that "
        "could take long are refused.",
    )
    worker_disable_rate_limits: bool = _setting(
        validators.flag(), False, "Start tasks regardless of their rate limits."
    )
    worker_direct: bool = _setting(
        validators.flag(),
        False,
        "Each worker also has its own queue, named after its node with the suffix .dq2.",
    )
    worker_agent: str | None = _setting(
        validators.optional(validators.text()),
        None,
        "A class, as module:name, that is created, started and stopped with the consumer.",
    )
    worker_hub_lag_warning: float = _setting(
        validators.seconds(zero_ok=False),
        1.0,
        "greenq's own. Log the name of a task that keeps all others waiting for this long.",
        unit="s",
    )
    worker_hub_blocked_limit: float = _setting(
        validators.seconds(),
        600.0,
        "greenq's own. A worker whose hub has been blocked by one task for this long logs all "
        "stacks and exits (exit code 1), and its messages go to other workers; 0 means never.",
        unit="s",
    )
    worker_health_address: str | None = _setting(
        validators.optional(validators.address()),
        None,
        "greenq's own. The address where the worker serves `/livez`, `/readyz`, `/startupz` and "
        "`/stats.json`: a port (on 127.0.0.1), a host and a port, or `unix:/path`; None means that "
        "it does not serve them.",
    )
    worker_metrics_address: str | None = _setting(
        validators.optional(validators.address()),
        None,
        "greenq's own. The address where the worker serves `/metrics` for Prometheus, and the same "
        "pages as at `worker_health_address`; the two addresses may be the same. Needs "
        "`greenq[metrics]`.",
    )
    worker_metrics_names: tuple[str, ...] = _setting(
        validators.texts(validators.choice("greenq", "celery-exporter", "flower")),
        ("greenq",),
        "greenq's own. Whose names the metrics have: `greenq` and, for existing dashboards, "
        "`celery-exporter` and `flower`.",
    )
    worker_lease: float = _setting(
        validators.seconds(zero_ok=False),
        3.0,
        "greenq's own. A worker that has not renewed its lease for this long is considered dead, "
        "and its messages go back to their queues.",
        unit="s",
    )
    worker_task_locals: str = _setting(
        validators.choice("clear", "keep"),
        "clear",
        "greenq's own. With `clear`, values that a task leaves in `threading.local` are removed "
        "before the next task starts. With `keep`, a later task on the same greenlet finds these "
        "values, as in a thread pool.",
    )
    worker_silence_limit: float = _setting(
        validators.seconds(),
        60.0,
        "greenq's own. How long a worker keeps its messages if its process is alive but runs no "
        "Python code, because a call holds the GIL or the process is suspended; 0 means "
        "`worker_lease`.",
        unit="s",
    )
    worker_shutdown_grace: float = _setting(
        validators.seconds(),
        30.0,
        "greenq's own. How long running tasks may take to finish after SIGTERM; unfinished tasks "
        "go back to their queues. (Celery waits indefinitely; its worker_soft_shutdown_timeout "
        "means something else.)",
        unit="s",
    )
    worker_state_db: str | None = _setting(
        validators.optional(validators.text()),
        None,
        "A file that keeps revoked tasks and the logical clock across a restart. Each worker needs "
        "its own file: %p is the node name, %n its part before the @, %h the host. The format is "
        "JSON; Celery's file, a shelve, is refused.",
    )
    worker_revoke_expires: float = _setting(
        validators.seconds(zero_ok=False),
        604_800.0,
        "greenq's own. How long a revocation is kept in the worker, on the server and in "
        "`worker_state_db`. Make this longer than the longest time that tasks wait for their ETA. "
        "(Celery: 3 hours.)",
        unit="s",
    )
    worker_max_tasks_per_child: int | None = _setting(
        validators.optional(validators.whole(1)),
        None,
        "End the worker after this many tasks, so that a new one can replace it; None means never. "
        "All its tasks count, since it has no child processes (Celery: those of each child).",
    )
    worker_max_memory_per_child: int | None = _setting(
        validators.optional(validators.whole(1)),
        None,
        "End the worker when its resident memory reaches this size; None means never. (Celery: "
        "that of each child.)",
        unit="KiB",
    )
    worker_max_lifetime: float | None = _setting(
        validators.optional(validators.seconds(zero_ok=False)),
        None,
        "greenq's own. End the worker after this much time; None means never.",
        unit="s",
    )
    worker_recycle_jitter: float = _setting(
        validators.share(),
        0.1,
        "greenq's own. Each worker lowers its limits on tasks, memory and lifetime by a random "
        "fraction of up to this value, so that workers started together do not end together.",
    )
    worker_recycle_at_once: int = _setting(
        validators.whole(1),
        1,
        "greenq's own. How many of the workers with the same queues may restart at the same time "
        "because of a limit on tasks, memory or lifetime. If there are several workers, at least "
        "one always keeps running.",
    )
    worker_recycle_by: str = _setting(
        validators.choice("exit", "exec"),
        "exit",
        "greenq's own. How a worker ends when it reaches a limit on tasks, memory or lifetime: "
        "`exit` ends the process with exit code 75, so that a supervisor starts the worker again; "
        "`exec` restarts the worker in the same process, as SIGHUP does.",
    )
    worker_log_color: bool | None = _setting(
        validators.optional(validators.flag()),
        None,
        "Colour the log; None means to colour it only if it goes to a terminal.",
    )
    worker_log_json: bool = _setting(
        validators.flag(),
        False,
        "greenq's own. Write each line of the log as a JSON object. The settings for the formats "
        "of lines and times then have no effect.",
    )
    worker_log_format: str = _setting(
        validators.log_format(),
        "[%(asctime)s: %(levelname)s/%(processName)s] %(message)s",
        "The format of log lines, as for Python's logging.",
        none_ok=True,
    )
    worker_task_log_format: str = _setting(
        validators.log_format(),
        "[%(asctime)s: %(levelname)s/%(processName)s] %(task_name)s[%(task_id)s]: %(message)s",
        "The format of lines logged in tasks, with task_name, task_id and root_id.",
        none_ok=True,
    )
    worker_log_datefmt: str | None = _setting(
        validators.optional(validators.text()),
        None,
        "The format of the time in log lines, as for time.strftime.",
    )
    worker_task_log_datefmt: str | None = _setting(
        validators.optional(validators.text()),
        None,
        "The format of the time in lines logged in tasks, as for time.strftime.",
    )
    worker_redirect_stdouts: bool = _setting(
        validators.flag(),
        True,
        "Log what tasks write to sys.stdout and sys.stderr, with the task's name and id.",
    )
    worker_redirect_stdouts_level: str = _setting(
        validators.log_level(), "WARNING", "The log level of redirected output."
    )
    worker_hijack_root_logger: bool = _setting(
        validators.flag(), True, "Set up the root logger, replacing its existing handlers."
    )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SecurityConfig(Section):
    """Signatures of messages, results and remote control; see docs/signing.md."""

    security_signing_key: bytes | None = _setting(
        validators.optional(validators.signing_key()),
        None,
        "greenq's own. The key that signs everything that workers and readers of results act on; "
        "unsigned data is refused. It is text or bytes of at least 32 bytes, or @ and the path of "
        "a file with such a key. None means no signatures. Never shown.",
    )
    security_accepted_signing_keys: tuple[bytes, ...] = _setting(
        validators.texts(validators.signing_key()),
        (),
        "greenq's own. Further keys whose signatures are accepted while keys are being changed; "
        "they are never used to sign. Never shown.",
        none_ok=True,
    )
    security_require_signatures: bool = _setting(
        validators.flag(),
        True,
        "greenq's own. If there is a signing key, refuse unsigned data. Set this to False while "
        "signing is being introduced: unsigned data is then also accepted, but a wrong signature "
        "is still refused.",
    )

    def __post_init__(self) -> None:
        """Also require a signing key if further keys are given."""
        Section.__post_init__(self)
        if self.security_accepted_signing_keys and self.security_signing_key is None:
            name = "security_accepted_signing_keys"
            reason = "needs a security_signing_key, since these keys never sign"
            raise ConfigError([Problem(name, validators.shown(name, ()), reason)])


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class BeatConfig(Section):
    """The tasks that `greenq beat`, or a worker with -B, sends periodically."""

    beat_schedule: Mapping[str, Mapping[str, Any]] = _setting(
        validators.beat_schedule(),
        None,
        "Periodic tasks by name: [their fields](periodic-tasks.md).",
    )


# --- the whole -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings, by section."""

    broker: BrokerConfig = field(default_factory=BrokerConfig)
    result: ResultConfig = field(default_factory=ResultConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    security: SecurityConfig = field(default_factory=SecurityConfig)
    beat: BeatConfig = field(default_factory=BeatConfig)

    @classmethod
    def build(cls, settings: Mapping[str, object]) -> Self:
        """Build the configuration from `settings`; all other settings keep their defaults.

        Raises:
            ConfigError: names are unknown or values are wrong; the error lists all of them.
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

        Raises:
            UnknownSetting: there is no such setting.
        """
        if name not in _OWNERS:
            raise UnknownSetting(name, unknown_reason(name))
        return getattr(getattr(self, _OWNERS[name]), name)


SECTIONS: Final[Mapping[str, type[Section]]] = {
    "broker": BrokerConfig,
    "result": ResultConfig,
    "task": TaskConfig,
    "worker": WorkerConfig,
    "security": SecurityConfig,
    "beat": BeatConfig,
}
_OWNERS: Final[Mapping[str, str]] = {
    name: part for part, section in SECTIONS.items() for name in _names(section)
}


class Sifted(NamedTuple):
    """Settings sorted into usable ones, notes and problems.

    Attributes:
        kept: settings that greenq has.
        notes: a warning for each Celery setting that has no effect here.
        problems: unknown names, and Celery settings that must not be silently ignored.
    """

    kept: dict[str, object]
    notes: tuple[str, ...]
    problems: tuple[Problem, ...]


def sift(settings: Mapping[str, object]) -> Sifted:
    """Separate greenq's settings from those that only Celery has and from wrong names."""
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
    """Remove from `values` the settings that only Celery has; `kept` contains all others."""
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
            reason = f"is a Celery setting: {about.advice}"
            problems.append(Problem(name, validators.shown(name, value), reason))
    return Sifted(rest, tuple(notes), tuple(problems))


def _asks_for_nothing(value: object, default: object) -> bool:
    return value is None or (not value and not default) or bool(value == default)


def unknown_reason(name: str, known: Iterable[str] | None = None) -> str:
    """Return why there is no setting `name`, and suggest the one that was probably meant."""
    known = _OWNERS if known is None else known
    about = celery_names.SETTINGS.get(name)
    if about is not None:
        return f"is a Celery setting: {about.advice}"
    modern = celery_names.modern_name(name, _OWNERS)
    if known is _OWNERS and modern is not None:
        return f"is an old name; it is now {modern}"
    near = nearest(name, known, cutoff=0.75)
    return "greenq has no such setting" + (f"; did you mean {near}?" if near else "")


def nearest(name: str, known: Iterable[str] | None = None, *, cutoff: float = 0.85) -> str | None:
    """Return the setting whose name is closest to `name`, or None."""
    return suggest.nearest(name.lower(), _OWNERS if known is None else known, cutoff=cutoff)


def _unknown(name: str, value: object, known: Iterable[str]) -> Problem:
    """Return the problem with an unknown setting `name`, with a suggestion."""
    return Problem(name, validators.shown(name, value), unknown_reason(name, known))
