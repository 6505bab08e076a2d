"""The pool: reusable greenlets that run requests, up to `size` at once."""

from __future__ import annotations

import logging
import math
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
from greenq.hub import Event, let_others_run, timer_s

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from greenq.running.request import Request

_log = logging.getLogger(__name__)

# The thread objects, by ident, that `threading.current_thread` creates for greenlets. Each log line
# calls that function. There is no public way to look up a thread object without creating one.
_threads: dict[int, threading.Thread] = threading._active  # type: ignore[attr-defined]  # noqa: SLF001

# When this long has passed since the first task began in an iteration of the loop, the next one
# waits for another iteration.
_TURN_S = 0.005
# The interval at which an exception is thrown again into code that does not stop. After a
# termination, the first interval is longer, so that the code's `finally` blocks have time to run.
AGAIN_S = 0.5
_FINALLY_S = 1.0


class PoolGreenlet(gevent.Greenlet):  # type: ignore[type-arg]  # the class itself is not generic
    """A greenlet of the pool, with the request that it is running."""

    # gevent assigns `_run`. Without a slot, each greenlet would have a dict of 200 bytes for it.
    __slots__ = ("_run", "request")
    request: Request | None
    name = "pool"

    def __repr__(self) -> str:
        """Return text without the function, which gevent deletes when the greenlet ends."""
        return f"<PoolGreenlet at {id(self):#x}>"


class Interrupt:
    """Throws an exception into a request's code after a delay.

    If `again_s` is given, it throws again after that time and then every half second until the code
    has ended, since the code may catch the exception. It uses a timer of the loop, which is freed
    when cancelled; an entry of the worker's timer would stay until it was due, and time limits can
    be long.
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
        """Throw what `make` returns; only the task's own code is ever interrupted."""
        self._request = request
        self._make = make
        self._again_s = again_s
        self._set(after_s)

    def cancel(self) -> None:
        """Do not throw (again)."""
        self._again_s = None
        self._timer.stop()
        self._timer.close()

    def _set(self, after_s: float) -> None:
        self._timer = gevent.get_hub().loop.timer(timer_s(after_s))
        # Start the delay now, not at the loop's last reading of the clock.
        self._timer.start(self._fire, update=True)

    def _fire(self) -> None:
        self._timer.stop()
        self._timer.close()
        again_s = self._again_s
        if again_s is not None and self._request.in_code:
            self._again_s = AGAIN_S
            self._set(again_s)
        self._request.interrupt(self._make())


def _find_interruptible() -> Any:
    """Return the target of a timeout started in this greenlet: its request, not a later one."""
    current = gevent.getcurrent()
    request = current.request if type(current) is PoolGreenlet else None
    return current if request is None else request


def _forget(_requests: list[Request]) -> None:
    """Do nothing, since abandoned requests are recovered when their owner's lease expires."""


class Pool(StartStopPart):
    """Runs requests in reusable greenlets.

    1. `submit` never waits: a request queues here until a greenlet takes it. At most one greenlet
       at a time is *coming*, that is, woken but not running yet. When it runs, it takes the first
       request, wakes the next greenlet if there are more requests, and runs its own. A task that
       waits therefore costs one more switch, whereas tasks that never wait run one after another in
       the same greenlet.
    2. A greenlet without work becomes idle; the last one to become idle is woken first. Greenlets
       are created only as needed, up to `size`.
    3. `resize` acts immediately. Growing starts queued requests and wakes callers waiting for room;
       shrinking ends each surplus greenlet after its current request.
    4. `stop` gives running requests the grace time to finish, then ends any that remain.

    Each request gets its own context (`contextvars`), and a `gevent.Timeout` that its task left
    running never fires in another request. If a task touches a `threading.local`, or sets an
    attribute of its greenlet or of its `threading.current_thread()`, its greenlet ends after the
    task, and the values left there are discarded. If `keep_locals` is true, all greenlets are
    reused, like the threads of a thread pool.

    gevent's pool holds the greenlets. Its size limit is not used, since a caller waiting for it
    could neither be woken by a resize nor leave at shutdown.
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
            size: how many requests may run at once.
            run: runs one request to its end, even if its code fails.
            prefetch_multiplier: the pool holds up to this many times `size` requests, including
                running ones.
            grace_s: how long `stop` waits for running requests.
            keep_locals: keep what a task puts into a `threading.local` for later tasks.
            abandoned: called with the requests that are still running after the grace time, before
                they are ended.
        """
        self.size = size
        # The maximum number of requests in the pool, including running ones.
        self.capacity = size * prefetch_multiplier
        self.peak = 0
        self._run = run
        self._multiplier = prefetch_multiplier
        self._grace_s = grace_s
        self._keep_locals = keep_locals
        # How many attributes a greenlet's thread object has before any task changes it.
        self._thread_size: int | None = None
        self.abandoned = abandoned
        self._greenlets = gevent.pool.Pool(greenlet_class=PoolGreenlet)
        # One bound method for all greenlets, since each evaluation of `self._work` creates another.
        self._target = self._work
        # How long each running request has held the hub.
        self.hub_time = HubTime(PoolGreenlet, hub=gevent.get_hub())
        # gevent calls this to find out which greenlet a timeout interrupts.
        gevent.timeout.getcurrent = _find_interruptible  # type: ignore[attr-defined]
        self._loop = gevent.get_hub().loop
        self._context = copy_context()
        # The requests without a slot.
        self.queued: deque[Request] = deque()
        self._room = Event()
        # The running requests.
        self.active: set[Request] = set()
        # The waiters of idle greenlets, in the order in which the greenlets became idle. Each
        # greenlet removes its waiter when the pool ends. `_coming` is True while a greenlet is
        # coming to take a request from `queued`.
        self._resting: dict[Waiter[None], None] = {}
        self._coming = False
        self._ending = False
        # The loop's iteration in which the last task began, and when the first one began in it.
        self._turn = -1
        self._turn_began_s = 0.0
        # True while a greenlet waits for the next iteration, to take a request then.
        self._pausing = False
        # Set when the running requests have ended, or when `stop` must no longer wait for them.
        self._leave = Event()
        # Set while no request is running or waiting.
        self._idle = Event()
        self._idle.set()

    @property
    def running(self) -> int:
        """The number of requests that are running."""
        return len(self.active)

    @property
    def waiting(self) -> int:
        """The number of requests that are waiting for a slot."""
        return len(self.queued)

    @property
    def room(self) -> int:
        """The number of further requests that may be taken; negative right after shrinking."""
        return self.capacity - len(self.active) - len(self.queued)

    def wait_room(self, timeout_s: float | None = None) -> None:
        """Wait until `room` is positive or `wake` is called. Switches: yes."""
        if self.room <= 0:
            self._room.clear()
            self._room.wait(timeout_s)

    def wait_empty(self, timeout_s: float | None) -> bool:
        """Wait until no request runs or waits; return False after the timeout. Switches: yes."""
        return bool(self._idle.wait(timeout_s))

    def wake(self) -> None:
        """Make `wait_room` return."""
        self._room.set()

    def submit(self, request: Request) -> None:
        """Run a request as soon as there is a slot. Switches: no."""
        self.queued.append(request)
        self._idle.clear()
        self._send_for_one()

    def resize(self, size: int) -> None:
        """Change how many requests may run at once, and wake callers that are waiting for room."""
        self.size = size
        self.capacity = size * self._multiplier
        self._send_for_one()
        self._end_surplus()
        self._room.set()

    def unstarted(self) -> list[Request]:
        """Return the requests that are waiting for a slot, in order of arrival."""
        return list(self.queued)

    def take_back(self, which: Callable[[Request], bool] | None = None) -> list[Request]:
        """Remove and return, in order, the requests without a slot that satisfy `which`."""
        taken = self.withdraw(which)
        if not self.active and not self.queued:
            self._idle.set()
        self._room.set()
        return taken

    def withdraw(self, which: Callable[[Request], bool] | None = None) -> list[Request]:
        """Do the same as `take_back`, but wake no greenlet; any thread may call this.

        A request belongs to whoever removes it from the queue: both here and in the greenlet that
        would run it, the removal is one atomic step of the interpreter.
        """
        taken = []
        for request in list(self.queued):
            if which is None or which(request):
                with suppress(ValueError):
                    self.queued.remove(request)
                    taken.append(request)
        return taken

    def end(self, request: Request, signum: str = "SIGTERM") -> None:
        """End a request's code: its `finally` blocks run, and its state is REVOKED. Switches: no.

        If the code has not begun, it never will; if it has ended, nothing happens.
        """

        def make_error() -> TaskTerminated:
            return TaskTerminated(TaskRevokedError("terminated"), signum)

        if request.in_code is None:
            request.killed = make_error()
        elif request.in_code:
            Interrupt(request, make_error, 0.0, again_s=_FINALLY_S)

    def start(self) -> None:
        """Start counting how long each request holds the hub."""
        self.hub_time.start()

    def stop(self) -> None:
        """Wait for running requests, for at most the grace time; end any others. Switches: yes."""
        if self.active or self.queued:
            self._leave.clear()
            self._leave.wait(self._grace_s)
        self._end_rest()

    def terminate(self) -> None:
        """End all running requests immediately."""
        self._end_rest()

    def end_grace(self) -> None:
        """Cut short the grace time of the current or a later `stop`."""
        self._grace_s = 0.0
        self._leave.set()

    def _end_rest(self) -> None:
        self._ending = True
        if self.active:
            self.abandoned(list(self.active))
        self.hub_time.stop()
        # GreenletExit is raised in each task, which then has a moment for its `finally` blocks.
        self._greenlets.kill(timeout=1.0)

    def end_turn(self) -> None:
        """Let no task begin in this iteration of the loop, which has lasted long enough."""
        self._turn, self._turn_began_s = self._loop.iteration, -math.inf

    def info(self) -> dict[str, object]:
        """Return the size and the load."""
        return {
            "implementation": "greenq.pool:Pool",
            "max-concurrency": self.size,
            "running": len(self.active),
            "waiting": len(self.queued),
        }

    def _send_for_one(self) -> None:
        """Wake or start one greenlet, unless one is already coming or all slots are in use."""
        if self._coming or self._pausing or not self.queued or len(self.active) >= self.size:
            return
        self._coming = True
        if self._resting:
            self._loop.run_callback(self._resting.popitem()[0].switch, None)
        else:
            self._greenlets.spawn(self._target)

    def _work(self) -> None:
        """Run requests, or stay idle if there are none, until the pool ends or shrinks."""
        me = cast("PoolGreenlet", gevent.getcurrent())
        me.request = None
        # Each `threading.local` used in this greenlet adds a key to the greenlet's dict.
        attributes = me.__dict__
        untouched, ident = len(attributes), id(me)
        # An ended thread with the same ident may have left its thread object behind.
        _threads.pop(ident, None)
        if self._thread_size is None:
            self._thread_size = len(vars(threading.current_thread()))
        while True:
            # This greenlet has been woken and is now running.
            self._coming = False
            while self.queued and len(self.active) < self.size and not self._ending:
                # Many tasks must not block the loop one after another. The loop's own clock does
                # not help here, since starting a timer updates it.
                if self._turn != self._loop.iteration:
                    self._turn, self._turn_began_s = self._loop.iteration, time.monotonic()
                elif time.monotonic() - self._turn_began_s > _TURN_S:
                    if self._pausing:
                        break
                    self._pausing = True
                    self._let_others_run()
                    self._pausing = False
                    continue
                self._run_next(me)
                if (
                    len(attributes) != untouched
                    or (ident in _threads and self._is_thread_touched(ident))
                ) and not self._keep_locals:
                    # `_replace` is called after the greenlet's locals have been cleaned up.
                    me.rawlink(self._replace)
                    return
            if not self.active and not self.queued:
                self._leave.set()
                self._idle.set()
            if self._ending or len(self._greenlets) > self.size:
                return
            # Drop references to the last request's objects.
            me.gr_context = None
            self._rest()

    def _replace(self, _greenlet: PoolGreenlet) -> None:
        """Wake the next greenlet after one has ended and its locals have been released."""
        self._send_for_one()
        if not self.active and not self.queued:
            self._leave.set()
            self._idle.set()

    def _is_thread_touched(self, ident: int) -> bool:
        """Return whether a task has set the name or an attribute of its thread object."""
        thread = _threads[ident]
        return len(thread.__dict__) != self._thread_size or not thread.name.startswith("Dummy-")

    def put_back(self, requests: Iterable[Request]) -> None:
        """Queue withdrawn requests again, given newest first; any thread may call this."""
        self.queued.extendleft(requests)
        # The greenlet that was woken may have found no request and become idle.
        self._loop.run_callback_threadsafe(self._resume)

    def _resume(self) -> None:
        if self.queued:
            self._idle.clear()
        self._send_for_one()

    def _run_next(self, me: PoolGreenlet) -> None:
        try:
            request = self.queued.popleft()
        except IndexError:
            # The watchdog thread has just withdrawn the request.
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
            # `run` handles every way a task can end, so an exception here is a bug in the worker.
            _log.critical("%s was left without an outcome", request, exc_info=True)
        request.greenlet = me.request = None
        self.active.discard(request)
        self._room.set()

    def _let_others_run(self) -> None:
        try:
            let_others_run()
        except BaseException as exc:
            self._note_stray(exc)

    def _rest(self) -> None:
        """Wait until woken. Switches: yes."""
        waiter: Waiter[None] = Waiter()
        self._resting[waiter] = None
        try:
            waiter.get()
        except BaseException as exc:
            self._resting.pop(waiter, None)
            self._note_stray(exc)

    def _note_stray(self, exc: BaseException) -> None:
        """Log an exception raised after its task has ended, unless the pool is ending."""
        if not self._ending:
            _log.warning("%r was raised after the task that caused it had ended: ignored", exc)

    def _end_surplus(self) -> None:
        """Wake the surplus idle greenlets; each sees that the pool has shrunk, and ends."""
        for _ in range(min(len(self._resting), len(self._greenlets) - self.size)):
            self._loop.run_callback(self._resting.popitem()[0].switch, None)
