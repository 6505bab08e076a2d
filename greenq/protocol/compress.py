"""Compression of bodies and results, with limits on the expanded size."""

from __future__ import annotations

import bz2
import importlib
import lzma
import sys
import zlib
from typing import TYPE_CHECKING, Any

from greenq.errors import DecodeError, EncodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

GZIP = "application/x-gzip"
BZIP2 = "application/x-bz2"
LZMA = "application/x-lzma"
BROTLI = "application/x-brotli"
ZSTD = "application/zstd"

_CONTENT_TYPES = {
    "gzip": GZIP,
    "zlib": GZIP,
    "bzip2": BZIP2,
    "bzip": BZIP2,
    "lzma": LZMA,
    "xz": LZMA,
    "brotli": BROTLI,
    "zstd": ZSTD,
    "zstandard": ZSTD,
}
KNOWN = frozenset(_CONTENT_TYPES.values())

# The compression methods that programs have added, by content type: the functions that compress
# and expand.
_added: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {}

# Data may expand to this size, or to this multiple of its own size if that is larger. Compression
# shrinks task messages to a tenth, and very repetitive ones to a fiftieth.
_FREE_BYTES = 1 << 20
_MOST_TIMES = 100

# The memory that decompression may reserve in addition to its output. The dictionary of xz's
# strongest preset needs 65 MiB, of which only the part written is used. A header can ask for 4 GiB.
_LZMA_MEMORY_BYTES = 80 << 20


def register(
    encoder: Callable[[bytes], bytes],
    decoder: Callable[[bytes], bytes],
    content_type: str,
    aliases: Iterable[str] = (),
) -> None:
    """Add a compression method and its names, or replace one that was added before.

    The size of what `decoder` returns is checked only after it has returned.

    Raises:
        ValueError: the content type or a name belongs to a built-in method.
    """
    names = [content_type, *aliases]
    if any(_CONTENT_TYPES.get(name, name) in KNOWN for name in names):
        raise ValueError(f"compression {', '.join(names)}: built-in ones cannot be replaced")
    _CONTENT_TYPES.update(dict.fromkeys(aliases, content_type))
    _added[content_type] = encoder, decoder


def compress(data: bytes, name: str) -> tuple[bytes, str]:
    """Compress `data`; return the bytes and the content type of the compression.

    Shape: as in Celery, ``gzip`` is a zlib stream, not a gzip file.

    Raises:
        EncodeError: the method is unknown, or its package is not installed.
    """
    content_type = _CONTENT_TYPES.get(name, name)
    if content_type == GZIP:
        return zlib.compress(data), content_type
    if content_type == BZIP2:
        return bz2.compress(data), content_type
    if content_type == LZMA:
        return lzma.compress(data), content_type
    if content_type in _added:
        return _added[content_type][0](data), content_type
    if content_type not in KNOWN:
        raise EncodeError(f"unknown compression {name!r}; known: {', '.join(_CONTENT_TYPES)}")
    try:
        return _package(content_type).compress(data), content_type
    except ImportError as exc:
        raise EncodeError(f"cannot compress with {name}: {exc}") from exc


def accepted(*names: str | None) -> frozenset[str]:
    """Return the content types of the compression methods with these names; None is skipped."""
    return frozenset(_CONTENT_TYPES.get(name, name) for name in names if name is not None)


def decompress(
    data: bytes, content_type: str, max_bytes: int, accept: frozenset[str] = KNOWN
) -> bytes:
    """Expand `data`, stopping as soon as the output exceeds its limit.

    Units: the output is limited to `max_bytes`, and to a hundred times the size of `data` or one
        MiB, whichever is larger.

    Raises:
        DecodeError: the output is too large; the data is damaged, truncated or followed by other
            bytes; or its compression is unknown, is not in `accept`, or needs a package that is not
            installed.
    """
    kind = _CONTENT_TYPES.get(content_type, content_type)
    if kind not in KNOWN and kind not in _added:
        raise DecodeError(f"unknown compression {content_type!r}", data)
    if kind not in accept:
        raise DecodeError(
            f"compression {content_type!r} is not accepted (accepted: "
            f"{', '.join(sorted(accept)) or 'nothing'}); add it to accept_compression",
            data,
        )
    most = min(max_bytes, max(_FREE_BYTES, _MOST_TIMES * len(data)))
    try:
        expanded, whole = _expand(data, kind, most + 1)
    except ImportError as exc:
        raise DecodeError(f"cannot expand {content_type}: {exc}", data) from exc
    # Each package has its own exceptions, all of which mean that the data is damaged.
    except Exception as exc:
        raise DecodeError(f"damaged {content_type} data: {exc}", data) from exc
    if len(expanded) > most:
        why = "" if most == max_bytes else f", more than {_MOST_TIMES} times its size"
        raise DecodeError(f"{content_type} data expands beyond {most} bytes{why}", data)
    if not whole:
        raise DecodeError(f"{content_type} data is truncated or followed by other bytes", data)
    return expanded


def _expand(data: bytes, kind: str, limit: int) -> tuple[bytes, bool]:
    """Expand to about `limit` bytes at most; also return whether `data` is a complete stream."""
    if kind in _added:
        return _added[kind][1](data), True
    if kind == BROTLI:
        return _expand_brotli(data, limit)
    reader: Any
    if kind == GZIP:
        reader = zlib.decompressobj()
    elif kind == BZIP2:
        reader = bz2.BZ2Decompressor()
    elif kind == LZMA:
        reader = lzma.LZMADecompressor(memlimit=_LZMA_MEMORY_BYTES)
    else:
        reader = _package(ZSTD).ZstdDecompressor()
    expanded = reader.decompress(data, limit)
    return expanded, reader.eof and not reader.unused_data


def _expand_brotli(data: bytes, limit: int) -> tuple[bytes, bool]:
    reader = _package(BROTLI).Decompressor()
    pieces = []
    size = 0
    while size < limit and not reader.is_finished():
        piece = reader.process(data, output_buffer_limit=limit - size)
        if not piece and (not data or reader.can_accept_more_data()):
            break
        data = b""
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces), reader.is_finished()


def _package(content_type: str) -> Any:
    """Import an optional package under the name that Celery uses."""
    if content_type == ZSTD:
        return importlib.import_module(
            "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
        )
    try:
        return importlib.import_module("brotli")
    except ImportError:
        return importlib.import_module("brotlicffi")
