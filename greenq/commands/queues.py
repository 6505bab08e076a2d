"""Commands about queues: which ones a worker takes from, and pausing them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greenq.commands.arguments import text
from greenq.commands.registry import control_command, inspect_command, ok
from greenq.protocol.limits import KEPT_NAME
from greenq.sending.routing import QueueSource

if TYPE_CHECKING:
    from greenq.worker_parts import Parts


@inspect_command(urgent=True)
def active_queues(worker: Parts) -> list[dict[str, object]]:
    """List the queues that this worker takes from, broadcast queues included."""
    return [
        _queue(name, worker.queues.sources.get(name) or QueueSource(name, "direct", name))
        for name in worker.queues.taken
    ]


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
    worker: Parts,
    queue: str,
    exchange: str | None = None,
    exchange_type: str | None = None,
    routing_key: str | None = None,
    **_options: Any,
) -> dict[str, object]:
    """Start taking from a queue."""
    kind = exchange_type or "direct"
    if kind not in ("direct", "topic"):
        raise ValueError(f"only queues of direct and topic exchanges can be added, not of {kind!r}")
    queue = text("queue", queue, KEPT_NAME)
    source = QueueSource(
        text("exchange", exchange or queue, KEPT_NAME),
        kind,
        text("routing_key", routing_key or queue, KEPT_NAME),
    )
    worker.queues.add(queue, source)
    return ok(f"add consumer {queue}")


@control_command(args=[("queue", str)], signature="<queue>")
def cancel_consumer(worker: Parts, queue: str, **_ignored: Any) -> dict[str, object]:
    """Stop taking from a queue."""
    queue = text("queue", queue)
    worker.queues.cancel(queue)
    return ok(f"no longer consuming from {queue}")


@control_command(args=[("queue", str)], signature="<queue>")
def pause(worker: Parts, queue: str, by: str | None = None) -> dict[str, object]:
    """Stop all greenq workers from taking from a queue until `resume`; stored on the server."""
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
    return ok(f"queue {queue} is taken from again")
