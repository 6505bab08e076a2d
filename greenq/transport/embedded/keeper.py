"""Keeps an embedded Valkey running for as long as any process uses it.

`greenq.transport.embedded.server` runs this file by its path (``python -I -S keeper.py …``), so it
imports only the standard library. The process is detached from the one that first needed the
server.

Three files in the data folder show which processes are alive. Each has a lock that the kernel
releases when its holder exits. So a crash never leaves a stale lock behind, and nothing relies on a
pid:

- ``users.lock`` is shared: every process that uses the server holds it. The keeper waits for an
  exclusive lock on it, and gets this lock when the last user has gone. While the keeper holds it to
  stop the server, no process can join.
- ``keeper.lock`` is exclusive: the keeper holds it. A process that starts a keeper locks the file
  and passes the open file on to the keeper.
- ``server.lock`` is exclusive: Valkey itself holds it, because it inherits the open file. The file
  contains Valkey's process id. Valkey leads its own process group, so while the file is locked, the
  number in it can refer only to this group.
"""

from __future__ import annotations

import fcntl
import os
import queue
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

USERS_LOCK = "users.lock"
KEEPER_LOCK = "keeper.lock"
SERVER_LOCK = "server.lock"
LOG = "server.log"

# How long the keeper waits after each signal. This is less than the ten seconds that a process
# waits to join, so that even a slow server has stopped before that wait ends.
_STOP_S = 7.0
_ASK_S = 1.0
# The pauses before the first, second, … restart in a row; after the last, the keeper gives up.
_PAUSES_S = (0.0, 0.1, 0.3, 1.0, 2.0)
# Once a server has run for this long, the restarts are counted from zero again.
_CALM_S = 10.0
# Valkey exits with 1 after logging why it cannot run (because of its settings or unreadable data).
_REFUSED = 1


class NotPrivate(PermissionError):
    """Another user may control the folder or the server; the text says which, and what to do."""


def require_private(folder: Path) -> None:
    """Check that a folder belongs to the user alone.

    Raises:
        NotPrivate: the folder is a link, belongs to another user, or is open to others.
        FileNotFoundError: the folder does not exist.
    """
    # Do not use stat here: the owner of a link can change its target at any time.
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode):
        raise NotPrivate(f"{folder} is a link or a file: name the folder itself")
    if facts.st_uid != os.geteuid():
        raise NotPrivate(
            f"the folder {folder} belongs to user {facts.st_uid}, not to you: name one of your own "
            "(broker_url = embedded:///absolute/folder)"
        )
    if facts.st_mode & 0o077:
        raise NotPrivate(
            f"the folder {folder} is open to other users (mode {facts.st_mode & 0o777:o}), so they "
            f"could send you tasks: chmod 700 {folder}, or name a folder that does not exist yet"
        )


def require_own_server(link: socket.socket) -> None:
    """Check that the process at the other end of a unix socket belongs to the user.

    Raises:
        NotPrivate: the process does not belong to the user. Without SO_PEERCRED, this cannot be
            checked, and the check of the folder has to suffice.
    """
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return
    # The format is that of struct ucred: process, user, group.
    size = struct.calcsize("3i")
    _, user, _ = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, option, size))
    if user != os.geteuid():
        raise NotPrivate(
            f"the server at {link.getpeername()} is a process of user {user}, not yours"
        )


def open_lock(path: Path) -> int:
    """Open a lock file, creating it if missing; child programs do not inherit it."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def try_lock(fd: int, kind: int) -> bool:
    """Lock an open file without waiting; `kind` is LOCK_EX or LOCK_SH."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def ask(socket_path: Path, command: str, timeout_s: float) -> str:
    """Send one command without arguments; return the first line of the reply, or "" if none comes.

    A ready server answers PING with ``+PONG``; a server that is loading its data answers with an
    error.

    Raises:
        NotPrivate: the server, or the folder of its socket, does not belong to the user.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(timeout_s)
        try:
            require_private(socket_path.parent)
            link.connect(os.fspath(socket_path))
            require_own_server(link)
            link.sendall(command.encode() + b"\r\n")
            return link.recv(256).decode("utf-8", "replace").partition("\r\n")[0]
        except NotPrivate:
            raise
        except OSError:
            return ""


class Keeper:
    """Starts Valkey in the current directory, or adopts one; exits after its last user."""

    def __init__(self, socket_path: Path, binary: Path, keeper_fd: int) -> None:
        """Take over ``keeper.lock``, open and locked, as `keeper_fd`."""
        self._socket_path = socket_path
        self._binary = binary
        self._keeper_fd = keeper_fd
        # The watching threads put events here: None if no users are left; otherwise how a server
        # ended.
        self._events: queue.SimpleQueue[_Ended | None] = queue.SimpleQueue()
        self._server_pid: int | None = None

    def run(self) -> None:
        """Serve until no user is left; leave neither a server nor a socket behind."""
        _watch(self._await_no_users)
        try:
            self._serve()
        finally:
            _on_signals(signal.SIG_IGN)
            self._stop()
            self._clean()
            # Unlock before the exit releases users.lock, since the next process to join may have to
            # start a keeper.
            fcntl.flock(self._keeper_fd, fcntl.LOCK_UN)

    def _serve(self) -> None:
        crashes = 0
        while True:
            started = time.monotonic()
            self._start_or_adopt()
            ended = self._events.get()
            if ended is None:
                return
            self._server_pid = None
            if ended.code == _REFUSED:
                _give_up("Valkey refuses to run; the reason is logged above")
            crashes = crashes + 1 if time.monotonic() - started < _CALM_S else 1
            if crashes > len(_PAUSES_S):
                _give_up(f"Valkey ended {crashes} times in a row, each within {_CALM_S:g} s")
            pause_s = _PAUSES_S[crashes - 1]
            _log(f"Valkey ended unexpectedly ({ended}); restarting it in {pause_s:g} s")
            if self._no_users_within(pause_s):
                return

    def _no_users_within(self, pause_s: float) -> bool:
        try:
            self._events.get(timeout=pause_s)
        except queue.Empty:
            return False
        return True

    def _start_or_adopt(self) -> None:
        lock = open_lock(Path(SERVER_LOCK))
        if try_lock(lock, fcntl.LOCK_EX):
            self._start(lock)
        else:
            self._adopt(lock)

    def _start(self, lock: int) -> None:
        try:
            require_private(self._socket_path.parent)
        except OSError as error:
            _give_up(str(error))
        self._socket_path.unlink(missing_ok=True)
        for unfinished in Path().glob("temp-rewriteaof-*.aof"):
            unfinished.unlink()
        os.ftruncate(lock, 0)
        server = subprocess.Popen(
            [self._binary, *_options(self._socket_path)],
            stdin=subprocess.DEVNULL,
            pass_fds=(lock,),
            process_group=0,
        )
        self._server_pid = server.pid
        os.write(lock, str(server.pid).encode())
        # Only Valkey holds the lock after this.
        os.close(lock)
        _log(f"started Valkey, process {server.pid}")
        _watch(lambda: self._await_child(server))

    def _adopt(self, lock: int) -> None:
        text = os.pread(lock, 32, 0).decode()
        if not text.isdigit():
            _give_up(
                f"an unknown process has {SERVER_LOCK} open: end it (lsof names it), then try again"
            )
        self._server_pid = int(text)
        _log(f"took over Valkey, process {text}, whose keeper has gone")
        _watch(lambda: self._await_adopted(lock))

    def _await_no_users(self) -> None:
        fcntl.flock(open_lock(Path(USERS_LOCK)), fcntl.LOCK_EX)
        self._events.put(None)

    def _await_child(self, server: subprocess.Popen[bytes]) -> None:
        code = server.wait()
        # A killed Valkey may leave a forked child that is rewriting the append-only file.
        _signal_group(server.pid, signal.SIGKILL)
        _await_lock(open_lock(Path(SERVER_LOCK)))
        self._events.put(_Ended(code))

    def _await_adopted(self, lock: int) -> None:
        _await_lock(lock)
        self._events.put(_Ended(None))

    def _stop(self) -> None:
        if self._server_pid is None:
            return
        _log(f"stopping Valkey, process {self._server_pid}")
        # Valkey checks for signals only ten times a second, but obeys commands immediately.
        with suppress(NotPrivate):
            ask(self._socket_path, "SHUTDOWN", _ASK_S)
        for number in (signal.SIGTERM, signal.SIGKILL):
            _signal_group(self._server_pid, number)
            if self._ended_within(_STOP_S):
                return
            _log(f"Valkey has not stopped after {number.name}")

    def _ended_within(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        with suppress(queue.Empty):
            while self._events.get(timeout=max(0.0, deadline - time.monotonic())) is None:
                pass
            return True
        return False

    def _clean(self) -> None:
        lock = open_lock(Path(SERVER_LOCK))
        if try_lock(lock, fcntl.LOCK_EX):
            os.ftruncate(lock, 0)
            self._socket_path.unlink(missing_ok=True)
            if self._socket_path.parent != Path.cwd():
                with suppress(OSError):
                    self._socket_path.parent.rmdir()
        # Release the lock now, or the next keeper would believe that the server is still running.
        os.close(lock)


class _Ended(NamedTuple):
    """How a server ended: its exit code, or None if it was not a child of this process."""

    code: int | None

    def __str__(self) -> str:
        if self.code is None:
            return "cause unknown"
        return f"exit code {self.code}" if self.code >= 0 else f"killed by signal {-self.code}"


def _options(socket_path: Path) -> list[str]:
    options = {
        "port": "0",
        "unixsocket": str(socket_path),
        "unixsocketperm": "700",
        "dir": ".",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "daemonize": "no",
        "always-show-logo": "no",
    }
    return [part for name, value in options.items() for part in (f"--{name}", value)]


def _watch(wait: Callable[[], None]) -> None:
    threading.Thread(target=wait, daemon=True).start()


def _await_lock(fd: int) -> None:
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.close(fd)


def _signal_group(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _log(text: str) -> None:
    now = time.strftime("%d %b %Y %H:%M:%S")
    sys.stderr.write(f"{os.getpid()}:K {now} * {text}\n")
    sys.stderr.flush()


def _give_up(reason: str) -> NoReturn:
    _log(f"giving up: {reason}")
    sys.exit(1)


def _end(number: int, _frame: object) -> NoReturn:
    _on_signals(signal.SIG_IGN)
    _log(f"stopped by {signal.Signals(number).name}")
    sys.exit(0)


def _on_signals(action: Callable[[int, object], NoReturn] | signal.Handlers) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, action)


def main() -> None:
    """Run the keeper; arguments: folder, socket, Valkey's binary; standard input: keeper.lock."""
    folder, socket_path, binary = sys.argv[1:]
    # The process that starts the keeper waits for its child, which exits immediately. The keeper
    # itself is then adopted by init, so it never becomes a zombie.
    if os.fork():
        os._exit(0)
    os.setsid()
    # Close everything else that the starting process left open, such as its sockets.
    os.closerange(3, min(os.sysconf("SC_OPEN_MAX"), 1 << 16))
    os.chdir(folder)
    os.umask(0o077)
    _on_signals(_end)
    Keeper(Path(socket_path), Path(binary), keeper_fd=0).run()


if __name__ == "__main__":
    main()
