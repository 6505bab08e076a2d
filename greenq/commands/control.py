"""Commands that change what a worker does: its tasks, limits, pool, events, and its shutdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greenq.commands.arguments import SIZE, checked, number, text, texts
from greenq.commands.registry import control_command, error, ok
from greenq.protocol.limits import INTERVAL
from greenq.protocol.mailbox import NO_REPLY
from greenq.protocol.rate import parse_rate

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.running.request import Request
    from greenq.worker_parts.parts import Parts

_AUTOSCALED = "{} is not supported with autoscale. Adjust autoscale range instead."


@control_command(args=[("task_id", str)], signature="[id1 [id2 [... [idN]]]]")
def revoke(
    worker: Parts,
    task_id: object,
    terminate: bool = False,
    signal: object = None,
    **_ignored: Any,
) -> dict[str, object]:
    """Discard these tasks if they wait here or arrive later; `terminate` also ends running ones."""
    ids = set(texts(task_id))
    worker.state.revoked.update(ids)
    worker.tasks.revoke(ids=ids)
    if not terminate:
        return ok(f"tasks {ids} flagged as revoked")
    ended = _end(worker, lambda request: request.message.id in ids, _signal(signal))
    return ok(f"terminate: {', '.join(ended)}" if ended else "terminate: tasks unknown")


@control_command(args=[("signal", str), ("task_id", str)],
    signature="<signal> [id1 [id2 [... [idN]]]]")  # fmt: skip
def terminate(worker: Parts, signal: object, task_id: object, **_ignored: Any) -> object:
    """End running tasks: `revoke` with ``terminate=True``."""
    return revoke(worker, task_id, terminate=True, signal=signal)


@control_command(args=[("headers", str)],
    signature="[key1=value1 [key2=value2 [... [keyN=valueN]]]]")  # fmt: skip
def revoke_by_stamped_headers(
    worker: Parts,
    headers: object,
    terminate: bool = False,
    signal: object = None,
    **_ignored: Any,
) -> dict[str, object]:
    """Discard the tasks with one of these stamps; `terminate` also ends running ones."""
    stamps = _stamps(headers)
    worker.state.revoked.add_stamps(stamps)
    worker.tasks.revoke(stamps=stamps)
    # The form in which Celery shows the stamps.
    shown = headers
    if not isinstance(headers, dict):
        shown = {name: each[0] if len(each) == 1 else each for name, each in stamps.items()}
    if not terminate:
        return ok(f"headers {shown} flagged as revoked, but not terminated")
    ended = _end(
        worker, lambda request: worker.state.revoked.is_stamped(request.message), _signal(signal)
    )
    if not ended:
        return ok(f"headers {shown} were not terminated")
    return ok(f"headers {shown} revoked")


def _stamps(headers: object) -> dict[str, list[str]]:
    """Read stamps from an object or a list of ``name=value``.

    Raises:
        ValueError: `headers` is neither.
    """
    if isinstance(headers, str):
        headers = [headers]
    if isinstance(headers, list):
        pairs = [each.partition("=") for each in texts(headers)]
        if not all(sep for _name, sep, _value in pairs):
            raise ValueError(f"stamps must be name=value, not {headers!r}")
        stamps: dict[str, list[str]] = {}
        for name, _sep, value in pairs:
            stamps.setdefault(name, []).append(value)
        return stamps
    if isinstance(headers, dict):
        return {text("a stamp", name): texts(value) for name, value in headers.items()}
    raise ValueError(f"stamps must be an object or a list of name=value, not {headers!r}")


def _end(worker: Parts, which: Callable[[Request], bool], signal_name: str) -> list[str]:
    """End running tasks and return their ids. Switches: no."""
    ended = [request for request in worker.pool.active if which(request)]
    for request in ended:
        worker.pool.end(request, signal_name)
    return [request.message.id for request in ended]


def _signal(signal: object) -> str:
    """Return a signal's name, which events report although greenlets receive no signals."""
    return text("signal", signal or "SIGTERM")


@control_command(args=[("task_name", str), ("rate_limit", str)],
    signature="<task_name> <rate_limit (e.g., 5/s | 5/m | 5/h)>")  # fmt: skip
def rate_limit(
    worker: Parts, task_name: str, rate_limit: str | float | None, **_ignored: Any
) -> dict[str, object]:
    """Change how often this worker starts a task."""
    try:
        parse_rate(rate_limit)
    except ValueError:
        return error(f"Invalid rate limit string: {rate_limit!r}")
    if task_name not in worker.app.tasks:
        return error("unknown task")
    worker.tasks.set_rate_limit(task_name, rate_limit)
    return ok(
        "new rate limit set successfully" if rate_limit else "rate limit disabled successfully"
    )


@control_command(args=[("task_name", str), ("soft", float), ("hard", float)],
    signature="<task_name> <soft_secs> [hard_secs]")  # fmt: skip
def time_limit(
    worker: Parts,
    task_name: str,
    hard: float | None = None,
    soft: float | None = None,
    **_ignored: Any,
) -> dict[str, object]:
    """Change a task's time limits for runs that start later; 0 means the limit in the settings."""
    hard, soft = (None if limit in (0, 0.0) else limit for limit in (hard, soft))
    if task_name not in worker.app.tasks:
        return error("unknown task")
    for name, limit in (("hard", hard), ("soft", soft)):
        if limit is not None:
            checked(f"the {name} time limit", INTERVAL, limit)
    task = worker.app.tasks[task_name]
    task.soft_time_limit, task.time_limit = soft, hard
    return ok("time limits set successfully")


@control_command(args=[("n", int)], signature="[N=1]")
def pool_grow(worker: Parts, n: int = 1, **_ignored: Any) -> dict[str, object]:
    """Let more tasks run at once."""
    return _resize(worker, "pool_grow", number("n", n), "pool will grow")


@control_command(args=[("n", int)], signature="[N=1]")
def pool_shrink(worker: Parts, n: int = 1, **_ignored: Any) -> dict[str, object]:
    """Let fewer tasks run at once, but at least one."""
    return _resize(worker, "pool_shrink", -number("n", n), "pool will shrink")


def _resize(worker: Parts, name: str, by: int, reply: str) -> dict[str, object]:
    if worker.autoscaler is not None:
        return error(_AUTOSCALED.format(name))
    worker.pool.resize(number("the pool's size", max(1, worker.pool.size + by), SIZE))
    return ok(reply)


@control_command(signature="")
def pool_restart(worker: Parts, **_ignored: Any) -> dict[str, object]:
    """Refuse, since a pool of greenlets has no processes to restart."""
    raise ValueError("Pool restarts not enabled")


@control_command(args=[("max", int), ("min", int)], signature="[max [min]]")
def autoscale(
    worker: Parts,
    max: int | None = None,
    min: int | None = None,
) -> dict[str, object]:
    """Change the limits of the autoscaler."""
    scaler = worker.autoscaler
    if scaler is None:
        raise ValueError("Autoscale not enabled")
    most = scaler.most if max is None else number("max", max, SIZE)
    least = scaler.least if min is None else number("min", min, SIZE)
    if not 1 <= least <= most:
        raise ValueError(
            f"max is {most} and min is {least}, but min must be between 1 and max; max comes first"
        )
    scaler.set_limits(most, least)
    return ok(f"autoscale now max={most} min={least}")


@control_command()
def enable_events(worker: Parts, **_ignored: Any) -> dict[str, object]:
    """Send task events from now on."""
    if worker.events.tasks:
        return ok("task events already enabled")
    worker.events.tasks = True
    return ok("task events enabled")


@control_command()
def disable_events(worker: Parts, **_ignored: Any) -> dict[str, object]:
    """Stop sending task events."""
    if not worker.events.tasks:
        return ok("task events already disabled")
    worker.events.tasks = False
    return ok("task events disabled")


@control_command()
def heartbeat(worker: Parts, **_ignored: Any) -> None:
    """Send a heartbeat now, for a monitor that has just started."""
    if worker.heart is not None:
        worker.heart.beat()


@control_command(signature="<id> <topic> [action]")
def election(worker: Parts, id: str, topic: str, action: object = None, **_ignored: Any) -> None:
    """Vote in an election."""
    if worker.gossip is not None:
        worker.gossip.elect(text("id", id), text("topic", topic), action)


@control_command()
def shutdown(worker: Parts, msg: str = "Got shutdown from remote", **_ignored: Any) -> object:
    """Stop after running tasks have finished; send no reply."""
    worker.life.stop(text("msg", msg))
    return NO_REPLY


@control_command(args=[("on", bool)], signature="[on=True]")
def drain(worker: Parts, on: bool = True) -> dict[str, object]:
    """Take no more messages, let running tasks finish, and stay up; undo with ``on=False``."""
    worker.tasks.drain(bool(on))
    if not on:
        return ok("takes tasks again")
    return ok(f"draining: {worker.pool.running} tasks are running")
