"""Your own serializers: `register` each one in every program that sends, runs or reads tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greenq.config import validators
from greenq.protocol import serialize

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["register"]


def register(
    name: str,
    encoder: Callable[[Any], bytes | str],
    decoder: Callable[[bytes], Any],
    content_type: str,
    content_encoding: str = "utf-8",
) -> None:
    """Add a serializer; call this before a setting names it.

    Data from other programs is accepted only if ``accept_content`` contains the name or content
    type of its serializer.

    Args:
        name: the name for settings and options such as ``task_serializer``.
        encoder: turns a value into bytes, or into text, which is encoded with `content_encoding`.
        decoder: turns the bytes back into the value.
        content_type: the identifier in messages; it must be the same in all programs.
        content_encoding: the encoding in messages: ``binary``, or the text's encoding.

    Raises:
        ValueError: the name or the content type belongs to a built-in serializer.
    """
    serialize.register(name, encoder, decoder, content_type, content_encoding)
    if name not in validators.SERIALIZERS:
        validators.SERIALIZERS.append(name)
