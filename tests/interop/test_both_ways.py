"""What a Celery client and a greenq worker, and the other way round, understand of one another."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from greenq import Greenq
from tests.apps import functions
from tests.interop.conftest import Way
from tests.support import wait_until

pytestmark = [pytest.mark.interop, pytest.mark.smoke]

WAIT_S = 15

VALUES = [0, -1.5, 2**70, None, True, "text ü 🙂", [], {}, [1, [2]], {"a": {"b": None}}]
TYPED = [
    datetime(2024, 2, 29, 12, 30, 15, 123456, tzinfo=UTC),
    Decimal("1.10"),
    uuid.UUID("12345678-1234-5678-1234-567812345678"),
]


def test_arguments_and_result_arrive_as_they_were_sent(way: Way) -> None:
    sent = [*VALUES, *TYPED]
    result = way.send("echo", *sent, kwargs={"key": "ü", "nested": {"x": [1]}})
    assert result.get(timeout=WAIT_S) == [sent, {"key": "ü", "nested": {"x": [1]}}]
    assert (result.state, result.successful(), result.ready()) == ("SUCCESS", True, True)


@pytest.mark.parametrize("compression", ["gzip", "bzip2", "zlib"])
def test_a_compressed_message_is_understood(way: Way, compression: str) -> None:
    text = "long " * 1000
    result = way.send("echo", text, compression=compression)
    assert result.get(timeout=WAIT_S) == [[text], {}]


def test_what_was_sent_in_bulk_runs_on_the_other_side(way: Way) -> None:
    values = [(number, value) for number, value in enumerate([*VALUES, *TYPED] * 30)]
    if isinstance(way.client, Greenq):
        results = way.client.send_task_many(
            "shared.inspect_request", [(args, {"k": 1}) for args in values], priority=3
        )
    else:
        results = [
            way.send("inspect_request", *args, kwargs={"k": 1}, priority=3) for args in values
        ]

    for result, args in zip(results, values, strict=True):
        seen = result.get(timeout=WAIT_S)
        assert (seen["id"], seen["root_id"], seen["correlation_id"]) == (result.id,) * 3
        assert (seen["args"], seen["kwargs"]) == (list(args), {"k": 1})
        assert (seen["argsrepr"], seen["kwargsrepr"]) == (repr(args), "{'k': 1}")
        assert (seen["priority"], seen["redelivered"], seen["parent_id"]) == (3, False, None)


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "args", "kind", "seen"),
    [
        ("fail_value", ("bad", 7), ValueError, ("bad", 7)),
        ("fail_key", ("missing",), KeyError, ("missing",)),
        ("fail_nested", ("inner",), functions.Outer.NestedError, ("inner",)),
    ],
)
def test_an_error_arrives_with_its_type_arguments_and_traceback(
    way: Way, task: str, args: tuple[Any, ...], kind: type[Exception], seen: tuple[Any, ...]
) -> None:
    result = way.send(task, *args)
    with pytest.raises(kind) as caught:
        result.get(timeout=WAIT_S)
    assert caught.value.args == seen
    assert (result.state, result.failed(), result.successful()) == ("FAILURE", True, False)
    assert isinstance(result.result, kind)
    assert result.traceback.startswith("Traceback (most recent call last):")
    assert f"in {task}" in result.traceback


def test_an_error_is_returned_when_it_shall_not_propagate(way: Way) -> None:
    error = way.send("fail_value", "bad", 7).get(timeout=WAIT_S, propagate=False)
    assert repr(error) == "ValueError('bad', 7)"


def test_an_error_whose_arguments_do_not_serialize_still_arrives(way: Way) -> None:
    error = way.send("fail_opaque", "bad").get(timeout=WAIT_S, propagate=False)
    assert type(error) is ValueError
    assert error.args == ("bad", "<opaque>")


def test_the_text_of_an_error_that_cannot_be_made_anew_arrives(way: Way) -> None:
    if isinstance(way.client, Greenq):
        pytest.skip("a Celery worker stores OSError() instead, in the traceback as well")
    error = way.send("fail_http").get(timeout=WAIT_S, propagate=False)
    assert "HTTP Error 404: Not Found" in str(error)
    assert "urllib.error.HTTPError" in str(error)


@pytest.mark.parametrize("which", ["eta", "expires"])
def test_a_time_without_a_zone_is_utc(way: Way, which: str) -> None:
    now = datetime.now(UTC).replace(tzinfo=None)
    if which == "expires":
        assert way.send("add", 1, 1, expires=now + timedelta(seconds=30)).get(timeout=WAIT_S) == 2
        return
    started = time.monotonic()
    way.send("add", 1, 1, eta=now + timedelta(seconds=0.7)).get(timeout=WAIT_S)
    assert time.monotonic() - started >= 0.6


def test_an_unknown_task_fails_for_whoever_waits(way: Way) -> None:
    result = way.client.send_task("nobody.knows")
    with pytest.raises(way.errors.NotRegistered, match=r"nobody\.knows"):
        result.get(timeout=WAIT_S)


# --- when ----------------------------------------------------------------------------------------


def test_a_countdown_is_kept(way: Way) -> None:
    started = time.monotonic()
    seen = way.send("inspect_request", countdown=0.7).get(timeout=WAIT_S)
    assert time.monotonic() - started >= 0.7
    assert seen["eta"] is not None


def test_an_eta_in_another_zone_is_kept(way: Way) -> None:
    due = datetime.now(UTC) + timedelta(seconds=0.7)
    result = way.send("sleep", 0, eta=due)
    result.get(timeout=WAIT_S)
    assert datetime.now(UTC) >= due


def test_a_task_that_is_too_late_is_revoked(way: Way) -> None:
    result = way.send("add", 1, 1, countdown=1, expires=0.4)
    with pytest.raises(way.errors.TaskRevokedError, match="expired"):
        result.get(timeout=WAIT_S)
    assert result.state == "REVOKED"


# --- what the task sees --------------------------------------------------------------------------


def test_a_bound_task_sees_its_request(way: Way) -> None:
    sent = datetime.now(UTC)
    result = way.send(
        "inspect_request",
        1,
        "two",
        kwargs={"k": [3]},
        priority=5,
        headers={"trace": "abc"},
        expires=3600,
        time_limit=50,
        soft_time_limit=40,
    )
    seen = result.get(timeout=WAIT_S)
    assert (seen["name"], seen["task"]) == ("shared.inspect_request",) * 2
    assert (seen["id"], seen["root_id"], seen["correlation_id"]) == (result.id,) * 3
    assert (seen["args"], seen["kwargs"]) == ([1, "two"], {"k": [3]})
    assert (seen["argsrepr"], seen["kwargsrepr"]) == ("(1, 'two')", "{'k': [3]}")
    assert (seen["priority"], seen["routing_key"], seen["redelivered"]) == (5, "celery", False)
    assert (seen["retries"], seen["parent_id"], seen["called_directly"]) == (0, None, False)
    assert seen["headers"]["trace"] == "abc"
    assert seen["timelimit"] == [50, 40]
    assert "@" in seen["hostname"]
    left = datetime.fromisoformat(seen["expires"]) - sent
    assert timedelta(seconds=3590) < left < timedelta(seconds=3610)


def test_a_task_sent_by_a_task_knows_its_parent_and_root(way: Way) -> None:
    parent = way.send("send_child", 1)
    seen = way.client.AsyncResult(parent.get(timeout=WAIT_S)).get(timeout=WAIT_S)
    assert (seen["parent_id"], seen["root_id"]) == (parent.id, parent.id)


def test_a_task_runs_under_the_id_that_it_was_given(way: Way) -> None:
    task_id = f"mine-{uuid.uuid4()}"
    assert way.send("inspect_request", task_id=task_id).get(timeout=WAIT_S)["id"] == task_id


# --- results -------------------------------------------------------------------------------------


def test_no_result_is_kept_when_the_sender_ignores_it(way: Way) -> None:
    ignored = way.send("add", 1, 1, ignore_result=True)
    by_the_task = way.send("ignored")
    way.worker.wait_text(f"shared.add[{ignored.id}] succeeded")
    way.worker.wait_text(f"shared.ignored[{by_the_task.id}] succeeded")
    way.server.wait_settled()
    keys = [way.result_key(ignored.id), way.result_key(by_the_task.id)]
    if way.errors.__name__ == "greenq.errors":
        # A Celery worker goes by the message, and a sender by name knows no task options.
        keys.pop()
    assert way.server.client.exists(*keys) == 0


def test_forgetting_deletes_the_result(way: Way) -> None:
    result = way.send("add", 1, 1)
    assert result.get(timeout=WAIT_S) == 2
    assert way.server.client.ttl(way.result_key(result.id)) > 86000
    result.forget()
    assert way.server.client.exists(way.result_key(result.id)) == 0
    assert way.client.AsyncResult(result.id).state == "PENDING"


def test_waiting_too_long_is_an_error(way: Way) -> None:
    # Celery looks at its clock once a second only.
    result = way.send("add", 1, 1, countdown=1.5)
    error = getattr(way.errors, "ResultTimeout", None) or way.errors.TimeoutError
    with pytest.raises(error):
        result.get(timeout=0.05)
    assert result.get(timeout=WAIT_S) == 2


def test_states_of_its_own_are_announced(way: Way) -> None:
    heard: list[dict[str, Any]] = []
    result = way.send("progress", 4, countdown=0.3)
    assert result.get(timeout=WAIT_S, on_message=heard.append) == "done"
    metas = [meta["result"] for meta in heard if meta["status"] == "PROGRESS"]
    assert metas == [{"step": step, "of": 4} for step in range(4)]
    assert (heard[-1]["status"], heard[-1]["result"]) == ("SUCCESS", "done")


def test_started_is_stored_where_it_is_tracked(way: Way) -> None:
    result = way.send("tracked", 1.0)
    wait_until(lambda: result.state == "STARTED", 10)
    assert result.result["pid"] == way.worker.pid
    assert "@" in result.result["hostname"]
    result.get(timeout=WAIT_S)


# --- retries -------------------------------------------------------------------------------------


def test_a_task_that_retries_succeeds_in_the_end(way: Way) -> None:
    assert way.send("retry_until", 2).get(timeout=WAIT_S) == 2


def test_errors_that_are_named_are_retried_by_themselves(way: Way) -> None:
    assert way.send("autoretry", 2).get(timeout=WAIT_S) == 2


def test_the_last_retry_raises_what_the_task_failed_with(way: Way) -> None:
    with pytest.raises(ValueError, match="never"):
        way.send("retry_for_ever").get(timeout=WAIT_S)


def test_a_retry_without_a_cause_ends_in_max_retries_exceeded(way: Way) -> None:
    with pytest.raises(way.errors.MaxRetriesExceededError):
        way.send("retry_exhausted").get(timeout=WAIT_S)


def test_the_state_of_a_task_that_waits_for_its_retry_is_readable(way: Way) -> None:
    result = way.send("retry_late")
    wait_until(lambda: result.state == "RETRY", 10)
    assert isinstance(result.result, ValueError)
    assert result.result.args == ("later",)
    assert "retry_late" in result.traceback
