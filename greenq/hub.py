"""The gevent hub: patching, named greenlets with a crash handler, and the hub's lag.

Everything else in the worker gets its greenlets, events and sleeps from here, so gevent itself is
imported in three modules only: here, pool.py and timer.py.
"""

from __future__ import annotations

import logging
import os
import signal as signals
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import gevent
import gevent.monkey
from gevent.event import Event

from greenq.bootsteps import StartStopStep
from greenq.errors import ImportedTooEarly

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = [
    "Event", "Greenlet", "Hub", "NativeThread", "join_all", "patch", "run_all", "sleep", "spawn",
]  # fmt: skip

if TYPE_CHECKING:
    Greenlet: TypeAlias = gevent.Greenlet[..., Any]
else:
    # The stubs make it generic, the class itself is not.
    Greenlet = gevent.Greenlet
sleep = gevent.sleep

_log = logging.getLogger(__name__)


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


def spawn(run: Callable[..., Any], *args: Any, name: str) -> Greenlet:
    """Start a greenlet with a name; if it crashes, the log says which and why."""
    greenlet: Greenlet = gevent.Greenlet(run, *args)
    greenlet.name = name
    greenlet.link_exception(_log_crash)
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


def _log_crash(greenlet: Greenlet) -> None:
    error = greenlet.exception
    if error is not None:
        name = getattr(greenlet, "name", "?")
        _log.critical("greenlet %s crashed: %r", name, error, exc_info=greenlet.exc_info)


class NativeThread:
    """A real thread of the operating system beside the hub, which runs on while the hub is blocked.

    What it calls may use gevent's sockets and sleeps: they run on a hub of the thread's own.
    """

    def __init__(self, run: Callable[[NativeThread], None], *, name: str) -> None:
        """Start the thread; `run` gets this object and returns soon after `wait` says so."""
        self.name = name
        self.ended = False
        self._run = run
        # The number of the thread that the hub runs on, as `sys._current_frames` has it.
        self.hub_thread: int = gevent.monkey.get_original("_thread", "get_ident")()
        self._reader, self._writer = os.pipe()
        start_new_thread = gevent.monkey.get_original("_thread", "start_new_thread")
        start_new_thread(self._main, ())

    def wait(self, timeout_s: float) -> bool:
        """In the thread: wait so long, or until `stop`; True when it is to end."""
        poll = gevent.monkey.get_original("select", "poll")()
        poll.register(self._reader)
        return bool(poll.poll(timeout_s * 1000))

    def stop(self) -> None:
        """From outside: have `wait` return True from now on."""
        os.write(self._writer, b"!")
        os.close(self._writer)

    def _main(self) -> None:
        try:
            self._run(self)
        except BaseException:
            _log.critical("thread %s crashed", self.name, exc_info=True)
        finally:
            self.ended = True
            os.close(self._reader)


class Hub(StartStopStep):
    """The event loop's step: its lag, signals, and what crashes outside any greenlet.

    Duties: (1) tell other threads whether the loop moves, and how late it runs; (2) start greenlets
    for them; (3) deliver signals in a greenlet, not between two instructions of a task; (4) send
    what gevent would print to stderr to the log instead.
    """

    name = "Hub"
    requires = ("Timer",)

    def __init__(self) -> None:
        """Belong to the hub of this thread; its loop runs since gevent was imported."""
        self._hub = gevent.get_hub()
        self._alive = self._hub.loop.async_()
        self._signals: list[Any] = []
        # Written by the hub, read by any thread: when it last answered a ping (monotonic), and how
        # long that ping had waited.
        self.moved_s = time.monotonic()
        self.lag_s = 0.0

    def start(self) -> None:
        """Have errors logged, and the loop run on while only another thread can wake anybody."""
        self._alive.start(_nothing)
        self._hub.print_exception = _print_exception  # type: ignore[method-assign,assignment]

    def stop(self) -> None:
        """Give the signals back."""
        self._alive.stop()
        for watcher in self._signals:
            watcher.cancel()
        self._signals.clear()

    def ping(self) -> None:
        """Have the loop note that it moves, as soon as it does; any thread may ask."""
        self._hub.loop.run_callback_threadsafe(self._moved, time.monotonic())

    def spawn_soon(self, run: Callable[[], object], *, name: str) -> None:
        """Start a greenlet in the hub's thread; any thread may ask."""
        self._hub.loop.run_callback_threadsafe(partial(spawn, run, name=name))

    def on_signal(self, number: signals.Signals, action: Callable[[], None]) -> None:
        """Run `action` in a greenlet whenever the signal arrives."""
        self._signals.append(gevent.signal_handler(number, action))

    def _moved(self, asked_s: float) -> None:
        now = time.monotonic()
        self.lag_s = now - asked_s
        self.moved_s = now


def _nothing() -> None:
    """Be called by nobody: the watcher that has this keeps the loop from ending."""


def _print_exception(context: object, kind: Any, value: Any, trace: Any) -> None:
    """Log what an event loop callback raised; greenlets of ours have a handler of their own."""
    if isinstance(context, gevent.Greenlet):
        return
    _log.error("error in the event loop, %r", context, exc_info=(kind, value, trace))
