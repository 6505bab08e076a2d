"""A file with the process id, locked as long as the process lives."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from greenq.errors import ConfigError, GreenqError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def pid_file(path: str | None) -> Iterator[None]:
    """Keep this process's id in the file `path` for the time of the block; None keeps none.

    The lock says that its owner lives, so a file left behind by a crash is in nobody's way.

    Raises:
        ConfigError: the file cannot be written.
        GreenqError: another living process has it.
    """
    if path is None:
        yield
        return
    # The app may change to another folder.
    path = os.path.abspath(path)
    number = _locked(path)
    try:
        os.ftruncate(number, 0)
        os.write(number, f"{os.getpid()}\n".encode())
        yield
    finally:
        # Somebody may have deleted it by hand, and another process made one of its own.
        if _is_file(number, path):
            Path(path).unlink(missing_ok=True)
        os.close(number)


def _locked(path: str) -> int:
    """Open and lock the file; whoever held it before may be deleting it at this moment."""
    while True:
        try:
            number = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as exc:
            reason = f"cannot be written: {exc.strerror}"
            raise ConfigError([Problem("pidfile", path, reason)]) from exc
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_file(number, path):
                return number
        except BlockingIOError:
            holder = os.read(number, 20).decode("ascii", "replace").strip() or "unknown"
            os.close(number)
            raise GreenqError(
                f"pidfile {path}: process {holder} has it and is alive; stop that one first, or "
                "give this one a file of its own"
            ) from None
        os.close(number)


def _is_file(number: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(number), os.stat(path))
    except FileNotFoundError:
        return False
