"""Settings: defaults, checks that find everything at once, and no secret shown."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from zoneinfo import ZoneInfo

import kombu
import pytest

from greenq.config.queues import Queue
from greenq.config.settings import SECTIONS, Config, RetryPolicy, TransportOptions
from greenq.errors import ConfigError

SECRET = "s3cr3t"


def problems_of(**settings: object) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        Config.build(settings)
    return {problem.field: problem.reason for problem in caught.value.problems}


# --- defaults and normal forms -------------------------------------------------------------------


def test_defaults_are_those_promised() -> None:
    config = Config()
    assert config == Config.build({})
    assert config.broker.broker_url == ""
    assert config.broker.broker_transport_options.priority_steps == (0, 3, 6, 9)
    assert config.broker.broker_transport_options.visibility_timeout == 3600.0
    assert config.result.result_expires == 86400.0
    assert config.task.task_acks_late is True
    assert config.task.accept_content == ("json",)
    assert config.task.task_publish_retry_policy == RetryPolicy(
        max_retries=3, interval_start=0, interval_step=0.2, interval_max=1
    )
    assert config.worker.worker_prefetch_multiplier == 1


def test_every_setting_has_a_meaning_and_an_owner() -> None:
    fields = [each for part in SECTIONS.values() for each in dataclasses.fields(part)]
    assert all(each.metadata["doc"].endswith((".", ".)")) for each in fields)
    assert Config.names() == {each.name for each in fields}
    assert len(fields) == len(Config.names())


@pytest.mark.parametrize(
    ("name", "given", "held"),
    [
        ("result_expires", 60, 60.0),
        ("result_expires", timedelta(hours=1), 3600.0),
        ("result_expires", None, None),
        ("result_expires", 0, 0.0),
        ("accept_content", ["json", "application/x-yaml"], ("json", "application/x-yaml")),
        ("task_queues", ["a", "b"], ("a", "b")),
        ("task_queues", [kombu.Queue("a"), "b"], (Queue("a"), "b")),
        ("timezone", ZoneInfo("Asia/Tokyo"), "Asia/Tokyo"),
        ("task_routes", [("t", "a")], ({"t": {"queue": "a"}},)),
        (
            "task_routes",
            {"t": {"queue": "a", "routing_key": "r"}},
            ({"t": {"queue": "a", "routing_key": "r"}},),
        ),
        ("broker_connection_timeout", 5, 5.0),
        ("broker_url", "redis://h:6379/1", "redis://h:6379/1"),
        ("broker_url", "embedded:///tmp/x", "embedded:///tmp/x"),
        ("broker_url", None, ""),
        ("result_backend", None, ""),
        ("result_backend", "disabled://", "disabled://"),
        ("timezone", "Europe/Berlin", "Europe/Berlin"),
        ("task_routes", {"a.*": "slow"}, ({"a.*": {"queue": "slow"}},)),
        (
            "task_routes",
            [{"a": {"queue": "q", "priority": 3}}, {"b*": {"priority": 9}}],
            ({"a": {"queue": "q", "priority": 3}}, {"b*": {"priority": 9}}),
        ),
        (
            "broker_transport_options",
            {"visibility_timeout": 10},
            TransportOptions(visibility_timeout=10),
        ),
        ("task_publish_retry_policy", {"max_retries": None}, RetryPolicy(max_retries=None)),
    ],
)
def test_value_is_held_in_its_normal_form(name: str, given: object, held: object) -> None:
    value = Config.build({name: given}).get(name)
    assert value == held
    assert type(value) is type(held)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().task.task_acks_late = False  # type: ignore[misc]


# --- what is wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("broker_url", "amqp://h", "must be a Redis or Valkey URL"),
        ("broker_url", "localhost:6379", "must be a Redis or Valkey URL"),
        ("broker_url", "disabled://", "must be a Redis or Valkey URL"),
        ("broker_url", 6379, "must be a URL as text"),
        ("broker_pool_limit", 0, "1 or more"),
        ("broker_pool_limit", True, "whole number"),
        ("broker_pool_limit", 2.5, "whole number"),
        ("broker_connection_timeout", 0, "more than 0"),
        ("broker_connection_timeout", float("nan"), "number of seconds"),
        ("broker_connection_timeout", "4", "number of seconds"),
        ("broker_transport_options", [1], "must be a mapping of"),
        ("result_serializer", "jsn", "must be one of json"),
        ("result_expires", -1, "number of seconds"),
        ("result_expires", 0.5, "1 or more, or 0"),
        ("result_compression", "zipp", "must be one of"),
        ("accept_content", "json", "must be a list"),
        ("accept_content", ["jsno"], "did you mean json?"),
        ("accept_content", [1], "must list content types"),
        ("task_acks_late", 1, "True or False"),
        ("task_acks_late", "false", "True or False"),
        ("task_default_queue", "", "non-empty"),
        ("task_default_priority", 10, "from 0 to 9"),
        ("task_queues", "celery", "must be a list"),
        ("task_queues", [{"name": "a"}], "must be non-empty text"),
        ("task_routes", "slow", "must be {task name, glob or regular expression"),
        ("task_routes", [5], "5: must be {task name, glob or regular expression"),
        ("task_routes", {"a": {"exchanges": "x"}}, "the route of 'a' must be"),
        ("task_routes", {"a": {"exchange": "x", "exchange_type": "headers"}}, "not exist on Redis"),
        ("task_routes", {"a": {"priority": "high"}}, "the route of 'a' is wrong"),
        ("task_max_body_bytes", 1024**3, "from 1 to 536870912"),
        ("timezone", "Mars/Olympus", "must name a time zone"),
        ("timezone", "../etc/passwd", "must name a time zone"),
        ("worker_concurrency", -1, "1 or more"),
        ("worker_log_color", "yes", "True or False"),
    ],
)
def test_wrong_value_is_refused_with_what_is_right(name: str, value: object, reason: str) -> None:
    found = problems_of(**{name: value})
    assert list(found) == [name]
    assert reason in found[name]


@pytest.mark.parametrize("steps", [(), (3, 6), (0, 3, 3), (0, 6, 3), (0, 12), "0369", (0, "3"), 5])
def test_priority_steps_must_rise_from_0_to_9(steps: object) -> None:
    found = problems_of(broker_transport_options={"priority_steps": steps})
    assert list(found) == ["broker_transport_options.priority_steps"]


def test_all_problems_of_all_sections_come_at_once() -> None:
    found = problems_of(
        broker_url="amqp://h",
        broker_transport_options={"visibilty_timeout": 1, "socket_timeout": -1},
        result_expires="soon",
        task_default_queues=1,
        worker_concurrency=0,
    )
    assert found.keys() == {
        "broker_url",
        "broker_transport_options.visibilty_timeout",
        "broker_transport_options.socket_timeout",
        "result_expires",
        "task_default_queues",
        "worker_concurrency",
    }
    assert "did you mean visibility_timeout?" in found["broker_transport_options.visibilty_timeout"]
    assert "did you mean task_default_queue?" in found["task_default_queues"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("BROKER_URL", "broker_url"),
        ("CELERY_RESULT_BACKEND", "result_backend"),
        ("CELERY_TASK_RESULT_EXPIRES", "result_expires"),
        ("CELERY_TASK_SERIALIZER", "task_serializer"),
        ("CELERY_ACKS_LATE", "task_acks_late"),
        ("CELERY_DEFAULT_QUEUE", "task_default_queue"),
        ("CELERY_MESSAGE_COMPRESSION", "task_compression"),
        ("CELERYD_CONCURRENCY", "worker_concurrency"),
        ("CELERYD_HIJACK_ROOT_LOGGER", "worker_hijack_root_logger"),
        ("celeryd_prefetch_multiplier", "worker_prefetch_multiplier"),
        ("TASK_ACKS_LATE", "task_acks_late"),
    ],
)
def test_old_name_is_refused_with_the_new_one(old: str, new: str) -> None:
    assert problems_of(**{old: 1}) == {old: f"is an old name; it is now {new}"}


def test_unknown_name_without_a_neighbour_is_refused() -> None:
    assert problems_of(zebra=1) == {"zebra": "greenq has no such setting"}


def test_get_refuses_an_unknown_name_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean broker_url"):
        Config().get("broker_ur")


# --- secrets -------------------------------------------------------------------------------------


def test_no_repr_shows_a_password() -> None:
    url = f"redis://:{SECRET}@h/0"
    config = Config.build({"broker_url": url, "result_backend": url})
    assert config.broker.broker_url == url
    assert SECRET not in repr(config)
    assert repr(config).count("redis://:********@h/0") == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"broker_url": f"amqp://u:{SECRET}@h"},
        {"BROKER_URL": f"redis://:{SECRET}@h"},
        {"broker_password": SECRET},
        {"broker_transport_options": {"password": SECRET}},
        {"sentinel": {"urls": [f"redis://:{SECRET}@h"], "options": {"auth_token": SECRET}}},
    ],
)
def test_no_problem_shows_a_password(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.build(settings)
    assert SECRET not in str(caught.value)
    assert "********" in str(caught.value)


def test_long_value_is_shortened_in_a_problem() -> None:
    with pytest.raises(ConfigError) as caught:
        Config.build({"broker_url": "x" * 10_000})
    assert len(str(caught.value)) < 500
