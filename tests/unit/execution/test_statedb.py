"""The state file: what it holds, that it is whole after a crash, and what it refuses."""

from __future__ import annotations

import dbm.dumb
import json
import os
import shelve
from collections.abc import Callable
from pathlib import Path

import pytest

from greenq.errors import ConfigError
from greenq.execution import statedb
from greenq.execution.state import WorkerState
from greenq.execution.statedb import Saved, StateDB, load, save
from greenq.timer import Timer
from tests.unit.rig import wait_for

SAVED = Saved(7, ((("a",), 1000.0), (("tenant", "x"), 1001.5)))


def test_file_holds_what_was_saved_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "w.state"
    save(file, SAVED)
    assert load(file) == SAVED
    assert file.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["w.state"]


@pytest.mark.parametrize("content", [None, b""])
def test_missing_or_empty_file_holds_nothing(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "w.state").write_bytes(content)
    assert load(tmp_path / "w.state") == Saved()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_crash_while_writing_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    class Crash(BaseException):
        pass

    def crash(*_args: object) -> None:
        raise Crash

    file = tmp_path / "w.state"
    save(file, SAVED)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, crash)
        with pytest.raises(Crash):
            save(file, Saved(8))
    assert load(file) == SAVED
    # What the crash has left is no obstacle.
    save(file, Saved(9))
    assert load(file) == Saved(9)


def test_file_reaches_the_disk_before_it_takes_the_place_of_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def keep(name: str, call: Callable[..., None]) -> Callable[..., None]:
        def kept(*args: object) -> None:
            calls.append(name)
            call(*args)

        return kept

    monkeypatch.setattr(os, "fsync", keep("fsync", fsync))
    monkeypatch.setattr(os, "replace", keep("replace", replace))
    save(tmp_path / "w.state", SAVED)
    # The file, its name, and the folder that has the name.
    assert calls == ["fsync", "replace", "fsync"]


def make_shelve(file: Path) -> None:
    with shelve.open(str(file)) as store:
        store["revoked"] = {"a": 1.0}


def test_shelve_of_celery_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "celery.state"
    # In one file or several, as the dbm of this Python does it.
    make_shelve(file)
    before = {each: each.read_bytes() for each in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match="a shelve of pickles"):
        load(file)
    assert {each: each.read_bytes() for each in tmp_path.iterdir()} == before


def test_shelve_whose_files_have_endings_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "celery.state"
    with dbm.dumb.open(str(file)) as store:
        store["revoked"] = b"x"
    file.write_bytes(b"something")
    with pytest.raises(ConfigError, match="a shelve of pickles"):
        load(file)


GOOD = {"format": "greenq.state", "version": 1, "clock": 1, "revoked": []}


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04]",
        b"[1]",
        b"{}",
        b"not JSON",
        json.dumps(GOOD | {"version": 2}).encode(),
        json.dumps(GOOD | {"clock": -1}).encode(),
        json.dumps(GOOD | {"clock": "1"}).encode(),
        json.dumps(GOOD | {"revoked": [["a"]]}).encode(),
        json.dumps(GOOD | {"revoked": [["a" * 100_000, 1]]}).encode(),
        json.dumps(GOOD | {"revoked": [[1, 1]]}).encode(),
        json.dumps(GOOD | {"revoked": [["a", "b", "c", 1]]}).encode(),
        b"[" * 100_000,
    ],
    ids=lambda content: content[:60].decode(errors="replace"),
)
def test_other_content_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.state").write_bytes(content)
    with pytest.raises(ConfigError, match="was not written by greenq, or is damaged"):
        load(tmp_path / "w.state")


def test_file_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "w.state", SAVED)
    monkeypatch.setattr(statedb, "_MOST_BYTES", 20)
    with pytest.raises(ConfigError):
        load(tmp_path / "w.state")


# --- the step ---


class Rig:
    """A step with a state, on a clock that a test moves."""

    def __init__(self, file: Path) -> None:
        self.now_s = 10_000.0
        self.state = WorkerState()
        self.timer = Timer(lambda: self.now_s)
        self.step = StateDB(str(file), self.state, self.timer, now_s=lambda: self.now_s)

    def run(self, for_s: float) -> None:
        wait_for(lambda: not self.step._is_writing)
        self.now_s += for_s
        self.timer.run_due()


def test_what_was_revoked_and_the_clock_survive(tmp_path: Path) -> None:
    file = tmp_path / "w.state"
    first = Rig(file)
    first.step.start()
    first.state.revoked.add("a")
    first.state.revoked.add_stamps({"tenant": "x"})
    first.state.clock.adjust(41)
    first.step.stop()

    second = Rig(file)
    assert "a" in second.state.revoked
    assert second.state.revoked.stamps == {"tenant": {"x"}}
    assert second.state.revoked.any
    assert second.state.clock.value > 41


def test_change_is_written_soon_and_nothing_without_a_change(tmp_path: Path) -> None:
    file = tmp_path / "w.state"
    rig = Rig(file)
    rig.step.start()
    rig.state.revoked.add("a")
    rig.run(5.0)
    wait_for(lambda: [texts for texts, _at_s in load(file).revoked] == [("a",)])
    before = file.stat().st_ino
    rig.run(5.0)
    rig.state.clock.forward()
    rig.run(5.0)
    assert file.stat().st_ino == before
    # The clock alone: once a minute.
    rig.run(60.0)
    wait_for(lambda: load(file).clock == rig.state.clock.value)
    rig.step.stop()


def test_age_counts_from_when_it_was_revoked(tmp_path: Path) -> None:
    file = tmp_path / "w.state"
    save(file, Saved(1, ((("old",), 10_000.0 - 10_000), (("new",), 9_990.0))))
    # Three hours without a setting.
    assert Rig(file).state.revoked.ids() == ["old", "new"]
    save(file, Saved(1, ((("old",), 10_000.0 - 10_801), (("new",), 9_990.0))))
    assert Rig(file).state.revoked.ids() == ["new"]


def test_file_that_cannot_be_written_keeps_the_worker_from_starting(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "missing" / "w.state")
    with pytest.raises(ConfigError, match="cannot be written: No such file"):
        rig.step.start()


def test_failure_to_write_later_is_said_once_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "states"
    folder.mkdir()
    rig = Rig(folder / "w.state")
    rig.step.start()
    folder.rename(tmp_path / "away")
    rig.state.revoked.add("a")
    for _ in range(3):
        rig.run(5.0)
        wait_for(lambda: not rig.step._is_writing)
    assert [each.levelname for each in caplog.records] == ["WARNING"]
    assert "a restart may forget revoked tasks" in caplog.text
    (tmp_path / "away").rename(folder)
    rig.run(5.0)
    wait_for(lambda: load(folder / "w.state").revoked)
    rig.step.stop()
