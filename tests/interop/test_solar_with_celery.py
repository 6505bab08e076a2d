"""The sun's due times are Celery's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from celery.schedules import solar as celery_solar

from greenq.schedules import solar

EVENTS = [
    "dawn_astronomical", "dawn_nautical", "dawn_civil", "sunrise", "solar_noon", "sunset",
    "dusk_civil", "dusk_nautical", "dusk_astronomical",
]  # fmt: skip
PLACES = [(0.0, 0.0), (48.2, 16.4), (-41.3, 174.8), (40.7, -74.0)]


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("place", PLACES, ids=str)
def test_each_event_is_due_when_celery_has_it_due(event: str, place: tuple[float, float]) -> None:
    for month in range(1, 13):
        now = datetime(2026, month, 7, 11, 30, tzinfo=UTC)
        theirs = celery_solar(event, *place, nowfun=lambda now=now: now).remaining_estimate(now)
        ours = solar(event, *place).next_due(now, UTC)
        assert ours is not None
        assert abs(ours - (now + theirs)) < timedelta(seconds=2)
