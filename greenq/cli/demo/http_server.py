"""The web server that `greenq demo` fetches from: every GET is answered after 200 ms.

It runs in its own isolated process (``python -I -S http_server.py``), so it imports only the
standard library. It prints its port, and exits when its standard input is closed, which happens no
matter how the demo ends.
"""

from __future__ import annotations

import asyncio
import sys

DELAY_S = 0.2

_BODY = b"hello from the demo's web server\n"
_ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(_BODY), _BODY)
)
# Room for all connections of a burst before the loop accepts the first.
_BACKLOG = 4096
_END_OF_REQUEST = b"\r\n\r\n"


class DelayedAnswer(asyncio.Protocol):
    """One connection, with one request and one delayed response."""

    def __init__(self) -> None:
        """Create a connection that has received nothing yet."""
        self._transport: asyncio.Transport | None = None
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport for the response."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Schedule the response once the request's head is complete."""
        self._read += data
        if self._read.endswith(_END_OF_REQUEST):
            asyncio.get_running_loop().call_later(DELAY_S, self._answer)

    def _answer(self) -> None:
        assert self._transport is not None
        self._transport.write(_ANSWER)
        self._transport.close()


class UntilClosed(asyncio.Protocol):
    """Waits until standard input is closed."""

    def __init__(self) -> None:
        """Start watching."""
        self.closed = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the parent process has ended."""
        self.closed.set()


async def serve() -> None:
    """Serve on a free port of this machine until standard input ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(DelayedAnswer, "127.0.0.1", 0, backlog=_BACKLOG)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    _, watch = await loop.connect_read_pipe(UntilClosed, sys.stdin)
    await watch.closed.wait()
    server.close()


if __name__ == "__main__":
    asyncio.run(serve())
