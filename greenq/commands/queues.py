"""Commands that list and change the queues that a worker takes from, and that pause queues."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from greenq.commands.arguments import text
from greenq.commands.registry import control_command, inspect_command, ok
from greenq.config.queues import Binding, Broadcast, Exchange
from greenq.protocol.limits import KEPT_NAME
from greenq.transport.broker import own_binding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from greenq.worker_parts.parts import Parts


@inspect_command(urgent=True)
def active_queues(worker: Parts) -> list[dict[str, object]]:
    """List the queues that this worker takes from, including broadcast queues."""
    queues = worker.queues
    return [
        *(_queue(name, queues.bindings_of(name), *queues.limits_of(name)) for name in queues.names),
        *(_broadcast(queue) for queue in queues.broadcasts),
    ]


def _broadcast(queue: Broadcast) -> dict[str, object]:
    exchange = Exchange(queue.exchange, "fanout")
    return _queue(queue.name, (Binding(exchange, queue.routing_key or ""),))


def _queue(
    name: str,
    bindings: Sequence[Binding],
    expires: float | None = None,
    max_length: int | None = None,
) -> dict[str, object]:
    source, *others = bindings
    return {
        "name": name,
        "exchange": {
            "name": source.exchange.name,
            "type": source.exchange.type,
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
        "bindings": [asdict(each) for each in others],
        "no_declare": None,
        "expires": expires,
        "message_ttl": None,
        "max_length": max_length,
        "max_length_bytes": None,
        "max_priority": None,
    }


@control_command(args=[("queue", str), ("exchange", str), ("exchange_type", str),
    ("routing_key", str)],
    signature="<queue> [exchange [type [routing_key]]]")  # fmt: skip
def add_consumer(
    worker: Parts,
    queue: str,
    exchange: str | None = None,
    exchange_type: str | None = None,
    routing_key: str | None = None,
    **_options: Any,
) -> dict[str, object]:
    """Start taking from a queue."""
    kind = text("exchange_type", exchange_type or "direct")
    if kind == "fanout":
        raise ValueError(f"only queues of direct or topic exchanges can be added, not of {kind!r}")
    queue = text("queue", queue, KEPT_NAME)
    source = Binding(
        Exchange(text("exchange", exchange or queue, KEPT_NAME), kind),
        text("routing_key", routing_key or queue, KEPT_NAME),
    )
    worker.queues.add(queue, None if source == own_binding(queue) else source)
    return ok(f"add consumer {queue}")


@control_command(args=[("queue", str)], signature="<queue>")
def cancel_consumer(worker: Parts, queue: str, **_ignored: Any) -> dict[str, object]:
    """Stop taking from a queue."""
    queue = text("queue", queue)
    worker.queues.cancel(queue)
    return ok(f"no longer consuming from {queue}")


@control_command(args=[("queue", str)], signature="<queue>")
def pause(worker: Parts, queue: str, by: str | None = None) -> dict[str, object]:
    """Stop all greenq workers from taking from a queue until `resume`; the server stores this."""
    queue = text("queue", queue)
    worker.app.transport.broker.pause(queue, text("by", by or worker.hostname))
    worker.queues.look_for_pauses()
    return ok(f"queue {queue} is paused")


@control_command(args=[("queue", str)], signature="<queue>")
def resume(worker: Parts, queue: str) -> dict[str, object]:
    """Let workers take from a paused queue again."""
    queue = text("queue", queue)
    worker.app.transport.broker.resume(queue)
    worker.queues.look_for_pauses()
    return ok(f"workers take from queue {queue} again")
