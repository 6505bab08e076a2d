"""``greenq config``: values, sources, meanings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from greenq.cli import main

APP = """
from greenq import Greenq

app = Greenq("proj", broker="redis://:hidden-word@nowhere/0")
app.config_from_object("proj_settings")
app.conf.task_acks_late = False
"""


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of an app in the working folder."""
    name = tmp_path.name.replace("-", "_")
    settings = f"settings_{name}"
    (tmp_path / f"app_{name}.py").write_text(APP.replace("proj_settings", settings))
    (tmp_path / f"{settings}.py").write_text("worker_concurrency = 7\nresult_expires = 60\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("GREENQ_WORKER_LEASE", "9.5")
    return f"app_{name}"


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, dict[str, object]]:
    assert main(["config", "--json", *words]) == 0
    found: dict[str, dict[str, object]] = json.loads(capsys.readouterr().out)
    return found


def test_each_setting_is_shown_with_value_and_source(
    app: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = shown(capsys, "-A", app)
    module = app.replace("app_", "settings_")
    sources = {
        name: (rows[name]["value"], rows[name]["source"])
        for name in ("worker_concurrency", "worker_lease", "task_acks_late", "timezone")
    }
    assert sources == {
        "worker_concurrency": (7, module),
        "worker_lease": (9.5, "environment"),
        "task_acks_late": (False, "code"),
        "timezone": ("UTC", "default"),
    }
    assert rows["broker_transport_options"]["value"]["visibility_timeout"] == 3600.0  # type: ignore[index]
    assert all(row["meaning"] for row in rows.values())


def test_command_line_comes_first_and_secrets_are_masked(
    app: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shown(capsys, "-A", app, "broker_url")["broker_url"]["source"] == "code"
    rows = shown(capsys, "-A", app, "-b", "redis://:other-word@nowhere/0", "broker_url")
    assert rows["broker_url"]["source"] == "command line"
    assert main(["config", "-A", app]) == 0
    assert "-word" not in json.dumps(rows) + capsys.readouterr().out


def test_changed_ones_only(app: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "-A", app, "--changed").keys() == {
        "broker_url", "result_expires", "task_acks_late", "worker_concurrency", "worker_lease",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "found", "not_found"),
    [
        ("worker_lease", "worker_lease", "worker_concurrency"),
        ("recycle", "worker_recycle_by", "worker_lease"),
        ("worker_*by", "worker_recycle_by", "worker_recycle_at_once"),
        ("WORKER_LEASE", "worker_lease", "timezone"),
    ],
)
def test_names_parts_and_patterns_choose(
    app: str, capsys: pytest.CaptureFixture[str], pattern: str, found: str, not_found: str
) -> None:
    rows = shown(capsys, pattern)
    assert found in rows
    assert not_found not in rows


def test_text_shows_the_unit_and_the_meaning(app: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "-A", app, "worker_lease"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "worker_lease = 9.5 s  (environment)"
    assert lines[1].startswith("    greenq's own. A worker that has not renewed its lease")


def test_unknown_name_is_refused_with_the_nearest(
    app: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "worker_leese"]) == 1
    assert "did you mean worker_lease?" in capsys.readouterr().err
