"""Commands that show a worker's state and tasks."""

from __future__ import annotations

import os
import platform
import resource
import time
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from greenq.commands.arguments import PAGE, number, page_of, texts
from greenq.commands.registry import inspect_command, ok
from greenq.config import validators
from greenq.config.settings import Config
from greenq.errors import ContentDisallowed, DecodeError, NotRegistered
from greenq.protocol.envelope import header
from greenq.protocol.limits import KEY
from greenq.protocol.serialize import saferepr
from greenq.running.request import Request
from greenq.transport.fetch import Delivery
from greenq.utils.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from greenq.app import Task
    from greenq.worker_parts.parts import Parts

# The arguments of larger messages are shown as text.
_SHOWN_BYTES = 16_384

# The maximum number of parked messages that are searched for an id.
_SEARCHED = 20_000

# The attributes of a task that `registered` may show.
_SHOWN = frozenset(
    {
        "acks_late", "exchange", "expires", "ignore_result", "max_retries", "name", "priority",
        "queue", "rate_limit", "routing_key", "serializer", "soft_time_limit", "time_limit",
        "track_started",
    }
)  # fmt: skip


@inspect_command(urgent=True)
def ping(worker: Parts, **_ignored: Any) -> dict[str, object]:
    """Reply ``pong``; if the hub is blocked, also say what blocks it."""
    blocker = worker.watch.blocking_now()
    return {"ok": "pong"} if blocker is None else {"ok": "pong", "blocked": asdict(blocker)}


@inspect_command(urgent=True)
def status(worker: Parts) -> dict[str, object]:
    """Summarize the worker's state.

    ``held`` maps each queue to the number of messages that are waiting in this worker for their
    ETA, a retry's countdown, a rate limit or a slot.
    """
    held = dict.fromkeys(worker.queues.names, 0)
    for request in list(worker.state.reserved.values()):
        if request.started_s is None:
            queue = request.delivery.queue
            held[queue] = held.get(queue, 0) + 1
    blocker = worker.watch.blocking_now()
    return {
        "ok": "ok" if blocker is None else "blocked",
        "active": worker.pool.running,
        "size": worker.pool.size,
        "waiting": worker.pool.waiting,
        "held": held,
        "processed": worker.state.total.total(),
        "uptime": round(worker.uptime_s),
        "pid": os.getpid(),
        "sw": f"greenq {__version__}",
        "queues": list(worker.queues.names),
        "paused": sorted(worker.state.paused),
        "draining": worker.tasks.draining,
        "blocked": None if blocker is None else asdict(blocker),
    }


@inspect_command(urgent=True)
def report(worker: Parts) -> dict[str, object]:
    """Describe the software, the machine and the settings as text."""
    config = worker.app.config
    lines = [
        f"software -> greenq:{__version__} py:{platform.python_version()}",
        f"platform -> system:{platform.system()} arch:{platform.machine()} "
        f"kernel:{platform.release()} imp:{platform.python_implementation()}",
        f"transport -> {worker.app.transport.broker_address}",
        f"results -> {worker.app.transport.result_address}",
        "",
        *(f"{name}: {value!r}" for name, value in _settings(config, with_defaults=False).items()),
    ]
    return ok("\n".join(lines))


@inspect_command(alias="dump_conf", urgent=True, signature="[include_defaults=False]",
    args=[("with_defaults", bool)])  # fmt: skip
def conf(worker: Parts, with_defaults: bool = False, **_ignored: Any) -> dict[str, object]:
    """Return the changed settings, or all if `with_defaults`; passwords are masked."""
    return _settings(worker.app.config, with_defaults=bool(with_defaults))


def _settings(config: Config, *, with_defaults: bool) -> dict[str, object]:
    plain = Config()
    return {
        name: _plain(validators.shown(name, config.get(name)))
        for name in sorted(Config.names())
        if with_defaults or config.get(name) != plain.get(name)
    }


def _plain(value: object) -> object:
    """Return a setting's value in a form that JSON can represent; any other value becomes text."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, tuple | list | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    return str(value)


@inspect_command(urgent=True)
def stats(worker: Parts, **_ignored: Any) -> dict[str, object]:
    """Return totals, and data about the pool, the broker and resource usage."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    found: dict[str, object] = {
        **worker.life.info(),
        "total": dict(worker.state.total),
        "pid": os.getpid(),
        # Text, as in Celery.
        "clock": str(worker.state.clock.value),
        "uptime": round(worker.uptime_s),
        "pool": {**worker.pool.info(), "timeouts": [0, 0]},
        "ignored": {
            "requests": 0 if worker.control is None else worker.control.ignored,
            "events": 0 if worker.gossip is None else worker.gossip.ignored,
        },
        "broker": _broker(worker),
        "prefetch_count": worker.pool.size * worker.app.config.worker.worker_prefetch_multiplier,
        "rusage": {
            name.removeprefix("ru_"): getattr(usage, name)
            for name in dir(usage)
            if name.startswith("ru_")
        },
    }
    signer = worker.app.transport.signer
    if signer is not None:
        found["refused_signatures"] = dict(signer.refused)
    if worker.autoscaler is not None:
        found["autoscaler"] = worker.autoscaler.info()
    return found


def _broker(worker: Parts) -> dict[str, object]:
    """Return the broker's address in Celery's form, without its password."""
    config = worker.app.config.broker
    parts = urlsplit(config.broker_url)
    is_tcp = parts.scheme in ("redis", "rediss", "valkey", "valkeys")
    return {
        "hostname": parts.hostname if is_tcp else worker.app.transport.broker_address,
        "userid": unquote(parts.username) if parts.username else None,
        "virtual_host": str(worker.app.transport.keys.db),
        "port": (parts.port or 6379) if is_tcp else None,
        "insist": False,
        "ssl": parts.scheme in ("rediss", "valkeys"),
        "transport": "redis",
        "connect_timeout": config.broker_connection_timeout,
        "transport_options": {},
        "login_method": None,
        "uri_prefix": None,
        "heartbeat": 0.0,
        "failover_strategy": "round-robin",
        "alternates": [],
        "credential_provider": None,
    }


@inspect_command(urgent=True)
def clock(worker: Parts, **_ignored: Any) -> dict[str, object]:
    """Return the logical clock."""
    return {"clock": worker.state.clock.value}


@inspect_command()
def hello(worker: Parts, from_node: str, revoked: object = None, **_ignored: Any) -> object:
    """Exchange revoked ids with a starting worker; return None if this worker sent the request."""
    if from_node == worker.hostname:
        return None
    if isinstance(revoked, list | dict):
        worker.state.revoked.update(each for each in revoked if KEY.takes(each))
    return {"revoked": list(worker.state.revoked.ids()), "clock": worker.state.clock.forward()}


@inspect_command(alias="dump_active", urgent=True)
def active(worker: Parts, safe: bool = False, **_ignored: Any) -> list[dict[str, object]]:
    """List the running tasks."""
    running = sorted(worker.pool.active, key=lambda request: request.started_s or 0.0)
    return [_info(worker, request, safe=safe) for request in running]


@inspect_command(alias="dump_reserved", urgent=True)
def reserved(
    worker: Parts, limit: int = PAGE, offset: int = 0, **_ignored: Any
) -> list[dict[str, object]]:
    """List a page of the tasks in this worker that wait for a slot or are held by a rate limit."""
    return [_info(worker, request) for request in page_of(worker.tasks.waiting(), limit, offset)]


@inspect_command(alias="dump_schedule")
def scheduled(
    worker: Parts, limit: int = PAGE, offset: int = 0, **_ignored: Any
) -> list[dict[str, object]]:
    """List a page of the tasks that are waiting for their ETA.

    Tasks waiting in this worker come first, soonest first, followed by tasks parked on the server
    from this worker's queues. Every worker that takes from these queues lists the parked tasks, and
    any of these workers may run them.
    """
    held = worker.tasks.scheduled()
    limit, offset = number("limit", limit), number("offset", offset)
    page = [
        {"eta": eta.isoformat(), "priority": 6, "request": _info(worker, request)}
        for eta, request in page_of(held, limit, offset)
    ]
    parked = worker.app.transport.broker.parked(
        worker.queues.names, max(0, offset - len(held)), limit - len(page)
    )
    return page + [_parked(worker, *each) for each in parked]


def _parked(worker: Parts, due: float, queue: str, raw: bytes) -> dict[str, object]:
    """Describe a parked message; if it cannot be read, give only its id and its task's name."""
    try:
        eta = datetime.fromtimestamp(due, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        # No greenq sender writes such a score.
        eta = None
    try:
        message = worker.tasks.read(raw)
        task = worker.app.tasks[message.task]
    except (DecodeError, ContentDisallowed, NotRegistered):
        known = {"id": header(raw, "id"), "name": header(raw, "task"), "hostname": worker.hostname}
        return {"eta": eta, "priority": 6, "request": known}
    request = Request(Delivery("", queue, raw), message, task, acks_late=True)
    return {"eta": eta, "priority": 6, "request": _info(worker, request)}


@inspect_command(args=[("ids", str)], signature="[id1 [id2 [... [idN]]]]")
def query_task(worker: Parts, ids: object, **_ignored: Any) -> dict[str, list[object]]:
    """Return ``[state, info]`` by id for the tasks that this worker holds."""
    wanted = {ids} if isinstance(ids, str) else set(texts(ids))
    waits = {id(request) for _eta, request in worker.tasks.scheduled()}
    found: dict[str, list[object]] = {}
    for request in list(worker.state.reserved.values()):
        if request.message.id in wanted:
            is_running = request in worker.pool.active
            held = "scheduled" if id(request) in waits else "reserved"
            where = "active" if is_running else held
            found[request.message.id] = [where, _info(worker, request)]
    missing = wanted - found.keys()
    # Only the hub's thread may use these connections, and it cannot do so while it is blocked.
    if missing and worker.watch.blocking_now() is None:
        found |= _find_parked(worker, missing)
    return found


def _find_parked(worker: Parts, wanted: set[str]) -> dict[str, list[object]]:
    """Search the messages parked on the server, soonest first."""
    found: dict[str, list[object]] = {}
    broker = worker.app.transport.broker
    for offset in range(0, _SEARCHED, PAGE):
        page = list(broker.parked(worker.queues.names, offset, PAGE))
        for each in page:
            task_id = header(each[2], "id")
            if task_id in wanted and isinstance(task_id, str):
                found[task_id] = ["scheduled", _parked(worker, *each)["request"]]
        if len(page) < PAGE or len(found) == len(wanted):
            break
    return found


def _info(worker: Parts, request: Request, *, safe: bool = False) -> dict[str, object]:
    """Describe a request, with its arguments as text if `safe` or if they are large."""
    message = request.message
    hides = not worker.app.config.worker.worker_show_arguments
    safe = safe or hides or len(request.delivery.raw) > _SHOWN_BYTES
    started = request.started_s
    return {
        "id": message.id,
        "name": message.shadow or message.task,
        "args": _repr(message.argsrepr, message.args) if safe else message.args,
        "kwargs": _repr(message.kwargsrepr, message.kwargs) if safe else message.kwargs,
        "type": message.task,
        "hostname": worker.hostname,
        "time_start": None if started is None else time.time() - (time.monotonic() - started),
        "acknowledged": request.settled,
        "delivery_info": request.delivery_info,
        "worker_pid": None if request.greenlet is None else id(request.greenlet),
    }


def _repr(given: str | None, value: object) -> str:
    return given if given is not None else saferepr(value)


@inspect_command(alias="dump_tasks", urgent=True, args=[("taskinfoitems", list)],
    signature="[attr1 [attr2 [... [attrN]]]]")  # fmt: skip
def registered(
    worker: Parts, taskinfoitems: object = None, builtins: bool = False, **_ignored: Any
) -> list[str]:
    """List the registered tasks; for each, show the given attributes that are not None."""
    attributes = texts(taskinfoitems) or ["exchange", "routing_key", "rate_limit"]
    tasks = sorted(worker.app.tasks.items())
    return [
        _described(task, attributes)
        for name, task in tasks
        if builtins or not name.startswith("celery.")
    ]


def _described(task: Task[Any, Any], attributes: Sequence[str]) -> str:
    values = {name: getattr(task, name, None) for name in attributes if name in _SHOWN}
    shown = " ".join(f"{name}={value}" for name, value in values.items() if value is not None)
    return f"{task.name} [{shown}]" if shown else task.name


@inspect_command(alias="dump_revoked", urgent=True)
def revoked(worker: Parts, **_ignored: Any) -> list[str]:
    """List the revoked ids, oldest first."""
    return list(worker.state.revoked.ids())
