"""A worker's metrics for Prometheus, under the names of greenq, celery-exporter or Flower.

Nothing is counted here: each scrape reads the worker's existing counters, and its `TaskTally`. This
module needs prometheus_client, so it is imported only if metrics are wanted.
"""

from __future__ import annotations

import time
from collections import Counter
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

from greenq.errors import OperationalError
from greenq.execution.tally import RUNTIMES_S, STATES, WAITS_S, Series
from greenq.states import FAILURE, REJECTED, RETRY, REVOKED, SUCCESS
from greenq.utils.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prometheus_client.metrics_core import Metric

    from greenq.consumer import Consumer
    from greenq.execution.tally import TaskTally
    from greenq.monitoring.cluster_stats import ClusterStats, Stats
    from greenq.monitoring.health import Health
    from greenq.worker_parts.parts import Parts

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

_EVENTS: Final = {
    SUCCESS: "succeeded", FAILURE: "failed", RETRY: "retried", REVOKED: "revoked",
    REJECTED: "rejected",
}  # fmt: skip


class Metrics:
    """The metrics of one worker, and those that its app maintains with prometheus_client."""

    def __init__(
        self,
        parts: Parts,
        consumer: Consumer,
        tally: TaskTally,
        stats: ClusterStats,
        health: Health,
        names: Sequence[str],
    ) -> None:
        """Read the parts of a worker.

        Args:
            parts, consumer, tally, stats, health: those of the worker.
            names: which sets of names to use: ``greenq``, ``celery-exporter``, ``flower``.
        """
        self.registry = CollectorRegistry(auto_describe=False)
        reading = Reading(parts, consumer, tally, stats, health)
        for name in names:
            self.registry.register(_COLLECTORS[name](reading))

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(REGISTRY) + generate_latest(self.registry)


class Reading:
    """The data that the collectors read; not thread-safe, so only one thread uses it."""

    def __init__(
        self,
        parts: Parts,
        consumer: Consumer,
        tally: TaskTally,
        stats: ClusterStats,
        health: Health,
    ) -> None:
        """Read the parts of a worker; see `Metrics`."""
        self.parts = parts
        self.consumer = consumer
        self.tally = tally
        self.health = health
        self._stats = stats
        self._started: Counter[tuple[str, str]] = Counter()

    def cluster(self) -> Stats | None:
        """Return the cluster's state; None while the server cannot be reached."""
        try:
            return self._stats.read()
        except OperationalError:
            return None

    def series(self) -> list[tuple[tuple[str, str], Series]]:
        """Return the counts by task and queue, sorted."""
        return sorted(self.tally.series.copy().items())

    def started(self) -> Counter[tuple[str, str]]:
        """Return how many runs have started, by task and queue, whether they have ended or not.

        A run that ends leaves the count of running tasks before it enters the count of ended runs.
        A counter must never decrease, so the highest value of each is kept.
        """
        found = Counter(
            self.tally.label(each.task.name, each.delivery.queue)
            for each in self.parts.pool.active.copy()
        )
        for key, series in self.series():
            found[key] += sum(series.ended.values())
        self._started |= found
        return self._started

    def prefetched(self) -> Counter[str]:
        """Return, by task, how many messages are waiting in this worker to be started."""
        held = list(self.parts.state.reserved.values())
        return Counter(each.task.name for each in held if each.started_s is None)


class _WorkerCollector(Collector):
    """A collector that reads one worker."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading


class GreenqCollector(_WorkerCollector):
    """Metrics under greenq's own names."""

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        yield from self._tasks()
        yield from self._worker()
        yield from self._hub()
        yield from self._cluster()

    def _tasks(self) -> Iterator[Metric]:
        labels = ["task", "queue"]
        received = CounterMetricFamily(
            "greenq_tasks_received", "Messages taken from queues.", labels=labels
        )
        ended = CounterMetricFamily(
            "greenq_tasks", "Runs that have ended, by state.", labels=[*labels, "state"]
        )
        failures = CounterMetricFamily(
            "greenq_task_failures", "Failed runs, by exception.", labels=[*labels, "exception"]
        )
        runtime = HistogramMetricFamily(
            "greenq_task_runtime_seconds", "How long runs took.", labels=labels
        )
        wait = HistogramMetricFamily(
            "greenq_task_wait_seconds",
            "Time from sending to the start, for messages sent by greenq without an ETA.",
            labels=labels,
        )
        for key, series in self._reading.series():
            received.add_metric(key, series.received)
            for state in STATES:
                ended.add_metric([*key, state], series.ended[state])
            runtime.add_metric(key, *_histogram(RUNTIMES_S, series.runtimes, series.runtime_s))
            wait.add_metric(key, *_histogram(WAITS_S, series.waits, series.wait_s))
        for labelled, count in sorted(self._reading.tally.failures.copy().items()):
            failures.add_metric(labelled, count)
        yield from (received, ended, failures, runtime, wait)

    def _worker(self) -> Iterator[Metric]:
        parts, consumer = self._reading.parts, self._reading.consumer
        info = GaugeMetricFamily(
            "greenq_worker_info", "The worker's node name and version.", labels=["node", "version"]
        )
        info.add_metric([parts.hostname, __version__], 1)
        yield info
        pool, state = parts.pool, parts.state
        lease_s = max(0.0, state.lease_until_s - state.now_s())
        ready = self._reading.health.ready().ok
        autoscaler = parts.autoscaler
        traffic = parts.app.transport.client.traffic
        yield _gauge(
            "worker_start_time_seconds",
            "When the worker started, in unix time.",
            time.time() - parts.uptime_s,
        )
        yield _gauge(
            "worker_ready", "1 if the worker takes messages, or intentionally takes none.", ready
        )
        yield _gauge("worker_draining", "1 if the worker is draining.", parts.tasks.draining)
        yield _gauge("lease_seconds", "How long the lease is still valid; 0 without one.", lease_s)
        yield _gauge("pool_size", "Number of tasks that can run in parallel.", pool.size)
        most = autoscaler.most if autoscaler else pool.size
        yield _gauge("pool_limit", "Largest size that the pool can grow to.", most)
        yield _gauge("pool_running", "Tasks that are running.", pool.running)
        yield _gauge("pool_waiting", "Messages waiting in this worker for a slot.", pool.waiting)
        yield _gauge("reserved_messages", "Messages held by this worker.", len(state.reserved))
        yield _gauge("outbox_entries", "Outcomes not yet written.", len(parts.outbox))
        yield _counter(
            "server_interruptions",
            "Number of times the connection to the server was lost.",
            consumer.interruptions,
        )
        yield _counter("server_commands", "Commands sent to the server.", traffic.commands)
        yield _counter("server_round_trips", "Round trips to the server.", traffic.round_trips)

    def _hub(self) -> Iterator[Metric]:
        hub, monitor = self._reading.parts.hub, self._reading.parts.watch.monitor
        blocker = monitor.blocking()
        longest_s = max((each.for_s for each in list(monitor.blockers)), default=0.0)
        yield _gauge("hub_lag_seconds", "The hub's latest delay.", hub.lag_s)
        p99_s = hub.lags.quantile_s(0.99)
        yield _gauge("hub_lag_p99_seconds", "The 99th percentile of the hub's delay.", p99_s)
        yield _gauge(
            "hub_blocked_seconds",
            "How long the hub has been blocked.",
            blocker.for_s if blocker else 0.0,
        )
        yield _gauge("hub_longest_block_seconds", "The longest of the last 100 blocks.", longest_s)
        yield _counter("hub_blocks", "Number of times the hub was blocked.", monitor.block_count)
        yield _counter(
            "hub_cpu_seconds", "CPU time of the hub's thread; its rate is the hub's saturation.",
            hub.cpu_s(),
        )  # fmt: skip

    def _cluster(self) -> Iterator[Metric]:
        stats = self._reading.cluster()
        yield _gauge("server_up", "1 if the server of the queues answers.", stats is not None)
        if stats is None:
            return
        yield _gauge("cluster_workers", "Workers that hold a lease.", stats.workers)
        yield _gauge("cluster_in_flight", "Messages that workers hold.", stats.in_flight)
        messages = GaugeMetricFamily(
            "greenq_queue_messages", "Messages of a queue, by place.", labels=["queue", "place"]
        )
        gauges = {
            name: GaugeMetricFamily(f"greenq_queue_{name}", text, labels=["queue"])
            for name, text in (
                ("oldest_seconds", "Age of the oldest waiting message."),
                ("drain_seconds", "Time until the queue is empty at the present rate, if known."),
                ("workers", "Workers that take from the queue."),
                ("wanted_workers", "Workers of this size needed to run all messages in parallel."),
                ("paused", "1 if the queue is paused."),
            )
        }
        for name, queue in stats.queues.items():
            counts = queue.counts
            for place in ("waiting", "parked", "dead"):
                messages.add_metric([name, place], getattr(counts, place))
            values = {
                "oldest_seconds": queue.oldest_s,
                "drain_seconds": queue.drain_s,
                "workers": queue.workers,
                "wanted_workers": queue.wanted_workers,
                "paused": counts.paused is not None,
            }
            for kind, value in values.items():
                if value is not None:
                    gauges[kind].add_metric([name], value)
        yield messages
        yield from gauges.values()


class ExporterCollector(_WorkerCollector):
    """Metrics under the names of celery-exporter, for its dashboards and alerts."""

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        parts, started = self._reading.parts, self._reading.started()
        # As in celery-exporter, the host is the part of the node name after the @.
        host = parts.hostname.rpartition("@")[2]
        labels = ["name", "hostname", "queue_name"]
        counters = {
            kind: CounterMetricFamily(f"celery_task_{kind}", f"Tasks {kind}.", labels=labels)
            for kind in ("sent", "received", "started", *_EVENTS.values())
            if kind != "failed"
        }
        failed = CounterMetricFamily(
            "celery_task_failed",
            "Tasks failed.",
            labels=["name", "hostname", "exception", "queue_name"],
        )
        runtime = HistogramMetricFamily("celery_task_runtime", "Runtime in seconds.", labels=labels)
        wait = HistogramMetricFamily(
            "celery_task_queue_wait_time", "Seconds from sending to the start.", labels=labels
        )
        for (task, queue), series in self._reading.series():
            row = [task, host, queue]
            # Of the messages that others send, a worker sees only those that it receives.
            counters["sent"].add_metric(row, series.received)
            counters["received"].add_metric(row, series.received)
            counters["started"].add_metric(row, started[task, queue])
            for state, kind in _EVENTS.items():
                if state != FAILURE:
                    counters[kind].add_metric(row, series.ended[state])
            runtime.add_metric(row, *_histogram(RUNTIMES_S, series.runtimes, series.runtime_s))
            wait.add_metric(row, *_histogram(WAITS_S, series.waits, series.wait_s))
        for (task, queue, exception), count in sorted(self._reading.tally.failures.copy().items()):
            failed.add_metric([task, host, exception, queue], count)
        yield from (*counters.values(), failed, runtime, wait)
        for name, text, value in (
            ("celery_worker_up", "1 while the worker runs.", 1),
            ("celery_worker_tasks_active", "Tasks that are running.", parts.pool.running),
        ):
            gauge = GaugeMetricFamily(name, text, labels=["hostname"])
            gauge.add_metric([host], value)
            yield gauge
        yield from self._queues()

    def _queues(self) -> Iterator[Metric]:
        stats = self._reading.cluster()
        if stats is None:
            return
        length = GaugeMetricFamily(
            "celery_queue_length", "Messages that are waiting.", labels=["queue_name"]
        )
        active = [
            GaugeMetricFamily(
                f"celery_active_{kind}_count", f"Active {kind}s.", labels=["queue_name"]
            )
            for kind in ("worker", "process", "consumer")
        ]
        for name, queue in stats.queues.items():
            length.add_metric([name], queue.counts.waiting)
            for gauge in active:
                # Each worker is one process and one consumer.
                gauge.add_metric([name], queue.workers)
        yield length
        yield from active


class FlowerCollector(_WorkerCollector):
    """Metrics under the names of Flower, for its dashboard."""

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        parts, node = self._reading.parts, self._reading.parts.hostname
        labels = ["worker", "task"]
        events = CounterMetricFamily(
            "flower_events", "What happened to tasks.", labels=["worker", "type", "task"]
        )
        runtime = HistogramMetricFamily(
            "flower_task_runtime_seconds", "How long runs took.", labels=labels
        )
        prefetch = GaugeMetricFamily(
            "flower_task_prefetch_time_seconds",
            "How long the last message waited in this worker before it started.",
            labels=labels,
        )
        prefetched = GaugeMetricFamily(
            "flower_worker_prefetched_tasks",
            "Messages waiting in this worker to start.",
            labels=labels,
        )
        # Flower distinguishes tasks, but not queues.
        counts: dict[str, Counter[str]] = {}
        sums: dict[str, tuple[list[int], float, float]] = {}
        for (task, _queue), series in self._reading.series():
            kinds = counts.setdefault(task, Counter())
            kinds["received"] += series.received
            for state, kind in _EVENTS.items():
                kinds[kind] += series.ended[state]
            buckets, total_s, _last_s = sums.get(task, ([0] * len(series.runtimes), 0.0, 0.0))
            buckets = [a + b for a, b in zip(buckets, series.runtimes, strict=True)]
            sums[task] = buckets, total_s + series.runtime_s, series.prefetch_s
        for (task, _queue), count in self._reading.started().items():
            counts.setdefault(task, Counter())["started"] += count
        waiting = self._reading.prefetched()
        for task, kinds in sorted(counts.items()):
            for kind, count in sorted(kinds.items()):
                events.add_metric([node, f"task-{kind}", task], count)
            prefetched.add_metric([node, task], waiting[task])
        for task, (buckets, total_s, last_s) in sums.items():
            runtime.add_metric([node, task], *_histogram(RUNTIMES_S, buckets, total_s))
            prefetch.add_metric([node, task], last_s)
        yield from (events, runtime, prefetch, prefetched)
        for name, text, value in (
            ("flower_worker_online", "1 while the worker runs.", 1),
            (
                "flower_worker_number_of_currently_executing_tasks",
                "Tasks that are running.",
                parts.pool.running,
            ),
        ):
            gauge = GaugeMetricFamily(name, text, labels=["worker"])
            gauge.add_metric([node], value)
            yield gauge


_COLLECTORS: Final[dict[str, type[_WorkerCollector]]] = {
    "greenq": GreenqCollector,
    "celery-exporter": ExporterCollector,
    "flower": FlowerCollector,
}


def _histogram(
    bounds: Sequence[float], counts: Sequence[int], total: float
) -> tuple[list[tuple[str, float]], float]:
    """Return the buckets, made cumulative as Prometheus expects, and the sum."""
    names = [*map(str, bounds), "+Inf"]
    return list(zip(names, map(float, accumulate(list(counts))), strict=True)), total


def _gauge(name: str, text: str, value: Any) -> Metric:
    return GaugeMetricFamily(f"greenq_{name}", text, value=float(value))


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"greenq_{name}", text, value=value)
