"""Which embedded server an app has when nothing says where its server is, and who is told."""

from __future__ import annotations

import importlib
import io
import sys
from pathlib import Path

import pytest

from greenq import Greenq
from greenq.config.settings import Config
from greenq.transport import transport
from greenq.transport.embedded.server import EmbeddedServer
from greenq.transport.transport import Transport


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No server is started, and no data of the user's own is touched."""
    monkeypatch.setattr(EmbeddedServer, "acquire", lambda self: f"{self._folder}/valkey.sock")
    monkeypatch.delenv("GREENQ_DATA", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path / "greenq"


def project(folder: Path, name: str) -> Greenq:
    """Make the app of a project in a folder of its own."""
    folder.mkdir()
    (folder / f"{name}.py").write_text("from greenq import Greenq\napp = Greenq('proj')\n")
    sys.path.insert(0, str(folder))
    try:
        app: Greenq = importlib.import_module(name).app
    finally:
        sys.path.remove(str(folder))
        del sys.modules[name]
    return app


def test_two_projects_of_one_name_have_a_server_each(tmp_path: Path, home: Path) -> None:
    one, other = project(tmp_path / "a", "proj_one"), project(tmp_path / "b", "proj_one")
    again = Greenq("proj", set_as_current=False)

    addresses = [app.transport.broker_address for app in (one, other, again)]

    assert len(set(addresses)) == 3
    assert all(each.startswith(f"embedded://{home}/proj-") for each in addresses)
    assert Greenq("proj", set_as_current=False).transport.broker_address == addresses[2]


def test_class_of_ones_own_has_the_server_of_the_module_that_makes_it(tmp_path: Path) -> None:
    class Mine(Greenq):
        def __init__(self) -> None:
            super().__init__("proj", set_as_current=False)

    assert Mine()._folder == Greenq("x", set_as_current=False)._folder == Path(__file__).parent


def test_embedded_server_is_named_when_nothing_says_so_and_nobody_is_there(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    app = Greenq("proj", set_as_current=False)
    _ = app.transport, app.transport
    (line,) = caplog.messages
    assert line.startswith("broker_url is not set: an embedded server on this machine keeps")
    assert f", in {home}/proj-" in line
    assert "GREENQ_BROKER_URL" in line


@pytest.mark.parametrize("reason", ["said", "terminal", "folder"])
def test_who_knows_of_it_is_not_told(
    reason: str,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    config = Config.build({"broker_url": "embedded://"} if reason == "said" else {})
    if reason == "terminal":
        monkeypatch.setattr(transport, "_is_terminal", lambda: True)
    if reason == "folder":
        monkeypatch.setenv("GREENQ_DATA", str(home / "mine"))
    Transport(config, "proj", home).warn_of_default()
    assert caplog.messages == []


@pytest.mark.parametrize("stdin", [None, "closed"])
def test_process_without_a_standard_input_is_no_terminal(
    stdin: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdin", closed if stdin else None)
    assert not transport._is_terminal()
