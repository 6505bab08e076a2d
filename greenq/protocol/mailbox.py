"""The mailbox: remote control requests to all workers, and the replies to the requester.

Shape: a request is a list element (envelope) published on the fanout exchange ``celery.pidbox``,
    with the headers clock and expires and delivery mode 2. Its body names the method, its
    arguments, its recipients, and where replies go. A reply is a list element pushed on the
    requester's own list, with the headers ticket and clock and delivery mode 1. Its body is
    ``{node name: reply}``.
Source: wire format, section 11; the recordings inspect, pool_control and revoke_id.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from greenq.errors import DecodeError
from greenq.protocol import envelope
from greenq.protocol.ids import new_id
from greenq.protocol.limits import (
    BROADCAST_BYTES,
    CONTROL_HEADERS,
    KEY,
    NAME,
    REQUEST,
    Optional,
    check_json,
    most_items,
    refusal,
    require,
)
from greenq.protocol.patterns import MOST_CHARS, glob_matches, regex_matches
from greenq.protocol.serialize import dumps, loads

if TYPE_CHECKING:
    from collections.abc import Mapping

NO_REPLY: Final = object()
"""A remote control command that sends no reply returns this."""

EXCHANGE = "celery.pidbox"
REPLY_EXCHANGE = "reply.celery.pidbox"

# The maximum size of a reply. It is large, since a worker may report on all of its tasks.
REPLY_BYTES = 128 << 20


class ReplyTo(NamedTuple):
    """Where replies go: an exchange, and the requester's routing key on it."""

    exchange: str
    routing_key: str

    @property
    def queue(self) -> str:
        """The requester's list of replies."""
        return f"{self.routing_key}.{self.exchange}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlRequest:
    """One remote control request.

    Attributes:
        method: a command's name or alias.
        arguments: its keyword arguments.
        destination: the names of the nodes that the request is for; if empty or None, `pattern`
            selects them.
        pattern, matcher: a pattern that node names must match, and its type, ``glob`` or ``pcre``;
            without a pattern, the request is for all nodes.
        ticket: identifies the replies; None if no replies are wanted.
        reply_to: where replies go.
        clock: the sender's logical clock.
        expires: unix time until which the sender waits for replies; 0 if it does not wait.
    """

    method: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    destination: list[str] | None = None
    pattern: str | None = None
    matcher: str | None = None
    ticket: str | None = None
    reply_to: ReplyTo | None = None
    clock: int = 0
    expires: float = 0.0

    @property
    def needs_regex(self) -> bool:
        """True if the request's nodes are selected by a regular expression."""
        return self.matcher == "pcre" and bool(self.pattern) and not self.destination

    def is_for(self, node: str, *, accept_pcre: bool = False) -> bool:
        """Return whether the request is for a node: by name, by pattern, or because it is for all.

        Raises:
            ValueError: the pattern is too long, or is a regular expression that is not allowed or
                could take long to match.
        """
        if self.destination:
            return node in self.destination
        if not (self.pattern and self.matcher):
            return True
        if self.needs_regex:
            if not accept_pcre:
                raise ValueError(
                    "the setting worker_remote_control_pcre does not allow matcher pcre"
                )
            return regex_matches(node, self.pattern)
        if len(self.pattern) > MOST_CHARS:
            raise ValueError(f"the pattern is longer than {MOST_CHARS} characters")
        return glob_matches(node, self.pattern)


class Reply(NamedTuple):
    """One worker's reply; `replies` maps node names to replies, normally just the worker's own."""

    ticket: str | None
    clock: int
    replies: dict[str, Any]


def write_request(request: ControlRequest, *, serializer: str = "json") -> str:
    """Return a request as a list element.

    Raises:
        EncodeError: an argument cannot be serialized.
    """
    body: dict[str, Any] = {
        "method": request.method,
        "arguments": dict(request.arguments),
        "destination": request.destination,
        "pattern": request.pattern,
        "matcher": request.matcher,
    }
    if request.ticket is not None and request.reply_to is not None:
        body["ticket"] = request.ticket
        body["reply_to"] = request.reply_to._asdict()
    headers = {"clock": request.clock, "expires": request.expires or 0}
    return _wrap(body, serializer, headers, delivery_mode=2, exchange=EXCHANGE, routing_key="")


def read_request(raw: bytes, accept: frozenset[str]) -> ControlRequest:
    """Parse a request.

    Raises:
        DecodeError: the data is not a request.
        ContentDisallowed: the content type is not in `accept`.
    """
    headers, body = _opened(raw, accept)
    destination = body.get("destination") or None
    body["destination"] = [destination] if isinstance(destination, str) else destination
    wrong = refusal(body, REQUEST)
    if wrong or "method" not in body:
        raise DecodeError(f"the request is invalid: {wrong or 'it has no method'}", raw)
    arguments = body.get("arguments") or {}
    if not all(isinstance(name, str) for name in arguments):
        raise DecodeError(
            f"the names of the arguments of control request {body['method']!r} must be text", raw
        )
    return ControlRequest(
        method=body["method"],
        arguments=arguments,
        destination=list(body["destination"]) if destination else None,
        pattern=body.get("pattern"),
        matcher=body.get("matcher"),
        ticket=body.get("ticket"),
        reply_to=_read_reply_to(body.get("reply_to"), raw),
        clock=headers.get("clock") or 0,
        expires=headers.get("expires") or 0.0,
    )


def write_reply(
    node: str,
    reply: object,
    *,
    ticket: str | None,
    clock: int,
    to: ReplyTo,
    serializer: str = "json",
) -> str:
    """Return a worker's reply as a list element.

    Raises:
        EncodeError: the reply cannot be serialized.
    """
    return _wrap(
        {node: reply},
        serializer,
        {"ticket": ticket, "clock": clock},
        delivery_mode=1,
        exchange=to.exchange,
        routing_key=to.routing_key,
    )


def read_reply(raw: bytes, accept: frozenset[str]) -> Reply:
    """Parse a worker's reply.

    Raises:
        DecodeError: the data is not a reply.
        ContentDisallowed: the content type is not in `accept`.
    """
    headers, replies = _opened(raw, accept, REPLY_BYTES)
    if not all(isinstance(node, str) for node in replies):
        raise DecodeError("a reply must map node names to replies", raw)
    return Reply(headers.get("ticket"), headers.get("clock") or 0, replies)


def _wrap(
    body: object,
    serializer: str,
    headers: dict[str, Any],
    *,
    delivery_mode: int,
    exchange: str,
    routing_key: str,
) -> str:
    data = dumps(body, serializer)
    return envelope.wrap(
        data.data,
        content_type=data.content_type,
        content_encoding=data.content_encoding,
        headers=headers,
        properties={
            "delivery_mode": delivery_mode,
            "delivery_info": {"exchange": exchange, "routing_key": routing_key},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": new_id(),
        },
    )


def _opened(
    raw: bytes, accept: frozenset[str], max_bytes: int = BROADCAST_BYTES
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the valid headers of a control message, and its body."""
    check_json(raw, max_bytes, "a control message")
    body, content_type, content_encoding, given, _properties = envelope.unwrap(raw)
    require("ticket", Optional(NAME), given.get("ticket"), raw)
    # An invalid clock or time counts as missing.
    headers = {
        name: given[name]
        for name, rule in CONTROL_HEADERS.items()
        if name in given and not rule.wrong(given[name])
    }
    value = loads(body, content_type, content_encoding, accept, most_items(max_bytes))
    if not isinstance(value, dict):
        raise DecodeError("the body of a control message must be an object", raw)
    return headers, value


def _read_reply_to(value: object, raw: bytes) -> ReplyTo | None:
    if value is None:
        return None
    if isinstance(value, dict):
        exchange, routing_key = value.get("exchange"), value.get("routing_key")
        if KEY.takes(exchange) and KEY.takes(routing_key):
            return ReplyTo(exchange, routing_key)
    raise DecodeError("reply_to of a control request must name an exchange and a routing_key", raw)
