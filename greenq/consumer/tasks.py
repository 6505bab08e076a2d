"""Tasks: take messages, admit them, hand them to the pool; sleep when full."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from greenq.bootsteps import StartStopStep
from greenq.errors import (
    ContentDisallowed,
    DecodeError,
    NotRegistered,
    OperationalError,
    TaskRevokedError,
)
from greenq.protocol import envelope, quick
from greenq.protocol.message import decode, parse_time
from greenq.protocol.serialize import accepted
from greenq.protocol.states import FAILURE, REVOKED
from greenq.request import Request
from greenq.transport.intake import tag_number
from greenq.transport.outbox import Entry

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.app import TaskRegistry
    from greenq.config import TaskConfig
    from greenq.pool import Pool
    from greenq.protocol.message import TaskMessage
    from greenq.timer import Entry as TimerEntry
    from greenq.timer import Timer
    from greenq.transport.intake import Delivery, Intake
    from greenq.transport.links import Transport
    from greenq.transport.outbox import Outbox
    from greenq.transport.settle import Stored
    from greenq.worker_state import WorkerState

_log = logging.getLogger(__name__)

# How long a full worker rests before it looks at the depth of its queues again, for the autoscaler.
_LOOK_S = 0.5

# A server that does not tell the depth in this time is away.
_ANSWER_S = 2.0

# So many ETAs of the near future wait here. More are parked, like those of the far one: whatever
# their number, they take no more than some 10 MB of a worker.
_ETAS_HELD = 4000

# Taking pauses while so many outcomes are not written yet: messages that only pass through, such as
# far ETAs, must not gather here.
_UNWRITTEN = 2000


class Tasks(StartStopStep):
    """Conducts a message from its queue to a slot of the pool.

    1. `consume` asks for no more than the pool has room for, and waits when there is none.
    2. What cannot run is settled here: undecodable, unknown and refused messages are buried,
       expired ones revoked; whoever waits for their result gets it.
    3. An ETA in the near future waits in the timer, reserved; a far one, and what is too much for
       that, is parked on the server.
    4. `stop` gives back whatever has not started, in its order.
    """

    name = "Tasks"
    requires = ("Connection",)

    def __init__(
        self,
        *,
        config: TaskConfig,
        transport: Transport,
        registry: TaskRegistry,
        intake: Intake,
        outbox: Outbox,
        pool: Pool,
        timer: Timer,
        state: WorkerState,
        hostname: str,
        left_behind: Callable[[], None],
    ) -> None:
        """Take a worker's parts; `left_behind` is called when a take leaves messages behind."""
        self._config = config
        self._transport = transport
        self._registry = registry
        self._intake = intake
        self._outbox = outbox
        self._pool = pool
        self._timer = timer
        self._state = state
        self._hostname = hostname
        self._left_behind = left_behind
        self._accept = accepted(config.accept_content)
        self._max_body_bytes = config.task_max_body_bytes
        self._zone = ZoneInfo(config.timezone)
        # Own greenlet only.
        self._stopping = False
        self._taken_s = 0.0
        self._scheduled: dict[str, tuple[TimerEntry, Request]] = {}
        # Messages that the last look left in the queues.
        self.depth = 0

    def start(self) -> None:
        """Prepare to consume."""
        self._stopping = False

    def stop(self) -> None:
        """Close the intake's connections; they are opened anew by the next use."""
        self._intake.close()
        self.depth = 0

    @property
    def working(self) -> bool:
        """True when the server has given messages or let us wait since the last start."""
        return self._intake.working

    def backlog(self) -> int:
        """Count what waits for a slot, here and in the queues. Switches: no."""
        return self.depth + self._pool.waiting

    def consume(self) -> None:
        """Take and admit until told to stop. Switches: yes. Raises OperationalError."""
        while not self._stopping:
            room = min(self._pool.room, _UNWRITTEN - len(self._outbox))
            if room <= 0:
                self._rest()
                continue
            self._taken_s = time.monotonic()
            # Half of what fits at most: the one half runs while the other is fetched.
            deliveries, self.depth = self._intake.take(min(room, (self._pool.size + 1) // 2))
            if self._stopping:
                self._return(deliveries)
                return
            for delivery in deliveries:
                self._receive(delivery)
            if self.depth:
                self._left_behind()
            while not (self.depth or self._pool.room <= 0 or self._stopping):
                if self._intake.wait():
                    break

    def stop_consuming(self) -> None:
        """Make `consume` return soon."""
        self._stopping = True
        self._pool.wake()
        try:
            self._intake.wake()
        except OperationalError as exc:
            _log.info("the server is away at shutdown: %s", exc)
            self._intake.close()

    def give_back_unstarted(self) -> None:
        """Return all messages that wait here for their ETA or for a slot."""
        scheduled = [request for _, request in self._scheduled.values()]
        for entry, _ in self._scheduled.values():
            entry.cancel()
        self._scheduled.clear()
        self.give_back(scheduled + self._pool.take_back())

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
            self._outbox.put(Entry(move=self._transport.broker.requeue(*delivery, "next")))
        if deliveries:
            _log.info("gave %d messages back to their queues", len(deliveries))

    def _rest(self) -> None:
        """Wait for room, here or in the outbox; meanwhile keep an eye on the queues' depth."""
        if self._pool.room > 0:
            self._outbox.wait_written(_LOOK_S)
            return
        self._pool.wait_room(_LOOK_S)
        if self._pool.room <= 0 and not self._stopping:
            self.depth = self._transport.broker.depth(self._intake.queues, timeout_s=_ANSWER_S)
            if self.depth:
                self._left_behind()

    # --- admission --------------------------------------------------------------------------------

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
        message = quick.read(delivery.raw, accept=accept, max_body_bytes=most)
        message = message or self._read_carefully(delivery)
        if message is None:
            return
        try:
            _check_supported(message)
            eta = None if message.eta is None else parse_time(message.eta, self._zone)
            expires = None if message.expires is None else parse_time(message.expires, self._zone)
        except DecodeError as exc:
            self._bury(delivery, exc, message.id)
            return
        task = self._registry.get(message.task)
        if task is None:
            near = self._registry.nearest(message.task)
            _log.error(
                "Received unregistered task %r, id %s%s: it is among the dead letters of queue %s; "
                "import its module in the worker, then replay it",
                message.task, message.id, near, delivery.queue,
            )  # fmt: skip
            self._bury(delivery, NotRegistered(message.task), message.id, logged=True)
            return
        acks_late = self._config.task_acks_late if task.acks_late is None else task.acks_late
        request = Request(delivery, message, task, acks_late=acks_late, taken_s=self._taken_s)
        self._state.reserved[delivery.tag] = request
        self._state.total[message.shadow or message.task] += 1
        if expires is not None and expires <= self._now():
            self._expire(request)
            return
        _log.info("Task %s received", request)
        wait_s = 0.0 if eta is None else (eta - self._now()).total_seconds()
        far = wait_s > self._config.task_eta_horizon or len(self._scheduled) >= _ETAS_HELD
        if eta is not None and wait_s > 0 and far:
            self._park(request, eta)
        elif wait_s > 0:
            self._schedule(request, wait_s, expires)
        else:
            self._pool.submit(request)

    def _read_carefully(self, delivery: Delivery) -> TaskMessage | None:
        """Read what is not quite common; bury what is no task call, and return None."""
        try:
            unwrapped = envelope.unwrap(delivery.raw)
        except DecodeError as exc:
            self._bury(delivery, exc, envelope.header(delivery.raw, "id"))
            return None
        try:
            return decode(unwrapped, accept=self._accept, max_body_bytes=self._max_body_bytes)
        except (DecodeError, ContentDisallowed) as exc:
            self._bury(delivery, exc, unwrapped.headers.get("id"))
            return None

    def _schedule(self, request: Request, wait_s: float, expires: datetime | None) -> None:
        """Hold a request until its ETA."""

        def due() -> None:
            self._scheduled.pop(request.delivery.tag, None)
            if expires is not None and expires <= self._now():
                self._expire(request)
            else:
                self._pool.submit(request)

        entry = self._timer.call_after(wait_s, due)
        self._scheduled[request.delivery.tag] = entry, request

    def _park(self, request: Request, eta: datetime) -> None:
        """Put a request aside on the server until its ETA, so that it costs this worker nothing."""
        self._state.reserved.pop(request.delivery.tag, None)
        if request.settle():
            tag, queue, raw = request.delivery
            priority = request.properties.get("priority")
            move = self._transport.broker.park(tag, queue, raw, priority, eta.timestamp())
            self._outbox.put(Entry(move=move))

    def _now(self) -> datetime:
        """Return this moment by the server's clock, which all workers share."""
        return datetime.now(UTC) + timedelta(seconds=self._state.clock_offset_s)

    def _expire(self, request: Request) -> None:
        """Discard a task that is too late; whoever waits for it learns so."""
        _log.info("Discarding expired task %s", request)
        self._state.reserved.pop(request.delivery.tag, None)
        if request.settle():
            result = self._stored(
                request.message.id, REVOKED, TaskRevokedError("expired"), request.message
            )
            self._outbox.put(Entry(result, ack=request.delivery.tag))

    def _bury(
        self, delivery: Delivery, error: Exception, task_id: object, *, logged: bool = False
    ) -> None:
        """Put a message that cannot run among the dead letters; who waits for it learns why."""
        reason = f"unregistered task {error}" if isinstance(error, NotRegistered) else str(error)
        if not logged:
            _log.error(
                "A message of queue %s (task id %s) cannot run: %s; it is among the dead letters",
                delivery.queue, task_id, reason,
            )  # fmt: skip
        result: Stored | None = None
        # JSON can spell half a surrogate pair, which no key in Redis can hold.
        if isinstance(task_id, str) and task_id == task_id.encode(errors="ignore").decode():
            result = self._stored(task_id, FAILURE, error)
        move = self._transport.broker.bury(
            *delivery, reason=reason, worker=self._hostname, now=datetime.now(UTC)
        )
        self._outbox.put(Entry(result, move=move))

    def _stored(
        self, task_id: str, state: str, error: Exception, message: TaskMessage | None = None
    ) -> Stored | None:
        if not self._transport.stores_results or (message is not None and message.ignore_result):
            return None
        return self._transport.backend.stored(
            task_id,
            state,
            error,
            date_done=datetime.now(UTC).isoformat(),
            group_id=message.group if message is not None else None,
            parent_id=message.parent_id if message is not None else None,
            redelivered=message is not None and message.redelivered,
        )


def _number(request: Request) -> int:
    """Return the order in which a request was taken."""
    return tag_number(request.delivery.tag)


def _check_supported(message: TaskMessage) -> None:
    """Refuse what this version would run only in part.

    Raises:
        DecodeError: the message belongs to a workflow.
    """
    if message.callbacks or message.errbacks or message.chain or message.chord:
        parts = ("callbacks", "errbacks", "chain", "chord")
        used = [part for part in parts if getattr(message, part)]
        raise DecodeError(
            f"task {message.task}: workflows ({', '.join(used)}) are not supported by this version"
        )
