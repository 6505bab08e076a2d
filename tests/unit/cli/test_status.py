"""`greenq status` and `greenq ping`: a line for each worker."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from greenq.cli import ping
from greenq.cli.common import EX_TEMPFAIL, EX_UNAVAILABLE, confirmed, report_missing
from greenq.cli.status import row, total

WELL = {
    "ok": "ok",
    "active": 12,
    "size": 1000,
    "waiting": 0,
    "processed": 1234567,
    "uptime": 7300,
    "paused": [],
    "draining": False,
    "blocked": None,
}
BLOCKED = {"at": 1.0, "for_s": 4.21, "by": "mail.send[id-1]", "where": "mail.py:7"}


def test_worker_that_is_well_has_its_numbers() -> None:
    assert row("w@h", WELL) == ("w@h", "ok", "12/1,000", "1,234,567", "2h", "")


SAID = "blocked 4.2 s by mail.send[id-1] at mail.py:7"


@pytest.mark.parametrize(
    ("reply", "state", "details"),
    [
        ({"ok": "blocked", "blocked": BLOCKED}, "blocked", SAID),
        ({"ok": "blocked", "blocked": None}, "blocked", "blocked"),
        ({"draining": True}, "draining", ""),
        ({"paused": ["a", "b"]}, "ok", "paused: a b"),
        ({"blocked": BLOCKED, "draining": True, "paused": ["a"]},
         "blocked, draining", f"{SAID}, paused: a"),
    ],
)  # fmt: skip
def test_what_ails_a_worker_is_said(reply: dict[str, Any], state: str, details: str) -> None:
    shown = row("w@h", WELL | reply)

    assert (shown[1], shown[-1]) == (state, details)


def test_celery_worker_that_does_not_know_the_command_is_well() -> None:
    assert row("c@h", {"error": "KeyError('status')"}) == ("c@h", "ok", "-", "-", "-", "")


@pytest.mark.parametrize("reply", [None, "odd", [], {"error": "RuntimeError('x')"}, {"ok": 5}])
def test_odd_reply_is_shown_too(reply: Any) -> None:
    assert row("w\n@h", reply)[0] == "w\\n@h"


def test_other_error_is_told() -> None:
    shown = row("w@h", {"error": "RuntimeError('x')"})

    assert (shown[1], shown[-1]) == ("error", "RuntimeError('x')")


def test_workers_are_counted() -> None:
    assert total({"a": 1}) == "1 node online"
    assert total({"a": 1, "b": 1}) == "2 nodes online"


@pytest.mark.parametrize(
    ("reply", "line"),
    [
        ({"ok": "pong"}, "w@h: pong  1.2 ms"),
        ({"error": "no"}, "w@h: error: no  1.2 ms"),
        (
            {"ok": "pong", "blocked": BLOCKED},
            "w@h: pong, blocked 4.2 s by mail.send[id-1] at mail.py:7  1.2 ms",
        ),
    ],
)
def test_ping_tells_the_reply_and_its_time(reply: dict[str, Any], line: str) -> None:
    assert ping.line("w@h", reply, 1.23) == line


@pytest.mark.parametrize(
    ("destination", "replies", "code", "told"),
    [
        ((), {"a": 1}, 0, ""),
        (("a",), {"a": 1}, 0, ""),
        (("a", "b"), {"a": 1}, EX_TEMPFAIL, "b: why\n"),
        ((), {"a": 1}, EX_TEMPFAIL, "b: why\n"),
        ((), {}, EX_TEMPFAIL, "b: why\n"),
        ((), {}, EX_UNAVAILABLE, "greenq ping: no node has replied within 1 s\n"),
        (
            ("a", "b"),
            {},
            EX_UNAVAILABLE,
            "b: why\ngreenq ping: none of a, b has replied within 1 s\n",
        ),
    ],
)
def test_those_who_do_not_reply_are_named(
    destination: tuple[str, ...],
    replies: dict[str, Any],
    code: int,
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = argparse.Namespace(command="ping", destination=destination, timeout=1.0)

    absent = {"b": "why"} if "b: why" in told else {}
    assert report_missing(args, replies, absent) == code
    assert capsys.readouterr().err == told


@pytest.mark.parametrize(
    ("typed", "meant"), [("y\n", True), (" YES \n", True), ("n\n", False), ("", False)]
)
def test_only_yes_is_yes(
    typed: str, meant: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Keyboard:
        def readline(self) -> str:
            return typed

    monkeypatch.setattr("sys.stdin", Keyboard())

    assert confirmed("really?") is meant
    assert capsys.readouterr() == ("", "really? [y/N] ")
