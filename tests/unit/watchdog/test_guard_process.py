"""The worker's side of the guard, as far as it needs no server."""

from __future__ import annotations

import sys

import pytest

from greenq.watchdog.guard_process import GuardProcess


def test_a_worker_that_cannot_have_a_guard_is_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = 0.0
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    guard = GuardProcess(
        "redis://:secret@host/0", key="k", member="m", lease_s=3.0, silence_limit_s=60.0,
        clock=lambda: now_s,
    )  # fmt: skip
    guard.start()
    for _ in range(5):
        now_s += 10.0
        guard.beat()
    guard.stop()
    assert guard.pid is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "runs without a guard" in caplog.text
    assert "secret" not in caplog.text
