"""The commands of remote control: one function each, from a worker and arguments to a reply.

Celery's commands have Celery's names, arguments and shapes of replies (wire format, section 11.3);
those of greenq's own are at the end. A program adds its own with the decorators:

    @control_command(args=[("n", int)], signature="[N=1]")
    def double_pool(worker, n=1): ...

Every function runs in the hub's thread and may switch, but requests behind it wait. What it raises
is the reply's error.
"""

from __future__ import annotations

import difflib
import gc
import importlib
import os
import platform
import resource
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar
from urllib.parse import unquote, urlsplit

from greenq import __version__
from greenq.config import validators
from greenq.config.settings import Config
from greenq.diagnostics.stacks import describe
from greenq.errors import ContentDisallowed, DecodeError, NotRegistered
from greenq.execution.revoked import MOST_ID_CHARS
from greenq.protocol.envelope import header
from greenq.protocol.limits import INTERVAL, KEY, Rule, Whole, named
from greenq.protocol.message import saferepr
from greenq.protocol.rate import parse_rate
from greenq.protocol.text import cut
from greenq.request import Request
from greenq.sending.routing import QueueSource
from greenq.transport.fetch import Delivery

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from greenq.task import Task
    from greenq.worker import Worker

Function = TypeVar("Function", bound="Callable[..., Any]")
Item = TypeVar("Item")

NO_REPLY: Final = object()
"""Returned by a command that is never answered."""

# Of what does not agree, so much is shown.
_RECORDS = 100

# A list in a reply is no longer than this unless a longer one is asked for.
_PAGE = 1000

# Of the name of an unknown command, so much is compared and shown.
_COMPARED_CHARS = 100

# The arguments of a message that is larger are shown as text.
_SHOWN_BYTES = 16_384

# A name that is kept may be so long.
_NAME_CHARS = 255

# So many parked messages are looked at for an id.
_LOOKED_AT = 20_000

# What numbers in requests may be.
_HOW_MANY = Whole(0, 1_000_000)
_SIZE = Whole(1, 1_000_000)

# A request may name so many tasks, the most that a worker remembers as revoked.
_IDS = 50_000

# No number that is taken has so many.
_MOST_DIGITS = 20


@dataclass(frozen=True, slots=True)
class Command:
    """One command.

    Attributes:
        name: what it is called by.
        kind: an inspect command only looks, a control command changes something.
        call: takes the worker and the keyword arguments, returns the reply.
        args: (name, type) of its positional arguments, for command lines.
        signature: the arguments as help shows them.
        urgent: it can be carried out in any thread, while the hub is blocked.
    """

    name: str
    kind: Literal["inspect", "control"]
    call: Callable[..., Any]
    args: Sequence[tuple[str, Callable[[str], Any]]] = ()
    signature: str = ""
    urgent: bool = False


class Panel:
    """All commands of this process by name and alias."""

    def __init__(self) -> None:
        """Begin without any."""
        self._commands: dict[str, Command] = {}

    def add(self, command: Command, aliases: Iterable[str] = ()) -> None:
        """Make a command known; one of the same name is replaced."""
        for name in (command.name, *aliases):
            self._commands[name] = command

    def is_urgent(self, name: str) -> bool:
        """Tell whether a command needs no hub."""
        command = self._commands.get(name)
        return command is not None and command.urgent

    def changes(self, name: str) -> bool:
        """Tell whether a command changes something."""
        command = self._commands.get(name)
        return command is not None and command.kind == "control"

    def run(self, name: str, worker: Worker, arguments: Mapping[str, Any]) -> Any:
        """Carry out a command and return its reply.

        Raises:
            KeyError: there is no such command.
            TypeError: the arguments are not the command's.
            Exception: whatever a command of the user's raises.
        """
        command = self._commands.get(name)
        if command is None:
            name = cut(name, _COMPARED_CHARS)
            close = difflib.get_close_matches(name, self._commands, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise KeyError(f"no control command is named {name!r}{hint}")
        return command.call(worker, **arguments)


# Commands are looked up by name, and users add theirs at import, before any app or worker is there:
# this is the one place where that is kept.
panel = Panel()


def inspect_command(
    *,
    name: str | None = None,
    alias: str | None = None,
    args: Sequence[tuple[str, Callable[[str], Any]]] = (),
    signature: str = "",
    urgent: bool = False,
    **_other: Any,
) -> Callable[[Function], Function]:
    """Make a command of a function that only looks; its first argument is the worker.

    Args:
        name: instead of the function's.
        alias: another name.
        args: (name, type) of each positional argument, for command lines.
        signature: the arguments as help shows them.
        urgent: it reads only what any thread may read, so it is answered while the hub is blocked.
    """
    return _adder("inspect", name, alias, args, signature, urgent=urgent)


def control_command(
    *,
    name: str | None = None,
    alias: str | None = None,
    args: Sequence[tuple[str, Callable[[str], Any]]] = (),
    signature: str = "",
    **_other: Any,
) -> Callable[[Function], Function]:
    """Make a command of a function that changes something; as `inspect_command`."""
    return _adder("control", name, alias, args, signature, urgent=False)


def _adder(
    kind: Literal["inspect", "control"],
    name: str | None,
    alias: str | None,
    args: Sequence[tuple[str, Callable[[str], Any]]],
    signature: str,
    *,
    urgent: bool,
) -> Callable[[Function], Function]:
    def add(function: Function) -> Function:
        command = Command(name or function.__name__, kind, function, args, signature, urgent)
        panel.add(command, [alias] if alias else ())
        return function

    return add


def _ok(value: object) -> dict[str, object]:
    return {"ok": value}


def _error(text: str) -> dict[str, object]:
    return {"error": text}


# --- the worker ----------------------------------------------------------------------------------


@inspect_command(urgent=True)
def ping(worker: Worker, **_ignored: Any) -> dict[str, object]:
    """Answer ``pong``, and if the hub is blocked, by what."""
    blocker = worker.watch.blocking_now()
    return {"ok": "pong"} if blocker is None else {"ok": "pong", "blocked": asdict(blocker)}


@inspect_command(urgent=True)
def status(worker: Worker) -> dict[str, object]:
    """Tell in short how the worker does.

    ``held``: by queue, how many messages wait here, for their ETA, a retry's countdown, a rate
    limit or a slot.
    """
    held = dict.fromkeys(worker.queues, 0)
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
        "queues": list(worker.queues),
        "paused": sorted(worker.state.paused),
        "draining": worker.tasks.draining,
        "blocked": None if blocker is None else asdict(blocker),
    }


@inspect_command(urgent=True)
def report(worker: Worker) -> dict[str, object]:
    """Describe software, machine and settings as text."""
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
    return _ok("\n".join(lines))


@inspect_command(alias="dump_conf", urgent=True, signature="[include_defaults=False]",
    args=[("with_defaults", bool)])  # fmt: skip
def conf(worker: Worker, with_defaults: bool = False, **_ignored: Any) -> dict[str, object]:
    """Return the settings, passwords masked; those at their default only `with_defaults`."""
    return _settings(worker.app.config, with_defaults=bool(with_defaults))


def _settings(config: Config, *, with_defaults: bool) -> dict[str, object]:
    plain = Config()
    return {
        name: _plain(validators.shown(name, config.get(name)))
        for name in sorted(Config.names())
        if with_defaults or config.get(name) != plain.get(name)
    }


def _plain(value: object) -> object:
    """Return a setting's value as JSON has it; what it has no form for, as text."""
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
def stats(worker: Worker, **_ignored: Any) -> dict[str, object]:
    """Return totals, pool, broker and what the process has used."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    told: dict[str, object] = {
        **worker.info(),
        "total": dict(worker.state.total),
        "pid": os.getpid(),
        # Text, as Celery's.
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
    if worker.autoscaler is not None:
        told["autoscaler"] = worker.autoscaler.info()
    return told


def _broker(worker: Worker) -> dict[str, object]:
    """Describe the broker's address as Celery does, without its password."""
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
def clock(worker: Worker, **_ignored: Any) -> dict[str, object]:
    """Return the logical clock."""
    return {"clock": worker.state.clock.value}


@inspect_command()
def hello(worker: Worker, from_node: str, revoked: object = None, **_ignored: Any) -> object:
    """Exchange revoked ids with a worker that starts; None if it is this one."""
    if from_node == worker.hostname:
        return None
    if isinstance(revoked, list | dict):
        worker.state.revoked.update(each for each in revoked if KEY.takes(each))
    return {"revoked": list(worker.state.revoked.ids()), "clock": worker.state.clock.forward()}


@inspect_command(urgent=True)
def memsample(worker: Worker, **_ignored: Any) -> str:
    """Return the memory in use, as text."""
    return _megabytes(_rss_bytes())


@inspect_command(args=[("samples", int)], signature="[n_samples=10]")
def memdump(worker: Worker, samples: int = 10, **_ignored: Any) -> str:
    """Return the memory in use, its peak, and the most frequent types of objects."""
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counted = Counter(type(each).__name__ for each in gc.get_objects())
    lines = [f"rss {_megabytes(_rss_bytes())}, peak {_megabytes(peak_kb * 1024)}"]
    lines += [
        f"{count:>9}  {name}" for name, count in counted.most_common(_number("samples", samples))
    ]
    return "\n".join(lines)


@inspect_command(args=[("num", int), ("max_depth", int), ("type", str)],
    signature="[object_type=Request] [num=200 [max_depth=10]]")  # fmt: skip
def objgraph(
    worker: Worker,
    num: int = 200,
    max_depth: int = 10,
    type: str = "Request",
) -> dict[str, object]:
    """Draw what refers to the objects of a type, in Graphviz's language, and return the file."""
    try:
        graph = importlib.import_module("objgraph")
    except ImportError:
        raise ImportError("the package objgraph is not installed in the worker") from None
    with tempfile.NamedTemporaryFile(prefix="greenq-", suffix=".dot", delete=False) as file:
        found = graph.by_type(type)[: _number("num", num)]
    graph.show_backrefs(found, max_depth=_number("max_depth", max_depth), filename=file.name)
    return {"filename": file.name}


def _rss_bytes() -> int:
    pages = Path("/proc/self/statm").read_text("ascii").split()[1]
    return int(pages) * resource.getpagesize()


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.2f}MB"


# --- tasks ---------------------------------------------------------------------------------------


@inspect_command(alias="dump_active", urgent=True)
def active(worker: Worker, safe: bool = False, **_ignored: Any) -> list[dict[str, object]]:
    """List the tasks that run."""
    running = sorted(worker.pool.active, key=lambda request: request.started_s or 0.0)
    return [_info(worker, request, safe=safe) for request in running]


@inspect_command(alias="dump_reserved", urgent=True)
def reserved(
    worker: Worker, limit: int = _PAGE, offset: int = 0, **_ignored: Any
) -> list[dict[str, object]]:
    """List the tasks that wait here for their rate limit or for a slot, a page of them."""
    return [_info(worker, request) for request in _page(worker.tasks.waiting(), limit, offset)]


@inspect_command(alias="dump_schedule")
def scheduled(
    worker: Worker, limit: int = _PAGE, offset: int = 0, **_ignored: Any
) -> list[dict[str, object]]:
    """List the tasks that wait for their ETA, a page of them.

    Those that wait here, the next one first; then those of this worker's queues that are parked on
    the server, which any worker of these queues may run, and lists.
    """
    held = worker.tasks.scheduled()
    limit, offset = _number("limit", limit), _number("offset", offset)
    page = [
        {"eta": eta.isoformat(), "priority": 6, "request": _info(worker, request)}
        for eta, request in _page(held, limit, offset)
    ]
    parked = worker.app.transport.broker.parked(
        worker.queues, max(0, offset - len(held)), limit - len(page)
    )
    return page + [_parked(worker, *each) for each in parked]


def _parked(worker: Worker, due: float, queue: str, raw: bytes) -> dict[str, object]:
    """Describe a parked message like one that waits here; of what cannot be read, the id."""
    try:
        eta = datetime.fromtimestamp(due, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        # A score that only somebody else can have given.
        eta = None
    try:
        message = worker.tasks.read(raw)
        task = worker.app.tasks[message.task]
    except (DecodeError, ContentDisallowed, NotRegistered):
        told = {"id": header(raw, "id"), "name": header(raw, "task"), "hostname": worker.hostname}
        return {"eta": eta, "priority": 6, "request": told}
    request = Request(Delivery("", queue, raw), message, task, acks_late=True)
    return {"eta": eta, "priority": 6, "request": _info(worker, request)}


def _page(listed: list[Item], limit: int, offset: int) -> list[Item]:
    """Return so many from an offset on.

    Raises:
        ValueError: one of them is no number, or below zero.
    """
    limit, offset = _number("limit", limit), _number("offset", offset)
    return listed[offset : offset + limit]


@inspect_command(args=[("ids", str)], signature="[id1 [id2 [... [idN]]]]")
def query_task(worker: Worker, ids: object, **_ignored: Any) -> dict[str, list[object]]:
    """Tell where tasks are: ``[state, info]`` by id, without those that are not here."""
    wanted = {ids} if isinstance(ids, str) else set(_texts(ids))
    waits = {id(request) for _eta, request in worker.tasks.scheduled()}
    found: dict[str, list[object]] = {}
    for request in list(worker.state.reserved.values()):
        if request.message.id in wanted:
            is_running = request in worker.pool.active
            held = "scheduled" if id(request) in waits else "reserved"
            where = "active" if is_running else held
            found[request.message.id] = [where, _info(worker, request)]
    missing = wanted - found.keys()
    # The connections to the server are the hub's: while it is blocked, nothing else may use them.
    if missing and worker.watch.blocking_now() is None:
        found |= _find_parked(worker, missing)
    return found


def _find_parked(worker: Worker, wanted: set[str]) -> dict[str, list[object]]:
    """Look for tasks among those that are parked on the server, the ones that are due first."""
    found: dict[str, list[object]] = {}
    broker = worker.app.transport.broker
    for offset in range(0, _LOOKED_AT, _PAGE):
        page = list(broker.parked(worker.queues, offset, _PAGE))
        for each in page:
            task_id = header(each[2], "id")
            if task_id in wanted and isinstance(task_id, str):
                found[task_id] = ["scheduled", _parked(worker, *each)["request"]]
        if len(page) < _PAGE or len(found) == len(wanted):
            break
    return found


def _info(worker: Worker, request: Request, *, safe: bool = False) -> dict[str, object]:
    """Describe a request; with `safe`, or if they are large, its arguments as text."""
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
    worker: Worker, taskinfoitems: object = None, builtins: bool = False, **_ignored: Any
) -> list[str]:
    """List the tasks, with those of the attributes that are set."""
    attributes = _texts(taskinfoitems) or ["exchange", "routing_key", "rate_limit"]
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


# What of a task may be told.
_SHOWN = frozenset(
    {
        "acks_late", "exchange", "expires", "ignore_result", "max_retries", "name", "priority",
        "queue", "rate_limit", "routing_key", "serializer", "soft_time_limit", "time_limit",
        "track_started",
    }
)  # fmt: skip


@inspect_command(alias="dump_revoked", urgent=True)
def revoked(worker: Worker, **_ignored: Any) -> list[str]:
    """List the ids that are revoked, oldest first."""
    return list(worker.state.revoked.ids())


@control_command(args=[("task_id", str)], signature="[id1 [id2 [... [idN]]]]")
def revoke(
    worker: Worker,
    task_id: object,
    terminate: bool = False,
    signal: object = None,
    **_ignored: Any,
) -> dict[str, object]:
    """Discard tasks when they turn up here, or where they wait; `terminate` ends running ones."""
    ids = set(_texts(task_id))
    _check_revocable(ids)
    worker.state.revoked.update(ids)
    worker.tasks.revoke(ids=ids)
    if not terminate:
        return _ok(f"tasks {ids} flagged as revoked")
    ended = worker.terminate(lambda request: request.message.id in ids, _signal(signal))
    return _ok(f"terminate: {', '.join(ended)}" if ended else "terminate: tasks unknown")


@control_command(args=[("signal", str), ("task_id", str)],
    signature="<signal> [id1 [id2 [... [idN]]]]")  # fmt: skip
def terminate(worker: Worker, signal: object, task_id: object, **_ignored: Any) -> object:
    """End running tasks; the same as `revoke` with terminate."""
    return revoke(worker, task_id, terminate=True, signal=signal)


@control_command(args=[("headers", str)],
    signature="[key1=value1 [key2=value2 [... [keyN=valueN]]]]")  # fmt: skip
def revoke_by_stamped_headers(
    worker: Worker,
    headers: object,
    terminate: bool = False,
    signal: object = None,
    **_ignored: Any,
) -> dict[str, object]:
    """Discard the tasks that carry one of these stamps; `terminate` ends running ones."""
    stamps = _stamps(headers)
    _check_revocable(stamps)
    for values in stamps.values():
        _check_revocable(values)
    worker.state.revoked.add_stamps(stamps)
    worker.tasks.revoke(stamps=stamps)
    # As Celery shows them.
    shown = headers
    if not isinstance(headers, dict):
        shown = {name: each[0] if len(each) == 1 else each for name, each in stamps.items()}
    if not terminate:
        return _ok(f"headers {shown} flagged as revoked, but not terminated")
    ended = worker.terminate(
        lambda request: worker.state.revoked.is_stamped(request.message), _signal(signal)
    )
    if not ended:
        return _ok(f"headers {shown} were not terminated")
    return _ok(f"headers {shown} revoked")


def _stamps(headers: object) -> dict[str, list[str]]:
    """Read stamps from an object, or from a list of ``name=value``.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(headers, str):
        headers = [headers]
    if isinstance(headers, list):
        pairs = [each.partition("=") for each in _texts(headers)]
        if not all(sep for _name, sep, _value in pairs):
            raise ValueError(f"stamps are given as name=value, not as {headers!r}")
        stamps: dict[str, list[str]] = {}
        for name, _sep, value in pairs:
            stamps.setdefault(name, []).append(value)
        return stamps
    if isinstance(headers, dict):
        return {_text("a stamp", name): _texts(value) for name, value in headers.items()}
    raise ValueError(f"stamps are an object or a list of name=value, not {headers!r}")


def _check_revocable(texts: Iterable[str]) -> None:
    """Refuse what cannot be kept.

    Raises:
        ValueError: an id, or a stamp's name or value, is too long.
    """
    longest = max(map(len, texts), default=0)
    if longest > MOST_ID_CHARS:
        raise ValueError(
            f"ids and stamps have at most {MOST_ID_CHARS:,} characters, not {longest:,}"
        )


def _signal(signal: object) -> str:
    """Return a signal's name; greenlets get none, events tell it."""
    return _text("signal", signal or "SIGTERM")


def _texts(value: object) -> list[str]:
    """Return one value or many as texts.

    Raises:
        ValueError: they are too many, or one is too long.
    """
    if value is None:
        return []
    many = value if isinstance(value, list | tuple | set) else [value]
    if len(many) > _IDS:
        raise ValueError(f"{len(many):,} are more than {_IDS:,} at once")
    return [_text("one of them", each) for each in many]


def _text(name: str, value: object) -> str:
    """Return an argument as text, for numbers may be written for names.

    Raises:
        ValueError: it is too long, or no text that the server can hold.
    """
    text = value if isinstance(value, str) else saferepr(value)
    _right(name, KEY, text)
    return text


def _number(name: str, value: object, rule: Rule = _HOW_MANY) -> Any:
    """Return an argument that is a whole number; command lines may send it as text.

    Raises:
        ValueError: it is none that `rule` takes.
    """
    if isinstance(value, str) and len(value) < _MOST_DIGITS:
        with suppress(ValueError):
            value = int(value)
    elif isinstance(value, float) and value.is_integer():
        value = int(value)
    return _right(name, rule, value)


def _right(name: str, rule: Rule, value: Any) -> Any:
    wrong = rule.wrong(value)
    if wrong:
        raise ValueError(named(name, wrong))
    return value


@control_command(args=[("task_name", str), ("rate_limit", str)],
    signature="<task_name> <rate_limit (e.g., 5/s | 5/m | 5/h)>")  # fmt: skip
def rate_limit(
    worker: Worker, task_name: str, rate_limit: str | float | None, **_ignored: Any
) -> dict[str, object]:
    """Change how many of a task this worker starts."""
    try:
        parse_rate(rate_limit)
    except ValueError:
        return _error(f"Invalid rate limit string: {rate_limit!r}")
    if task_name not in worker.app.tasks:
        return _error("unknown task")
    worker.tasks.set_rate_limit(task_name, rate_limit)
    return _ok(
        "new rate limit set successfully" if rate_limit else "rate limit disabled successfully"
    )


@control_command(args=[("task_name", str), ("soft", float), ("hard", float)],
    signature="<task_name> <soft_secs> [hard_secs]")  # fmt: skip
def time_limit(
    worker: Worker,
    task_name: str,
    hard: float | None = None,
    soft: float | None = None,
    **_ignored: Any,
) -> dict[str, object]:
    """Change how long a task may run, 0 for any time; those that run already keep their limits."""
    hard, soft = (None if limit in (0, 0.0) else limit for limit in (hard, soft))
    if task_name not in worker.app.tasks:
        return _error("unknown task")
    for name, limit in (("hard", hard), ("soft", soft)):
        if limit is not None:
            _right(f"the {name} time limit", INTERVAL, limit)
    task = worker.app.tasks[task_name]
    task.soft_time_limit, task.time_limit = soft, hard
    return _ok("time limits set successfully")


# --- queues --------------------------------------------------------------------------------------


@inspect_command(urgent=True)
def active_queues(worker: Worker) -> list[dict[str, object]]:
    """List the queues that this worker takes from, and those that it hears broadcasts of."""
    return [
        _queue(name, worker.sources.get(name) or QueueSource(name, "direct", name))
        for name in worker.taken_queues
    ]


def _check_name(name: str) -> None:
    """Refuse the name of a queue, or of what leads to it, that is too long to be kept.

    Raises:
        ValueError: it is.
    """
    if len(name) > _NAME_CHARS:
        raise ValueError(f"a name has at most {_NAME_CHARS} characters, not {len(name):,}")


def _queue(name: str, source: QueueSource) -> dict[str, object]:
    return {
        "name": name,
        "exchange": {
            "name": source.exchange,
            "type": source.exchange_type,
            "arguments": None,
            "durable": True,
            "passive": False,
            "auto_delete": False,
            "delivery_mode": None,
            "no_declare": False,
        },
        "routing_key": source.routing_key,
        "queue_arguments": None,
        "binding_arguments": None,
        "consumer_arguments": None,
        "durable": True,
        "exclusive": False,
        "auto_delete": False,
        "no_ack": False,
        "alias": None,
        "bindings": [],
        "no_declare": None,
        "expires": None,
        "message_ttl": None,
        "max_length": None,
        "max_length_bytes": None,
        "max_priority": None,
    }


@control_command(args=[("queue", str), ("exchange", str), ("exchange_type", str),
    ("routing_key", str)],
    signature="<queue> [exchange [type [routing_key]]]")  # fmt: skip
def add_consumer(
    worker: Worker,
    queue: str,
    exchange: str | None = None,
    exchange_type: str | None = None,
    routing_key: str | None = None,
    **_options: Any,
) -> dict[str, object]:
    """Take from one more queue."""
    kind = exchange_type or "direct"
    if kind not in ("direct", "topic"):
        raise ValueError(f"only queues of direct and topic exchanges can be added, not of {kind!r}")
    queue = _text("queue", queue)
    source = QueueSource(
        _text("exchange", exchange or queue), kind, _text("routing_key", routing_key or queue)
    )
    for name in (queue, source.exchange, source.routing_key):
        _check_name(name)
    worker.add_queue(queue, source)
    return _ok(f"add consumer {queue}")


@control_command(args=[("queue", str)], signature="<queue>")
def cancel_consumer(worker: Worker, queue: str, **_ignored: Any) -> dict[str, object]:
    """Take from a queue no longer."""
    queue = _text("queue", queue)
    worker.cancel_queue(queue)
    return _ok(f"no longer consuming from {queue}")


# --- pool, events, shutdown ----------------------------------------------------------------------

_AUTOSCALED = "{} is not supported with autoscale. Adjust autoscale range instead."


@control_command(args=[("n", int)], signature="[N=1]")
def pool_grow(worker: Worker, n: int = 1, **_ignored: Any) -> dict[str, object]:
    """Have more tasks run at once."""
    return _resize(worker, "pool_grow", _number("n", n), "pool will grow")


@control_command(args=[("n", int)], signature="[N=1]")
def pool_shrink(worker: Worker, n: int = 1, **_ignored: Any) -> dict[str, object]:
    """Have fewer tasks run at once, but one at least."""
    return _resize(worker, "pool_shrink", -_number("n", n), "pool will shrink")


def _resize(worker: Worker, name: str, by: int, text: str) -> dict[str, object]:
    if worker.autoscaler is not None:
        return _error(_AUTOSCALED.format(name))
    worker.pool.resize(_number("the pool's size", max(1, worker.pool.size + by), _SIZE))
    return _ok(text)


@control_command(signature="")
def pool_restart(worker: Worker, **_ignored: Any) -> dict[str, object]:
    """Refuse: greenlets have no processes to begin anew."""
    raise ValueError("Pool restarts not enabled")


@control_command(args=[("max", int), ("min", int)], signature="[max [min]]")
def autoscale(
    worker: Worker,
    max: int | None = None,
    min: int | None = None,
) -> dict[str, object]:
    """Change the limits of the autoscaler."""
    scaler = worker.autoscaler
    if scaler is None:
        raise ValueError("Autoscale not enabled")
    most = scaler.most if max is None else _number("max", max, _SIZE)
    least = scaler.least if min is None else _number("min", min, _SIZE)
    if not 1 <= least <= most:
        raise ValueError(f"max comes first, and min is from 1 to max: not {most}, {least}")
    scaler.set_limits(most, least)
    return _ok(f"autoscale now max={most} min={least}")


@control_command()
def enable_events(worker: Worker, **_ignored: Any) -> dict[str, object]:
    """Tell of tasks from now on."""
    if worker.events.tasks:
        return _ok("task events already enabled")
    worker.events.tasks = True
    return _ok("task events enabled")


@control_command()
def disable_events(worker: Worker, **_ignored: Any) -> dict[str, object]:
    """Tell of tasks no longer."""
    if not worker.events.tasks:
        return _ok("task events already disabled")
    worker.events.tasks = False
    return _ok("task events disabled")


@control_command()
def heartbeat(worker: Worker, **_ignored: Any) -> None:
    """Beat at once, for a monitor that has just begun to listen."""
    if worker.heart is not None:
        worker.heart.beat()


@control_command(signature="<id> <topic> [action]")
def election(worker: Worker, id: str, topic: str, action: object = None, **_ignored: Any) -> None:
    """Vote in an election."""
    if worker.gossip is not None:
        worker.gossip.elect(_text("id", id), _text("topic", topic), action)


@control_command()
def shutdown(worker: Worker, msg: str = "Got shutdown from remote", **_ignored: Any) -> object:
    """Stop warm; never answered."""
    worker.stop(_text("msg", msg))
    return NO_REPLY


# --- greenq's own --------------------------------------------------------------------------------


@inspect_command(urgent=True, args=[("limit", int)], signature="[limit=100]")
def greenlets(worker: Worker, limit: int = 100) -> dict[str, Any]:
    """Tell of every running task what it waits on; of the oldest, age, time in the hub, stack."""
    hub_s_of = worker.pool.hub_time.hub_s_of
    now = time.monotonic()
    return describe(worker.pool.active, limit=_number("limit", limit), now=now, hub_s_of=hub_s_of)


@inspect_command(urgent=True)
def autoscale_log(worker: Worker) -> list[dict[str, object]]:
    """List the autoscaler's decisions with their reasons, oldest first."""
    history = worker.autoscaler.history if worker.autoscaler is not None else ()
    return [
        {
            "at": each.at_s,
            "backlog": each.backlog,
            "running": each.running,
            "size": each.size,
            "reason": each.reason,
        }
        for each in history
    ]


@inspect_command()
def records(worker: Worker) -> dict[str, object]:
    """Compare what the server holds for this worker with what it knows: the same, at rest.

    Shape: ``held`` and ``known``, how many there are; ``unknown``, tags that only the server has;
        ``missing``, task ids of which only the worker knows: they were given to others.
    """
    broker = worker.app.transport.broker
    found = broker.tags_of(broker.client, worker.owner.incarnation)
    held = {tag for some in found for tag in some}
    reserved = {tag: each for tag, each in worker.state.reserved.items() if not each.settled}
    known = reserved.keys() | worker.outbox.tags()
    return {
        "held": len(held),
        "known": len(known),
        "unknown": sorted(held - known)[:_RECORDS],
        "missing": [reserved[tag].message.id for tag in reserved.keys() - held][:_RECORDS],
    }


@inspect_command(urgent=True)
def hub(worker: Worker) -> dict[str, object]:
    """Tell how late the loop runs, and what has kept it from moving."""
    blocker = worker.watch.blocking_now()
    return {
        "lag_s": worker.hub.lag_s,
        "lag": worker.hub.lags.info(),
        "blocked": None if blocker is None else asdict(blocker),
        "blockers": [asdict(each) for each in list(worker.watch.blockers)],
    }


@control_command(args=[("queue", str)], signature="<queue>")
def pause(worker: Worker, queue: str, by: str | None = None) -> dict[str, object]:
    """Have no greenq worker of the cluster take from a queue until `resume`; kept in Redis."""
    queue = _text("queue", queue)
    worker.app.transport.broker.pause(queue, _text("by", by or worker.hostname))
    worker.look_for_pauses()
    return _ok(f"queue {queue} is paused")


@control_command(args=[("queue", str)], signature="<queue>")
def resume(worker: Worker, queue: str) -> dict[str, object]:
    """Have a paused queue taken from again."""
    queue = _text("queue", queue)
    worker.app.transport.broker.resume(queue)
    worker.look_for_pauses()
    return _ok(f"queue {queue} is taken from again")


@control_command(args=[("on", bool)], signature="[on=True]")
def drain(worker: Worker, on: bool = True) -> dict[str, object]:
    """Take nothing more and let what runs end; the worker stays. `on` False ends that."""
    worker.tasks.drain(bool(on))
    if not on:
        return _ok("takes tasks again")
    return _ok(f"draining: {worker.pool.running} tasks run")
