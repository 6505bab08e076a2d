"""The part of gossip's elections that needs the server and the app."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greenq.errors import ConfigError, Problem
from greenq.sending.options import SendOptions
from greenq.transport.members import look_around

if TYPE_CHECKING:
    from greenq.app import Greenq

# How long the server remembers which worker acted as the winner of an election.
_ELECTED_S = 3600


class Elections:
    """Finds the voters, claims the win on the server, and sends the task of an election."""

    def __init__(self, app: Greenq, hostname: str) -> None:
        """Act for the node `hostname` on the server of `app`."""
        self._app = app
        self._hostname = hostname

    def voters(self) -> set[str]:
        """Return the nodes that hold a lease, and exchange clocks with them. Switches: yes."""
        transport, clock = self._app.transport, self._app.clock
        nodes, highest = look_around(transport.client, transport.keys, clock.value)
        if highest > clock.value:
            clock.adjust(highest)
        return nodes

    def claim(self, election_id: str) -> bool:
        """Claim the win; return whether this node is the first to do so. Switches: yes."""
        transport = self._app.transport
        key = transport.keys.elected(election_id)
        set_now = transport.client.call("SET", key, self._hostname, "NX", "EX", _ELECTED_S)
        return set_now is not None

    def send(self, action: Any) -> None:
        """Send the task for which the election was held.

        Raises:
            ConfigError: `action` is not the signature of a task.
        """
        if not isinstance(action, dict) or not isinstance(action.get("task"), str):
            raise ConfigError([Problem("action", action, "is not the signature of a task")])
        options = {
            name: value
            for name, value in (action.get("options") or {}).items()
            if name in SendOptions.__annotations__
        }
        self._app.send_task(
            action["task"], action.get("args") or (), action.get("kwargs") or {}, **options
        )
