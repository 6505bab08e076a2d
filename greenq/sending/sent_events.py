"""The events that a sender publishes about its messages if `task_send_sent_event` is on."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from greenq.errors import OperationalError
from greenq.protocol.event import EXCHANGE, MULTI, EventWriter
from greenq.protocol.serialize import saferepr
from greenq.utils.log import OutageLog

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from greenq.protocol.clock import LamportClock
    from greenq.protocol.event import Stamped
    from greenq.sending.plan import SendPlan
    from greenq.transport.broker import Broker

_log = logging.getLogger(__name__)


class SentEvents:
    """Stamps and publishes events of sent messages."""

    def __init__(self, broker: Broker, origin: str, clock: LamportClock) -> None:
        """Publish through `broker`; `origin` names this process, and `clock` stamps the events."""
        self._broker = broker
        self._writer = EventWriter(origin, clock)
        self._outage = OutageLog(_log)

    def stamp(
        self, plan: SendPlan, options: Mapping[str, Any], task_id: str, args: object, kwargs: object
    ) -> Stamped:
        """Return the task-sent event of a message."""
        message = plan.message
        fields = {
            "uuid": task_id,
            "root_id": options.get("root_id") or task_id,
            "parent_id": options.get("parent_id"),
            "name": message.task,
            "args": message.argsrepr or saferepr(args),
            "kwargs": message.kwargsrepr or saferepr(kwargs),
            "retries": message.retries,
            "eta": message.eta,
            "expires": message.expires,
            "queue": plan.queue or plan.routing_key,
            "exchange": plan.exchange,
            "routing_key": plan.routing_key,
        }
        return self._writer.stamp("task-sent", fields)

    def publish(self, events: Sequence[Stamped]) -> None:
        """Publish the events of tasks already sent; if that fails, the send still succeeds."""
        channel = self._broker.keys.fanout(EXCHANGE, MULTI)
        try:
            self._broker.client.call("PUBLISH", channel, self._writer.write_batch(events))
            self._outage.recovered("events are published again")
        except OperationalError as exc:
            self._outage.failed("tasks were sent, but their task-sent events were not", exc)
