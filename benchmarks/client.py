"""The command line of a contender's client; it runs in the contender's environment.

fill FILE TASK COUNT ARG…    queue calls; write their names to FILE, one per line
check FILE VALUE             check that the calls named in FILE have returned VALUE (JSON)
latency COUNT                send and wait COUNT times; print the times (JSON)
ping WORKERS COUNT           ping WORKERS workers COUNT times; print the times (JSON)
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# How many results are read back one by one. A sample suffices, since the gauges count all results.
_SAMPLE = 500
# How long all workers may take to start.
_READY_S = 60.0


def main(
    send: Callable[[str, Sequence[float], int], Sequence[str]] | None = None,
    values: Callable[[Sequence[str]], Sequence[object]] | None = None,
    latencies: Callable[[int], Sequence[float]] | None = None,
    ping: Callable[[], Sequence[object]] | None = None,
) -> None:
    """Run the command line's command, if this client supports it.

    Args:
        send: queues a number of calls of a task; returns a name without line breaks for each.
        values: returns the results of the calls with these names; a missing one is an error.
        latencies: makes a number of calls one after the other; returns their times in seconds.
        ping: pings all workers and returns their replies.
    """
    command, first, *rest = sys.argv[1:]
    if command == "fill" and send is not None:
        task, count, *args = rest
        names = send(task, [_number(each) for each in args], int(count))
        Path(first).write_text("\n".join(names), "utf-8")
    elif command == "check" and values is not None:
        names = Path(first).read_text("utf-8").split("\n")
        _check(values(names[:: max(1, len(names) // _SAMPLE)]), json.loads(rest[0]))
    elif command == "latency" and latencies is not None:
        json.dump(latencies(int(first)), sys.stdout)
    elif command == "ping" and ping is not None:
        json.dump(_time_pings(ping, int(first), int(rest[0])), sys.stdout)
    else:
        sys.exit(f"this client has no command {command!r}")


def timed(call: Callable[[], object], count: int) -> list[float]:
    """Make a call `count` times, one after the other; return the times in seconds."""
    taken_s = []
    for _ in range(count):
        began_s = time.perf_counter()
        call()
        taken_s.append(time.perf_counter() - began_s)
    return taken_s


def _time_pings(ping: Callable[[], Sequence[object]], workers: int, count: int) -> list[float]:
    """Ping until all workers reply, then `count` times; return those times in seconds."""
    deadline = time.monotonic() + _READY_S
    while len(ping()) < workers:
        if time.monotonic() > deadline:
            sys.exit(f"not all {workers} workers reply")
    replies: list[int] = []
    taken_s = timed(lambda: replies.append(len(ping())), count)
    if set(replies) != {workers}:
        sys.exit(f"not every ping got a reply from all {workers} workers: {replies}")
    return taken_s


def _check(returned: Sequence[object], wanted: object) -> None:
    wrong = [value for value in returned if value != wanted]
    if wrong or not returned:
        sys.exit(f"{len(wrong)} of {len(returned)} calls did not return {wanted!r}: {wrong[:3]}")


def _number(word: str) -> float:
    return float(word) if "." in word else int(word)
