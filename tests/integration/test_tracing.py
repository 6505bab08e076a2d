"""One trace from the sender to the task and its children, through a real worker."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from greenq import Greenq
from greenq.contrib.opentelemetry import instrument, uninstrument
from tests.servers import APPS, OTEL, ROOT, Server, greenq_worker
from tests.support import wait_until

WAIT_S = 15


class Tracer:
    """A sender that is traced, and the spans of its worker."""

    def __init__(self, app: Greenq, path: Path) -> None:
        self.app = app
        self._path = path
        provider = TracerProvider()
        self.sent = InMemorySpanExporter()
        provider.add_span_processor(SimpleSpanProcessor(self.sent))
        instrument(tracer_provider=provider)
        self._tracer = provider.get_tracer("test")

    def send(self, name: str, *args: Any) -> tuple[str, Any]:
        """Send a task within a span; return the id of its trace, and its handle."""
        with self._tracer.start_as_current_span("request") as span:
            result = self.app.send_task(f"traced_app.{name}", args)
            return f"{span.get_span_context().trace_id:032x}", result

    def spans(self, kind: str = "") -> list[dict[str, Any]]:
        """Return the worker's spans of a task, in the order of their ends."""
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        spans = [json.loads(line) for line in lines]
        name = f"traced_app.{kind}"
        return [each for each in spans if each["attributes"]["celery.task_name"] == name]


@pytest.fixture
def tracer(server: Server, tmp_path: Path) -> Iterator[Tracer]:
    path = tmp_path / "spans"
    folders = os.pathsep.join(map(str, (ROOT, APPS, OTEL)))
    env = {"TEST_SPANS": str(path), "PYTHONPATH": folders}
    with (
        greenq_worker(server.url, app="traced_app", env=env),
        Greenq("client", broker=server.url, set_as_current=False) as app,
    ):
        yield Tracer(app, path)
        uninstrument()


def ids_of(span: dict[str, Any]) -> tuple[str, str, str | None]:
    """Return trace, span and parent without their prefix 0x."""
    context, parent = span["context"], span["parent_id"]
    return context["trace_id"][2:], context["span_id"][2:], parent and parent[2:]


def test_a_trace_goes_from_the_sender_to_the_task_and_its_child(tracer: Tracer) -> None:
    trace_id, result = tracer.send("parent")
    assert result.get(timeout=WAIT_S) == trace_id
    wait_until(lambda: tracer.spans("child")[1:], WAIT_S)

    (sending,) = [each for each in tracer.sent.get_finished_spans() if each.name == "send celery"]
    assert sending.kind is trace.SpanKind.PRODUCER
    (run,) = tracer.spans("parent")
    (child_sent, child_run) = sorted(tracer.spans("child"), key=lambda each: each["start_time"])
    assert {ids_of(each)[0] for each in (run, child_sent, child_run)} == {trace_id}
    assert ids_of(run)[2] == f"{sending.get_span_context().span_id:016x}"
    assert ids_of(child_sent)[2] == ids_of(run)[1]
    assert ids_of(child_run)[2] == ids_of(child_sent)[1]
    assert (run["name"], run["kind"]) == ("process celery", "SpanKind.CONSUMER")
    assert run["attributes"] == {
        "messaging.system": "redis",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": "celery",
        "messaging.message.id": result.id,
        "celery.action": "run",
        "celery.task_name": "traced_app.parent",
        "celery.state": "SUCCESS",
    }


def test_traces_of_tasks_at_once_are_kept_apart(tracer: Tracer) -> None:
    sent = [tracer.send("wait_and_tell", 0.3) for _ in range(20)]
    assert len({trace_id for trace_id, _ in sent}) == 20
    for trace_id, result in sent:
        assert result.get(timeout=WAIT_S) == trace_id


def test_a_failure_is_an_error_unless_it_is_expected(tracer: Tracer) -> None:
    for name in ("broken", "expected"):
        tracer.send(name)[1].get(timeout=WAIT_S, propagate=False)
    wait_until(lambda: tracer.spans("broken") and tracer.spans("expected"), WAIT_S)
    (broken,), (expected,) = tracer.spans("broken"), tracer.spans("expected")
    assert broken["status"] == {"status_code": "ERROR", "description": "on purpose"}
    assert broken["attributes"]["error.type"] == "ValueError"
    assert broken["events"][0]["attributes"]["exception.message"] == "on purpose"
    assert expected["status"] == {"status_code": "UNSET"}
    assert expected["attributes"]["celery.state"] == "FAILURE"


def test_a_retry_is_of_the_same_trace(tracer: Tracer) -> None:
    trace_id, result = tracer.send("again")
    result.get(timeout=WAIT_S)
    wait_until(lambda: len(tracer.spans("again")) == 3, WAIT_S)
    assert {ids_of(each)[0] for each in tracer.spans("again")} == {trace_id}
    runs = [each for each in tracer.spans("again") if each["name"].startswith("process")]
    assert runs[0]["attributes"]["celery.retry.reason"]
    assert runs[1]["attributes"]["celery.retries"] == 1


def test_a_context_as_celery_s_instrumentation_writes_it_is_continued(tracer: Tracer) -> None:
    uninstrument()
    # It puts the context among the headers of the message, side by side with id and task.
    trace_id, span_id = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    headers = {"traceparent": f"00-{trace_id}-{span_id}-01"}
    result = tracer.app.send_task("traced_app.child", headers=headers)
    assert result.get(timeout=WAIT_S) == trace_id
    wait_until(lambda: tracer.spans("child"), WAIT_S)
    assert ids_of(tracer.spans("child")[0])[2] == span_id


@pytest.mark.parametrize("header", ["garbage", 17, ["00-x"], None, {"a": 1}])
def test_a_wrong_context_begins_a_trace_of_its_own(tracer: Tracer, header: Any) -> None:
    uninstrument()
    result = tracer.app.send_task("traced_app.child", headers={"traceparent": header})
    assert int(result.get(timeout=WAIT_S), 16) > 0
