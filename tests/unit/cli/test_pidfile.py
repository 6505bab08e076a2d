"""The file with the process id: written, locked, deleted, and never somebody else's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from greenq.cli.pidfile import pid_file
from greenq.errors import ConfigError, GreenqError


def test_file_is_there_for_the_time_of_the_block(tmp_path: Path) -> None:
    file = tmp_path / "worker.pid"
    file.write_text("123456 left behind\n")

    with pid_file(str(file)):
        assert file.read_text() == f"{os.getpid()}\n"

    assert not file.exists()


def test_second_owner_is_refused_with_the_first_one_s_id(tmp_path: Path) -> None:
    file = str(tmp_path / "worker.pid")

    with (
        pid_file(file),
        pytest.raises(GreenqError, match=f"process {os.getpid()} has it and is alive"),
        pid_file(file),
    ):
        pass

    with pid_file(file):
        assert Path(file).exists()


def test_file_that_another_made_meanwhile_stays(tmp_path: Path) -> None:
    file = tmp_path / "worker.pid"

    with pid_file(str(file)):
        file.unlink()
        file.write_text("another's\n")

    assert file.read_text() == "another's\n"


def test_relative_name_is_of_the_folder_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    with pid_file("worker.pid"):
        monkeypatch.chdir("/")

    assert list(tmp_path.iterdir()) == []


def test_file_that_cannot_be_written_is_a_wrong_setting(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="cannot be written: No such file or directory"),
        pid_file(str(tmp_path / "missing" / "worker.pid")),
    ):
        pass


def test_no_name_means_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    with pid_file(None):
        assert list(tmp_path.iterdir()) == []
