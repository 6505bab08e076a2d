"""Which files are watched, and what a change of one leads to."""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from greenq.errors import ConfigError
from greenq.upkeep import autoreload
from greenq.upkeep.autoreload import Autoreloader, Sources, app_folders, syntax_error
from tests.support import wait_until


def test_missing_package_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    with pytest.raises(ConfigError, match=r"pip install 'greenq\[reload\]'"):
        Autoreloader(print, spawn_soon=print)


def test_folders_are_those_of_the_app_and_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, shop, installed = (tmp_path / name for name in ("work", "shop", "site-packages/x"))
    for folder in (work, shop / "orders", installed):
        folder.mkdir(parents=True)
    for name, file in {
        "shop": shop / "__init__.py",
        "shop.orders": shop / "orders" / "__init__.py",
        "x": installed / "__init__.py",
    }.items():
        module = types.ModuleType(name)
        module.__file__ = str(file)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.chdir(work)
    found = app_folders()
    assert {str(work), str(shop)} <= set(found)
    assert str(shop / "orders") not in found
    assert not [each for each in found if "site-packages" in each]
    # Neither Python nor greenq are the app's.
    assert str(Path(autoreload.__file__).parent) not in found
    assert str(Path(threading.__file__).parent) not in found


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("x = 1\n", None),
        ("x = 1\ny = (\n", "line 2: '(' was never closed"),
        ("def f(:\n    pass\n", "line 1: invalid syntax"),
        ("x = 'é'\n".encode("latin-1"), "utf-8"),
        (b"x = 1\0\n", "null bytes"),
    ],
)
def test_syntax_error_is_said_with_file_and_line(
    tmp_path: Path, source: str | bytes, wrong: str | None
) -> None:
    file = tmp_path / "tasks.py"
    file.write_bytes(source.encode() if isinstance(source, str) else source)
    found = syntax_error(str(file))
    if wrong is None:
        assert found is None
    else:
        assert found is not None
        assert str(file) in found
        assert wrong in found
    assert syntax_error(str(tmp_path / "gone.py")) is None


@contextmanager
def waiting(folder: Path) -> Iterator[list[str | None]]:
    """Wait for changes in a thread; the list gets what the wait returns."""
    sources = Sources([str(folder)])
    returned: list[str | None] = []
    thread = threading.Thread(target=lambda: returned.append(sources.wait()))
    thread.start()
    try:
        yield returned
    finally:
        sources.end()
        thread.join()


def touch_until(file: Path, text: str, done: object) -> None:
    """Write the file again and again: watching may begin after the first time."""
    draft = file.with_suffix(".draft")

    def is_done() -> bool:
        # A file that has just been truncated would be whole.
        draft.write_text(text)
        draft.replace(file)
        return bool(done() if callable(done) else done)

    wait_until(is_done, 20)


def test_change_of_a_source_file_ends_the_wait_and_others_do_not(tmp_path: Path) -> None:
    with waiting(tmp_path) as returned:
        for name in ("notes.txt", ".tasks.py.swp", "tasks.pyc"):
            (tmp_path / name).write_text("x")
        (tmp_path / "site-packages").mkdir()
        (tmp_path / "site-packages" / "other.py").write_text("x = 1\n")
        touch_until(tmp_path / "tasks.py", "x = 1\n", lambda: returned)
    assert returned == [str(tmp_path / "tasks.py")]


def test_broken_file_ends_no_wait_until_it_is_whole_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with waiting(tmp_path) as returned:
        touch_until(tmp_path / "a.py", "x = (\n", lambda: "a.py, line 1" in caplog.text)
        # Another file is whole, but the first one would still break the start.
        (tmp_path / "b.py").write_text("y = 1\n")
        touch_until(tmp_path / "c.py", "z = )\n", lambda: "c.py, line 1" in caplog.text)
        assert returned == []
        (tmp_path / "c.py").unlink()
        touch_until(tmp_path / "a.py", "x = 1\n", lambda: returned)
    assert "the old code keeps running" in caplog.text


def test_end_of_the_wait_is_no_change(tmp_path: Path) -> None:
    with waiting(tmp_path) as returned:
        pass
    assert returned == [None]
