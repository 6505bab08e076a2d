"""Serializers of your own: `register` one in every program that sends, runs or reads its tasks."""

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
    """Add a serializer, before the settings that name it.

    It is accepted from others only if ``accept_content`` has its name or its content type.

    Args:
        name: for settings and options, as ``task_serializer``.
        encoder: turns a value into bytes, or into text of this encoding.
        decoder: turns the bytes into the value.
        content_type: what messages carry to say how to read them; the same everywhere.
        content_encoding: what messages carry beside it: ``binary``, or the text's encoding.

    Raises:
        ValueError: the name or the content type belongs to one that is built in.
    """
    serialize.register(name, encoder, decoder, content_type, content_encoding)
    if name not in validators.SERIALIZERS:
        validators.SERIALIZERS.append(name)
