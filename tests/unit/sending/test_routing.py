"""Where a task goes, by table."""

from __future__ import annotations

import logging
import re
import sys
from types import ModuleType
from typing import Any

import pytest

from greenq.config.queues import Exchange, Queue
from greenq.config.settings import TaskConfig
from greenq.errors import ConfigError
from greenq.sending.routing import (
    Broadcast,
    Router,
    Target,
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
    {re.compile(r"(audio|film)\.cut$"): "media"},
]


@pytest.mark.parametrize(
    ("task", "route"),
    [
        pytest.param("mail.send", {"queue": "mail", "priority": 3}, id="exact before glob"),
        pytest.param("mail.sort", {"queue": "bulk"}, id="glob of the first router"),
        pytest.param("web.get", {"queue": "web"}, id="glob of the second router"),
        pytest.param("video.cut", {"priority": 9}, id="priority alone"),
        pytest.param("Mail.send", {}, id="case counts"),
        pytest.param("audio.cut", {"queue": "media"}, id="regular expression"),
        pytest.param("audio.cuts", {}, id="regular expression to the end"),
        pytest.param("other", {}, id="no route"),
    ],
)
def test_route(task: str, route: dict[str, Any]) -> None:
    router = Router(TaskConfig(task_routes=ROUTES, task_default_queue="main"))

    assert not router.asks
    for _ in range(2):
        assert router.route(task) == route


def test_patterns_count_in_their_order() -> None:
    routes = [(re.compile("a.*"), "first"), ("ab*", "second"), ("abc", "exact")]
    router = Router(TaskConfig(task_routes=routes))

    assert [router.route(name)["queue"] for name in ("ab", "abc")] == ["first", "exact"]


# --- routers that decide for each message ---------------------------------------------------------


class ByCustomer:
    """Routes by the first argument."""

    def route_for_task(self, _task: str, args: Any = None, _kwargs: Any = None) -> Any:
        return {"queue": f"customer-{args[0]}"} if args else None


def by_size(name: str, args: Any, kwargs: Any, options: Any, task: Any = None, **_kw: Any) -> Any:
    return f"{name} {args} {kwargs} {sorted(options)} {task}"


def nowhere(*_args: Any, **_named: Any) -> None:
    return None


@pytest.mark.parametrize(
    ("routes", "queue"),
    [
        (ByCustomer(), "customer-7"),
        (ByCustomer, "customer-7"),
        ([nowhere, ByCustomer()], "customer-7"),
        ([{"t": "table"}, ByCustomer()], "table"),
        ([{"other": "table"}, ByCustomer()], "customer-7"),
        (by_size, "t (7,) {'x': 1} ['priority'] <t>"),
        ([nowhere, {"t": "after"}], "after"),
    ],
)
def test_a_router_is_asked_for_each_message(routes: Any, queue: str) -> None:
    router = Router(TaskConfig(task_routes=routes), lambda name: f"<{name}>")

    assert router.asks
    assert router.ask("t", (7,), {"x": 1}, {"priority": 5}) == {"queue": queue, "priority": 5}


@pytest.mark.parametrize("name", ["by_customer", "ByCustomer", "TABLE"])
def test_a_router_is_named_and_imported_when_first_asked(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = Router(TaskConfig(task_routes=f"shop.routers.{name}"))
    module = ModuleType("shop.routers")
    module.ByCustomer = ByCustomer  # type: ignore[attr-defined]
    module.by_customer = ByCustomer().route_for_task  # type: ignore[attr-defined]
    module.TABLE = {"t*": "customer-7"}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "shop.routers", module)
    if name == "by_customer":
        module.by_customer = lambda _name, args, *_rest, **_kw: f"customer-{args[0]}"  # type: ignore[attr-defined]

    assert router.ask("t", (7,), {}, {})["queue"] == "customer-7"


def test_a_router_that_is_not_there_is_named() -> None:
    router = Router(TaskConfig(task_routes=["greenq.nothing.route"]))

    with pytest.raises(ConfigError, match=r"greenq\.nothing\.route.*cannot be imported"):
        router.ask("t", (), {}, {})


@pytest.mark.parametrize("answer", [{"queues": "a"}, 7, {"priority": "high"}])
def test_what_a_router_returns_is_checked(answer: Any) -> None:
    router = Router(TaskConfig(task_routes=lambda *_args, **_named: answer))

    with pytest.raises(ConfigError, match="must return a route or None: the route of task 't'"):
        router.ask("t", (), {}, {})


# --- where messages go ----------------------------------------------------------------------------

MEDIA = Exchange("media", "topic")
QUEUES = [
    "plain",
    Queue("video", MEDIA, "media.video.#"),
    Queue("jobs", Exchange("jobs"), "job"),
    Queue("shared"),
    Broadcast("all"),
    Queue("news", Exchange("news", "fanout"), "sport"),
]


@pytest.mark.parametrize(
    ("options", "target"),
    [
        ({}, Target("celery", "", "celery")),
        ({"queue": "plain"}, Target("plain", "", "plain")),
        # The message says where it is, whatever key is given: Celery's workers restore it by that.
        ({"queue": "plain", "routing_key": "k"}, Target("plain", "", "plain")),
        ({"queue": "jobs", "routing_key": "k"}, Target("jobs", "", "jobs")),
        ({"queue": "plain", "exchange": "media"}, Target("plain", "", "plain")),
        ({"queue": "video"}, Target("video", "", "video")),
        (
            {"queue": "video", "routing_key": "media.video.a"},
            Target("", "media", "media.video.a"),
        ),
        ({"exchange": "media", "routing_key": "media.x"}, Target("", "media", "media.x")),
        ({"exchange": MEDIA, "routing_key": "media.x"}, Target("", "media", "media.x")),
        ({"exchange": "media"}, Target("", "media", "")),
        ({"routing_key": "new"}, Target("new", "", "new")),
        # `shared` is bound with it to the default exchange.
        ({"routing_key": "celery"}, Target("", "celery", "celery")),
        ({"queue": "all"}, Target("all", "all", "celery", True)),
        ({"queue": "all", "routing_key": "x"}, Target("all", "all", "x", True)),
        ({"queue": "news"}, Target("news", "news", "sport", True)),
        ({"exchange": "news"}, Target("news", "news", "sport", True)),
        ({"exchange": "news", "routing_key": "x"}, Target("news", "news", "x", True)),
        ({"exchange": Exchange("new", "fanout")}, Target("new", "new", "celery", True)),
        (
            {"exchange": "new", "exchange_type": "fanout", "routing_key": "x"},
            Target("new", "new", "x", True),
        ),
    ],
)
def test_target(options: dict[str, Any], target: Target) -> None:
    assert Router(TaskConfig(task_queues=QUEUES)).target(options) == target


def test_a_routing_key_alone_goes_with_a_topic_as_default_exchange() -> None:
    config = TaskConfig(
        task_queues=[Queue("feeds", routing_key="feed.#"), Queue("default", routing_key="task.#")],
        task_default_queue="default",
        task_default_exchange="tasks",
        task_default_exchange_type="topic",
        task_default_routing_key="task.default",
    )
    router = Router(config)

    assert router.target({"routing_key": "feed.in"}) == Target("", "tasks", "feed.in")
    assert router.target({}) == Target("default", "", "default")


@pytest.mark.parametrize(
    ("route", "options", "target"),
    [
        ({"queue": "plain"}, {"queue": "jobs"}, Target("jobs", "", "jobs")),
        (
            {"exchange": "media", "routing_key": "media.x"},
            {"queue": "jobs"},
            Target("jobs", "", "jobs"),
        ),
        (
            {"exchange": "media", "routing_key": "media.x"},
            {"routing_key": "media.y"},
            Target("", "media", "media.y"),
        ),
        ({"queue": "plain"}, {"routing_key": "other"}, Target("other", "", "other")),
        ({"queue": "video"}, {"routing_key": "a.b"}, Target("", "media", "a.b")),
        ({"queue": "plain"}, {"queue": None, "priority": None}, Target("plain", "", "plain")),
    ],
)
def test_the_caller_s_destination_replaces_that_of_the_route(
    route: dict[str, Any], options: dict[str, Any], target: Target
) -> None:
    router = Router(TaskConfig(task_queues=QUEUES))

    assert router.target(router.merge(route, options)) == target


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


def test_router_knows_the_queues() -> None:
    assert Router(TaskConfig(task_queues=["mail", ALL])).queues == ("mail", "all")
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
    found = select_queues(TaskConfig(**settings), wanted, excluded)
    assert tuple(map(str, found)) == tuple(map(str, selected))
    assert [isinstance(each, Broadcast) for each in found] == [each is ALL for each in selected]
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
