"""Whose rights a worker has."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from greenq.cli import privileges
from greenq.cli.privileges import drop_rights, warn_of_root
from greenq.errors import ConfigError

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

SHOW = """
import os, sys
from greenq.cli.privileges import drop_rights
drop_rights(*(word or None for word in sys.argv[1:]))
print(os.getresuid(), os.getresgid(), sorted(os.getgroups()))
try:
    os.setuid(0)
    print("root again")
except PermissionError:
    pass
# As after a restart.
drop_rights(*(word or None for word in sys.argv[1:]))
"""


def after(user: str, group: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SHOW, user, group],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


@only_root
@pytest.mark.parametrize("user", ["nobody", "65534"])
def test_user_with_its_own_group_and_no_way_back(user: str) -> None:
    (line,) = after(user, "")
    assert line.startswith("(65534, 65534, 65534) (65534, 65534, 65534) [")
    assert "0" not in line.rpartition("[")[2].strip("]").split(", ")


@only_root
def test_group_takes_the_place_of_the_users_own() -> None:
    (line,) = after("nobody", "1")
    assert line == "(65534, 65534, 65534) (1, 1, 1) [1]"


@only_root
def test_group_alone_keeps_the_user_and_no_other_group() -> None:
    assert after("", "1")[0] == "(0, 0, 0) (1, 1, 1) [1]"


def test_nothing_asked_changes_nothing() -> None:
    before = os.getresuid(), os.getresgid(), os.getgroups()
    drop_rights(None, None)
    assert (os.getresuid(), os.getresgid(), os.getgroups()) == before


@pytest.mark.parametrize(
    ("user", "group", "why"),
    [
        ("no-such-user", None, "there is no such user"),
        ("4000000000", None, "there is no such user"),
        ("9" * 30, None, "there is no such user"),
        (None, "no-such-group", "there is no such group"),
    ],
)
def test_unknown_names_are_refused(user: str | None, group: str | None, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        drop_rights(user, group)


def test_only_root_may_become_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(ConfigError, match="only root can become another user"):
        drop_rights("root", None)


@pytest.mark.parametrize(
    ("uid", "force", "contained", "warns"),
    [(0, "", False, True), (0, "1", False, False), (0, "", True, False), (5, "", False, False)],
)
def test_root_is_warned_about_outside_of_containers(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    uid: int,
    force: str,
    contained: bool,
    warns: bool,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setenv("C_FORCE_ROOT", force)
    monkeypatch.setattr(privileges, "_CONTAINER_VARIABLES", ("TEST_CONTAINER",))
    monkeypatch.setattr(privileges, "_CONTAINER_FILES", ())
    monkeypatch.setattr(os, "getpid", lambda: 77)
    monkeypatch.setenv("TEST_CONTAINER", "docker" if contained else "")
    warn_of_root()
    assert ("runs as root" in caplog.text) == warns
