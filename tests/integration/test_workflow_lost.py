"""A header task that dies with its worker fails its chord, however it was acknowledged."""

from __future__ import annotations

import pytest

from greenq import Greenq, chord
from greenq.errors import ChordError
from tests.integration.test_workflow_errors import WAIT_S, Flow
from tests.servers import Server, greenq_worker
from tests.support import wait_until


@pytest.mark.parametrize("acks_late", [True, False])
def test_a_header_task_that_dies_with_its_worker(server: Server, acks_late: bool) -> None:
    app = Greenq("client", broker=server.url, set_as_current=False)
    flow = Flow(app, server)
    settings = {"task_acks_late": acks_late, "task_reject_on_worker_lost": False}
    body = flow.s("total", task_id="z").on_error(flow.errback)
    slow = app.signature("flow.hang", args=(1,)).set(task_id="x")
    with greenq_worker(server.url, "-c", "4", app="workflows_greenq", settings=settings) as first:
        result = chord([slow, flow.s("add", 1)], body).apply_async()
        first.wait_text("flow.hang[x] received")
        wait_until(lambda: server.client.exists("hangs"), WAIT_S)
        first.kill()
    with greenq_worker(server.url, "-c", "4", app="workflows_greenq", settings=settings):
        with pytest.raises(ChordError):
            result.get(timeout=30)
        # The errback, too, may be acknowledged before it runs.
        wait_until(lambda: flow.called() == ["z"], WAIT_S)
        flow.wait()
        assert flow.ends("x") == ["FAILURE WorkerLostError"]
    app.close()
