"""A line to a server that can fall silent: nothing passes, and neither end notices.

A vanished host or a failed switch looks like this from the other side: no reset, no end of the
stream. What was sent meanwhile arrives when the line works again, as with TCP.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

_CHUNK_BYTES = 1 << 18
_WAIT_S = 10.0


class Line:
    """Listens on a free port and passes bytes on to `url`'s server while it works."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._server = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}{parts.path}"
        self._good = threading.Event()
        self._good.set()
        self._closed = False
        self._sockets: list[socket.socket] = []
        self._threads = [self._run(self._accept)]

    def hold(self) -> None:
        """Pass nothing on, not even that an end has been closed."""
        self._good.clear()

    def release(self) -> None:
        """Pass on what was held back, and everything from now on."""
        self._good.set()

    def close(self) -> None:
        """Stop listening and close everything."""
        self._closed = True
        for each in (self._listener, *self._sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._good.set()
        for thread in self._threads:
            thread.join(_WAIT_S)
            assert not thread.is_alive(), "the line does not end"
        for each in (self._listener, *self._sockets):
            each.close()

    def _run(self, *call: object) -> threading.Thread:
        thread = threading.Thread(target=call[0], args=call[1:], name="line", daemon=True)  # type: ignore[arg-type]
        thread.start()
        return thread

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._server)
            except OSError:
                client.close()
                continue
            self._sockets += [client, server]
            self._threads.append(self._run(self._pass, client, server))
            self._threads.append(self._run(self._pass, server, client))

    def _pass(self, source: socket.socket, goal: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(_CHUNK_BYTES):
                self._good.wait()
                if self._closed:
                    return
                goal.sendall(data)
        self._good.wait()
        for each in (source, goal):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@contextmanager
def line_to(url: str) -> Iterator[Line]:
    """Run a line to a server."""
    line = Line(url)
    try:
        yield line
    finally:
        line.close()
