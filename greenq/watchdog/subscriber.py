"""Messages published to a worker, which the watchdog thread reads and the hub's thread handles.

The watchdog thread owns the subscriptions because it can read while the hub is blocked. It queues
the messages it reads for the hub. If the hub has not begun a message after a moment, the thread
answers that message, provided that this does not need the hub.
"""

from __future__ import annotations

import logging
import math
import time
from functools import partial
from typing import TYPE_CHECKING

from greenq.errors import OperationalError
from greenq.hub import Event
from greenq.transport.backlog import Backlog
from greenq.utils.log import Repeated

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.hub import Hub
    from greenq.transport.client import Connection

    Handler = Callable[[bytes], object]
    # Returns a function that answers a message over a connection; None means that only the hub can
    # answer it.
    Urgent = Callable[[bytes], Callable[[Connection], object] | None]

_log = logging.getLogger(__name__)

# How many messages may wait for the hub, and how many bytes; if more arrive, the oldest are
# dropped.
_WAITING = 10_000
_WAITING_BYTES = 32 * 1024 * 1024


class _Channel:
    """A subscription: a channel, or a pattern if it ends in ``*``, and its handlers."""

    __slots__ = ("handle", "name", "urgent")

    def __init__(self, name: str, handle: Handler, urgent: Urgent | None) -> None:
        self.name = name
        self.handle = handle
        self.urgent = urgent

    def has(self, channel: str) -> bool:
        if self.name.endswith("*"):
            return channel.startswith(self.name[:-1])
        return channel == self.name


class _Incoming:
    """A message on its way to its handler."""

    __slots__ = ("channel", "data", "offered", "read_s")

    def __init__(self, channel: _Channel, data: bytes, read_s: float) -> None:
        self.channel = channel
        self.data = data
        self.read_s = read_s
        # True once the watchdog thread has tried to answer this message, or if only the hub can.
        self.offered = channel.urgent is None


class Subscriber:
    """Passes messages published on channels to their handlers, in one greenlet, in order.

    1. `subscribe` and `unsubscribe`, in the hub's thread, select the channels.
    2. `poll`, in the watchdog thread, updates the connection's subscriptions and reads.
    3. If a handler fails, the error is logged, and the next message is handled.
    """

    def __init__(self, hub: Hub, *, changed: Callable[[], object]) -> None:
        """Handle messages in `hub`; `changed` makes the watchdog thread call `poll` soon."""
        self._hub = hub
        self._changed = changed
        # The tuple is replaced as a whole, so that the watchdog thread can read it at any time.
        self._channels: tuple[_Channel, ...] = ()
        self._waiting: Backlog[_Incoming] = Backlog(_WAITING, _WAITING_BYTES, _size)
        # Only the hub's thread uses these attributes. `late_s` is how long the message that is
        # being handled had to wait.
        self._busy = False
        self.late_s = 0.0
        self._logged_dropped = 0
        # Set once the server knows the channels, or has refused some.
        self._is_heard = Event()
        self._repeated = Repeated(_log)
        # Only the watchdog thread uses these two attributes.
        self._subscribed: set[str] = set()
        self._known: tuple[_Channel, ...] = ()

    def subscribe(self, channel: str, handle: Handler, *, urgent: Urgent | None = None) -> None:
        """Subscribe to a channel; `handle` is called in a greenlet with each message on it.

        Args:
            channel: its name, or a pattern that ends in ``*``.
            handle: may switch; the next messages wait until it returns.
            urgent: called in the watchdog thread when the hub seems to be blocked.
        """
        self.unsubscribe(channel)
        self._is_heard.clear()
        self._channels = (*self._channels, _Channel(channel, handle, urgent))
        self._changed()

    def unsubscribe(self, channel: str) -> None:
        """Stop reading a channel."""
        self._channels = tuple(each for each in self._channels if each.name != channel)
        self._changed()

    def wait_heard(self, timeout_s: float) -> None:
        """Wait until the server knows the channels, or has refused some. Switches: yes."""
        self._is_heard.wait(timeout_s)

    def has_waiting(self, channel: str) -> bool:
        """Return whether a message on a channel was read but has not been handled yet."""
        return any(message.channel.name == channel for message in self._waiting)

    # --- watchdog thread --------------------------------------------------------------------------

    def reconnected(self) -> None:
        """Record that the connection is new and has no subscriptions."""
        self._subscribed.clear()

    def poll(self, connection: Connection) -> bool:
        """Update the subscriptions and queue published messages; return True if any may be urgent.

        Raises:
            OperationalError: the connection is lost, or this user is not allowed to subscribe.
        """
        channels = self._channels
        wanted = {each.name for each in channels}
        new, old = wanted - self._subscribed, self._subscribed - wanted
        # Set this first, so that a refused subscription is tried only once.
        self._subscribed = wanted
        try:
            if old:
                connection.unsubscribe(*_by_kind(old))
            if new:
                connection.subscribe(*_by_kind(new))
        finally:
            if channels is not self._known:
                self._known = channels
                self._hub.spawn_soon(partial(self._note_heard, channels), name="subscriber")
        read_s = time.monotonic()
        messages = [
            _Incoming(channel, message.data, read_s)
            for message in connection.messages()
            for channel in channels
            if channel.has(message.channel)
        ]
        if messages:
            for message in messages:
                self._waiting.add(message)
            self._hub.spawn_soon(self._deliver, name="subscriber")
        return any(not message.offered for message in messages)

    @property
    def oldest_s(self) -> float:
        """When the oldest message that may be urgent was read (monotonic); infinity without one."""
        waiting = [each.read_s for each in self._waiting if not each.offered]
        return min(waiting, default=math.inf)

    def answer_urgent(self, connection: Connection) -> None:
        """Answer the waiting messages that do not need the hub.

        Raises:
            OperationalError: the connection is lost, or this user is not allowed to answer.
        """
        for message in self._waiting:
            if not message.offered:
                message.offered = True
                self._answer(message, connection)

    def _answer(self, message: _Incoming, connection: Connection) -> None:
        assert message.channel.urgent is not None
        try:
            answer = message.channel.urgent(message.data)
            # Remove the message only if the hub has not begun it.
            if answer is not None and self._waiting.remove(message):
                answer(connection)
        except OperationalError:
            raise
        except Exception:
            # An error must not stop the thread that renews the lease.
            _log.exception("a message on channel %s was not answered", message.channel.name)

    # --- hub's thread -----------------------------------------------------------------------------

    def _note_heard(self, channels: tuple[_Channel, ...]) -> None:
        if channels is self._channels:
            self._is_heard.set()

    def _deliver(self) -> None:
        if self._busy:
            return
        self._busy = True
        self._log_dropped()
        try:
            while self._waiting:
                message = self._waiting.pop()
                self.late_s = time.monotonic() - message.read_s
                try:
                    message.channel.handle(message.data)
                except Exception:
                    _log.exception("a message on channel %s was not handled", message.channel.name)
        finally:
            self._busy = False

    def _log_dropped(self) -> None:
        """Log drops in the hub's thread: a blocked log must not stop the watchdog thread."""
        dropped = self._waiting.dropped
        if dropped > self._logged_dropped:
            self._repeated.log(
                "%d published messages were dropped: too many arrived while the hub was busy",
                dropped - self._logged_dropped,
            )
            self._logged_dropped = dropped


def _size(message: _Incoming) -> int:
    return len(message.data)


def _by_kind(names: set[str]) -> tuple[list[str], list[str]]:
    """Return the channels and the patterns."""
    patterns = sorted(name for name in names if name.endswith("*"))
    return sorted(names.difference(patterns)), patterns
