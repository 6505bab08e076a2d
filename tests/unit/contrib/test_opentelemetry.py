"""What instrumenting writes into a message, and that it leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from greenq import signals
from greenq.contrib import opentelemetry
from greenq.contrib.opentelemetry import instrument, uninstrument
from greenq.protocol.envelope import unwrap
from tests.unit.node import Node
from tests.unit.rig import settle, wait_for

SIGNALS = [
    signals.before_task_publish, signals.after_task_publish, signals.task_prerun,
    signals.task_failure, signals.task_retry, signals.task_postrun,
]  # fmt: skip


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node()
    yield made
    uninstrument()
    made.close()


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


def provider_of(exporter: InMemorySpanExporter) -> TracerProvider:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


def test_the_context_is_among_the_headers_as_celery_s_instrumentation_reads_it(
    node: Node, exporter: InMemorySpanExporter
) -> None:
    instrument(tracer_provider=provider_of(exporter))
    prepared = node.app.producer.prepare("wait", (), {}, {})
    prepared["announced"].sent()
    (span,) = exporter.get_finished_spans()
    context = span.get_span_context()
    headers = unwrap(prepared["text"].encode()).headers
    written = f"00-{context.trace_id:032x}-{context.span_id:016x}-"
    assert headers["traceparent"].startswith(written)
    assert {"id", "task", "traceparent"} <= headers.keys()


def test_instrumenting_twice_traces_once_and_its_end_leaves_nothing(
    node: Node, exporter: InMemorySpanExporter
) -> None:
    instrument(tracer_provider=provider_of(InMemorySpanExporter()))
    instrument(tracer_provider=provider_of(exporter))
    assert [len(signal.receivers) for signal in SIGNALS] == [1] * 6
    uninstrument()
    uninstrument()
    assert [len(signal.receivers) for signal in SIGNALS] == [0] * 6
    assert "traceparent" not in node.app.producer.prepare("wait", (), {}, {})["text"]


def test_messages_that_were_never_sent_are_ended_as_such(
    node: Node, exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opentelemetry, "_MOST_SENDING", 3)
    instrument(tracer_provider=provider_of(exporter))
    kept = [node.app.producer.prepare("wait", (), {}, {}) for _ in range(5)]
    found = exporter.get_finished_spans()
    assert [each.status.status_code for each in found] == [StatusCode.ERROR] * 2
    assert len(kept) == 5


def test_durations_and_sent_messages_are_measured(
    node: Node, exporter: InMemorySpanExporter
) -> None:
    reader = InMemoryMetricReader()
    instrument(
        tracer_provider=provider_of(exporter), meter_provider=MeterProvider(metric_readers=[reader])
    )
    node.app.task(name="quick")(lambda: None)
    node.give("quick", "1")
    wait_for(lambda: len(node.outbox.entries) == 1)
    settle()
    node.app.producer.prepare("quick", (), {}, {})["announced"].sent()
    data = reader.get_metrics_data()
    assert data is not None
    found: dict[str, Any] = {
        metric.name: metric.data.data_points[0]
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    assert found["messaging.process.duration"].count == 1
    assert found["messaging.client.sent.messages"].value == 1
    assert found["messaging.process.duration"].attributes["celery.task_name"] == "quick"


def test_the_extra_is_named_where_it_is_missing() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "try:\n    import greenq.contrib.opentelemetry\n"
        "except ImportError as exc:\n    print(exc)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'greenq[otel]'" in found.stdout


def test_nothing_of_it_is_loaded_by_default() -> None:
    code = "import sys, json, greenq.worker; print(json.dumps(list(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # redis-py itself loads some of OpenTelemetry where that is installed.
    unwanted = ("greenq.contrib.opentelemetry", "greenq.monitoring.metrics", "prometheus_client")
    assert [name for name in json.loads(found.stdout) if name.startswith(unwanted)] == []
