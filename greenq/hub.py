"""The gevent hub: patching, named greenlets with a crash handler, and the hub's lag.

All other modules of the worker get greenlets, events and `sleep` from here. gevent itself is
imported only in this module and in pool.py.
"""

from __future__ import annotations

import logging
import os
import select
import signal as signals
import sys
import time
from bisect import bisect_left
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import gevent
import gevent._hub_local
import gevent.hub
import gevent.monkey
from gevent.event import Event

from greenq.bootsteps.blueprint import StartStopPart
from greenq.errors import ImportedTooEarly
from greenq.protocol.limits import MOST_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = [
    "Event", "Greenlet", "GreenletExit", "Hub", "Lags", "NativeThread", "Signals", "boottime",
    "in_thread", "join_all", "patch", "run_all", "sleep", "spawn", "timer_s",
]  # fmt: skip

if TYPE_CHECKING:
    Greenlet: TypeAlias = gevent.Greenlet[..., Any]
else:
    # This class is generic in the stubs but not at run time.
    Greenlet = gevent.Greenlet
sleep = gevent.sleep
T = TypeVar("T")


def timer_s(seconds: float) -> float:
    """Limit a timer's delay to between 0 and thirty years; NaN becomes thirty years.

    libev orders its timers by time, and a single NaN among them keeps others from firing.
    """
    return max(0.0, seconds) if seconds < MOST_SECONDS else MOST_SECONDS


GreenletExit = gevent.GreenletExit

_log = logging.getLogger(__name__)

# CLOCK_BOOTTIME exists only on Linux. Elsewhere, whether CLOCK_MONOTONIC runs while the machine is
# suspended depends on the system.
_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


# Seconds on a clock that keeps running while the machine is suspended, as a lease does. A partial
# adds no frame, which matters because `boottime` is called for each task.
boottime: Callable[[], float] = partial(time.clock_gettime, _BOOTTIME)


def patch() -> None:
    """Make the standard library's blocking calls cooperative; safe to call twice.

    Raises:
        ImportedTooEarly: a module has already imported the blocking originals and would keep them.
    """
    if gevent.monkey.is_module_patched("socket"):
        return
    early = _imported_too_early()
    if early:
        raise ImportedTooEarly(early)
    if "GEVENT_TRACK_GREENLET_TREE" not in os.environ:
        # Recording where a greenlet was started would cost 0.7 KB and 2 µs for each greenlet.
        gevent.config.track_greenlet_tree = False
    gevent.monkey.patch_all()


def _imported_too_early() -> list[str]:
    """Return the top-level packages that have imported a call that patching would replace."""
    originals = set()
    for module, name in (
        ("socket", "socket"),
        ("socket", "create_connection"),
        ("socket", "getaddrinfo"),
        ("ssl", "SSLContext"),
        ("select", "select"),
        ("select", "poll"),
        ("time", "sleep"),
        ("threading", "local"),
    ):
        if module in sys.modules and hasattr(sys.modules[module], name):
            originals.add(id(getattr(sys.modules[module], name)))
    early = set()
    for name, imported in list(sys.modules.items()):
        package = name.partition(".")[0]
        if package in sys.stdlib_module_names or package in {"gevent", "greenq", "__main__"}:
            continue
        values = list(getattr(imported, "__dict__", {}).values())
        if any(id(value) in originals for value in values):
            early.add(package)
    return sorted(early)


def spawn(run: Callable[..., Any], *args: Any, name: str, lasts: bool = False) -> Greenlet:
    """Start a named greenlet; if it crashes, log the error and end this process's workers.

    If `lasts` is true, the workers also end if the greenlet is killed; its owner kills it only when
    the workers are ending anyway.
    """
    greenlet: Greenlet = gevent.Greenlet(run, *args)
    greenlet.name = name
    greenlet.link_exception(_log_crash)
    if lasts:
        greenlet.link_value(_note_kill)
    greenlet.start()
    return greenlet


def in_thread(call: Callable[..., T], *args: Any) -> T:
    """Run a blocking call, such as one that waits for a disk, in a thread. Switches: yes."""
    result: T = gevent.get_hub().threadpool.apply(call, args)
    return result


def let_others_run() -> None:
    """Wait for one iteration of the loop. Switches: yes."""
    # The loop runs dozens of sleep(0) callbacks before it checks sockets and timers.
    hub = gevent.get_hub()
    hub.wait(hub.loop.timer(0.0))


def join_all(greenlets: Iterable[Greenlet], timeout_s: float | None = None) -> bool:
    """Wait until all greenlets have ended; return False after the timeout. Switches: yes."""
    waited = list(greenlets)
    gevent.joinall(waited, timeout=timeout_s)
    return all(greenlet.dead for greenlet in waited)


def run_all(calls: Sequence[tuple[str, Callable[[], Any]]]) -> list[Any]:
    """Run named calls concurrently; return their results or raise the first error."""
    greenlets = []
    for name, call in calls:
        greenlet: Greenlet = gevent.Greenlet(call)
        greenlet.name = name
        greenlet.start()
        greenlets.append(greenlet)
    try:
        gevent.joinall(greenlets)
    except BaseException:
        gevent.killall(greenlets)
        raise
    return [greenlet.get() for greenlet in greenlets]


# The hubs that have been started; each is notified of every crash.
_hubs: list[Hub] = []


def _log_crash(greenlet: Greenlet) -> None:
    error = greenlet.exception
    if error is not None:
        name = getattr(greenlet, "name", "?")
        _log.critical("greenlet %s crashed: %r", name, error, exc_info=greenlet.exc_info)
        _report_crash(f"greenlet {name}", error)


def _note_kill(greenlet: Greenlet) -> None:
    if isinstance(greenlet.value, gevent.GreenletExit):
        _report_crash(f"greenlet {greenlet.name}", greenlet.value)


def _report_crash(what: str, error: BaseException) -> None:
    """End this process's workers, since a worker that has lost a part would only seem alive."""
    for hub in _hubs:
        hub.crashed(what, error)


# The original poll, which blocks the waiting thread.
_poll = gevent.monkey.get_original("select", "poll")


def poll_readable(descriptor: int, timeout_s: float) -> bool:
    """Wait in a native thread until a descriptor is readable; return False after the timeout.

    gevent's own poll would start a hub in that thread and run its loop each time.
    """
    poll = _poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


class NativeThread:
    """A native thread alongside the hub, which keeps running while the hub is blocked.

    Functions that it calls may use gevent's sockets and `sleep`, which use a separate hub in this
    thread.
    """

    def __init__(self, run: Callable[[NativeThread], None], *, name: str) -> None:
        """Start the thread; `run` gets this object, and must return once `wait` returns True."""
        self.name = name
        self.ended = False
        # For the thread itself: True if the last wait timed out, False if the thread was woken.
        self.timed_out = False
        self._run = run
        self._stopping = self._woken = False
        self._number: int = 0
        # The ident of the hub's thread, as in `sys._current_frames`.
        self.hub_thread: int = gevent.monkey.get_original("_thread", "get_ident")()
        self._reader, self._writer = os.pipe()
        start_new_thread = gevent.monkey.get_original("_thread", "start_new_thread")
        start_new_thread(self._main, ())

    def wait(self, timeout_s: float, *descriptors: int, writable: Iterable[int] = ()) -> bool:
        """Wait, in the thread itself; return True if the thread must end.

        `wake`, `stop`, data to read from one of `descriptors`, and room to write to one
        of `writable` all end the wait early.
        """
        poll = _poll()
        poll.register(self._reader, select.POLLIN)
        for descriptor in descriptors:
            if descriptor >= 0:
                poll.register(descriptor, select.POLLIN)
        for descriptor in writable:
            poll.register(descriptor, select.POLLOUT)
        found = poll.poll(timeout_s * 1000)
        self.timed_out = not found
        for ready, _events in found:
            if ready == self._reader:
                self._woken = False
                os.read(self._reader, 64)
        return self._stopping

    def wake(self) -> None:
        """End a wait; called from outside the thread."""
        if not self._woken:
            self._woken = True
            os.write(self._writer, b"!")

    def stop(self) -> None:
        """Make `wait` return True from now on; called from outside the thread."""
        self._stopping = True
        self._woken = False
        self.wake()

    def close(self) -> None:
        """Close the thread's pipe after the thread has ended; `wake` must not be called again."""
        os.close(self._reader)
        os.close(self._writer)

    def runs_here(self) -> bool:
        """Return whether the caller is in this thread."""
        return bool(self._number == gevent.monkey.get_original("_thread", "get_ident")())

    def _main(self) -> None:
        self._number = gevent.monkey.get_original("_thread", "get_ident")()
        try:
            self._run(self)
        except BaseException as exc:
            _log.critical("thread %s crashed", self.name, exc_info=True)
            _report_crash(f"thread {self.name}", exc)
        finally:
            self.ended = True


# The upper bounds of the histogram's buckets, in seconds; a further bucket counts everything above.
_LAGS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Lags:
    """A histogram of the loop's lag at each ping."""

    def __init__(self) -> None:
        """Create an empty histogram."""
        self.counts = [0] * (len(_LAGS_S) + 1)
        self.max_s = 0.0

    def add(self, lag_s: float) -> None:
        """Count one lag."""
        self.counts[bisect_left(_LAGS_S, lag_s)] += 1
        self.max_s = max(self.max_s, lag_s)

    def quantile_s(self, share: float) -> float:
        """Return the lag that `share` of the pings did not exceed, to a bucket's precision."""
        wanted, seen = share * sum(self.counts), 0
        for upper_s, count in zip(_LAGS_S, self.counts, strict=False):
            seen += count
            if seen >= wanted:
                return min(upper_s, self.max_s)
        return self.max_s

    def info(self) -> dict[str, object]:
        """Return the count, quantiles and non-empty buckets as [bound in s or None, count]."""
        uppers = (*_LAGS_S, None)
        return {
            "count": sum(self.counts),
            "p50_s": self.quantile_s(0.5),
            "p99_s": self.quantile_s(0.99),
            "max_s": self.max_s,
            "buckets": [
                [upper, count] for upper, count in zip(uppers, self.counts, strict=True) if count
            ],
        }


# The code that the hub's thread runs when it is idle; greenlets and callbacks have separate frames.
_WAITING = gevent.hub.Hub.run.__code__


class Hub(StartStopPart):
    """The step for the event loop: its lag, signals, and crashes outside any greenlet.

    1. Show other threads whether the loop is running, and how late it is.
    2. Start greenlets for other threads.
    3. Log what gevent would print to stderr.
    4. Do nothing in a forked child, which must not continue its parent's work.
    5. End the worker when one of its greenlets or threads crashes.
    """

    name = "Hub"
    requires = ("Timer",)

    def __init__(self, *, crashed: Callable[[str, BaseException], object] | None = None) -> None:
        """Use the hub of this thread.

        `crashed` is called in this thread with the name of the part that crashed and the error.
        """
        self._hub = gevent.get_hub()
        self._end = crashed
        self._thread: int = gevent.monkey.get_original("_thread", "get_ident")()
        self._alive = self._hub.loop.async_()
        # The hub writes two values that any thread may read: the time of the last answered ping
        # (monotonic), and how long that ping had waited.
        self.moved_s = time.monotonic()
        self.lag_s = 0.0
        self.lags = Lags()

    def start(self) -> None:
        """Log errors, and keep the loop running even when only another thread can wake it."""
        self._alive.start(_do_nothing)
        _hubs.append(self)
        self._hub.print_exception = _print_exception  # type: ignore[method-assign,assignment]

    def stop(self) -> None:
        """Let the loop end when it has nothing left to do."""
        self._alive.stop()
        if self in _hubs:
            _hubs.remove(self)

    def crashed(self, what: str, error: BaseException) -> None:
        """Report that a part of the worker has crashed; any thread may call this."""
        if self._end is not None:
            self._hub.loop.run_callback_threadsafe(self._end, what, error)

    def ping(self) -> None:
        """Ask the loop to note the time as soon as it runs; any thread may call this."""
        self._hub.loop.run_callback_threadsafe(self._answer_ping, time.monotonic())

    def cpu_s(self) -> float:
        """Return the CPU time of the hub's thread so far, in seconds; any thread may call this."""
        return time.clock_gettime(time.pthread_getcpuclockid(self._thread))

    def rests(self) -> bool:
        """Return whether the loop is idle, and if so count a lag of 0; called in another thread.

        An idle loop need not be woken by a ping. False means that a ping is needed.
        """
        # There is no public way to get the frame of another thread.
        frame = sys._current_frames().get(self._thread)  # noqa: SLF001
        if frame is None or frame.f_code is not _WAITING:
            return False
        self.lag_s = 0.0
        self.lags.add(0.0)
        return True

    def spawn_soon(self, run: Callable[[], object], *, name: str) -> None:
        """Start a greenlet in the hub's thread; any thread may call this."""
        self._hub.loop.run_callback_threadsafe(self._spawn, run, name)

    def forget(self) -> None:
        """Drop all waiting callbacks in a forked child; later waits use a new loop.

        The child has copies of all the parent's greenlets. If they kept the parent's loop, they
        would take and run the parent's messages a second time.
        """
        # gevent has no public API for this.
        gevent._hub_local.set_hub(None)  # type: ignore[arg-type]  # noqa: SLF001
        gevent._hub_local.set_loop(None)  # type: ignore[arg-type]  # noqa: SLF001
        self._hub.loop.destroy()

    def _spawn(self, run: Callable[[], object], name: str) -> None:
        # After the hub was blocked, the ping may be answered last; this call already shows that the
        # loop is running.
        self.moved_s = time.monotonic()
        spawn(run, name=name)

    def _answer_ping(self, asked_s: float) -> None:
        now = time.monotonic()
        self.lag_s = now - asked_s
        self.moved_s = now
        self.lags.add(self.lag_s)


class Signals:
    """A worker's signals, handled in a greenlet of its hub and visible to a native thread.

    gevent's handlers do not suffice: only the loop calls them, so a signal would go unnoticed while
    the hub is blocked.
    """

    def __init__(self, hub: Hub) -> None:
        """Handle signals in greenlets of `hub`; no signal is caught yet."""
        self._hub = hub
        self._before: dict[int, Any] = {}
        self._actions: dict[int, Callable[[], object]] = {}
        self._pid = os.getpid()
        # The signals that another thread has handled while the hub could not.
        self._done: set[int] = set()
        self._reader = self._writer = -1

    def on(self, number: signals.Signals, action: Callable[[], object]) -> None:
        """Run `action` in a greenlet whenever the signal arrives; main thread only."""
        if self._writer < 0:
            self._reader, self._writer = os.pipe()
            os.set_blocking(self._reader, False)
            os.set_blocking(self._writer, False)
            signals.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._actions[number] = action
        self._before[number] = signals.signal(number, self._handle)

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when a signal arrives; -1 if none is caught."""
        return self._reader

    def read(self) -> bytes:
        """Return the numbers of the signals that have arrived; for one thread only."""
        if self._reader < 0:
            return b""
        try:
            return os.read(self._reader, 64)
        except (BlockingIOError, OSError):
            return b""

    def done(self, number: int) -> None:
        """Keep the hub from handling a pending signal that another thread has handled."""
        self._done.add(number)

    def close(self) -> None:
        """Restore the previous handlers; main thread only."""
        if self._writer < 0:
            return
        for number, before in self._before.items():
            signals.signal(number, signals.SIG_DFL if before is None else before)
        self.forget()

    def forget(self) -> None:
        """Close the pipe; in a forked child, also restore the default behaviour of the signals."""
        if self._writer < 0:
            return
        signals.set_wakeup_fd(-1)
        if os.getpid() != self._pid:
            for number in self._before:
                signals.signal(number, signals.SIG_DFL)
        self._before.clear()
        reader, writer = self._reader, self._writer
        self._reader = self._writer = -1
        os.close(reader)
        os.close(writer)

    def _handle(self, number: int, _frame: object) -> None:
        """Only schedule the action, since a signal may arrive between any two instructions."""
        if signals.set_wakeup_fd(self._writer, warn_on_full_buffer=False) != self._writer:
            # A task has replaced the wakeup descriptor, as asyncio does, so write to the pipe here.
            with suppress(OSError):
                os.write(self._writer, bytes([number]))
        self._hub.spawn_soon(partial(self._act, number), name=signals.Signals(number).name)

    def _act(self, number: int) -> None:
        if number in self._done:
            self._done.discard(number)
        else:
            self._actions[number]()


def _do_nothing() -> None:
    """Do nothing; the watcher with this callback only keeps the loop from ending."""


def _print_exception(context: object, kind: Any, value: Any, trace: Any) -> None:
    """Log an exception from an event loop callback; greenlets have their own handler."""
    if isinstance(context, gevent.Greenlet):
        return
    _log.error("error in the event loop: %r", context, exc_info=(kind, value, trace))
