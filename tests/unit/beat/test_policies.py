"""What an entry does next: missed due times, overlaps, jitter."""

from __future__ import annotations

from datetime import UTC
from typing import Any

import pytest

from greenq.beat.entries import ScheduleEntry, make_entry
from greenq.beat.policies import NextAction, next_step

S = 1_000_000
LAST = 1_800_000_000 * S


def entry(**fields: Any) -> ScheduleEntry:
    return make_entry("each", {"task": "t", "schedule": 10, **fields}, UTC)


def at(seconds: float) -> int:
    return LAST + int(seconds * S)


def test_what_is_not_due_yet_is_a_forecast() -> None:
    assert next_step(entry(), LAST, at(9.9)) == NextAction(at(10), at(10), "send")


def test_run_once_sends_the_latest_of_the_missed_ones() -> None:
    assert next_step(entry(), LAST, at(10)) == NextAction(at(10), at(10), "send")
    assert next_step(entry(), LAST, at(59)) == NextAction(at(50), at(50), "send")


def test_run_all_sends_each_in_order() -> None:
    each, last, sent = entry(missed="run_all"), LAST, []
    while (step := next_step(each, last, at(59))) is not None and step.ready <= at(59):
        sent.append(step.due)
        last = step.due
    assert sent == [at(10), at(20), at(30), at(40), at(50)]


def test_skip_sends_only_what_is_not_too_late() -> None:
    each = entry(missed="skip(3)")
    assert next_step(each, LAST, at(53)) == NextAction(at(50), at(50), "send")
    assert next_step(each, LAST, at(53.1)) == NextAction(at(50), at(50), "skip")


@pytest.mark.parametrize(
    ("overlap", "action"),
    [("allow", "send"), ("skip", "skip"), ("queue_one", "wait"), ("cancel", "cancel")],
)
def test_overlaps(overlap: str, action: str) -> None:
    each = entry(overlap=overlap)
    running = next_step(each, LAST, at(25), is_running=True)
    assert running == NextAction(at(20), at(20), action)  # type: ignore[arg-type]
    ended = next_step(each, LAST, at(25), is_running=False)
    assert ended == NextAction(at(20), at(20), "send")


def test_with_jitter_a_due_time_counts_when_it_is_ready() -> None:
    each = entry(jitter=5)
    ready = each.ready(at(10))
    assert next_step(each, LAST, ready - 1) == NextAction(at(10), ready, "send")
    assert next_step(each, LAST, ready) == NextAction(at(10), ready, "send")
    step = next_step(each, LAST, at(1000) + 4)
    assert step is not None
    assert step.due in (at(990), at(1000))
    assert step.ready <= at(1000) + 4


def test_after_the_end_nothing_is_due() -> None:
    each = entry(end="2027-01-15T08:00:05+00:00")
    assert next_step(each, LAST, at(1000)) is None
