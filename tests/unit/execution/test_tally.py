"""The counts behind the metrics, and what they cost."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from greenq.errors import Reject
from greenq.execution import tally as tallies
from greenq.execution.tally import OTHER, RUNTIMES_S, WAITS_S, Series, TaskTally
from greenq.protocol.ids import new_id, tag_of, tag_prefix
from greenq.running.request import Request
from greenq.states import FAILURE, IGNORED, REJECTED, RETRY, REVOKED, SUCCESS
from greenq.transport.fetch import Delivery
from tests.unit.node import Node
from tests.unit.rig import settle, wait_for


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node()
    made.parts.state.tally = TaskTally()
    yield made
    made.close()


def tally_of(node: Node) -> TaskTally:
    assert node.parts.state.tally is not None
    return node.parts.state.tally


def request(node: Node, name: str = "wait", queue: str = "celery", **options: Any) -> Request:
    """Return a request that was sent a minute ago, unless `options` say something else."""
    sent_s = options.pop("sent_s", time.time() - 60)
    prepared = node.app.producer.prepare(name, (), {}, options)
    text = prepared["text"]
    old = text[text.rindex('"delivery_tag": "') + 17 :][:36]
    raw = text.replace(old, tag_of(tag_prefix(sent_s), new_id())).encode()
    message = node.parts.tasks.read(raw)
    made = Request(Delivery("o:1", queue, raw), message, node.app.tasks[name], acks_late=True)
    made.taken_s = made.started_s = time.monotonic()
    return made


def bucket(bounds: tuple[float, ...], counts: list[int]) -> float:
    """Return the upper bound of the only bucket that is not empty."""
    (place,) = [number for number, count in enumerate(counts) if count]
    return (*bounds, float("inf"))[place]


def test_a_task_is_counted_where_it_is_received_and_where_it_ends(node: Node) -> None:
    node.app.task(name="quick")(lambda: None)
    node.app.task(name="broken")(lambda: 1 / 0)
    for number in range(3):
        node.give("quick", f"q{number}")
    node.give("broken", "b")
    wait_for(lambda: len(node.outbox.entries) == 4)
    settle()
    quick, broken = (tally_of(node).series[name, "celery"] for name in ("quick", "broken"))
    assert (quick.received, quick.ended[SUCCESS], quick.ended[FAILURE]) == (3, 3, 0)
    assert (broken.received, broken.ended[SUCCESS], broken.ended[FAILURE]) == (1, 0, 1)
    assert tally_of(node).failures == {("broken", "celery", "ZeroDivisionError"): 1}
    assert sum(quick.runtimes) == sum(quick.waits) == 3


def test_what_is_discarded_is_revoked(node: Node) -> None:
    node.give("wait", "late", expires=datetime.now(UTC) - timedelta(seconds=9))
    found = tally_of(node).series["wait", "celery"]
    assert (found.received, found.ended[REVOKED], sum(found.runtimes)) == (1, 1, 0)


@pytest.mark.parametrize("state", [SUCCESS, FAILURE, RETRY, REVOKED, REJECTED, IGNORED])
def test_every_state_is_counted(node: Node, state: str) -> None:
    tally = TaskTally()
    tally.ended(request(node), state, ValueError(), 0.2)
    found = tally.series["wait", "celery"]
    assert {name for name, count in found.ended.items() if count} == {state}


def test_a_task_that_rejects_itself_has_not_failed(node: Node) -> None:
    tally = TaskTally()
    tally.ended(request(node), FAILURE, Reject("no"), 0.2)
    assert tally.series["wait", "celery"].ended[REJECTED] == 1
    assert not tally.failures


def test_runtime_and_wait_go_into_their_buckets(node: Node) -> None:
    tally = TaskTally()
    tally.ended(request(node, sent_s=time.time() - 90), SUCCESS, None, 4.0)
    found = tally.series["wait", "celery"]
    assert (bucket(RUNTIMES_S, found.runtimes), found.runtime_s) == (5.0, 4.0)
    # It was sent 90 s ago and has run for 4.
    assert bucket(WAITS_S, found.waits) == 120.0
    assert found.wait_s == pytest.approx(86, abs=10)


def test_messages_of_one_moment_and_of_different_ones_have_their_own_waits(node: Node) -> None:
    tally, now_s = TaskTally(), time.time()
    for sent_s in (now_s - 60, now_s - 60, now_s - 1000, now_s - 60):
        tally.ended(request(node, sent_s=sent_s), SUCCESS, None, 0.0)
    (series,) = tally.series.values()
    assert series.wait_s == pytest.approx(1180, abs=20)
    assert sum(series.waits) == 4


def test_a_bound_belongs_to_its_bucket(node: Node) -> None:
    tally = TaskTally()
    tally.ended(request(node), SUCCESS, None, 0.1)
    assert bucket(RUNTIMES_S, tally.series["wait", "celery"].runtimes) == 0.1


def test_an_eta_is_no_wait_nor_is_an_unknown_time(node: Node) -> None:
    tally = TaskTally()
    tally.ended(request(node, eta=datetime.now(UTC)), SUCCESS, None, 0.1)
    by_celery = request(node)
    raw = by_celery.delivery.raw
    place = raw.rindex(b'"delivery_tag": "') + 17
    raw = raw[:place] + new_id().encode() + raw[place + 36 :]
    by_celery.delivery = by_celery.delivery._replace(raw=raw)
    tally.ended(by_celery, SUCCESS, None, 0.1)
    without = request(node)
    without.delivery = without.delivery._replace(raw=b"{}7777777777777777777777777777777777")
    tally.ended(without, SUCCESS, None, 0.1)
    found = tally.series["wait", "celery"]
    assert sum(found.runtimes) == 3
    assert sum(found.waits) == 0


def test_a_clock_that_is_ahead_makes_no_negative_wait(node: Node) -> None:
    tally = TaskTally()
    tally.ended(request(node, sent_s=time.time() + 500), SUCCESS, None, 0.1)
    assert tally.series["wait", "celery"].wait_s == 0.0


def test_names_from_outside_make_no_number_of_series(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tallies, "MOST_SERIES", 3)
    tally = TaskTally()
    for number in range(10):
        tally.received(request(node, queue=f"queue{number}"))
        error = type(f"Error{number}", (Exception,), {})()
        tally.ended(request(node, queue=f"queue{number}"), FAILURE, error, 0.1)
    assert len(tally.series) == 4
    assert tally.series[OTHER, OTHER].received == 7
    assert sum(tally.failures.values()) == 10
    assert len(tally.failures) <= 4


def cpu_us(call: Callable[[], object], times: int) -> float:
    """Return the least CPU time of a call in a few rounds."""
    found = []
    for _ in range(5):
        began = time.thread_time()
        for _ in range(times):
            call()
        found.append((time.thread_time() - began) / times * 1e6)
    return min(found)


def test_counting_costs_little_per_task(node: Node) -> None:
    """Both calls together: compared with what the interpreter does in the same time."""
    tally, one = TaskTally(), request(node)

    def count() -> None:
        tally.received(one)
        tally.ended(one, SUCCESS, None, 0.01)

    def compare() -> None:
        for _ in range(100):
            Series.__name__  # noqa: B018

    gc.disable()
    try:
        ratio = cpu_us(count, 2000) / cpu_us(compare, 2000)
    finally:
        gc.enable()
    # An attribute takes some 25 ns, so both calls together less than 10 µs.
    assert ratio < 4
