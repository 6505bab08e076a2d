"""A file that contains the process id and is locked while the process is alive."""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from greenq.errors import ConfigError, GreenqError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def pid_file(path: str | None, inherited: int = -1) -> Iterator[int]:
    """Keep this process's id in the file `path` during the block; if `path` is None, do nothing.

    The lock shows that its owner is alive, so a file left behind by a crash does no harm.

    Args:
        path: the path of the file.
        inherited: a descriptor of the file, which this process locked before it restarted.

    Returns:
        The descriptor of the file; -1 if `path` is None.

    Raises:
        ConfigError: the file cannot be written or does not belong to the user.
        GreenqError: another living process has locked it.
    """
    if path is None:
        yield -1
        return
    # Make the path absolute, since the app may change the working directory.
    path = os.path.abspath(path)
    number = _adopt(inherited, path) or _lock(path)
    try:
        os.ftruncate(number, 0)
        os.pwrite(number, f"{os.getpid()}\n".encode(), 0)
        yield number
    finally:
        # The file may have been deleted by hand and replaced by another process.
        if _is_file(number, path):
            Path(path).unlink(missing_ok=True)
        os.close(number)


def _adopt(inherited: int, path: str) -> int | None:
    """Return `inherited` if it still refers to the file at `path`; otherwise close it."""
    if inherited < 0:
        return None
    os.set_inheritable(inherited, False)
    if _is_file(inherited, path):
        return inherited
    os.close(inherited)
    return None


def _lock(path: str) -> int:
    """Open and lock the file; its previous owner may be deleting it at this moment."""
    while True:
        try:
            # Without O_NONBLOCK, opening a named pipe would wait.
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
            number = os.open(path, flags, 0o600)
        except OSError as exc:
            why = "it is a link" if os.path.islink(path) else exc.strerror
            raise ConfigError([Problem("pidfile", path, f"cannot be written: {why}")]) from exc
        try:
            _require_own(number, path)
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_file(number, path):
                return number
        except BlockingIOError:
            holder = os.read(number, 20).decode("ascii", "replace").strip() or "unknown"
            os.close(number)
            raise GreenqError(
                f"pidfile {path}: process {holder} has locked it and is alive; stop that process "
                "first, or use another file for the new process"
            ) from None
        except BaseException:
            os.close(number)
            raise
        os.close(number)


def _require_own(number: int, path: str) -> None:
    """Check that no other user can lock the file, and that no other file is overwritten."""
    facts = os.fstat(number)
    reason = None
    if not stat.S_ISREG(facts.st_mode):
        reason = "is not a regular file"
    elif facts.st_uid != os.geteuid():
        reason = f"belongs to user {facts.st_uid}, not to you"
    elif facts.st_nlink > 1:
        reason = "has another name (a hard link)"
    if reason is not None:
        raise ConfigError([Problem("pidfile", path, f"{reason}: use a separate file")])
    # Make the file private, since anyone who can open it can lock it.
    os.fchmod(number, 0o600)


def _is_file(number: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(number), os.lstat(path))
    except FileNotFoundError:
        return False
