"""Celery's settings that greenq does not have, with advice for each, and old names of settings.

A name that is neither in these tables nor a greenq setting is no setting of Celery's. A setting at
Celery's own default value has no effect, so it is accepted silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple


class Foreign(NamedTuple):
    """A Celery setting that greenq does not have.

    Attributes:
        default: Celery's default value.
        harmless: whether it can be ignored because no task or sender relies on it.
        advice: why it is not needed, what replaces it, or that it is not supported yet.
    """

    default: Any
    harmless: bool
    advice: str


_OTHER_STORE = "not needed: results are kept in Redis or Valkey (result_backend)"
_BEAT = "not needed: greenq's beat keeps its state on the server, and any number of beats can run"
_AMQP = "not needed: it concerns AMQP, and greenq uses only Redis and Valkey"
_BROKER_PART = "use broker_url instead, such as redis://user:password@host:6379/0"
_RESULT_PART = "no effect: use result_backend instead, such as redis://user:password@host:6379/0"
_RESULT_SOCKET = (
    "not needed: the timeouts in broker_transport_options also apply to the results server"
)
_WRITTEN_AGAIN = "not needed: results are written again until the server has them"
_CHORDS = "not needed: nothing waits for a chord; its last part sends the body"
_APART = "not supported; separate clusters by global_keyprefix in broker_transport_options instead"
_SIGNED = "use security_signing_key instead, which also signs results and remote control"
_NO_CHILDREN = "not needed: tasks are greenlets in one process; there are no child processes"
_MAILBOXES = "not needed: the queues of remote control and events disappear with their readers"

_HARMLESS: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    (
        _OTHER_STORE,
        {
            "arangodb_backend_settings": None,
            "azureblockblob_base_path": "",
            "azureblockblob_connection_timeout": 20,
            "azureblockblob_container_name": "celery",
            "azureblockblob_read_timeout": 120,
            "azureblockblob_retry_increment_base": 2,
            "azureblockblob_retry_initial_backoff_sec": 2,
            "azureblockblob_retry_max_attempts": 3,
            "cache_backend": None,
            "cache_backend_options": {},
            "cassandra_auth_kwargs": None,
            "cassandra_auth_provider": None,
            "cassandra_bundle_path": None,
            "cassandra_entry_ttl": None,
            "cassandra_keyspace": None,
            "cassandra_options": {},
            "cassandra_port": None,
            "cassandra_read_consistency": None,
            "cassandra_servers": None,
            "cassandra_table": None,
            "cassandra_write_consistency": None,
            "cosmosdbsql_collection_name": "celerycol",
            "cosmosdbsql_consistency_level": "Session",
            "cosmosdbsql_database_name": "celerydb",
            "cosmosdbsql_max_retry_attempts": 9,
            "cosmosdbsql_max_retry_wait_time": 30,
            "couchbase_backend_settings": None,
            "database_create_tables_at_setup": True,
            "database_engine_callback": None,
            "database_engine_options": {"pool_pre_ping": True, "pool_recycle": 3600},
            "database_short_lived_sessions": False,
            "database_table_names": None,
            "database_table_schemas": None,
            "database_url": None,
            "elasticsearch_max_retries": None,
            "elasticsearch_retry_on_timeout": None,
            "elasticsearch_save_meta_as_text": True,
            "elasticsearch_timeout": None,
            "gcs_base_path": "",
            "gcs_bucket": None,
            "gcs_project": None,
            "gcs_ttl": 0,
            "mongodb_backend_settings": None,
            "s3_access_key_id": None,
            "s3_base_path": None,
            "s3_bucket": None,
            "s3_endpoint_url": None,
            "s3_region": None,
            "s3_secret_access_key": None,
            "result_exchange": "celeryresults",
            "result_exchange_type": "direct",
            "result_persistent": None,
        },
    ),
    (
        'use "missed": "skip(seconds)" in the entries of beat_schedule',
        {"beat_cron_starting_deadline": None},
    ),
    (
        "not supported: greenq's beat has one scheduler, and does not send entries in another "
        "scheduler's database; add them to beat_schedule, or with app.periodic.add",
        {"beat_scheduler": "celery.beat:PersistentScheduler"},
    ),
    (
        _BEAT,
        {
            "beat_enable_remote_control": False,
            "beat_max_loop_interval": 0,
            "beat_remote_control_max_tick_age": None,
            "beat_schedule_filename": "celerybeat-schedule",
            "beat_sync_every": 0,
        },
    ),
    (
        _AMQP,
        {
            "broker_channel_error_retry": False,
            "broker_login_method": None,
            "broker_native_delayed_delivery_queue_type": "quorum",
            "task_create_missing_queue_exchange_type": None,
            "task_create_missing_queue_type": "classic",
            "task_default_delivery_mode": 2,
            "task_default_queue_type": "classic",
            "worker_detect_quorum_queues": True,
        },
    ),
    (
        "not needed: health_check_interval and socket_timeout in broker_transport_options detect a "
        "silent server",
        {"broker_heartbeat": 120, "broker_heartbeat_checkrate": 3.0},
    ),
    (
        "not needed: broker_url names one server; several are not supported yet",
        {"broker_failover_strategy": None},
    ),
    (
        "not needed: a call takes no longer than the sum of broker_connection_timeout and "
        "socket_timeout",
        {"broker_pool_acquire_timeout": None},
    ),
    (
        _MAILBOXES,
        {
            "control_queue_durable": False,
            "control_queue_exclusive": True,
            "control_queue_expires": 10.0,
            "control_queue_ttl": 300.0,
            "event_queue_durable": False,
            "event_queue_exclusive": True,
            "event_queue_expires": 60.0,
            "event_queue_prefix": "celeryev",
            "event_queue_ttl": 5.0,
        },
    ),
    (
        _RESULT_PART,
        {
            "redis_db": None,
            "redis_host": None,
            "redis_password": None,
            "redis_port": None,
            "redis_username": None,
        },
    ),
    ("not needed: broker_pool_limit limits the connections", {"redis_max_connections": None}),
    (
        _RESULT_SOCKET,
        {
            "redis_socket_connect_timeout": None,
            "redis_socket_keepalive": False,
            "redis_socket_timeout": 120.0,
        },
    ),
    (
        _WRITTEN_AGAIN,
        {
            "redis_retry_on_timeout": False,
            "result_backend_always_retry": False,
            "result_backend_base_sleep_between_retries_ms": 10,
            "result_backend_max_retries": float("inf"),
            "result_backend_max_sleep_between_retries_ms": 10000,
        },
    ),
    ("not needed: each handle keeps the final result after reading it", {"result_cache_max": -1}),
    (
        _CHORDS,
        {
            "result_chord_join_timeout": 3.0,
            "result_chord_retry_interval": 1.0,
        },
    ),
    (
        "not needed: priorities are 0 to 9 in every queue (priority_steps in "
        "broker_transport_options)",
        {"task_queue_max_priority": None},
    ),
    ("not needed: failures always carry their traceback", {"task_remote_tracebacks": False}),
    ("not needed: argument representations are limited by length", {"task_repr_maxlevels": 3}),
    (
        _NO_CHILDREN,
        {
            "worker_lost_wait": 10.0,
            "worker_pool_putlocks": True,
            "worker_pool_restarts": False,
            "worker_pool_start_method": "fork",
            "worker_proc_alive_timeout": 4.0,
        },
    ),
    ("not needed: greenq's pool always consists of greenlets", {"worker_pool": "prefork"}),
    (
        "not needed: a worker's lease decides whether it may continue with the messages it holds",
        {"worker_cancel_long_running_tasks_on_connection_loss": False},
    ),
    (
        "not needed: with worker_prefetch_multiplier = 1, the default here, a worker holds no more "
        "than it can run at once",
        {"worker_disable_prefetch": False, "worker_enable_prefetch_count_reduction": True},
    ),
    (
        "not needed: tasks unfinished after worker_shutdown_grace go back to their queues",
        {"worker_enable_soft_shutdown_on_idle": False},
    ),
    (
        "not needed: tasks due later than task_eta_horizon wait on the server",
        {"worker_eta_task_limit": None},
    ),
    (
        "not needed: the event loop provides the timer",
        {"worker_timer": None, "worker_timer_precision": 1.0},
    ),
)

_REFUSED: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("use broker_connection_max_retries = 0 instead", {"broker_connection_retry": True}),
    (
        _BROKER_PART,
        {
            "broker_host": None,
            "broker_password": None,
            "broker_port": None,
            "broker_transport": None,
            "broker_user": None,
            "broker_vhost": None,
        },
    ),
    (
        "not supported: use broker_url instead, for both reading and writing",
        {"broker_read_url": None, "broker_write_url": None},
    ),
    (
        "use rediss:// in broker_url instead, such as rediss://host:6379/0?ssl_ca_certs=/ca.pem",
        {"broker_use_ssl": False},
    ),
    (_APART, {"control_exchange": "celery", "event_exchange": "celeryev"}),
    ("not supported: events are written as JSON", {"event_serializer": "json"}),
    (
        "use rediss:// in result_backend instead, such as "
        "rediss://host:6379/0?ssl_ca_certs=/ca.pem",
        {"redis_backend_use_ssl": None},
    ),
    (
        _SIGNED,
        {
            "security_cert_store": None,
            "security_certificate": None,
            "security_digest": "sha256",
            "security_key": None,
            "security_key_password": None,
        },
    ),
    (
        "use task_acks_on_failure_or_timeout instead, which applies to both",
        {"task_acks_on_failure": None, "task_acks_on_timeout": None},
    ),
    ("not supported: greenq writes task messages of version 2", {"task_protocol": 2}),
    ("use task_reject_on_worker_lost instead", {"task_retry_on_worker_lost": False}),
    (
        "not supported: use worker steps instead (app.steps)",
        {
            "worker_autoscaler": "celery.worker.autoscale:Autoscaler",
            "worker_consumer": "celery.worker.consumer:Consumer",
        },
    ),
    (
        "not supported yet; a task that is delivered again runs again",
        {"worker_deduplicate_successful_tasks": False},
    ),
    ("use worker_shutdown_grace instead", {"worker_soft_shutdown_timeout": 0.0}),
)

SETTINGS: Final[Mapping[str, Foreign]] = {
    name: Foreign(default, harmless, advice)
    for harmless, groups in ((True, _HARMLESS), (False, _REFUSED))
    for advice, names in groups
    for name, default in names.items()
}
"""All Celery settings that greenq does not have."""

_AGREE = "not supported: greenq uses Celery's own name"
_RECONNECTS = "not needed: set broker_connection_max_retries and task_publish_retry_policy instead"
TRANSPORT_OPTIONS: Final[Mapping[str, Foreign]] = {
    "ack_emulation": Foreign(True, False, "not supported: messages are always acknowledged"),
    "fanout_patterns": Foreign(True, False, "not supported: broadcast topics are always patterns"),
    "fanout_prefix": Foreign(True, False, "not supported: broadcasts use Celery's own prefix"),
    "interval_max": Foreign(None, True, _RECONNECTS),
    "interval_start": Foreign(None, True, _RECONNECTS),
    "interval_step": Foreign(None, True, _RECONNECTS),
    "max_connections": Foreign(10, True, "not needed: broker_pool_limit limits the connections"),
    "max_retries": Foreign(None, True, _RECONNECTS),
    "polling_interval": Foreign(None, True, "not needed: greenq waits instead of polling"),
    "retry_on_timeout": Foreign(None, True, _RECONNECTS),
    "master_name": Foreign(None, False, "Sentinel is not supported yet"),
    "sentinel_kwargs": Foreign(None, False, "Sentinel is not supported yet"),
    "unacked_index_key": Foreign("unacked_index", False, _AGREE),
    "unacked_key": Foreign("unacked", False, _AGREE),
    "unacked_mutex_expire": Foreign(300, True, "not needed: leases show which messages are free"),
    "unacked_mutex_key": Foreign("unacked_mutex", False, _AGREE),
    "unacked_restore_limit": Foreign(None, True, "not needed: leases show which messages are free"),
}
"""The options of Celery's Redis transport that `broker_transport_options` does not have here."""

_ENVELOPE = "not supported: greenq writes the message itself"
_OWN_CONNECTIONS = "not needed: the app manages its own connections"
SEND_OPTIONS: Final[Mapping[str, Foreign]] = {
    "callbacks": Foreign(None, False, "use link instead"),
    "confirm_timeout": Foreign(None, False, "not supported: it concerns AMQP"),
    "connection": Foreign(None, False, _OWN_CONNECTIONS),
    "content_encoding": Foreign(None, False, "use serializer instead"),
    "content_type": Foreign(None, False, "use serializer instead"),
    "create_sent_event": Foreign(False, False, "use the setting task_send_sent_event instead"),
    "declare": Foreign(None, False, "not needed: a queue exists once it has a message"),
    "errbacks": Foreign(None, False, "use link_error instead"),
    "event_dispatcher": Foreign(None, False, _OWN_CONNECTIONS),
    "expiration": Foreign(None, False, "use expires instead"),
    "immediate": Foreign(None, False, "not supported: it concerns AMQP"),
    "mandatory": Foreign(None, False, "not supported: it concerns AMQP"),
    "now": Foreign(None, False, "not supported: countdown and expires count from the sending"),
    "origin": Foreign(None, False, _ENVELOPE),
    "producer": Foreign(None, False, _OWN_CONNECTIONS),
    "publisher": Foreign(None, False, _OWN_CONNECTIONS),
    "result_cls": Foreign(None, False, "not supported: every handle is an AsyncResult"),
    "retries": Foreign(0, False, "not supported: a task being sent has no retries yet"),
    "route_name": Foreign(None, False, "not supported: name the queue instead"),
    "router": Foreign(None, False, "not supported: name the queue instead"),
    "timeout": Foreign(None, False, "use socket_timeout in broker_transport_options instead"),
    "timezone": Foreign(None, False, "give an eta or expires with a time zone instead"),
}
"""The options of Celery's ``apply_async`` and ``send_task`` that greenq does not have."""

_LINKS = "link each call instead, as in add.s(2).link(other.s()), or use the hooks of a Task class"
_ONE_SETTING = "use acks_on_failure_or_timeout instead, which applies to both"
_OWN_EXECUTION = "not supported: use worker steps instead (app.steps)"
TASK_OPTIONS: Final[Mapping[str, Foreign]] = {
    "Request": Foreign("celery.worker.request:Request", False, _OWN_EXECUTION),
    "Strategy": Foreign("celery.worker.strategy:default", False, _OWN_EXECUTION),
    "acks_on_failure": Foreign(True, False, _ONE_SETTING),
    "acks_on_timeout": Foreign(True, False, _ONE_SETTING),
    "backend": Foreign(None, False, "an app stores all results in one place, result_backend"),
    "exchange_type": Foreign(None, False, "name the exchange's type in task_queues instead"),
    "immediate": Foreign(None, False, "it concerns AMQP"),
    "link": Foreign(None, False, _LINKS),
    "link_error": Foreign(None, False, _LINKS),
    "mandatory": Foreign(None, False, "it concerns AMQP"),
    "resultrepr_maxsize": Foreign(1024, False, "the length of result representations is fixed"),
    "retry_on_worker_lost": Foreign(None, False, "use reject_on_worker_lost instead"),
    "send_events": Foreign(
        True, False, "a worker sends events either for all tasks or for none (-E)"
    ),
    "trail": Foreign(True, False, "a task's children are all the tasks that it has sent"),
}
"""The options of Celery's ``@app.task`` that greenq does not have."""


def asks_for_something(known: Foreign, value: object) -> bool:
    """Return whether a value differs from Celery's default and is not None or empty."""
    return value not in (None, known.default) and bool(value or known.default)


_NO_CONNECTION = "not needed: sending, app.events.Receiver and app.control connect by themselves"
_INTERNAL = "not supported: the app does this itself"
ATTRIBUTES: Final[Mapping[str, Mapping[str, str]]] = {
    "Task": {
        **dict.fromkeys(
            (
                "add_around", "annotate", "bind", "from_config", "pop_request", "push_request",
                "request_stack", "start_strategy",
            ),
            _INTERNAL,
        ),
        **dict.fromkeys(
            ("signature_from_request", "subtask_from_request"),
            "use self.retry() to run again, or self.signature(...) to send another call",
        ),
        "Request": _OWN_EXECUTION,
        "Strategy": _OWN_EXECUTION,
        "abstract": "not needed: a class without run() is not a task",
        "acks_on_failure": _ONE_SETTING,
        "acks_on_timeout": _ONE_SETTING,
        "on_replace": "override replace() instead",
        "resultrepr_maxsize": "the length of result representations is fixed",
        "retry_on_worker_lost": "use reject_on_worker_lost instead",
        "send_events": "a worker sends events either for all tasks or for none (-E)",
        "trail": "a task's children are all the tasks that it has sent",
    },
    "Greenq": {
        **dict.fromkeys(
            (
                "amqp", "broker_connection", "connection", "connection_for_read",
                "connection_for_write", "connection_or_acquire", "pool", "producer_or_acquire",
                "producer_pool",
            ),
            _NO_CONNECTION,
        ),
        **dict.fromkeys(
            (
                "IS_WINDOWS", "IS_macOS", "Pickler", "SYSTEM", "amqp_cls", "autofinalize",
                "backend_cls", "builtin_fixups", "configured", "control_cls", "create_task_cls",
                "events_cls", "finalized", "fixups", "loader_cls", "log_cls", "namespace", "oid",
                "prepare_config", "registry_cls", "set_as_current", "subclass_with_self",
                "thread_oid", "use_fast_trace_task",
            ),
            _INTERNAL,
        ),
        "Beat": "run `greenq beat` or `greenq worker -B` instead",
        "WorkController": "use greenq.worker.Worker instead",
        "Worker": "run `greenq worker -A module` instead",
        "add_defaults": "use app.conf.update instead",
        "annotations": "use app.conf.task_annotations instead",
        "bugreport": "run `greenq report` instead",
        "config_from_cmdline": "give settings in the environment: GREENQ_TASK_ACKS_LATE=false",
        "default_connection": _NO_CONNECTION,
        "default_producer": _NO_CONNECTION,
        "either": "read app.conf instead",
        "on_init": "override __init__ instead",
        "select_queues": "use `greenq worker -Q` instead",
        "setup_security": "use security_signing_key instead",
        "strict_typing": "use the task option typing instead",
        "task_cls": "use app.Task instead",
        "type_checker": "use the task option typing instead",
        "uses_utc_timezone": "compare app.timezone instead",
        "loader": "not supported: app.import_task_modules() imports the tasks",
        "log": "not supported: use greenq.utils.log.get_task_logger and the module logging",
        "start": "run `greenq` instead",
        "worker_main": "run `greenq worker -A module` instead",
    },
    "AsyncResult": {
        "on_ready": "not supported: use then() instead",
        "throw": "use maybe_throw() instead",
    },
    "Events": {
        "Dispatcher": "use app.events.send, or a task's send_event, instead",
        "default_dispatcher": "use app.events.send, or a task's send_event, instead",
    },
}  # fmt: skip
"""Attributes of Celery's classes that greenq's classes lack, by class and name, with advice."""


class _NotHere:
    """An attribute that raises an AttributeError with advice, so `hasattr` returns False."""

    def __init__(self, advice: str) -> None:
        self.advice = advice

    def __set_name__(self, owner: type, name: str) -> None:
        self.message = f"{owner.__name__} has no attribute {name!r}: {self.advice}"

    def __get__(self, instance: object, owner: type) -> None:
        raise AttributeError(self.message)


def name_what_is_not_here(owner: type) -> None:
    """Add to a class the attributes that only Celery's class has; reading one raises an error.

    The error advises what to use instead. A `__getattr__` would hide errors that occur inside the
    properties of users' subclasses.
    """
    for name, advice in ATTRIBUTES[owner.__name__].items():
        absent = _NotHere(advice)
        absent.__set_name__(owner, name)
        setattr(owner, name, absent)


# Old names of settings whose new names cannot be derived from the first word of the old name.
_RENAMED: Final[Mapping[str, str]] = {
    "celery_eager_propagates_exceptions": "task_eager_propagates",
    "celery_max_cached_results": "result_cache_max",
    "celery_message_compression": "task_compression",
    "celery_result_db_short_lived_sessions": "database_short_lived_sessions",
    "celery_result_db_tablenames": "database_table_names",
    "celery_result_dburi": "database_url",
    "celery_result_engine_options": "database_engine_options",
    "celery_send_events": "worker_send_task_events",
    "celery_send_task_sent_event": "task_send_sent_event",
    "celery_task_result_expires": "result_expires",
    "celeryd_worker_lost_wait": "worker_lost_wait",
}
_OLD_PREFIXES: Final = ("celerybeat_", "celeryd_", "celery_")
_SECTIONS: Final = ("", "task_", "worker_", "beat_", "result_")


def modern_name(name: str, known: Mapping[str, object]) -> str | None:
    """Return the current name of a setting given in an old spelling, or None.

    Args:
        name: the name as written, such as ``CELERYD_CONCURRENCY``, ``BROKER_URL`` or ``ACKS_LATE``.
        known: greenq's settings.
    """
    low = name.lower()
    renamed = _RENAMED.get(low) or _RENAMED.get(f"celery_{low}")
    tails = [renamed] if renamed else []
    if low.startswith("celerybeat_"):
        tails.append("beat_" + low.removeprefix("celerybeat_"))
    tails.append(low)
    tails += [low.removeprefix(each) for each in _OLD_PREFIXES if low.startswith(each)]
    candidates = (section + tail for tail in tails for section in _SECTIONS)
    return next(
        (each for each in candidates if each != name and (each in known or each in SETTINGS)), None
    )
