"""The code of the measured tasks: the same for every contender written in Python."""

from __future__ import annotations

import mmap
import os
import socket
import tempfile
from pathlib import Path

HOST = "127.0.0.1"

_REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
_FIELD_BYTES = 8


class Tally:
    """Counts calls where another process can read it, for tasks that store no result.

    Each process has its own file with one number, so that no process waits for another.
    """

    def __init__(self) -> None:
        """Create a counter at zero, in the directory that BENCH_TALLY names."""
        # The file is not named after the process id, since a contender may fork after importing its
        # tasks.
        number, _ = tempfile.mkstemp(dir=os.environ["BENCH_TALLY"])
        os.ftruncate(number, _FIELD_BYTES)
        self._fields = memoryview(mmap.mmap(number, _FIELD_BYTES)).cast("Q")
        os.close(number)

    def add(self) -> None:
        """Count one call."""
        self._fields[0] += 1


def tallied(folder: Path) -> int:
    """Return the sum of what all processes have counted so far."""
    return sum(
        int.from_bytes(path.read_bytes()[:_FIELD_BYTES], "little") for path in folder.iterdir()
    )


def fetch(port: int) -> int:
    """Fetch one page over a new connection; return the length of the answer in bytes."""
    # Avoid `create_connection`, since it asks gevent's resolver threads even for an IP address.
    with socket.socket() as connection:
        connection.connect((HOST, port))
        connection.sendall(_REQUEST)
        length = 0
        while data := connection.recv(4096):
            length += len(data)
    return length
