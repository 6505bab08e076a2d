"""Settings of workflows and of eager mode, seen to act on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from greenq import Greenq, chord
from tests.servers import Server, greenq_worker
from tests.support import wait_until

WAIT_S = 20


@contextmanager
def half_done(server: Server, **settings: Any) -> Iterator[tuple[str, Any]]:
    """Send a chord of which one part has ended; give the key of its parts, and its handle."""
    server.flush()
    app = Greenq("client", broker=server.url, set_as_current=False, **settings)
    try:
        with greenq_worker(server.url, "-c", "4", app="workflows_greenq", settings=settings):
            header = [
                app.signature("flow.add", args=(1, 2)),
                app.signature("flow.slow_add", args=(3.0, 4)),
            ]
            result = chord(header, app.signature("flow.total"))()
            wait_until(lambda: any(server.client.scan_iter("celery-taskset-meta-*.j")), WAIT_S)
            (parts,) = server.client.scan_iter("celery-taskset-meta-*.j")
            yield parts.decode(), result
            assert result.get(timeout=WAIT_S) == 7
    finally:
        app.close()


@pytest.mark.parametrize(("seconds", "longest_s"), [(77, 77), (None, 86400)])
def test_keys_of_a_chord_expire(server: Server, seconds: int | None, longest_s: int) -> None:
    settings = {} if seconds is None else {"result_chord_expires": seconds}
    with half_done(server, **settings) as (parts, _result):
        size = parts.removesuffix("j") + "s"
        for key in (parts, size):
            assert longest_s - 20 < server.client.ttl(key) <= longest_s


@pytest.mark.parametrize(("ordered", "kind"), [(True, b"zset"), (False, b"list")])
def test_parts_of_a_chord_are_kept_in_order_or_as_they_come(
    server: Server, ordered: bool, kind: bytes
) -> None:
    options = {"result_chord_ordered": ordered}
    with half_done(server, result_backend_transport_options=options) as (parts, _result):
        assert server.client.type(parts) == kind


@pytest.mark.parametrize("stores", [False, True])
def test_task_store_eager_result_writes_what_ran_here(server: Server, stores: bool) -> None:
    app = Greenq(
        "eager", broker=server.url, set_as_current=False, task_always_eager=True,
        task_store_eager_result=stores,
    )  # fmt: skip

    @app.task
    def double(number: int) -> int:
        return 2 * number

    result = double.delay(21)
    assert result.get() == 42
    assert app.AsyncResult(result.id).state == ("SUCCESS" if stores else "PENDING")
    app.close()
