"""What Prometheus reads: well-formed, complete, and by the names that dashboards ask for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY, Counter
from prometheus_client.parser import text_string_to_metric_families

from greenq.errors import ConnectFailed
from greenq.execution.tally import TaskTally
from greenq.monitoring.cluster_stats import QueueStats, Stats
from greenq.monitoring.health import Health
from greenq.monitoring.metrics import Metrics, Reading
from greenq.remote.queue_counts import QueueCounts
from tests.unit.node import Node
from tests.unit.rig import settle, wait_for

ALL = ("greenq", "celery-exporter", "flower")
BOARD = Path(__file__).parents[3] / "deploy" / "grafana.json"

# The names and labels that the queries of the public dashboards use, without those that Prometheus
# itself adds (job, instance, namespace, cluster): celery-exporter's three (17508, 17509 and its
# first one) with its alerts, and the one in Flower's repository.
TASK = {"name", "queue_name", "hostname"}
EXPORTER: dict[str, set[str]] = {
    **{
        f"celery_task_{kind}_total": TASK
        for kind in (
            "sent", "received", "started", "succeeded", "retried", "revoked", "rejected",
        )
    },
    "celery_task_failed_total": TASK | {"exception"},
    **{f"celery_task_runtime_{part}": TASK for part in ("sum", "count")},
    "celery_task_runtime_bucket": TASK | {"le"},
    "celery_task_queue_wait_time_bucket": TASK | {"le"},
    "celery_worker_up": {"hostname"},
    "celery_worker_tasks_active": {"hostname"},
    "celery_queue_length": {"queue_name"},
    "celery_active_worker_count": {"queue_name"},
    "celery_active_process_count": {"queue_name"},
    "celery_active_consumer_count": {"queue_name"},
}  # fmt: skip
FLOWER: dict[str, set[str]] = {
    "flower_events_total": {"worker", "type", "task"},
    "flower_task_runtime_seconds_bucket": {"worker", "task", "le"},
    "flower_task_runtime_seconds_sum": {"worker", "task"},
    "flower_task_runtime_seconds_count": {"worker", "task"},
    "flower_task_prefetch_time_seconds": {"worker", "task"},
    "flower_worker_prefetched_tasks": {"worker", "task"},
    "flower_worker_online": {"worker"},
    "flower_worker_number_of_currently_executing_tasks": {"worker"},
}


class KnownStats:
    """The cluster as a test says."""

    def __init__(self) -> None:
        self.is_lost = False
        mail = QueueCounts("mail", {0: 600, 3: 40}, inbox=1, parked=7, dead=2, oldest_s=30.0)
        self.queues = {
            "mail": QueueStats(mail, 2, 10, 3, change_per_s=-6.41),
            "idle": QueueStats(QueueCounts("idle"), 1, 0, 0, change_per_s=None),
        }

    def read(self) -> Stats:
        if self.is_lost:
            raise ConnectFailed("cannot reach it")
        return Stats(1.0, 2, 10, 1000, self.queues)


class Rig:
    """A worker with metrics."""

    def __init__(self) -> None:
        self.node = Node()
        self.parts = self.node.parts
        self.tally = self.parts.state.tally = TaskTally()
        self.stats: Any = KnownStats()
        consumer = self.node.worker.consumer
        self.health = Health(self.parts, consumer)
        self.metrics = Metrics(self.parts, consumer, self.tally, self.stats, self.health, ALL)
        self.reading = Reading(self.parts, consumer, self.tally, self.stats, self.health)

    def run(self) -> None:
        """Have two tasks succeed, one fail, and one still run."""
        self.node.app.task(name="quick")(lambda: None)
        self.node.app.task(name="broken")(lambda: 1 / 0)
        for name, task_id in (("quick", "1"), ("quick", "2"), ("broken", "3"), ("wait", "4")):
            self.node.give(name, task_id)
        wait_for(lambda: len(self.node.outbox.entries) == 3)
        settle()

    def samples(self) -> dict[str, list[tuple[dict[str, str], float]]]:
        """Return labels and value of every sample by its name, after checks of the text."""
        found: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in text_string_to_metric_families(self.metrics.text().decode()):
            for sample in family.samples:
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
        return found

    def value(self, name: str, /, **labels: str) -> float:
        (found,) = [value for own, value in self.samples()[name] if labels.items() <= own.items()]
        return found


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.node.close()


def test_the_text_is_well_formed(rig: Rig) -> None:
    """As promtool checks it: help and type once and before the samples, no sample twice."""
    rig.run()
    text = rig.metrics.text().decode()
    assert text.endswith("\n")
    seen: set[str] = set()
    samples: set[str] = set()
    kinds: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _hash, _type, name, kind = line.split(" ")
            assert name not in kinds
            kinds[name] = kind
        elif line.startswith("# HELP "):
            name = line.split(" ", 3)[2]
            assert name not in seen
            assert line.split(" ", 3)[3].strip()
            seen.add(name)
        else:
            sample = line.rpartition(" ")[0]
            assert sample not in samples
            samples.add(sample)
            name = sample.partition("{")[0]
            family = re.sub("_(bucket|sum|count)$", "", name)
            assert name in kinds or kinds[family] == "histogram"
    assert seen == kinds.keys()
    for name, kind in kinds.items():
        assert re.fullmatch("[a-z][a-z0-9_]*", name)
        if name.startswith("greenq_"):
            assert name.endswith("_total") == (kind == "counter")


def test_tasks_are_counted_by_name_queue_and_state(rig: Rig) -> None:
    rig.run()
    assert rig.value("greenq_tasks_received_total", task="quick", queue="celery") == 2
    assert rig.value("greenq_tasks_total", task="quick", state="SUCCESS") == 2
    # A counter that is there from the beginning: the first failure is an increase.
    assert rig.value("greenq_tasks_total", task="quick", state="FAILURE") == 0
    assert rig.value("greenq_tasks_total", task="broken", state="FAILURE") == 1
    assert rig.value("greenq_task_failures_total", exception="ZeroDivisionError") == 1
    assert rig.value("greenq_task_runtime_seconds_count", task="quick") == 2
    assert rig.value("greenq_task_runtime_seconds_bucket", task="quick", le="+Inf") == 2
    assert rig.value("greenq_task_wait_seconds_count", task="quick") == 2


def test_a_histogram_rises_with_its_bounds(rig: Rig) -> None:
    rig.run()
    for name in ("greenq_task_runtime_seconds", "celery_task_queue_wait_time"):
        rows = [
            (float(labels["le"]), value)
            for labels, value in rig.samples()[f"{name}_bucket"]
            if "quick" in labels.values()
        ]
        assert rows == sorted(rows)
        assert rows[-1] == (float("inf"), 2)
        assert sorted(value for _le, value in rows) == [value for _le, value in rows]


def test_the_worker_and_its_cluster_are_shown(rig: Rig) -> None:
    rig.run()
    assert rig.value("greenq_pool_running") == 1
    assert rig.value("greenq_pool_size") == rig.value("greenq_pool_limit") == 1000
    assert rig.value("greenq_reserved_messages") == 1
    assert 3500 < rig.value("greenq_lease_seconds") <= 3600
    assert rig.value("greenq_worker_ready") == 0
    assert rig.value("greenq_hub_cpu_seconds_total") > 0
    assert rig.value("greenq_worker_info", node="me@host") == 1
    assert rig.value("greenq_queue_messages", queue="mail", place="waiting") == 641
    assert rig.value("greenq_queue_messages", queue="mail", place="dead") == 2
    assert rig.value("greenq_queue_drain_seconds", queue="mail") == pytest.approx(100)
    assert rig.value("greenq_queue_wanted_workers", queue="mail") == 3
    assert rig.value("greenq_queue_oldest_seconds", queue="mail") == 30
    assert rig.value("greenq_server_up") == 1


def test_without_a_server_the_worker_s_own_metrics_remain(rig: Rig) -> None:
    rig.run()
    rig.stats.is_lost = True
    assert rig.value("greenq_server_up") == 0
    assert rig.value("greenq_tasks_received_total", task="quick") == 2
    found = rig.samples()
    assert "greenq_queue_messages" not in found
    assert "celery_queue_length" not in found


@pytest.mark.parametrize(("names", "prefix"), [(EXPORTER, "celery_"), (FLOWER, "flower_")])
def test_queries_of_public_dashboards_are_answered(
    rig: Rig, names: dict[str, set[str]], prefix: str
) -> None:
    rig.run()
    found = rig.samples()
    for name, labels in names.items():
        assert found.get(name), name
        for own, _value in found[name]:
            assert own.keys() == labels, name


def test_names_of_celery_exporter_have_its_meaning(rig: Rig) -> None:
    rig.run()
    # The host alone, as there.
    labels = {"name": "quick", "hostname": "host", "queue_name": "celery"}
    assert rig.value("celery_task_received_total", **labels) == 2
    assert rig.value("celery_task_started_total", **labels) == 2
    assert rig.value("celery_task_succeeded_total", **labels) == 2
    assert rig.value("celery_task_failed_total", exception="ZeroDivisionError", name="broken") == 1
    assert rig.value("celery_task_started_total", name="wait") == 1
    assert rig.value("celery_task_runtime_count", **labels) == 2
    assert rig.value("celery_worker_up", hostname="host") == 1
    assert rig.value("celery_worker_tasks_active", hostname="host") == 1
    assert rig.value("celery_queue_length", queue_name="mail") == 641
    assert rig.value("celery_active_worker_count", queue_name="mail") == 2


def test_names_of_flower_have_its_meaning(rig: Rig) -> None:
    rig.run()
    labels = {"worker": "me@host", "task": "quick"}
    assert rig.value("flower_events_total", type="task-succeeded", **labels) == 2
    assert rig.value("flower_events_total", type="task-received", **labels) == 2
    assert rig.value("flower_events_total", type="task-started", task="wait") == 1
    assert rig.value("flower_events_total", type="task-failed", task="broken") == 1
    assert rig.value("flower_task_runtime_seconds_count", **labels) == 2
    assert rig.value("flower_worker_online", worker="me@host") == 1
    assert rig.value("flower_worker_number_of_currently_executing_tasks", worker="me@host") == 1
    assert rig.value("flower_worker_prefetched_tasks", worker="me@host", task="wait") == 0


def test_a_counter_never_falls(rig: Rig) -> None:
    rig.run()
    before = rig.reading.started()["wait", "celery"]
    # Between its end and its count.
    (running,) = rig.parts.pool.active
    rig.parts.pool.active.discard(running)
    assert rig.reading.started()["wait", "celery"] == before == 1
    rig.parts.pool.active.add(running)


def test_hostile_names_stay_within_their_line(rig: Rig) -> None:
    name = 'evil"} 1\nfake_metric 2\\'
    rig.node.app.task(name=name)(lambda: None)
    rig.node.give(name, "1")
    wait_for(lambda: len(rig.node.outbox.entries) == 1)
    settle()
    assert rig.value("greenq_tasks_received_total", task=name) == 1
    assert "fake_metric" not in rig.samples()


def test_the_app_s_own_metrics_are_on_the_same_page(rig: Rig) -> None:
    mails = Counter("shop_mails", "Mails sent.")
    try:
        mails.inc(3)
        assert rig.value("shop_mails_total") == 3
    finally:
        REGISTRY.unregister(mails)


def test_only_the_chosen_names_are_shown(rig: Rig) -> None:
    consumer = rig.node.worker.consumer
    metrics = Metrics(rig.parts, consumer, rig.tally, rig.stats, rig.health, ("greenq",))
    text = metrics.text().decode()
    assert "greenq_pool_size" in text
    assert "celery_" not in text
    assert "flower_" not in text


def expressions(board: Any) -> Iterator[str]:
    """Yield every query of a dashboard."""
    if isinstance(board, dict):
        for name, value in board.items():
            if name in ("expr", "query") and isinstance(value, str):
                yield value
            yield from expressions(value)
    elif isinstance(board, list):
        for each in board:
            yield from expressions(each)


def test_every_metric_of_our_dashboard_exists(rig: Rig) -> None:
    rig.run()
    found = rig.samples()
    wanted = {
        name
        for query in expressions(json.loads(BOARD.read_text("utf-8")))
        for name in re.findall(r"\bgreenq_\w+", query)
    }
    assert len(wanted) > 15
    assert wanted - found.keys() == set()
    for query in expressions(json.loads(BOARD.read_text("utf-8"))):
        for name, selector in re.findall(r"\b(greenq_\w+)\{([^}]*)\}", query):
            labels = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", selector)) - {"job", "instance"}
            assert labels <= found[name][0][0].keys(), query
