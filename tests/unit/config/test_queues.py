"""Queues in the settings: what is accepted, and what a worker and a sender make of it."""

from __future__ import annotations

from typing import Any

import kombu
import kombu.common
import pytest

from greenq.config.queue_table import declared
from greenq.config.queues import Binding, Broadcast, Exchange, Queue
from greenq.config.settings import TaskConfig
from greenq.errors import ConfigError

MEDIA = Exchange("media", "topic")
JOBS = Exchange("jobs")
KOMBU_MEDIA = kombu.Exchange("media", type="topic")


@pytest.mark.parametrize(
    ("given", "accepted"),
    [
        (["a", "b"], ("a", "b")),
        ([Queue("a", "jobs")], (Queue("a", JOBS),)),
        ([kombu.Queue("a")], (Queue("a"),)),
        ([kombu.Queue("a", KOMBU_MEDIA, "m.*")], (Queue("a", MEDIA, "m.*"),)),
        (
            [kombu.Queue("a", KOMBU_MEDIA, "k", expires=5, max_length=9)],
            (Queue("a", MEDIA, "k", expires=5, max_length=9),),
        ),
        (
            [kombu.Queue("a", queue_arguments={"x-expires": 5000, "x-max-length": 9})],
            (Queue("a", expires=5.0, max_length=9),),
        ),
        (
            [
                kombu.Queue(
                    "a",
                    [kombu.binding(KOMBU_MEDIA, "m.b"), kombu.binding(kombu.Exchange("jobs"), "j")],
                )
            ],
            (Queue("a", bindings=(Binding(JOBS, "j"), Binding(MEDIA, "m.b"))),),
        ),
        ([kombu.common.Broadcast("all")], (Broadcast("all", "all"),)),
        (
            [kombu.Queue("a", kombu.Exchange("news", type="fanout"), "x")],
            (Broadcast("a", "news", "x"),),
        ),
        (
            {"a": {"exchange": "media", "exchange_type": "topic", "binding_key": "m.*"}, "b": {}},
            (Queue("a", MEDIA, "m.*"), Queue("b", None, "b")),
        ),
        (None, ()),
    ],
)
def test_task_queues_take_names_queues_and_what_celery_takes(given: Any, accepted: Any) -> None:
    assert TaskConfig(task_queues=given).task_queues == accepted


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Exchange("x", "headers"), "do not exist on Redis"),
        (lambda: Exchange("x", "topics"), "direct, topic or fanout, not 'topics'"),
        (lambda: Exchange(""), "the name of an exchange must be non-empty text"),
        (lambda: Queue(""), "must be non-empty text"),
        (lambda: Queue("q", expires=0), "queue 'q': expires must be a number of seconds, more"),
        (lambda: Queue("q", expires="1"), "queue 'q': expires must be a number of seconds, more"),  # type: ignore[arg-type]
        (lambda: Queue("q", routing_key=5), "queue 'q': routing_key must be non-empty text"),  # type: ignore[arg-type]
        (lambda: Queue("q", max_length=0), "queue 'q': max_length must be a whole number, 1"),
        (lambda: Queue("q", weight=11), "queue 'q': weight must be a whole number, from 1 to 10"),
        (
            lambda: Queue("q", bindings=(Binding(Exchange("x", "fanout")),)),
            "queue 'q' is bound to a fanout exchange",
        ),
        (lambda: Binding("x"), "a binding begins with an Exchange"),  # type: ignore[arg-type]
        (
            lambda: Broadcast("b", routing_key="a.#.b"),
            "# may appear only at the end of its routing key",
        ),
    ],
)
def test_a_wrong_value_is_named(make: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        make()


@pytest.mark.parametrize(
    ("queues", "why"),
    [
        ([Queue("a"), Broadcast("a")], "two queues named 'a'"),
        ({"a": {"colour": "red"}}, "queue 'a' has an unknown option 'colour'"),
        ({"a": "b"}, "the options of queue 'a' must be a mapping"),
        ([kombu.Queue("a", kombu.Exchange("h", type="headers"))], "do not exist on Redis"),
    ],
)
def test_wrong_queues_in_the_settings_are_named(queues: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        TaskConfig(task_queues=queues)


def sources(**settings: Any) -> dict[str, Any]:
    return {
        name: each if isinstance(each, Broadcast) else each.sources
        for name, each in declared(TaskConfig(**settings)).items()
    }


def test_a_name_has_an_exchange_of_its_own_and_a_queue_the_default_one() -> None:
    more = Binding(MEDIA, "m.#")
    found = sources(task_queues=["a", Queue("b"), Queue("c", bindings=(more,)), Broadcast("d")])

    default = Binding(Exchange("celery"), "celery")
    assert found == {
        "a": (Binding(Exchange("a"), "a"),),
        "b": (default,),
        "c": (default, more),
        "d": Broadcast("d", "d", "celery"),
    }
    assert sources() == {"celery": (default,)}


def test_the_default_exchange_is_a_matter_of_settings() -> None:
    found = sources(
        task_queues=[Queue("a"), Queue("b", routing_key="b.#"), Queue("c", JOBS), Broadcast("d")],
        task_default_exchange="tasks",
        task_default_exchange_type="topic",
        task_default_routing_key="task.x",
    )

    tasks = Exchange("tasks", "topic")
    assert found == {
        "a": (Binding(tasks, "task.x"),),
        "b": (Binding(tasks, "b.#"),),
        "c": (Binding(JOBS, "task.x"),),
        "d": Broadcast("d", "d", "task.x"),
    }


def test_all_queues_of_a_fanout_exchange_are_broadcasts() -> None:
    found = sources(
        task_queues=[Queue("a")], task_default_exchange="x", task_default_exchange_type="fanout"
    )

    assert found == {"a": Broadcast("a", "x", "celery")}
