"""Events: what happened to a task or a worker, published to all listeners.

Shape: a list element (envelope) published on a fanout channel, with the header ``hostname`` and
    delivery mode 1. Its body is one event or, for tasks, a list of events on the routing key
    ``task.multi``. An event is an object: hostname, utcoffset, pid, clock, its own fields,
    timestamp, type.
Source: wire format, section 10; the recordings events_life and events_life_prefork.
"""

from __future__ import annotations

import json
import os
import time
from binascii import b2a_base64
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import msgspec

from greenq.errors import DecodeError
from greenq.protocol import envelope
from greenq.protocol.ids import new_id
from greenq.protocol.limits import BROADCAST_BYTES, EVENT, check_json, refusal
from greenq.protocol.serialize import json_dumps, loads, saferepr

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from greenq.protocol.clock import LamportClock
    from greenq.protocol.message import TaskMessage
    from greenq.protocol.signer import Signer

EXCHANGE = "celeryev"

# The routing key of a batch.
MULTI = "task.multi"

# A reader of events considers a worker dead after this many missed heartbeats.
SILENT_INTERVALS = 2

# The events that only greenq sends. Their fields are text, numbers, lists of numbers and None. The
# fields of other events may have any type that JSON can represent.
_PLAIN = frozenset(
    {
        *("task-sent", "task-received", "task-started", "task-succeeded", "task-failed"),
        *("task-retried", "task-revoked", "task-rejected", "task-cancelled"),
        *("worker-online", "worker-heartbeat", "worker-offline"),
    }
)

# The fields that every event has in addition to its own.
_ADDED = frozenset(("hostname", "utcoffset", "pid", "clock", "timestamp", "type"))

# The defaults for absent fields.
_DEFAULTS: dict[str, Any] = {"clock": 0, "hostname": "", "timestamp": 0.0}

# The maximum number of event types with cached envelopes, since programs may send any number.
_FRAMES = 100

# The beginning of an envelope.
_BODY = b'{"body": "'

_encode = msgspec.json.Encoder().encode


class EventSender(Protocol):
    """The interface through which the parts of a worker send events; the Events step implements it.

    None of its methods waits or fails. The methods for the three events that every task has are
    fast.

    Attributes:
        tasks: True if task events are wanted; check this before building their fields.
    """

    tasks: bool

    def send(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Schedule an event to be sent. Switches: no.

        Args:
            kind: the event's type, such as ``task-failed`` or ``worker-heartbeat``.
            fields: the event's own fields, which must not change afterwards.
        """

    def received(self, message: TaskMessage) -> None:
        """Schedule a task-received event to be sent. Switches: no."""

    def started(self, uuid: str) -> None:
        """Schedule a task-started event to be sent. Switches: no."""

    def succeeded(self, uuid: str, result: str, runtime: float) -> None:
        """Schedule a task-succeeded event; see `EventWriter.succeeded`. Switches: no."""


class NullEventSender:
    """An `EventSender` that sends nothing."""

    tasks = False

    def send(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Drop the event."""

    def received(self, message: TaskMessage) -> None:
        """Drop the event."""

    def started(self, uuid: str) -> None:
        """Drop the event."""

    def succeeded(self, uuid: str, result: str, runtime: float) -> None:
        """Drop the event."""


class _Received(msgspec.Struct, gc=False):
    """A task-received event; building and encoding a struct takes half as long as a dict."""

    hostname: str
    utcoffset: float
    pid: int
    clock: int
    uuid: str
    name: str
    args: str
    kwargs: str
    root_id: str | None
    parent_id: str | None
    retries: int
    eta: str | None
    expires: str | None
    timestamp: float
    type: str = "task-received"


class _Started(msgspec.Struct, gc=False):
    """A task-started event."""

    hostname: str
    utcoffset: float
    pid: int
    clock: int
    uuid: str
    timestamp: float
    type: str = "task-started"


class _Succeeded(msgspec.Struct, gc=False):
    """A task-succeeded event."""

    hostname: str
    utcoffset: float
    pid: int
    clock: int
    uuid: str
    result: str
    runtime: float
    timestamp: float
    type: str = "task-succeeded"


# An event with its time and its logical clock, in the form that the fast encoder accepts.
Stamped: TypeAlias = "dict[str, Any] | _Received | _Started | _Succeeded"


class EventWriter:
    """Writes the events of one sender, whose name and process are the same in all of them.

    Any thread may use it.
    """

    def __init__(self, hostname: str, clock: LamportClock, signer: Signer | None = None) -> None:
        """Write events for the node `hostname`; a client's name is ``gen<pid>@<host>``.

        `signer` signs single events, which workers act on; batches are only for monitoring.
        """
        self._signer = signer
        self._hostname, self._utcoffset, self._pid = hostname, utcoffset(), os.getpid()
        self._forward = clock.forward
        # For each routing key, the parts of the envelope before and after its delivery tag. The
        # body comes before both.
        self._frames: dict[str, tuple[bytes, bytes]] = {}

    # These three methods are on the hot path of every task.

    def received(self, message: TaskMessage) -> Stamped:
        """Stamp a message's task-received event."""
        args, kwargs = message.argsrepr, message.kwargsrepr
        return _Received(
            self._hostname,
            self._utcoffset,
            self._pid,
            self._forward(),
            message.id,
            message.shadow or message.task,
            saferepr(message.args) if args is None else args,
            saferepr(message.kwargs) if kwargs is None else kwargs,
            message.root_id,
            message.parent_id,
            message.retries,
            message.eta,
            message.expires,
            time.time(),
        )

    def started(self, uuid: str) -> Stamped:
        """Stamp a task-started event."""
        return _Started(
            self._hostname, self._utcoffset, self._pid, self._forward(), uuid, time.time()
        )

    def succeeded(self, uuid: str, result: str, runtime: float) -> Stamped:
        """Stamp a task-succeeded event; `result` is readable text, `runtime` is in seconds."""
        return _Succeeded(
            self._hostname, self._utcoffset, self._pid, self._forward(),
            uuid, result, runtime, time.time(),
        )  # fmt: skip

    def stamp(self, kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Stamp any event with its time and the logical clock.

        `fields` cannot override the fields that every event has.

        Raises:
            EncodeError: a field of a program's own event has no JSON form.
        """
        if kind not in _PLAIN:
            # The fields may include dates and similar values, which `json_dumps` tags as Celery
            # does, and which the fast encoder does not support.
            plain = json.loads(json_dumps(dict(fields)))
            fields = {name: plain[name] for name in plain if name not in _ADDED}
        return {
            "hostname": self._hostname,
            "utcoffset": self._utcoffset,
            "pid": self._pid,
            "clock": self._forward(),
            **fields,
            "timestamp": time.time(),
            "type": kind,
        }

    def write(self, event: dict[str, Any]) -> bytes:
        """Return one event from `stamp` as a list element, for the channel of `routing_key`."""
        text = self._wrap(_text(event), routing_key(event["type"]))
        return text if self._signer is None else self._signer.seal("event", EXCHANGE, text)

    def write_batch(self, events: Sequence[Stamped]) -> bytes:
        """Return task events as one list element, for the channel of `MULTI`."""
        try:
            body = _encode(events)
        except ValueError:
            body = b"[%b]" % b",".join(map(_text, events))
        return self._wrap(body, MULTI)

    def _wrap(self, body: bytes, key: str) -> bytes:
        before, behind = self._frames.get(key) or self._frame(key)
        # Insert the base64 text unchecked: searching it for characters that JSON must escape would
        # take longer than all other steps together.
        text = b2a_base64(body, newline=False)
        return b"".join((_BODY, text, before, new_id().encode(), behind))

    def _frame(self, key: str) -> tuple[bytes, bytes]:
        tag = new_id()
        empty = envelope.wrap(
            b"",
            content_type="application/json",
            content_encoding="utf-8",
            headers={"hostname": self._hostname},
            properties={
                "delivery_mode": 1,
                "delivery_info": {"exchange": EXCHANGE, "routing_key": key},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": tag,
            },
        )
        before, _, behind = empty[len(_BODY) :].encode().partition(tag.encode())
        if len(self._frames) < _FRAMES:
            self._frames[key] = before, behind
        return before, behind


def routing_key(kind: str) -> str:
    """Return the routing key for an event's type: ``task-received`` goes to ``task.received``."""
    return kind.replace("-", ".")


def read_events(raw: bytes, accept: frozenset[str]) -> list[dict[str, Any]]:
    """Parse the data that arrived on an event channel: one event, or a batch.

    Raises:
        DecodeError: the data is not an event; no part of it is used.
        ContentDisallowed: the content type is not in `accept`.
    """
    check_json(raw, BROADCAST_BYTES, "an event")
    unwrapped = envelope.unwrap(raw)
    body = loads(unwrapped.body, unwrapped.content_type, unwrapped.content_encoding, accept)
    events = body if isinstance(body, list) else [body]
    for event in events:
        if not isinstance(event, dict) or "type" not in event:
            raise DecodeError("an event must be an object with a type", raw)
        if not all(isinstance(name, str) for name in event):
            raise DecodeError("the names of an event's fields must be text", raw)
        wrong = refusal(event, EVENT)
        if wrong:
            raise DecodeError(f"the event's {wrong}", raw)
        for name, default in _DEFAULTS.items():
            event.setdefault(name, default)
    return events


def utcoffset() -> float:
    """Return how many hours local time is behind UTC: positive west of Greenwich."""
    return -time.localtime().tm_gmtoff / 3600


def _text(event: Stamped) -> bytes:
    try:
        return _encode(event)
    except ValueError:
        # Some text in the event, which comes from outside, contains half of a surrogate pair.
        fields = event if isinstance(event, dict) else msgspec.structs.asdict(event)
        return json_dumps(fields).encode()
