"""Who holds a lease: the live workers of greenq, as anybody may ask who has a client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from greenq.transport.leases import Owner

if TYPE_CHECKING:
    from greenq.protocol.keys import Keys
    from greenq.transport.client import Client

# An election is decided without an answer after two seconds.
_TIMEOUT_S = 2.0


def living_nodes(client: Client, keys: Keys) -> set[str]:
    """Return the names of the nodes whose lease has not ended. Switches: yes.

    Raises:
        OperationalError: the server is lost, or refuses.
    """
    time, leases = client.pipeline(
        [("TIME",), ("ZRANGE", keys.leases, 0, -1, "WITHSCORES")], timeout_s=_TIMEOUT_S
    )
    now = int(time[0])
    members, ends = leases[::2], leases[1::2]
    return {
        Owner.parse(member.decode(errors="replace")).node
        for member, end in zip(members, ends, strict=True)
        if float(end) > now
    }
