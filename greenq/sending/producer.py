"""From a task's name and arguments to a message on its queue."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import groupby, islice
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
    QueueFull,
    ServerError,
    Unroutable,
)
from greenq.log import OutageLog
from greenq.protocol.clock import LamportClock
from greenq.protocol.event import EXCHANGE, MULTI, EventWriter
from greenq.protocol.ids import TaskIds, new_id, tag_of, tag_prefix
from greenq.protocol.message import TaskMessage, parse_time, saferepr
from greenq.protocol.template import Template
from greenq.sending.announced import announce, write
from greenq.sending.arguments import explained
from greenq.sending.options import check_send_options
from greenq.sending.routing import Router
from greenq.signals import after_task_publish, before_task_publish

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from greenq.config.queues import Exchange
    from greenq.config.settings import RetryPolicy, TaskConfig
    from greenq.protocol.event import Stamped
    from greenq.sending.announced import Announced
    from greenq.transport.broker import Broker

_log = logging.getLogger(__name__)

# A push of a bulk send ends at the limit that is reached first. More messages would gain little,
# and commands of many hundred KB cost more per message, because of memory allocation.
_CHUNK_COUNT = 200
_CHUNK_CHARACTERS = 256 << 10
_CHUNK_S = 1.0

# The messages that begin a workflow may contain all the rest of it. They are one push up to here,
# since a workflow of which a killed sender has sent a part can never end.
_WHOLE_CHARACTERS = 8 << 20

# Options with few different values: templates for them are worth keeping.
_KEPT = frozenset({
    "queue", "priority", "serializer", "compression", "exchange", "exchange_type", "routing_key",
    "ignore_result", "time_limit", "soft_time_limit", "delivery_mode", "reply_to", "retry",
})  # fmt: skip
_KEPT_COUNT = 256

# Options that fill gaps in a template.
_OF_EACH = ("task_id", "root_id", "parent_id", "group_index")

# Send options that affect the envelope, not the task.
_PROPERTIES = ("correlation_id", "reply_to", "delivery_mode")


Call = tuple[str, Sequence[Any], Mapping[str, Any], Mapping[str, Any]]
"""A task's name, its args, its kwargs, and options by the names of `SendOptions`."""


class SendOptions(TypedDict, total=False):
    """Options of one sending of a task; each may be left out or None.

    countdown: seconds from now.
    eta: a datetime; the task does not run before it.
    expires: seconds from now or a datetime; the task does not run after it.
    queue: where to send, or exchange (a name or an `Exchange`) with routing_key.
    exchange_type: fanout, if the exchange has this type and `task_queues` does not contain it.
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
    exchange: str | Exchange | None
    exchange_type: str | None
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
    """A message ready to be pushed: its queue, its priority and its text.

    channel: the channel on which it is published instead, if its exchange is a fanout;
    otherwise "". announced: not None if it was passed to signal receivers. Code that pushes it
        calls its `sent` afterwards.
    """

    task_id: str
    queue: str
    channel: str
    priority: int
    text: str | bytes
    announced: Announced | None


class _Policy(NamedTuple):
    """How often to retry sending (None: no limit), and the pauses between, in seconds."""

    max_retries: int | None
    interval_start: float
    interval_step: float
    interval_max: float

    def allows(self, tries: int, error: OperationalError) -> bool:
        """Return whether to try again after an error and `tries` retries."""
        refused = isinstance(error, (AccessRefused, QueueFull, Unroutable)) or (
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


class _Encoding(TypedDict):
    """The encoding of a message, as `Template` takes it."""

    serializer: str
    compression: str | None
    max_bytes: int | None


class _Plan(NamedTuple):
    """The common data of all sendings of one task with the same options.

    With `broadcast`, the queue's messages are published instead of pushed. The template has been
    created from `message`, `encoding` and `properties`.
    """

    queue: str
    broadcast: bool
    priority: int
    exchange: str
    routing_key: str
    policy: _Policy | None
    message: TaskMessage
    encoding: _Encoding
    properties: Mapping[str, Any]
    template: Template

    @property
    def place(self) -> tuple[object, ...]:
        """The destination of its messages; plans with the same destination can share a push."""
        exchange = self.exchange, self.routing_key
        return self.queue, self.broadcast, self.priority, exchange, self.policy


class Filled(NamedTuple):
    """A message of a plan, with its new id.

    Attributes:
        task_id: the id.
        texts: the message's text for each of its queues.
        announced: not None if it was passed to signal receivers; see `Outgoing`.
    """

    task_id: str
    texts: tuple[str | bytes, ...]
    announced: Announced | None


class CallsCutOff(Exception):
    """Sending several calls ended early.

    Attributes:
        sent: how many were sent.
        unknown: how many of the next ones may have been sent.
        reason: the error that ended the sending.
    """

    def __init__(self, sent: int, unknown: int, reason: Exception) -> None:
        """Keep all three."""
        super().__init__(sent, unknown, reason)
        self.sent = sent
        self.unknown = unknown
        self.reason = reason


class _Batch:
    """The messages of one round of pushes: one push for each destination."""

    def __init__(self, *, whole: bool = False) -> None:
        """Start empty; with `whole` a push ends only at the count, or at 8 MB."""
        self.count = 0
        self.tag_prefix = tag_prefix(time.time())
        self.events: list[Stamped] = []
        self.announced: list[Announced] = []
        self._characters = 0
        self._most = _WHOLE_CHARACTERS if whole else _CHUNK_CHARACTERS
        self._ends_s = math.inf if whole else time.monotonic() + _CHUNK_S
        self._places: dict[tuple[object, ...], tuple[_Plan, list[str], list[str]]] = {}

    def is_full(self) -> bool:
        """Return whether the next message belongs to another round."""
        return (
            self.count >= _CHUNK_COUNT
            or self._characters >= self._most
            or (self.count > 0 and time.monotonic() >= self._ends_s)
        )

    @property
    def may_be_split(self) -> int:
        """How many messages may be sent only in part: all, if they go to several queues."""
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
        """Return the ids and texts for each destination, with a plan that leads there."""
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
        # The options are kept, too, so that no other object can get the identity of one of their
        # values.
        self._known: dict[tuple[object, ...], tuple[_Plan, Mapping[str, Any]]] = {}

    def forget_times(self) -> None:
        """Forget plans that contain a time: a countdown counts from each push."""
        known = self._known.items()
        self._known = {
            key: each
            for key, each in known
            if each[0].message.eta is None and each[0].message.expires is None
        }

    def plan(
        self,
        task: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> _Plan:
        """Return the plan of a call; option values that are not text are compared by identity."""
        producer = self._producer
        if producer.router.asks:
            completed = self._complete(task, options)
            return producer.plan_of(task, producer.router.ask(task, args, kwargs, completed))
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
            plan = producer.plan_of(task, self._complete(task, options))
            if len(self._known) >= _KEPT_COUNT:
                self._known.clear()
            known = self._known[key] = (plan, options)
        return known[0]


# For callers that keep a plan and send with it repeatedly.
Plan = _Plan


class Producer:
    """Writes task messages and pushes them; shared by all threads and greenlets of an app."""

    def __init__(
        self,
        broker: Broker,
        config: TaskConfig,
        clock: LamportClock | None = None,
        find_task: Callable[[str], Any] = lambda _name: None,
    ) -> None:
        """Send through `broker` with the defaults of `config`.

        `clock` stamps events; `find_task` returns a registered task, which is passed to router
        functions.
        """
        self._broker = broker
        self._config = config
        self.router = Router(config, find_task)
        self._zone = ZoneInfo(config.timezone)
        self._origin = f"gen{os.getpid()}@{socket.gethostname()}"
        # Redis needs no reply queue, but Celery's readers expect the field.
        self._reply_to = str(uuid.uuid4())
        # Two threads may both create an entry; that is harmless, so no lock.
        self._kept: dict[tuple[object, ...], _Plan] = {}
        self._events: EventWriter | None = None
        if config.task_send_sent_event:
            self._events = EventWriter(self._origin, clock or LamportClock())
        self._event_outage = OutageLog(_log)

    def send(
        self, task: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> str:
        """Send one task and return its id. Switches: yes.

        Raises:
            EncodeError: an argument cannot be serialized; nothing was sent.
            OperationalError: the server could not be reached within the retry policy.
        """
        if self.router.asks:
            options = self.router.ask(task, args, kwargs, options)
        plan = self.plan_of(task, options)
        task_id, text, announced = self._fill(plan, args, kwargs, options)
        if announced is not None:
            plan = _changed(plan, announced)
        # Stamped first, since the task may have ended before the event is published.
        events = [] if self._events is None else [self._sent(plan, options, task_id, args, kwargs)]
        self._push(plan, [text], f"task {task_id}", () if options.get("task_id") else (task_id,))
        if events:
            self._publish_events(events)
        if announced is not None:
            announced.sent()
        return task_id

    def send_many(
        self,
        task: str,
        calls: Iterable[tuple[Sequence[Any], Mapping[str, Any]]],
        options: Mapping[str, Any],
    ) -> TaskIds:
        """Send one task many times, in order, and return the new ids. Switches: yes.

        Holds one push of messages at a time: 200 messages, 256 KB, or the messages that arrived
        within a second. A push arrives as a whole or not at all; each is retried as a single send
        is. Countdowns and expiries count from the moment the push is written.

        Raises:
            NotAllSent: an item is wrong, `calls` raised an error, or the server could not be
                reached; everything before that has been sent.
        """
        ids = TaskIds()
        waiting = zip(ids, calls)  # noqa: B905  the ids are endless
        if not self.router.asks:
            return ids[: self._send_run(task, ids, 0, waiting, options)]
        sent = 0
        runs = groupby(waiting, lambda item: self.router.ask(task, item[1][0], item[1][1], options))
        while True:
            try:
                run = next(runs, None)
            except Exception as exc:
                raise NotAllSent(task, ids[:sent], (), exc) from exc
            if run is None:
                return ids[:sent]
            sent = self._send_run(task, ids, sent, run[1], run[0])

    def _send_run(
        self,
        task: str,
        ids: TaskIds,
        sent: int,
        waiting: Iterator[tuple[str, tuple[Sequence[Any], Mapping[str, Any]]]],
        options: Mapping[str, Any],
    ) -> int:
        """Send messages with one destination; return how many of all have been sent so far."""
        while True:
            plan = self.plan_of(task, options)
            events: list[Stamped] = []
            announced: list[Announced] = []

            def note(*call: Any, plan: _Plan = plan, stamped: list[Stamped] = events) -> None:
                stamped.append(self._sent(plan, options, *call))

            def announce_one(
                task_id: str,
                args: Any,
                kwargs: Any,
                plan: _Plan = plan,
                kept: list[Announced] = announced,
            ) -> str:
                one = self._announce(plan, task_id, args, kwargs, options, may_move=False)
                kept.append(one)
                return one.text

            texts, error = _write_chunk(
                plan,
                waiting,
                options,
                note if self._events is not None else None,
                announce_one if _has_receivers() else None,
            )
            chunk = ids[sent : sent + len(texts)]
            try:
                if texts:
                    self._push(plan, texts, f"{len(texts)} tasks {task}", chunk)
            except Unroutable as exc:
                raise NotAllSent(task, ids[:sent], (), exc) from exc
            except OperationalError as exc:
                # An exchange may lead to several queues, and the first may have received them.
                unknown = chunk if plan.exchange or isinstance(exc, ConnectionLost) else ()
                raise NotAllSent(task, ids[:sent], unknown, exc) from exc
            if events:
                self._publish_events(events)
            for each in announced[: len(texts)]:
                each.sent()
            sent += len(texts)
            if error is not None:
                raise NotAllSent(task, ids[:sent], (), error) from error
            if not texts:
                return sent

    def send_calls(
        self,
        calls: Iterable[Call],
        complete: Callable[[str, Mapping[str, Any]], Mapping[str, Any]],
        *,
        whole: bool = False,
        on_more: Callable[[], object] | None = None,
        on_last: Callable[[], object] | None = None,
    ) -> None:
        """Send calls of different tasks, in order, in as few pushes as `send_many`. Switches: yes.

        Args:
            complete: adds the options of its task and of the sender to those of a call; called
                once for calls with the same options.
            whole: send up to 200 of them, and 8 MB, in one push, which arrives completely or not at
                all; with several queues, for each queue.
            on_more: called before the first push if there will be another one.
            on_last: called before the last push.

        Raises:
            CallsCutOff: a call is wrong, `calls` raised an error, or the server could not be
                reached.
        """
        known, batch = _KnownPlans(self, complete), _Batch(whole=whole)
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
                    batch = _Batch(whole=whole)
                plan = known.plan(task, args, kwargs, options)
                new, prefix = next(new_ids), batch.tag_prefix
                task_id, text, announced = self._fill(plan, args, kwargs, options, new, prefix)
                if announced is not None:
                    plan = _changed(plan, announced)
                    batch.announced.append(announced)
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
            self._publish_events(batch.events)
        for each in batch.announced:
            each.sent()

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
            "queue": plan.queue or plan.routing_key,
            "exchange": plan.exchange,
            "routing_key": plan.routing_key,
        }
        return self._events.stamp("task-sent", fields)

    def _publish_events(self, events: Sequence[Stamped]) -> None:
        """Publish the events of tasks already sent; if that fails, the sending still succeeds."""
        assert self._events is not None
        channel = self._broker.keys.fanout(EXCHANGE, MULTI)
        try:
            self._broker.client.call("PUBLISH", channel, self._events.write_batch(events))
            self._event_outage.recovered("events are published again")
        except OperationalError as exc:
            self._event_outage.failed("tasks were sent, but their task-sent events were not", exc)

    def prepare(
        self, task: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Outgoing:
        """Write the message of a task without sending it; options are those of `SendOptions`.

        Raises:
            ValueError: its exchange leads to none or several queues.
        """
        plan, outgoing = self._prepare(task, args, kwargs, options)
        if plan.exchange:
            outgoing["queue"] = self._one_queue(plan)
        return outgoing

    def prepare_each(
        self, task: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> list[Outgoing]:
        """Write the message of a task for each queue that it goes to, without sending it.

        A broadcast has a single one, with its channel. Switches: yes, if its exchange must be
        looked up.

        Raises:
            OperationalError: its exchange leads to no queue, or the server could not be asked.
        """
        plan, outgoing = self._prepare(task, args, kwargs, options)
        if plan.broadcast:
            outgoing["channel"] = self._broker.keys.fanout(plan.exchange, plan.routing_key)
        if plan.queue:
            return [outgoing]
        first, *others = self._queues(plan, f"task {task}[{outgoing['task_id']}]")
        outgoing["queue"] = first
        # Signal receivers see a single message.
        copies = [outgoing.copy() for _ in others]
        for copy, queue in zip(copies, others, strict=True):
            copy["queue"], copy["announced"] = queue, None
        return [outgoing, *copies]

    def _prepare(
        self, task: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> tuple[_Plan, Outgoing]:
        if self.router.asks:
            options = self.router.ask(task, args, kwargs, options)
        chain = options.get("chain")
        if chain:
            # It differs in each step of a chain, so it fills a gap: the plan is a known one.
            check_send_options(task, {"chain": chain})
            options = {name: value for name, value in options.items() if name != "chain"}
        plan = self.plan_of(task, options)
        task_id, text, announced = self._fill(plan, args, kwargs, options, chain=_listed(chain))
        priority = plan.priority if announced is None else announced.priority
        return plan, Outgoing(
            task_id=task_id,
            queue=plan.queue,
            channel="",
            priority=priority,
            text=text,
            announced=announced,
        )

    def draft(
        self, task: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> _Plan:
        """Return a plan with which `fill` writes messages; expiries count from now."""
        if self.router.asks:
            options = self.router.ask(task, args, kwargs, options)
        return self._make_plan(task, options)

    def fill(
        self, plan: _Plan, queues: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Filled:
        """Write one message for each of the queues it goes to."""
        task_id, text, announced = self._fill(plan, args, kwargs, {})
        signer = self._broker.signer
        texts: tuple[str | bytes, ...] = (text,) * len(queues)
        if signer is not None:
            texts = tuple(signer.seal("message", queue, text) for queue in queues)
        return Filled(task_id, texts, announced)

    def queues(self, plan: _Plan, what: str) -> list[str]:
        """Return the queues that a message goes to; one, of a plan for a broadcast.

        Raises:
            OperationalError: its exchange leads to no queue, or the server could not be asked.
        """
        return self._queues(plan, what)

    def _fill(
        self,
        plan: _Plan,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
        new: str = "",
        prefix: str = "",
        *,
        chain: list[Any] | None = None,
    ) -> tuple[str, str, Announced | None]:
        """Return the id and the text of one message, announced if there are receivers.

        Args:
            new: an id created for this push alone; created here if not given. It also serves as
                delivery tag, with `prefix`: a given task id may be used again.
            chain: the rest of its chain, if that is not in the plan.
        """
        if not new:
            new, prefix = new_id(), tag_prefix(time.time())
        task_id = options.get("task_id") or new
        try:
            if before_task_publish.receivers or after_task_publish.receivers:
                if chain is not None:
                    plan = plan._replace(message=replace(plan.message, chain=chain))
                announced = self._announce(plan, task_id, args, kwargs, options)
                return task_id, announced.text, announced
            text = plan.template.fill(
                task_id,
                args,
                kwargs,
                delivery_tag=tag_of(prefix, new),
                root_id=options.get("root_id"),
                parent_id=options.get("parent_id"),
                group_index=options.get("group_index"),
                chain=chain,
            )
        except EncodeError as exc:
            raise _explained(plan, args, kwargs, exc) from exc
        except TypeError:
            # An id that is not text; the other options have been checked.
            check_send_options(plan.message.task, options)
            raise
        return task_id, text, None

    def _announce(
        self,
        plan: _Plan,
        task_id: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
        *,
        may_move: bool = True,
    ) -> Announced:
        """Write one message with the changes of before_task_publish's receivers."""
        # Templates themselves check that an id is text.
        check_send_options(plan.message.task, options)
        message = replace(
            plan.message,
            id=task_id,
            args=args,  # type: ignore[arg-type]  # the template checks it
            kwargs=dict(kwargs),
            root_id=options.get("root_id"),
            parent_id=options.get("parent_id"),
            group_index=options.get("group_index"),
        )
        policy = (plan.policy or self._default_policy)._asdict()
        return announce(
            message, plan.properties, retry_policy=policy, may_move=may_move, **plan.encoding
        )

    def plan_of(self, task: str, options: Mapping[str, Any]) -> _Plan:
        """Return the common part of all messages sent with these options.

        If router functions decide, they have already been called.
        """
        shared = {name: value for name, value in options.items() if name not in _OF_EACH}
        if not shared.keys() <= _KEPT:
            return self._make_plan(task, shared)
        # The types are part of the key, since 1, 1.0 and True are equal but written differently.
        key = (task, *shared.items(), *map(type, shared.values()))
        try:
            plan = self._kept.get(key)
        except TypeError:
            # An unhashable value is invalid: let the check report it.
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
        if not self.router.asks:
            options = self.router.merge(self.router.route(task), options)
        target = self.router.target(options)
        properties = {"reply_to": self._reply_to} | {
            name: options[name] for name in _PROPERTIES if options.get(name) is not None
        }
        if target.queue and not self._config.task_create_missing_queues:
            self._check_declared(task, target.queue)
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
        priority = options.get("priority")
        if priority is None:
            priority = self._config.task_default_priority or 0
        encoding = _Encoding(
            serializer=options.get("serializer") or self._config.task_serializer,
            compression=options.get("compression") or self._config.task_compression,
            max_bytes=self._config.task_max_body_bytes,
        )
        properties |= {
            "queue": target.queue,
            "exchange": target.exchange,
            "routing_key": target.routing_key,
            "priority": priority,
            "expiration": expiration,
        }
        template = Template(message, **encoding, **properties)
        policy = self._policy(options)
        return _Plan(
            target.queue, target.is_fanout, priority, target.exchange, target.routing_key, policy,
            message, encoding, properties, template,
        )  # fmt: skip

    def _check_declared(self, task: str, queue: str) -> None:
        known = self.router.queues
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
    ) -> Outgoing:
        """Write a message as it appears on its queue, with a new delivery tag."""
        serializer = serializer or self._config.task_serializer
        compression = compression or self._config.task_compression
        named = {"correlation_id": message.id, "reply_to": self._reply_to} | properties
        named |= {
            "queue": queue,
            "exchange": exchange,
            "routing_key": routing_key or queue,
            "priority": priority,
            "expiration": expiration,
        }
        announced: Announced | None = None
        if before_task_publish.receivers or after_task_publish.receivers:
            announced = announce(
                message,
                named,
                retry_policy=self._default_policy._asdict(),
                serializer=serializer,
                compression=compression,
                max_bytes=None,
            )
            text, priority = announced.text, announced.priority
        else:
            text = write(message, named, serializer=serializer, compression=compression)
        return Outgoing(
            task_id=message.id,
            queue=queue,
            channel="",
            priority=priority,
            text=text,
            announced=announced,
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

    def _one_queue(self, plan: _Plan) -> str:
        if plan.broadcast:
            raise ValueError(
                f"task {plan.message.task} goes to every worker that listens to exchange "
                f"{plan.exchange!r}, but this message must go to one queue; name it with queue="
            )
        return self.queue_of(plan.exchange, plan.routing_key)

    def _queues(self, plan: _Plan, what: str) -> list[str]:
        """Return the queues to push to: the queue itself, or those bound to the exchange."""
        if plan.queue:
            return [plan.queue]
        client = self._broker.client
        # Half of the total time, so that half is left for the push.
        with client.pooled(client.call_timeout_s / 2) as connection:
            queues = self._broker.bound_queues(connection, plan.exchange, plan.routing_key)
        if not queues:
            raise Unroutable(
                f"{what}: no queue is bound to exchange {plan.exchange!r} with routing key "
                f"{plan.routing_key!r}; start a worker that consumes from one, or name a queue"
            )
        return queues

    def _push(self, plan: _Plan, texts: Sequence[str], what: str, new_ids: Sequence[str]) -> None:
        """Push messages together to each of their queues, within the time of one call.

        Args:
            what: names the messages
            in errors. new_ids: their task ids if created for this push.

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
        texts: Sequence[str | bytes],
        what: str,
        new_ids: Sequence[str],
        began_s: float,
    ) -> None:
        """Push to one queue, as often as the policy allows; an attempt gets half a call's time.

        A broadcast leaves no trace, so it is not repeated if it may have been received.
        """
        broker, policy, signer = self._broker, plan.policy, self._broker.signer
        if signer is not None:
            # Sign here, since the signature covers the queue and an exchange may lead to several.
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
                f"{what} may or may not have been sent to queue {queue!r}; the answer got lost: "
                f"{error}"
            ) from error
        raise OperationalError(f"{what} could not be sent to queue {queue!r}: {error}") from error

    def _broadcast(
        self, plan: _Plan, texts: Sequence[str | bytes], what: str, timeout_s: float
    ) -> None:
        heard = self._broker.broadcast(plan.exchange, texts, plan.routing_key, timeout_s=timeout_s)
        if not heard:
            raise Unroutable(
                f"{what}: no worker listens to exchange {plan.exchange!r} with routing key "
                f"{plan.routing_key!r}, and a broadcast is not stored; start a worker that "
                f"consumes it, or catch greenq.errors.Unroutable if that is acceptable"
            )

    def _policy(self, options: Mapping[str, Any]) -> _Policy | None:
        """Return the retry policy of one sending, None for no retries."""
        retry = options.get("retry")
        if not (self._config.task_publish_retry if retry is None else retry):
            return None
        given = options.get("retry_policy") or {}
        return self._default_policy._replace(**given)

    @property
    def _default_policy(self) -> _Policy:
        default: RetryPolicy = self._config.task_publish_retry_policy
        return _Policy(*(getattr(default, name) for name in _Policy._fields))

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


def _has_receivers() -> bool:
    """Return whether messages must be announced."""
    return bool(before_task_publish.receivers or after_task_publish.receivers)


def _changed(plan: _Plan, announced: Announced) -> _Plan:
    """Return the plan with the receivers' changes."""
    policy = announced.retry_policy
    known = {name: policy[name] for name in _Policy._fields if name in policy}
    return plan._replace(
        priority=announced.priority, policy=plan.policy and plan.policy._replace(**known)
    )


def _listed(value: Any) -> list[Any] | None:
    """Return one signature, or several, as a list; None for none."""
    if not value:
        return None
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _explained(
    plan: _Plan, args: Sequence[Any], kwargs: Mapping[str, Any], error: EncodeError
) -> EncodeError:
    """Add the task, and the place in its arguments, to an encoding error."""
    if not isinstance(args, (list, tuple)) or not hasattr(kwargs, "keys"):
        return error
    return explained(plan.message.task, args, kwargs, plan.encoding["serializer"], error)


def _write_chunk(
    plan: _Plan,
    waiting: Iterator[tuple[str, tuple[Sequence[Any], Mapping[str, Any]]]],
    options: Mapping[str, Any],
    note: Callable[[str, Any, Any], object] | None,
    announce_one: Callable[[str, Any, Any], str] | None,
) -> tuple[list[str], Exception | None]:
    """Write the messages of one push, and return the error that ended it early, if any.

    `note` is called with the id, args and kwargs of each. If there are receivers of signals,
    `announce_one` writes each message.
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
            if announce_one is not None:
                text = announce_one(task_id, args, kwargs)
            else:
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
    # If an item is wrong or its source fails, the items before it are still sent.
    except EncodeError as exc:
        return texts, _explained(plan, args, kwargs, exc)
    except Exception as exc:
        return texts, exc
    return texts, None
