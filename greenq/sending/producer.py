"""From a task's name and arguments to a message on its queue."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict
from zoneinfo import ZoneInfo

from greenq.errors import (
    AccessRefused,
    ConfigError,
    ConnectionLost,
    EncodeError,
    NotAllSent,
    OperationalError,
    Problem,
    ServerError,
)
from greenq.log import OutageLog
from greenq.protocol import envelope
from greenq.protocol.clock import LamportClock
from greenq.protocol.event import EXCHANGE, MULTI, EventWriter
from greenq.protocol.ids import TaskIds, new_id, tag_of, tag_prefix
from greenq.protocol.message import TaskMessage, encode, parse_time, saferepr
from greenq.protocol.template import Template
from greenq.sending.arguments import explained
from greenq.sending.options import check_send_options
from greenq.sending.routing import Router

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from greenq.config.settings import RetryPolicy, TaskConfig
    from greenq.protocol.event import Stamped
    from greenq.transport.broker import Broker

_log = logging.getLogger(__name__)

# One push of a bulk send ends at whichever limit is reached first. More messages would gain little,
# and commands of many hundred KB cost more per message again, for memory from the system.
_CHUNK_COUNT = 200
_CHUNK_CHARACTERS = 256 << 10
_CHUNK_S = 1.0

# Options with few different values: templates for them are worth keeping.
_KEPT = frozenset({
    "queue", "priority", "serializer", "compression", "exchange", "routing_key", "ignore_result",
    "time_limit", "soft_time_limit", "delivery_mode", "reply_to", "retry",
})  # fmt: skip
_KEPT_COUNT = 256

# Options that fill gaps in a template.
_OF_EACH = ("task_id", "root_id", "parent_id", "group_index")

# Send options that affect the envelope, not the task.
_PROPERTIES = ("exchange", "correlation_id", "reply_to", "delivery_mode")


Call = tuple[str, Sequence[Any], Mapping[str, Any], Mapping[str, Any]]
"""A task's name, its args, its kwargs, and options by the names of `SendOptions`."""


class SendOptions(TypedDict, total=False):
    """Options of one sending of a task; each may be left out or None.

    countdown: seconds from now.
    eta: a datetime; the task does not run before it.
    expires: seconds from now or a datetime; the task does not run after it.
    queue: where to send, or exchange with routing_key.
    priority: 0 (first) to 9; other numbers are clamped.
    serializer, compression: names.
    time_limit, soft_time_limit: seconds.
    retry, retry_policy: whether and how to retry the sending itself.
    headers: extra headers, which the task sees.
    shadow: a name to show instead of the task's.
    link, link_error: signatures to call when it returns or fails.
    stamped_headers, stamps: names and values of its stamps.
    add_to_parent: False leaves it out of the children of the task that sends it.
    group_id, group_index, chain, chord, replaced_task_nesting: its place in a workflow.
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
    link: Any
    link_error: Any
    chain: Sequence[Any] | None
    chord: Mapping[str, Any] | None
    stamped_headers: Sequence[str] | None
    stamps: Mapping[str, Any] | None
    replaced_task_nesting: int | None
    add_to_parent: bool | None


class Outgoing(TypedDict):
    """A message ready to be pushed: its queue, its priority and its text."""

    task_id: str
    queue: str
    priority: int
    text: str


class _Policy(NamedTuple):
    """How often to retry sending, None for ever, and the pauses between, in seconds."""

    max_retries: int | None
    interval_start: float
    interval_step: float
    interval_max: float

    def allows(self, tries: int, error: OperationalError) -> bool:
        """Tell whether to try again after an error and `tries` retries."""
        refused = isinstance(error, AccessRefused) or (
            isinstance(error, ServerError) and not error.passes
        )
        return not refused and (self.max_retries is None or tries < self.max_retries)

    def pause_s(self, tries: int) -> float:
        """Return the pause after `tries` retries."""
        return min(self.interval_start + tries * self.interval_step, self.interval_max)

    def total_s(self) -> float:
        """Add up all pauses."""
        if self.max_retries is None:
            return math.inf
        return sum(self.pause_s(tries) for tries in range(self.max_retries))


class _Plan(NamedTuple):
    """What all sendings of one task with the same options have in common.

    With `broadcast`, the queue's messages are published instead of pushed.
    """

    queue: str
    broadcast: bool
    priority: int
    exchange: str | None
    routing_key: str | None
    policy: _Policy | None
    message: TaskMessage
    serializer: str
    template: Template

    @property
    def place(self) -> tuple[object, ...]:
        """Where its messages go: those of plans with the same place may share a push."""
        exchange = self.exchange, self.routing_key
        return self.queue, self.broadcast, self.priority, exchange, self.policy


class CallsCutOff(Exception):
    """Sending several calls ended early.

    Attributes:
        sent: how many were sent.
        unknown: how many of those after them may have been.
        reason: why not more.
    """

    def __init__(self, sent: int, unknown: int, reason: Exception) -> None:
        """Keep all three."""
        super().__init__(sent, unknown, reason)
        self.sent = sent
        self.unknown = unknown
        self.reason = reason


class _Batch:
    """The messages of one round of pushes: one push for each place they go to."""

    def __init__(self) -> None:
        self.count = 0
        self.tag_prefix = tag_prefix(time.time())
        self.events: list[Stamped] = []
        self._characters = 0
        self._ends_s = time.monotonic() + _CHUNK_S
        self._places: dict[tuple[object, ...], tuple[_Plan, list[str], list[str]]] = {}

    def is_full(self) -> bool:
        """Tell whether the next message belongs to another round."""
        return (
            self.count >= _CHUNK_COUNT
            or self._characters >= _CHUNK_CHARACTERS
            or (self.count > 0 and time.monotonic() >= self._ends_s)
        )

    @property
    def may_be_split(self) -> int:
        """How many messages may be sent in part: all, if they go to several queues."""
        split = len(self._places) > 1 or any(plan.exchange for plan, _, _ in self.by_plan())
        return self.count if split else 0

    def add(self, plan: _Plan, task_id: str, text: str) -> None:
        """Add a message."""
        place = self._places.get(plan.place)
        if place is None:
            place = self._places[plan.place] = (plan, [], [])
        place[1].append(task_id)
        place[2].append(text)
        self.count += 1
        self._characters += len(text)

    def by_plan(self) -> Iterable[tuple[_Plan, list[str], list[str]]]:
        """Return the ids and texts for each place, with a plan that leads there."""
        return self._places.values()


class _KnownPlans:
    """The plans of calls that are sent together: most have one of a few sets of options."""

    def __init__(
        self,
        producer: Producer,
        complete: Callable[[str, Mapping[str, Any]], Mapping[str, Any]],
    ) -> None:
        self._producer = producer
        self._complete = complete
        # With the options, so that no other object can have the identity of one of their values.
        self._known: dict[tuple[object, ...], tuple[_Plan, Mapping[str, Any]]] = {}

    def forget_times(self) -> None:
        """Forget plans with a time: a countdown counts from each push."""
        known = self._known.items()
        self._known = {
            key: each
            for key, each in known
            if each[0].message.eta is None and each[0].message.expires is None
        }

    def plan(self, task: str, options: Mapping[str, Any]) -> _Plan:
        """Return the plan of a call; values of its options that are not text count by identity."""
        key = (
            task,
            *[
                (name, value if value.__class__ is str else id(value))
                for name, value in options.items()
                if name not in _OF_EACH
            ],
        )
        known = self._known.get(key)
        if known is None:
            plan = self._producer.plan_of(task, self._complete(task, options))
            if len(self._known) >= _KEPT_COUNT:
                self._known.clear()
            known = self._known[key] = (plan, options)
        return known[0]


class Producer:
    """Writes task messages and pushes them; shared by all threads and greenlets of an app."""

    def __init__(
        self, broker: Broker, config: TaskConfig, clock: LamportClock | None = None
    ) -> None:
        """Send through `broker` with the defaults of `config`; `clock` stamps events."""
        self._broker = broker
        self._config = config
        self._router = Router(config)
        self._zone = ZoneInfo(config.timezone)
        self._origin = f"gen{os.getpid()}@{socket.gethostname()}"
        # Redis needs no reply queue, but Celery's readers expect the field.
        self._reply_to = str(uuid.uuid4())
        # Two threads may both make an entry; that is harmless, so no lock.
        self._kept: dict[tuple[object, ...], _Plan] = {}
        self._events: EventWriter | None = None
        if config.task_send_sent_event:
            self._events = EventWriter(self._origin, clock or LamportClock())
        self._unheard = OutageLog(_log)

    def send(
        self, task: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> str:
        """Send one task and return its id. Switches: yes.

        Raises:
            EncodeError: an argument cannot be serialized; nothing was sent.
            OperationalError: the server could not be reached within the retry policy.
        """
        plan = self.plan_of(task, options)
        task_id, text = self._fill(plan, args, kwargs, options)
        # Stamped first: the task may be done before the event is published.
        events = [] if self._events is None else [self._sent(plan, options, task_id, args, kwargs)]
        self._push(plan, [text], f"task {task_id}", () if options.get("task_id") else (task_id,))
        if events:
            self._tell(events)
        return task_id

    def send_many(
        self,
        task: str,
        calls: Iterable[tuple[Sequence[Any], Mapping[str, Any]]],
        options: Mapping[str, Any],
    ) -> TaskIds:
        """Send one task many times, in order, and return the new ids. Switches: yes.

        Holds one push of messages at a time: 200 messages, 256 KB, or what arrived within a second.
        A push arrives as a whole or not at all; each is retried as a single send is. Countdowns and
        expiries count from when the push is written.

        Raises:
            NotAllSent: an item is wrong, `calls` raised an error, or the server could not be
                reached; everything before that has been sent.
        """
        ids = TaskIds()
        waiting = zip(ids, calls)  # noqa: B905  there is no end of ids
        sent = 0
        while True:
            plan = self.plan_of(task, options)
            events: list[Stamped] = []

            def note(*call: Any, plan: _Plan = plan, told: list[Stamped] = events) -> None:
                told.append(self._sent(plan, options, *call))

            texts, error = _write_chunk(
                plan, waiting, options, note if self._events is not None else None
            )
            chunk = ids[sent : sent + len(texts)]
            try:
                if texts:
                    self._push(plan, texts, f"{len(texts)} tasks {task}", chunk)
            except OperationalError as exc:
                # An exchange may lead to several queues, and the first may have received them.
                unknown = chunk if plan.exchange or isinstance(exc, ConnectionLost) else ()
                raise NotAllSent(task, ids[:sent], unknown, exc) from exc
            if events:
                self._tell(events)
            sent += len(texts)
            if error is not None:
                raise NotAllSent(task, ids[:sent], (), error) from error
            if not texts:
                return ids[:sent]

    def send_calls(
        self,
        calls: Iterable[Call],
        complete: Callable[[str, Mapping[str, Any]], Mapping[str, Any]],
        *,
        on_more: Callable[[], object] | None = None,
        on_last: Callable[[], object] | None = None,
    ) -> None:
        """Send calls of different tasks, in order, in as few pushes as `send_many`. Switches: yes.

        Args:
            complete: adds to the options of a call what its task and the sender ask for; called
                once for calls with the same options.
            on_more: called before the first push if there will be another one.
            on_last: called before the last push.

        Raises:
            CallsCutOff: a call is wrong, `calls` raised an error, or the server could not be
                reached.
        """
        known, batch = _KnownPlans(self, complete), _Batch()
        sent = unknown = 0
        new_ids = iter(TaskIds())
        try:
            for task, args, kwargs, options in calls:
                if batch.is_full():
                    if on_more is not None and not sent:
                        on_more()
                    unknown = batch.may_be_split
                    self._push_batch(batch)
                    sent, unknown = sent + batch.count, 0
                    known.forget_times()
                    batch = _Batch()
                plan = known.plan(task, options)
                new, prefix = next(new_ids), batch.tag_prefix
                task_id, text = self._fill(plan, args, kwargs, options, new, prefix)
                batch.add(plan, task_id, text)
                if self._events is not None:
                    batch.events.append(self._sent(plan, options, task_id, args, kwargs))
            if on_last is not None:
                on_last()
            unknown = batch.may_be_split
            self._push_batch(batch)
        except Exception as exc:
            if isinstance(exc, ConnectionLost):
                unknown = batch.count
            raise CallsCutOff(sent, unknown, exc) from exc

    def _push_batch(self, batch: _Batch) -> None:
        for plan, ids, texts in batch.by_plan():
            self._push(plan, texts, f"{len(texts)} tasks of a workflow", ids)
        if batch.events:
            self._tell(batch.events)

    def _sent(
        self, plan: _Plan, options: Mapping[str, Any], task_id: str, args: object, kwargs: object
    ) -> Stamped:
        """Return the task-sent event of one message."""
        assert self._events is not None
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
            "queue": plan.queue,
            "exchange": plan.exchange or "",
            "routing_key": plan.routing_key or plan.queue,
        }
        return self._events.stamp("task-sent", fields)

    def _tell(self, events: Sequence[Stamped]) -> None:
        """Publish events of tasks already sent; if that fails, the sending still succeeds."""
        assert self._events is not None
        channel = self._broker.keys.fanout(EXCHANGE, MULTI)
        try:
            self._broker.client.call("PUBLISH", channel, self._events.write_batch(events))
            self._unheard.recovered("events are published again")
        except OperationalError as exc:
            self._unheard.failed("tasks were sent, but their task-sent events were not", exc)

    def prepare(
        self, task: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Outgoing:
        """Write the message of a task without sending it; options are those of `SendOptions`."""
        plan = self.plan_of(task, options)
        task_id, text = self._fill(plan, args, kwargs, options)
        return Outgoing(task_id=task_id, queue=plan.queue, priority=plan.priority, text=text)

    @staticmethod
    def _fill(
        plan: _Plan,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
        new: str = "",
        prefix: str = "",
    ) -> tuple[str, str]:
        """Return the id and the text of one message.

        Args:
            new: an id made for this push alone, made here if there is none. It also serves as
                delivery tag, with `prefix`: a given task id may be used again.
        """
        if not new:
            new, prefix = new_id(), tag_prefix(time.time())
        task_id = options.get("task_id") or new
        try:
            text = plan.template.fill(
                task_id,
                args,
                kwargs,
                delivery_tag=tag_of(prefix, new),
                root_id=options.get("root_id"),
                parent_id=options.get("parent_id"),
                group_index=options.get("group_index"),
            )
        except EncodeError as exc:
            raise _explained(plan, args, kwargs, exc) from exc
        except TypeError:
            # An id that is not text; the other options have been checked.
            check_send_options(plan.message.task, options)
            raise
        return task_id, text

    def plan_of(self, task: str, options: Mapping[str, Any]) -> _Plan:
        """Return what all messages sent with these options have in common."""
        shared = {name: value for name, value in options.items() if name not in _OF_EACH}
        if not shared.keys() <= _KEPT:
            return self._make_plan(task, shared)
        # The types belong to the key: 1, 1.0 and True are equal but written differently.
        key = (task, *shared.items(), *map(type, shared.values()))
        try:
            plan = self._kept.get(key)
        except TypeError:
            # An unhashable value is a wrong one: let the check name it.
            return self._make_plan(task, shared)
        if plan is None:
            plan = self._make_plan(task, shared)
            if len(self._kept) >= _KEPT_COUNT:
                self._kept.clear()
            self._kept[key] = plan
        return plan

    def _make_plan(self, task: str, options: Mapping[str, Any]) -> _Plan:
        options = check_send_options(task, options)
        now = datetime.now(UTC)
        route = self._router.route(task)
        queue = options.get("queue") or options.get("routing_key") or route.queue
        exchange = None if options.get("queue") else options.get("exchange")
        routing_key = options.get("routing_key")
        broadcast = (exchange or queue) in self._router.broadcasts
        properties = {"reply_to": self._reply_to} | {
            name: options[name] for name in _PROPERTIES if options.get(name) is not None
        }
        if broadcast:
            queue = properties["exchange"] = exchange or queue
            # A routing key that only names the queue does not belong to its exchange.
            if not routing_key or routing_key == queue:
                routing_key = self._router.routing_key
        if not self._config.task_create_missing_queues:
            self._check_declared(task, queue)
        expires, expiration = self._expires(options.get("expires"), now)
        message = TaskMessage(
            task=task,
            id="",
            shadow=options.get("shadow"),
            eta=self._eta(options.get("countdown"), options.get("eta"), now),
            expires=expires,
            group=options.get("group_id"),
            retries=options.get("retries", 0),
            timelimit=(options.get("time_limit"), options.get("soft_time_limit")),
            argsrepr=options.get("argsrepr") or None,
            kwargsrepr=options.get("kwargsrepr") or None,
            origin=self._origin,
            ignore_result=options.get("ignore_result"),
            headers=dict(options.get("headers") or {}),
            replaced_task_nesting=options.get("replaced_task_nesting") or 0,
            stamped_headers=_listed(options.get("stamped_headers")),
            stamps=options.get("stamps") or {},
            callbacks=_listed(options.get("link")),
            errbacks=_listed(options.get("link_error")),
            chain=_listed(options.get("chain")),
            chord=options.get("chord"),
        )
        priority = options.get("priority", route.priority)
        if priority is None:
            priority = self._config.task_default_priority or 0
        serializer = options.get("serializer") or self._config.task_serializer
        template = Template(
            message,
            serializer=serializer,
            max_bytes=self._config.task_max_body_bytes,
            compression=options.get("compression") or self._config.task_compression,
            queue=queue,
            routing_key=routing_key or queue,
            priority=priority,
            expiration=expiration,
            **properties,
        )
        policy = self._policy(options)
        return _Plan(
            queue, broadcast, priority, exchange, routing_key, policy, message, serializer, template
        )

    def _check_declared(self, task: str, queue: str) -> None:
        known = self._router.queues
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
        """Return a message's text as it appears on its queue, with a new delivery tag."""
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
                delivery_tag=tag_of(tag_prefix(time.time()), new_id()),
                expiration=expiration,
                **named,
            ),
        )

    def queue_of(self, exchange: str, routing_key: str) -> str:
        """Return the one queue that an exchange leads to. Switches: yes.

        Raises:
            ValueError: it leads to none or to several.
            OperationalError: the server could not be asked.
        """
        client = self._broker.client
        with client.pooled(client.call_timeout_s) as connection:
            queues = self._broker.bound_queues(connection, exchange, routing_key)
        if len(queues) != 1:
            raise ValueError(
                f"exchange {exchange!r} leads to {', '.join(queues) or 'no queue'} with routing "
                f"key {routing_key!r}, but a message must go to one queue; name it with queue="
            )
        return queues[0]

    def _queues(self, plan: _Plan, what: str) -> list[str]:
        """Return the queues to push to: the queue itself, or those bound to the exchange."""
        if plan.broadcast or not plan.exchange:
            return [plan.queue]
        client = self._broker.client
        # Half of the whole time, so that as much is left for the push.
        with client.pooled(client.call_timeout_s / 2) as connection:
            queues = self._broker.bound_queues(connection, plan.exchange, plan.routing_key or "")
        if not queues:
            raise OperationalError(
                f"{what}: no queue is bound to exchange {plan.exchange!r} with routing key "
                f"{plan.routing_key!r}; start a worker that consumes from one, or name a queue"
            )
        return queues

    def _push(self, plan: _Plan, texts: Sequence[str], what: str, new_ids: Sequence[str]) -> None:
        """Push messages together to each of their queues, within the time of one call.

        Args:
            what: names them in errors.
            new_ids: their task ids if made for this push.

        Raises:
            ConnectionLost: an answer got lost, so they may have arrived.
            OperationalError: they have not arrived.
        """
        began_s = time.monotonic()
        for queue in self._queues(plan, what):
            self._push_to(queue, plan, texts, what, new_ids, began_s)

    def _push_to(
        self,
        queue: str,
        plan: _Plan,
        texts: Sequence[str],
        what: str,
        new_ids: Sequence[str],
        began_s: float,
    ) -> None:
        """Push to one queue, as often as the policy allows; an attempt gets half a call's time.

        A broadcast leaves no trace, so it is not repeated when it may have been received.
        """
        broker, policy = self._broker, plan.policy
        whole_s = broker.client.call_timeout_s
        left_s = began_s + whole_s - time.monotonic()
        if policy is not None:
            left_s = min(left_s, whole_s / 2)
        tries, may_be_there = 0, False
        while True:
            try:
                if plan.broadcast:
                    broker.broadcast(queue, texts, plan.routing_key or "", timeout_s=left_s)
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
        if isinstance(error, (ServerError, AccessRefused)) and not may_be_there:
            raise error
        if may_be_there:
            raise ConnectionLost(
                f"{what} may or may not have been sent to queue {queue!r}; the answer got lost: "
                f"{error}"
            ) from error
        raise OperationalError(f"{what} could not be sent to queue {queue!r}: {error}") from error

    def _policy(self, options: Mapping[str, Any]) -> _Policy | None:
        """Return the retry policy of one sending, None for no retries."""
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
            moment = parse_time(text)
        left_ms = max(0, round((moment - now).total_seconds() * 1000))
        return text, str(left_ms)


def _listed(value: Any) -> list[Any] | None:
    """Return one signature, or several, as a list; None for none."""
    if not value:
        return None
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _explained(
    plan: _Plan, args: Sequence[Any], kwargs: Mapping[str, Any], error: EncodeError
) -> EncodeError:
    """Say in which task, and where in its arguments, something cannot be written."""
    if not isinstance(args, (list, tuple)) or not hasattr(kwargs, "keys"):
        return error
    return explained(plan.message.task, args, kwargs, plan.serializer, error)


def _write_chunk(
    plan: _Plan,
    waiting: Iterator[tuple[str, tuple[Sequence[Any], Mapping[str, Any]]]],
    options: Mapping[str, Any],
    note: Callable[[str, Any, Any], object] | None,
) -> tuple[list[str], Exception | None]:
    """Write the messages of one push, and return the error that ended it early, if any.

    `note` is called with the id, args and kwargs of each.
    """
    root_id, parent_id, group_index = map(options.get, ("root_id", "parent_id", "group_index"))
    texts: list[str] = []
    characters = 0
    prefix = tag_prefix(time.time())
    ends_s = time.monotonic() + _CHUNK_S
    template = plan.template
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = {}
    try:
        for task_id, (args, kwargs) in islice(waiting, _CHUNK_COUNT):
            tag = tag_of(prefix, task_id)
            text = template.fill(
                task_id,
                args,
                kwargs,
                delivery_tag=tag,
                root_id=root_id,
                parent_id=parent_id,
                group_index=group_index,
            )
            texts.append(text)
            if note is not None:
                note(task_id, args, kwargs)
            characters += len(text)
            if characters >= _CHUNK_CHARACTERS or time.monotonic() >= ends_s:
                break
    # Whether an item is wrong or its source fails: those before it are sent.
    except EncodeError as exc:
        return texts, _explained(plan, args, kwargs, exc)
    except Exception as exc:
        return texts, exc
    return texts, None
