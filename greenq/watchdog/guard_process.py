"""The worker's side of its guard, which renews the lease while no Python code runs here.

`greenq.transport.guard` is the code of the guard process, and describes what it does.
"""

from __future__ import annotations

import json
import logging
import os
import posix
import signal
import sys
import time
import weakref
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from greenq.transport import guard
from greenq.transport.client import plain_address

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)

# The shortest time between starts of the guard.
_RESTART_S = 10.0

# A guard that ran for this long was working, so its end is logged as a new problem.
_STEADY_S = 60.0

# How long the guard may take to exit after the worker has signed off; a silent server may delay it.
_FAREWELL_S = 1.0
_POLL_S = 0.005

# These signals are often sent to a whole group of processes, by an init system or by pkill. The
# guard must not exit before the worker, so they are blocked from the guard's first instruction on.
_BLOCKED_SIGNALS = (
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip


class GuardProcess:
    """Starts the guard, reports each renewal to it, restarts it if it has died, and ends it.

    The watchdog thread calls `beat` while the hub may be blocked, so nothing here may need the hub:
    gevent's replacements for subprocess and os.waitpid work in the hub's thread only.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str,
        member: str,
        lease_s: float,
        silence_limit_s: float,
        embedded: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Guard the lease `member` of the zset `key` on the server at `url`.

        Args:
            url: the server's URL.
            key: the zset of leases.
            member: the owner's member of that zset.
            lease_s: how long a lease lasts.
            silence_limit_s: how long the guard keeps the lease of a worker that does not renew it.
            embedded: if True, the server must be a process of this user.
            clock: seconds, monotonic.
        """
        self._description = {
            "url": url, "embedded": embedded, "key": key, "member": member,
            "plain": None if embedded else plain_address(url),
            "timeout_s": max(0.5, lease_s / 3),
        }  # fmt: skip
        self._numbers = f"{lease_s:g}", f"{silence_limit_s:g}"
        self._clock = clock
        self._pid: int | None = None
        self._pipe: int | None = None
        self._started_s = 0.0
        self._is_over = False
        self._has_warned = False
        os.register_at_fork(after_in_child=partial(_forget, weakref.ref(self)))

    @property
    def pid(self) -> int | None:
        """The process id of the guard; None unless it is assumed to be running."""
        return self._pid

    def start(self) -> None:
        """Start the guard; if that fails, log a warning and continue without it."""
        self._is_over = False
        self._start()

    def beat(self) -> None:
        """Report a renewal of the lease to the guard, without waiting; any thread may call this."""
        if self._is_over or self._write(guard.BEAT):
            return
        self._reap()
        if self._clock() - self._started_s >= _RESTART_S:
            self._start()
            self._write(guard.BEAT)

    def stop(self) -> None:
        """End the guard, which then leaves the lease alone. Switches: yes."""
        self._is_over = True
        pid = self._pid
        if pid is None:
            return
        self._write(guard.FAREWELL)
        ends_s = self._clock() + _FAREWELL_S
        while not _has_ended(pid):
            if self._clock() >= ends_s:
                _kill(pid)
                break
            time.sleep(_POLL_S)
        self._close()

    def _start(self) -> None:
        self._started_s = self._clock()
        try:
            self._spawn()
        except (OSError, ValueError, NotImplementedError) as exc:
            if self._pid is not None:
                _kill(self._pid)
            self._close()
            self._warn(
                "this worker runs without a guard: its lease will end when a call holds the GIL "
                f"for too long ({exc})"
            )

    def _spawn(self) -> None:
        if not sys.executable:
            raise ValueError("the path of the Python interpreter is unknown")
        path = [str(entry) for entry in sys.path]
        home = str(Path(guard.__file__).parents[2])
        description = json.dumps({**self._description, "path": path, "home": home})
        reader, self._pipe = os.pipe()
        try:
            # Use neither subprocess nor os.posix_spawn here, since gevent's replacements for them
            # work only in one thread.
            self._pid = posix.posix_spawn(
                sys.executable,
                [
                    *(sys.executable, "-I", "-S", guard.__file__),
                    *(str(os.getpid()), *self._numbers),
                ],
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, reader, 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                ],
                setsid=True,
                setsigmask=_BLOCKED_SIGNALS,
                setsigdef=_BLOCKED_SIGNALS,
            )
        finally:
            os.close(reader)
        # The pipe may be full, but the guard will either read from it or exit.
        line = description.encode() + b"\n"
        while line:
            line = line[os.write(self._pipe, line) :]
        os.set_blocking(self._pipe, False)

    def _write(self, byte: bytes) -> bool:
        """Write to the guard; return False if it is no longer running."""
        if self._pipe is None:
            return False
        try:
            os.write(self._pipe, byte)
        except BlockingIOError:
            # The pipe is full: the guard was suspended, or is waiting for the server.
            return True
        except OSError:
            return False
        return True

    def _reap(self) -> None:
        """Clean up after a guard that has exited by itself."""
        pid = self._pid
        if pid is None:
            return
        if not _has_ended(pid):
            # One end of the pipe is closed, so the guard can no longer be reached.
            _kill(pid)
        self._close()
        if self._clock() - self._started_s >= _STEADY_S:
            self._has_warned = False
        self._warn(f"the guard of this worker, process {pid}, has ended; it is started again")

    def _warn(self, text: str) -> None:
        level = logging.DEBUG if self._has_warned else logging.WARNING
        self._has_warned = True
        _log.log(level, "%s", text)

    def _close(self) -> None:
        pipe, self._pipe, self._pid = self._pipe, None, None
        if pipe is not None:
            os.close(pipe)

    def forget(self) -> None:
        """Close the pipe in a forked child, where an open pipe would make the parent seem alive."""
        self._is_over = True
        self._close()


def _has_ended(pid: int) -> bool:
    try:
        return posix.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        # Another handler of SIGCHLD has already reaped the process.
        return True


def _kill(pid: int) -> None:
    """Kill a guard that has not been reaped yet, and reap it."""
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        posix.waitpid(pid, 0)


def _forget(reference: weakref.ref[GuardProcess]) -> None:
    found = reference()
    if found is not None:
        found.forget()
