"""Pushing written messages: which queues to push to, how often to try, and what an error means."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from greenq.errors import (
    AccessRefused,
    ConnectionLost,
    OperationalError,
    QueueFull,
    ServerError,
    Unroutable,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from greenq.sending.plan import SendPlan
    from greenq.transport.broker import Broker


class Pusher:
    """Pushes the messages of plans.

    All attempts to push take no longer than the time limit of one call or, if that is longer, than
    all pauses of the retry policy together.
    """

    def __init__(self, broker: Broker) -> None:
        """Push through `broker`."""
        self._broker = broker

    def queue_of(self, exchange: str, routing_key: str) -> str:
        """Return the one queue that an exchange leads to. Switches: yes.

        Raises:
            ValueError: the exchange leads to no queue, or to several.
            OperationalError: the server could not be queried.
        """
        client = self._broker.client
        with client.pooled(client.call_timeout_s, patient=True) as connection:
            queues = self._broker.bound_queues(connection, exchange, routing_key)
        if len(queues) != 1:
            raise ValueError(
                f"exchange {exchange!r} leads to {', '.join(queues) or 'no queue'} with routing "
                f"key {routing_key!r}, but a message must go to one queue; name one with queue="
            )
        return queues[0]

    def one_queue(self, plan: SendPlan) -> str:
        """Return the one queue that a plan's messages go to; raise the errors of `queue_of`."""
        if plan.broadcast:
            raise ValueError(
                f"task {plan.message.task} goes to every worker that listens to exchange "
                f"{plan.exchange!r}, but this message must go to one queue; name one with queue="
            )
        return self.queue_of(plan.exchange, plan.routing_key)

    def queues(self, plan: SendPlan, what: str) -> list[str]:
        """Return the queues to push to: the plan's queue, or those bound to its exchange."""
        if plan.queue:
            return [plan.queue]
        client = self._broker.client
        # Use half of the total time, so that half is left for the push.
        with client.pooled(client.call_timeout_s / 2, patient=True) as connection:
            queues = self._broker.bound_queues(connection, plan.exchange, plan.routing_key)
        if not queues:
            raise Unroutable(
                f"{what}: no queue is bound to exchange {plan.exchange!r} with routing key "
                f"{plan.routing_key!r}; start a worker that consumes from such a queue, or name a "
                "queue"
            )
        return queues

    def push(self, plan: SendPlan, texts: Sequence[str], what: str, new_ids: Sequence[str]) -> None:
        """Push messages together to each of their queues.

        Args:
            what: names the messages in errors.
            new_ids: the messages' task ids, if they were created for this push.

        Raises:
            ConnectionLost: a reply was lost, so the messages may have arrived.
            OperationalError: the messages have not arrived.
        """
        began_s = time.monotonic()
        for queue in self.queues(plan, what):
            self._push_to(queue, plan, texts, what, new_ids, began_s)

    def _push_to(
        self,
        queue: str,
        plan: SendPlan,
        texts: Sequence[str | bytes],
        what: str,
        new_ids: Sequence[str],
        began_s: float,
    ) -> None:
        """Push to one queue, as often as the policy allows; each attempt gets half a call's time.

        A broadcast leaves no trace, so it is not repeated if it may have been received.
        """
        broker, policy, signer = self._broker, plan.policy, self._broker.signer
        if signer is not None:
            # Sign here, since the signature covers the queue, and an exchange may lead to several
            # queues.
            texts = [signer.seal("message", queue, text) for text in texts]
        whole_s = broker.client.call_timeout_s
        left_s = began_s + whole_s - time.monotonic()
        if policy is not None:
            left_s = min(left_s, whole_s / 2)
        tries, may_be_there = 0, False
        while True:
            try:
                if plan.broadcast:
                    self._broadcast(plan, texts, what, left_s)
                elif may_be_there:
                    broker.publish_once(
                        queue, texts, plan.priority, new_ids=new_ids, timeout_s=left_s
                    )
                else:
                    broker.publish(queue, texts, plan.priority, timeout_s=left_s)
            except OperationalError as exc:
                error = exc
            else:
                return
            may_be_there = may_be_there or isinstance(error, ConnectionLost)
            if policy is None or not policy.allows(tries, error):
                break
            if plan.broadcast and may_be_there:
                break
            pause_s = policy.pause_s(tries)
            ends_s = began_s + max(whole_s, policy.total_s())
            left_s = min(ends_s - time.monotonic() - pause_s, whole_s / 2)
            if left_s <= 0:
                break
            time.sleep(pause_s)
            tries += 1
        is_plain = isinstance(error, (ServerError, AccessRefused, QueueFull, Unroutable))
        if is_plain and not may_be_there:
            raise error
        if may_be_there:
            raise ConnectionLost(
                f"{what} may or may not have been sent to queue {queue!r}; the reply was lost: "
                f"{error}"
            ) from error
        raise OperationalError(f"{what} could not be sent to queue {queue!r}: {error}") from error

    def _broadcast(
        self, plan: SendPlan, texts: Sequence[str | bytes], what: str, timeout_s: float
    ) -> None:
        heard = self._broker.broadcast(plan.exchange, texts, plan.routing_key, timeout_s=timeout_s)
        if not heard:
            raise Unroutable(
                f"{what}: no worker listens to exchange {plan.exchange!r} with routing key "
                f"{plan.routing_key!r}, and a broadcast is not stored; start a worker that "
                f"consumes from it, or catch greenq.errors.Unroutable if that is acceptable"
            )
