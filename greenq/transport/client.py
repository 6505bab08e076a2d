"""The only module that uses redis-py: addresses, connections, commands, scripts, error translation.

1. `Client` has one server address and a small pool of connections for callers that only run a
   command. A caller waits if no connection is free.
2. `Connection` is one socket, used by one greenlet or thread at a time. A pipeline is one write and
   one batch of reads, and scripts are sent by their SHA.
3. redis-py's errors are translated only here; the original error is chained as the cause.

redis-py's own pool and pipeline are not used. Its pool polls the socket at each checkout, and its
pipeline wraps each command in three objects; together they cost more than the command itself.
"""

from __future__ import annotations

import hashlib
import math
import os
import queue
import re
import select
import socket
import ssl
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import hiredis
import redis
from redis import exceptions as redis_errors
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry

from greenq.config.validators import mask_url
from greenq.errors import (
    AccessRefused,
    ConnectFailed,
    ConnectionLost,
    OperationalError,
    ServerError,
    TransportTimeout,
)
from greenq.transport.backlog import Backlog
from greenq.transport.embedded.keeper import NotPrivate, require_own_server, require_private

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Command = tuple[Any, ...]

# A pooled connection that has been idle for this long is checked before use: a restarted server has
# closed it, and a command that has not been sent yet can safely use a new connection.
RESTED_S = 1.0

# The shortest timeout of a socket, for which 0 would mean non-blocking.
_LEAST_S = 0.001

# How long to probe a server without TLS after TLS has failed.
_PROBE_S = 1.0

_SCHEMES = {
    "redis": "redis",
    "rediss": "rediss",
    "valkey": "redis",
    "valkeys": "rediss",
    "unix": "unix",
    "redis+socket": "unix",
    "socket": "unix",
}


class Script(NamedTuple):
    """A Lua script, and its SHA1, by which the server knows it."""

    name: str
    source: str
    sha: str


def load_script(name: str) -> Script:
    """Load the script ``lua/<name>.lua`` of this package."""
    source = resources.files("greenq.transport").joinpath("lua", f"{name}.lua").read_text("utf-8")
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


@dataclass(slots=True)
class Traffic:
    """Counts of a process's traffic to one server; a round trip is a write and its replies."""

    commands: int = 0
    round_trips: int = 0


class Push(NamedTuple):
    """An out-of-band message from the server, as opposed to a reply to a command."""

    kind: str


_INVALIDATE = Push("invalidate")
_MESSAGE = Push("message")


class Published(NamedTuple):
    """A message published on a channel that a connection is subscribed to."""

    channel: str
    data: bytes


# How many messages and bytes a connection keeps for its holder; if more arrive, it drops the
# oldest messages.
_KEPT_COUNT = 10_000
_KEPT_BYTES = 32 * 1024 * 1024


def _size_of(message: Published) -> int:
    return len(message.data)


class Connection:
    """One connection to the server, for one greenlet or thread at a time.

    The socket is opened on first use, and again after a failure; a forked process gets its own.
    Switches: yes, in every method.
    """

    __slots__ = (
        "_client", "_limit_s", "_link", "_pid", "_published", "_traffic", "changed", "ends_s",
        "noticed", "number", "poll", "pushes", "used_at", "watched",
    )  # fmt: skip

    def __init__(self, client: Client, link: Any, *, pushes: bool = False) -> None:
        """Wrap redis-py's `link`; if `pushes` is true, pass on out-of-band messages."""
        self._published: Backlog[Published] = Backlog(_KEPT_COUNT, _KEPT_BYTES, _size_of)
        self._client = client
        self._link = link
        self._pid = os.getpid()
        self._traffic = client.traffic
        # The socket's time limit, if `send` has set one.
        self._limit_s = 0.0
        self.pushes = pushes
        # With pushes, this is True if the server has announced a change since `noticed` was last
        # set to False. It is also True on a new socket, on which earlier changes were not
        # announced.
        self.noticed = False
        # `changed` is the same for a single key, `watched`, which the connection's holder sets.
        self.watched: str | None = None
        self.changed = False
        # The server's id of this connection, for CLIENT UNBLOCK; None until `identify`.
        self.number: int | None = None
        self.used_at = time.monotonic()
        # How the connection's holder waits for input: a function of (descriptor, seconds) that
        # returns whether the descriptor is readable. A thread alongside the hub uses a cheap
        # function of its own; if this is None, the socket's own timeout is used.
        self.poll: Callable[[int, float], bool] | None = None
        # The deadline of the current operation (monotonic); None means that each read has its own
        # limit.
        self.ends_s: float | None = None

    @property
    def connected(self) -> bool:
        """True while a socket is open."""
        return bool(self._link.is_connected)

    def connect(self) -> bool:
        """Open the socket if it is closed; return True if it had to be opened.

        Raises:
            ConnectFailed, AccessRefused, OperationalError: the text includes the address, but never
                the password.
        """
        if self._pid != os.getpid():
            # The socket is the parent's, so drop it without closing it for the parent.
            self._link = self._client.make_link(pushes=self.pushes)
            self._pid = os.getpid()
        if self._link.is_connected:
            return False
        own_socket = self._client.prepare()
        link = self._link
        if own_socket is not None:
            link.path = own_socket
        limits = link.socket_connect_timeout, link.socket_timeout
        if self.ends_s is not None:
            left_s = self._left_s("connect")
            link.socket_connect_timeout = min(limits[0], left_s)
            link.socket_timeout = min(limits[1], left_s)
            # Each reply of the handshake may use the time that the earlier replies have left.
            link.read_response = partial(self._read_in_time, link.read_response)
        try:
            link.connect()
        except Exception as exc:
            if self._client.is_plain_not_tls(exc):
                raise ConnectFailed(
                    f"{self._client.address} answers, but not over TLS; did you mean redis://?"
                ) from exc
            raise _translate(exc, "connect", self._client.address, connecting=True) from exc
        except BaseException:
            # The greenlet was killed during the handshake. Close the socket, or the next caller
            # would read the remaining replies of the handshake.
            self.close()
            raise
        finally:
            link.socket_connect_timeout, link.socket_timeout = limits
            vars(link).pop("read_response", None)
        if own_socket is not None:
            self._require_own_server()
        if self.pushes:
            parser = self._link._get_parser()  # noqa: SLF001  redis-py has no public way
            parser.set_invalidation_push_handler(self._notice)
            parser.set_pubsub_push_handler(self._keep)
        self._limit_s = 0.0
        self._published.take_all()
        self.noticed = self.changed = self.pushes
        self.number = None
        return True

    def _read_in_time(self, read: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Read a reply of the handshake within the remaining time."""
        assert self.ends_s is not None
        left_s = max(_LEAST_S, self.ends_s - time.monotonic())
        self._link._sock.settimeout(left_s)  # noqa: SLF001  redis-py has no public way to it
        return read(*args, **options)

    def _require_own_server(self) -> None:
        """Check, before any message is sent, that the user's own embedded server answers.

        Raises:
            AccessRefused: the server is another user's process.
        """
        try:
            require_own_server(self._link._get_socket())  # noqa: SLF001  no public way to it
        except NotPrivate as exc:
            self.close()
            raise AccessRefused(f"{self._client.address}: {exc}") from exc

    def _limit(self, left_s: float) -> None:
        """Limit each read and write on the socket to about `left_s` seconds."""
        # Each change is a system call, so a limit that is only a little too long is kept.
        if not 0.9 * self._limit_s <= left_s <= self._limit_s:
            self._limit_s = 1.05 * left_s
            self._link._sock.settimeout(self._limit_s)  # noqa: SLF001  redis-py has no public way

    def _left_s(self, name: str) -> float:
        """Return how much time is left for a call with a deadline.

        Raises:
            ConnectFailed: no time is left; nothing has been sent.
        """
        assert self.ends_s is not None
        left_s = self.ends_s - time.monotonic()
        if left_s <= 0:
            raise ConnectFailed(f"{self._client.address}: no time was left for {name}")
        return left_s

    def identify(self) -> None:
        """Ask the server for its id of this connection, unless the id is known."""
        self.connect()
        if self.number is None:
            self.number = self.call("CLIENT", "ID")

    def _notice(self, message: list[Any]) -> Push:
        self.noticed = True
        keys = message[1]
        # A message without keys means that the server has lost all its keys.
        if self.watched is not None and (keys is None or self.watched.encode() in keys):
            self.changed = True
        return _INVALIDATE

    def _keep(self, push: list[Any]) -> Push:
        """Keep a published message; drop the confirmation of a subscription."""
        if push[0] in (b"message", b"pmessage"):
            self._published.add(Published(push[-2].decode(errors="replace"), push[-1]))
        return _MESSAGE

    def subscribe(self, channels: Sequence[str] = (), patterns: Sequence[str] = ()) -> None:
        """Start receiving messages on channels given by name or by glob pattern.

        This needs a connection created with `pushes`; such a connection can still carry out
        commands. A new socket has no subscriptions.

        Raises:
            AccessRefused: this user is not allowed to subscribe to one of the channels; the
                connection stays usable.
        """
        # Subscribe one by one, since a user may be refused one channel and allowed another.
        self._announce(
            [
                *(("SUBSCRIBE", channel) for channel in channels),
                *(("PSUBSCRIBE", pattern) for pattern in patterns),
            ]
        )

    def unsubscribe(self, channels: Sequence[str] = (), patterns: Sequence[str] = ()) -> None:
        """Stop receiving messages from these channels and patterns."""
        self._announce([("UNSUBSCRIBE", *channels), ("PUNSUBSCRIBE", *patterns)])

    def _announce(self, commands: Sequence[Command]) -> None:
        """Carry out commands whose success is confirmed only by pushes."""
        named = [command for command in commands if len(command) > 1]
        if not named:
            return
        self.send([*named, ("PING",)])
        refusal = None
        # Any reply before the last one is a refusal.
        while isinstance(answer := self.receive(named[0][0]), OperationalError):
            refusal = refusal or answer
        if isinstance(refusal, AccessRefused):
            # The server does not say which of the channels it refused.
            channels = [f"&{channel}" for _name, *them in named for channel in them]
            raise _add_lacking_right(refusal, " or ".join(channels))
        if refusal is not None:
            raise refusal

    def messages(self, timeout_s: float = 0.0) -> list[Published]:
        """Return the published messages, oldest first; if there are none, wait for the first.

        Return an empty list after the timeout. The list is also empty if the server has disappeared
        without closing the connection, so send a `PING` from time to time.

        Raises:
            ConnectionLost: the server has hung up; messages published before the next subscription
                are missed.
        """
        ends_s = time.monotonic() + timeout_s
        wait_s = timeout_s
        while not self._published.full and self._can_read(0.0 if self._published else wait_s):
            self.receive("SUBSCRIBE", push=True)
            wait_s = max(0.0, ends_s - time.monotonic())
        return self._published.take_all()

    def check_rested(self) -> None:
        """Drop the socket if it was idle for a while and the server has closed it."""
        if self._link.is_connected and time.monotonic() - self.used_at > RESTED_S:
            try:
                stale = self._link.can_read(timeout=0)
            except Exception:
                # Whatever the problem is, a new socket solves it.
                stale = True
            if stale:
                self.close()

    def call(self, *command: Any) -> Any:
        """Carry out one command and return its reply."""
        return self.pipeline((command,))[0]

    def script(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run a script by its SHA; send its source if the server does not know the script yet."""
        try:
            return self.call("EVALSHA", script.sha, len(keys), *keys, *args)
        except ServerError as exc:
            if not exc.reply.startswith("NOSCRIPT"):
                raise
            return self.call("EVAL", script.source, len(keys), *keys, *args)

    def pipeline(self, commands: Sequence[Command], *, optional: int = 0) -> list[Any]:
        """Carry out commands in one round trip and return their replies.

        All replies are read before the first error, if any, is raised, so the connection stays
        usable.

        Args:
            commands: the commands to carry out.
            optional: the number of commands at the end that may fail; for these, an error is
                returned in place of a reply.

        Raises:
            ServerError, AccessRefused: the server refused a command.
            ConnectionLost: the connection broke; any part of the pipeline may have been carried
                out.
        """
        answers = self.try_pipeline(commands)
        for answer in answers[: len(answers) - optional]:
            if isinstance(answer, OperationalError):
                raise answer
        return answers

    def try_pipeline(self, commands: Sequence[Command]) -> list[Any]:
        """Do the same as `pipeline`, but return the error of a refused command as its reply."""
        self.send(commands)
        return [_add_right(self.receive(command[0]), command) for command in commands]

    def send(self, commands: Sequence[Command]) -> None:
        """Write commands without waiting for the replies."""
        self.connect()
        if self.ends_s is not None:
            self._limit(self._left_s(str(commands[0][0])))
        self._traffic.commands += len(commands)
        self._traffic.round_trips += 1
        try:
            # redis-py packs with the same function, but first copies the arguments one by one.
            packed = b"".join(map(hiredis.pack_command, commands))
            self._link.send_packed_command([packed], check_health=False)
        except Exception as exc:
            self.close()
            raise _translate(exc, str(commands[0][0]), self._client.address) from exc
        except BaseException:
            # The greenlet was killed after writing only part of the commands.
            self.close()
            raise

    def receive(self, name: str, *, push: bool = False, timeout_s: float | None = None) -> Any:
        """Read the next reply, or the next push if `push` is true; `timeout_s` limits this read.

        A refused command's error is returned; the error of a broken connection is raised.
        """
        read = self._link.read_response
        if timeout_s is not None:
            read = partial(read, timeout=timeout_s)
        try:
            if self.poll is not None:
                self._await_input(self._link.socket_timeout if timeout_s is None else timeout_s)
            if self.pushes:
                answer = read(push_request=True)
                while isinstance(answer, Push) and not push:
                    answer = read(push_request=True)
            else:
                answer = read()
        except redis_errors.ResponseError as exc:
            # A refusal is a complete reply, so the connection stays usable.
            return _translate(exc, name, self._client.address)
        except (Exception, redis_errors.RedisError) as exc:
            self.close()
            raise _translate(exc, name, self._client.address) from exc
        except BaseException:
            # The greenlet was killed before its reply arrived. Close the socket, or the next caller
            # would read that reply.
            self.close()
            raise
        self.used_at = time.monotonic()
        return answer

    def _await_input(self, timeout_s: float) -> None:
        """Wait until there is data to read.

        Raises:
            TimeoutError: no data arrived in time.
        """
        if not self._has_input(timeout_s):
            raise TimeoutError("nothing arrived in time")

    def _has_input(self, timeout_s: float) -> bool:
        """Wait with `poll` until there is data to read or the socket is closed."""
        if not self.connected or self.has_read_ahead():
            return True
        assert self.poll is not None
        return self.poll(self.fileno(), timeout_s)

    def has_read_ahead(self) -> bool:
        """Return whether this process has read data that no caller has received yet."""
        link = self._link
        if self._published or not link.is_connected:
            return bool(self._published)
        parser, sock = link._get_parser(), link._get_socket()  # noqa: SLF001  as above
        reader = getattr(parser, "_reader", None)
        if reader is None or reader.has_data():
            return True
        # Bytes that TLS has already decrypted are no longer visible on the socket.
        pending = getattr(sock, "pending", None)
        return pending is not None and bool(pending())

    def has_answer(self) -> bool:
        """Return whether data can be read without waiting, or arrived with an earlier reply.

        Raises:
            ConnectionLost: the server has hung up.
        """
        return bool(self._published) or (self.connected and self._can_read(0.0))

    def _can_read(self, timeout_s: float) -> bool:
        """Wait until data can be read; return False after the timeout or without a socket.

        Raises:
            ConnectionLost: the server has hung up.
        """
        if not self.connected:
            return False
        try:
            if self.poll is not None:
                if not self._has_input(timeout_s):
                    return False
                timeout_s = 0.0
            return bool(self._link.can_read(timeout=timeout_s))
        except Exception as exc:
            self.close()
            raise _translate(exc, "read", self._client.address) from exc

    def fileno(self) -> int:
        """Return the socket's descriptor, for polling; -1 if no socket is open."""
        if not self.connected:
            return -1
        number: int = self._link._get_socket().fileno()  # noqa: SLF001  redis-py has no public way
        return number

    def wait_for_either(self, other: socket.socket, timeout_s: float) -> tuple[bool, bool]:
        """Wait until this connection, if open, or `other` is readable; return which of them are."""
        if self.has_read_ahead():
            return True, False
        poll = select.poll()
        poll.register(other, select.POLLIN)
        if self.connected:
            poll.register(self.fileno(), select.POLLIN)
        ready = {number for number, _events in poll.poll(timeout_s * 1000)}
        awake = other.fileno() in ready
        return len(ready) > awake, awake

    def close(self) -> None:
        """Close the socket; the next use opens a new one."""
        if self._pid == os.getpid():
            self._link.disconnect()


def nothing() -> None:
    """Do nothing, because the server is not embedded."""


def own_socket(url: str) -> str:
    """Return the path of the embedded server's socket in `url`, without starting the server.

    Raises:
        NotPrivate: others could replace the socket.
    """
    path = unquote(urlsplit(url).path)
    require_private(Path(path).parent)
    return path


class Client:
    """One server, and a few pooled connections to it, shared by all greenlets and threads."""

    def __init__(
        self,
        url: str,
        *,
        pool_limit: int = 10,
        connect_timeout_s: float = 2.0,
        timeout_s: float = 3.0,
        keepalive: bool = True,
        name: str = "greenq",
        prepare: Callable[[], str | None] = nothing,
    ) -> None:
        """Prepare for the server at `url`; nothing is opened yet.

        Args:
            url: ``redis://``, ``rediss://``, ``unix://`` or Celery's forms of these.
            pool_limit: how many connections `call` and similar methods share.
            connect_timeout_s: how long opening a connection may take.
            timeout_s: how long one read or write may take. A call on a pooled connection may take
                the sum of both timeouts; it may wait longer for a free connection while other calls
                succeed.
            keepalive: use TCP keepalive on every socket.
            name: shown in the server's ``CLIENT LIST``.
            prepare: called before each connection attempt; ensures that an embedded server
                runs, and returns the path of its socket, on which only a process of this user may
                answer.
        """
        self.address = mask_url(url)
        # The URL includes the password, so never show it.
        self.url = url
        self.is_embedded = prepare is not nothing
        self.traffic = Traffic()
        self.prepare = prepare
        self.call_timeout_s = connect_timeout_s + timeout_s
        self._settings: dict[str, Any] = {
            "socket_timeout": timeout_s,
            "socket_connect_timeout": connect_timeout_s,
            "retry": Retry(NoBackoff(), 0),
            "client_name": name,
        }
        parts = urlsplit(url)
        if parts.scheme not in _SCHEMES:
            known = ", ".join(f"{scheme}://" for scheme in _SCHEMES)
            raise ValueError(f"{self.address}: not a server address; use one of {known}")
        if _SCHEMES[parts.scheme] != "unix":
            self._settings["socket_keepalive"] = keepalive
        self._url = _redis_py_url(url)
        self._pool_limit = pool_limit
        self._lock = threading.Lock()
        # When a call on a pooled connection last succeeded, monotonic.
        self._answered_s = -math.inf
        self._reset()

    def is_plain_not_tls(self, failure: Exception) -> bool:
        """Return whether connecting over TLS failed because the server does not use TLS.

        Such a server takes the handshake for a command, and waits for the end of that command.
        """
        parts = urlsplit(self.url)
        if _SCHEMES[parts.scheme] != "rediss" or isinstance(failure, redis_errors.ResponseError):
            return False
        if not isinstance(failure, (redis_errors.TimeoutError, TimeoutError, ssl.SSLError)) and (
            "SSL" not in str(failure)
        ):
            return False
        address = (parts.hostname or "localhost", parts.port or 6379)
        try:
            with socket.create_connection(address, _PROBE_S) as probe:
                probe.settimeout(_PROBE_S)
                probe.sendall(b"PING\r\n")
                return probe.recv(1) in (b"+", b"-")
        except OSError:
            return False

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._idle: queue.LifoQueue[Connection | None] = queue.LifoQueue()
        for _ in range(self._pool_limit):
            self._idle.put(None)

    def make_link(self, *, pushes: bool = False, timeout_s: float | None = None) -> Any:
        """Create a redis-py connection without opening it; if `pushes` is true, it uses RESP3."""
        settings = dict(self._settings, protocol=3 if pushes else 2)
        if timeout_s is not None:
            settings["socket_timeout"] = timeout_s
            settings["socket_connect_timeout"] = min(timeout_s, settings["socket_connect_timeout"])
        return redis.ConnectionPool.from_url(self._url, **settings).make_connection()

    def connection(self, *, pushes: bool = False, timeout_s: float | None = None) -> Connection:
        """Return a connection outside the pool for one holder; `timeout_s` limits each read."""
        return Connection(self, self.make_link(pushes=pushes, timeout_s=timeout_s), pushes=pushes)

    @contextmanager
    def pooled(
        self, timeout_s: float | None = None, *, patient: bool = False
    ) -> Iterator[Connection]:
        """Lend a pooled connection for `timeout_s`, by default `call_timeout_s`.

        If all connections are in use, wait for one. If `patient` is true or no `timeout_s` is
        given, the time starts again whenever any caller's call succeeds. So hundreds of tasks that
        send at the same time in a busy process wait for one another, and no call fails while the
        server answers.

        Raises:
            ConnectFailed: no connection became free in time.
        """
        patient = patient or timeout_s is None
        limit_s = self.call_timeout_s if timeout_s is None else timeout_s
        ends_s = time.monotonic() + limit_s
        if self._pid != os.getpid():
            with self._lock:
                if self._pid != os.getpid():
                    self._reset()
        idle = self._idle
        try:
            connection = idle.get(block=False)
        except queue.Empty:
            connection, ends_s = self._wait_for_idle(ends_s, limit_s, patient=patient)
        connection = connection or self.connection()
        try:
            connection.ends_s = ends_s
            connection.check_rested()
            yield connection
            self._answered_s = time.monotonic()
        finally:
            idle.put(connection)

    def _wait_for_idle(
        self, ends_s: float, limit_s: float, *, patient: bool
    ) -> tuple[Connection | None, float]:
        """Wait until another caller returns a connection; return it, and when its use must end.

        Raises:
            ConnectFailed: no connection was returned in time; if `patient`, no call has succeeded
                for `limit_s` either.
        """
        while True:
            try:
                connection = self._idle.get(timeout=max(0.0, ends_s - time.monotonic()))
            except queue.Empty:
                if patient and self._answered_s + limit_s > time.monotonic():
                    ends_s = self._answered_s + limit_s
                    continue
                raise ConnectFailed(
                    f"{self.address}: all {self._pool_limit} connections (broker_pool_limit) are "
                    "in use"
                ) from None
            # If the server has not answered for a long time, the use ends immediately with an
            # error.
            return connection, max(ends_s, self._answered_s + limit_s) if patient else ends_s

    def call(self, *command: Any, timeout_s: float | None = None, patient: bool = False) -> Any:
        """Carry out one command on a pooled connection."""
        with self.pooled(timeout_s, patient=patient) as connection:
            return connection.call(*command)

    def pipeline(
        self, commands: Sequence[Command], *, optional: int = 0, timeout_s: float | None = None
    ) -> list[Any]:
        """Carry out commands on a pooled connection, like `Connection.pipeline`."""
        with self.pooled(timeout_s) as connection:
            return connection.pipeline(commands, optional=optional)

    def script(
        self,
        script: Script,
        keys: Sequence[str],
        args: Sequence[Any],
        *,
        timeout_s: float | None = None,
        patient: bool = False,
    ) -> Any:
        """Run a script on a pooled connection."""
        with self.pooled(timeout_s, patient=patient) as connection:
            return connection.script(script, keys, args)

    def close(self) -> None:
        """Close the pooled connections that are not in use."""
        # Take out all connections before returning the first, since the pool hands out first what
        # was returned last.
        resting: list[Connection | None] = []
        with suppress(queue.Empty):
            while True:
                resting.append(self._idle.get_nowait())
        for connection in resting:
            if connection is not None:
                connection.close()
            self._idle.put(connection)


def database_of(url: str) -> int:
    """Return the database number in a server address; 0 if the address has none."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    named = query.get("db") or query.get("virtual_host")
    if named is None and _SCHEMES.get(parts.scheme) != "unix":
        named = parts.path.strip("/")
    try:
        return int((named or "0").strip("/") or 0)
    except ValueError:
        raise ValueError(f"{mask_url(url)}: the database must be a number, not {named!r}") from None


def _redis_py_url(url: str) -> str:
    """Return an address in the form that redis-py reads, with the database in the query."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    query.pop("virtual_host", None)
    query["db"] = str(database_of(url))
    scheme = _SCHEMES[parts.scheme]
    path = parts.path if scheme == "unix" else ""
    return f"{scheme}://{parts.netloc}{path}?{urlencode(query)}"


# The fields that suffice to open a connection without TLS or options.
_PLAIN = frozenset({"host", "port", "path", "username", "password", "db"})


def plain_address(url: str) -> dict[str, Any] | None:
    """Return the fields of `_PLAIN` in an address, or None if it needs others, such as for TLS."""
    found: dict[str, Any] = parse_url(_redis_py_url(url))  # type: ignore[no-untyped-call]
    kind = found.pop("connection_class", redis.Connection)
    if issubclass(kind, redis.SSLConnection) or not found.keys() <= _PLAIN:
        return None
    return found if "path" in found else {"host": "localhost", "port": 6379, **found}


# redis-py strips the error code from the replies that it has an error class for. Subclasses come
# before their base classes.
_CODES = (
    (redis_errors.NoScriptError, "NOSCRIPT "),
    (redis_errors.OutOfMemoryError, "OOM "),
    (redis_errors.ReadOnlyError, "READONLY "),
    (redis_errors.MasterDownError, "MASTERDOWN "),
    (redis_errors.ClusterDownError, "CLUSTERDOWN "),
    (redis_errors.TryAgainError, "TRYAGAIN "),
    (redis_errors.ExecAbortError, "EXECABORT "),
    (redis_errors.BusyLoadingError, "LOADING "),
    (redis_errors.ClusterCrossSlotError, "CROSSSLOT "),
    (redis_errors.MovedError, "MOVED "),
    (redis_errors.AskError, "ASK "),
)


# How a server words a refusal within a script: from version 7 on, and before that.
_ACL_IN_SCRIPT = ("ACL failure in script", "The user executing the script can't")

# Before version 7, a server wraps the refusal of a script's command in a text of its own.
_IN_SCRIPT = re.compile(r"Error running script.*? -([A-Z]+ .*)", re.DOTALL)


def _reply(exc: Exception, text: str) -> str:
    """Return the server's reply, preceded by its code, which redis-py may have stripped."""
    inner = _IN_SCRIPT.search(text)
    if inner is not None:
        return inner[1]
    return next((code for kind, code in _CODES if isinstance(exc, kind)), "") + text


def _add_right(answer: Any, command: Command) -> Any:
    """Return a reply; if it refuses the command, add the permission that the user lacks."""
    if not isinstance(answer, AccessRefused):
        return answer
    return _add_lacking_right(answer, _right(command, str(answer)))


def _add_lacking_right(refusal: AccessRefused, right: str) -> AccessRefused:
    return AccessRefused(f"{refusal}; the user lacks {right}")


def _right(command: Command, reason: str) -> str:
    """Return the permission needed for a refused command, in ACL notation."""
    name = str(command[0])
    if "to access" in reason or "to use" in reason:
        if "channel" in reason:
            return f"&{command[1]}"
        if name in ("EVALSHA", "EVAL"):
            return "one of " + " ".join(f"~{key}" for key in command[3 : 3 + int(command[2])])
        return f"~{command[1]}"
    has_parts = name in ("CLIENT", "SCRIPT", "ACL") and len(command) > 1
    return f"+{name}|{command[1]}".lower() if has_parts else f"+{name}".lower()


def _translate(
    exc: Exception, command: str, address: str, *, connecting: bool = False
) -> OperationalError:
    """Translate an error of redis-py or of the socket."""
    text = str(exc) or type(exc).__name__
    match exc:
        case redis_errors.AuthenticationError() | redis_errors.AuthorizationError():
            return AccessRefused(f"{address} refuses the user name or password: {text}")
        case redis_errors.NoPermissionError():
            return AccessRefused(f"{address}: {command} is not allowed for this user: {text}")
        case redis_errors.ResponseError() if any(mark in text for mark in _ACL_IN_SCRIPT):
            return AccessRefused(f"{address}: {command} is not allowed for this user: {text}")
        case redis_errors.ResponseError() | redis_errors.BusyLoadingError():
            return ServerError(command, _reply(exc, text))
    if connecting:
        return ConnectFailed(f"cannot reach {address}: {text.rstrip('.')}; is the server running?")
    if isinstance(exc, (redis_errors.TimeoutError, TimeoutError)):
        return TransportTimeout(f"{address} did not answer {command} in time")
    return ConnectionLost(f"lost the connection to {address} during {command}: {text}")
