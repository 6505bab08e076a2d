"""Tasks: takes messages, admits them and hands them to the pool; sleeps when the pool is full."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from greenq.bootsteps.blueprint import StartStopPart
from greenq.consumer.refusals import Refusals
from greenq.consumer.returns import Returns, is_recorded
from greenq.consumer.waiting import Waiting
from greenq.errors import (
    ContentDisallowed,
    DecodeError,
    NotRegistered,
    OperationalError,
    SignatureError,
    WorkerLostError,
)
from greenq.execution.reader import MessageReader
from greenq.execution.suspects import Suspects
from greenq.hub import Event, let_others_run, sleep
from greenq.protocol import envelope, fast_decode
from greenq.protocol.event import NullEventSender
from greenq.protocol.limits import DENSE_BYTES, KEY
from greenq.protocol.message import parse_time, part_of
from greenq.protocol.rate import parse_rate
from greenq.protocol.serialize import accepted
from greenq.protocol.signature import check_following
from greenq.running.request import Request
from greenq.signals import task_received
from greenq.transport.recovery import is_suspect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime

    from greenq.app import TaskRegistry
    from greenq.config.settings import TaskConfig
    from greenq.execution.handover import Handover
    from greenq.execution.state import WorkerState
    from greenq.pool import Pool
    from greenq.protocol.event import EventSender
    from greenq.protocol.message import TaskMessage
    from greenq.timer import Timer
    from greenq.transport.client import Connection
    from greenq.transport.fetch import Delivery, Fetcher
    from greenq.transport.outbox import Outbox
    from greenq.transport.transport import Transport

_log = logging.getLogger(__name__)

# How often a full worker reads the depth of its queues for the autoscaler.
_LOOK_S = 0.5

# A server that takes longer than this to return the depth is considered unreachable.
_ANSWER_S = 2.0

# No messages are taken while this many outcomes are unwritten, so messages that only pass through
# this worker, such as those with a far ETA, do not accumulate here.
_UNWRITTEN = 2000

# How many turns other greenlets get before a wait. In the first turn, tasks run; in the second, the
# outbox sends the successors of those tasks.
_TURNS = 2

# When reading messages has taken this long, all other greenlets get a turn before the next message
# is read, since many expensive messages must not block the hub one after another.
_TURN_S = 0.005


class Tasks(StartStopPart):
    """Takes as many messages from the queues as the worker has room for.

    1. `consume` asks for no more than the pool has room for, and waits when there is none.
    2. `Admission` decides whether each message runs, waits, or is settled immediately.
    3. `drain` and `stop` requeue everything that has not started, in order.
    """

    name = "Tasks"
    requires = ("Connection",)

    def __init__(
        self,
        *,
        config: TaskConfig,
        transport: Transport,
        registry: TaskRegistry,
        fetcher: Fetcher,
        outbox: Outbox,
        pool: Pool,
        timer: Timer,
        state: WorkerState,
        hostname: str,
        handover: Handover,
        left_behind: Callable[[], None],
        taken: Callable[[], None] | None = None,
        events: EventSender | None = None,
        rate_limits: bool = True,
    ) -> None:
        """Use a worker's parts.

        Args:
            config, transport, registry, fetcher, outbox, pool, timer, state: those of the worker.
            hostname: its node name.
            handover: computes the continuations of tasks.
            left_behind: called when a take leaves messages in the queues.
            taken: called when this worker has received messages.
            events: receives the task events.
            rate_limits: False lets tasks start regardless of their limits.

        Raises:
            ValueError: ``task_default_rate_limit`` is not a rate limit.
        """
        self._transport = transport
        self._fetcher = fetcher
        self._outbox = outbox
        self._pool = pool
        self._state = state
        self._left_behind = left_behind
        self._taken = taken
        self._returns = Returns(transport, outbox, pool, state)
        self.admission = Admission(
            config=config, transport=transport, registry=registry, outbox=outbox, pool=pool,
            timer=timer, state=state, hostname=hostname, events=events or NullEventSender(),
            rate_limits=rate_limits, returns=self._returns, handover=handover,
        )  # fmt: skip
        self._suspects = self.admission.suspects
        # Used only in the hub's thread.
        self._stopping = False
        # The messages being admitted; any thread may read this.
        self._admitting: list[Delivery] = []
        # True while the worker must take no messages; the event is set when that may have changed.
        self.draining = False
        self._changed = Event()
        # How many messages the last take left in the queues.
        self.depth = 0

    def start(self) -> None:
        """Prepare to consume."""
        self._stopping = False

    def stop(self) -> None:
        """Close the fetcher's connections; the next use opens them again."""
        self._fetcher.close()
        self.depth = 0

    @property
    def working(self) -> bool:
        """True if, since the last start, the server has returned messages or accepted a wait."""
        return self._fetcher.working

    def backlog(self) -> int:
        """Count the messages that are waiting for a slot, here and in the queues. Switches: no."""
        return self.depth + self._pool.waiting

    @property
    def is_empty(self) -> bool:
        """True if this worker holds no messages, not even any that wait for their ETA."""
        return self.admission.waiting.is_empty and not self._state.reserved

    def consume(self) -> None:
        """Take and admit messages until stopped. Switches: yes. Raises OperationalError."""
        while not self._stopping:
            self.turn()

    def turn(self) -> None:
        """Take and admit messages once, or wait until there may be some. Switches: yes."""
        if self._fetcher.unsure:
            # Take even if there is no room or the worker drains: messages may already be reserved
            # for this worker, and no other worker can take those.
            self._admit_all(self._fetcher.take(0).deliveries)
            return
        if self.draining:
            self._changed.clear()
            self._changed.wait()
            return
        if self._suspects.busy:
            self._suspects.wait_over(_LOOK_S)
            return
        outbox = self._outbox
        room = min(self._pool.room, _UNWRITTEN - len(outbox.entries) - len(outbox.expected))
        if room <= 0:
            self._rest()
            return
        self.admission.taken_s = self._state.now_s()
        self.admission.goes_on = False
        # Ask for at most half of the slots, so that one half runs while the other is fetched.
        deliveries, self.depth = self._fetcher.take(min(room, (self._pool.size + 1) // 2))
        self._admit_all(deliveries)
        if self.depth:
            self._left_behind()
        if self.admission.goes_on and self._may_wait() and self._sends_more():
            return
        while self._may_wait() and not self._fetcher.wait():
            pass

    def _sends_more(self) -> bool:
        """Return whether a take may find successors of the tasks just taken. Switches: yes.

        If a step of a chain has ended without waiting, the push of the next step and this take are
        under way at the same time, so the next step is taken without waiting for a notification.
        Otherwise, each step would need two round trips.
        """
        pushed = self._outbox.pushed_to = set()
        found = False
        for _ in range(_TURNS):
            sleep(0)
            found = not pushed.isdisjoint(self._fetcher.lists)
            if found:
                break
        self._outbox.pushed_to = None
        return found

    def _may_wait(self) -> bool:
        """Return whether this worker may wait idly for new messages."""
        pool = self._pool
        # `pool.room` is not used, since it would cost a call for every message.
        has_room = len(pool.active) + len(pool.queued) < pool.capacity
        return has_room and self._may_take() and not (self.depth or self._suspects.busy)

    def _admit_all(self, deliveries: list[Delivery]) -> None:
        """Admit the taken messages, or requeue them if the worker stops or drains."""
        if not self._may_take():
            self._returns.give_back_deliveries(deliveries)
            return
        if self._taken is not None and deliveries:
            self._taken()
        self._admitting, admission = deliveries, self.admission
        admission.read_s = 0.0
        for number, delivery in enumerate(deliveries, 1):
            admission.receive(delivery)
            if admission.read_s > _TURN_S and not self._suspects.busy:
                self._pool.end_turn()
                let_others_run()
                if self._pool.queued:
                    # Tasks begin in this iteration, which must not be ended as well.
                    let_others_run()
                admission.read_s = 0.0
                if not self._may_take():
                    self._returns.give_back_deliveries(deliveries[number:])
                    break
        self._admitting = []

    @property
    def unfinished(self) -> set[str]:
        """The tags of the unsettled messages held here; any thread may read this."""
        return {*list(self._state.reserved), *(each.tag for each in self._admitting)}

    def _may_take(self) -> bool:
        return not (self._stopping or self.draining)

    def _rest(self) -> None:
        """Wait for room in the pool or the outbox; also check the depth of the queues."""
        if self._pool.room > 0:
            self._outbox.wait_written(_LOOK_S)
            return
        self._pool.wait_room(_LOOK_S)
        if self._pool.room <= 0 and not self._stopping:
            self.depth = self._transport.broker.depth(self._fetcher.queues, timeout_s=_ANSWER_S)
            if self.depth:
                self._left_behind()

    # --- stop and drain ---------------------------------------------------------------------------

    def stop_consuming(self) -> None:
        """Make `consume` return soon."""
        self._stopping = True
        self._interrupt()

    def leave(self) -> None:
        """Put back the messages that only this worker would find. Switches: yes."""
        try:
            self._fetcher.leave()
        except OperationalError as exc:
            _log.info("messages in this worker's inboxes are left to other greenq workers: %s", exc)

    def drain(self, on: bool) -> None:
        """Take no more messages; requeue those that have not started. Switches: yes.

        If `on` is False, take messages again.
        """
        if on == self.draining:
            return
        self.draining = on
        if on:
            _log.warning(
                "draining: this worker takes no more messages; %d tasks are running",
                self._pool.running,
            )
            self.depth = 0
            self.give_back(self.admission.withdraw(is_recorded))
        else:
            _log.warning("draining is over: this worker takes messages again")
        self._interrupt()

    def give_back_unstarted(self) -> None:
        """Requeue all messages that are waiting here for their ETA, a slot or the rate limit."""
        self.give_back(self.admission.withdraw(lambda _request: True))

    def give_back(self, requests: list[Request]) -> None:
        """Return messages to their queues, to be taken next and in the same order."""
        self._returns.give_back(requests)

    def give_away(self, connection: Connection, owner: str) -> None:
        """Requeue requests without a slot; the watchdog thread calls this while the hub is blocked.

        Raises:
            OperationalError: the requests stay here, and are requeued when this worker ends or its
                hub runs again.
        """
        self._returns.give_away(connection, owner)

    def _interrupt(self) -> None:
        """Wake `consume` so that it checks what to do next."""
        self._changed.set()
        self._pool.wake()
        try:
            self._fetcher.wake()
        except OperationalError as exc:
            _log.info("the server cannot be reached: %s", exc)
            self._fetcher.close()

    # --- remote control ---------------------------------------------------------------------------

    def receive(self, delivery: Delivery) -> None:
        """Run a broadcast message, of which the server has no record. Switches: no."""
        if self._taken is not None:
            self._taken()
        self.admission.receive(delivery._replace(tag=""))

    def read(self, raw: bytes) -> TaskMessage:
        """Decode a message in the same way as one that was taken.

        Raises:
            DecodeError, ContentDisallowed: the message is not a task call that this worker accepts.
        """
        return self.admission.reader.read(raw)

    def scheduled(self) -> list[tuple[datetime, Request]]:
        """Return the requests that are waiting here for their ETA, with the ETA, soonest first."""
        return self.admission.waiting.scheduled()

    def waiting(self) -> list[Request]:
        """Return the requests that wait here for a slot, a rate limit, or a time to run alone."""
        limited = self.admission.waiting.limited()
        return limited + self._suspects.waiting() + self._pool.unstarted()

    def revoke(
        self, ids: Iterable[str] = (), stamps: Mapping[str, Any] | None = None
    ) -> list[Request]:
        """Revoke tasks by id or stamp; return those that are already running here.

        Waiting tasks are discarded now, and all others when they arrive.
        """
        self._state.revoked.update(ids)
        self._state.revoked.add_stamps(stamps or {})
        self.admission.discard_revoked()
        return [each for each in self._pool.active if self._state.revoked.matches(each.message)]

    def stop_workflows(self, stopped: Mapping[str, str]) -> None:
        """Stop workflows that are cancelled or paused, and end running tasks of cancelled ones."""
        self._state.revoked.stop_workflows(stopped)
        self.admission.hold_paused()
        for request in self.revoke():
            self._pool.end(request)

    def set_rate_limit(self, name: str, rate: str | float | None) -> None:
        """Change a task's rate limit in this worker, including for its waiting requests.

        Raises:
            NotRegistered: there is no such task.
            ValueError: `rate` is not a rate limit (`parse_rate`).
        """
        self.admission.waiting.set_rate_limit(name, rate)


class Admission:
    """Decides whether each message runs, waits, or is settled immediately.

    1. Messages that cannot run are settled: undecodable, unknown and refused messages are buried;
       revoked and expired ones are discarded.
    2. Messages that must not run yet wait for their ETA or rate limit (`Waiting`), or until they
       can run alone (`Suspects`).
    3. All other messages go to the pool.
    """

    def __init__(
        self,
        *,
        config: TaskConfig,
        transport: Transport,
        registry: TaskRegistry,
        outbox: Outbox,
        pool: Pool,
        timer: Timer,
        state: WorkerState,
        hostname: str,
        events: EventSender,
        rate_limits: bool,
        returns: Returns,
        handover: Handover,
    ) -> None:
        """Use a worker's parts; see `Tasks`."""
        self._config = config
        self._registry = registry
        self._pool = pool
        self._state = state
        self._revoked = state.revoked
        self._events = events
        self._returns = returns
        self._index = handover.index
        self._signer = transport.signer
        self._stores_results = transport.stores_results
        self._accept = accepted(config.accept_content)
        self._max_body_bytes = config.task_max_body_bytes
        self._default_rate = parse_rate(config.task_default_rate_limit)
        self.reader = MessageReader(config, self._accept)
        self._refusals = Refusals(
            config, transport, registry, outbox, state, events, hostname, self.reader.unwrap,
            handover,
        )  # fmt: skip
        self.waiting = Waiting(
            transport,
            registry,
            outbox,
            timer,
            state,
            self._refusals,
            eta_horizon_s=config.task_eta_horizon,
            default_rate=self._default_rate,
            obeys_rates=rate_limits,
            hand_over=self._hand_over,
        )
        self.suspects = Suspects(pool, outbox, self._begin)
        # The time at which the messages being admitted were requested.
        self.taken_s = 0.0
        # Whether one of the messages being admitted has successors.
        self.goes_on = False
        # The body of the chord whose part was admitted last.
        self._body: Mapping[str, Any] | None = None
        # How long it took to read large and less common messages; the caller resets this.
        self.read_s = 0.0

    def receive(self, delivery: Delivery) -> None:
        """Read and admit a delivery; a bug that one message triggers must not stop the others."""
        try:
            if len(delivery.raw) > DENSE_BYTES:
                message = self._timed(self._read_thoroughly, delivery)
            elif self._signer is not None:
                message = self._read_thoroughly(delivery)
            else:
                message = fast_decode.read(
                    delivery.raw, accept=self._accept, max_body_bytes=self._max_body_bytes
                )
                message = message or self._timed(self._read_carefully, delivery)
            if message is not None:
                self._admit(delivery, message)
        except Exception as exc:
            _log.exception("could not admit a message of queue %s", delivery.queue)
            self._state.reserved.pop(delivery.tag, None)
            self._refusals.bury(delivery, exc, None)

    def _admit(self, delivery: Delivery, message: TaskMessage) -> None:
        """Hand a message to the pool or the timer, or settle it if it cannot run.

        Every task passes through here, so only work that few tasks need is left to other functions.
        """
        eta = expires = None
        # `has_successors` is not called here, to save a call for every task.
        is_step = bool(message.chord or message.chain or message.callbacks or message.errbacks)
        has_times = message.eta is not None or message.expires is not None
        if is_step or has_times or self._index is not None:
            times = self._examine(delivery, message, is_step=is_step)
            if times is None:
                return
            eta, expires = times
        task = self._registry.get(message.task)
        if task is None:
            self._refusals.bury(delivery, NotRegistered(message.task), message.id, message)
            return
        acks_late = self._config.task_acks_late if task.acks_late is None else task.acks_late
        request = Request(
            delivery, message, task,
            acks_late=acks_late, is_step=is_step, taken_s=self.taken_s,
        )  # fmt: skip
        if delivery.tag:
            self._state.reserved[delivery.tag] = request
        else:
            request.acks_late, request.settled = False, True
        # The task is counted under its registered name, since `shadow` is whatever the sender
        # chose.
        self._state.total[task.name] += 1
        if self._state.tally is not None:
            self._state.tally.received(request)
        if (self._revoked.any or expires is not None) and self._is_stopped(request, expires):
            return
        if self._events.tasks:
            self._events.received(message)
        _log.info("Task %s received", request)
        if task_received.receivers:
            task_received.send(self._refusals.sender, request=request)
        is_limited = task.rate_limit is not None or self._default_rate is not None
        if is_limited or eta is not None or message.redelivered or self.suspects.alone:
            self._place(request, eta, is_limited=is_limited)
        else:
            self._pool.submit(request)

    def _examine(
        self, delivery: Delivery, message: TaskMessage, *, is_step: bool
    ) -> tuple[datetime | None, datetime | None] | None:
        """Return a message's ETA and expiry; bury a malformed message and return None."""
        if self._index is not None:
            self._index.adopt(message)
        if is_step:
            if not self._may_follow(delivery, message):
                return None
            if message.chain or message.callbacks:
                self.goes_on = True
        try:
            eta = None if message.eta is None else parse_time(message.eta, "eta")
            expires = None if message.expires is None else parse_time(message.expires, "expires")
        except DecodeError as exc:
            self._refusals.bury(delivery, exc, message.id, message)
            return None
        return eta, expires

    def _place(self, request: Request, eta: datetime | None, *, is_limited: bool) -> None:
        """Let a request wait for its ETA or its turn, or hand it over now."""
        if eta is not None and (wait_s := (eta - self.waiting.now()).total_seconds()) > 0:
            self.waiting.schedule(request, wait_s, eta)
        elif is_limited:
            self.waiting.limit(request)
        else:
            self._hand_over(request)

    def _is_stopped(self, request: Request, expires: datetime | None) -> bool:
        """Settle a request if it must not run, or not now; return whether it was settled."""
        if self._revoked.any and self._revoked.matches(request.message):
            self._refusals.discard(request, "revoked")
        elif self._index is not None and self._revoked.is_paused(request.message):
            self._refusals.hold(request)
        elif expires is not None and expires <= self.waiting.now():
            self._refusals.discard(request, "expired")
        else:
            return False
        return True

    def _hand_over(self, request: Request) -> None:
        """Hand a request over to the pool; a suspect waits until it can run alone."""
        message = request.message
        if message.redelivered and self._is_suspect(request):
            self.suspects.add(request)
        elif self.suspects.alone and request.delivery.tag:
            # The request became due while a suspect was running alone, so another worker runs it,
            # or this worker runs it later.
            self._returns.give_back([request])
        else:
            self._pool.submit(request)

    def send_signals_as(self, sender: object) -> None:
        """Set the sender of the signals about messages: the consumer, as in Celery."""
        self._refusals.sender = sender

    def withdraw(self, which: Callable[[Request], bool]) -> list[Request]:
        """Remove and return the requests that have not started and satisfy `which`."""
        taken = self.waiting.withdraw(which)
        return taken + self.suspects.take_out(which) + self._pool.take_back(which)

    def discard_revoked(self) -> None:
        """Discard the waiting requests that have been revoked."""
        for request in self.withdraw(lambda request: self._revoked.matches(request.message)):
            self._refusals.discard(request, "revoked")

    def hold_paused(self) -> None:
        """Put aside the waiting requests whose workflow has been paused."""
        for request in self.withdraw(lambda request: self._revoked.is_paused(request.message)):
            self._refusals.hold(request)

    def _is_suspect(self, request: Request) -> bool:
        deaths = envelope.deliveries_of(request.delivery.raw)
        return is_suspect(deaths, self._config.task_max_deliveries)

    def _begin(self, request: Request) -> None:
        """Run a suspect."""
        if not self.waiting.is_too_late(request):
            self._pool.submit(request)

    def _may_follow(self, delivery: Delivery, message: TaskMessage) -> bool:
        """Check a message's successors; if they are malformed, bury it and return False."""
        chord = message.chord
        if chord and chord == self._body:
            # The parts of a chord arrive together, each with a copy of the body; only one copy is
            # kept.
            message.chord = self._body
            if not (message.chain or message.callbacks or message.errbacks):
                return True
        sound, reason = check_following(message)
        if not reason and message.chord and not self._stores_results:
            reason = (
                "it belongs to a chord, whose parts are counted on the results server, and this "
                "worker has no results server: set result_backend"
            )
            sound = replace(message, chord=None)
        if not reason:
            self._body = chord
            return True
        error = DecodeError(f"task {message.task}: {reason}")
        self._refusals.bury(delivery, error, message.id, sound)
        return False

    def _timed(
        self, read: Callable[[Delivery], TaskMessage | None], delivery: Delivery
    ) -> TaskMessage | None:
        """Call `read`, and count how long it took; nested calls are counted once."""
        before_s, began_s = self.read_s, time.monotonic()
        try:
            return read(delivery)
        finally:
            self.read_s = before_s + time.monotonic() - began_s

    def _read_thoroughly(self, delivery: Delivery) -> TaskMessage | None:
        """Read any message; if its signature or contents are invalid, bury it and return None."""
        raw = delivery.raw
        if self._signer is not None:
            try:
                raw = self._signer.open("message", delivery.queue, raw)
            except SignatureError as exc:
                # The id may be another task's, so it is omitted, and no result is stored under it.
                self._refusals.bury(delivery, exc, None)
                return None
        message = fast_decode.read(raw, accept=self._accept, max_body_bytes=self._max_body_bytes)
        return message or self._timed(self._read_carefully, delivery)

    def _read_carefully(self, delivery: Delivery) -> TaskMessage | None:
        """Read a less common message; if it is not a valid task call, bury it and return None."""
        try:
            unwrapped = self.reader.unwrap(delivery.raw)
        except DecodeError as exc:
            self._refusals.bury(delivery, exc, envelope.header(delivery.raw, "id"))
            return None
        try:
            message = self.reader.decode(unwrapped)
        except (DecodeError, ContentDisallowed) as exc:
            # A chord must not wait for this message.
            part = part_of(unwrapped)
            self._refusals.bury(delivery, exc, unwrapped.headers.get("id"), part)
            return None
        try:
            _check_ids(message)
        except DecodeError as exc:
            self._refusals.bury(delivery, exc, message.id, message)
            return None
        reason = unwrapped.properties.get("refused")
        if type(reason) is str:
            # Another worker has found that the message must not run; its continuation is computed
            # here.
            self._refusals.bury(delivery, WorkerLostError(reason), message.id, message)
            return None
        return message


def _check_ids(message: TaskMessage) -> None:
    """Refuse ids so long that they could fill the server.

    Raises:
        DecodeError: an id is too long.
    """
    ids = len(message.id) + len(message.root_id or "") + len(message.parent_id or "")
    if ids + len(message.group or "") > KEY.most:
        raise DecodeError(f"task {message.task}: together, its ids exceed {KEY.most:,} characters")
