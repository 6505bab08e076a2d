"""The gevent hub: patching, named greenlets with a crash handler, and the hub's lag.

Everything else in the worker gets its greenlets, events and sleeps from here, so gevent itself is
imported in three modules only: here, pool.py and timer.py.
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
from typing import TYPE_CHECKING, Any, TypeAlias

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
    "join_all", "patch", "run_all", "sleep", "spawn", "timer_s",
]  # fmt: skip

if TYPE_CHECKING:
    Greenlet: TypeAlias = gevent.Greenlet[..., Any]
else:
    # The stubs make it generic, the class itself is not.
    Greenlet = gevent.Greenlet
sleep = gevent.sleep


def timer_s(seconds: float) -> float:
    """Return what a timer may be set to: from 0 to thirty years, which no number is, too.

    libev orders its timers by their times: one NaN among them keeps others from going off.
    """
    return max(0.0, seconds) if seconds < MOST_SECONDS else MOST_SECONDS


GreenletExit = gevent.GreenletExit

_log = logging.getLogger(__name__)

# Only Linux has it; elsewhere CLOCK_MONOTONIC stands still or goes on, as the system likes.
_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


# Seconds that go on while the machine is suspended, as a lease does. Without a frame of its own: it
# is asked for each task.
boottime: Callable[[], float] = partial(time.clock_gettime, _BOOTTIME)


def patch() -> None:
    """Make the standard library's blocking calls cooperative; safe to call twice.

    Raises:
        ImportedTooEarly: a module holds the blocking originals already, and would go on using them.
    """
    if gevent.monkey.is_module_patched("socket"):
        return
    early = _imported_too_early()
    if early:
        raise ImportedTooEarly(early)
    if "GEVENT_TRACK_GREENLET_TREE" not in os.environ:
        # Remembering where each greenlet was started takes 0.7 KB and 2 µs.
        gevent.config.track_greenlet_tree = False
    gevent.monkey.patch_all()


def _imported_too_early() -> list[str]:
    """Name the top-level packages whose modules hold a call that patching would replace."""
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
    """Start a greenlet with a name; if it crashes, the log says which and why, and workers end.

    With `lasts` they also end when it is killed: its owner kills it when they end anyway.
    """
    greenlet: Greenlet = gevent.Greenlet(run, *args)
    greenlet.name = name
    greenlet.link_exception(_log_crash)
    if lasts:
        greenlet.link_value(_note_kill)
    greenlet.start()
    return greenlet


def join_all(greenlets: Iterable[Greenlet], timeout_s: float | None = None) -> bool:
    """Wait until all have ended; False if some still run after the timeout. Switches: yes."""
    waited = list(greenlets)
    gevent.joinall(waited, timeout=timeout_s)
    return all(greenlet.dead for greenlet in waited)


def run_all(calls: Sequence[tuple[str, Callable[[], Any]]]) -> list[Any]:
    """Run named calls side by side and return their results, or raise the first error."""
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


# The hubs that are started, which are told of every crash.
_hubs: list[Hub] = []


def _log_crash(greenlet: Greenlet) -> None:
    error = greenlet.exception
    if error is not None:
        name = getattr(greenlet, "name", "?")
        _log.critical("greenlet %s crashed: %r", name, error, exc_info=greenlet.exc_info)
        _tell_of_crash(f"greenlet {name}", error)


def _note_kill(greenlet: Greenlet) -> None:
    if isinstance(greenlet.value, gevent.GreenletExit):
        _tell_of_crash(f"greenlet {greenlet.name}", greenlet.value)


def _tell_of_crash(what: str, error: BaseException) -> None:
    """Have the workers of this process end: one that has lost a part of itself only seems alive."""
    for hub in _hubs:
        hub.crashed(what, error)


# The original, which blocks the thread that waits.
_poll = gevent.monkey.get_original("select", "poll")


def poll_readable(descriptor: int, timeout_s: float) -> bool:
    """Wait in a thread of the system's until a descriptor can be read; False after the timeout.

    gevent's own way starts a hub in that thread, and runs its loop each time.
    """
    poll = _poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


class NativeThread:
    """A real thread of the operating system beside the hub, which runs on while the hub is blocked.

    What it calls may use gevent's sockets and sleeps: they run on a hub of the thread's own.
    """

    def __init__(self, run: Callable[[NativeThread], None], *, name: str) -> None:
        """Start the thread; `run` gets this object and returns soon after `wait` says so."""
        self.name = name
        self.ended = False
        # In the thread: whether the last wait has ended by itself, and not for something to do.
        self.timed_out = False
        self._run = run
        self._stopping = self._woken = False
        self._number: int = 0
        # The number of the thread that the hub runs on, as `sys._current_frames` has it.
        self.hub_thread: int = gevent.monkey.get_original("_thread", "get_ident")()
        self._reader, self._writer = os.pipe()
        start_new_thread = gevent.monkey.get_original("_thread", "start_new_thread")
        start_new_thread(self._main, ())

    def wait(self, timeout_s: float, *descriptors: int) -> bool:
        """In the thread: wait so long; True when the thread is to end.

        `wake`, `stop`, and something to read from one of `descriptors` end the wait.
        """
        poll = _poll()
        poll.register(self._reader, select.POLLIN)
        for descriptor in descriptors:
            if descriptor >= 0:
                poll.register(descriptor, select.POLLIN)
        found = poll.poll(timeout_s * 1000)
        self.timed_out = not found
        for ready, _events in found:
            if ready == self._reader:
                self._woken = False
                os.read(self._reader, 64)
        return self._stopping

    def wake(self) -> None:
        """From outside: have a wait end."""
        if not self._woken:
            self._woken = True
            os.write(self._writer, b"!")

    def stop(self) -> None:
        """From outside: have `wait` return True from now on."""
        self._stopping = True
        self._woken = False
        self.wake()

    def close(self) -> None:
        """From outside, after its end: nobody will wake it any more."""
        os.close(self._reader)
        os.close(self._writer)

    def runs_here(self) -> bool:
        """Tell whether it is this thread that asks."""
        return bool(self._number == gevent.monkey.get_original("_thread", "get_ident")())

    def _main(self) -> None:
        self._number = gevent.monkey.get_original("_thread", "get_ident")()
        try:
            self._run(self)
        except BaseException as exc:
            _log.critical("thread %s crashed", self.name, exc_info=True)
            _tell_of_crash(f"thread {self.name}", exc)
        finally:
            self.ended = True


# Upper ends of the histogram's buckets, seconds; what is later falls into one more.
_LAGS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Lags:
    """How late the loop ran whenever it was asked: a histogram."""

    def __init__(self) -> None:
        """Begin empty."""
        self.counts = [0] * (len(_LAGS_S) + 1)
        self.max_s = 0.0

    def add(self, lag_s: float) -> None:
        """Count one."""
        self.counts[bisect_left(_LAGS_S, lag_s)] += 1
        self.max_s = max(self.max_s, lag_s)

    def quantile_s(self, share: float) -> float:
        """Return what a share of them did not exceed, as exactly as the buckets are narrow."""
        wanted, seen = share * sum(self.counts), 0
        for upper_s, count in zip(_LAGS_S, self.counts, strict=False):
            seen += count
            if seen >= wanted:
                return min(upper_s, self.max_s)
        return self.max_s

    def info(self) -> dict[str, object]:
        """Tell count, quantiles and the buckets in use, [upper end in s, count]; the last: None."""
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


# What runs in the hub's thread when nothing else does: all that a greenlet or a callback does has
# frames of its own.
_WAITING = gevent.hub.Hub.run.__code__


class Hub(StartStopPart):
    """The event loop's step: its lag, signals, and what crashes outside any greenlet.

    Duties: (1) tell other threads whether the loop moves, and how late it runs; (2) start greenlets
    for them; (3) send what gevent would print to stderr to the log instead; (4) be gone in a forked
    child, which must not go on with what its parent does; (5) have the worker end when a greenlet
    or a thread of its own crashes.
    """

    name = "Hub"
    requires = ("Timer",)

    def __init__(self, *, crashed: Callable[[str, BaseException], object] | None = None) -> None:
        """Belong to the hub of this thread; its loop runs since gevent was imported.

        `crashed` is called in this thread with what has crashed, and of what.
        """
        self._hub = gevent.get_hub()
        self._end = crashed
        self._thread: int = gevent.monkey.get_original("_thread", "get_ident")()
        self._alive = self._hub.loop.async_()
        # Written by the hub, read by any thread: when it last answered a ping (monotonic), and how
        # long that ping had waited.
        self.moved_s = time.monotonic()
        self.lag_s = 0.0
        self.lags = Lags()

    def start(self) -> None:
        """Have errors logged, and the loop run on while only another thread can wake anybody."""
        self._alive.start(_nothing)
        _hubs.append(self)
        self._hub.print_exception = _print_exception  # type: ignore[method-assign,assignment]

    def stop(self) -> None:
        """Let the loop end when nothing is left to do."""
        self._alive.stop()
        if self in _hubs:
            _hubs.remove(self)

    def crashed(self, what: str, error: BaseException) -> None:
        """Have it known that a part of the worker is gone; any thread may call."""
        if self._end is not None:
            self._hub.loop.run_callback_threadsafe(self._end, what, error)

    def ping(self) -> None:
        """Have the loop note that it moves, as soon as it does; any thread may ask."""
        self._hub.loop.run_callback_threadsafe(self._moved, time.monotonic())

    def rests(self) -> bool:
        """From another thread: note that the loop moves if it waits for something to happen.

        So a loop that has nothing to do need not be woken to say so. False: it must be asked.
        """
        # There is no public way to another thread's frame.
        frame = sys._current_frames().get(self._thread)  # noqa: SLF001
        if frame is None or frame.f_code is not _WAITING:
            return False
        self.lag_s = 0.0
        self.lags.add(0.0)
        return True

    def spawn_soon(self, run: Callable[[], object], *, name: str) -> None:
        """Start a greenlet in the hub's thread; any thread may ask."""
        self._hub.loop.run_callback_threadsafe(self._spawn, run, name)

    def forget(self) -> None:
        """In a forked child: never run what waits here; whatever waits from now on has a new loop.

        The greenlets of the parent are all there in the child: with the parent's loop they would
        take and run its messages a second time.
        """
        gevent._hub_local.set_hub(None)  # type: ignore[arg-type]  # noqa: SLF001  # gevent has no public way to do it
        gevent._hub_local.set_loop(None)  # type: ignore[arg-type]  # noqa: SLF001
        self._hub.loop.destroy()

    def _spawn(self, run: Callable[[], object], name: str) -> None:
        # Of all that waits for the end of a block, the answer to a ping may be the last.
        self.moved_s = time.monotonic()
        spawn(run, name=name)

    def _moved(self, asked_s: float) -> None:
        now = time.monotonic()
        self.lag_s = now - asked_s
        self.moved_s = now
        self.lags.add(self.lag_s)


class Signals:
    """Signals of a worker: acted on in a greenlet of its hub, and seen by a thread beside it.

    Not gevent's handlers: those are called by the loop alone, so nobody hears of a signal while the
    hub is blocked.
    """

    def __init__(self, hub: Hub) -> None:
        """Act in greenlets of `hub`; nothing is caught yet."""
        self._hub = hub
        self._before: dict[int, Any] = {}
        self._actions: dict[int, Callable[[], object]] = {}
        self._pid = os.getpid()
        # Signals on which somebody else has acted, while the hub could not.
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
        self._before[number] = signals.signal(number, self._arrived)

    def fileno(self) -> int:
        """Return what can be read once a signal has come; -1 while none is caught."""
        return self._reader

    def read(self) -> bytes:
        """Return the numbers of the signals that have come; any one thread may ask."""
        if self._reader < 0:
            return b""
        try:
            return os.read(self._reader, 64)
        except (BlockingIOError, OSError):
            return b""

    def done(self, number: int) -> None:
        """Have the hub not act on a signal that waits for it: somebody else has."""
        self._done.add(number)

    def close(self) -> None:
        """Give the signals back; main thread only."""
        if self._writer < 0:
            return
        for number, before in self._before.items():
            signals.signal(number, signals.SIG_DFL if before is None else before)
        self.forget()

    def forget(self) -> None:
        """In a forked child: a signal is the child's own, and does what it does by default."""
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

    def _arrived(self, number: int, _frame: object) -> None:
        """Be called between two instructions of whatever runs: only the loop is asked."""
        if signals.set_wakeup_fd(self._writer, warn_on_full_buffer=False) != self._writer:
            # A task has put its own in this place, as asyncio does: the thread has not heard.
            with suppress(OSError):
                os.write(self._writer, bytes([number]))
        self._hub.spawn_soon(partial(self._act, number), name=signals.Signals(number).name)

    def _act(self, number: int) -> None:
        if number in self._done:
            self._done.discard(number)
        else:
            self._actions[number]()


def _nothing() -> None:
    """Be called by nobody: the watcher that has this keeps the loop from ending."""


def _print_exception(context: object, kind: Any, value: Any, trace: Any) -> None:
    """Log what an event loop callback raised; greenlets of ours have a handler of their own."""
    if isinstance(context, gevent.Greenlet):
        return
    _log.error("error in the event loop, %r", context, exc_info=(kind, value, trace))
