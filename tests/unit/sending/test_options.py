"""Options of tasks and of sendings: what is wrong is refused where it is written."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from greenq import Greenq
from greenq.app import Task
from greenq.errors import GreenqError, WrongOption
from greenq.sending.options import SendOptions, check_send_options

NOWHERE = "redis://127.0.0.1:1/0"


def _nothing() -> None: ...


@pytest.fixture
def app() -> Greenq:
    return Greenq("proj", broker=NOWHERE, set_as_current=False)


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("eta", 5, "must be a datetime, or text in ISO 8601; for seconds from now"),
        ("eta", 1e9, "countdown"),
        ("eta", "tomorrow", "is not an ISO 8601 time"),
        ("eta", timedelta(1), "must be a datetime"),
        ("countdown", "3", "must be a number of seconds"),
        ("countdown", True, "must be a number of seconds"),
        ("countdown", float("nan"), "must be a number of seconds"),
        ("expires", "soon", "is not an ISO 8601 time"),
        ("expires", [], "must be a datetime"),
        ("time_limit", "5", "must be a number of seconds"),
        ("soft_time_limit", -1, "must be a number of seconds"),
        ("priority", "high", "must be a whole number"),
        ("priority", 1.5, "must be a whole number"),
        ("queue", 5, "must be the name of a queue"),
        ("queue", ["a"], "must be the name of a queue"),
        ("queue", "", "must be the name of a queue"),
        ("exchange", 5, "must be text"),
        ("routing_key", 5, "must be text"),
        ("task_id", 5, "must be text"),
        ("shadow", 5, "must be text"),
        ("headers", [1], "must be a mapping"),
        ("ignore_result", "no", "must be True or False"),
        ("retry", "no", "must be True or False"),
        ("link", "m.mul", "must be a signature, such as add.s(2)"),
        ("link_error", [{"task": "m.note"}, 3], "must be a signature"),
        ("chord", [], "must be a signature"),
        ("stamps", ["a"], "must be a mapping"),
        (
            "retry_policy",
            {"max_retrys": 3},
            "has the unknown key 'max_retrys'; the known keys are max_retries",
        ),
        ("retry_policy", {"max_retries": "3"}, "must be a whole number"),
    ],
)
def test_wrong_option_of_a_sending_is_refused_at_the_sender(
    app: Greenq, option: str, value: Any, told: str
) -> None:
    options: Any = {option: value}
    for send in (
        lambda: app.send_task("m.add", (), **options),
        lambda: app.task(name="m.add")(_nothing).apply_async(**options),
    ):
        with pytest.raises(WrongOption, match=rf"task m\.add: {option} = ") as refused:
            send()
        assert told in str(refused.value)
        # As whoever catches what Python itself would raise expects.
        assert isinstance(refused.value, (TypeError, ValueError, GreenqError))


@pytest.mark.parametrize(
    ("option", "value", "held"),
    [
        ("priority", 11, 9),
        ("priority", -1, 0),
        ("priority", 5, 5),
        ("countdown", timedelta(minutes=1), 60.0),
        ("countdown", -3, -3),
        ("time_limit", 5, 5),
        ("expires", timedelta(minutes=1), 60.0),
        ("eta", "2030-01-31T12:00:00Z", "2030-01-31T12:00:00Z"),
        ("eta", datetime(2030, 1, 1, tzinfo=UTC), datetime(2030, 1, 1, tzinfo=UTC)),
        ("queue", SimpleNamespace(name="mail"), "mail"),
        ("retry_policy", {"max_retries": None}, {"max_retries": None}),
        ("argsrepr", "", ""),
        ("queue", None, None),
    ],
)
def test_right_options_are_brought_to_one_form(option: str, value: Any, held: Any) -> None:
    (found,) = check_send_options("m.add", {option: value}).values()
    assert found == held
    assert type(found) is type(held)


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("acks_late", "no", "must be True or False"),
        ("ignore_result", 1, "must be True or False"),
        ("track_started", "yes", "must be True or False"),
        ("time_limit", "10", "must be a number of seconds"),
        ("soft_time_limit", -1, "must be a number of seconds"),
        ("default_retry_delay", "3", "must be a number of seconds"),
        ("max_retries", "3", "must be a whole number"),
        ("retry_backoff", "fast", "must be a number of seconds"),
        ("serializer", "jsn", "must be one of json"),
        ("compression", "zip", "must be one of"),
        ("priority", "high", "must be a whole number"),
        ("queue", 5, "must be the name of a queue"),
        ("expires", "soon", "is not an ISO 8601 time"),
        ("typing", "no", "must be True or False"),
    ],
)
def test_wrong_option_of_a_task_is_refused_where_it_is_defined(
    app: Greenq, option: str, value: Any, told: str
) -> None:
    class Base(Task[..., Any]):
        pass

    setattr(Base, option, value)
    ways: list[dict[str, Any]] = [{option: value}, {"base": Base}]
    for options in ways:
        with pytest.raises(WrongOption, match=rf"task m\.add: {option} = ") as refused:
            app.task(name="m.add", **options)(_nothing)
        assert told in str(refused.value)


def test_duration_of_a_task_is_seconds_then(app: Greenq) -> None:
    task = app.task(name="m.add", time_limit=timedelta(minutes=1), soft_time_limit=30)(lambda: None)
    assert (task.time_limit, task.soft_time_limit) == (60.0, 30)


async def a_coroutine() -> None: ...


def a_generator() -> Any:
    yield 1


async def an_async_generator() -> Any:
    yield 1


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (a_coroutine, "is an async def, which cannot be a task yet"),
        (a_generator, "is a generator"),
        (an_async_generator, "is a generator"),
    ],
)
def test_function_that_does_not_run_when_called_is_refused(
    app: Greenq, function: Any, told: str
) -> None:
    with pytest.raises(TypeError, match=told):
        app.task(function)


def test_docstring_names_every_option() -> None:
    assert SendOptions.__doc__ is not None
    named = set(re.findall(r"\w+", SendOptions.__doc__))
    assert set(SendOptions.__annotations__) <= named
