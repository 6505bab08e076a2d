"""Revoked tasks on the server, so that workers that start later also learn of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from greenq.protocol.limits import KEY
from greenq.transport.client import load_script

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from greenq.protocol.keys import Keys
    from greenq.transport.client import Client

_REVOKE = load_script("revoke")

MOST: Final = 50_000

# The limit on the memory for revocations on the server. A worker keeps 4,000,000 characters of ids,
# and the same amount of stamps.
MOST_BYTES: Final = 32 << 20

# How many entries one call adds, and how many one call reads.
_ADDED: Final = 1000
_READ: Final = 10_000


class RevokeStore:
    """The revoked tasks of a cluster: ids, and stamps as pairs of a name and a value."""

    def __init__(self, client: Client, keys: Keys, *, keep_s: float) -> None:
        """Keep each revocation on the server for `keep_s` seconds."""
        self._client = client
        self._key = keys.revoked
        self._keep_s = keep_s
        # The highest time read so far; the next read begins after this time.
        self._read = "-inf"

    def add(self, revoked: Sequence[tuple[str, ...]]) -> None:
        """Add ids and stamps. Switches: yes.

        Raises:
            OperationalError: the server cannot be reached, or refuses.
        """
        for place in range(0, len(revoked), _ADDED):
            members = [json.dumps(each) for each in revoked[place : place + _ADDED]]
            self._client.script(_REVOKE, [self._key], [self._keep_s, MOST, MOST_BYTES, *members])

    def read_new(self) -> list[tuple[tuple[str, ...], float]]:
        """Return what was added since the last call, with ages in seconds. Switches: yes.

        Raises:
            OperationalError: the server cannot be reached, or refuses.
        """
        seconds, microseconds = self._client.call("TIME")
        now = int(seconds) + int(microseconds) / 1e6
        found: list[tuple[tuple[str, ...], float]] = []
        least, last = self._read, ""
        for offset in range(0, MOST, _READ):
            pairs = self._client.call(
                "ZRANGEBYSCORE", self._key, least, "+inf", "WITHSCORES", "LIMIT", offset, _READ
            )
            for member, score in zip(pairs[::2], pairs[1::2], strict=True):
                last = score.decode()
                found += ((texts, max(0.0, now - float(score))) for texts in _parse(member))
            if len(pairs) < 2 * _READ:
                break
        if last:
            self._read = f"({last}"
        return found


def _parse(member: bytes) -> Iterator[tuple[str, ...]]:
    """Yield the id or the stamp in a member; yield nothing if greenq did not write the member."""
    try:
        texts = json.loads(member)
    except ValueError:
        return
    if isinstance(texts, list) and 1 <= len(texts) <= 2 and all(map(KEY.takes, texts)):
        yield tuple(texts)
