"""The command line's log: format, colour, task name and id, and whose handlers stay."""

from __future__ import annotations

import contextvars
import io
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from greenq.errors import ConfigError
from greenq.protocol.message import TaskMessage
from greenq.utils import log
from tests.strangers import NOBODY


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def root_logger(monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    """The root logger, which is afterwards as it was before."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


def in_task(name: str, task_id: str, logger: logging.Logger, message: str) -> None:
    """Log `message` as a task would, in a context of its own."""

    def run() -> None:
        log.task_log_context.set(TaskMessage(task=name, id=task_id))
        logger.warning(message)

    contextvars.copy_context().run(run)


def test_line_has_time_level_process_and_message() -> None:
    stream = io.StringIO()
    log.setup("info", stream=stream)
    logging.getLogger("x").info("hello %s", "you")
    logging.getLogger("x").debug("not this")
    line = r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}: INFO/MainProcess\] hello you\n"
    assert re.fullmatch(line, stream.getvalue())


def test_line_of_a_task_has_its_name_and_id() -> None:
    stream = io.StringIO()
    log.setup("INFO", stream=stream)
    in_task("proj.add", "id-1", log.get_task_logger("proj"), "adding")
    log.get_task_logger("proj").warning("outside")
    inside, outside = stream.getvalue().splitlines()
    assert inside.endswith("WARNING/MainProcess] proj.add[id-1]: adding")
    assert outside.endswith("WARNING/MainProcess] outside")


def test_own_line_about_a_task_is_not_marked_twice() -> None:
    stream = io.StringIO()
    log.setup("INFO", stream=stream)
    in_task(
        "proj.add",
        "id-1",
        logging.getLogger("greenq.execution.executor"),
        "Task proj.add[id-1] failed",
    )
    assert stream.getvalue().endswith("MainProcess] Task proj.add[id-1] failed\n")


def test_fields_are_there_for_a_users_own_format() -> None:
    record = logging.LogRecord("x", logging.INFO, "x.py", 1, "m", None, None)
    assert log.add_task(record)
    assert logging.Formatter("%(task_name)s %(task_id)s %(message)s").format(record) == (
        "None None m"
    )


@pytest.mark.parametrize(
    ("stream", "wanted", "no_color", "colored"),
    [
        (Terminal(), None, "", True),
        (Terminal(), None, "1", False),
        (Terminal(), False, "", False),
        (Terminal(), True, "1", True),
        (io.StringIO(), None, "", False),
        (io.StringIO(), True, "", True),
    ],
)
def test_colour_is_for_terminals_unless_said_otherwise(
    stream: io.StringIO,
    wanted: bool | None,
    no_color: str,
    colored: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    log.setup("INFO", color=wanted, stream=stream)
    logging.getLogger("x").error("bad")
    logging.getLogger("x").info("plain")
    first, second = stream.getvalue().splitlines()
    assert (first.startswith("\033[31m") and first.endswith("\033[0m")) is colored
    assert "\033" not in second


def test_logfile_is_appended_to_without_colour(tmp_path: Path) -> None:
    file = tmp_path / "worker.log"
    file.write_text("before\n")
    stream = Terminal()
    log.setup("INFO", logfile=file, stream=stream)
    logging.getLogger("x").error("naïve")
    before, line = file.read_text(encoding="utf-8").splitlines()
    assert before == "before"
    assert line.startswith("[")
    assert line.endswith("naïve")
    assert stream.getvalue() == ""


def test_setting_up_again_replaces_the_handler() -> None:
    first, second = io.StringIO(), io.StringIO()
    log.setup("INFO", stream=first)
    log.setup("INFO", stream=second)
    logging.getLogger("x").info("once")
    assert first.getvalue() == ""
    assert second.getvalue().count("once") == 1


def test_handlers_stay_when_the_root_logger_is_not_hijacked(root_logger: logging.Logger) -> None:
    mine = logging.StreamHandler(io.StringIO())
    root_logger.addHandler(mine)
    handlers = root_logger.handlers[:]
    log.setup("DEBUG", hijack_root=False)
    assert root_logger.handlers == handlers
    assert root_logger.level == logging.DEBUG


def test_unknown_level_and_unwritable_file_are_config_errors(
    tmp_path: Path, root_logger: logging.Logger
) -> None:
    handlers = root_logger.handlers[:]
    with pytest.raises(ConfigError, match="must be one of DEBUG, INFO"):
        log.setup("LOUD")
    with pytest.raises(ConfigError, match="cannot be written: No such file"):
        log.setup("INFO", logfile=tmp_path / "missing" / "x.log")
    assert root_logger.handlers == handlers


def test_log_whose_stream_is_closed_raises_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    log.setup("INFO", stream=stream)
    stream.close()
    # Where logging tells of its own errors.
    monkeypatch.setattr("sys.stderr", stream)
    logging.getLogger("x").warning("lost")


def test_log_file_that_was_renamed_is_opened_anew(tmp_path: Path) -> None:
    file = tmp_path / "w.log"
    log.setup("INFO", logfile=file)
    logging.getLogger("x").warning("one")
    file.rename(tmp_path / "w.log.1")
    logging.getLogger("x").warning("two")
    assert "two" in file.read_text()
    assert "two" not in (tmp_path / "w.log.1").read_text()


def test_log_file_whose_folder_is_gone_raises_nowhere(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    log.setup("INFO", logfile=folder / "w.log")
    folder.rename(tmp_path / "moved")
    logging.getLogger("x").warning("lost")
    (tmp_path / "moved").rename(folder)
    logging.getLogger("x").warning("found")
    assert "found" in (folder / "w.log").read_text()


FORGED = "[2026-01-01 00:00:00,000: CRITICAL/MainProcess] forged"


def test_lines_below_the_first_are_indented_and_nothing_acts_on_a_terminal() -> None:
    stream = io.StringIO()
    log.setup("INFO", stream=stream, color=True)
    try:
        raise ValueError(f"\x1b[2J\x9b\u202e\r\n{FORGED}")
    except ValueError:
        logging.getLogger("x").exception("it failed:\n%s", FORGED)
    in_task("t\n" + FORGED, "i\n" + FORGED, logging.getLogger("users.own"), "said")

    lines = stream.getvalue().replace("\033[31m", "").replace("\033[33m", "").splitlines()
    records = [line for line in lines if not line.startswith("    ")]
    assert len(records) == 2
    assert not any(line.startswith(FORGED) for line in lines)
    assert all(line.replace("\033[0m", "").isprintable() for line in lines)
    assert r"\x1b[2J\x9b\u202e\r" in stream.getvalue()


def test_a_line_that_a_handler_could_not_write_is_harmless_too(
    capfd: pytest.CaptureFixture[str],
) -> None:
    record = logging.LogRecord("x", logging.INFO, "x.py", 1, f"\x1b[2J\n{FORGED}", None, None)

    log._write_plainly(record, OSError())

    assert not any(line.startswith(FORGED) for line in capfd.readouterr().err.splitlines())


def test_log_file_that_is_a_link_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, link = tmp_path / "victim.txt", tmp_path / "w.log"
    link.symlink_to(victim)
    if os.geteuid() == 0:
        os.lchown(link, NOBODY, -1)
    else:
        me = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    with pytest.raises(ConfigError, match="link that belongs to user"):
        log.setup("INFO", logfile=link)
    assert not victim.exists()


def test_log_file_may_be_a_link_of_one_s_own(tmp_path: Path) -> None:
    file, link = tmp_path / "real.log", tmp_path / "w.log"
    link.symlink_to(file)
    log.setup("INFO", logfile=link)
    logging.getLogger("x").warning("one")
    assert "one" in file.read_text()


# --- what lines look like -------------------------------------------------------------------------


class Task:
    """A running task, as log lines see it."""

    task = "shop.pay"
    id = "id-1"
    root_id = "root-1"


@pytest.fixture
def as_task() -> Iterator[None]:
    token = log.task_log_context.set(Task())
    yield
    log.task_log_context.reset(token)


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    yield io.StringIO()
    logging.getLogger().handlers.clear()


def test_formats_are_those_given(out: io.StringIO, as_task: None) -> None:
    style = log.Style(
        format="%(levelname)s|%(message)s|%(asctime)s",
        task_format="%(task_name)s %(task_id)s %(root_id)s %(asctime)s|%(message)s",
        date_format="outside",
        task_date_format="inside",
    )
    log.setup("INFO", stream=out, style=style)
    logging.getLogger("x").info("one")
    logging.getLogger("greenq.x").info("two")
    assert out.getvalue().splitlines() == [
        "shop.pay id-1 root-1 inside|one",
        "INFO|two|outside",
    ]


def test_json_lines_have_the_task_its_root_and_what_was_given_as_extra(
    out: io.StringIO, as_task: None
) -> None:
    log.setup("INFO", stream=out, style=log.Style(json=True))
    try:
        raise ValueError("a\nb")
    except ValueError:
        logging.getLogger("x").exception("line one\nline two %s", "é", extra={"order": 7})
    (line,) = out.getvalue().splitlines()
    found = json.loads(line)
    assert found["message"] == "line one\nline two é"
    assert (found["task_name"], found["task_id"], found["root_id"]) == (
        "shop.pay", "id-1", "root-1",
    )  # fmt: skip
    assert (found["level"], found["logger"], found["order"]) == ("ERROR", "x", 7)
    assert found["exception"].startswith("Traceback")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found["time"])
    assert found["pid"] == os.getpid()
    assert "args" not in found


def test_json_line_of_the_worker_names_the_task_that_it_is_about(out: io.StringIO) -> None:
    log.setup("INFO", stream=out, style=log.Style(json=True))

    class Request:
        message = Task()

        def __str__(self) -> str:
            return "shop.pay[id-1]"

    logging.getLogger("greenq.x").info("Task %s received", Request())
    logging.getLogger("greenq.x").info("nothing about %s", "a task")
    first, second = map(json.loads, out.getvalue().splitlines())
    assert first["message"] == "Task shop.pay[id-1] received"
    assert first["root_id"] == "root-1"
    assert "task_id" not in second


# --- standard output ------------------------------------------------------------------------------


def test_lines_that_a_task_prints_are_logged_with_its_name(
    out: io.StringIO, as_task: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    log.setup("INFO", stream=out)
    with log.redirect("WARNING"):
        print("one", "two", 3)  # noqa: T201
        print("a\nb\n\nc")  # noqa: T201
        sys.stderr.write("error")
        sys.stderr.flush()
    lines = [line.partition(": ")[2] for line in out.getvalue().splitlines()]
    assert lines == [
        "WARNING/MainProcess] shop.pay[id-1]: one two 3",
        "WARNING/MainProcess] shop.pay[id-1]: a",
        "WARNING/MainProcess] shop.pay[id-1]: b",
        "WARNING/MainProcess] shop.pay[id-1]: c",
        "WARNING/MainProcess] shop.pay[id-1]: error",
    ]


def test_line_without_an_end_belongs_to_the_task_that_wrote_it(
    out: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    log.setup("INFO", stream=out)
    with log.redirect("INFO"):
        token = log.task_log_context.set(Task())
        sys.stdout.write("half")
        log.task_log_context.reset(token)
        sys.stdout.write("outside\n")
        sys.stdout.write("last")
    lines = [line.partition("] ")[2] for line in out.getvalue().splitlines()]
    assert lines == ["shop.pay[id-1]: half", "outside", "last"]


def test_handler_that_prints_or_fails_does_not_recurse(
    monkeypatch: pytest.MonkeyPatch, out: io.StringIO
) -> None:
    original = io.StringIO()
    monkeypatch.setattr(sys, "stdout", original)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    log.setup("INFO", stream=out)

    class Printing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            print("handled", record.getMessage())  # noqa: T201
            self.handleError(record)

    logging.getLogger().addHandler(Printing())
    with log.redirect("INFO"):
        print("text")  # noqa: T201
    assert original.getvalue().startswith("handled text\n")
    assert original.getvalue().count("handled text") == 1


def test_redirected_stream_still_serves_child_processes_and_bytes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with open(tmp_path / "out", "w", encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stdout", file)
        with log.redirect("INFO"):
            assert sys.stdout.fileno() == file.fileno()
            assert not sys.stdout.isatty()
            assert sys.stdout.encoding == "utf-8"
            sys.stdout.buffer.write(b"bytes")
        assert sys.stdout is file
    assert (tmp_path / "out").read_bytes() == b"bytes"
