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

_LAG_INTERVAL_S = 0.1


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

    Duties: (1) measure how late the loop runs; (2) deliver signals in a greenlet, not between two
    instructions of a task; (3) send what gevent would print to stderr to the log instead.
    """

    name = "Hub"
    requires = ("Timer",)

    def __init__(self) -> None:
        """Prepare to measure; the loop itself runs since gevent was imported."""
        # Own greenlet only.
        self._watcher: Greenlet | None = None
        self._signals: list[Any] = []
        # Read by others: when the loop last moved (monotonic), seconds by which the last sleep was
        # too long, and the share of CPU time used.
        self.moved_s = time.monotonic()
        self.lag_s = 0.0
        self.max_lag_s = 0.0
        self.busy = 0.0

    def start(self) -> None:
        """Begin to measure."""
        gevent.get_hub().print_exception = _print_exception  # type: ignore[method-assign,assignment]
        self._watcher = spawn(self._measure, name="hub lag")

    def stop(self) -> None:
        """Stop measuring and give the signals back."""
        if self._watcher is not None:
            self._watcher.kill()
            self._watcher = None
        for watcher in self._signals:
            watcher.cancel()
        self._signals.clear()

    def on_signal(self, number: signals.Signals, action: Callable[[], None]) -> None:
        """Run `action` in a greenlet whenever the signal arrives."""
        self._signals.append(gevent.signal_handler(number, action))

    def _measure(self) -> None:
        wall, cpu = time.monotonic(), time.thread_time()
        while True:
            sleep(_LAG_INTERVAL_S)
            now, used = time.monotonic(), time.thread_time()
            self.lag_s = max(0.0, now - wall - _LAG_INTERVAL_S)
            self.max_lag_s = max(self.max_lag_s, self.lag_s)
            self.busy = (used - cpu) / (now - wall)
            wall, cpu = now, used
            self.moved_s = now


def _print_exception(context: object, kind: Any, value: Any, trace: Any) -> None:
    """Log what an event loop callback raised; greenlets of ours have a handler of their own."""
    if isinstance(context, gevent.Greenlet):
        return
    _log.error("error in the event loop, %r", context, exc_info=(kind, value, trace))
