"""A fleet that signs is for greenq: Celery clients are refused, Celery workers see no signature."""

from __future__ import annotations

import json

from greenq import Greenq
from tests.interop.conftest import celery_client
from tests.servers import Server, celery_worker, greenq_worker
from tests.support import wait_until

SIGNED = {"security_signing_key": "a key of the tests that is long enough"}


def test_celerys_clients_are_refused(server: Server) -> None:
    with greenq_worker(server.url, settings=SIGNED), celery_client(server.url) as client:
        task_id = client.send_task("shared.add", (1, 2)).id
        wait_until(server.dead_letters, 15)
        (letter,) = server.dead_letters()
        assert (letter.task_id, letter.reason) == (task_id, "unsigned")
        assert not server.client.exists(f"celery-task-meta-{task_id}")
        with client.connection_for_write() as connection:
            assert client.control.ping(timeout=0.5, connection=connection) == []


def test_celerys_workers_read_what_is_signed(server: Server) -> None:
    """The signature is none of their headers; their results are refused where a key is set."""
    app = Greenq("client", broker=server.url, set_as_current=False, **SIGNED)
    with celery_worker(server.url):
        result = app.send_task("shared.inspect_request", (1,))
        key = f"celery-task-meta-{result.id}"
        wait_until(lambda: server.client.exists(key), 20)
    assert "greenq_sig" not in json.dumps(json.loads(server.client.get(key)))
    app.close()
