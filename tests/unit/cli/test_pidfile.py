"""The file with the process id: written, locked, deleted, and never somebody else's."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

from greenq.cli.pidfile import pid_file
from greenq.errors import ConfigError, GreenqError
from tests.strangers import as_nobody, needs_root


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
        pytest.raises(GreenqError, match=f"process {os.getpid()} has locked it and is alive"),
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


def test_a_link_is_not_followed_and_its_target_stays(tmp_path: Path) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("important")
    link = tmp_path / "worker.pid"
    link.symlink_to(victim)

    with pytest.raises(ConfigError, match="it is a link"), pid_file(str(link)):
        pass

    assert victim.read_text() == "important"
    assert link.is_symlink()


def test_a_second_name_of_another_file_is_refused(tmp_path: Path) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("important")
    os.link(victim, tmp_path / "worker.pid")

    with pytest.raises(ConfigError, match="hard link"), pid_file(str(tmp_path / "worker.pid")):
        pass

    assert victim.read_text() == "important"


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "worker.pid")

    with pytest.raises(ConfigError, match="not a regular file"), pid_file(f"{tmp_path}/worker.pid"):
        pass


def test_a_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "worker.pid"
    file.write_text("1\n")
    me = os.geteuid()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: me + 1)
        with pytest.raises(ConfigError, match=f"belongs to user {me}"), pid_file(str(file)):
            pass

    assert file.read_text() == "1\n"


@pytest.mark.parametrize("left_behind", [None, 0o644])
def test_nobody_else_can_open_the_file_to_lock_it(tmp_path: Path, left_behind: int | None) -> None:
    file = tmp_path / "worker.pid"
    if left_behind is not None:
        file.write_text("123\n")
        file.chmod(left_behind)

    with pid_file(str(file)):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


@needs_root
def test_another_user_cannot_keep_the_next_worker_from_starting() -> None:
    # Not in tmp_path, which is root's alone.
    with tempfile.TemporaryDirectory(prefix="greenq-test-") as folder:
        os.chmod(folder, 0o755)
        file = Path(folder, "worker.pid")

        def lock() -> None:
            with suppress(PermissionError):
                fcntl.flock(os.open(file, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)

        # Given a worker that was killed: its file stays, and no lock on it.
        with pid_file(str(file)):
            mode = stat.S_IMODE(file.stat().st_mode)
        file.write_text("123\n")
        file.chmod(mode)

        with as_nobody(lock), pid_file(str(file)):
            assert file.read_text() == f"{os.getpid()}\n"
