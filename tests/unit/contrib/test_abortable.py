"""Tasks that stop when they are asked to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.contrib.abortable import AbortableAsyncResult as CelerysResult

from greenq import Greenq
from greenq.contrib.abortable import ABORTED, AbortableAsyncResult, AbortableTask
from greenq.protocol.message import TaskMessage
from greenq.sending.context import Context, current_context
from tests.servers import Server
from tests.support import close_celery


@pytest.fixture
def app(server: Server) -> Iterator[Greenq]:
    made = Greenq("abort", broker=server.url, set_as_current=False)
    yield made
    made.close()


def test_running_task_sees_that_it_is_to_stop(app: Greenq) -> None:
    steps: list[bool] = []

    @app.task(base=AbortableTask, bind=True)
    def long(self: Any) -> None:
        steps.append(self.is_aborted())

    sent = long.delay()
    assert isinstance(sent, AbortableAsyncResult)
    assert (sent.is_aborted(), sent.state) == (False, "PENDING")
    before = current_context.set(Context(TaskMessage(task=long.name, id=sent.id)))
    try:
        long.run()
        long.AsyncResult(sent.id).abort()
        long.run()
    finally:
        current_context.reset(before)
    assert steps == [False, True]
    assert (sent.is_aborted(), sent.state, sent.ready()) == (True, ABORTED, False)
    assert long.is_aborted(task_id=sent.id)


def test_task_that_has_ended_keeps_its_state(app: Greenq) -> None:
    for task_id, state in (("a", "SUCCESS"), ("b", "FAILURE")):
        app.backend.store(task_id, state, ValueError("no") if state == "FAILURE" else 1)
        handle: AbortableAsyncResult[int] = AbortableAsyncResult(task_id, app=app)
        handle.abort()
        assert (handle.is_aborted(), handle.state) == (False, state)


def test_eager_task_is_not_aborted() -> None:
    app = Greenq("abort", broker="redis://127.0.0.1:1/0", task_always_eager=True)

    @app.task(base=AbortableTask, bind=True)
    def long(self: Any) -> bool:
        return bool(self.is_aborted())

    assert long.delay().get() is False


# Celery uses commands that redis-py calls deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_celery_aborts_it_and_sees_it(app: Greenq, server: Server) -> None:
    celery = Celery("other", broker=server.url, backend=server.url, set_as_current=False)
    theirs = CelerysResult("a", app=celery)
    theirs.abort()
    ours: AbortableAsyncResult[Any] = AbortableAsyncResult("a", app=app)
    assert ours.is_aborted()
    AbortableAsyncResult[Any]("b", app=app).abort()
    assert CelerysResult("b", app=celery).is_aborted()
    del theirs
    close_celery(celery)
