"""Drains of workflows' tasks compared with plain tasks: ``python -m benchmarks.steps``.

Prints Markdown; takes five minutes. Each drain has a new server, a client that sends everything
before any worker runs, and one worker that runs 500 no-ops at once. The queue is renamed while the
worker starts and warms up. The clock runs from the renaming that puts the queue back until nothing
is waiting or running, and each workflow's last result is stored. The kinds and the contenders
alternate.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from benchmarks import proc
from benchmarks.launch import Workers, run_client, workers
from benchmarks.peer import Peer, Setup
from benchmarks.peers.celery.peer import PEER as CELERY
from benchmarks.peers.celery.peer import TUNED
from benchmarks.peers.greenq.peer import PEER as GREENQ
from benchmarks.server import Server, valkey

_PEERS = {"greenq": GREENQ, "celery": CELERY, "celery-tuned": TUNED}
_TASKS = {"greenq": 20_000, "celery": 2_000, "celery-tuned": 2_000}
_STAGED = "bench.staged"
_POLL_S = 0.01
_SETTLED_S = 3.0
_DEADLINE_S = 180.0
_MANY = 1_000
_LONG = 10
_PORTION = 1_000

PLAIN = "plain tasks"
KINDS = (PLAIN, "groups of 1,000", "chords of 1,000", "chains of 10")

Figures = dict[str, float]


def send(package: str, kind: str, count: int) -> list[str]:
    """Send `count` no-ops while no worker runs; return the id of each workflow's last task."""
    noop = importlib.import_module(f"benchmarks.peers.{package}.tasks").noop
    canvas: Any = importlib.import_module(package)

    def members(number: int) -> Iterable[Any]:
        return (noop.si() for _ in range(number))

    if kind == PLAIN:
        return [noop.delay().id for _ in range(count)]
    if kind.startswith("chains"):
        chains = (canvas.chain(*members(_LONG)).apply_async() for _ in range(count // _LONG))
        return [each.id for each in chains]
    groups = count // _MANY
    if kind.startswith("groups"):
        found = [canvas.group(members(_MANY)).apply_async() for _ in range(groups)]
        return [member.id for group in found for member in group]
    # The body is one of the tasks.
    chords = (canvas.chord(list(members(_MANY - 1)), noop.si()) for _ in range(groups))
    return [each.apply_async().id for each in chords]


def drain(peer: Peer, kind: str, count: int) -> Figures:
    """Measure one contender once.

    Raises:
        RuntimeError: the worker ended or was too slow, or a task failed.
    """
    package = peer.key.partition("-")[0]
    own = replace(peer, client=("python", "-m", "benchmarks.steps"))
    with valkey() as server, server.client() as client:
        ends = json.loads(run_client(server, own, Setup(), "--send", package, kind, str(count)))
        client.rename(peer.queue, _STAGED)
        with workers(server, peer, Setup()) as started:
            time.sleep(_SETTLED_S)
            warm = json.loads(run_client(server, own, Setup(), "--send", package, PLAIN, "100"))
            _await_ends(server, started, warm)
            worker_s = proc.precise_cpu_s(started.pids)
            server_s = proc.precise_cpu_s([server.pid])
            began_s = time.perf_counter()
            client.rename(_STAGED, peer.queue)
            _await_ends(server, started, ends)
            taken_s = time.perf_counter() - began_s
            worker_s = proc.precise_cpu_s(started.pids) - worker_s
            server_s = proc.precise_cpu_s([server.pid]) - server_s
            return {
                "tasks a second": count / taken_s,
                "worker's CPU, µs a task": 1e6 * worker_s / count,
                "server's CPU, µs a task": 1e6 * server_s / count,
            }


def _await_ends(server: Server, started: Workers, ids: list[str]) -> None:
    """Wait until nothing is waiting or running and the tasks `ids` have succeeded."""
    keys = [f"celery-task-meta-{task_id}" for task_id in ids]
    deadline = time.monotonic() + _DEADLINE_S
    with server.client() as client:
        for first in range(0, len(keys), _PORTION):
            portion = keys[first : first + _PORTION]
            while _is_busy(started.peer, client) or client.exists(*portion) < len(portion):
                time.sleep(_POLL_S)
                started.check_alive()
                if time.monotonic() > deadline:
                    raise started.complaint("too slow")
            for stored in client.mget(portion):
                if json.loads(stored)["status"] != "SUCCESS":
                    raise started.complaint(f"a task failed: {stored!r}")


def _is_busy(peer: Peer, client: Any) -> bool:
    return any(client.execute_command(*gauge) for gauge in peer.left)


def table(found: Mapping[str, Mapping[str, list[Figures]]]) -> str:
    """Return the medians of each kind and contender as Markdown, with the ratio to plain tasks."""
    lines = []
    for key, by_kind in found.items():
        figures = [*next(iter(by_kind.values()))[0]]
        lines += [
            f"\n| {_PEERS[key].title} | {' | '.join(figures)} | of the rate of plain tasks |",
            "| --- |" + " --- |" * (len(figures) + 1),
        ]
        for kind, rounds in by_kind.items():
            cells = [f"{statistics.median(each[name] for each in rounds):,.0f}" for name in figures]
            # Compare round by round, since the machine is faster at some times than at others.
            ratio = statistics.median(
                own["tasks a second"] / plain["tasks a second"]
                for own, plain in zip(rounds, by_kind[PLAIN], strict=True)
            )
            lines.append(f"| {kind} | {' | '.join(cells)} | {ratio:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure all kinds and print a table for each contender."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--peers", default=",".join(_PEERS), help="of: %(default)s")
    parser.add_argument("--send", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.send:
        package, kind, count = given.send
        print(json.dumps(send(package, kind, int(count))))
        return
    found: dict[str, dict[str, list[Figures]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(given.rounds):
        for key in given.peers.split(","):
            for kind in KINDS:
                found[key][kind].append(drain(_PEERS[key], kind, _TASKS[key]))
    print(table(found))


if __name__ == "__main__":
    main()
