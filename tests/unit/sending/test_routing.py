"""Where a task goes, by table."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from greenq.config.settings import TaskConfig
from greenq.errors import ConfigError
from greenq.sending.routing import (
    Broadcast,
    Route,
    Router,
    merge_options,
    select_queues,
    worker_direct,
)

ROUTES = [
    {
        "mail.*": {"queue": "bulk"},
        "mail.send": {"queue": "mail", "priority": 3},
        "video.*": {"priority": 9},
    },
    {"mail.*": {"queue": "never"}, "web.?et": {"queue": "web"}},
]


@pytest.mark.parametrize(
    ("task", "queue", "priority"),
    [
        pytest.param("mail.send", "mail", 3, id="exact before glob"),
        pytest.param("mail.sort", "bulk", None, id="glob of the first router"),
        pytest.param("web.get", "web", None, id="glob of the second router"),
        pytest.param("video.cut", "main", 9, id="priority alone keeps the default queue"),
        pytest.param("Mail.send", "main", None, id="case counts"),
        pytest.param("other", "main", None, id="no route"),
    ],
)
def test_route(task: str, queue: str, priority: int | None) -> None:
    router = Router(TaskConfig(task_routes=ROUTES, task_default_queue="main"))

    for _ in range(2):
        assert router.route(task) == Route(queue, priority)


@pytest.mark.parametrize(
    ("given", "merged"),
    [
        ([], {}),
        ([{"a": 1}, {"a": 2}], {"a": 2}),
        ([{"a": 1}, {"a": None, "b": None}], {"a": 1}),
        ([{"a": 0, "b": False, "c": ""}], {"a": 0, "b": False, "c": ""}),
    ],
)
def test_merge_options_takes_the_later_and_none_as_not_given(
    given: list[dict[str, Any]], merged: dict[str, Any]
) -> None:
    assert merge_options(*given) == merged


ALL = Broadcast("all")


def test_router_knows_the_queues_and_which_are_broadcast() -> None:
    router = Router(TaskConfig(task_queues=["mail", ALL], task_default_queue="main"))

    assert router.queues == ("mail", "all")
    assert router.broadcasts == {"all"}
    assert router.routing_key == "main"
    assert Router(TaskConfig()).queues == ("celery",)


def test_a_worker_s_own_queue_is_named_like_its_node() -> None:
    assert worker_direct("w1@host") == "w1@host.dq2"


@pytest.mark.parametrize(
    ("settings", "wanted", "excluded", "selected"),
    [
        ({}, [], [], ("celery",)),
        ({"task_default_queue": "main"}, [], [], ("main",)),
        ({"task_queues": ["a", ALL]}, [], [], ("a", ALL)),
        ({"task_queues": ["a", ALL]}, ["all"], [], (ALL,)),
        ({"task_queues": ["a", "b", "c"]}, ["c", "a", "c"], [], ("c", "a")),
        ({"task_queues": ["a", "b", ALL]}, [], ["b", "all"], ("a",)),
        ({"task_queues": ["a", "b"]}, ["a", "b"], ["a"], ("b",)),
        ({"task_queues": ["a", "b"]}, ["a"], ["b"], ("a",)),
        ({"task_queues": ["a"]}, [], ["a"], ()),
        ({"task_queues": ["a"]}, ["new", "a"], [], ("new", "a")),
        ({"task_queues": ["a"], "task_create_missing_queues": False}, ["a"], [], ("a",)),
        ({"task_create_missing_queues": False}, ["celery"], [], ("celery",)),
    ],
)
def test_select_queues(
    settings: dict[str, Any],
    wanted: list[str],
    excluded: list[str],
    selected: tuple[Any, ...],
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert select_queues(TaskConfig(**settings), wanted, excluded) == selected
    assert not caplog.records


def test_select_queues_refuses_unknown_ones_that_may_not_be_made() -> None:
    config = TaskConfig(task_queues=["mail", "video", ALL], task_create_missing_queues=False)

    with pytest.raises(ConfigError) as caught:
        select_queues(config, ["mial", "video", "qqq"])

    told = {problem.value: problem.reason for problem in caught.value.problems}
    assert list(told) == ["mial", "qqq"]
    assert "did you mean mail?" in told["mial"]
    assert "did you mean" not in told["qqq"]


def test_select_queues_warns_of_a_queue_to_leave_out_that_is_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = TaskConfig(task_queues=["mail", "video"])

    assert select_queues(config, [], ["mial"]) == ("mail", "video")

    ((_, level, text),) = caplog.record_tuples
    assert level == logging.WARNING
    assert "queue mial" in text
    assert "did you mean mail?" in text
