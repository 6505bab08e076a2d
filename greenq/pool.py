"""The pool: lasting greenlets that run request after request, as many at once as its size says."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, cast

import gevent
import gevent.pool
import gevent.timeout
from gevent.hub import Waiter

from greenq.bootsteps.blueprint import StartStopPart
from greenq.diagnostics.hub_time import HubTime
from greenq.errors import TaskRevokedError, TaskTerminated
from greenq.hub import Event, timer_s

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from greenq.request import Request

_log = logging.getLogger(__name__)

# What `threading.current_thread` makes of greenlets that ask for it, each log line does, by ident.
# There is no way to look without making it.
_threads: dict[int, threading.Thread] = threading._active  # type: ignore[attr-defined]  # noqa: SLF001

# A greenlet whose tasks never wait lets the others run after so long.
_TURN_S = 0.005


# Code that goes on although it was to end is thrown at again and again, after so long; when it was
# terminated, its `finally` blocks have longer at first.
AGAIN_S = 0.5
_FINALLY_S = 1.0


class PoolGreenlet(gevent.Greenlet):  # type: ignore[type-arg]  # the class itself is not generic
    """A greenlet of the pool, and the request that it runs at the moment."""

    __slots__ = ("request",)
    request: Request | None
    name = "pool"


class Interrupt:
    """Throws an exception into a request's code when its time has come.

    With `again_s` once more after so long, and then every half a second, until the code has ended:
    it may catch everything. A timer of the loop is gone at once when it is cancelled; an entry of
    the worker's timer would stay until it is due, and limits are long.
    """

    __slots__ = ("_again_s", "_make", "_request", "_timer")

    def __init__(
        self,
        request: Request,
        make: Callable[[], BaseException],
        after_s: float,
        *,
        again_s: float | None = None,
    ) -> None:
        """Throw what `make` returns; before its code and after it nothing hits a request."""
        self._request = request
        self._make = make
        self._again_s = again_s
        self._set(after_s)

    def cancel(self) -> None:
        """Never throw (again)."""
        self._again_s = None
        self._timer.stop()
        self._timer.close()

    def _set(self, after_s: float) -> None:
        self._timer = gevent.get_hub().loop.timer(timer_s(after_s))
        # Counted from now, not from when the loop last looked at the clock.
        self._timer.start(self._due, update=True)

    def _due(self) -> None:
        self._timer.stop()
        self._timer.close()
        again_s = self._again_s
        if again_s is not None and self._request.in_code:
            self._again_s = AGAIN_S
            self._set(again_s)
        self._request.interrupt(self._make())


def _interrupted() -> Any:
    """Return what a timeout that is started here interrupts: the request, not the next one too."""
    current = gevent.getcurrent()
    request = current.request if type(current) is PoolGreenlet else None
    return current if request is None else request


def _forget(_requests: list[Request]) -> None:
    """Leave abandoned requests to the lease of their owner."""


class Pool(StartStopPart):
    """Runs requests in greenlets that last.

    1. `submit` never waits: a request queues here until a greenlet takes it. One greenlet at a time
       is *coming*: it takes the first request, sends for the next greenlet if there are more, and
       runs it. So a task that waits costs one switch more, and tasks that never wait run one after
       the other in the same greenlet.
    2. A greenlet without work rests; the last one that went to rest is the first to be woken. There
       are as many as ran at once, never more than the size says.
    3. `resize` acts at once: growing starts what queues and wakes who waits for room; shrinking
       lets the surplus end with its present request.
    4. `stop` waits for what runs as long as it may, and ends the rest.

    Each request gets a context (`contextvars`) of its own, and a `gevent.Timeout` that its task has
    left running goes off in no other one. A task that has touched a `threading.local`, or has set
    an attribute of its greenlet or of its `threading.current_thread()`, is the last of its
    greenlet: that ends, and what was left there goes with it. With `keep_locals` all greenlets
    last, as the threads of a pool do.

    gevent's pool keeps the greenlets; its own bound is not used, because waiting in it could be
    neither woken by a resize nor left at shutdown.
    """

    name = "Pool"
    requires = ("Outbox",)

    def __init__(
        self,
        size: int,
        run: Callable[[Request], None],
        *,
        prefetch_multiplier: int = 1,
        grace_s: float = 30.0,
        keep_locals: bool = False,
        abandoned: Callable[[list[Request]], None] = _forget,
    ) -> None:
        """Run requests by calling `run`.

        Args:
            size: how many at once.
            run: runs one to its end, whatever happens in it.
            prefetch_multiplier: `size` times this many are held here, running ones included.
            grace_s: how long `stop` waits for what runs.
            keep_locals: leave what tasks put into `threading.local` to the next ones.
            abandoned: called with what still runs then, before it is ended.
        """
        self.size = size
        self.peak = 0
        self._run = run
        self._multiplier = prefetch_multiplier
        self._grace_s = grace_s
        self._keep_locals = keep_locals
        # How many attributes the thread of a greenlet has that nobody has touched.
        self._thread_size: int | None = None
        self.abandoned = abandoned
        self._greenlets = gevent.pool.Pool(greenlet_class=PoolGreenlet)
        # How long each running request has held the hub.
        self.hub_time = HubTime(PoolGreenlet)
        # gevent asks there which greenlet a timeout is to interrupt.
        gevent.timeout.getcurrent = _interrupted  # type: ignore[attr-defined]
        self._loop = gevent.get_hub().loop
        self._context = copy_context()
        self._waiting: deque[Request] = deque()
        self._room = Event()
        # The requests that run.
        self.active: set[Request] = set()
        # By what the resting greenlets are woken, the last one first; each takes itself out when
        # the pool ends. `_coming` is True while one is on its way to `_waiting`.
        self._resting: dict[Waiter[None], None] = {}
        self._coming = False
        self._ending = False
        # Set when running requests have ended or when nobody will wait for them any longer.
        self._leave = Event()
        # Set while nothing runs and nothing waits.
        self._idle = Event()
        self._idle.set()

    @property
    def running(self) -> int:
        """How many requests run."""
        return len(self.active)

    @property
    def waiting(self) -> int:
        """How many requests are here and have no slot yet."""
        return len(self._waiting)

    @property
    def room(self) -> int:
        """How many more requests may be taken; negative right after shrinking."""
        return self.size * self._multiplier - len(self.active) - len(self._waiting)

    def wait_room(self, timeout_s: float | None = None) -> None:
        """Wait until `room` is positive, or `wake`. Switches: yes."""
        if self.room <= 0:
            self._room.clear()
            self._room.wait(timeout_s)

    def wait_empty(self, timeout_s: float | None) -> bool:
        """Wait until nothing runs and nothing waits; False after the timeout. Switches: yes."""
        return bool(self._idle.wait(timeout_s))

    def wake(self) -> None:
        """Let `wait_room` return."""
        self._room.set()

    def submit(self, request: Request) -> None:
        """Run a request soon, or as soon as there is a slot. Switches: no."""
        self._waiting.append(request)
        self._idle.clear()
        self._send_for_one()

    def resize(self, size: int) -> None:
        """Change how many may run at once; what waits for room is woken."""
        self.size = size
        self._send_for_one()
        self._end_surplus()
        self._room.set()

    def unstarted(self) -> list[Request]:
        """Return what has no slot yet, in the order in which it came."""
        return list(self._waiting)

    def take_back(self, which: Callable[[Request], bool] | None = None) -> list[Request]:
        """Give up what has no slot yet, or of that what `which` is true of, in its order."""
        taken = self.withdraw(which)
        if not self.active and not self._waiting:
            self._idle.set()
        self._room.set()
        return taken

    def withdraw(self, which: Callable[[Request], bool] | None = None) -> list[Request]:
        """Do the same, and wake nobody; any thread may.

        Whoever gets a request out of the line has it: each is taken out in one step of the
        interpreter, here as by the greenlet that is to run it.
        """
        taken = []
        for request in list(self._waiting):
            if which is None or which(request):
                with suppress(ValueError):
                    self._waiting.remove(request)
                    taken.append(request)
        return taken

    def end(self, request: Request, signum: str = "SIGTERM") -> None:
        """End a request's code: its `finally` blocks run, its state is REVOKED. Switches: no.

        Before its code begins it is kept from that; after it, nothing happens.
        """

        def terminated() -> TaskTerminated:
            return TaskTerminated(TaskRevokedError("terminated"), signum)

        if request.in_code is None:
            request.killed = terminated()
        elif request.in_code:
            Interrupt(request, terminated, 0.0, again_s=_FINALLY_S)

    def start(self) -> None:
        """Begin to count how long each request holds the hub."""
        self.hub_time.start()

    def stop(self) -> None:
        """Wait for what runs, for the grace time or until `hurry`; end the rest. Switches: yes."""
        if self.active or self._waiting:
            self._leave.clear()
            self._leave.wait(self._grace_s)
        self._end_rest()

    def terminate(self) -> None:
        """End what runs now."""
        self._end_rest()

    def hurry(self) -> None:
        """Make `stop`, now or later, wait no longer."""
        self._grace_s = 0.0
        self._leave.set()

    def _end_rest(self) -> None:
        self._ending = True
        if self.active:
            self.abandoned(list(self.active))
        self.hub_time.stop()
        # Each one's code sees GreenletExit and has a moment for its `finally` blocks.
        self._greenlets.kill(timeout=1.0)

    def info(self) -> dict[str, object]:
        """Tell size and load."""
        return {
            "implementation": "greenq.pool:Pool",
            "max-concurrency": self.size,
            "running": len(self.active),
            "waiting": len(self._waiting),
        }

    def _send_for_one(self) -> None:
        """Have one more greenlet come for work, unless one is on its way or there is no slot."""
        if self._coming or not self._waiting or len(self.active) >= self.size:
            return
        self._coming = True
        if self._resting:
            self._loop.run_callback(self._resting.popitem()[0].switch, None)
        else:
            self._greenlets.spawn(self._work)

    def _work(self) -> None:
        """Run requests, rest when there are none; end with the pool or when it has shrunk."""
        me = cast("PoolGreenlet", gevent.getcurrent())
        me.request = None
        # Each local that is touched here has a key in it.
        attributes = me.__dict__
        untouched, ident = len(attributes), id(me)
        if self._thread_size is None:
            self._thread_size = len(vars(threading.current_thread()))
        turn, began_s = None, 0.0
        while True:
            # Whoever was sent for is here.
            self._coming = False
            while self._waiting and len(self.active) < self.size and not self._ending:
                # Tasks that never wait must not keep the loop from everybody else. Its clock would
                # not tell: whoever starts a timer sets that.
                if turn != self._loop.iteration:
                    turn, began_s = self._loop.iteration, time.monotonic()
                elif time.monotonic() - began_s > _TURN_S:
                    self._let_others_run()
                    began_s = time.monotonic()
                    continue
                self._run_next(me)
                if (
                    len(attributes) != untouched
                    or (ident in _threads and self._is_thread_touched(ident))
                ) and not self._keep_locals:
                    # Called after all that has to do with its locals.
                    me.rawlink(self._gone)
                    return
            if not self.active and not self._waiting:
                self._leave.set()
                self._idle.set()
            if self._ending or len(self._greenlets) > self.size:
                return
            # What the last request referred to is not kept.
            me.gr_context = None
            self._rest()

    def _gone(self, _greenlet: PoolGreenlet) -> None:
        """Have work go on when a greenlet has ended and its locals are gone."""
        self._send_for_one()
        if not self.active and not self._waiting:
            self._leave.set()
            self._idle.set()

    def _is_thread_touched(self, ident: int) -> bool:
        """Tell whether a task has left something in what stands for its thread, a name or more."""
        thread = _threads[ident]
        return len(thread.__dict__) != self._thread_size or not thread.name.startswith("Dummy-")

    def put_back(self, requests: Iterable[Request]) -> None:
        """Let requests wait again that were withdrawn, the newest first; any thread may."""
        self._waiting.extendleft(requests)
        # Who was on the way for them may have come meanwhile, and found nothing.
        self._loop.run_callback_threadsafe(self._go_on)

    def _go_on(self) -> None:
        if self._waiting:
            self._idle.clear()
        self._send_for_one()

    def _run_next(self, me: PoolGreenlet) -> None:
        try:
            request = self._waiting.popleft()
        except IndexError:
            # The watch thread has just given it away.
            return
        request.greenlet, me.request = me, request
        self.active.add(request)
        if len(self.active) > self.peak:
            self.peak = len(self.active)
        self._send_for_one()
        me.gr_context = self._context.copy()
        try:
            self._run(request)
        except BaseException:
            # Every ending of a task is dealt with inside `run`; this is a fault of the worker
            # itself.
            _log.critical("%s was left without an outcome", request, exc_info=True)
        request.greenlet = me.request = None
        self.active.discard(request)
        self._room.set()

    def _let_others_run(self) -> None:
        """Wait for a turn of the loop. Switches: yes."""
        # Of sleep(0), the loop carries out dozens before it looks at sockets and timers.
        try:
            gevent.get_hub().wait(self._loop.timer(0.0))
        except BaseException as exc:
            self._note_stray(exc)

    def _rest(self) -> None:
        """Wait until sent for. Switches: yes."""
        waiter: Waiter[None] = Waiter()
        self._resting[waiter] = None
        try:
            waiter.get()
        except BaseException as exc:
            self._resting.pop(waiter, None)
            self._note_stray(exc)

    def _note_stray(self, exc: BaseException) -> None:
        """Log what a task has left behind, such as who kills it late; the pool's end is none."""
        if not self._ending:
            _log.warning("%r came after the end of the task that has asked for it", exc)

    def _end_surplus(self) -> None:
        """Wake as many of those that rest as there are too many; they find that out."""
        for _ in range(min(len(self._resting), len(self._greenlets) - self.size)):
            self._loop.run_callback(self._resting.popitem()[0].switch, None)
