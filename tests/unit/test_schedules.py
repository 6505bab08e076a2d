"""Due times: intervals, crontabs, and the days on which clocks change."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

import pytest

from greenq.schedules import BaseSchedule, crontab, maybe_schedule, schedule, solar

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)

# Whole and half hours of change, gaps at midnight, both hemispheres, none, and a zone that changes
# four times a year.
ZONES = [
    "UTC", "Europe/Berlin", "Europe/London", "Europe/Dublin", "America/New_York",
    "America/St_Johns", "America/Sao_Paulo", "America/Santiago", "America/Havana",
    "America/Asuncion", "Australia/Lord_Howe", "Australia/Sydney", "Africa/Cairo",
    "Africa/Casablanca", "Asia/Beirut", "Asia/Tehran", "Asia/Kolkata", "Asia/Kathmandu",
    "Pacific/Chatham", "Pacific/Apia", "Antarctica/Troll", "Asia/Gaza",
]  # fmt: skip
FIRST, LAST = datetime(2021, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)

# Fields in the order of a crontab file.
CRONTABS = [
    "* * * * *", "*/15 * * * *", "30 * * * *", "30 2 * * *", "0,15,30,45 0-3 * * *", "5 0 * * *",
    "59 23 * * *", "*/20 */2 * * *", "45 1 * * sun", "0 3 1,15 * *", "15 2 * * *",
]  # fmt: skip


def due_times(plan: BaseSchedule, start: datetime, end: datetime, zone: str) -> Iterator[datetime]:
    due = plan.next_due(start, ZoneInfo(zone))
    while due is not None and due <= end:
        yield due
        due = plan.next_due(due, ZoneInfo(zone))


# --- a reference of its own ----------------------------------------------------------------------


def selected(field: str, first: int, last: int) -> set[int]:
    names = {"sun": "0"}
    found: set[int] = set()
    for part in names.get(field, field).split(","):
        span, _, step = part.partition("/")
        low, _, high = (f"{first}-{last}" if span == "*" else span).partition("-")
        found.update(range(int(low), int(high or low) + 1, int(step or 1)))
    return found


@lru_cache(maxsize=1)
def walk(zone: ZoneInfo, start: datetime, end: datetime) -> list[tuple[datetime, datetime]]:
    """Return each minute with the time on the wall."""
    minutes = [start + number * MINUTE for number in range((end - start) // MINUTE + 1)]
    return [(now, now.astimezone(zone).replace(tzinfo=None, fold=0)) for now in minutes]


class Reference:
    """Walks through time minute by minute and looks at the clock on the wall."""

    def __init__(self, text: str, zone: str) -> None:
        self.zone = ZoneInfo(zone)
        minute, hour, day, month, weekday = text.split()
        self.flows = "*" in hour or "/" in hour
        self.sets = (
            *(selected(minute, 0, 59), selected(hour, 0, 23), selected(day, 1, 31)),
            *(selected(month, 1, 12), selected(weekday, 0, 6)),
        )

    def matches(self, wall: datetime) -> bool:
        minutes, hours, days, months, weekdays = self.sets
        return (
            wall.minute in minutes
            and wall.hour in hours
            and wall.day in days
            and wall.month in months
            and (wall.weekday() + 1) % 7 in weekdays
        )

    def due_times(self, start: datetime, end: datetime) -> list[datetime]:
        """Return what is due after `start`; nothing changes within a day of it."""
        seen: set[datetime] = set()
        found, highest = [], None
        for now, wall in walk(self.zone, start, end):
            missing = [] if highest is None else list(self.between(highest + MINUTE, wall))
            is_due = self.matches(wall) and (self.flows or wall not in seen)
            if not self.flows and any(map(self.matches, missing)):
                is_due = True
            if is_due and now > start:
                found.append(now)
            seen.add(wall)
            highest = wall if highest is None else max(highest, wall)
        return found

    @staticmethod
    def between(first: datetime, end: datetime) -> Iterator[datetime]:
        while first < end:
            yield first
            first += MINUTE


def changes(zone: str) -> list[datetime]:
    """Return the hours in which the zone's offset changes."""
    found, now, offset = [], FIRST, FIRST.astimezone(ZoneInfo(zone)).utcoffset()
    while now < LAST:
        now += HOUR
        later = now.astimezone(ZoneInfo(zone)).utcoffset()
        if later != offset:
            found.append(now)
            offset = later
    return found


@pytest.mark.slow
@pytest.mark.parametrize("zone", ZONES)
def test_around_each_change_of_clocks_due_times_are_those_of_a_walk_by_the_minute(
    zone: str,
) -> None:
    found = changes(zone)
    for change in found:
        start, end = change - timedelta(hours=26), change + timedelta(hours=26)
        for text in CRONTABS:
            expected = Reference(text, zone).due_times(start, end)
            actual = list(due_times(crontab.from_string(text), start, end, zone))
            assert actual == expected, (text, change)
    fixed = {"UTC", "Asia/Kolkata", "Asia/Kathmandu"}
    assert found or zone in fixed or zone in {"America/Sao_Paulo", "America/Asuncion"}


@pytest.mark.slow
@pytest.mark.parametrize("zone", ZONES)
def test_a_daily_wall_time_is_due_on_each_day_of_five_years(zone: str) -> None:
    info = ZoneInfo(zone)
    for hour, minute in ((2, 30), (0, 0), (23, 59), (12, 0)):
        expected, day = [], date(2021, 1, 2)
        while day < date(2026, 1, 1):
            wall = datetime(day.year, day.month, day.day, hour, minute, tzinfo=info)
            moment = wall.astimezone(UTC)
            if moment.astimezone(info).replace(tzinfo=None) != wall.replace(tzinfo=None):
                # It does not exist: the end of the gap is the change itself.
                moment = next(
                    moment + step * MINUTE
                    for step in range(-180, 181)
                    if (moment + step * MINUTE).astimezone(info).utcoffset()
                    != (moment + (step - 1) * MINUTE).astimezone(info).utcoffset()
                )
            expected.append(moment)
            day += DAY
        start = datetime(2021, 1, 1, 23, 59, 30, tzinfo=info).astimezone(UTC)
        end = datetime(2025, 12, 31, 23, 59, 30, tzinfo=info).astimezone(UTC)
        assert list(due_times(crontab(minute, hour), start, end, zone)) == expected


# --- examples of the rule ------------------------------------------------------------------------


def walls(text: str, start: datetime, hours: int, zone: str = "Europe/Berlin") -> list[str]:
    plan = crontab.from_string(text)
    found = due_times(plan, start, start + timedelta(hours=hours), zone)
    return [due.astimezone(ZoneInfo(zone)).isoformat(timespec="minutes")[11:] for due in found]


SPRING, AUTUMN = (
    datetime(2026, 3, 28, 23, 59, tzinfo=UTC),
    datetime(2026, 10, 24, 22, 59, tzinfo=UTC),
)


def test_a_wall_time_that_does_not_exist_is_due_once_at_the_end_of_the_gap() -> None:
    assert walls("30 2 * * *", SPRING, 4) == ["03:00+02:00"]
    assert walls("0,30 2,3 * * *", SPRING, 4) == ["03:00+02:00", "03:30+02:00"]


def test_a_wall_time_that_happens_twice_is_due_once() -> None:
    assert walls("30 2 * * *", AUTUMN, 5) == ["02:30+02:00"]


def test_hours_with_a_star_or_a_step_follow_the_elapsed_time() -> None:
    assert walls("30 * * * *", SPRING, 3) == ["01:30+01:00", "03:30+02:00", "04:30+02:00"]
    assert walls("30 * * * *", AUTUMN, 4) == [
        *("01:30+02:00", "02:30+02:00", "02:30+01:00", "03:30+01:00"),
    ]  # fmt: skip
    assert walls("30 */2 * * *", AUTUMN, 4) == ["02:30+02:00", "02:30+01:00"]


# --- fields --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "same"),
    [
        (crontab(minute="*/15"), crontab(minute=[0, 15, 30, 45])),
        (crontab(day_of_week="fri-mon"), crontab(day_of_week="5,6,0,1")),
        (crontab(day_of_week="Monday"), crontab(day_of_week=1)),
        (crontab(month_of_year="*/3"), crontab(month_of_year="1,4,7,10")),
        (crontab(month_of_year="nov-feb"), crontab(month_of_year={11, 12, 1, 2})),
        (crontab(hour="8-18/4"), crontab(hour="8-18/4", minute="*")),
        (crontab.from_string("5 4 1 jan sun"), crontab(5, 4, "sun", 1, "jan")),
    ],
)
def test_fields_select_values(made: crontab, same: crontab) -> None:
    assert made == same
    assert hash(made) == hash(same)
    assert crontab.from_string(made.text) == made


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"minute": 60}, "minute: 60 is not between 0 and 59"),
        ({"day_of_week": 7}, "Sunday is 0"),
        ({"minute": "*/0"}, "at least 1"),
        ({"hour": "a"}, "'a' is not a number or a name"),
        ({"hour": ""}, "is not"),
        ({"day_of_month": []}, "selects nothing"),
        ({"minute": "-1"}, "is not"),
        ({"minute": True}, "not a crontab field"),
        ({"minute": 1.5}, "not a crontab field"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        crontab(**fields)


def test_a_crontab_has_five_fields() -> None:
    with pytest.raises(ValueError, match="has 4 fields"):
        crontab.from_string("* * * *")


def test_both_days_must_match() -> None:
    plan = crontab(0, 0, day_of_week="fri", day_of_month=13)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    found = list(due_times(plan, start, start + 365 * DAY, "UTC"))
    assert [due.date() for due in found] == [
        date(2026, 2, 13),
        date(2026, 3, 13),
        date(2026, 11, 13),
    ]


def test_a_rare_date_is_found_and_an_impossible_one_is_not() -> None:
    now = datetime(2026, 11, 22, tzinfo=UTC)
    assert crontab(0, 0, "mon", 29, 2).next_due(now, UTC) == datetime(2044, 2, 29, tzinfo=UTC)
    assert crontab(0, 0, "*", 30, 2).next_due(now, UTC) is None


def test_a_due_time_is_always_later_than_what_was_asked() -> None:
    plan, noon = crontab(0, 12), datetime(2026, 5, 5, 12, tzinfo=UTC)
    assert plan.next_due(noon, UTC) == noon + DAY
    assert plan.next_due(noon - timedelta(microseconds=1), UTC) == noon


# --- intervals -----------------------------------------------------------------------------------


def test_an_interval_counts_from_the_last_due_time() -> None:
    start = datetime(2026, 1, 1, 0, 0, 0, 123456, tzinfo=UTC)
    assert schedule(30).next_due(start, UTC) == start + timedelta(seconds=30)


def test_the_latest_due_time_of_a_long_outage_is_found_at_once() -> None:
    start = datetime(2020, 1, 1, tzinfo=UTC)
    until = datetime(2026, 1, 1, 0, 0, 0, 250_000, tzinfo=UTC)
    assert schedule(0.1).latest_due(start, until, UTC) == until - timedelta(microseconds=50_000)
    assert schedule(timedelta(days=10_000)).latest_due(start, until, UTC) is None
    plan = crontab("*/7")
    assert plan.latest_due(start, until, UTC) == datetime(2026, 1, 1, tzinfo=UTC)
    assert crontab(0, 0, "*", 29, 2).latest_due(start, until, UTC) == datetime(
        2024, 2, 29, tzinfo=UTC
    )
    assert plan.latest_due(until, until + timedelta(seconds=1), UTC) is None


def test_a_relative_interval_is_rounded_to_its_unit_on_the_wall() -> None:
    start = datetime(2026, 1, 1, 10, 17, 42, tzinfo=UTC)
    kolkata = ZoneInfo("Asia/Kolkata")
    assert schedule(HOUR, relative=True).next_due(start, UTC) == start.replace(
        hour=11, minute=0, second=0
    )
    assert schedule(DAY, relative=True).next_due(start, kolkata) == datetime(
        2026, 1, 2, tzinfo=kolkata
    )


@pytest.mark.parametrize("wrong", [0, -1, 0.01, float("nan"), float("inf"), "10", None, True])
def test_wrong_intervals_are_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="interval"):
        schedule(wrong)  # type: ignore[arg-type]


def test_numbers_and_timedeltas_become_intervals() -> None:
    assert maybe_schedule(10) == maybe_schedule(timedelta(seconds=10)) == schedule(10)
    plan = crontab()
    assert maybe_schedule(plan) is plan


def test_sun_rises_and_sets_when_the_almanac_says() -> None:
    midsummer = datetime(2026, 6, 21, tzinfo=UTC)
    rise = solar("sunrise", 51.5, -0.1).next_due(midsummer, UTC)
    fall = solar("sunset", 51.5, -0.1).next_due(midsummer, UTC)
    assert rise is not None
    assert fall is not None
    assert abs(rise - datetime(2026, 6, 21, 3, 43, tzinfo=UTC)) < timedelta(minutes=2)
    assert abs(fall - datetime(2026, 6, 21, 20, 21, tzinfo=UTC)) < timedelta(minutes=2)


@pytest.mark.parametrize("lon", [-179.0, -74.0, 0.0, 16.4, 174.8])
def test_sun_s_due_times_do_not_depend_on_who_asks_when(lon: float) -> None:
    plan = solar("sunset", 48.2, lon)
    begin = datetime(2026, 3, 1, tzinfo=UTC)
    walked, moment = [], begin
    while moment < begin + timedelta(days=40):
        due = plan.next_due(moment, UTC)
        assert due is not None
        assert moment < due <= moment + timedelta(days=1, minutes=10)
        walked.append(due)
        moment = due
    asked = {plan.next_due(begin + timedelta(minutes=17 * n), UTC) for n in range(3300)}
    assert asked <= set(walked)
    assert plan.latest_due(begin, walked[20], UTC) == walked[20]


def test_sun_that_sets_twice_on_a_day_in_utc_is_due_twice() -> None:
    plan = solar("dusk_astronomical", 40.7, -74.0)
    first = plan.next_due(datetime(2026, 10, 7, tzinfo=UTC), UTC)
    assert first is not None
    second = plan.next_due(first, UTC)
    assert second is not None
    assert first.date() == second.date() == date(2026, 10, 7)


def test_sun_that_does_not_set_is_awaited() -> None:
    # In Tromsoe from May 18 to July 26.
    due = solar("sunset", 69.65, 18.96).next_due(datetime(2026, 6, 1, tzinfo=UTC), UTC)
    assert due is not None
    assert date(2026, 7, 24) <= due.date() <= date(2026, 7, 28)
    # At the pole the sun does not set in the course of a day.
    assert solar("sunset", 90, 0).next_due(datetime(2026, 6, 1, tzinfo=UTC), UTC) is None


@pytest.mark.parametrize(
    ("event", "lat", "lon", "reason"),
    [("sunrose", 0, 0, "not a solar event"), ("sunset", 91, 0, "latitude"),
     ("sunset", 0, -181, "longitude"), ("sunset", float("nan"), 0, "latitude")],
)  # fmt: skip
def test_wrong_place_or_event_is_refused(event: str, lat: float, lon: float, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        solar(event, lat, lon)


def test_equal_suns_are_equal() -> None:
    assert solar("sunset", 1, 2) == solar("sunset", 1.0, 2.0) != solar("sunrise", 1, 2)
    assert len({solar("sunset", 1, 2), solar("sunset", 1, 2)}) == 1
    assert repr(solar("sunset", 48.2, 16.4)) == "<sunset at latitude 48.2, longitude 16.4>"


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ephem", None)
    with pytest.raises(ImportError, match=r"pip install 'greenq\[solar\]'"):
        solar("sunset", 1, 2)
