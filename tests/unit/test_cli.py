"""The command line: quick help, clear refusals, and the app that -A names."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import greenq
from greenq.cli import build_parser, main
from greenq.cli.load import find_app
from greenq.errors import AppNotFound

ROOT = Path(__file__).parents[2]

COMMANDS = (
    *("worker", "status", "ping", "inspect", "control", "queues", "purge", "list", "call"),
    *("result", "dead", "report", "graph", "shell", "top", "demo", "events"),
)

HELP = """
import sys
from greenq.cli import main
try:
    main({argv})
except SystemExit as exc:
    assert not exc.code, exc.code
loaded = {{name.partition(".")[0] for name in sys.modules}}
print("LOADED", sorted(loaded & {{"gevent", "redis", "celery", "kombu", "ssl"}}))
"""


@pytest.mark.parametrize(
    "argv",
    [["--help"], ["--version"], [], *([command, "--help"] for command in COMMANDS)],
    ids=" ".join,
)
def test_help_loads_neither_gevent_nor_redis(argv: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELP.format(argv=argv)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])

    assert ended.value.code == 0
    assert capsys.readouterr().out == f"greenq {greenq.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["worker", "--autoscal", "5"], "did you mean --autoscale?"),
        (["worker", "--concurency", "5"], "did you mean --concurrency?"),
        (["wroker"], "did you mean worker?"),
        (["worker", "-c", "0"], "'0' is not a whole number of at least 1"),
        (["worker", "-c", "many"], "'many' is not a whole number of at least 1"),
        (["worker", "--autoscale", "10,500"], "MAX comes first"),
        (["worker", "--autoscale", "5,0"], "MIN is between 1 and MAX"),
        (["worker", "--autoscale", "1,2,3"], "is not MAX,MIN, such as 500,10"),
        (["worker", "--autoscale", "a,b"], "is not MAX,MIN, such as 500,10"),
        (["worker", "-l", "loud"], "'loud' is not a log level"),
        (["worker", "-Q", " , "], "no queue named"),
        (["worker", "extra"], "unrecognized arguments: extra"),
    ],
)
def test_wrong_option_is_answered_in_one_line_with_what_is_right(
    argv: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)

    told = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert named in told[0]
    assert told[-1].startswith("See: greenq")
    assert len(told) == 2


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["-Q", "mail, web,"], "queues", ("mail", "web")),
        (["--autoscale", "500,10"], "autoscale", (500, 10)),
        (["--autoscale", "500"], "autoscale", (500, 1)),
        (["-l", "info"], "loglevel", "INFO"),
        (["-c", "1000"], "concurrency", 1000),
    ],
)
def test_worker_options_are_read(argv: list[str], name: str, value: object) -> None:
    args = build_parser().parse_args(["worker", *argv])

    assert getattr(args, name) == value


def test_options_that_an_app_may_know_are_refused_after_it_was_loaded() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "greenq", "worker", "-A", "no_such_module", "--mine", "5"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 1
    assert "no module named 'no_such_module'" in done.stderr


APP = "from greenq import Greenq\n"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return a function that writes a module of a fresh name and returns the name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    numbers = itertools.count()

    def write(text: str, **submodules: str) -> str:
        name = f"cli_{tmp_path.name.replace('-', '_')}_{next(numbers)}"
        if not submodules:
            Path(tmp_path, f"{name}.py").write_text(text)
            return name
        Path(tmp_path, name).mkdir()
        for part, content in {"__init__": text, **submodules}.items():
            Path(tmp_path, name, f"{part}.py").write_text(content)
        return name

    return write


@pytest.mark.parametrize(
    ("text", "suffix", "main_name"),
    [
        pytest.param("app = Greenq('a')\nother = Greenq('b')", "", "a", id="app"),
        pytest.param("celery = Greenq('c')", "", "c", id="celery"),
        pytest.param("mine = Greenq('only')", "", "only", id="the only one"),
        pytest.param("app = Greenq('a')\nother = Greenq('b')", ":other", "b", id="named"),
    ],
)
def test_app_is_found(module: Callable[..., str], text: str, suffix: str, main_name: str) -> None:
    assert find_app(module(APP + text) + suffix).main == main_name


@pytest.mark.parametrize("submodule", ["greenq", "celery"])
def test_app_is_found_in_a_package_s_submodule(module: Callable[..., str], submodule: str) -> None:
    name = module("", **{submodule: f"{APP}app = Greenq('inside')"})

    assert find_app(name).main == "inside"


@pytest.mark.parametrize(
    ("text", "suffix", "told"),
    [
        pytest.param("", "", "has no Greenq app named app", id="none"),
        pytest.param(
            f"{APP}a = Greenq()\nb = Greenq()",
            "",
            "has several Greenq apps: name one, as in -A ",
            id="two",
        ),
        pytest.param(f"{APP}app = Greenq()", ":ap", "did you mean ", id="near"),
        pytest.param("from celery import Celery\napp = Celery()", "", "is a Celery app", id="its"),
        pytest.param("app = 1", ".py", "not of a file: -A ", id="file"),
        pytest.param("x = 1", ":x", "is int, not a Greenq app", id="something else"),
        pytest.param("x = 1", ":y", "has no such name", id="missing name"),
        pytest.param("import not_there_at_all", "", "needs 'not_there_at_all'", id="needs"),
        pytest.param("1 / 0", "", "ZeroDivisionError", id="broken"),
    ],
)
def test_app_that_is_not_there_is_explained(
    module: Callable[..., str], text: str, suffix: str, told: str
) -> None:
    with pytest.raises(AppNotFound) as refused:
        find_app(module(text) + suffix)

    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("path", "told"), [(None, "no app named"), ("no_such_module", "no module named")]
)
def test_module_that_is_not_there_is_explained(path: str | None, told: str) -> None:
    with pytest.raises(AppNotFound, match=told):
        find_app(path)
