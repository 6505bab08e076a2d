"""The keyboard of a terminal, key by key, for ``greenq top``."""

from __future__ import annotations

import os
import re
import select
import sys
import termios
import tty
from typing import Any, Final, Self

_READ_BYTES: Final = 1024

_NAMED: Final = {
    b"\x1b[A": "up", b"\x1bOA": "up", b"\x1b[D": "up", b"\x1bOD": "up",
    b"\x1b[B": "down", b"\x1bOB": "down", b"\x1b[C": "down", b"\x1bOC": "down",
    b"\x1b[Z": "up", b"\t": "down", b"\x1a": "suspend",
}  # fmt: skip

# A control sequence, a two-byte key, or any single byte.
_KEY: Final = re.compile(rb"\x1b\[[0-9;]*[A-Za-z~]|\x1bO.|.", re.DOTALL)


def read_keys(typed: bytes) -> list[str]:
    """Return the names of the keys in a terminal's input, with letters in lower case.

    Keys other than named keys, letters and ``?`` are ignored.
    """
    found = []
    for key in _KEY.findall(typed):
        if key in _NAMED:
            found.append(_NAMED[key])
        elif key.isalpha() or key == b"?":
            found.append(key.decode().lower())
    return found


class Keyboard:
    """Returns each key immediately and without echo, inside its `with` block."""

    def __init__(self) -> None:
        """Read standard input, which must be a terminal."""
        self._file = sys.stdin.fileno()
        self._before: list[Any] = []

    def __enter__(self) -> Self:
        """Take over the terminal; Ctrl-Z becomes a key, so that it cannot suspend this process."""
        self._before = termios.tcgetattr(self._file)
        tty.setcbreak(self._file, termios.TCSANOW)
        ours = termios.tcgetattr(self._file)
        ours[6][termios.VSUSP] = bytes([os.fpathconf(self._file, "PC_VDISABLE")])
        termios.tcsetattr(self._file, termios.TCSANOW, ours)
        return self

    def __exit__(self, *_exc: object) -> None:
        """Restore the terminal, and discard unread input."""
        termios.tcsetattr(self._file, termios.TCSAFLUSH, self._before)

    def keys(self, timeout_s: float) -> list[str]:
        """Return the keys typed; if there are none, wait for one until the timeout.

        Raises:
            EOFError: the terminal has been closed.
        """
        if not select.select([self._file], [], [], timeout_s)[0]:
            return []
        typed = os.read(self._file, _READ_BYTES)
        if not typed:
            raise EOFError("the terminal has been closed")
        return read_keys(typed)
