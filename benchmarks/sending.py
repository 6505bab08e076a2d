"""What it costs to send calls, one after another or many at once, from a new process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING

from benchmarks import environments
from benchmarks.peer import Setup, Surroundings
from benchmarks.plan import PEERS

if TYPE_CHECKING:
    from benchmarks.server import Server

_DEADLINE_S = 300.0


def one_by_one(server: Server, contender: str, count: int) -> dict[str, float]:
    """Measure a sender that waits for the server after each call."""
    return _send(server, contender, "one", count)


def bulk(server: Server, contender: str, count: int) -> dict[str, float]:
    """Measure a sender that sends all its calls together."""
    return _send(server, contender, "bulk", count)


def _send(server: Server, contender: str, how: str, count: int) -> dict[str, float]:
    """Run a sender until it exits, check that all calls arrived, and return its figures."""
    peer = PEERS[contender]
    with server.client() as client, tempfile.TemporaryDirectory() as folder:
        variables = environments.variables(peer) | Surroundings(server.url, Setup()).write()
        variables["BENCH_TALLY"] = folder
        before = client.info()
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.senders", contender, how, str(count)],
            env=variables, cwd=folder, capture_output=True, text=True,
            timeout=_DEADLINE_S, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{peer.title}: the sender failed:\n{done.stderr[-3000:]}")
        after = client.info()
        said = json.loads(done.stdout)
        arrived = client.llen("celery")
        if arrived != said["sent"]:
            raise RuntimeError(f"{peer.title}: {said['sent']} sent, {arrived} arrived")

    def grown(name: str) -> float:
        return (float(after[name]) - float(before[name])) / said["sent"]

    return {
        "tasks": count,
        "seconds": said["seconds"],
        "rate": count / said["seconds"],
        "client_cpu_us": 1e6 * said["cpu_s"] / count,
        "commands": grown("total_commands_processed"),
        "reads": grown("total_reads_processed"),
        "bytes_in": grown("total_net_input_bytes"),
    }
