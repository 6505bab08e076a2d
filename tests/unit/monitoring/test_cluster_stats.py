"""What autoscalers read: numbers for every state of a queue, at a bounded price."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from greenq.errors import ConnectFailed, OperationalError
from greenq.monitoring.cluster_stats import KEPT_S, ClusterStats, QueueStats, Stats
from greenq.remote.queue_counts import QueueCounts
from tests.unit.node import Node

KEDA = Path(__file__).parents[3] / "deploy" / "keda.yaml"


def queue(change: float | None = None, **counts: Any) -> QueueStats:
    return QueueStats(QueueCounts("mail", **counts), 2, 10, 3, change_per_s=change)


class Counting(ClusterStats):
    """Counts how often it counts; fails while it has an error."""

    def __init__(self, node: Node) -> None:
        self.now_s = 100.0
        super().__init__(node.parts, clock=lambda: self.now_s)
        self.times = 0
        self.error: OperationalError | None = None

    def _count(self, now: float) -> Stats:
        self.times += 1
        if self.error is not None:
            raise self.error
        return Stats(now, 1, 0, 10, {})


@pytest.fixture
def stats() -> Iterator[Counting]:
    node = Node()
    yield Counting(node)
    node.close()


@pytest.mark.parametrize(
    ("change", "waiting", "drain_s"),
    [(-10.0, 600, 60), (None, 600, None), (0.0, 600, None), (5.0, 600, None), (5.0, 0, 0)],
)
def test_a_queue_that_does_not_shrink_has_no_drain_time(
    change: float | None, waiting: int, drain_s: float | None
) -> None:
    assert queue(change, depth={0: waiting}).as_json()["drain_s"] == drain_s


def test_an_unknown_age_is_not_zero() -> None:
    assert queue(depth={0: 1}).as_json()["oldest_s"] is None
    assert queue(depth={0: 1}, oldest_s=2.5).as_json()["oldest_s"] == 2.5
    assert queue().as_json()["oldest_s"] == 0


def test_many_who_ask_at_once_cost_one_count(stats: Counting) -> None:
    for _ in range(5):
        stats.read()
    assert stats.times == 1
    stats.now_s += KEPT_S
    stats.read()
    assert stats.times == 2


def test_a_lost_server_is_not_asked_by_each_of_them_either(stats: Counting) -> None:
    stats.error = ConnectFailed("cannot reach it")
    for _ in range(5):
        with pytest.raises(ConnectFailed):
            stats.read()
    assert stats.times == 1
    stats.error = None
    stats.now_s += KEPT_S
    assert stats.read().workers == 1


def test_keda_finds_what_the_example_names() -> None:
    _service, scaled = yaml.safe_load_all(KEDA.read_text("utf-8"))
    (trigger,) = scaled["spec"]["triggers"]
    answer: Any = Stats(1.0, 2, 10, 500, {"mail": queue(depth={0: 600})}).as_json()
    for name in trigger["metadata"]["valueLocation"].split("."):
        answer = answer[name]
    assert answer == 3
    assert trigger["type"] == "metrics-api"
    assert trigger["metadata"]["url"].endswith("/stats.json")
