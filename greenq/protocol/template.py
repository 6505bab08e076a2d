"""Messages as text with gaps, so that the parts that many messages share are encoded only once."""

from __future__ import annotations

import os
import sys
from binascii import b2a_base64
from dataclasses import replace
from json.encoder import encode_basestring_ascii as quote
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from greenq.protocol.compress import compress
from greenq.protocol.envelope import task_properties, wrap
from greenq.protocol.limits import DENSE_BYTES
from greenq.protocol.message import check_args, check_size, embed_of, encode
from greenq.protocol.serialize import dumps, json_dumps, saferepr

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from greenq.protocol.message import TaskMessage

# The parts that differ between messages, in the order in which `Template.fill` provides them.
_GAPS = (
    "body", "id", "root_id", "parent_id", "argsrepr", "kwargsrepr", "delivery_tag", "group_index",
)  # fmt: skip

_GAP_CHARS = 14


class Template:
    """The messages of one task that are sent with the same options.

    The text around the gaps is the output of `encode` and `wrap` for a message with a random mark
    in each gap, so a filled template cannot differ from their output.
    """

    __slots__ = (
        "_checked_bytes",
        "_compression",
        "_embed",
        "_embed_json",
        "_max_bytes",
        "_pick",
        "_pieces",
        "_serializer",
        "_task",
    )

    def __init__(
        self,
        message: TaskMessage,
        *,
        serializer: str = "json",
        compression: str | None = None,
        max_bytes: int | None = None,
        **properties: Any,
    ) -> None:
        """Build the text around the gaps from `message` and the arguments of `task_properties`.

        A given description of the arguments, or a given correlation id, becomes part of that text.
        A body is refused if it is larger than `max_bytes` before compression, or has more values
        than workers read at that size.

        Raises:
            EncodeError: an option cannot be encoded, or the serializer or compression is unknown.
        """
        self._task = message.task
        self._serializer = serializer
        self._compression = compression
        self._max_bytes = sys.maxsize if max_bytes is None else max_bytes
        # A body of at most this size has neither too many bytes nor too many values.
        self._checked_bytes = min(self._max_bytes, DENSE_BYTES)
        self._embed = embed_of(message)
        self._embed_json = json_dumps(self._embed) if serializer == "json" else ""
        secret = os.urandom(8).hex()
        # Each mark has 30 bytes, which base64 encodes without padding.
        marks = {gap: f"{gap:_<{_GAP_CHARS}}{secret}" for gap in _GAPS}
        model = replace(
            message,
            id=marks["id"],
            root_id=marks["root_id"],
            parent_id=marks["parent_id"],
            # The mark is text, although a group index is a number.
            group_index=marks["group_index"],  # type: ignore[arg-type]
            argsrepr=marks["argsrepr"] if message.argsrepr is None else message.argsrepr,
            kwargsrepr=marks["kwargsrepr"] if message.kwargsrepr is None else message.kwargsrepr,
            # The body has its own gap, so these data, which may be large, are not encoded twice.
            callbacks=None,
            errbacks=None,
            chain=None,
            chord=None,
        )
        encoded = encode(model, serializer=serializer, compression=compression)
        named = {"correlation_id": model.id, "delivery_tag": marks["delivery_tag"]} | properties
        text = wrap(
            marks["body"].encode(),
            content_type=encoded.content_type,
            content_encoding=encoded.content_encoding,
            headers=encoded.headers,
            properties=task_properties(**named),
        )
        written = b2a_base64(marks["body"].encode(), newline=False).decode()
        # Each part except the last ends in a gap. Do not use a regular expression here: each step
        # of a chain with its own options has its own template, and compiling an expression takes
        # longer than everything else in this method.
        *parts, last = text.replace(written, marks["body"]).split(f'{secret}"')
        self._pieces: list[str] = []
        for part in parts:
            self._pieces += part[: -_GAP_CHARS - 1], ""
        self._pieces.append(last)
        gaps = [_GAPS.index(part[-_GAP_CHARS:].rstrip("_")) for part in parts]
        self._pick = itemgetter(*gaps)

    def fill(
        self,
        task_id: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        delivery_tag: str,
        root_id: str | None = None,
        parent_id: str | None = None,
        group_index: int | None = None,
        chain: Sequence[Any] | None = None,
    ) -> str:
        """Return one message as text; if `root_id` is not given, the message is its own root.

        Args:
            chain: the remaining steps of its chain, in reverse order; None means the chain of the
                template's message.

        Raises:
            EncodeError: an argument cannot be serialized, or the body would be too large.
        """
        if not isinstance(args, (list, tuple)):
            check_args(self._task, args)
        kwargs = dict(kwargs)
        own_id = quote(task_id)
        pieces = self._pieces.copy()
        pieces[1::2] = self._pick(
            (
                self._body(args, kwargs) if chain is None else self._body(args, kwargs, chain),
                own_id,
                own_id if root_id is None else quote(root_id),
                "null" if parent_id is None else quote(parent_id),
                quote(saferepr(args)),
                quote(saferepr(kwargs)) if kwargs else '"{}"',
                quote(delivery_tag),
                "null" if group_index is None else int.__repr__(group_index),
            )
        )
        return "".join(pieces)

    def _body(
        self, args: Sequence[Any], kwargs: dict[str, Any], chain: Sequence[Any] | None = None
    ) -> str:
        embed, embed_json = self._embed, self._embed_json
        if chain is not None:
            embed = {**embed, "chain": chain}
            embed_json = embed_json and json_dumps(embed)
        if embed_json:
            text = f"[{json_dumps(args)}, {json_dumps(kwargs)}, {embed_json}]"
            data = text.encode()
        else:
            data = dumps((args, kwargs, embed), self._serializer).data
        if len(data) > self._checked_bytes:
            check_size(data, self._max_bytes, is_json=bool(embed_json))
        if self._compression:
            data, _ = compress(data, self._compression)
        return f'"{b2a_base64(data, newline=False).decode("ascii")}"'
