"""Tasks waiting in this worker, without a slot, for their ETA or because of their rate limit."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from greenq.execution.rate_limit import RateLimitedQueue
from greenq.protocol.message import parse_time
from greenq.protocol.rate import parse_rate
from greenq.transport.settle import Settlement

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.app import TaskRegistry
    from greenq.consumer.refusals import Refusals
    from greenq.execution.state import WorkerState
    from greenq.running.request import Request
    from greenq.task import BaseTask
    from greenq.timer import Timer, TimerEntry
    from greenq.transport.outbox import Outbox
    from greenq.transport.transport import Transport

# The maximum number of tasks that wait in this worker for a near ETA, and also of those held back
# by their rate limit. Any more are parked like tasks with a far ETA, so each kind takes at most
# about 10 MB in a worker, and messages behind them in the queues can run.
_ETAS_HELD = 4000

# A larger message always waits for its ETA on the server.
_LARGE_BYTES = 16_384


class Waiting:
    """Holds requests until their time has come.

    1. A task with a near ETA waits in the timer, reserved; one with a far ETA, or one that does
       not fit here, is parked on the server.
    2. A task with a rate limit waits, reserved, in the queue for its task name.
    3. A task that expires while it waits is discarded.
    """

    def __init__(
        self,
        transport: Transport,
        registry: TaskRegistry,
        outbox: Outbox,
        timer: Timer,
        state: WorkerState,
        refusals: Refusals,
        *,
        eta_horizon_s: float,
        default_rate: float | None,
        obeys_rates: bool,
        hand_over: Callable[[Request], object],
    ) -> None:
        """Use a worker's parts.

        Args:
            transport, registry, outbox, timer, state, refusals: those of the worker.
            eta_horizon_s: tasks with a later ETA wait on the server.
            default_rate: how many times per second a task without its own limit may start.
            obeys_rates: False lets tasks start regardless of their limits.
            hand_over: called with a request whose time has come.
        """
        self._transport = transport
        self._registry = registry
        self._outbox = outbox
        self._timer = timer
        self._state = state
        self._refusals = refusals
        self._eta_horizon_s = eta_horizon_s
        self._default_rate = default_rate
        self._obeys_rates = obeys_rates
        self._hand_over = hand_over
        # The requests waiting for their ETA and, by task name, those held back by a rate limit.
        self._scheduled: dict[Request, tuple[TimerEntry, datetime]] = {}
        self._lines: dict[str, RateLimitedQueue] = {}

    def now(self) -> datetime:
        """Return the current time by the server's clock, which is the same for all workers."""
        return datetime.now(UTC) + timedelta(seconds=self._state.clock_offset_s)

    def schedule(self, request: Request, wait_s: float, eta: datetime) -> None:
        """Hold a request until its ETA, in this worker or on the server."""
        delivery = request.delivery
        is_far = wait_s > self._eta_horizon_s or len(self._scheduled) >= _ETAS_HELD
        if (is_far or len(delivery.raw) > _LARGE_BYTES) and delivery.tag:
            self._park(request, eta)
            return

        def due() -> None:
            del self._scheduled[request]
            if not self.is_too_late(request):
                self.limit(request)

        self._scheduled[request] = self._timer.call_after(wait_s, due), eta

    def limit(self, request: Request) -> None:
        """Hold a request until its task's rate limit, if any, lets it start."""
        task = request.task
        line, rate = self._lines.get(task.name), self._rate_of(task)
        if line is None:
            if rate is None:
                self._hand_over(request)
                return
            line = self._lines[task.name] = RateLimitedQueue(rate, self._timer, self._begin)
        if sum(map(len, self._lines.values())) < _ETAS_HELD or not request.delivery.tag:
            line.add(request)
        else:
            self._park(request, self.now() + timedelta(seconds=line.put_aside_s()))

    def set_rate_limit(self, name: str, rate: str | float | None) -> None:
        """Change a task's rate limit, including for its waiting requests.

        Raises:
            NotRegistered: there is no such task.
            ValueError: `rate` is not a rate limit (`parse_rate`).
        """
        parse_rate(rate)
        task = self._registry[name]
        task.rate_limit = rate
        if name in self._lines:
            self._lines[name].set_rate(self._rate_of(task))

    def is_too_late(self, request: Request) -> bool:
        """Discard a request if it has expired while waiting here; return whether it has."""
        expires = request.message.expires
        if expires is None or parse_time(expires) > self.now():
            return False
        self._refusals.discard(request, "expired")
        return True

    @property
    def is_empty(self) -> bool:
        """True if no requests are waiting here."""
        return not self._scheduled and not any(map(len, self._lines.values()))

    def scheduled(self) -> list[tuple[datetime, Request]]:
        """Return the requests that are waiting for their ETA, with the ETA, soonest first."""
        found = [(eta, request) for request, (_entry, eta) in self._scheduled.items()]
        return sorted(found, key=lambda pair: pair[0])

    def limited(self) -> list[Request]:
        """Return the requests that are held back by their rate limit."""
        return [request for line in self._lines.values() for request in line.waiting()]

    def withdraw(self, which: Callable[[Request], bool]) -> list[Request]:
        """Remove and return the requests that satisfy `which`."""
        taken = [request for request in self._scheduled if which(request)]
        for request in taken:
            entry, _eta = self._scheduled.pop(request)
            entry.cancel()
        for line in self._lines.values():
            taken += line.take_out(which)
        return taken

    def _begin(self, request: Request) -> None:
        """Hand over a request whose turn has come."""
        if not self.is_too_late(request):
            self._hand_over(request)

    def _rate_of(self, task: BaseTask[..., Any]) -> float | None:
        """Return how many times per second a task may start; None means no limit."""
        if not self._obeys_rates:
            return None
        return self._default_rate if task.rate_limit is None else parse_rate(task.rate_limit)

    def _park(self, request: Request, eta: datetime) -> None:
        """Move a request to the server until its ETA, to free its memory in this worker."""
        self._state.reserved.pop(request.delivery.tag, None)
        if request.settle():
            tag, queue, raw = request.delivery
            priority = request.properties.get("priority")
            move = self._transport.broker.park(tag, queue, raw, priority, eta.timestamp())
            self._outbox.put(Settlement.moving(move))
