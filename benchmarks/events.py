"""Events of tasks and workers, received and sent as Celery's monitors and workers do."""

from __future__ import annotations

import os
import platform
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from greenq import __version__
from greenq.protocol.clock import LamportClock
from greenq.protocol.event import EXCHANGE, EventWriter, read_events, routing_key
from greenq.protocol.keys import Keys

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

# The number of events of a successful task: received, started, succeeded.
A_TASK = 3

_BEAT = "worker-heartbeat"
_CHANNEL = Keys().fanout(EXCHANGE, routing_key(_BEAT))
_TASKS = Keys().fanout(EXCHANGE, "task.*")
_ACCEPTED = frozenset({"application/json"})
_LAST_S = 10.0


@contextmanager
def told(client: redis.Redis, count: int) -> Iterator[None]:
    """Check that `count` task events are published during the block, or soon after.

    Raises:
        RuntimeError: fewer events were published.
    """
    with client.pubsub(ignore_subscribe_messages=True) as heard:
        heard.psubscribe(_TASKS)
        # Wait for the server's confirmation of the subscription.
        heard.get_message(timeout=_LAST_S)
        yield
        seen, deadline = 0, time.monotonic() + _LAST_S
        while seen < count and time.monotonic() < deadline:
            message = heard.get_message(timeout=0.1)
            seen += len(read_events(message["data"], _ACCEPTED)) if message else 0
    if seen < count:
        raise RuntimeError(f"only {seen} of {count} task events were published")


class Heartbeats:
    """Heartbeats of simulated workers, each with its own name and clock."""

    def __init__(self, client: redis.Redis, workers: int, every_s: float) -> None:
        """Publish with `client`."""
        self._client = client
        names = [f"greenq@machine-{number}.example.com" for number in range(1, workers + 1)]
        self._writers = [EventWriter(name, LamportClock()) for name in names]
        self._every_s = every_s

    def send(self, seconds: float) -> int:
        """Publish heartbeats, evenly spread over `seconds`; return how many were published.

        Raises:
            RuntimeError: no worker is listening.
        """
        began_s, count = time.monotonic(), 0
        while (due_s := count * self._every_s / len(self._writers)) < seconds:
            time.sleep(max(0.0, began_s + due_s - time.monotonic()))
            if not self._publish(self._writers[count % len(self._writers)], count):
                raise RuntimeError("no worker is listening to heartbeats")
            count += 1
        return count

    def _publish(self, writer: EventWriter, processed: int) -> int:
        """Publish a heartbeat with Celery's fields; return how many clients have received it."""
        fields = {
            "freq": self._every_s,
            "active": processed % 500,
            "processed": 1000 * processed,
            "loadavg": [round(load, 2) for load in os.getloadavg()],
            "sw_ident": "greenq",
            "sw_ver": __version__,
            "sw_sys": platform.system(),
        }
        text = writer.write(writer.stamp(_BEAT, fields))
        heard: int = self._client.publish(_CHANNEL, text)
        return heard
