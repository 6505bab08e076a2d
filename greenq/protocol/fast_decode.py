"""Decodes common messages in a single typed pass, in C.

Less common messages are left to `envelope.unwrap` and `message.decode`, which also report errors:
messages with protocol 1, other serializers, compression, the caller's own headers, Celery's tags
for dates and similar values, or JSON that only Python can read. For every message that this module
reads, both ways give the same result; a test compares them.
"""

from __future__ import annotations

from binascii import a2b_base64
from sys import intern
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import msgspec

from greenq.protocol import limits
from greenq.protocol.message import MOST_REPR_CHARS, MOST_SHADOW_CHARS, TaskMessage

if TYPE_CHECKING:
    from collections.abc import Mapping

_JSON = "application/json"
_NO_LIMITS = (None, None)
_NO_KWARGS = "{}"
_NOTHING: Mapping[str, Any] = MappingProxyType({})

# Celery's tag for a value of an extended type. A body may contain it anywhere, but the typed fields
# around the body cannot. Its characters may also be written as escapes with these beginnings.
_TAG = b"__type__"
_ESCAPES = (b"\\u005", b"\\u006", b"\\u007")


# The rules of greenq.protocol.limits, which the decoder checks as it goes. Some are stricter here,
# so that a message that passes needs no further check. For example, the four ids together have at
# most `KEY.most` characters.
_Name: TypeAlias = Annotated[str, limits.NAME.meta]
_Id: TypeAlias = Annotated[str, msgspec.Meta(max_length=limits.KEY.most // 4)]
_Shown: TypeAlias = Annotated[str, msgspec.Meta(max_length=MOST_SHADOW_CHARS)]
_Moment: TypeAlias = Annotated[str, limits.MOMENT_TEXT.meta]
_Description: TypeAlias = Annotated[str, msgspec.Meta(max_length=MOST_REPR_CHARS)]
_Count: TypeAlias = Annotated[int, limits.COUNT.meta]
_Seconds: TypeAlias = Annotated[int, limits.SECONDS.meta] | Annotated[float, limits.SECONDS.meta]


class _Headers(msgspec.Struct, forbid_unknown_fields=True):
    task: _Name
    id: _Id
    lang: _Name | None = None
    shadow: _Shown | None = None
    eta: _Moment | None = None
    expires: _Moment | None = None
    group: _Id | None = None
    group_index: _Count | None = None
    retries: _Count | None = None
    timelimit: tuple[_Seconds | None, _Seconds | None] | None = None
    root_id: _Id | None = None
    parent_id: _Id | None = None
    argsrepr: _Description | None = None
    kwargsrepr: _Description | None = None
    origin: _Shown | None = None
    ignore_result: bool | None = None
    replaced_task_nesting: _Count | None = None
    stamped_headers: list[Any] | None = None
    stamps: dict[str, Any] | None = None
    redelivered: bool | None = None


class _DeliveryInfo(msgspec.Struct, forbid_unknown_fields=True):
    exchange: str
    routing_key: str
    redelivered: bool | None = None


class _Properties(msgspec.Struct, forbid_unknown_fields=True):
    delivery_info: _DeliveryInfo
    body_encoding: Literal["base64"]
    correlation_id: str | None = None
    reply_to: str | None = None
    delivery_mode: int | None = None
    priority: int | None = None
    delivery_tag: str | None = None
    expiration: str | None = None
    deliveries: int | None = None


class _Element(msgspec.Struct, forbid_unknown_fields=True):
    body: str
    headers: _Headers
    properties: _Properties
    content_type: str = msgspec.field(name="content-type")
    content_encoding: str = msgspec.field(name="content-encoding")
    # Present only in a worker without a key; a worker with a key has checked and removed it.
    greenq_sig: str | None = None


class _Embed(msgspec.Struct, forbid_unknown_fields=True):
    callbacks: list[Any] | None = None
    errbacks: list[Any] | None = None
    chain: list[Any] | None = None
    chord: dict[str, Any] | None = None


_read_element = msgspec.json.Decoder(_Element).decode
_read_body = msgspec.json.Decoder(tuple[list[Any], dict[str, Any], _Embed]).decode


def read(raw: bytes, *, accept: frozenset[str], max_body_bytes: int) -> TaskMessage | None:
    """Read the task call in a list element; return None if the slower decoders must read it."""
    is_large = len(raw) > limits.DENSE_BYTES
    try:
        if is_large and not limits.is_readable(raw, limits.most_raw(max_body_bytes)):
            return None
        element = _read_element(raw)
        body = a2b_base64(element.body)
        if len(body) > max_body_bytes or (
            is_large and limits.has_more_items(body, limits.most_items(max_body_bytes))
        ):
            return None
        args, kwargs, embed = _read_body(body)
    except (ValueError, RecursionError):
        return None
    headers = element.headers
    timelimit = headers.timelimit
    if (
        element.content_type != _JSON
        or _JSON not in accept
        or not headers.task
        or headers.stamps
        or headers.stamped_headers
        or _TAG in body
        or (b"\\u00" in body and any(escape in body for escape in _ESCAPES))
    ):
        return None
    # The arguments are passed by position, since passing them by name takes three times as long.
    return TaskMessage(
        intern(headers.task),
        headers.id,
        args,
        kwargs,
        headers.shadow,
        headers.eta,
        headers.expires,
        headers.group,
        headers.group_index,
        headers.retries or 0,
        _NO_LIMITS if timelimit is None or timelimit == _NO_LIMITS else timelimit,
        headers.id if headers.root_id == headers.id else headers.root_id,
        headers.parent_id,
        headers.argsrepr,
        _NO_KWARGS if headers.kwargsrepr == _NO_KWARGS else headers.kwargsrepr,
        headers.origin and intern(headers.origin),
        headers.ignore_result,
        headers.replaced_task_nesting or 0,
        headers.stamped_headers,
        # Share values that are usually equal, since many messages are held at the same time.
        _NOTHING,
        _NOTHING,
        embed.callbacks,
        embed.errbacks,
        embed.chain,
        embed.chord,
        bool(headers.redelivered or element.properties.delivery_info.redelivered),
    )
