"""Periodic tasks beside Celery: the same fields, the same due times, and its workers run them."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest
from celery import Celery
from celery.schedules import ParseException
from celery.schedules import crontab as CeleryCrontab  # noqa: N812

from greenq import Greenq
from greenq.beat.scheduler import Scheduler
from greenq.schedules import crontab
from tests.servers import Server, celery_worker
from tests.support import wait_until

pytestmark = pytest.mark.interop

MINUTES = ["*", "*/15", "0", 30, "5,10-20/3", "50-10", [1, 2, 59], "*/7,3"]
HOURS = ["*", "*/3", "8-18", "22-4", "1,2", {5, 6}, "8-18/4", "20-4/2"]
WEEKDAYS = ["*", "mon-fri", "sunday", "fri-mon", "0,6", 3, "*/2"]
MONTH_DAYS = ["*", "1", "*/10", "28-3", "15,31", "1-7"]
MONTHS = ["*", "jan", "*/3", "nov-feb", "2-12/3", 4]


@pytest.mark.parametrize("seed", range(60))
def test_fields_and_due_times_are_celerys(seed: int) -> None:
    draw = random.Random(seed)
    fields = [draw.choice(each) for each in (MINUTES, HOURS, WEEKDAYS, MONTH_DAYS, MONTHS)]
    app = Celery("utc", set_as_current=False)
    theirs, ours = CeleryCrontab(*fields, app=app), crontab(*fields)

    assert set(ours._minutes) == theirs.minute
    assert set(ours._hours) == theirs.hour
    assert ours._weekdays == theirs.day_of_week
    assert set(ours._month_days) == theirs.day_of_month
    assert ours._months == theirs.month_of_year
    last = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=draw.randrange(500_000))
    for _ in range(5):
        theirs.nowfun = lambda last=last: last
        expected = last + theirs.remaining_estimate(last)
        last = ours.next_due(last, UTC)  # type: ignore[assignment]
        assert last == expected.astimezone(UTC)


@pytest.mark.parametrize("wrong", ["60", "a", "*/", "1-", "", "5-99", "10/20"])
def test_what_celery_refuses_is_refused(wrong: str) -> None:
    with pytest.raises((ValueError, ParseException)):
        CeleryCrontab(minute=wrong)
    with pytest.raises(ValueError, match="minute: "):
        crontab(minute=wrong)


def test_celerys_worker_runs_what_a_beat_sends(server: Server) -> None:
    schedule = {"each": {"task": "shared.add", "schedule": 0.5, "args": [1, 2]}}
    app = Greenq("beat", broker=server.url, set_as_current=False, beat_schedule=schedule)
    beat = Scheduler(app)
    with celery_worker(server.url):

        def has_run() -> bool:
            beat.tick()
            sent = app.periodic.history(1)
            return bool(sent) and app.AsyncResult(sent[0].task_id).ready()

        wait_until(has_run, 30)
        kept = app.periodic.history(1000)
        assert app.AsyncResult(kept[-1].task_id).get(timeout=10) == 3
    app.close()
