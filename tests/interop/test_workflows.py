"""Workflows that Celery clients send, run by greenq workers, alone and beside Celery's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from celery.exceptions import ChordError

from tests.interop.conftest import celery_client
from tests.servers import Server, celery_worker, greenq_worker
from tests.support import wait_until

pytestmark = pytest.mark.interop

WAIT_S = 8


class Flow:
    """A Celery client, and the server on which workers of one or both kinds run its workflows."""

    def __init__(self, app: Celery, server: Server) -> None:
        self.app = app
        self.server = server

    def s(self, name: str, *args: Any, **options: Any) -> Any:
        return self.app.signature(f"flow.{name}", args=args, options=options, app=self.app)

    def si(self, name: str, *args: Any) -> Any:
        return self.app.signature(f"flow.{name}", args=args, immutable=True, app=self.app)

    def seen(self, start: str = "") -> list[str]:
        lines = [line.decode() for line in self.server.client.lrange("seen", 0, -1)]
        return [line for line in lines if line.startswith(start)]

    def wait_seen(self, start: str, count: int = 1) -> list[str]:
        wait_until(lambda: len(self.seen(start)) >= count, WAIT_S)
        self.server.wait_settled()
        return self.seen(start)

    def outcome(self, result: Any) -> Any:
        """Return or raise what a task itself ended with: `get` looks at its parents first."""
        return self.app.AsyncResult(result.id).get(timeout=WAIT_S)

    def state(self, task_id: str) -> str:
        return str(self.app.AsyncResult(task_id).state)


@pytest.fixture(scope="module", params=["greenq", "both"])
def flow(request: pytest.FixtureRequest, shared_server: Server) -> Iterator[Flow]:
    shared_server.flush()
    with ExitStack() as stack:
        stack.enter_context(greenq_worker(shared_server.url, "-c", "4", app="workflows_greenq"))
        if request.param == "both":
            stack.enter_context(
                celery_worker(
                    shared_server.url, "--prefetch-multiplier", "1", app="workflows_celery",
                    concurrency=2,
                )
            )  # fmt: skip
        app = stack.enter_context(celery_client(shared_server.url))
        yield Flow(app, shared_server)


@pytest.fixture(autouse=True)
def nothing_seen(flow: Flow) -> None:
    flow.server.client.delete("seen")


def test_a_link_gets_the_result(flow: Flow) -> None:
    result = flow.s("add", 1, 2).apply_async(link=flow.s("add", 10))
    assert result.get(timeout=WAIT_S) == 3
    assert flow.wait_seen("add (3, 10)") == ["add (3, 10)"]
    assert result.children[0].get(timeout=WAIT_S) == 13


def test_a_chain_runs_step_by_step(flow: Flow) -> None:
    result = chain(flow.s("add", 1, 2), flow.s("add", 3), flow.s("add", 4), app=flow.app)()
    assert result.get(timeout=WAIT_S) == 10
    assert result.parent.get(timeout=WAIT_S) == 6
    assert flow.seen() == ["add (1, 2)", "add (3, 3)", "add (6, 4)"]


def test_a_step_knows_its_place(flow: Flow) -> None:
    result = chain(flow.s("add", 1), flow.s("place", 2), app=flow.app)()
    seen = result.get(timeout=WAIT_S)
    assert seen["args"] == [1, 2]
    assert (seen["id"], seen["parent"], seen["root"]) == (
        result.id, result.parent.id, result.parent.id,
    )  # fmt: skip


def test_a_retried_step_goes_on_once(flow: Flow) -> None:
    result = chain(flow.s("again", 5), flow.s("add", 1), app=flow.app)()
    assert result.get(timeout=WAIT_S) == 6
    assert flow.wait_seen("add") == ["add (5, 1)"]


def test_a_group_in_the_middle_of_a_chain_is_gathered(flow: Flow) -> None:
    result = chain(
        flow.s("add", 1),
        group([flow.s("add", 10), flow.s("add", 20)], app=flow.app),
        flow.s("total"),
        flow.s("add", 100),
        app=flow.app,
    )()
    assert result.get(timeout=WAIT_S) == 132
    assert flow.seen("total") == ["total [11, 21]"]


def test_a_chain_may_end_in_a_group(flow: Flow) -> None:
    members = group([flow.s("add", 10), flow.s("add", 20)], app=flow.app)
    result = chain(flow.s("add", 1), members, app=flow.app)()
    assert result.get(timeout=WAIT_S) == [11, 21]


def test_a_chord_has_its_results_in_order(flow: Flow) -> None:
    for size in (1, 2, 30):
        header = [flow.s("slow_add", 0.05 if n % 3 else 0.0, n) for n in range(size)]
        result = chord(header, app=flow.app)(flow.s("echo"))
        assert result.get(timeout=WAIT_S) == [list(range(size))]
    assert len(flow.wait_seen("echo", 3)) == 3


def test_chains_chords_and_groups_nest(flow: Flow) -> None:
    inner = chord([flow.s("add", 1), flow.s("add", 2)], flow.s("total"), app=flow.app)
    steps = chain(flow.s("add", 3), flow.s("add", 4), app=flow.app)
    body = chain(flow.s("total"), flow.s("add", 1000), app=flow.app)
    result = chord([inner, steps, flow.s("add", 5)], app=flow.app)(body)
    assert result.get(timeout=WAIT_S) == 1015
    assert len(flow.seen("total")) == 2


def test_chunks_and_starmap_run(flow: Flow) -> None:
    result = chord([flow.s("add", n) for n in range(3)], app=flow.app)(
        group([flow.s("echo", "a"), flow.s("echo", "b")], app=flow.app)
    )
    assert result.get(timeout=WAIT_S) == [[[0, 1, 2], "a"], [[0, 1, 2], "b"]]


def test_an_old_errback_gets_the_id(flow: Flow) -> None:
    result = flow.s("fail").apply_async(link_error=flow.s("old_errback"))
    with pytest.raises(ValueError, match="kaboom"):
        result.get(timeout=WAIT_S)
    assert flow.wait_seen("old_errback") == [f"old_errback {result.id}"]


def test_a_new_errback_gets_the_error(flow: Flow) -> None:
    result = flow.s("fail").apply_async(link_error=flow.s("new_errback"))
    with pytest.raises(ValueError, match="kaboom"):
        result.get(timeout=WAIT_S)
    assert flow.wait_seen("new_errback") == [f"new_errback {result.id} ValueError ('kaboom', 42)"]


def test_a_failed_step_fails_the_later_ones(flow: Flow) -> None:
    result = chain(
        flow.s("add", 1), flow.s("fail"), flow.s("add", 3), flow.s("add", 4), app=flow.app
    ).apply_async(link_error=flow.s("old_errback"))
    with pytest.raises(ValueError, match="kaboom"):
        result.get(timeout=WAIT_S)
    assert flow.wait_seen("old_errback") == [f"old_errback {result.parent.parent.id}"]
    assert flow.state(result.parent.id) == "FAILURE"
    assert flow.seen("add") == ["add (1,)"]


def test_a_failed_header_fails_the_body_and_calls_its_errback(flow: Flow) -> None:
    body = flow.s("total").on_error(flow.s("old_errback"))
    result = chord([flow.s("add", 1), flow.s("fail"), flow.s("add", 2)], app=flow.app)(body)
    with pytest.raises(ChordError, match=r"Dependency .* raised ValueError\('kaboom', 42\)"):
        flow.outcome(result)
    assert flow.wait_seen("old_errback") == [f"old_errback {result.id}"]
    assert flow.seen("total") == []


def test_a_failed_header_fails_what_follows_the_body(flow: Flow) -> None:
    result = chain(
        group([flow.s("add", 1), flow.s("fail")], app=flow.app), flow.s("total"), flow.s("add", 9),
        app=flow.app,
    )()  # fmt: skip
    with pytest.raises(ChordError):
        flow.outcome(result)
    assert flow.state(result.parent.id) == "FAILURE"


def test_a_failed_chain_in_a_header_fails_the_body(flow: Flow) -> None:
    steps = chain(flow.s("fail"), flow.s("add", 4), app=flow.app)
    result = chord([steps, flow.s("add", 5)], app=flow.app)(flow.s("total"))
    with pytest.raises(ChordError):
        flow.outcome(result)


def test_a_revoked_header_task_fails_the_body(flow: Flow) -> None:
    late = flow.s("add", 1, expires=-1)
    result = chord([late, flow.s("add", 2)], app=flow.app)(flow.s("total"))
    with pytest.raises(ChordError, match="expired"):
        flow.outcome(result)


def test_stamps_are_passed_on(flow: Flow) -> None:
    first = flow.s("add", 1)
    steps = chain(first, flow.s("place"), app=flow.app)
    steps.stamp(customer="c1")
    assert steps.apply_async().get(timeout=WAIT_S)["stamps"] == {"customer": "c1"}


def test_many_chords_at_once_send_one_body_each(flow: Flow) -> None:
    results = [
        chord([flow.s("add", n, m) for m in range(8)], app=flow.app)(flow.s("total"))
        for n in range(25)
    ]
    assert [each.get(timeout=60) for each in results] == [8 * n + 28 for n in range(25)]
    assert len(flow.wait_seen("total", 25)) == 25
