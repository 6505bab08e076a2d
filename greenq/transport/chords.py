"""Chords on the server, as senders write them: their sizes, and a list of incomplete headers.

The parts of a chord are counted when its tasks end. A worker compares their number with the size,
so the size is written just before the last part of the header is sent. A header that takes several
pushes is listed in ``greenq.unsealed`` until it has been sent completely. If its sender dies, the
entry stays and shows that the body will never run.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from greenq.errors import ResultsDisabled

if TYPE_CHECKING:
    from collections.abc import Iterable

    from greenq.protocol.keys import Keys
    from greenq.transport.client import Client

# Entries of senders that died are dropped after this time, when another chord is added.
_KEPT_S = 7 * 86400


class Unsealed(NamedTuple):
    """A chord whose header has not been sent completely.

    Attributes:
        since: when its sender began, in unix time by the server's clock.
        size: how many parts it will have, or None if its sender does not know this yet.
    """

    since: float
    group_id: str
    body: str
    body_id: str
    size: int | None


class Chords:
    """Writes a sender's chords, to the server for results and to the server for messages."""

    def __init__(self, broker: Client, results: Client | None, keys: Keys, expires_s: int) -> None:
        """Keep sizes on `results` for `expires_s` seconds; 0 means no limit."""
        self._broker = broker
        self._results = results
        self._keys = keys
        self._expires_s = expires_s

    def open(self, group_id: str, body: str, body_id: str, size: int | None) -> str:
        """Add an entry for a chord whose header is about to be sent, and return the entry."""
        entry = json.dumps({"group": group_id, "task": body, "id": body_id, "size": size})
        now_s = int(self._broker.call("TIME")[0])
        self._broker.pipeline(
            [
                ("ZREMRANGEBYSCORE", self._keys.unsealed, "-inf", now_s - _KEPT_S),
                ("ZADD", self._keys.unsealed, now_s, entry),
            ]
        )
        return entry

    def seal(self, sizes: Iterable[tuple[str, int]]) -> None:
        """Write how many parts each chord has; a worker then knows which part is the last.

        Raises:
            ResultsDisabled: the settings disable results.
        """
        if self._results is None:
            raise ResultsDisabled(
                "a chord collects results, but they are disabled: set result_backend"
            )
        commands: list[tuple[object, ...]] = []
        expiry = ("EX", self._expires_s) if self._expires_s else ()
        for group_id, size in sizes:
            key = self._keys.group(group_id)
            commands += [("DEL", f"{key}.c"), ("SET", f"{key}.s", size, *expiry)]
        if commands:
            self._results.pipeline(commands)

    def close(self, entry: str) -> None:
        """Remove the entry of a chord whose header has been sent."""
        self._broker.call("ZREM", self._keys.unsealed, entry)

    def unsealed(self, older_s: float = 0) -> list[Unsealed]:
        """Return the chords listed for at least `older_s` seconds, oldest first."""
        now_s = int(self._broker.call("TIME")[0])
        found = self._broker.call(
            "ZRANGEBYSCORE", self._keys.unsealed, "-inf", now_s - older_s, "WITHSCORES"
        )
        return [
            Unsealed(float(since), *map(json.loads(entry).get, ("group", "task", "id", "size")))
            for entry, since in zip(found[::2], found[1::2], strict=True)
        ]
