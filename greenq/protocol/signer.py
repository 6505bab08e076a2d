"""Signatures: HMACs over data that other processes act on, stored in the data that they sign.

Shape: the last member of a list element, of an event or of a JSON result is ``greenq_sig``: 8
    hexadecimal digits that name the key, then 32 digits of the HMAC-SHA-256, which are its first
    128 bits. A result in another format is followed by a line feed, ``greenq_sig``, a space and the
    same digits.

The HMAC covers all bytes except the signature, preceded by a heading: the version, the kind, and
the length and the text of the place. The kind prevents a result from passing as a message, and the
place prevents a message from passing on another queue. A result itself names its task, and its
reader compares that name. The heading marks its own end, so that different contents are never
signed as the same bytes.

A worker that changes a signed message, for example by marking it as redelivered, signs it again. So
no part of the message has to be exempt from the signature, and no canonical form of JSON is needed.
"""

from __future__ import annotations

from binascii import hexlify
from collections import Counter
from functools import lru_cache
from hashlib import sha256
from hmac import compare_digest, digest
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from greenq.errors import SignatureError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from hashlib import _Hash

SIGNATURE: Final = "greenq_sig"

Kind: TypeAlias = Literal["message", "request", "reply", "event", "result", "entry"]

_KEY_DIGITS = 8
_MAC_DIGITS = 32
_DIGITS = _KEY_DIGITS + _MAC_DIGITS

# The number of kinds and places for which the beginning of the computation is cached.
_PLACES = 1000

# As in RFC 2104, the key is padded to one block of the hash, and this block is combined with each
# of two constants.
_BLOCK_BYTES = 64
_INNER, _OUTER = (bytes(byte ^ pad for byte in range(256)) for pad in (0x36, 0x5C))

# The text before and after the digits: in a JSON object, and after other data.
_IN_JSON, _JSON_END = f', "{SIGNATURE}": "'.encode(), b'"}'
_BEHIND = f"\n{SIGNATURE} ".encode()

_JSON_START = -_DIGITS - len(_JSON_END)
_JSON_CUT = _JSON_START - len(_IN_JSON)
_BEHIND_CUT = -_DIGITS - len(_BEHIND)

_UNSIGNED = "unsigned"
_UNKNOWN = "signed with an unknown key"
_WRONG = "signature does not match"


class Signer:
    """Signs with one key, and accepts signatures with any of several keys. Any thread may use it.

    Attributes:
        refused: the number of refusals, by kind and reason, such as ``message: unsigned``.
    """

    def __init__(
        self, key: bytes, accepted: Iterable[bytes] = (), *, required: bool = True
    ) -> None:
        """Sign with `key`; accept this key and the keys `accepted`.

        If `required` is False, unsigned data is also accepted.
        """
        self._key = key
        self._name = _name_of(key)
        self._keys = {_name_of(each): each for each in (*accepted, key)}
        self._required = required
        self._begun = lru_cache(_PLACES)(_begin)
        self.refused: Counter[str] = Counter()

    def seal(self, kind: Kind, place: str, content: str | bytes) -> bytes:
        """Return `content` with a signature that is valid for this kind and this place."""
        data = content if isinstance(content, bytes) else content.encode()
        mac = self._mac(self._key, kind, place, data)
        if data[:1] == b"{" and data[-1:] == b"}":
            return b"".join((data[:-1], _IN_JSON, self._name, mac, _JSON_END))
        return b"".join((data, _BEHIND, self._name, mac))

    def open(self, kind: Kind, place: str, data: bytes) -> bytes:
        """Return the signed content without the signature; count refusals.

        Raises:
            SignatureError: the data is unsigned or signed with an unknown key, or the signature
                does not match.
        """
        try:
            return self._open(kind, place, data)
        except SignatureError as exc:
            self.refused[f"{kind}: {exc}"] += 1
            raise

    def trusts(self, kind: Kind, place: str, data: bytes) -> bool:
        """Return whether `open` would accept the data, without counting refusals."""
        try:
            self._open(kind, place, data)
        except SignatureError:
            return False
        return True

    def reseal(self, kind: Kind, place: str, data: bytes, changed: str) -> str | bytes:
        """Return `changed`, a new version of `data`, signed if `data` is signed.

        If `data` is refused, it is returned unchanged: unsigned data never gets a signature.
        """
        try:
            content = self._open(kind, place, data)
        except SignatureError:
            return data
        return changed if content is data else self.seal(kind, place, changed)

    def _open(self, kind: Kind, place: str, data: bytes) -> bytes:
        if data[_JSON_CUT:_JSON_START] == _IN_JSON and data[-2:] == _JSON_END:
            digits, content = data[_JSON_START : -len(_JSON_END)], data[:_JSON_CUT] + b"}"
        elif data[_BEHIND_CUT:-_DIGITS] == _BEHIND:
            digits, content = data[-_DIGITS:], data[:_BEHIND_CUT]
        elif self._required:
            raise SignatureError(_UNSIGNED)
        else:
            return data
        key = self._keys.get(digits[:_KEY_DIGITS])
        if key is None:
            raise SignatureError(_UNKNOWN)
        if not compare_digest(digits[_KEY_DIGITS:], self._mac(key, kind, place, content)):
            raise SignatureError(_WRONG)
        return content

    def _mac(self, key: bytes, kind: Kind, place: str, content: bytes) -> bytes:
        """Compute an HMAC; for short data, this takes a third as long as `hmac.digest`."""
        begin_inner, begin_outer = self._begun(key, kind, place)
        inner = begin_inner()
        inner.update(content)
        outer = begin_outer()
        outer.update(inner.digest())
        return hexlify(outer.digest()[: _MAC_DIGITS // 2])


def _name_of(key: bytes) -> bytes:
    """Return digits that identify a key without revealing it."""
    return digest(key, b"greenq 1 name of the key", "sha256").hex()[:_KEY_DIGITS].encode()


def _begin(key: bytes, kind: Kind, place: str) -> tuple[Callable[[], _Hash], Callable[[], _Hash]]:
    """Return functions for the two hashes of an HMAC; the inner one includes the heading."""
    block = (sha256(key).digest() if len(key) > _BLOCK_BYTES else key).ljust(_BLOCK_BYTES, b"\0")
    where = place.encode("utf-8", "surrogatepass")
    heading = b"greenq 1 %b %d %b\n" % (kind.encode(), len(where), where)
    inner, outer = sha256(block.translate(_INNER) + heading), sha256(block.translate(_OUTER))
    return inner.copy, outer.copy
