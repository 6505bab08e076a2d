"""Signals of a Celery worker and of a greenq worker: the same names, senders and arguments."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.apps.signal_receivers import OF_APP, TASK, WORKER
from tests.interop.conftest import celery_client
from tests.servers import Process, Server, celery_worker, greenq_worker
from tests.support import wait_until

pytestmark = pytest.mark.interop

# What Celery's solo pool, which this is compared with, does not send.
ONLY_HERE = {"worker_process_shutdown"}
# Nothing in this test causes it.
NEVER = {"task_internal_error"}

IDS = ("well", "badly", "twice", "sends", "sent", "revoked", "expired", "unknown")


def lines_of(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    # Without what is being written.
    return [json.loads(line) for line in path.read_text().rpartition("\n")[0].splitlines()]


def what_is_sent(
    worker: Callable[[], AbstractContextManager[Process]], server: Server, path: Path
) -> list[dict[str, Any]]:
    """Have tasks end in all ways, and return what the receivers have noted."""

    def seen(name: str) -> list[Any]:
        return [line["about"] for line in lines_of(path) if line["signal"] == name]

    with worker() as running, celery_client(server.url) as client:
        wait_until(lambda: seen("worker_ready"), 30)
        replies = client.control.revoke("revoked", reply=True, timeout=10, limit=1)
        assert replies
        for name in ("well", "badly", "twice", "revoked"):
            client.send_task(f"told.{name.replace('revoked', 'well')}", task_id=name)
        client.send_task("told.sends", ("sent",), task_id="sends")
        client.send_task("told.well", task_id="expired", expires=-1)
        client.send_task("told.unknown", task_id="unknown")
        # Celery itself would not send this: a body that is no task call.
        with client.producer_pool.acquire() as producer:
            producer.publish({"no": "task"}, routing_key="celery", exchange="")
        wait_until(lambda: len(seen("task_postrun")) == 6, 30)
        wait_until(lambda: {"revoked", "expired"} == set(seen("task_revoked")), 30)
        wait_until(lambda: seen("task_unknown") and seen("task_rejected"), 30)
        wait_until(lambda: seen("heartbeat_sent"), 30)
        assert running.stop() == 0, running.text
    return lines_of(path)


def test_same_names_senders_and_arguments(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for kind, start in (
        ("celery", partial(celery_worker, pool="solo", concurrency=1)),
        ("greenq", partial(greenq_worker)),
    ):
        path = tmp_path / kind
        monkeypatch.setenv("TEST_SIGNALS", str(path))
        server.flush()
        app = f"signals_{kind}"
        found[kind] = what_is_sent(partial(start, server.url, app=app), server, path)

    def shapes(kind: str) -> dict[str, set[tuple[Any, ...]]]:
        made: dict[str, set[tuple[Any, ...]]] = {}
        for line in found[kind]:
            shape = (line["sender"], *line["keys"])
            made.setdefault(line["signal"], set()).add(shape)
        return made

    def story(kind: str, task_id: str) -> list[str]:
        return [line["signal"] for line in found[kind] if line["about"] == task_id]

    theirs, ours = shapes("celery"), shapes("greenq")
    assert ours.keys() == {*WORKER, *TASK, *OF_APP} - NEVER
    assert theirs == {name: shape for name, shape in ours.items() if name not in ONLY_HERE}
    # And about each task in the same order.
    for task_id in IDS:
        assert story("greenq", task_id) == story("celery", task_id), task_id
        assert story("greenq", task_id)
    stops = {
        kind: [line["texts"] for line in found[kind] if line["signal"] == "worker_shutting_down"]
        for kind in found
    }
    assert stops["greenq"] == stops["celery"] == [{"sig": "SIGTERM", "how": "Warm"}]
