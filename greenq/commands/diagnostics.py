"""Commands for debugging: memory, greenlets, the hub, and the server's records."""

from __future__ import annotations

import gc
import importlib
import resource
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greenq.commands.arguments import number
from greenq.commands.registry import inspect_command
from greenq.diagnostics.stacks import describe

if TYPE_CHECKING:
    from greenq.worker_parts.parts import Parts

# The maximum number of disagreeing records that are shown.
_RECORDS = 100


@inspect_command(urgent=True)
def memsample(worker: Parts, **_ignored: Any) -> str:
    """Return the resident memory as text."""
    return _megabytes(_rss_bytes())


@inspect_command(args=[("samples", int)], signature="[n_samples=10]")
def memdump(worker: Parts, samples: int = 10, **_ignored: Any) -> str:
    """Return the resident memory, its peak, and the most frequent types of objects."""
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counted = Counter(type(each).__name__ for each in gc.get_objects())
    lines = [f"rss {_megabytes(_rss_bytes())}, peak {_megabytes(peak_kb * 1024)}"]
    lines += [
        f"{count:>9}  {name}" for name, count in counted.most_common(number("samples", samples))
    ]
    return "\n".join(lines)


@inspect_command(args=[("num", int), ("max_depth", int), ("type", str)],
    signature="[object_type=Request] [num=200 [max_depth=10]]")  # fmt: skip
def objgraph(
    worker: Parts,
    num: int = 200,
    max_depth: int = 10,
    type: str = "Request",
) -> dict[str, object]:
    """Write a Graphviz file of the references to objects of a type; return its name."""
    try:
        graph = importlib.import_module("objgraph")
    except ImportError:
        raise ImportError("the package objgraph is not installed in the worker") from None
    with tempfile.NamedTemporaryFile(prefix="greenq-", suffix=".dot", delete=False) as file:
        found = graph.by_type(type)[: number("num", num)]
    graph.show_backrefs(found, max_depth=number("max_depth", max_depth), filename=file.name)
    return {"filename": file.name}


def _rss_bytes() -> int:
    pages = Path("/proc/self/statm").read_text("ascii").split()[1]
    return int(pages) * resource.getpagesize()


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.2f}MB"


@inspect_command(urgent=True, args=[("limit", int)], signature="[limit=100]")
def greenlets(worker: Parts, limit: int = 100) -> dict[str, Any]:
    """Show what running tasks are waiting for, and the age, hub time and stack of the oldest."""
    hub_s_of = worker.pool.hub_time.hub_s_of
    now = time.monotonic()
    return describe(worker.pool.active, limit=number("limit", limit), now=now, hub_s_of=hub_s_of)


@inspect_command(urgent=True)
def autoscale_log(worker: Parts) -> list[dict[str, object]]:
    """List the autoscaler's decisions and their reasons, oldest first."""
    history = worker.autoscaler.history if worker.autoscaler is not None else ()
    return [
        {
            "at": each.at_s,
            "backlog": each.backlog,
            "running": each.running,
            "size": each.size,
            "reason": each.reason,
        }
        for each in history
    ]


@inspect_command()
def records(worker: Parts) -> dict[str, object]:
    """Compare this worker's messages on the server with the messages that the worker knows.

    While no messages are being taken or settled, the two sets are equal. ``held`` and ``known`` are
    the numbers of messages. ``unknown`` lists tags that only the server has. ``missing`` lists ids
    of tasks that only the worker knows, since they were given to other workers.
    """
    broker = worker.app.transport.broker
    found = broker.tags_of(broker.client, worker.owner.incarnation)
    held = {tag for some in found for tag in some}
    reserved = {tag: each for tag, each in worker.state.reserved.items() if not each.settled}
    known = reserved.keys() | worker.outbox.tags()
    return {
        "held": len(held),
        "known": len(known),
        "unknown": sorted(held - known)[:_RECORDS],
        "missing": [reserved[tag].message.id for tag in reserved.keys() - held][:_RECORDS],
    }


@inspect_command(urgent=True)
def hub(worker: Parts) -> dict[str, object]:
    """Show the event loop's lag and what has blocked it."""
    blocker = worker.watch.blocking_now()
    return {
        "lag_s": worker.hub.lag_s,
        "lag": worker.hub.lags.info(),
        "blocked": None if blocker is None else asdict(blocker),
        "blockers": [asdict(each) for each in list(worker.watch.blockers)],
    }
