"""What the live workers of greenq know of each other by the server: who they are, and their clock.

Anybody may ask who has a client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from greenq.errors import OperationalError
from greenq.transport.leases import Owner

if TYPE_CHECKING:
    from greenq.protocol.keys import Keys
    from greenq.transport.client import Client

# An election is decided without an answer after two seconds.
_TIMEOUT_S = 2.0

# The one member of the clock's set, and how long that is kept when nobody is left.
_MEMBER = "highest"
_KEPT_S = 7 * 24 * 3600


def look_around(client: Client, keys: Keys, clock: int) -> tuple[set[str], int]:
    """Return the nodes whose lease has not ended, and the highest clock that any of them has told.

    Args:
        clock: this worker's, which the others are told in the same round trip.

    Raises:
        OperationalError: the server is lost, or refuses to tell who is there.
    """
    with client.pooled(_TIMEOUT_S) as connection:
        time, leases, *rest = connection.try_pipeline(
            [
                ("TIME",),
                ("ZRANGE", keys.leases, 0, -1, "WITHSCORES"),
                # The larger of both numbers stays.
                ("ZADD", keys.clock, "GT", clock, _MEMBER),
                ("EXPIRE", keys.clock, _KEPT_S),
                ("ZSCORE", keys.clock, _MEMBER),
            ]
        )
    for answer in (time, leases):
        if isinstance(answer, OperationalError):
            raise answer
    # A server without memory does not take the clock; that must not hide who is there.
    highest = 0 if isinstance(rest[-1], OperationalError) else int(float(rest[-1] or 0))
    return _living(leases, float(time[0])), highest


def _living(leases: list[bytes], now: float) -> set[str]:
    ends = zip(leases[::2], leases[1::2], strict=True)
    living = [member for member, end in ends if float(end) > now]
    return {Owner.parse(member.decode(errors="replace")).node for member in living}
