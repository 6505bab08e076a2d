"""What is published to a worker: heard by the watch thread, dealt with in the hub's thread.

The thread has the subscriptions because it hears while the hub is blocked. Whatever it hears waits
for the hub in one queue; what the hub has not begun with after a moment, and what can be answered
without it, the thread answers itself.
"""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING

from greenq.errors import OperationalError
from greenq.log import Repeated
from greenq.transport.backlog import Backlog

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.hub import Hub
    from greenq.transport.client import Connection

    Handler = Callable[[bytes], object]
    # Returns how to answer a message over a connection, None for one that only the hub can answer.
    Urgent = Callable[[bytes], Callable[[Connection], object] | None]

_log = logging.getLogger(__name__)

# Messages that may wait for the hub, and their bytes; of more, the oldest are dropped.
_LETTERS = 10_000
_LETTERS_BYTES = 32 * 1024 * 1024


class _Channel:
    """One subscription: the channel, or the pattern if it ends in ``*``, and who is told."""

    __slots__ = ("handle", "name", "urgent")

    def __init__(self, name: str, handle: Handler, urgent: Urgent | None) -> None:
        self.name = name
        self.handle = handle
        self.urgent = urgent

    def has(self, channel: str) -> bool:
        if self.name.endswith("*"):
            return channel.startswith(self.name[:-1])
        return channel == self.name


class _Message:
    """One message on its way to its handler."""

    __slots__ = ("channel", "data", "heard_s", "offered")

    def __init__(self, channel: _Channel, data: bytes, heard_s: float) -> None:
        self.channel = channel
        self.data = data
        self.heard_s = heard_s
        # True when the thread has looked whether it can answer this.
        self.offered = channel.urgent is None


class Subscriber:
    """Hands what is published on channels to their handlers, in one greenlet, in order.

    1. `listen` and `ignore`, in the hub's thread, say what is to be heard.
    2. `attend`, in the watch thread, keeps the connection's subscriptions like that and reads.
    3. A handler that fails is logged and the next message goes on.
    """

    def __init__(self, hub: Hub, *, changed: Callable[[], object]) -> None:
        """Hear for `hub`; `changed` has the thread attend soon."""
        self._hub = hub
        self._changed = changed
        # Replaced as a whole, so that the thread may read it at any time.
        self._channels: tuple[_Channel, ...] = ()
        self._letters: Backlog[_Message] = Backlog(_LETTERS, _LETTERS_BYTES, _size)
        # Hub's thread only. `late_s`: how long what is dealt with at the moment had to wait.
        self._busy = False
        self.late_s = 0.0
        self._said_dropped = 0
        self._repeated = Repeated(_log)
        # Watch thread only.
        self._subscribed: set[str] = set()

    def subscribe(self, channel: str, handle: Handler, *, urgent: Urgent | None = None) -> None:
        """Have `handle` called with what is published on a channel, in a greenlet.

        Args:
            channel: its name; with a ``*`` at its end, a pattern.
            handle: may switch; the messages behind it wait.
            urgent: called in the watch thread when the hub seems blocked.
        """
        self.unsubscribe(channel)
        self._channels = (*self._channels, _Channel(channel, handle, urgent))
        self._changed()

    def unsubscribe(self, channel: str) -> None:
        """Hear a channel no longer."""
        self._channels = tuple(each for each in self._channels if each.name != channel)
        self._changed()

    @property
    def attentive(self) -> bool:
        """True when exactly what is to be heard is subscribed to; any thread may ask."""
        return {each.name for each in self._channels} == self._subscribed

    def has_waiting(self, channel: str) -> bool:
        """Tell whether something was heard on a channel that has not been dealt with yet."""
        return any(letter.channel.name == channel for letter in self._letters)

    # --- watch thread -----------------------------------------------------------------------------

    def reconnected(self) -> None:
        """Note that the connection is new and has no subscriptions."""
        self._subscribed.clear()

    def poll(self, connection: Connection) -> bool:
        """Subscribe to what is wanted, and queue what has been published; True if it may be urgent.

        Raises:
            OperationalError: the connection is lost, or this user may not listen.
        """
        channels = self._channels
        wanted = {each.name for each in channels}
        new, old = wanted - self._subscribed, self._subscribed - wanted
        # First, so that what is refused is asked for once.
        self._subscribed = wanted
        if old:
            connection.unsubscribe(*_by_kind(old))
        if new:
            connection.subscribe(*_by_kind(new))
        heard_s = time.monotonic()
        letters = [
            _Message(channel, message.data, heard_s)
            for message in connection.messages()
            for channel in channels
            if channel.has(message.channel)
        ]
        if letters:
            for letter in letters:
                self._letters.add(letter)
            self._hub.spawn_soon(self._deliver, name="subscriber")
        return any(not letter.offered for letter in letters)

    @property
    def oldest_s(self) -> float:
        """Since when a message waits for the hub that may be urgent, monotonic; infinite: none."""
        waiting = [each.heard_s for each in self._letters if not each.offered]
        return min(waiting, default=math.inf)

    def answer_urgent(self, connection: Connection) -> None:
        """Answer what waits for the hub, as far as that can be done without it.

        Raises:
            OperationalError: the connection is lost, or this user may not answer.
        """
        for letter in self._letters:
            if not letter.offered:
                letter.offered = True
                self._answer(letter, connection)

    def _answer(self, letter: _Message, connection: Connection) -> None:
        assert letter.channel.urgent is not None
        try:
            answer = letter.channel.urgent(letter.data)
            # Unless the hub has begun with it.
            if answer is not None and self._letters.remove(letter):
                answer(connection)
        except OperationalError:
            raise
        except Exception:
            # It must not cost the worker the thread that keeps its lease.
            _log.exception("what came on channel %s was not answered", letter.channel.name)

    # --- hub's thread -----------------------------------------------------------------------------

    def _deliver(self) -> None:
        if self._busy:
            return
        self._busy = True
        self._say_dropped()
        try:
            while self._letters:
                letter = self._letters.pop()
                self.late_s = time.monotonic() - letter.heard_s
                try:
                    letter.channel.handle(letter.data)
                except Exception:
                    _log.exception(
                        "what came on channel %s was not dealt with", letter.channel.name
                    )
        finally:
            self._busy = False

    def _say_dropped(self) -> None:
        """Say, here and not in the thread, which a log that is held up must not stop."""
        dropped = self._letters.dropped
        if dropped > self._said_dropped:
            self._repeated.say(
                "%d published messages were not heard: too many came while the hub was busy",
                dropped - self._said_dropped,
            )
            self._said_dropped = dropped


def _size(letter: _Message) -> int:
    return len(letter.data)


def _by_kind(names: set[str]) -> tuple[list[str], list[str]]:
    """Return channels and patterns."""
    patterns = sorted(name for name in names if name.endswith("*"))
    return sorted(names.difference(patterns)), patterns
