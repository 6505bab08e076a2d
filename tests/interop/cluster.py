"""Celery's programs beside greenq's workers: its command line, and workers that speak with ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from celery import Celery

from greenq import Greenq
from tests.servers import APPS, ROOT, Process, Server, celery_worker
from tests.support import wait_until

WAIT_S = 15


def environment(server: Server) -> dict[str, str]:
    """Return what Celery's programs need to find ``-A celery_app`` and the server."""
    return os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{APPS}",
        "PYTHONUNBUFFERED": "1",
        "TEST_BROKER": server.url,
        "TEST_SETTINGS": "{}",
    }


@dataclass(frozen=True)
class Ended:
    """What a program wrote, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it wrote, read as JSON; it must have ended well."""
        assert self.code == 0, self
        return json.loads(self.out.splitlines()[0])


def celery(server: Server, *arguments: str) -> Ended:
    """Run Celery's own command line to its end."""
    run = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "celery_app", *arguments],
        env=environment(server),
        cwd=APPS,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Ended(run.returncode, run.stdout, run.stderr)


_EACH = """
import json, sys
from celery.bin.celery import celery
from click.testing import CliRunner
for arguments in json.load(sys.stdin):
    ended = CliRunner().invoke(celery, ["-A", "celery_app", *arguments])
    print(json.dumps((ended.exit_code, ended.stdout, ended.stderr)))
"""


def celery_each(server: Server, commands: Sequence[Sequence[str]]) -> list[Ended]:
    """Run Celery's command line once per command, in one process: each takes a second to start."""
    run = subprocess.run(
        [sys.executable, "-c", _EACH],
        input=json.dumps(commands),
        env=environment(server),
        cwd=APPS,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return [Ended(*json.loads(line)) for line in run.stdout.splitlines()]


@contextmanager
def celery_member(server: Server, *options: str, **others: Any) -> Iterator[Process]:
    """Run a Celery worker with gevent that takes part in the cluster; its end is quick and hard."""
    others = {"pool": "gevent", "concurrency": 10, "alone": False, **others}
    with celery_worker(server.url, *options, **others) as worker:
        try:
            yield worker
        finally:
            # Its warm end takes seconds, and is Celery's own business.
            worker.kill()


def wait_for_nodes(app: Celery | Greenq, nodes: Sequence[str]) -> None:
    """Wait until all of these workers listen to remote control."""

    def answer() -> bool:
        replies = app.control.ping(destination=list(nodes), timeout=1) or []
        return {node for reply in replies for node in reply} == set(nodes)

    wait_until(answer, 30)


def unlike(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Name what differs between two answers in keys and types; our own keys beside are none."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        lacks = [f"{path}.{key} lacks" for key in theirs if key not in ours]
        shared = [key for key in theirs if key in ours]
        return lacks + [
            found for key in shared for found in unlike(ours[key], theirs[key], f"{path}.{key}")
        ]
    if isinstance(theirs, list) and isinstance(ours, list):
        pairs = zip(ours[:1], theirs[:1], strict=False)
        return [found for mine, their in pairs for found in unlike(mine, their, f"{path}[]")]
    if type(ours) is type(theirs) or {type(ours), type(theirs)} == {int, float}:
        return []
    return [f"{path} is {ours!r}, not {theirs!r}"]
