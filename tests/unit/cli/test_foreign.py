"""What Celery's users type: it works, or one sentence says what to do instead."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from greenq.cli import build_parser, foreign, main


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["-A", "proj", "worker", "-l", "INFO"], ["worker", "-A", "proj", "-l", "INFO"]),
        (["-Aproj", "worker"], ["worker", "-Aproj"]),
        (["--app=proj", "-b", "redis://h", "status"], ["status", "--app=proj", "-b", "redis://h"]),
        (["-A", "proj", "-q", "worker"], ["worker", "-A", "proj", "-q"]),
        (["-q", "-b", "redis://h", "status"], ["status", "-b", "redis://h"]),
        (["-C", "worker"], ["worker", "--no-color"]),
        (["worker", "-A", "proj"], ["worker", "-A", "proj"]),
        (["--version"], ["--version"]),
        (["--help"], ["--help"]),
        (["-A", "proj"], ["-A", "proj"]),
        ([], []),
    ],
)
def test_options_before_the_command_belong_to_it(given: list[str], meant: list[str]) -> None:
    assert foreign.in_order(given) == meant


@pytest.mark.parametrize(
    "argv",
    [
        *([name] for name in foreign.COMMANDS),
        ["-A", "proj", "flower"],
        ["multi", "start", "4", "-A", "proj"],
        ["--config=conf", "worker"],
        ["--loader", "x", "worker"],
        ["worker", "-D"],
        ["beat", "-s", "file"],
        ["beat", "-S", "redbeat.RedBeatScheduler"],
        ["beat", "--max-interval=5"],
        ["worker", "--pool-start-method", "fork"],
        ["worker", "--pool-start-method=fork"],
        ["worker", "-s", "file"],
    ],
    ids=" ".join,
)
def test_what_only_celery_has_is_answered_in_one_sentence(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)

    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert len(told) > 30
    assert "did you mean" not in told


def celery_options(*command: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-m", "celery", *command, "--help"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", done.stdout.partition("\n\n")[2]))


@pytest.mark.slow
def test_every_option_of_celery_s_worker_is_known() -> None:
    """Those of its help, which begin a line; whatever it learns, somebody has to decide about."""
    (worker,) = (
        action.choices["worker"]  # type: ignore[index]
        for action in build_parser()._actions
        if action.dest == "command"
    )
    worker.parse_known_args([])
    known = {option for action in worker._actions for option in action.option_strings}
    assert celery_options("worker") - known <= {"--help"}


@pytest.mark.parametrize("name", ["gevent", "green"])
def test_green_pools_are_accepted(name: str) -> None:
    assert build_parser().parse_args(["worker", "-P", name, "-O", "fair"]).pool == name


@pytest.mark.parametrize("name", ["prefork", "eventlet", "solo", "threads", "nonsense"])
def test_other_pools_are_not(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["worker", "-P", name])
    assert "leave -P out" in capsys.readouterr().err


def test_no_hint_where_the_option_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["worker", "-c", "0"])
    assert "did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("redis://localhost:port", "cannot be parsed"),
        ("redis://localhost:99999", "cannot be parsed"),
        ("redis://a:6379,b:6379/0", "names several servers"),
        ("sentinel://a:26379", "not supported yet"),
    ],
)
def test_address_that_is_none_is_explained(
    url: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "-b", url]) == 1
    text = capsys.readouterr().err
    assert told in text
    assert "Traceback" not in text


@pytest.mark.parametrize("command", ["status", "ping", "list", "queues"])
def test_server_that_is_away_is_said_once(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([command, "-b", "redis://127.0.0.1:1"]) == 1
    told = capfd.readouterr().err
    assert told.count("cannot reach redis://127.0.0.1:1") == 1
    assert told.count("\n") == 1
    assert ".; " not in told
