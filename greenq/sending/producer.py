"""From a task's name and arguments to a message on its queue."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from greenq.errors import ConnectionLost, EncodeError, NotAllSent, OperationalError, Unroutable
from greenq.protocol.clock import LamportClock
from greenq.protocol.ids import TaskIds, new_id, tag_of, tag_prefix
from greenq.sending.announced import announce, write
from greenq.sending.batch import KnownPlans, PushBatch, write_chunk
from greenq.sending.options import check_send_options
from greenq.sending.plan import KEPT_COUNT, OF_EACH, Planner, listed
from greenq.sending.push import Pusher
from greenq.sending.routing import Router
from greenq.sending.sent_events import SentEvents
from greenq.signals import after_task_publish, before_task_publish

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from greenq.config.settings import TaskConfig
    from greenq.protocol.event import Stamped
    from greenq.protocol.message import TaskMessage
    from greenq.sending.announced import Announced
    from greenq.sending.plan import SendPlan
    from greenq.transport.broker import Broker

# Options that have few different values, so that plans with them are worth keeping.
_KEPT = frozenset({
    "queue", "priority", "serializer", "compression", "exchange", "exchange_type", "routing_key",
    "ignore_result", "time_limit", "soft_time_limit", "delivery_mode", "reply_to", "retry",
})  # fmt: skip


Call = tuple[str, Sequence[Any], Mapping[str, Any], Mapping[str, Any]]
"""A task's name, its args and kwargs, and options under the names of `SendOptions`."""


class Outgoing(TypedDict):
    """A message ready to be pushed: its queue, its priority and its text.

    channel: the channel to publish the message on instead, if its exchange is a fanout; otherwise
        "".
    announced: not None if the message was passed to signal receivers. Code that pushes the message
        must then call `announced.sent`.
    """

    task_id: str
    queue: str
    channel: str
    priority: int
    text: str | bytes
    announced: Announced | None


class Filled(NamedTuple):
    """A message written from a plan, with its new id.

    Attributes:
        task_id: the id.
        texts: the message's text for each of its queues.
        announced: not None if the message was passed to signal receivers; see `Outgoing`.
    """

    task_id: str
    texts: tuple[str | bytes, ...]
    announced: Announced | None


class CallsCutOff(Exception):
    """Sending several calls ended early.

    Attributes:
        sent: how many were sent.
        unknown: how many of the calls after those may have been sent.
        reason: the error that ended the sending.
    """

    def __init__(self, sent: int, unknown: int, reason: Exception) -> None:
        """Store the two counts and the reason."""
        super().__init__(sent, unknown, reason)
        self.sent = sent
        self.unknown = unknown
        self.reason = reason


class Producer:
    """Writes task messages and pushes them; all threads and greenlets of an app share it."""

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
        self._planner = Planner(config, self.router)
        self._pusher = Pusher(broker)
        # Two threads may both create an entry, which is harmless, so there is no lock.
        self._kept: dict[tuple[object, ...], SendPlan] = {}
        self._events: SentEvents | None = None
        if config.task_send_sent_event:
            self._events = SentEvents(broker, self._planner.origin, clock or LamportClock())

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
            plan = plan.changed(announced)
        # The event is stamped first, since the task may have ended before the event is published.
        event = None
        if self._events is not None:
            event = self._events.stamp(plan, options, task_id, args, kwargs)
        new_ids = () if options.get("task_id") else (task_id,)
        self._pusher.push(plan, [text], f"task {task_id}", new_ids)
        if event is not None and self._events is not None:
            self._events.publish([event])
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

        Only the messages of one push are in memory at a time: 200 messages, 256 KB, or the messages
        that arrived within a second. A push arrives as a whole or not at all, and is retried like a
        single send. Countdowns and expiries are relative to the moment when the push is written.

        Raises:
            NotAllSent: an item is wrong, `calls` raised an error, or the server could not be
                reached; all items before that have been sent.
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
        """Send messages with one destination; return how many have been sent in total so far."""
        while True:
            plan = self.plan_of(task, options)
            events: list[Stamped] = []
            announced: list[Announced] = []

            def note(*call: Any, plan: SendPlan = plan, stamped: list[Stamped] = events) -> None:
                assert self._events is not None
                stamped.append(self._events.stamp(plan, options, *call))

            def announce_one(
                task_id: str,
                args: Any,
                kwargs: Any,
                plan: SendPlan = plan,
                kept: list[Announced] = announced,
            ) -> str:
                one = self._announce(plan, task_id, args, kwargs, options, may_move=False)
                kept.append(one)
                return one.text

            texts, error = write_chunk(
                plan,
                waiting,
                options,
                note if self._events is not None else None,
                announce_one if _has_receivers() else None,
            )
            chunk = ids[sent : sent + len(texts)]
            try:
                if texts:
                    self._pusher.push(plan, texts, f"{len(texts)} tasks {task}", chunk)
            except Unroutable as exc:
                raise NotAllSent(task, ids[:sent], (), exc) from exc
            except OperationalError as exc:
                # An exchange may lead to several queues, and the first queue may already have
                # received the messages.
                unknown = chunk if plan.exchange or isinstance(exc, ConnectionLost) else ()
                raise NotAllSent(task, ids[:sent], unknown, exc) from exc
            if events and self._events is not None:
                self._events.publish(events)
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
            complete: adds the options of the task and of the sender to those of a call; it is
                called once for calls with the same options.
            whole: send up to 200 calls, and up to 8 MB, in one push, which arrives completely or
                not at all; with several queues, this applies to each queue.
            on_more: called before the first push if there will be another one.
            on_last: called before the last push.

        Raises:
            CallsCutOff: a call is wrong, `calls` raised an error, or the server could not be
                reached.
        """
        known, batch = KnownPlans(self.router, self.plan_of, complete), PushBatch(whole=whole)
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
                    batch = PushBatch(whole=whole)
                plan = known.plan(task, args, kwargs, options)
                new, prefix = next(new_ids), batch.tag_prefix
                task_id, text, announced = self._fill(plan, args, kwargs, options, new, prefix)
                if announced is not None:
                    plan = plan.changed(announced)
                    batch.announced.append(announced)
                batch.add(plan, task_id, text)
                if self._events is not None:
                    batch.events.append(self._events.stamp(plan, options, task_id, args, kwargs))
            if on_last is not None:
                on_last()
            unknown = batch.may_be_split
            self._push_batch(batch)
        except Exception as exc:
            if isinstance(exc, ConnectionLost):
                unknown = batch.count
            raise CallsCutOff(sent, unknown, exc) from exc

    def _push_batch(self, batch: PushBatch) -> None:
        for plan, ids, texts in batch.by_plan():
            self._pusher.push(plan, texts, f"{len(texts)} tasks of a workflow", ids)
        if batch.events and self._events is not None:
            self._events.publish(batch.events)
        for each in batch.announced:
            each.sent()

    def prepare(
        self, task: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Outgoing:
        """Build the message of a task without sending it; the options are those of `SendOptions`.

        Raises:
            ValueError: the message's exchange leads to no queue, or to several.
        """
        plan, outgoing = self._prepare(task, args, kwargs, options)
        if plan.exchange:
            outgoing["queue"] = self._pusher.one_queue(plan)
        return outgoing

    def prepare_each(
        self, task: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> list[Outgoing]:
        """Build the message of a task for each queue that it goes to, without sending it.

        A broadcast is a single message, with its channel. Switches: yes, if the exchange must be
        looked up.

        Raises:
            OperationalError: the exchange leads to no queue, or the server could not be queried.
        """
        plan, outgoing = self._prepare(task, args, kwargs, options)
        if plan.broadcast:
            outgoing["channel"] = self._broker.keys.fanout(plan.exchange, plan.routing_key)
        if plan.queue:
            return [outgoing]
        first, *others = self._pusher.queues(plan, f"task {task}[{outgoing['task_id']}]")
        outgoing["queue"] = first
        # Signal receivers see only a single message.
        copies = [outgoing.copy() for _ in others]
        for copy, queue in zip(copies, others, strict=True):
            copy["queue"], copy["announced"] = queue, None
        return [outgoing, *copies]

    def _prepare(
        self, task: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> tuple[SendPlan, Outgoing]:
        if self.router.asks:
            options = self.router.ask(task, args, kwargs, options)
        chain = options.get("chain")
        if chain:
            # `chain` differs in each step of a chain, so fill it into the template, and use the
            # same plan for all steps.
            check_send_options(task, {"chain": chain})
            options = {name: value for name, value in options.items() if name != "chain"}
        plan = self.plan_of(task, options)
        task_id, text, announced = self._fill(plan, args, kwargs, options, chain=listed(chain))
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
    ) -> SendPlan:
        """Return a plan from which `fill` can write messages; expiries are relative to now."""
        if self.router.asks:
            options = self.router.ask(task, args, kwargs, options)
        return self._planner.make(task, options)

    def fill(
        self, plan: SendPlan, queues: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Filled:
        """Write one message, with a text for each of its queues."""
        task_id, text, announced = self._fill(plan, args, kwargs, {})
        signer = self._broker.signer
        texts: tuple[str | bytes, ...] = (text,) * len(queues)
        if signer is not None:
            texts = tuple(signer.seal("message", queue, text) for queue in queues)
        return Filled(task_id, texts, announced)

    def queue_of(self, exchange: str, routing_key: str) -> str:
        """Return the one queue that an exchange leads to; see `Pusher.queue_of`. Switches: yes."""
        return self._pusher.queue_of(exchange, routing_key)

    def queues(self, plan: SendPlan, what: str) -> list[str]:
        """Return the queues that a message goes to; for a broadcast, the one queue of its plan.

        Raises:
            OperationalError: the exchange leads to no queue, or the server could not be queried.
        """
        return self._pusher.queues(plan, what)

    def _fill(
        self,
        plan: SendPlan,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
        new: str = "",
        prefix: str = "",
        *,
        chain: list[Any] | None = None,
    ) -> tuple[str, str, Announced | None]:
        """Return the id and the text of one message; if there are receivers, announce it.

        Args:
            new: an id created for this push alone; created here if not given. With `prefix`, it
                becomes the delivery tag, since a task id from the caller may be used again.
            chain: the remaining steps of its chain, if they are not in the plan.
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
            raise plan.explained(args, kwargs, exc) from exc
        except TypeError:
            # An id is not text, since the other options have already been checked.
            check_send_options(plan.message.task, options)
            raise
        return task_id, text, None

    def _announce(
        self,
        plan: SendPlan,
        task_id: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
        *,
        may_move: bool = True,
    ) -> Announced:
        """Write one message with the changes made by before_task_publish's receivers."""
        # Templates check that an id is text, but no template is used here.
        check_send_options(plan.message.task, options)
        message = replace(
            plan.message,
            id=task_id,
            args=args,  # type: ignore[arg-type]  # `announce` checks it
            kwargs=dict(kwargs),
            root_id=options.get("root_id"),
            parent_id=options.get("parent_id"),
            group_index=options.get("group_index"),
        )
        policy = (plan.policy or self._planner.default_policy)._asdict()
        return announce(
            message, plan.properties, retry_policy=policy, may_move=may_move, **plan.encoding
        )

    def plan_of(self, task: str, options: Mapping[str, Any]) -> SendPlan:
        """Return the common part of all messages sent with these options.

        Any router functions have already been called.
        """
        shared = {name: value for name, value in options.items() if name not in OF_EACH}
        if not shared.keys() <= _KEPT:
            return self._planner.make(task, shared)
        # The types are part of the key, since 1, 1.0 and True are equal but written differently.
        key = (task, *shared.items(), *map(type, shared.values()))
        try:
            plan = self._kept.get(key)
        except TypeError:
            # An unhashable value is invalid, so let the check report it.
            return self._planner.make(task, shared)
        if plan is None:
            plan = self._planner.make(task, shared)
            if len(self._kept) >= KEPT_COUNT:
                self._kept.clear()
            self._kept[key] = plan
        return plan

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
        """Return a message's text as it appears on its queue, with a new delivery tag."""
        serializer = serializer or self._config.task_serializer
        compression = compression or self._config.task_compression
        named = {"correlation_id": message.id, "reply_to": self._planner.reply_to} | properties
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
                retry_policy=self._planner.default_policy._asdict(),
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


def _has_receivers() -> bool:
    """Return whether messages must be announced."""
    return bool(before_task_publish.receivers or after_task_publish.receivers)
