"""From a task's name and arguments to a message on its queue."""

from __future__ import annotations

import math
import os
import socket
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict
from zoneinfo import ZoneInfo

from greenq.errors import (
    AccessRefused,
    ConfigError,
    ConnectionLost,
    EncodeError,
    OperationalError,
    Problem,
    ServerError,
)
from greenq.protocol import envelope
from greenq.protocol.message import TaskMessage, encode, parse_time, saferepr
from greenq.routing import Router

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from greenq.config import RetryPolicy, TaskConfig
    from greenq.transport.broker import Broker

# Send options that shape the envelope and not the task.
_PROPERTIES = (
    "serializer", "compression", "exchange", "routing_key", "correlation_id", "reply_to",
    "delivery_mode",
)  # fmt: skip


class SendOptions(TypedDict, total=False):
    """What may be said about one sending of a task; every one may be left out or None.

    countdown: seconds from now; eta: a datetime, not before; expires: seconds from now or a
        datetime,
    not after; queue, or exchange with routing_key; priority: 0 (first) to 9; serializer,
    compression: names; time_limit, soft_time_limit: seconds; retry, retry_policy: about sending
    itself; headers: extra ones, which the task sees; shadow: a name to show instead of the task's.
    """

    task_id: str | None
    countdown: float | None
    eta: datetime | str | None
    expires: float | datetime | str | None
    queue: str | None
    exchange: str | None
    routing_key: str | None
    priority: int | None
    serializer: str | None
    compression: str | None
    headers: Mapping[str, Any] | None
    ignore_result: bool | None
    time_limit: float | None
    soft_time_limit: float | None
    shadow: str | None
    retry: bool | None
    retry_policy: Mapping[str, Any] | None
    root_id: str | None
    parent_id: str | None
    group_id: str | None
    group_index: int | None
    reply_to: str | None
    correlation_id: str | None
    delivery_mode: int | None
    argsrepr: str | None
    kwargsrepr: str | None


class Outgoing(TypedDict):
    """A message that is ready to be pushed: its queue, its priority and its text."""

    task_id: str
    queue: str
    priority: int
    text: str


class _Policy(NamedTuple):
    """How often sending is tried again, None for ever, and the pauses between, seconds."""

    max_retries: int | None
    interval_start: float
    interval_step: float
    interval_max: float

    def pause_s(self, tries: int) -> float:
        """Return the pause after so many retries."""
        return min(self.interval_start + tries * self.interval_step, self.interval_max)

    def total_s(self) -> float:
        """Add up all pauses."""
        if self.max_retries is None:
            return math.inf
        return sum(self.pause_s(tries) for tries in range(self.max_retries))


class Producer:
    """Writes task messages and pushes them; shared by all threads and greenlets of an app."""

    def __init__(self, broker: Broker, config: TaskConfig) -> None:
        """Send through `broker` with the defaults of `config`."""
        self._broker = broker
        self._config = config
        self._router = Router(config)
        self._zone = ZoneInfo(config.timezone)
        self._origin = f"gen{os.getpid()}@{socket.gethostname()}"
        # Redis needs no reply queue; Celery's readers expect the field.
        self._reply_to = str(uuid.uuid4())

    def send(
        self, task: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> str:
        """Send one task and return its id. Switches: yes.

        Raises:
            EncodeError: an argument cannot be serialized; nothing was sent.
            OperationalError: the server could not be reached within the retry policy.
        """
        outgoing = self.prepare(task, args, kwargs, options)
        began_s = time.monotonic()
        for queue in self._queues(outgoing, options):
            self._push(queue, outgoing, options, began_s)
        return outgoing["task_id"]

    def prepare(
        self, task: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Outgoing:
        """Write the message of a task without sending it; options as of `SendOptions`."""
        if not isinstance(args, (list, tuple)):
            raise EncodeError(f"args of {task} must be a list or tuple, not {type(args).__name__}")
        now = datetime.now(UTC)
        route = self._router.route(task)
        queue = options.get("queue") or options.get("routing_key") or route.queue
        if not self._config.task_create_missing_queues:
            self._check_declared(task, queue)
        task_id = options.get("task_id") or str(uuid.uuid4())
        expires, expiration = self._expires(options.get("expires"), now)
        message = TaskMessage(
            task=task,
            id=task_id,
            args=args,
            kwargs=dict(kwargs),
            shadow=options.get("shadow"),
            eta=self._eta(options.get("countdown"), options.get("eta"), now),
            expires=expires,
            group=options.get("group_id"),
            group_index=options.get("group_index"),
            retries=options.get("retries", 0),
            timelimit=(options.get("time_limit"), options.get("soft_time_limit")),
            root_id=options.get("root_id") or task_id,
            parent_id=options.get("parent_id"),
            argsrepr=options.get("argsrepr") or saferepr(args),
            kwargsrepr=options.get("kwargsrepr") or saferepr(kwargs),
            origin=self._origin,
            ignore_result=options.get("ignore_result", False),
            headers=dict(options.get("headers") or {}),
            callbacks=options.get("callbacks"),
            errbacks=options.get("errbacks"),
            chain=options.get("chain"),
            chord=options.get("chord"),
        )
        priority = options.get("priority", route.priority)
        if priority is None:
            priority = self._config.task_default_priority or 0
        text = self.write(
            message,
            queue=queue,
            priority=priority,
            expiration=expiration,
            **{name: options[name] for name in _PROPERTIES if options.get(name) is not None},
        )
        return Outgoing(task_id=task_id, queue=queue, priority=priority, text=text)

    def _check_declared(self, task: str, queue: str) -> None:
        known = self._config.task_queues or (self._config.task_default_queue,)
        if queue not in known:
            reason = f"task {task} goes there, but task_queues has only {', '.join(known)}"
            raise ConfigError([Problem("queue", queue, reason)])

    def write(
        self,
        message: TaskMessage,
        *,
        queue: str,
        priority: int,
        expiration: str | None = None,
        serializer: str | None = None,
        compression: str | None = None,
        exchange: str = "",
        routing_key: str | None = None,
        **properties: Any,
    ) -> str:
        """Return a message's text as it stands on its queue, with a delivery tag of its own."""
        encoded = encode(
            message,
            serializer=serializer or self._config.task_serializer,
            compression=compression or self._config.task_compression,
        )
        named = {"correlation_id": message.id, "reply_to": self._reply_to} | properties
        return envelope.wrap(
            encoded.body,
            content_type=encoded.content_type,
            content_encoding=encoded.content_encoding,
            headers=encoded.headers,
            properties=envelope.task_properties(
                queue=queue,
                exchange=exchange,
                routing_key=routing_key or queue,
                priority=priority,
                delivery_tag=str(uuid.uuid4()),
                expiration=expiration,
                **named,
            ),
        )

    def _queues(self, outgoing: Outgoing, options: Mapping[str, Any]) -> list[str]:
        """Return where to push: the queue itself, or what an exchange's bindings say."""
        exchange, routing_key = options.get("exchange"), options.get("routing_key")
        if not exchange or options.get("queue"):
            return [outgoing["queue"]]
        client = self._broker.client
        # Half of the time of the whole, so that as much is left for the push.
        with client.pooled(client.call_timeout_s / 2) as connection:
            queues = self._broker.bound_queues(connection, exchange, routing_key or "")
        if not queues:
            raise OperationalError(
                f"task {outgoing['task_id']}: no queue is bound to exchange {exchange!r} with "
                f"routing key {routing_key!r}; start a worker that consumes from one, or name one"
            )
        return queues

    def _push(
        self, queue: str, outgoing: Outgoing, options: Mapping[str, Any], began_s: float
    ) -> None:
        """Push, within the time of one call; with a retry policy, a try has half of it."""
        policy = self._policy(options)
        whole_s = self._broker.client.call_timeout_s
        left_s = began_s + whole_s - time.monotonic()
        if policy is not None:
            left_s = min(left_s, whole_s / 2)
        error: OperationalError | None
        try:
            self._broker.publish(queue, outgoing["text"], outgoing["priority"], timeout_s=left_s)
            return
        except OperationalError as exc:
            error = exc
        if policy is not None:
            new_id = None if options.get("task_id") else outgoing["task_id"]
            error = self._again(queue, outgoing, policy, began_s, new_id, error)
        if isinstance(error, (ServerError, AccessRefused)):
            raise error
        if error is not None:
            raise OperationalError(
                f"task {outgoing['task_id']} could not be sent to queue {queue!r}: {error}"
            ) from error

    def _again(
        self,
        queue: str,
        outgoing: Outgoing,
        policy: _Policy,
        began_s: float,
        new_id: str | None,
        error: OperationalError,
    ) -> OperationalError | None:
        """Push again as often as the policy allows; return the last error, None if it worked."""
        broker = self._broker
        whole_s = broker.client.call_timeout_s
        ends_s = began_s + max(whole_s, policy.total_s())
        tries, arrived = 0, False
        message = (queue, outgoing["text"], outgoing["priority"])
        while policy.max_retries is None or tries < policy.max_retries:
            if isinstance(error, AccessRefused) or (
                isinstance(error, ServerError) and not error.passes
            ):
                break
            arrived = arrived or isinstance(error, ConnectionLost)
            pause_s = policy.pause_s(tries)
            left_s = ends_s - time.monotonic() - pause_s
            if left_s <= 0:
                break
            time.sleep(pause_s)
            tries += 1
            timeout_s = min(left_s, whole_s / 2)
            try:
                if arrived:
                    broker.publish_once(*message, new_id=new_id, timeout_s=timeout_s)
                else:
                    broker.publish(*message, timeout_s=timeout_s)
            except OperationalError as exc:
                error = exc
            else:
                return None
        return error

    def _policy(self, options: Mapping[str, Any]) -> _Policy | None:
        """Return the policy of one sending, None for no retry."""
        retry = options.get("retry")
        if not (self._config.task_publish_retry if retry is None else retry):
            return None
        default: RetryPolicy = self._config.task_publish_retry_policy
        given = options.get("retry_policy") or {}
        return _Policy(
            given.get("max_retries", default.max_retries),
            given.get("interval_start", default.interval_start),
            given.get("interval_step", default.interval_step),
            given.get("interval_max", default.interval_max),
        )

    def _eta(
        self, countdown: float | None, eta: datetime | str | None, now: datetime
    ) -> str | None:
        if countdown:
            return (now.astimezone(self._zone) + timedelta(seconds=countdown)).isoformat()
        return eta.isoformat() if isinstance(eta, datetime) else eta

    def _expires(
        self, expires: float | datetime | str | None, now: datetime
    ) -> tuple[str | None, str | None]:
        """Return the header's text and the property's: whole milliseconds from now."""
        if expires is None:
            return None, None
        if isinstance(expires, (int, float)):
            moment = now + timedelta(seconds=expires)
            text = moment.astimezone(self._zone).isoformat()
        else:
            text = expires.isoformat() if isinstance(expires, datetime) else expires
            moment = parse_time(text, self._zone)
        left_ms = max(0, round((moment - now).total_seconds() * 1000))
        return text, str(left_ms)
