"""Where settings are read from: mappings, modules, objects and the environment."""

from __future__ import annotations

import dataclasses
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from greenq.config.loaders import settings_from_env, settings_from_object
from greenq.config.settings import Config, TransportOptions
from greenq.errors import ConfigError

SECRET = "s3cr3t"


# --- objects -------------------------------------------------------------------------------------


@pytest.fixture
def settings_module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("my_settings")
    vars(module).update(
        task_acks_late=False,
        broker_url="redis://h",
        SECRET_KEY="x",
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


def test_namespace_takes_the_prefixed_upper_case_names(
    settings_module: types.ModuleType,
) -> None:
    vars(settings_module).update(CELERY_TIMEZONE="UTC", CELERY_TASK_TRACK_STARTED=True)
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


# --- environment ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "text", "held"),
    [
        ("BROKER_URL", "redis://h/1", "redis://h/1"),
        ("BROKER_POOL_LIMIT", "3", 3),
        ("TASK_ACKS_LATE", "false", False),
        ("TASK_ACKS_LATE", "1", True),
        ("BROKER_CONNECTION_TIMEOUT", "1.5", 1.5),
        ("WORKER_CONCURRENCY", "none", None),
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


# --- names that look like settings ---------------------------------------------------------------


def module(**names: object) -> types.ModuleType:
    made = types.ModuleType("proj_settings")
    vars(made).update(names)
    return made


def refusals(source: object, namespace: str | None = None) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        settings_from_object(source, namespace)
    return {problem.field: problem.reason for problem in caught.value.problems}


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("BROKER_URL", "broker_url"),
        ("CELERY_RESULT_BACKEND", "result_backend"),
        ("CELERY_BROKER_URL", "broker_url"),
        ("CELERYD_CONCURRENCY", "worker_concurrency"),
        ("CELERY_ACKS_LATE", "task_acks_late"),
        ("CELERY_TASK_RESULT_EXPIRES", "result_expires"),
        ("CELERYBEAT_SCHEDULE", "beat_schedule"),
        ("TASK_ROUTES", "task_routes"),
        ("Broker_Url", "broker_url"),
    ],
)
@pytest.mark.parametrize("kind", ["module", "object"])
def test_setting_in_another_spelling_is_refused_with_the_right_one(
    name: str, setting: str, kind: str
) -> None:
    source = module(**{name: "x"}) if kind == "module" else types.SimpleNamespace(**{name: "x"})
    assert f"write {setting}" in refusals(source)[name]


def test_constant_that_only_feeds_a_setting_is_left_alone() -> None:
    notes: list[str] = []
    source = module(BROKER_URL="redis://h", broker_url="redis://h", DEBUG=True, TIME_ZONE="UTC")
    assert settings_from_object(source, notes=notes) == {"broker_url": "redis://h"}
    assert notes == []


def test_helpers_of_a_module_are_noted_and_near_misses_refused() -> None:
    notes: list[str] = []
    source = module(data_folder="/srv", mail_server="m", timezone="UTC", CELERY_LOGS="x")
    assert settings_from_object(source, notes=notes) == {"timezone": "UTC"}
    assert notes == [
        f"{name} in proj_settings is not a setting and is not read"
        for name in ("CELERY_LOGS", "data_folder", "mail_server")
    ]
    assert refusals(module(task_ack_late=True))["task_ack_late"].endswith("mean task_acks_late?")


def test_namespace_that_matches_nothing_is_refused() -> None:
    source = module(CELERY_BROKER_URL="redis://h", DEBUG=True)
    assert refusals(source, "CELRY")["namespace"] == (
        "no upper-case name in proj_settings begins with CELRY_; did you mean 'CELERY'?"
    )
    assert "namespace" in refusals({"CELERY_BROKER_URL": "redis://h"}, "CELRY")


def test_old_and_misspelt_names_in_a_namespace_are_refused_in_its_spelling() -> None:
    found = refusals(
        module(
            CELERY_ACKS_LATE=True,
            CELERY_TASK_TRACK_STARTD=True,
            CELERYD_CONCURRENCY=3,
            BROKER_URL="redis://:s3cr3t@h",
        ),
        "CELERY",
    )
    assert found == {
        "CELERY_ACKS_LATE": "is an old name; it is now CELERY_TASK_ACKS_LATE",
        "CELERY_TASK_TRACK_STARTD": (
            "greenq has no such setting; did you mean CELERY_TASK_TRACK_STARTED?"
        ),
        "CELERYD_CONCURRENCY": "is not read: write CELERY_WORKER_CONCURRENCY",
        "BROKER_URL": "is not read: write CELERY_BROKER_URL",
    }


def test_helper_in_a_namespace_is_noted() -> None:
    notes: list[str] = []
    source = module(CELERY_OUR_OWN="x", CELERY_TIMEZONE="UTC", CELERY_BROKER_URL=1, BROKER_URL=1)
    assert settings_from_object(source, "CELERY", notes) == {"timezone": "UTC", "broker_url": 1}
    assert notes == ["CELERY_OUR_OWN in proj_settings is not a setting and is not read"]


@pytest.mark.parametrize("host", ["GREENQ", "GREENQ_WEB"])
def test_what_kubernetes_says_of_a_service_is_passed_over(host: str) -> None:
    notes: list[str] = []
    environ = {
        f"{host}_SERVICE_HOST": "10.0.0.11",
        f"{host}_SERVICE_PORT": "6379",
        f"{host}_SERVICE_PORT_HTTP": "6379",
        f"{host}_PORT": "tcp://10.0.0.11:6379",
        f"{host}_PORT_6379_TCP": "tcp://10.0.0.11:6379",
        f"{host}_PORT_6379_TCP_PROTO": "tcp",
        f"{host}_PORT_6379_TCP_PORT": "6379",
        f"{host}_PORT_6379_TCP_ADDR": "10.0.0.11",
    }
    assert settings_from_env(environ, notes) == {}
    assert notes == []


def test_variables_that_are_no_settings_are_noted_and_near_misses_refused() -> None:
    notes: list[str] = []
    assert settings_from_env({"GREENQ_LOG_LEVEL": "x", "GREENQ_WORKER_POOL": "x"}, notes) == {}
    assert notes == [
        "GREENQ_LOG_LEVEL in the environment is not read: greenq has no such setting",
        "GREENQ_WORKER_POOL in the environment is not read: is a Celery setting: not needed: "
        "greenq's pool always consists of greenlets",
    ]
    with pytest.raises(ConfigError, match="did you mean GREENQ_WORKER_CONCURRENCY"):
        settings_from_env({"GREENQ_WORKER_CONCURENCY": "3"})


def test_addresses_that_celery_reads_from_the_environment_are_read() -> None:
    environ = {"CELERY_BROKER_URL": "redis://a", "CELERY_RESULT_BACKEND": "redis://b"}
    assert settings_from_env(environ) == {"broker_url": "redis://a", "result_backend": "redis://b"}
    both = environ | {"GREENQ_BROKER_URL": "redis://c"}
    for order in (both, dict(reversed(both.items()))):
        assert settings_from_env(order)["broker_url"] == "redis://c"


def test_other_names_of_celery_in_the_environment_are_noted() -> None:
    notes: list[str] = []
    environ = {"CELERY_TASK_ACKS_LATE": "1", "CELERYD_NODES": "2", "CELERY_APP": "proj"}
    assert settings_from_env(environ, notes) == {}
    assert notes == [
        "CELERY_TASK_ACKS_LATE in the environment is not read; set GREENQ_TASK_ACKS_LATE instead"
    ]
    with pytest.raises(ConfigError, match="CELERY_BROKER_WRITE_URL"):
        settings_from_env({"CELERY_BROKER_WRITE_URL": "redis://h"})
