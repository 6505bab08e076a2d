"""Messages that receivers of before_task_publish can change before the messages are written.

This module is used only while before_task_publish or after_task_publish has receivers.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from greenq.errors import EncodeError
from greenq.protocol.envelope import task_properties, wrap
from greenq.protocol.ids import new_id, tag_of, tag_prefix
from greenq.protocol.message import check_args, embed_of, encode, headers_of
from greenq.sending.options import clamped
from greenq.signals import after_task_publish, before_task_publish

if TYPE_CHECKING:
    from collections.abc import Mapping

    from greenq.protocol.message import TaskMessage

# The properties that determine where a message goes; receivers get them as separate arguments.
_PLACES = frozenset({"exchange", "queue", "routing_key"})


class Announced(NamedTuple):
    """A message already passed to the receivers of before_task_publish.

    Attributes:
        text: the list element.
        priority: decides which list the message goes to.
        retry_policy: how often and when to retry sending.
        arguments: the arguments for the receivers of after_task_publish.
    """

    task: str
    text: str
    priority: int
    retry_policy: dict[str, Any]
    arguments: dict[str, Any]

    def sent(self) -> None:
        """Send after_task_publish. Switches: if a receiver does."""
        after_task_publish.send(self.task, **self.arguments)


def announce(
    message: TaskMessage,
    properties: Mapping[str, Any],
    *,
    retry_policy: Mapping[str, Any],
    serializer: str,
    compression: str | None,
    max_bytes: int | None,
    may_move: bool = True,
) -> Announced:
    """Send before_task_publish, then build the message with its receivers' changes.

    Args:
        message: the complete message, with its id and arguments.
        properties: those of the envelope (`task_properties`), without a delivery tag.
        retry_policy: how sending is retried.
        serializer, compression, max_bytes: the arguments of `encode`.
        may_move: if False, a changed priority is ignored.

    Raises:
        EncodeError: an argument, or a value added by a receiver, cannot be serialized.
    """
    queue, exchange = properties["queue"], properties.get("exchange") or ""
    check_args(message.task, message.args)
    body = (message.args, dict(message.kwargs), embed_of(message))
    headers = headers_of(message)
    shown = {name: value for name, value in properties.items() if name not in _PLACES}
    shown = {"correlation_id": message.id} | shown
    policy = dict(retry_policy)
    places = {"exchange": exchange, "routing_key": properties.get("routing_key") or queue}
    before_task_publish.send(
        message.task,
        body=body,
        headers=headers,
        properties=shown,
        declare=None if exchange else [queue],
        retry_policy=policy,
        **places,
    )
    priority = clamped(shown.get("priority") or 0) if may_move else properties["priority"]
    shown["priority"] = priority
    try:
        text = write(
            _changed(message, body, headers),
            {name: properties[name] for name in _PLACES & properties.keys()} | shown,
            serializer=serializer,
            compression=compression,
            max_bytes=max_bytes,
        )
    except EncodeError as exc:
        exc.add_note("receivers of before_task_publish may have changed the message")
        raise
    arguments = {"body": body, "headers": headers} | places
    return Announced(message.task, text, priority, policy, arguments)


def _changed(
    message: TaskMessage, body: tuple[Any, dict[str, Any], dict[str, Any]], headers: dict[str, Any]
) -> TaskMessage:
    """Return the message with the receivers' changes."""
    args, kwargs, embed = body
    # The headers include the standard ones, and override the message's fields.
    changed = replace(
        message, args=args, kwargs=kwargs, headers=headers, argsrepr="", kwargsrepr=""
    )
    for name in embed_of(message):
        setattr(changed, name, embed.get(name))
    return changed


def write(message: TaskMessage, properties: Mapping[str, Any], **encoding: Any) -> str:
    """Return a message's text as it appears on its queue, with a new delivery tag.

    `properties` are arguments of `task_properties`, and `encoding` contains arguments of `encode`.

    Raises:
        EncodeError: a value cannot be serialized, or the body would be too large.
    """
    encoded = encode(message, **encoding)
    return wrap(
        encoded.body,
        content_type=encoded.content_type,
        content_encoding=encoded.content_encoding,
        headers=encoded.headers,
        properties=task_properties(
            **properties, delivery_tag=tag_of(tag_prefix(time.time()), new_id())
        ),
    )
