"""Where a task goes, by table."""

from __future__ import annotations

from typing import Any

import pytest

from greenq.config import TaskConfig
from greenq.routing import Route, Router, merge_options

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
