"""Backoff: pauses double up to a limit, are shortened at random, and begin again after a reset."""

from __future__ import annotations

import pytest

from greenq.utils.backoff import Backoff


def within(pauses: list[float], limits: list[float]) -> bool:
    return all(limit / 2 <= pause <= limit for pause, limit in zip(pauses, limits, strict=True))


def test_pauses_double_up_to_the_limit() -> None:
    for _ in range(100):
        backoff = Backoff(0.1, 1.0)
        pauses = [backoff.next_s() for _ in range(6)]
        assert within(pauses, [0.1, 0.2, 0.4, 0.8, 1.0, 1.0])


def test_pauses_differ_between_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len({Backoff(1.0, 1.0).next_s() for _ in range(20)}) > 1
    monkeypatch.setattr("greenq.utils.backoff.random.uniform", lambda _low, high: high)
    assert Backoff(1.0, 1.0).next_s() == 1.0


def test_reset_begins_with_the_first_pause() -> None:
    backoff = Backoff(0.1, 10.0)
    for _ in range(5):
        backoff.next_s()
    backoff.reset()
    assert within([backoff.next_s()], [0.1])
