"""Task ids: random UUIDs as text, created one by one, or in any number from a few random bytes.

This module also makes delivery tags: ids that start with the time of sending (UUID version 7), so
that a queue shows how old its messages are.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from itertools import chain, count, islice
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from collections.abc import Iterator

_BLOCK = 256
_STAMPED = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
# For each random digit, the digit that encodes a UUID's variant in its place.
_VARIANT = {f"{number:x}": "89ab"[number % 4] for number in range(16)}


def new_id() -> str:
    """Return a random UUID, version 4, as text."""
    return _write(os.urandom(16).hex())[0]


def tag_prefix(at_s: float) -> str:
    """Return the prefix of delivery tags made at a given unix time."""
    digits = f"{int(at_s * 1000):012x}"
    return f"{digits[:8]}-{digits[8:12]}-7"


def tag_of(prefix: str, new: str) -> str:
    """Build a delivery tag from `tag_prefix` and an id created for this push."""
    return prefix + new[15:]


def sent_at(tag: str) -> float | None:
    """Return the unix time in a delivery tag; None for tags without a time, such as Celery's."""
    if not _STAMPED.fullmatch(tag):
        return None
    return int(tag[:8] + tag[9:13], 16) / 1000


class TaskIds(Sequence[str]):
    """Random UUIDs as text, computed on access, so that any number of them takes no memory.

    They are derived from the numbers 0, 1, 2 and so on with a random key. Therefore, unlike the
    numbers of a plain counter, no id can be guessed from another.
    """

    __slots__ = ("_key", "_numbers")

    def __init__(self, key: bytes | None = None, numbers: range = range(1 << 62)) -> None:
        """Derive the ids of `numbers` from `key`; None creates a new key."""
        self._key = os.urandom(16) if key is None else key
        self._numbers = numbers

    def __len__(self) -> int:
        """Return the number of ids."""
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> TaskIds: ...
    def __getitem__(self, index: int | slice) -> str | TaskIds:
        """Return one id, or the ids of a slice, which also take no memory."""
        if isinstance(index, slice):
            return TaskIds(self._key, self._numbers[index])
        block, place = divmod(self._numbers[index], _BLOCK)
        return self._block(block)[place]

    def __iter__(self) -> Iterator[str]:
        """Compute the ids one after the other, a block at a time."""
        numbers = self._numbers
        if numbers.step != 1:
            return (self[index] for index in range(len(numbers)))
        first, place = divmod(numbers.start, _BLOCK)
        blocks = map(self._block, count(first))
        return islice(chain.from_iterable(blocks), place, place + len(numbers))

    def _block(self, number: int) -> list[str]:
        seed = self._key + number.to_bytes(8, "big")
        return _write(hashlib.shake_128(seed).hexdigest(16 * _BLOCK))


def _write(digits: str) -> list[str]:
    """Turn each run of 32 hexadecimal digits into a UUID."""
    return [
        f"{digits[i : i + 8]}-{digits[i + 8 : i + 12]}-4{digits[i + 13 : i + 16]}-"
        f"{_VARIANT[digits[i + 16]]}{digits[i + 17 : i + 20]}-{digits[i + 20 : i + 32]}"
        for i in range(0, len(digits), 32)
    ]
