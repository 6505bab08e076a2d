"""The queues defined in the settings, with their defaults, for senders and workers to look up."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from greenq.config.queues import Broadcast, Exchange, Queue, broadcast_or

if TYPE_CHECKING:
    from collections.abc import Iterable

    from greenq.config.settings import TaskConfig


def declared(config: TaskConfig) -> dict[str, Queue | Broadcast]:
    """Return the queues in the settings by name, each with its exchange and its routing key.

    A queue given as a name has its own exchange, whose name and routing key are the queue's name. A
    `Queue` without an exchange has the default exchange.
    """
    default = config.task_default_exchange or config.task_default_queue
    exchange = Exchange(default, config.task_default_exchange_type)
    key = config.task_default_routing_key or config.task_default_queue
    given: Iterable[str | Queue | Broadcast] = config.task_queues
    if not config.task_queues:
        given = [broadcast_or(Queue(config.task_default_queue, exchange, key))]

    def complete(queue: str | Queue | Broadcast) -> Queue | Broadcast:
        if isinstance(queue, str):
            return Queue(queue, Exchange(queue), queue)
        if isinstance(queue, Broadcast):
            own_key = key if queue.routing_key is None else queue.routing_key
            return replace(queue, exchange=queue.exchange or queue.name, routing_key=own_key)
        own = replace(
            queue, exchange=queue.exchange or exchange, routing_key=queue.routing_key or key
        )
        return broadcast_or(own)

    return {str(each): complete(each) for each in given}
