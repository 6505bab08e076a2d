"""Keeps the lease of a worker in which no Python code runs, and ends the lease of a dead worker.

`greenq.watchdog.guard_process` runs this file by its path (``python -I -S guard.py …``) as a child
of each worker, in a session of its own, so signals to the worker's process group do not reach it.
Most guards never have to act, so the guard imports only the smallest parts of the standard library
until it has to. It then has half a lease to act, on a machine that may be too busy even for the
worker. Importing a client would take 0.2 s of CPU time, which is too long, so for a server without
TLS the guard uses a plain socket.

1. The worker's watchdog thread writes one byte to the guard's standard input after each renewal of
   its lease.
2. If the worker is silent for more than half of the lease but alive (a call holds the GIL, or the
   process is suspended), the guard extends the lease on its behalf, up to the silence limit.
3. When the worker's process has died, the guard ends the lease immediately and then exits. Waiting
   for the lease to expire would delay the worker's tasks by three more seconds.
4. If the worker signs off, or is alive but has closed the pipe (another program now runs
   in its process), the guard exits without contacting the server.

The kernel, not the pipe, shows whether the process is dead: programs started by tasks may hold a
copy of the worker's end of the pipe, and a task may close that end.
"""

from __future__ import annotations

import importlib
import os
import select
import sys
import time
from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

BEAT = b"!"
FAREWELL = b"."

# The guard acts after the worker has been silent for this fraction of the lease, and then extends
# the lease at this interval.
_SILENT_AFTER = 0.5
_EXTEND_EVERY = 0.4

# The pause between attempts to reach a server that has not answered.
_RETRY_S = 0.25

# How long to try to end a lease; after this time, the lease has expired by itself.
_END_S = 5.0

# How often to check whether the worker has died if the kernel cannot report this.
_LOOK_S = 0.5

# How long to wait for the death of a process that has closed its end of the pipe, since a dying
# process closes the pipe first.
_DYING_S = 1.0


def now_s() -> float:
    """Return the time of a clock that, if possible, also runs while the machine is suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class GuardedWorker:
    """The worker's process and its pipe: whether the process is alive, and what it sends."""

    def __init__(self, pid: int, pipe: int) -> None:
        """Watch the parent's process id and the reading end of the pipe."""
        self._pid = pid
        self._pipe = pipe
        self._process = _open_process(pid)
        self._poll = select.poll()
        self._poll.register(pipe, select.POLLIN)
        if self._process >= 0:
            self._poll.register(self._process, select.POLLIN)

    @property
    def is_dead(self) -> bool:
        """True as soon as the process has ended, whether it has been reaped or not."""
        if os.getppid() != self._pid:
            return True
        if self._process < 0:
            return False
        poll = select.poll()
        poll.register(self._process, select.POLLIN)
        return bool(poll.poll(0))

    def read(self, timeout_s: float | None) -> bytes | None:
        """Wait until the worker writes or dies; return None if the pipe is permanently closed."""
        if self._process < 0:
            timeout_s = _LOOK_S if timeout_s is None else min(timeout_s, _LOOK_S)
        ready = self._poll.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000)
        if all(descriptor != self._pipe for descriptor, _events in ready):
            return b""
        return os.read(self._pipe, 4096) or None

    def dies(self) -> bool:
        """Return whether a worker that has closed its pipe has done so because it is dying."""
        ends_s = now_s() + _DYING_S
        while not self.is_dead and now_s() < ends_s:
            time.sleep(0.02)
        return self.is_dead


class RefusedError(Exception):
    """The server answered with an error."""


class PlainConnection:
    """A connection without TLS, which is ready after a few milliseconds of CPU time."""

    def __init__(self, address: dict[str, Any], timeout_s: float) -> None:
        """Connect to `address`, as returned by `greenq.transport.client.plain_address`.

        Raises:
            OSError: the server cannot be reached.
            RefusedError: the server refuses this user.
        """
        socket = importlib.import_module("socket")
        is_local = "path" in address
        where = address["path"] if is_local else (address["host"], address["port"])
        try:
            if is_local:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self._socket.settimeout(timeout_s)
                self._socket.connect(where)
            else:
                self._socket = socket.create_connection(where, timeout_s)
        except OSError as exc:
            raise ConnectionError(f"cannot reach {where}: {exc}") from exc
        try:
            if "password" in address:
                names = [address["username"]] if "username" in address else []
                self.call("AUTH", *names, address["password"])
            if address.get("db"):
                self.call("SELECT", address["db"])
            self._set_name()
        except BaseException:
            self.close()
            raise

    def call(self, *command: object) -> bytes:
        """Send a command that has a one-line reply; return the line without its type mark."""
        parts = [str(part).encode("utf-8", "surrogateescape") for part in command]
        text = b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
        self._socket.sendall(b"*%d\r\n%b" % (len(parts), text))
        line = b""
        while not line.endswith(b"\n"):
            more = self._socket.recv(4096)
            if not more:
                raise ConnectionError("the server has closed the connection")
            line += more
        if line.startswith(b"-"):
            raise RefusedError(line[1:].decode("utf-8", "replace").strip())
        return line[1:].strip()

    def _set_name(self) -> None:
        try:
            self.call("CLIENT", "SETNAME", "greenq-guard")
        except RefusedError:
            # A user without this permission has connections without names.
            return

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


class Lease:
    """The worker's lease on the server; the guard connects only when it has to act."""

    def __init__(self, description: bytes) -> None:
        """Store the line of JSON that `greenq.watchdog.guard_process` has written."""
        self._description = description
        self._connection: Any = None
        self._run: Callable[[str, tuple[object, ...]], int] | None = None

    def extend(self, lease_s: float) -> bool:
        """Extend the lease; return False if it has ended or does not exist."""
        return bool(self._script("extend", lease_s))

    def end(self) -> None:
        """End the lease now."""
        self._script("end_lease")

    def disconnect(self) -> None:
        """Close the connection until the next use."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _script(self, name: str, *args: object) -> int:
        try:
            if self._run is None or self._connection is None:
                self._run = self._prepare()
            return self._run(name, args)
        except BaseException:
            self.disconnect()
            raise

    def _prepare(self) -> Callable[[str, tuple[object, ...]], int]:
        """Connect; return a function that runs a script by its name."""
        description = importlib.import_module("json").loads(self._description)
        timeout_s, key, member = description["timeout_s"], description["key"], description["member"]
        if description["plain"] is not None:
            plain = self._connection = PlainConnection(description["plain"], timeout_s)
            folder = os.path.join(os.path.dirname(__file__), "lua")

            def run(name: str, args: tuple[object, ...]) -> int:
                with open(os.path.join(folder, f"{name}.lua")) as file:
                    return int(plain.call("EVAL", file.read(), 1, key, member, *args))

            return run
        # The last entry is needed if greenq is found by a hook that only ``site`` sets up.
        sys.path[:] = [*description["path"], description["home"]]
        module = importlib.import_module("greenq.transport.client")
        url = description["url"]
        client = module.Client(
            url,
            connect_timeout_s=timeout_s,
            timeout_s=timeout_s,
            name="greenq-guard",
            prepare=partial(module.own_socket, url) if description["embedded"] else module.nothing,
        )
        connection = self._connection = client.connection()
        return lambda name, args: int(
            connection.script(module.load_script(name), [key], [member, *args])
        )


class Guard:
    """Guards a worker for its whole life."""

    def __init__(self, worker: GuardedWorker, lease: Lease, lease_s: float, limit_s: float) -> None:
        """Guard `lease`, which lasts `lease_s`, through at most `limit_s` of silence."""
        self._worker = worker
        self._lease = lease
        self._lease_s = lease_s
        self._limit_s = limit_s
        # The time of the worker's last byte; None before the first byte, when there is no lease.
        self._renewed_s: float | None = None
        # The time of the next extension of the lease; None means that the lease is not extended
        # until the worker writes again.
        self._extend_at_s: float | None = None
        self._is_failing = False

    def run(self) -> None:
        """Guard until the worker dies or signs off."""
        while True:
            pause_s = None if self._extend_at_s is None else self._extend_at_s - now_s()
            data = self._worker.read(pause_s)
            if data is None:
                if self._worker.dies():
                    self._end()
                return
            if FAREWELL in data:
                return
            if self._worker.is_dead:
                self._end()
                return
            if data:
                self.note_renewal()
            elif self._extend_at_s is not None and now_s() >= self._extend_at_s:
                self._extend()

    def note_renewal(self) -> None:
        """Record that the worker itself has renewed its lease."""
        self._renewed_s = now_s()
        self._extend_at_s = self._renewed_s + self._lease_s * _SILENT_AFTER
        self._is_failing = False
        self._lease.disconnect()

    def _extend(self) -> None:
        assert self._renewed_s is not None
        silent_s = now_s() - self._renewed_s
        self._extend_at_s = None
        if silent_s > self._limit_s:
            self._lease.disconnect()
            if self._limit_s:
                log(
                    f"no Python code has run in the worker for {silent_s:.0f} s "
                    f"(worker_silence_limit): "
                    "its lease is no longer extended, and other workers will run its tasks"
                )
            return
        try:
            if self._lease.extend(self._lease_s):
                self._extend_at_s = now_s() + self._lease_s * _EXTEND_EVERY
            else:
                self._lease.disconnect()
        except Exception as exc:
            self._extend_at_s = now_s() + _RETRY_S
            if not self._is_failing:
                self._is_failing = True
                log(f"could not extend the lease of the silent worker: {exc}")

    def _end(self) -> None:
        """End a dead worker's lease; if the server cannot be reached, the lease expires later."""
        gives_up_s = now_s() + _END_S
        while True:
            try:
                self._lease.end()
            except Exception as exc:
                if now_s() + _RETRY_S < gives_up_s:
                    time.sleep(_RETRY_S)
                    continue
                log(f"the worker died; its lease will expire, since it could not be ended: {exc}")
            return


def log(text: str) -> None:
    """Write a line in the format of the log to standard error, which may be closed."""
    stamp = time.strftime("%Y-%m-%d %H:%M:%S")
    line = f"[{stamp}: WARNING/Guard of {sys.argv[1]}] {text}\n"
    try:
        os.write(2, line.encode("utf-8", "replace"))
    except OSError:
        return


def _open_process(pid: int) -> int:
    """Return a descriptor that can be read once the process has ended; -1 if there is none."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return -1


def _read_description(worker: GuardedWorker) -> tuple[bytes, bytes] | None:
    """Return the description and the bytes after it; None if the worker exited too early.

    On a busy machine, the worker may already have written the line, taken its lease and died.
    """
    received = b""
    while b"\n" not in received:
        data = worker.read(None)
        if data is None or (not data and worker.is_dead):
            return None
        received += data
    description, _, data = received.partition(b"\n")
    return description, data


def main() -> None:
    """Guard a worker; arguments: its process id, its lease and the silence limit in seconds."""
    pid, lease_s, limit_s = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    # Close everything else that the worker left open, such as its sockets.
    os.closerange(3, min(os.sysconf("SC_OPEN_MAX"), 1 << 16))
    worker = GuardedWorker(pid, 0)
    read = _read_description(worker)
    if read is None:
        return
    description, data = read
    guard = Guard(worker, Lease(description), lease_s, limit_s)
    if FAREWELL in data:
        return
    if data:
        guard.note_renewal()
    guard.run()


if __name__ == "__main__":
    main()
