"""A small HTTP server on a native thread: GET and HEAD of a few fixed paths, with strict limits.

Clients are not trusted. A client that sends slowly, too much, or nothing at all occupies one of a
few connections for a few seconds. If all connections are in use, a new connection replaces the
oldest. No client waits for another client.
"""

from __future__ import annotations

import _socket
import errno
import json
import logging
import os
import stat
import time
import weakref
from collections import deque
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from greenq.errors import GreenqError
from greenq.hub import NativeThread, sleep
from greenq.utils.probe import Address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_log = logging.getLogger(__name__)

# The maximum number of open connections.
MOST_CONNECTIONS: Final = 32

# The maximum size of a request's head.
MOST_REQUEST_BYTES: Final = 8192

# How long a client may take to send its request; it may take as long again to read the answer.
CLIENT_S: Final = 5.0

# How long computing a slow answer may take.
ANSWER_S: Final = 10.0

# How long to pause after failing to accept a connection, for example for lack of descriptors.
_REFUSED_S: Final = 1.0

_BACKLOG: Final = 64
_IDLE_S: Final = 3600.0
_STOP_S: Final = 2.0
_CHUNK: Final = 1 << 16

_JSON: Final = "application/json"
_PHRASES: Final = {
    200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed",
    431: "Request Header Fields Too Large", 500: "Internal Server Error",
    503: "Service Unavailable",
}  # fmt: skip


class Response(NamedTuple):
    """An answer: the HTTP status, the body and its type."""

    status: int
    body: bytes
    content_type: str = _JSON


def json_response(status: int, content: object) -> Response:
    """Return `content` as JSON."""
    return Response(status, json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n")


class CannotListen(GreenqError):
    """The worker cannot listen on an address, usually because another worker does."""


class HttpServer:
    """Answers requests to the given addresses from `start` to `stop`.

    `quick` answers are computed immediately on the thread that serves all clients. `slow` answers,
    which query the server of the queues or take some time, are computed on a second thread, which
    the first such request starts. Concurrent requests for the same path share one answer.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        *,
        quick: Mapping[str, Callable[[], Response]],
        slow: Mapping[str, Callable[[], Response]],
        finish: Callable[[], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Answer `quick` and `slow` paths on `addresses`.

        The thread that computes slow answers calls `finish` when it ends, to close the connections
        that the answers use.
        """
        self._addresses = addresses
        self._quick = quick
        self._slow = slow
        self._finish = finish
        self._clock = clock
        # The addresses that the server listens on, with the ports that were chosen for port 0.
        self.bound: list[Address] = []
        # The listeners are not typed, since the type stubs lack `_accept`.
        self._listeners: list[Any] = []
        self._accepts_from_s = 0.0
        self._thread: NativeThread | None = None
        # The serving thread's connections, oldest first.
        self._exchanges: list[_HttpExchange] = []
        # The paths to compute and the computed answers, passed between the two threads.
        self._wanted: deque[str] = deque()
        self._computed: deque[tuple[str, Response]] = deque()
        self._computing: set[str] = set()
        self._slow_thread: NativeThread | None = None

    # --- hub's thread -----------------------------------------------------------------------------

    def start(self) -> None:
        """Listen, and answer requests from now on.

        Raises:
            CannotListen: an address is in use, does not belong to this machine, or is not
                permitted.
        """
        try:
            for address in self._addresses:
                self._listen(address)
        except BaseException:
            self._close_listeners()
            raise
        os.register_at_fork(after_in_child=partial(_forget, weakref.ref(self)))
        self._thread = NativeThread(self._serve, name="greenq http")

    def stop(self) -> None:
        """Stop answering. Switches: yes."""
        threads = [each for each in (self._thread, self._slow_thread) if each is not None]
        self._thread = self._slow_thread = None
        for thread in threads:
            thread.stop()
        deadline_s = self._clock() + _STOP_S
        while not all(each.ended for each in threads) and self._clock() < deadline_s:
            sleep(0.005)
        for thread in threads:
            if thread.ended:
                thread.close()
        self._close_listeners()

    def forget(self) -> None:
        """Close a forked child's copies of the sockets, since the child serves no requests."""
        for listener in self._listeners:
            listener.close()
        for exchange in self._exchanges:
            exchange.connection.close()

    def _listen(self, address: Address) -> None:
        try:
            listener = _bound(address)
            listener.listen(_BACKLOG)
        except OSError as exc:
            hint = ""
            if exc.errno == errno.EADDRINUSE:
                hint = "; does another worker use it? Each worker needs its own address"
            raise CannotListen(f"cannot listen on {address}: {exc.strerror or exc}{hint}") from exc
        listener.setblocking(False)
        self._listeners.append(listener)
        if not address.path:
            address = address._replace(port=listener.getsockname()[1])
        self.bound.append(address)

    def _close_listeners(self) -> None:
        for listener, address in zip(self._listeners, self.bound, strict=True):
            listener.close()
            if address.path:
                with suppress(OSError):
                    os.unlink(address.path)
        self._listeners.clear()
        self.bound = []

    # --- serving thread ---------------------------------------------------------------------------

    def _serve(self, thread: NativeThread) -> None:
        while not thread.wait(self._pause_s(), *self._readable(), writable=self._writable()):
            self._accept_all()
            self._hand_out()
            for exchange in list(self._exchanges):
                self._go_on(exchange)
        for exchange in self._exchanges:
            exchange.connection.close()
        self._exchanges.clear()

    def _pause_s(self) -> float:
        now = self._clock()
        ends = [exchange.ends_s for exchange in self._exchanges]
        if now < self._accepts_from_s:
            ends.append(self._accepts_from_s)
        return max(0.0, min(ends) - now) if ends else _IDLE_S

    def _readable(self) -> Iterator[int]:
        if self._clock() >= self._accepts_from_s:
            yield from (listener.fileno() for listener in self._listeners)
        yield from (each.connection.fileno() for each in self._exchanges if each.is_reading)

    def _writable(self) -> list[int]:
        return [each.connection.fileno() for each in self._exchanges if each.rest]

    def _accept_all(self) -> None:
        for listener in self._listeners:
            try:
                # socket.accept would create a socket that needs the hub.
                number, _peer = listener._accept()  # noqa: SLF001
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                continue
            except OSError as exc:
                self._accepts_from_s = self._clock() + _REFUSED_S
                _log.warning("a connection for health or metrics was not accepted: %s", exc)
                continue
            connection = _socket.socket(fileno=number)
            connection.setblocking(False)
            if len(self._exchanges) >= MOST_CONNECTIONS:
                self._drop(self._exchanges[0])
            self._exchanges.append(_HttpExchange(connection, self._clock() + CLIENT_S))

    def _go_on(self, exchange: _HttpExchange) -> None:
        """Read or write as much as is possible now."""
        try:
            if exchange.is_reading and exchange.has_read():
                self._answer(exchange)
            if exchange.rest and exchange.has_written():
                self._drop(exchange)
            elif self._clock() >= exchange.ends_s:
                self._be_late(exchange)
        except BlockingIOError:
            if self._clock() >= exchange.ends_s:
                self._be_late(exchange)
        except OSError:
            # The client is gone.
            self._drop(exchange)

    def _be_late(self, exchange: _HttpExchange) -> None:
        if exchange.path is None or exchange.rest:
            self._drop(exchange)
        else:
            late = json_response(503, {"error": f"not computed within {ANSWER_S:g} s"})
            exchange.respond(late, self._clock() + CLIENT_S)

    def _drop(self, exchange: _HttpExchange) -> None:
        with suppress(OSError):
            # Closing with unread bytes would reset the connection and lose the answer.
            exchange.connection.recv(_CHUNK)
        exchange.connection.close()
        self._exchanges.remove(exchange)

    def _answer(self, exchange: _HttpExchange) -> None:
        request = exchange.request()
        if isinstance(request, Response):
            exchange.respond(request, self._clock() + CLIENT_S)
            return
        path = request
        if path in self._slow:
            exchange.path = path
            exchange.ends_s = self._clock() + ANSWER_S
            self._want(path)
            return
        compute = self._quick.get(path)
        if compute is None:
            paths = [*self._quick, *self._slow]
            response = json_response(404, {"error": "there is no such path", "paths": paths})
        else:
            response = _computed(path, compute)
        exchange.respond(response, self._clock() + CLIENT_S)

    def _want(self, path: str) -> None:
        if path in self._computing:
            return
        self._computing.add(path)
        self._wanted.append(path)
        if self._slow_thread is None:
            self._slow_thread = NativeThread(self._compute, name="greenq http answers")
        self._slow_thread.wake()

    def _hand_out(self) -> None:
        """Give computed answers to the connections that are waiting for them."""
        while self._computed:
            path, response = self._computed.popleft()
            self._computing.discard(path)
            for exchange in self._exchanges:
                if exchange.path == path and not exchange.rest:
                    exchange.respond(response, self._clock() + CLIENT_S)

    # --- thread of slow answers -------------------------------------------------------------------

    def _compute(self, thread: NativeThread) -> None:
        while True:
            while self._wanted:
                path = self._wanted.popleft()
                self._computed.append((path, _computed(path, self._slow[path])))
                if self._thread is not None:
                    self._thread.wake()
            if thread.wait(_IDLE_S):
                break
        if self._finish is not None:
            self._finish()


class _HttpExchange:
    """One connection: it reads a request, writes the answer, and is then closed.

    Attributes:
        connection: the socket, in non-blocking mode.
        ends_s: the latest time at which it is closed.
        path: the path of the slow answer that it is waiting for, or None.
        rest: the bytes left to write; empty while the request is being read or the answer computed.
    """

    __slots__ = ("_head", "_is_head_only", "connection", "ends_s", "path", "rest")

    def __init__(self, connection: _socket.socket, ends_s: float) -> None:
        self.connection = connection
        self.ends_s = ends_s
        self.path: str | None = None
        self.rest = memoryview(b"")
        self._head = bytearray()
        self._is_head_only = False

    @property
    def is_reading(self) -> bool:
        """True while the request is incomplete."""
        return self.path is None and not self.rest

    def has_read(self) -> bool:
        """Continue reading; return True when the request is complete or too long."""
        data = self.connection.recv(MOST_REQUEST_BYTES)
        if not data:
            raise ConnectionResetError
        self._head += data
        is_complete = b"\r\n\r\n" in self._head or b"\n\n" in self._head
        return is_complete or len(self._head) > MOST_REQUEST_BYTES

    def request(self) -> str | Response:
        """Return the requested path, or the error response if the request is not valid."""
        if len(self._head) > MOST_REQUEST_BYTES:
            return json_response(
                431, {"error": f"the request has more than {MOST_REQUEST_BYTES} bytes"}
            )
        words = bytes(self._head).split(b"\n", 1)[0].rstrip(b"\r").split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1.") or not words[1].startswith(b"/"):
            return json_response(400, {"error": "this is not an HTTP/1 request"})
        if words[0] not in (b"GET", b"HEAD"):
            return json_response(405, {"error": "only GET and HEAD are served"})
        self._is_head_only = words[0] == b"HEAD"
        return words[1].partition(b"?")[0].decode("ascii", "replace")

    def respond(self, response: Response, ends_s: float) -> None:
        """Prepare to write an answer."""
        status, body, content_type = response
        allow = "Allow: GET, HEAD\r\n" if status == 405 else ""
        head = (
            f"HTTP/1.1 {status} {_PHRASES[status]}\r\n{allow}Content-Type: {content_type}\r\n"
            f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        self.rest = memoryview(head.encode() + (b"" if self._is_head_only else body))
        self.ends_s = ends_s

    def has_written(self) -> bool:
        """Continue writing; return True when everything has been written."""
        while self.rest:
            self.rest = self.rest[self.connection.send(self.rest[:_CHUNK]) :]
        return True


def _forget(reference: weakref.ref[HttpServer]) -> None:
    server = reference()
    if server is not None:
        server.forget()


def _computed(path: str, compute: Callable[[], Response]) -> Response:
    try:
        return compute()
    except Exception as exc:
        _log.exception("%s could not be answered", path)
        return json_response(500, {"error": f"{type(exc).__name__}, see the worker's log"})


def _bound(address: Address) -> _socket.socket:
    if address.path:
        return _bound_at(address.path)
    found: Any = _socket.getaddrinfo(
        address.host, address.port, 0, _socket.SOCK_STREAM, 0, _socket.AI_PASSIVE
    )
    family, target = found[0][0], found[0][4]
    listener = _socket.socket(family, _socket.SOCK_STREAM)
    try:
        listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        listener.bind(target)
    except BaseException:
        listener.close()
        raise
    return listener


def _bound_at(path: str) -> _socket.socket:
    """Return a unix socket that only this user can connect to."""
    _remove_stale(path)
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(path)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener


def _remove_stale(path: str) -> None:
    """Remove the socket of a worker that was killed, unless a process is listening on it."""
    try:
        if not stat.S_ISSOCK(os.stat(path, follow_symlinks=False).st_mode):
            raise FileExistsError(errno.EEXIST, "a file with this name exists and is not a socket")
    except FileNotFoundError:
        return
    probe = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    probe.setblocking(False)
    try:
        probe.connect(path)
    except ConnectionRefusedError:
        os.unlink(path)
    except BlockingIOError:
        # A process is listening on the socket, and its queue of connections is full.
        pass
    finally:
        probe.close()
