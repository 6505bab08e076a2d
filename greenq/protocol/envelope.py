"""List elements (JSON objects around serialized bodies), and their records in `unacked`."""

from __future__ import annotations

import json
import re
from binascii import a2b_base64, b2a_base64
from typing import Any, NamedTuple

from greenq.errors import DecodeError
from greenq.protocol.limits import MOST_ITEMS, has_more_items
from greenq.protocol.serialize import DATA_TYPE, json_dumps, json_loads
from greenq.protocol.signer import SIGNATURE

_HELD_START = re.compile(r"\s*\[\s*")
_COMMA = re.compile(r"\s*,")
_raw_decode = json.JSONDecoder().raw_decode


class Envelope(NamedTuple):
    """A parsed list element.

    Attributes:
        body: the bytes decoded from base64, still serialized and perhaps compressed.
        content_type: the format of the body.
        content_encoding: ``utf-8`` or ``binary``.
        headers: the task's headers; see `greenq.protocol.message`.
        properties: delivery tag, priority, delivery_info and so on.
    """

    body: bytes
    content_type: str
    content_encoding: str
    headers: dict[str, Any]
    properties: dict[str, Any]


def wrap(
    body: bytes,
    *,
    content_type: str,
    content_encoding: str,
    headers: dict[str, Any],
    properties: dict[str, Any],
) -> str:
    """Return a list element as text.

    Shape: body (base64), content-encoding, content-type, headers, properties, in this order;
        ``body_encoding`` is set in the properties, and keeps its position if it is already there.

    Raises:
        EncodeError: a header or property is not JSON serializable.
    """
    return json_dumps(
        {
            "body": b2a_base64(body, newline=False).decode("ascii"),
            "content-encoding": content_encoding,
            "content-type": content_type,
            "headers": headers,
            "properties": {**properties, "body_encoding": "base64"},
        }
    )


def task_properties(
    *,
    queue: str,
    exchange: str = "",
    routing_key: str | None = None,
    priority: int = 0,
    correlation_id: str,
    reply_to: str,
    delivery_tag: str,
    delivery_mode: int = 2,
    expiration: str | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """Build a task message's properties in wire order.

    Args:
        queue: used as the routing key, unless `routing_key` is given.
        exchange: "" to send directly to the list that the routing key names.
        routing_key: needed, together with the exchange, to restore the message.
        priority: written as given; 0 is served first.
        correlation_id: the task's id, unless the caller has chosen another id.
        reply_to: the sender's id; nothing uses it on Redis.
        delivery_tag: new for every push.
        delivery_mode: 2 for persistent, 1 for transient.
        expiration: whole milliseconds from the send to the expiry, as text; None for no expiry.
        extra: unknown send options, such as ``origin`` of a retry.
    """
    properties: dict[str, Any] = {
        "correlation_id": correlation_id,
        "reply_to": reply_to,
        **extra,
        "delivery_mode": delivery_mode,
    }
    if expiration is not None:
        properties["expiration"] = expiration
    properties["delivery_info"] = {
        "exchange": exchange,
        "routing_key": queue if routing_key is None else routing_key,
    }
    properties["priority"] = priority
    properties["body_encoding"] = "base64"
    properties["delivery_tag"] = delivery_tag
    return properties


def unwrap(raw: bytes) -> Envelope:
    """Parse a list element.

    Raises:
        DecodeError: `raw` is not an envelope; the error contains `raw`.
    """
    element = json_loads(raw)
    if type(element) is not dict:
        raise DecodeError("the message is not a JSON object", raw)
    get = element.get
    content_type = get("content-type")
    content_encoding = get("content-encoding")
    headers = get("headers")
    properties = get("properties")
    if type(properties) is not dict:
        raise DecodeError("the message has no properties", raw)
    if type(headers) is not dict:
        if headers is not None:
            raise DecodeError("the message's headers are not an object", raw)
        headers = {}
    if type(content_type) is not str:
        content_type = _text_or(content_type, DATA_TYPE, "content-type", raw)
    if type(content_encoding) is not str:
        content_encoding = _text_or(content_encoding, "utf-8", "content-encoding", raw)
    if type(properties.get("delivery_info", headers)) is not dict:
        raise DecodeError("the message's delivery_info is not an object", raw)
    body = _decode_body(get("body"), properties.get("body_encoding"), raw)
    return Envelope(body, content_type, content_encoding, headers, properties)


def mark_redelivered(raw: str | bytes, deliveries: int | None = None) -> str:
    """Return a list element marked as redelivered, both in its headers and in its properties.

    Shape: ``headers.redelivered`` and ``properties.delivery_info.redelivered`` become true; if
      `deliveries` is given, ``properties.deliveries`` counts the workers that died while running
      the message.

    Raises:
        DecodeError: `raw` is not an envelope.
    """
    return _marked(_parse(raw), deliveries, raw)


def mark_refused(raw: str | bytes, reason: str) -> str:
    """Return a list element with a mark that makes the next worker fail the task.

    Shape: ``properties.refused`` is the reason.

    Raises:
        DecodeError: `raw` is not an envelope.
    """
    element = _parse(raw)
    try:
        element["properties"]["refused"] = reason
    except (TypeError, KeyError) as exc:
        raise DecodeError("the message is not an envelope", _bytes(raw)) from exc
    return json.dumps(element)


def without_refusal(raw: bytes) -> bytes:
    """Return a list element without the mark of `mark_refused`, for a replay; never raises."""
    try:
        element = _parse(raw)
        del element["properties"]["refused"]
    except (DecodeError, TypeError, KeyError):
        return raw
    return json.dumps(element).encode()


def _marked(element: Any, deliveries: int | None, raw: str | bytes) -> str:
    try:
        headers = element.get("headers")
        if headers is None:
            headers = element["headers"] = {}
        headers["redelivered"] = True
        # The old signature does not match the new text.
        element.pop(SIGNATURE, None)
        element["properties"].setdefault("delivery_info", {})["redelivered"] = True
        if deliveries is not None:
            element["properties"]["deliveries"] = deliveries
    except (TypeError, KeyError, AttributeError) as exc:
        raise DecodeError("the message is not an envelope", _bytes(raw)) from exc
    return json.dumps(element)


def header(raw: bytes, name: str) -> str | None:
    """Return a header of a list element if it is text, otherwise None; never raises."""
    return text_headers(raw).get(name)


def text_headers(raw: bytes) -> dict[str, str]:
    """Return those headers of a list element that have text as their value; never raises.

    If parsing the data would take too much memory, return no headers.
    """
    if has_more_items(raw, MOST_ITEMS):
        return {}
    try:
        headers = _parse(raw)["headers"].items()
    except (DecodeError, TypeError, KeyError, AttributeError):
        return {}
    return {name: value for name, value in headers if isinstance(value, str)}


def deliveries_of(raw: str | bytes) -> int:
    """Return how many workers are recorded as having died while running this message."""
    try:
        return _count(_parse(raw)["properties"].get("deliveries"))
    except (DecodeError, TypeError, KeyError, AttributeError):
        return 0


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def hold(raw_envelope_text: str, exchange: str, routing_key: str) -> str:
    """Return the record that is stored in the ``unacked`` hash while a message is reserved.

    The message is inserted as text, so that it is read back unchanged.
    """
    return f"[{raw_envelope_text}, {json.dumps(exchange)}, {json.dumps(routing_key)}]"


class Held(NamedTuple):
    """The parsed record of a reserved message.

    Attributes:
        text: the message exactly as recorded.
        exchange, routing_key: where to requeue it.
        element: the parsed message.
    """

    text: str
    exchange: str
    routing_key: str
    element: dict[str, Any]

    @property
    def deliveries(self) -> int:
        """How many workers have died while running the message."""
        return _count(self._of("properties", "deliveries"))

    @property
    def priority(self) -> object:
        """The message's priority as recorded."""
        return self._of("properties", "priority")

    def header(self, name: str) -> str | None:
        """Return a header if it is text, otherwise None."""
        value = self._of("headers", name)
        return value if isinstance(value, str) else None

    def number(self, name: str) -> int | None:
        """Return a header if it is a whole number, otherwise None."""
        value = self._of("headers", name)
        return value if type(value) is int else None

    def redelivered(self, deliveries: int | None = None) -> str:
        """Return the message as `mark_redelivered` does; this modifies `element`.

        Raises:
            DecodeError: the message is not an envelope.
        """
        return _marked(self.element, deliveries, self.text)

    def _of(self, part: str, name: str) -> object:
        fields = self.element.get(part)
        return fields.get(name) if isinstance(fields, dict) else None


def unhold(value: str | bytes) -> Held:
    """Parse the record of a reserved message.

    Raises:
        DecodeError: `value` is not a list of an object and two texts.
    """
    try:
        text = value if isinstance(value, str) else value.decode()
        start = _after(_HELD_START, text, 0)
        message, end = _raw_decode(text, start)
        exchange, routing_key = json.loads("[" + text[_after(_COMMA, text, end) :])
    except (ValueError, TypeError, RecursionError) as exc:
        raise DecodeError(f"not a held message: {exc}", _bytes(value)) from exc
    if not (
        isinstance(message, dict) and isinstance(exchange, str) and isinstance(routing_key, str)
    ):
        raise DecodeError("a held message must be an object and two texts", _bytes(value))
    return Held(text[start:end], exchange, routing_key, message)


def _after(pattern: re.Pattern[str], text: str, start: int) -> int:
    match = pattern.match(text, start)
    if match is None:
        raise ValueError(f"expected {pattern.pattern} at character {start}")
    return match.end()


def _decode_body(body: object, encoding: object, raw: bytes) -> bytes:
    if type(body) is not str:
        raise DecodeError("the message has no body text", raw)
    try:
        if encoding == "base64":
            return a2b_base64(body)
        if encoding is None or encoding == "utf-8":
            return body.encode()
    except ValueError as exc:
        raise DecodeError(f"the message's body is not {encoding or 'utf-8'}: {exc}", raw) from exc
    raise DecodeError(f"unknown body_encoding {encoding!r}", raw)


def _text_or(value: object, default: str, name: str, raw: bytes) -> str:
    if value is None:
        return default
    raise DecodeError(f"the message's {name} is not text", raw)


def _parse(raw: str | bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise DecodeError(f"the message is not JSON: {exc}", _bytes(raw)) from exc


def _bytes(raw: str | bytes) -> bytes:
    return raw if isinstance(raw, bytes) else raw.encode("utf-8", "surrogatepass")
