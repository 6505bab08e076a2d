"""Tasks: take messages, admit them, hand them to the pool; sleep when full."""

from __future__ import annotations

import logging
import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from greenq.bootsteps.blueprint import StartStopPart
from greenq.errors import (
    ContentDisallowed,
    DecodeError,
    NotRegistered,
    OperationalError,
    TaskRevokedError,
)
from greenq.execution.rate_limit import RateLimitedQueue
from greenq.execution.revoked import MOST_ID_CHARS
from greenq.execution.suspects import Suspects
from greenq.hub import Event
from greenq.protocol import compress, envelope, fast_decode
from greenq.protocol.event import NullEventSender
from greenq.protocol.limits import KEY, check_json, most_raw
from greenq.protocol.message import decode, parse_time, saferepr
from greenq.protocol.rate import parse_rate
from greenq.protocol.serialize import accepted
from greenq.request import Request
from greenq.states import FAILURE, REVOKED
from greenq.transport.fetch import tag_number
from greenq.transport.recovery import is_suspect
from greenq.transport.settle import Entry, Guard, settle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from greenq.app import TaskRegistry
    from greenq.config.settings import TaskConfig
    from greenq.execution.state import WorkerState
    from greenq.pool import Pool
    from greenq.protocol.event import EventSender
    from greenq.protocol.message import TaskMessage
    from greenq.task import Task
    from greenq.timer import Entry as TimerEntry
    from greenq.timer import Timer
    from greenq.transport.client import Connection
    from greenq.transport.fetch import Delivery, Fetcher
    from greenq.transport.outbox import Outbox
    from greenq.transport.settle import StateWrite
    from greenq.transport.transport import Transport

_log = logging.getLogger(__name__)

# How long a full worker rests before it looks at the depth of its queues again, for the autoscaler.
_LOOK_S = 0.5

# A server that does not tell the depth in this time is away.
_ANSWER_S = 2.0

# So many ETAs of the near future wait here, and so many tasks for their rate limits. More are
# parked, like ETAs of the far future: whatever their number, they take no more than some 10 MB of a
# worker, each, and what is behind them in the queues has its turn.
_ETAS_HELD = 4000

# A message that is larger waits for its ETA on the server in any case.
_LARGE_BYTES = 16_384

# Taking pauses while so many outcomes are not written yet: messages that only pass through, such as
# far ETAs, must not gather here.
_UNWRITTEN = 2000


class Tasks(StartStopPart):
    """Conducts a message from its queue to a slot of the pool.

    1. `consume` asks for no more than the pool has room for, and waits when there is none.
    2. What cannot run is settled here: undecodable, unknown and refused messages are buried,
       expired ones revoked; whoever waits for their result gets it.
    3. An ETA in the near future waits in the timer, reserved; a far one, and what is too much for
       that, is parked on the server.
    4. A task with a rate limit waits in its line, reserved, and takes no slot meanwhile.
    5. `drain` and `stop` give back whatever has not started, in its order.
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
        left_behind: Callable[[], None],
        events: EventSender | None = None,
        rate_limits: bool = True,
    ) -> None:
        """Take a worker's parts.

        Args:
            config, transport, registry, fetcher, outbox, pool, timer, state: those of the worker.
            hostname: its node name.
            left_behind: called when a take leaves messages behind.
            events: hears of tasks.
            rate_limits: False lets tasks start without regard to their limits.

        Raises:
            ValueError: ``task_default_rate_limit`` is no rate limit.
        """
        self._config = config
        self._transport = transport
        self._registry = registry
        self._fetcher = fetcher
        self._outbox = outbox
        self._pool = pool
        self._timer = timer
        self._state = state
        self._revoked = state.revoked
        self._hostname = hostname
        self._events = events or NullEventSender()
        self._left_behind = left_behind
        self._accept = accepted(config.accept_content)
        self._accept_compression = compress.accepted(
            *config.accept_compression, config.task_compression
        )
        self._max_body_bytes = config.task_max_body_bytes
        self._max_raw_bytes = most_raw(config.task_max_body_bytes)
        self._obeys_rates = rate_limits
        self._default_rate = parse_rate(config.task_default_rate_limit)
        # Own greenlet only.
        self._stopping = False
        self._taken_s = 0.0
        # What is being admitted; any thread may look.
        self._admitting: list[Delivery] = []
        self._suspects = Suspects(pool, outbox, self._begin)
        # What waits for its ETA, and for the rate limit of its task, by the task's name.
        self._scheduled: dict[Request, tuple[TimerEntry, datetime]] = {}
        self._lines: dict[str, RateLimitedQueue] = {}
        # True while nothing is to be taken; the event is set when that may be over.
        self.draining = False
        self._changed = Event()
        # Messages that the last look left in the queues.
        self.depth = 0

    def start(self) -> None:
        """Prepare to consume."""
        self._stopping = False

    def stop(self) -> None:
        """Close the fetcher's connections; they are opened anew by the next use."""
        self._fetcher.close()
        self.depth = 0

    @property
    def working(self) -> bool:
        """True when the server has given messages or let us wait since the last start."""
        return self._fetcher.working

    def backlog(self) -> int:
        """Count what waits for a slot, here and in the queues. Switches: no."""
        return self.depth + self._pool.waiting

    def consume(self) -> None:
        """Take and admit until told to stop. Switches: yes. Raises OperationalError."""
        while not self._stopping:
            self.turn()

    def turn(self) -> None:
        """Take once and admit it, or wait until something may be taken. Switches: yes."""
        if self._fetcher.unsure:
            # Not before room is made, or draining is over: nobody else can take what may be here.
            self._admit_all(self._fetcher.take(0).deliveries)
            return
        if self.draining:
            self._changed.clear()
            self._changed.wait()
            return
        if self._suspects.busy:
            self._suspects.wait_over(_LOOK_S)
            return
        room = min(self._pool.room, _UNWRITTEN - len(self._outbox))
        if room <= 0:
            self._rest()
            return
        self._taken_s = self._state.now_s()
        # Half of what fits at most: the one half runs while the other is fetched.
        deliveries, self.depth = self._fetcher.take(min(room, (self._pool.size + 1) // 2))
        self._admit_all(deliveries)
        if self.depth:
            self._left_behind()
        while self._may_wait() and not self._fetcher.wait():
            pass

    def _may_wait(self) -> bool:
        """Tell whether there is nothing else to do than wait for work."""
        is_full = self.depth or self._pool.room <= 0 or self._suspects.busy
        return self._may_take() and not is_full

    def _admit_all(self, deliveries: list[Delivery]) -> None:
        """Admit what was taken, or return it if nothing is to be taken any more."""
        if not self._may_take():
            self._return(deliveries)
            return
        self._admitting = deliveries
        for delivery in deliveries:
            self._receive(delivery)
        self._admitting = []

    @property
    def unfinished(self) -> set[str]:
        """The tags of what is here and not settled; any thread may ask."""
        return {*list(self._state.reserved), *(each.tag for each in self._admitting)}

    def _may_take(self) -> bool:
        return not (self._stopping or self.draining)

    def stop_consuming(self) -> None:
        """Make `consume` return soon."""
        self._stopping = True
        self._interrupt()

    def leave(self) -> None:
        """Put back what only this worker would find; nothing is taken any more. Switches: yes."""
        try:
            self._fetcher.leave()
        except OperationalError as exc:
            _log.info("what was handed over here is left to other greenq workers: %s", exc)

    def _interrupt(self) -> None:
        """Have `consume` look what it is to do."""
        self._changed.set()
        self._pool.wake()
        try:
            self._fetcher.wake()
        except OperationalError as exc:
            _log.info("the server is away: %s", exc)
            self._fetcher.close()

    def drain(self, on: bool) -> None:
        """Take nothing more and give back what has not started; what runs goes on. Switches: yes.

        With `on` False it takes again.
        """
        if on == self.draining:
            return
        self.draining = on
        if on:
            _log.warning("draining: nothing is taken any more, %d tasks run", self._pool.running)
            self.depth = 0
            self.give_back(self._withdraw(_is_recorded))
        else:
            _log.warning("draining is over: tasks are taken again")
        self._interrupt()

    def give_back_unstarted(self) -> None:
        """Return all messages that wait here for their ETA, their rate limit, or a slot."""
        self.give_back(self._withdraw(lambda _request: True))

    def _withdraw(self, which: Callable[[Request], bool]) -> list[Request]:
        """Give up what has not started and `which` is true of."""
        taken = [request for request in self._scheduled if which(request)]
        for request in taken:
            entry, _eta = self._scheduled.pop(request)
            entry.cancel()
        for line in self._lines.values():
            taken += line.take_out(which)
        return taken + self._suspects.take_out(which) + self._pool.take_back(which)

    def give_away(self, connection: Connection, owner: str) -> None:
        """Give what waits for a slot to other workers, in the watch thread: the hub stands still.

        Raises:
            OperationalError: it stays, and is given back when its worker ends or the hub moves.
        """
        requests = self._pool.withdraw(_is_recorded)
        if not requests:
            return
        requests.sort(key=_number, reverse=True)
        entries = [self._returned(request.delivery) for request in requests]
        try:
            settle(connection, self._transport.keys, entries, guard=Guard(owner))
        except OperationalError:
            # It may have been done all the same: each asks whose it is before it begins.
            for request in requests:
                request.taken_s = -math.inf
            # The line is a deque, which any thread may change.
            self._pool.put_back(requests)
            raise
        for request in requests:
            request.settle()
            self._state.reserved.pop(request.delivery.tag, None)
        _log.warning(
            "gave %d messages that had not begun back to their queues, for other workers to run",
            len(requests),
        )

    def give_back(self, requests: list[Request]) -> None:
        """Return messages to their queues, to be taken next and in the same order."""
        given_back = sorted((each for each in requests if each.settle()), key=_number)
        for request in given_back:
            self._state.reserved.pop(request.delivery.tag, None)
        self._return([request.delivery for request in given_back])

    def _return(self, deliveries: list[Delivery]) -> None:
        """Have deliveries pushed so that they are taken next, oldest first."""
        # The last one pushed is taken first, so the newest is pushed first.
        for delivery in reversed(deliveries):
            self._outbox.put(self._returned(delivery))
        if deliveries:
            _log.info("gave %d messages back to their queues", len(deliveries))

    def _returned(self, delivery: Delivery) -> Entry:
        return Entry.moving(self._transport.broker.requeue(*delivery, "next"))

    def _rest(self) -> None:
        """Wait for room, here or in the outbox; meanwhile keep an eye on the queues' depth."""
        if self._pool.room > 0:
            self._outbox.wait_written(_LOOK_S)
            return
        self._pool.wait_room(_LOOK_S)
        if self._pool.room <= 0 and not self._stopping:
            self.depth = self._transport.broker.depth(self._fetcher.queues, timeout_s=_ANSWER_S)
            if self.depth:
                self._left_behind()

    # --- remote control ---------------------------------------------------------------------------

    def scheduled(self) -> list[tuple[datetime, Request]]:
        """Return what waits here for its ETA, with that, the next one first."""
        found = [(eta, request) for request, (_entry, eta) in self._scheduled.items()]
        return sorted(found, key=lambda pair: pair[0])

    def waiting(self) -> list[Request]:
        """Return what waits here for its rate limit or for a slot."""
        limited = [request for line in self._lines.values() for request in line.waiting()]
        return limited + self._suspects.waiting() + self._pool.unstarted()

    def revoke(
        self, ids: Iterable[str] = (), stamps: Mapping[str, Any] | None = None
    ) -> list[Request]:
        """Let no task run with one of these ids or stamps; return those that run here already.

        What waits here is discarded now; what turns up later, then.
        """
        self._revoked.update(ids)
        self._revoked.add_stamps(stamps or {})
        for request in self._withdraw(self._is_revoked):
            self._discard(request, "revoked")
        return [request for request in self._pool.active if self._is_revoked(request)]

    def _is_revoked(self, request: Request) -> bool:
        return self._revoked.matches(request.message)

    def set_rate_limit(self, name: str, rate: str | float | None) -> None:
        """Give a task another rate limit in this worker; it holds for what waits here, too.

        Raises:
            NotRegistered: there is no such task.
            ValueError: the rate is none (`parse_rate`).
        """
        parse_rate(rate)
        task = self._registry[name]
        task.rate_limit = rate
        if name in self._lines:
            self._lines[name].set_rate(self._rate_of(task))

    # --- admission --------------------------------------------------------------------------------

    def receive(self, delivery: Delivery) -> None:
        """Run what was published to all workers; the server has no record of it. Switches: no."""
        self._receive(delivery._replace(tag=""))

    def _receive(self, delivery: Delivery) -> None:
        """Admit a delivery; a fault of ours with one message must not stop those behind it."""
        try:
            self._admit(delivery)
        except Exception as exc:
            _log.exception("could not admit a message of queue %s", delivery.queue)
            self._state.reserved.pop(delivery.tag, None)
            self._bury(delivery, exc, None)

    def _admit(self, delivery: Delivery) -> None:
        """Decode a delivery and hand it to the pool or the timer; settle what cannot run."""
        accept, most = self._accept, self._max_body_bytes
        message = fast_decode.read(delivery.raw, accept=accept, max_body_bytes=most)
        message = message or self._read_carefully(delivery)
        if message is None:
            return
        try:
            _check_supported(message)
            eta = None if message.eta is None else parse_time(message.eta, "eta")
            expires = None if message.expires is None else parse_time(message.expires, "expires")
        except DecodeError as exc:
            self._bury(delivery, exc, message.id)
            return
        task = self._registry.get(message.task)
        if task is None:
            self._bury(delivery, NotRegistered(message.task), message.id)
            return
        acks_late = self._config.task_acks_late if task.acks_late is None else task.acks_late
        request = Request(delivery, message, task, acks_late=acks_late, taken_s=self._taken_s)
        if delivery.tag:
            self._state.reserved[delivery.tag] = request
        else:
            request.acks_late, request.settled = False, True
        # By the registered name: the sender makes up the other one.
        self._state.total[task.name] += 1
        if self._revoked.any and self._revoked.matches(message):
            self._discard(request, "revoked")
            return
        if expires is not None and expires <= self._now():
            self._discard(request, "expired")
            return
        if self._events.tasks:
            self._events.received(message)
        _log.info("Task %s received", request)
        if eta is not None and (wait_s := (eta - self._now()).total_seconds()) > 0:
            far = wait_s > self._config.task_eta_horizon or len(self._scheduled) >= _ETAS_HELD
            if (far or len(delivery.raw) > _LARGE_BYTES) and delivery.tag:
                self._park(request, eta)
            else:
                self._schedule(request, wait_s, eta)
        elif task.rate_limit is not None or self._default_rate is not None:
            self._limit(request)
        else:
            self._hand_over(request)

    def _hand_over(self, request: Request) -> None:
        """Hand a request over to the pool; one whose workers have died waits until it is alone."""
        message = request.message
        if message.redelivered and self._is_suspect(request):
            self._suspects.add(request)
        elif self._suspects.alone and request.delivery.tag:
            # It has become due while another one must be alone: others run it, or this worker does
            # later.
            self.give_back([request])
        else:
            self._pool.submit(request)

    def _is_suspect(self, request: Request) -> bool:
        deaths = envelope.deliveries_of(request.delivery.raw)
        return is_suspect(deaths, self._config.task_max_deliveries)

    @staticmethod
    def _fate(delivery: Delivery) -> str:
        """Say what becomes of a message that cannot run."""
        return "is among the dead letters" if delivery.tag else "came for all, and is dropped"

    def _read_carefully(self, delivery: Delivery) -> TaskMessage | None:
        """Read what is not quite common; bury what is no task call, and return None."""
        try:
            unwrapped = self._unwrap(delivery.raw)
        except DecodeError as exc:
            self._bury(delivery, exc, envelope.header(delivery.raw, "id"))
            return None
        try:
            return self._decode(unwrapped)
        except (DecodeError, ContentDisallowed) as exc:
            self._bury(delivery, exc, unwrapped.headers.get("id"))
            return None

    def read(self, raw: bytes) -> TaskMessage:
        """Read a message as it is read when it is taken.

        Raises:
            DecodeError, ContentDisallowed: it is no task call that this worker accepts.
        """
        return self._decode(self._unwrap(raw))

    def _unwrap(self, raw: bytes) -> envelope.Envelope:
        check_json(raw, self._max_raw_bytes, "the message")
        return envelope.unwrap(raw)

    def _decode(self, unwrapped: envelope.Envelope) -> TaskMessage:
        return decode(
            unwrapped,
            accept=self._accept,
            max_body_bytes=self._max_body_bytes,
            accept_compression=self._accept_compression,
        )

    def _schedule(self, request: Request, wait_s: float, eta: datetime) -> None:
        """Hold a request until its ETA."""

        def due() -> None:
            del self._scheduled[request]
            if not self._is_too_late(request):
                self._limit(request)

        self._scheduled[request] = self._timer.call_after(wait_s, due), eta

    def _limit(self, request: Request) -> None:
        """Hold a request as long as its task's rate limit wants it; there may be none."""
        task = request.task
        line, rate = self._lines.get(task.name), self._rate_of(task)
        if line is None:
            if rate is None:
                self._hand_over(request)
                return
            line = self._lines[task.name] = RateLimitedQueue(rate, self._timer, self._begin_limited)
        if sum(map(len, self._lines.values())) < _ETAS_HELD or not request.delivery.tag:
            line.add(request)
        else:
            self._park(request, self._now() + timedelta(seconds=line.put_aside_s()))

    def _rate_of(self, task: Task[..., Any]) -> float | None:
        """Return how many of a task may start a second, None for any number."""
        if not self._obeys_rates:
            return None
        return self._default_rate if task.rate_limit is None else parse_rate(task.rate_limit)

    def _begin_limited(self, request: Request) -> None:
        """Hand over a request whose turn has come."""
        if not self._is_too_late(request):
            self._hand_over(request)

    def _begin(self, request: Request) -> None:
        """Run a suspect."""
        if not self._is_too_late(request):
            self._pool.submit(request)

    def _is_too_late(self, request: Request) -> bool:
        """Discard a request that has expired while it waited here."""
        expires = request.message.expires
        if expires is None or parse_time(expires) > self._now():
            return False
        self._discard(request, "expired")
        return True

    def _park(self, request: Request, eta: datetime) -> None:
        """Put a request aside on the server until its ETA, so that it costs this worker nothing."""
        self._state.reserved.pop(request.delivery.tag, None)
        if request.settle():
            tag, queue, raw = request.delivery
            priority = request.properties.get("priority")
            move = self._transport.broker.park(tag, queue, raw, priority, eta.timestamp())
            self._outbox.put(Entry.moving(move))

    def _now(self) -> datetime:
        """Return this moment by the server's clock, which all workers share."""
        return datetime.now(UTC) + timedelta(seconds=self._state.clock_offset_s)

    def _discard(self, request: Request, why: Literal["revoked", "expired"]) -> None:
        """Settle a task that shall not run; whoever waits for it learns so."""
        _log.info("Discarding %s task %s", why, request)
        message = request.message
        self._state.reserved.pop(request.delivery.tag, None)
        if request.settle():
            result = self._stored(message.id, REVOKED, TaskRevokedError(why), request)
            self._outbox.put(Entry(request.delivery.tag, result=result))
        if self._events.tasks:
            how = {"terminated": False, "signum": None, "expired": why == "expired"}
            self._events.send("task-revoked", {"uuid": message.id, **how})

    def _bury(self, delivery: Delivery, error: Exception, task_id: object) -> None:
        """Put a message that cannot run among the dead letters; who waits for it learns why."""
        reason = str(error)
        if isinstance(error, NotRegistered):
            _log.error(
                "Received unregistered task %r, id %s%s: it %s; import its module in the worker",
                reason, task_id, self._registry.nearest(reason), self._fate(delivery),
            )  # fmt: skip
            reason = f"unregistered task {error}"
        else:
            _log.error(
                "A message of queue %s (task id %s) cannot run: %s; it %s",
                delivery.queue, task_id, reason, self._fate(delivery),
            )  # fmt: skip
        if not delivery.tag:
            return
        result: StateWrite | None = None
        if KEY.takes(task_id):
            result = self._stored(task_id, FAILURE, error)
            result = result and result.of_unrun()
        move = self._transport.broker.bury(
            *delivery, reason=reason, worker=self._hostname, now=datetime.now(UTC)
        )
        self._outbox.put(Entry.moving(move, result))
        if self._events.tasks and isinstance(error, NotRegistered):
            why = {"exception": saferepr(error)}
            self._events.send("task-failed", {"uuid": task_id, **why})

    def _stored(
        self, task_id: str, state: str, error: Exception, request: Request | None = None
    ) -> StateWrite | None:
        message = None if request is None else request.message
        if not self._transport.stores_results or (message is not None and message.ignore_result):
            return None
        backend = self._transport.backend
        extends = request is not None and backend.extends
        return backend.stored(
            task_id,
            state,
            error,
            date_done=datetime.now(UTC).isoformat(),
            group_id=message.group if message is not None else None,
            parent_id=message.parent_id if message is not None else None,
            extended=request.extended(self._hostname) if request is not None and extends else None,
        )


def _is_recorded(request: Request) -> bool:
    """Tell whether the server has a record of a message, so that it can be given back."""
    return bool(request.delivery.tag)


def _number(request: Request) -> int:
    """Return the order in which a request was taken."""
    return tag_number(request.delivery.tag)


def _check_supported(message: TaskMessage) -> None:
    """Refuse what this version would run only in part, and ids that would fill the server.

    Raises:
        DecodeError: the message belongs to a workflow, or an id is too long.
    """
    # Added up, because this is on the path of every task.
    ids = len(message.id) + len(message.root_id or "") + len(message.parent_id or "")
    if ids + len(message.group or "") > MOST_ID_CHARS:
        raise DecodeError(
            f"task {message.task}: its ids have more than {MOST_ID_CHARS:,} characters together"
        )
    if message.callbacks or message.errbacks or message.chain or message.chord:
        parts = ("callbacks", "errbacks", "chain", "chord")
        used = [part for part in parts if getattr(message, part)]
        raise DecodeError(
            f"task {message.task}: workflows ({', '.join(used)}) are not supported by this version"
        )
