"""`greenq call`, `result`, `report` and `shell`: options and texts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from greenq.cli import build_parser
from greenq.cli.report import changed, versions
from greenq.cli.result_command import lines
from greenq.cli.shell import namespace
from greenq.config.settings import Config


@pytest.mark.parametrize(
    ("typed", "name", "value"),
    [
        (["--args", "[1, [2]]"], "task_args", [1, [2]]),
        (["-k", '{"x": 1}'], "task_kwargs", {"x": 1}),
        (["--priority", "0"], "priority", 0),
        (["--countdown", "1.5"], "countdown", 1.5),
        (["--eta", "2031-01-02T03:04"], "eta", datetime(2031, 1, 2, 3, 4, tzinfo=UTC)),
        (
            ["--eta", "2031-01-02T03:04+02:00"],
            "eta",
            datetime(2031, 1, 2, 3, 4, tzinfo=timezone(timedelta(hours=2))),
        ),
        (["--expires", "60"], "expires", 60.0),
        (["--expires", "2031-01-02"], "expires", datetime(2031, 1, 2, tzinfo=UTC)),
        ([], "expires", None),
        ([], "task_args", []),
    ],
)
def test_options_of_a_call_are_read(typed: list[str], name: str, value: object) -> None:
    assert getattr(build_parser().parse_args(["call", "t", *typed]), name) == value


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["--args", "{}"], "'{}' is not a JSON list, such as '[2, 2]'"),
        (["--args", "[1"], "'[1' is not JSON: "),
        (["--kwargs", "[]"], "'[]' is not a JSON object"),
        (["--priority", "10"], "'10' is not a priority"),
        (["--priority", "-1"], "priority"),
        (["--countdown", "soon"], "'soon' is not a number of seconds"),
        (["--countdown", "nan"], "'nan' is not a number of seconds"),
        (["--eta", "tomorrow"], "'tomorrow' is not a time"),
        (["--expires", "tomorrow"], "'tomorrow' is not a time"),
        (["--expires", "-1"], "expires"),
        (["--eta", "2031-01-02", "--countdown", "1"], "not allowed with argument"),
    ],
)
def test_wrong_options_of_a_call_are_explained(
    typed: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(["call", "t", *typed])

    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_result_is_shown_with_what_was_asked_for() -> None:
    found = {"id": "i", "state": "FAILURE", "result": ValueError("x"), "date_done": None}

    assert list(lines(found)) == [
        "id         i",
        "state      FAILURE",
        "result     ValueError('x')",
        "date done  -",
    ]
    assert list(lines(found | {"traceback": None}))[-1] == "date done  -"
    assert list(lines(found | {"traceback": "one\ntwo\033"}))[-3:] == ["", "  one", "  two\\x1b"]


def test_result_that_is_a_structure_keeps_its_shape() -> None:
    found = {"result": {"a": 1, "b": [2]}}

    assert list(lines(found)) == ["result     a: 1", "           b:", "             - 2"]


def test_report_covers_passwords_and_leaves_defaults_out() -> None:
    config = Config.build({"broker_url": "redis://me:secret@h/0", "task_acks_late": False})

    assert changed(config) == {
        "broker_url": "redis://me:********@h/0",
        "task_acks_late": False,
    }


def test_report_names_versions_of_what_is_there_and_what_is_not() -> None:
    found = versions()

    assert found["greenq"]
    assert found["redis"][0].isdecimal()


def test_shell_has_tasks_by_their_short_names_but_its_own_names_first() -> None:
    class App:
        control = "control"
        AsyncResult = "AsyncResult"
        tasks = {"mail.send": 1, "web.send": 2, "x.app": 3, "odd.not-a-name": 4}  # noqa: RUF012

    app = App()
    names = namespace(app)  # type: ignore[arg-type]

    assert names["send"] == 1
    assert names["app"] is app
    assert names["tasks"]["web.send"] == 2
    assert "not-a-name" not in names
