"""The command line of a contender's sending side; it runs in the contender's environment.

fill FILE TASK COUNT ARG…    queue calls; their names, one a line, go to FILE
check FILE VALUE             see that calls named there have returned VALUE (JSON)
latency COUNT                send and wait, so often; the times go to standard output (JSON)
ping WORKERS COUNT           ping so many workers, so often; the times likewise
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Results that are read back one by one: enough to know that they are right, the gauges count them.
_SAMPLE = 500
# For all workers to have started.
_READY_S = 60.0


def main(
    send: Callable[[str, Sequence[float], int], Sequence[str]] | None = None,
    values: Callable[[Sequence[str]], Sequence[object]] | None = None,
    latencies: Callable[[int], Sequence[float]] | None = None,
    ping: Callable[[], Sequence[object]] | None = None,
) -> None:
    """Do what the command line says, if this client can.

    Args:
        send: queues so many calls of a task and returns a name for each, in one line.
        values: returns what the calls of these names have returned; a missing one is an error.
        latencies: sends so many calls, each when the one before has ended; seconds.
        ping: asks all workers whether they are there and returns their replies.
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
        json.dump(_pinged(ping, int(first), int(rest[0])), sys.stdout)
    else:
        sys.exit(f"this client has no command {command!r}")


def timed(call: Callable[[], object], count: int) -> list[float]:
    """Make a call so often, one after the other; return the times in seconds."""
    taken_s = []
    for _ in range(count):
        began_s = time.perf_counter()
        call()
        taken_s.append(time.perf_counter() - began_s)
    return taken_s


def _pinged(ping: Callable[[], Sequence[object]], workers: int, count: int) -> list[float]:
    """Ping until all workers have replied, and then so often; return these times in seconds."""
    deadline = time.monotonic() + _READY_S
    while len(ping()) < workers:
        if time.monotonic() > deadline:
            sys.exit(f"not all {workers} workers reply")
    replies: list[int] = []
    taken_s = timed(lambda: replies.append(len(ping())), count)
    if set(replies) != {workers}:
        sys.exit(f"not each ping of {workers} workers got as many replies: {replies}")
    return taken_s


def _check(returned: Sequence[object], wanted: object) -> None:
    wrong = [value for value in returned if value != wanted]
    if wrong or not returned:
        sys.exit(f"{len(wrong)} of {len(returned)} calls returned not {wanted!r} but {wrong[:3]}")


def _number(word: str) -> float:
    return float(word) if "." in word else int(word)
