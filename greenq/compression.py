"""Your own compressions: `register` each one in every program that sends, runs or reads tasks."""

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
    """Add a compression; call this before a setting names it.

    Data from other programs is accepted only if ``accept_compression`` contains its compression, or
    ``task_compression`` or ``result_compression`` is set to it. The size of the output is checked
    only after `decoder` has returned, so `decoder` itself should limit the size.

    Args:
        content_type: the identifier in messages; it must be the same in all programs.
        aliases: names for settings and options such as ``task_compression``.

    Raises:
        ValueError: the content type or a name belongs to a built-in compression.
    """
    names = [content_type, *aliases]
    compress.register(encoder, decoder, content_type, names[1:])
    validators.COMPRESSIONS.extend(name for name in names if name not in validators.COMPRESSIONS)
