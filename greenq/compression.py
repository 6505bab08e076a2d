"""Compressions of your own: `register` one in every program that sends, runs or reads tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from greenq.config import validators
from greenq.protocol import compress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["register"]


def register(
    encoder: Callable[[bytes], bytes],
    decoder: Callable[[bytes], bytes],
    content_type: str,
    aliases: Iterable[str] = (),
) -> None:
    """Add a compression, before the settings that name it.

    It is accepted from others only if ``accept_compression`` has it, or ``task_compression`` or
    ``result_compression`` is set to it. The size of what `decoder` returns is checked only when it
    has returned, so it should limit that itself.

    Args:
        content_type: what messages carry to say how to read them; the same everywhere.
        aliases: names for settings and options, as ``task_compression``.

    Raises:
        ValueError: the content type or a name belongs to one that is built in.
    """
    names = [content_type, *aliases]
    compress.register(encoder, decoder, content_type, names[1:])
    validators.COMPRESSIONS.extend(name for name in names if name not in validators.COMPRESSIONS)
