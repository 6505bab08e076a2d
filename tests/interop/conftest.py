"""Both directions as one fixture: a Celery client with a greenq worker, and the other way round."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from celery import Celery
from celery import exceptions as celery_errors

from greenq import Greenq, errors
from tests.servers import Process, Server, celery_worker, greenq_worker
from tests.support import close_celery

BOTH_WAYS = ("celery to greenq", "greenq to celery")


@dataclass(frozen=True)
class Way:
    """A client of one kind, a worker of the other, and what the client's errors are called.

    Attributes:
        client: the app that sends; Celery's and greenq's have what is used here in common.
        worker: the other one's worker.
        server: where they meet.
        errors: the module of the client's exceptions.
    """

    client: Any
    worker: Process
    server: Server
    errors: Any

    def send(self, name: str, *args: Any, **options: Any) -> Any:
        """Send ``shared.<name>`` and return the client's AsyncResult."""
        return self.client.send_task(f"shared.{name}", args, **options)

    def result_key(self, task_id: str) -> str:
        return f"celery-task-meta-{task_id}"


@contextmanager
def celery_client(url: str, **settings: Any) -> Iterator[Celery]:
    """Make a Celery app in this process that only sends."""
    app = Celery("client", broker=url, backend=url, set_as_current=False)
    app.conf.update(settings)
    try:
        yield app
    finally:
        # Celery's results speak with the server when they are collected.
        gc.collect()
        # Those that live on must not: their connection would be left open.
        app.backend.remove_pending_result = lambda _result: None
        close_celery(app)


@contextmanager
def greenq_client(url: str, **settings: Any) -> Iterator[Greenq]:
    """Make a greenq app in this process that only sends."""
    app = Greenq("client", broker=url, set_as_current=False, **settings)
    try:
        yield app
    finally:
        app.close()


@contextmanager
def open_way(direction: str, server: Server, **settings: Any) -> Iterator[Way]:
    """Start a worker and make a client of the other kind, both with `settings`."""
    with ExitStack() as stack:
        if direction == "celery to greenq":
            # All that Celery's clients may send there; Celery knows no such setting.
            ours = {"accept_compression": ["gzip", "bzip2"], **settings}
            worker = stack.enter_context(greenq_worker(server.url, settings=ours))
            client: Any = stack.enter_context(celery_client(server.url, **settings))
            yield Way(client, worker, server, celery_errors)
        else:
            worker = stack.enter_context(celery_worker(server.url, settings=settings))
            client = stack.enter_context(greenq_client(server.url, **settings))
            yield Way(client, worker, server, errors)


@pytest.fixture(scope="module", params=BOTH_WAYS)
def way(request: pytest.FixtureRequest, shared_server: Server) -> Iterator[Way]:
    """Each direction in turn, with one worker for the whole module."""
    shared_server.flush()
    with open_way(request.param, shared_server) as opened:
        yield opened
