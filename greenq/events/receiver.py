"""Events for programs: receiving and sending them, and keeping track of workers and tasks.

    receiver = app.events.Receiver({"task-failed": note, "*": state.event})
    receiver.capture(limit=None, timeout=None, wakeup=True)

The names are those of ``app.events`` in Celery, so code for one library also runs with the other.
Events may come from anyone who is allowed to publish on the server, so every field is checked
before use.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from greenq.config.celery_names import name_what_is_not_here
from greenq.errors import AccessRefused, OperationalError, ProtocolError
from greenq.events.cluster_state import State
from greenq.protocol.event import (
    EXCHANGE,
    EventWriter,
    read_events,
    routing_key,
)
from greenq.protocol.serialize import accepted
from greenq.transport.mailbox import Mailbox
from greenq.utils.log import OutageLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from greenq.protocol.clock import LamportClock
    from greenq.protocol.keys import Keys
    from greenq.protocol.signer import Signer
    from greenq.transport.client import Client
    from greenq.transport.transport import Connected

    Event = dict[str, Any]
    Handler = Callable[[Event], object]

R = TypeVar("R")
T = TypeVar("T")

_log = logging.getLogger(__name__)

# How long a wait for events may continue after `Receiver.stop`.
_TURN_S = 0.5

# When no message has arrived for this long, check that the server is still reachable.
_SILENCE_S = 5.0

# The pause between attempts to reconnect.
_PAUSE_S = 0.5


class Events:
    """An app's interface for sending and receiving events: `app.events`."""

    def __init__(self, app: Connected) -> None:
        """Use the server of `app`; no connection is opened yet."""
        self._app = app

    def Receiver(  # noqa: N802  Celery's name
        self,
        handlers: Mapping[str, Handler] | None = None,
        routing_key: str = "#",
        clock: LamportClock | None = None,
    ) -> Receiver:
        """Return a receiver; the arguments are those of `greenq.events.receiver.Receiver`."""
        app = self._app
        transport, accept = app.transport, app.config.task.accept_content
        return Receiver(
            transport.client,
            transport.keys,
            app.clock if clock is None else clock,
            handlers,
            routing_key=routing_key,
            accept=("json", *accept),
            signer=transport.signer,
        )

    def send(self, kind: str, *, hostname: str | None = None, **fields: Any) -> None:
        """Publish a custom event immediately. Switches: yes.

        Args:
            kind: the event's type, such as ``task-progress``; events whose type begins with
                ``task-`` concern the task whose id is in the field ``uuid``.
            hostname: the sender; None means this process, ``gen<pid>@<host>``.
            fields: the event's fields, whose values must have a JSON form.

        Raises:
            EncodeError: a field has no JSON form.
            OperationalError: the server could not be reached.
        """
        transport = self._app.transport
        node = hostname or f"gen{os.getpid()}@{socket.gethostname()}"
        writer = EventWriter(node, self._app.clock, transport.signer)
        channel = transport.keys.fanout(EXCHANGE, routing_key(kind))
        transport.client.call("PUBLISH", channel, writer.write(writer.stamp(kind, fields)))

    def State(  # noqa: N802  Celery's name
        self,
        callback: Callable[[State, Event], object] | None = None,
        max_workers_in_memory: int = 5000,
        max_tasks_in_memory: int = 10000,
    ) -> State:
        """Return an empty state; the arguments are those of `greenq.events.cluster_state.State`."""
        return State(callback, max_workers_in_memory, max_tasks_in_memory)


name_what_is_not_here(Events)


# --- receiving ------------------------------------------------------------------------------------


class Receiver:
    """Receives events over a separate connection. Switches: yes, in every method that waits.

    A lost connection is replaced; events published in the meantime are missed, and a warning
    reports this.

    Attributes:
        handlers: the handlers by event type; ``"*"`` handles all events without a handler of their
            own.
        should_stop: set by `stop`.
        ignored: the number of messages so far that were not events.
    """

    def __init__(
        self,
        client: Client,
        keys: Keys,
        clock: LamportClock,
        handlers: Mapping[str, Handler] | None = None,
        *,
        routing_key: str = "#",
        accept: Iterable[str] = ("json",),
        signer: Signer | None = None,
    ) -> None:
        """Prepare to receive; no connection is opened yet.

        Args:
            client: the server.
            keys: the names of the channels.
            clock: a logical clock, which advances beyond every number received.
            handlers: functions that take an event, by event type.
            routing_key: ``#`` receives all events, ``task.#`` those of tasks. Keys for single types
                of task events match nothing, since workers send task events in batches with the key
                ``task.multi``.
            accept: the serializers and content types of events that are accepted.
            signer: signs the request for heartbeats.
        """
        self.handlers = dict(handlers or {})
        self.should_stop = False
        self.ignored = 0
        self._clock = clock
        self._accept = accepted(accept)
        self._pattern = keys.fanout(EXCHANGE, routing_key.replace("#", "*"))
        self._mailbox = Mailbox(client, keys, clock=clock, signer=signer)
        self._connection = client.connection(pushes=True)
        self._outage = OutageLog(_log)
        self._wakeup = True
        self._heard_s = 0.0

    def capture(
        self, limit: int | None = None, timeout: float | None = None, wakeup: bool = True
    ) -> None:
        """Receive events and call their handlers, until `stop` is called.

        Args:
            limit: stop after this many events.
            timeout: seconds without any event after which capturing fails; None means no limit.
            wakeup: ask all workers for a heartbeat first.

        Raises:
            TimeoutError: no event arrived for `timeout` seconds.
            OperationalError: the server cannot be reached at first, or refuses the subscription.
        """
        for _ in self.itercapture(limit, timeout, wakeup):
            pass

    def itercapture(
        self, limit: int | None = None, timeout: float | None = None, wakeup: bool = True
    ) -> Iterator[Event]:
        """Do the same as `capture`, but yield each event after its handler has returned."""
        count = 0
        self.open(wakeup=wakeup)
        try:
            quiet_since_s = time.monotonic()
            while not self.should_stop:
                left_s = _TURN_S
                if timeout is not None:
                    left_s = quiet_since_s + timeout - time.monotonic()
                    if left_s <= 0:
                        raise TimeoutError(f"no event was received for {timeout:g} s")
                for event in self.wait(min(left_s, _TURN_S)):
                    self.process(event["type"], event)
                    yield event
                    count += 1
                    if count == limit:
                        return
                    if self.should_stop:
                        return
                    quiet_since_s = time.monotonic()
        finally:
            self.close()

    def stop(self) -> None:
        """Stop capturing soon; any thread or handler can call this."""
        self.should_stop = True

    def open(self, *, wakeup: bool = True) -> None:
        """Start listening; everything published from now on is received.

        Raises:
            OperationalError: the server cannot be reached, or refuses the subscription.
        """
        self._wakeup = wakeup
        self._listen()

    def wait(self, timeout_s: float) -> list[Event]:
        """Return the events since the last call; wait for one if there are none.

        Raises:
            AccessRefused: this user is not allowed to subscribe.
        """
        try:
            if not self._connection.connected:
                self._listen()
            messages = self._connection.messages(timeout_s)
            now_s = time.monotonic()
            if messages:
                self._heard_s = now_s
            elif now_s - self._heard_s > _SILENCE_S:
                self._connection.call("PING")
                self._heard_s = now_s
        except AccessRefused:
            raise
        except OperationalError as exc:
            self._connection.close()
            self._outage.failed("events are missed until the server can be reached again", exc)
            time.sleep(min(timeout_s, _PAUSE_S))
            return []
        return [event for message in messages for event in self._read(message.data)]

    def process(self, type: str, event: Event) -> None:
        """Call the handler for an event, if there is one."""
        handler = self.handlers.get(type) or self.handlers.get("*")
        if handler is not None:
            handler(event)

    def wakeup_workers(self) -> None:
        """Ask all workers for a heartbeat, so that they appear immediately."""
        self._mailbox.tell("heartbeat")

    def close(self) -> None:
        """Stop listening."""
        self._connection.close()

    def _listen(self) -> None:
        self._connection.subscribe(patterns=[self._pattern])
        self._heard_s = time.monotonic()
        self._outage.recovered("events are received again")
        if self._wakeup:
            # Ask only after subscribing, or the heartbeats could be missed.
            self.wakeup_workers()

    def _read(self, raw: bytes) -> list[Event]:
        try:
            events = read_events(raw, self._accept)
        except ProtocolError as exc:
            self.ignored += 1
            _log.debug("a message on %s is not an event: %s", self._pattern, exc)
            return []
        for event in events:
            self._complete(event)
        return events

    def _complete(self, event: Event) -> None:
        """Merge an event's clock into this process's clock.

        The event's timestamp is unix time and stays unchanged. (Celery shifts it by the difference
        of the time zones, which makes it wrong.)
        """
        if event["type"] == "task-sent":
            # Clients do not take part in the cluster's clock, so their own is meaningless.
            event["clock"] = max(self._clock.value - 1, 0)
        self._clock.adjust(event["clock"])
        event["local_received"] = time.time()


# --- state ---------------------------------------------------------------------------------------
