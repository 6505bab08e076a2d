"""Where settings are read from: mappings, modules, objects and the environment."""

from __future__ import annotations

import dataclasses
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from greenq.config import Config, TransportOptions
from greenq.errors import ConfigError
from greenq.sources import settings_from_env, settings_from_object

SECRET = "s3cr3t"


# --- objects -------------------------------------------------------------------------------------


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
