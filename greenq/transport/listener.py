"""Listens to channels over one connection, for all callers in this process."""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
import time
from contextlib import contextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from greenq.errors import OperationalError
from greenq.utils.backoff import Backoff
from greenq.utils.log import OutageLog

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from greenq.transport.client import Client, Connection

_log = logging.getLogger(__name__)

_RETRY_MOST_S = 1.0

# A listening connection that does not answer for this long is considered dead.
_ANSWER_S = 2.0

# A thread without subscriptions checks at this interval whether it must end.
_IDLE_S = 60.0

# Callers unsubscribe when they have received what they waited for. Telling the server immediately
# would cost as much as the wait itself. So after a message, the thread first waits this long for
# further changes.
_LINGER_S = 0.1


# The maximum number of keys or channels in one command.
PORTION = 1000

T = TypeVar("T")


def portions(items: Iterable[T]) -> Iterator[list[T]]:
    """Split items into portions that are small enough for one command."""
    rest = iter(items)
    while portion := list(islice(rest, PORTION)):
        yield portion


class Heard(NamedTuple):
    """An item received by a caller.

    Attributes:
        channel: the channel that the item arrived on.
        payload: the published bytes; empty if the subscription has begun, or begun again.
    """

    channel: str
    payload: bytes


Ear = queue.SimpleQueue[Heard]


class ChannelListener:
    """Listens to channels over one connection, in one thread, for all callers in this process.

    Only the thread touches the socket (two threads must not read and write a TLS socket at once);
    callers signal the thread through a socket pair. After a reconnection, the thread asks every
    waiting caller to read the stored state again.
    """

    def __init__(self, client: Client, silence_s: float) -> None:
        """Prepare to listen; the connection and the thread start with the first wait.

        If nothing arrives for `silence_s` seconds, the thread checks the connection with a PING. If
        no reply comes within the client's timeout, it considers the connection dead.
        """
        self._client = client
        self._silence_s = silence_s
        self._lock = threading.Lock()
        # Only the thread uses the next two attributes: when the server last sent data (monotonic),
        # and whether that data was a message.
        self._heard_s = 0.0
        self._heard_message = False
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        # The lock protects the listeners of each channel, and the changes made since the
        # thread last checked.
        self._channels: dict[str, list[Ear]] = {}
        self._changes: list[tuple[str, ...]] = []
        self._thread: threading.Thread | None = None
        self._closing = False
        # True while the thread will check for changes by itself within _LINGER_S.
        self._lingers = False
        self._waker: socket.socket | None = None

    @contextmanager
    def listen(self, *channels: str) -> Iterator[Ear]:
        """Yield a queue of the messages published on these channels."""
        ear: Ear = queue.SimpleQueue()
        self.subscribe(ear, channels)
        try:
            yield ear
        finally:
            self.unsubscribe(ear, channels)

    def subscribe(self, ear: Ear, channels: Sequence[str]) -> None:
        """Put messages published on these channels into `ear`.

        When a subscription begins, `ear` also gets an empty payload for its channel.
        """
        with self._lock:
            if self._pid != os.getpid():
                self._reset()
            for channel in channels:
                self._channels.setdefault(channel, []).append(ear)
            # Subscribe even for a second listener: the server confirms again, and all listeners
            # read the stored state again.
            self._add_changes("SUBSCRIBE", channels)
            self._wake()

    def unsubscribe(self, ear: Ear, channels: Iterable[str]) -> None:
        """Stop putting messages from these channels into `ear`."""
        with self._lock:
            unused = []
            for channel in channels:
                # A forked process has dropped the subscriptions of its parent.
                ears = self._channels.get(channel, [])
                if ear in ears:
                    ears[:] = [each for each in ears if each is not ear]
                    if not ears:
                        del self._channels[channel]
                        unused.append(channel)
            self._add_changes("UNSUBSCRIBE", unused)
            if unused and not self._lingers:
                self._wake()

    def close(self) -> None:
        """End the thread and its connection."""
        with self._lock:
            self._closing = True
            if self._thread is not None:
                self._wake()

    def _add_changes(self, verb: str, channels: Iterable[str]) -> None:
        self._changes += [(verb, *portion) for portion in portions(channels)]

    def _wake(self) -> None:
        """Make the thread process the changes; start it if needed. The caller holds the lock."""
        if self._thread is None:
            self._waker, ours = socket.socketpair()
            self._waker.setblocking(False)
            ours.setblocking(False)
            self._closing = False
            self._thread = threading.Thread(
                target=self._run, args=(ours,), name="greenq results", daemon=True
            )
            self._thread.start()
        assert self._waker is not None
        # If the socket pair is full, the thread is about to wake anyway.
        with suppress(BlockingIOError):
            self._waker.send(b"!")

    def _run(self, wakeups: socket.socket) -> None:
        pauses = Backoff(0.05, _RETRY_MOST_S)
        outage = OutageLog(_log)
        connection = self._client.connection(timeout_s=_ANSWER_S)
        while not self._closing:
            try:
                self._resubscribe(connection)
                while not self._closing:
                    if self._turn(connection, wakeups):
                        pauses.reset()
                        outage.recovered("results are received again")
            except OperationalError as exc:
                connection.close()
                outage.failed("waiting for results is interrupted", exc)
                time.sleep(pauses.next_s())
        with self._lock:
            self._thread = None
            connection.close()
            wakeups.close()
            if self._waker is not None:
                self._waker.close()

    def _resubscribe(self, connection: Connection) -> None:
        with self._lock:
            self._changes.clear()
            channels = list(self._channels)
        if channels:
            connection.send([("SUBSCRIBE", *portion) for portion in portions(channels)])
        self._heard_s = time.monotonic()

    def _turn(self, connection: Connection, wakeups: socket.socket) -> bool:
        """Send the changes, then read the replies; return True if any arrived."""
        with self._lock:
            changes, self._changes = self._changes, []
            self._lingers = self._heard_message
        self._heard_message = False
        if changes:
            connection.send(changes)
        left_s = self._heard_s + self._silence_s - time.monotonic()
        if left_s <= 0 and connection.connected and self._channels:
            # If the server is dead, the read times out. New waits by callers in the meantime are no
            # sign that the connection works.
            connection.send([("PING",)])
            self._hear(connection.receive("PING"))
            return True
        wait_s = max(0.0, left_s) if self._channels else _IDLE_S
        if self._lingers:
            wait_s = min(wait_s, _LINGER_S)
        heard, woken = connection.wait_for_either(wakeups, wait_s)
        if woken:
            # A forked process that shares the socket pair may have been faster.
            with suppress(BlockingIOError):
                wakeups.recv(4096)
        if heard:
            self._hear(connection.receive("SUBSCRIBE"))
            while connection.has_read_ahead():
                self._hear(connection.receive("SUBSCRIBE"))
        return heard

    def _hear(self, answer: Any) -> None:
        """Pass a pub/sub message or confirmation to its listeners."""
        if isinstance(answer, OperationalError):
            raise answer
        self._heard_s = time.monotonic()
        kind, channel = answer[0], answer[1]
        if kind not in {b"message", b"subscribe"}:
            return
        heard = Heard(channel.decode(), answer[2] if kind == b"message" else b"")
        self._heard_message |= kind == b"message"
        with self._lock:
            for ear in self._channels.get(heard.channel, ()):
                ear.put(heard)
