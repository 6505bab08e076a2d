"""Settings: defaults, checks that find everything at once, sources, and no secret shown."""

from __future__ import annotations

import dataclasses
import sys
import types
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from greenq.config import (
    SECTIONS,
    Config,
    RetryPolicy,
    TransportOptions,
    mask_url,
    settings_from_env,
    settings_from_object,
)
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
        ("task_time_limit", 5, 5.0),
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
        ("task_default_queue", "", "not empty"),
        ("task_default_priority", 10, "from 0 to 9"),
        ("task_queues", "celery", "must be a list"),
        ("task_queues", [{"name": "a"}], "must be text"),
        ("task_routes", "slow", "must be {task name or glob"),
        ("task_routes", [print], "functions as routers"),
        ("task_routes", {"a": {"exchange": "x"}}, "the route of 'a' must be"),
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
        task_time_limits=1,
        worker_concurrency=0,
    )
    assert found.keys() == {
        "broker_url",
        "broker_transport_options.visibilty_timeout",
        "broker_transport_options.socket_timeout",
        "result_expires",
        "task_time_limits",
        "worker_concurrency",
    }
    assert "did you mean visibility_timeout?" in found["broker_transport_options.visibilty_timeout"]
    assert "did you mean task_time_limit?" in found["task_time_limits"]


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
        ("CELERYD_TASK_TIME_LIMIT", "task_time_limit"),
        ("celeryd_prefetch_multiplier", "worker_prefetch_multiplier"),
        ("TASK_ACKS_LATE", "task_acks_late"),
    ],
)
def test_old_name_is_refused_with_the_new_one(old: str, new: str) -> None:
    assert problems_of(**{old: 1}) == {old: f"is an old name, now {new}"}


def test_unknown_name_without_a_neighbour_is_refused() -> None:
    assert problems_of(zebra=1) == {"zebra": "greenq has no such setting"}


@pytest.mark.parametrize(("soft", "fits"), [(9, True), (10, False), (11, False)])
def test_soft_time_limit_must_be_below_the_hard_one(soft: float, fits: bool) -> None:
    settings = {"task_time_limit": 10, "task_soft_time_limit": soft}
    if fits:
        assert Config.build(settings).task.task_soft_time_limit == soft
    else:
        assert list(problems_of(**settings)) == ["task_soft_time_limit"]


def test_get_refuses_an_unknown_name_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean broker_url"):
        Config().get("broker_ur")


# --- secrets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("redis://user@h/0", "redis://user@h/0"),
        (f"redis://:{SECRET}@h/0", "redis://:********@h/0"),
        (f"rediss://user:{SECRET}@h:1/0?x=1", "rediss://user:********@h:1/0?x=1"),
        (f"redis://:a@{SECRET}/b@h/0", "redis://:********@h/0"),
        (f"redis://:a;{SECRET},b@h/0", "redis://:********@h/0"),
        (f"redis://h/0?password={SECRET}&a=1", "redis://h/0?password=********&a=1"),
        (f"unix://:{SECRET}@/run/s.sock?db=1", "unix://:********@/run/s.sock?db=1"),
        (f"sentinel://:{SECRET}@a:1;sentinel://:{SECRET}@b:1",
         "sentinel://:********@a:1;sentinel://:********@b:1"),
        (f"error 7: redis://:{SECRET}@h", "error 7: redis://:********@h"),
        ("", ""),
    ],
)  # fmt: skip
def test_mask_url_hides_the_password_and_nothing_else(url: str, masked: str) -> None:
    assert mask_url(url) == masked


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
        {"redis_password": SECRET},
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


# --- sources: objects ----------------------------------------------------------------------------


@pytest.fixture
def settings_module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("my_settings")
    vars(module).update(
        task_acks_late=False,
        broker_url="redis://h",
        SECRET_KEY="x",
        CELERY_TIMEZONE="UTC",
        CELERY_TASK_TRACK_STARTED=True,
        CELERYISH="x",
        _hidden=1,
        dataclass=dataclasses.dataclass,
        sys=sys,
        path=Path,
        nested=types.SimpleNamespace(conf={"timezone": "UTC"}),
    )
    monkeypatch.setitem(sys.modules, "my_settings", module)
    return module


def test_module_gives_its_lower_case_values(settings_module: types.ModuleType) -> None:
    del settings_module.nested
    wanted = {"task_acks_late": False, "broker_url": "redis://h"}
    assert settings_from_object(settings_module) == wanted
    assert settings_from_object("my_settings") == wanted


@pytest.mark.usefixtures("settings_module")
def test_namespace_takes_the_prefixed_upper_case_names() -> None:
    wanted = {"timezone": "UTC", "task_track_started": True}
    assert settings_from_object("my_settings", "CELERY") == wanted
    assert settings_from_object({"CELERY_TIMEZONE": "UTC", "timezone": "x"}, "celery_") == {
        "timezone": "UTC"
    }


@pytest.mark.usefixtures("settings_module")
def test_text_with_a_colon_names_an_attribute() -> None:
    assert settings_from_object("my_settings:nested.conf") == {"timezone": "UTC"}


def test_class_gives_its_values_and_no_methods() -> None:
    class Settings:
        timezone = "UTC"

        def helper(self) -> None: ...

    assert settings_from_object(Settings) == {"timezone": "UTC"}


def test_mapping_keeps_every_name_so_that_wrong_ones_are_refused() -> None:
    assert settings_from_object({"BROKER_URL": "x", "y": 1}) == {"BROKER_URL": "x", "y": 1}


@pytest.mark.parametrize("path", ["no_such_module", "no_such.module", "os:nothing", "", ":x", "."])
def test_unknown_module_or_attribute_is_a_config_error(path: str) -> None:
    with pytest.raises(ConfigError, match="config source"):
        settings_from_object(path)


def test_module_that_lacks_an_import_of_its_own_raises_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "greenq_test_broken.py").write_text("import greenq_test_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="greenq_test_missing"):
        settings_from_object("greenq_test_broken")


# --- sources: environment ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "text", "held"),
    [
        ("BROKER_URL", "redis://h/1", "redis://h/1"),
        ("BROKER_POOL_LIMIT", "3", 3),
        ("TASK_ACKS_LATE", "false", False),
        ("TASK_ACKS_LATE", "1", True),
        ("TASK_TIME_LIMIT", "1.5", 1.5),
        ("TASK_TIME_LIMIT", "none", None),
        ("RESULT_EXPIRES", "60", 60.0),
        ("ACCEPT_CONTENT", "json, yaml", ("json", "yaml")),
        ("ACCEPT_CONTENT", '["json"]', ("json",)),
        ("TASK_QUEUES", "a", ("a",)),
        ("TASK_ROUTES", '{"a.*": "slow"}', ({"a.*": {"queue": "slow"}},)),
        (
            "BROKER_TRANSPORT_OPTIONS",
            '{"priority_steps": [0, 5]}',
            TransportOptions(priority_steps=(0, 5)),
        ),
    ],
)
def test_environment_is_read_by_the_settings_type(variable: str, text: str, held: Any) -> None:
    settings = settings_from_env({f"GREENQ_{variable}": text, "HOME": "/"})
    value = Config.build(settings).get(variable.lower())
    assert value == held
    assert type(value) is type(held)


def test_environment_names_every_variable_that_is_wrong() -> None:
    environ = {
        "GREENQ_BROKER_POOL_LIMIT": "many",
        "GREENQ_TASK_ACKS_LATE": "maybe",
        "GREENQ_TASK_ROUTES": "{",
        "GREENQ_BROKER_ULR": f"redis://:{SECRET}@h",
        "GREENQ_DATA": "/tmp/x",
        "PATH": "/bin",
    }
    with pytest.raises(ConfigError) as caught:
        settings_from_env(environ)
    found = {problem.field: problem.reason for problem in caught.value.problems}
    assert found.keys() == environ.keys() - {"GREENQ_DATA", "PATH"}
    assert found["GREENQ_BROKER_POOL_LIMIT"] == "must be a number"
    assert found["GREENQ_TASK_ACKS_LATE"] == "must be true, false, 1 or 0"
    assert found["GREENQ_TASK_ROUTES"].startswith("must be JSON")
    assert found["GREENQ_BROKER_ULR"].endswith("did you mean GREENQ_BROKER_URL?")
    assert SECRET not in str(caught.value)
