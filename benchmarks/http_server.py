"""A web server that answers every GET after a delay, in a separate process.

The server is one epoll loop without a framework. All answers have the same delay, so a queue in
order of arrival serves as the timer, and a request costs only a few system calls.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from collections import deque
from contextlib import suppress

DELAY_S = 0.2

_BODY = b"hello from the web server of the benchmarks\n"
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(_BODY), _BODY)
)
_END_OF_REQUEST = b"\r\n\r\n"
_BACKLOG = 4096


class Server:
    """Accepts, reads, waits and answers."""

    def __init__(self) -> None:
        """Listen on a free port of this machine."""
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
        self._listener.setblocking(False)
        self._poll = select.epoll()
        self._poll.register(self._listener.fileno(), select.EPOLLIN)
        self._open: dict[int, tuple[socket.socket, bytes]] = {}
        self._due: deque[tuple[float, socket.socket]] = deque()

    @property
    def port(self) -> int:
        """The port that the server listens on."""
        number: int = self._listener.getsockname()[1]
        return number

    def run(self) -> None:
        """Serve forever."""
        while True:
            wait_s = max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
            for number, _ in self._poll.poll(wait_s):
                if number == self._listener.fileno():
                    self._accept()
                else:
                    self._read(number)
            self._answer()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            connection.setblocking(False)
            self._open[connection.fileno()] = connection, b""
            self._poll.register(connection.fileno(), select.EPOLLIN)

    def _read(self, number: int) -> None:
        connection, before = self._open[number]
        try:
            received = connection.recv(4096)
        except ConnectionResetError:
            received = b""
        if received and not (before + received).endswith(_END_OF_REQUEST):
            self._open[number] = connection, before + received
            return
        self._poll.unregister(number)
        del self._open[number]
        if received:
            self._due.append((time.monotonic() + DELAY_S, connection))
        else:
            connection.close()

    def _answer(self) -> None:
        now_s = time.monotonic()
        while self._due and self._due[0][0] <= now_s:
            _, connection = self._due.popleft()
            # The client may be gone, in which case it reports the error itself.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.send(ANSWER)
            connection.close()


if __name__ == "__main__":
    server = Server()
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    server.run()
