"""Entries: what is accepted, what is refused, and how they travel as JSON."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from greenq.beat.entries import make_entry, read_entry, to_us, write_entry
from greenq.errors import ConfigError
from greenq.schedules import BaseSchedule, crontab, schedule

START = datetime(2026, 1, 1, tzinfo=UTC)


class Odd(BaseSchedule):
    def next_due(self, after: datetime, zone: Any) -> datetime:
        return after + timedelta(seconds=1)


def test_celerys_fields_are_read() -> None:
    entry = make_entry(
        "each",
        {
            "task": "proj.add",
            "schedule": timedelta(seconds=30),
            "args": [1],
            "kwargs": {"y": 2},
            "options": {"queue": "mail", "expires": 10},
            "relative": True,
        },
        UTC,
    )
    assert (entry.task, entry.args, entry.kwargs) == ("proj.add", (1,), {"y": 2})
    assert entry.schedule == schedule(30, relative=True)
    assert entry.options == {"queue": "mail", "expires": 10}
    assert (entry.missed, entry.overlap) == ("run_once", "allow")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"task": None}, r"\.task"),
        ({"schedule": None}, r"schedule.*missing"),
        ({"schedule": "* *"}, "2 fields"),
        ({"schedule": object()}, "BaseSchedule"),
        ({"shedule": 1}, "did you mean schedule"),
        ({"args": "abc"}, "list or tuple"),
        ({"options": {"quue": "x"}}, "did you mean queue"),
        ({"options": {"task_id": "x"}}, "sent repeatedly"),
        ({"timezone": "Mars/Base"}, "timezone"),
        ({"missed": "skip"}, "skip\\(N\\)"),
        ({"missed": "skip(0)"}, "at least 1"),
        ({"overlap": "never"}, "one of allow"),
        ({"overlap": "queue_one", "missed": "run_all"}, "omit missed"),
        ({"overlap": "skip", "options": {"ignore_result": True}}, "needs results"),
        ({"jitter": -1}, "jitter"),
        ({"start": "soon"}, "ISO 8601"),
    ],
)
def test_wrong_fields_are_named(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_entry("each", {"task": "proj.add", "schedule": 10, **changed}, UTC)


def test_an_entry_goes_through_json_unchanged() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    given = {
        "task": "proj.add",
        "schedule": crontab(0, [1, 2], "mon-fri"),
        "args": (1, "x"),
        "options": {"queue": "q", "priority": 3},
        "timezone": "Asia/Kolkata",
        "missed": "skip(60)",
        "overlap": "cancel",
        "jitter": timedelta(seconds=2),
        "start": datetime(2026, 1, 1),  # noqa: DTZ001  a wall-clock time of the zone
        "end": "2027-01-01T00:00:00+00:00",
    }
    text = write_entry("each", given, berlin)
    assert read_entry("each", text, UTC) == make_entry("each", given, berlin)


def test_what_json_cannot_hold_is_refused() -> None:
    with pytest.raises(ConfigError, match="your own"):
        write_entry("each", {"task": "t", "schedule": Odd()}, UTC)
    with pytest.raises(ConfigError, match="JSON"):
        write_entry("each", {"task": "t", "schedule": 1, "args": [object()]}, UTC)
    with pytest.raises(ConfigError, match="mapping"):
        read_entry("each", "no json", UTC)


def test_start_and_end_bound_the_due_times() -> None:
    fields = {"task": "t", "schedule": 60, "start": START, "end": START + timedelta(minutes=2)}
    entry = make_entry("each", fields, UTC)
    start = to_us(START)
    first = entry.next_due(start - 10**12)
    assert first == start
    assert entry.next_due(start) == start + 60_000_000
    assert entry.next_due(start + 60_000_000) == start + 120_000_000
    assert entry.next_due(start + 120_000_000) is None
    assert entry.latest_due(start - 10**12, start + 10**12) == start + 120_000_000
    daily = make_entry("day", {"task": "t", "schedule": "0 0 * * *", "start": START}, UTC)
    assert daily.next_due(0) == start


def test_jitter_is_the_same_everywhere_and_stays_below_its_bound() -> None:
    entry = make_entry("each", {"task": "t", "schedule": 60, "jitter": 10}, UTC)
    again = make_entry("each", {"task": "t", "schedule": 60, "jitter": 10}, UTC)
    late = [entry.ready(due) - due for due in range(0, 60_000_000_000, 60_000_000)]
    assert late == [again.ready(due) - due for due in range(0, 60_000_000_000, 60_000_000)]
    assert 0 <= min(late) < 500_000
    assert 9_500_000 < max(late) < 10_000_000
