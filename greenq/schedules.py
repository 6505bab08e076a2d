"""When periodic tasks are due: intervals, crontabs and the sun, as pure functions.

A schedule answers one question: what is the first due time after this moment? It never reads a
clock, so every beat that asks gets the same time, and due times can be checked years ahead.
"""

from __future__ import annotations

import importlib
import math
import re
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import lru_cache
from typing import Any, Final, NamedTuple

__all__ = ["BaseSchedule", "crontab", "maybe_schedule", "schedule", "solar"]

_MINUTE: Final = timedelta(minutes=1)
_DAY: Final = timedelta(days=1)
_NO_MOVE: Final = timedelta(0)

# February 29 falls on a given weekday every 28 years, but only after 40 years around the year 2100.
_YEARS: Final = 41

_LEAST_EVERY: Final = timedelta(milliseconds=100)


class BaseSchedule(ABC):
    """The base of all schedules; your own class needs only `next_due`.

    `next_due` must be a pure function: several beats call it, and a due time is sent only once if
    all of them get the same result. Equal schedules must compare equal and have equal hashes.
    """

    @abstractmethod
    def next_due(self, after: datetime, zone: tzinfo) -> datetime | None:
        """Return the first due time later than `after`, or None.

        Args:
            after: an aware time; for a schedule relative to its last run, the last due time.
            zone: the entry's time zone.
        """

    def latest_due(self, after: datetime, until: datetime, zone: tzinfo) -> datetime | None:
        """Return the last due time later than `after` and not later than `until`, or None."""
        # Do not step through all of a long outage; examine its end first.
        span, found = timedelta(hours=1), None
        while found is None:
            start = max(after, until - span)
            found = _not_after(until, self.next_due(start, zone))
            if start == after:
                break
            span *= 24
        while found is not None:
            later = _not_after(until, self.next_due(found, zone))
            if later is None:
                break
            found = later
        return found


def _not_after(until: datetime, due: datetime | None) -> datetime | None:
    return due if due is not None and due <= until else None


# --- intervals -----------------------------------------------------------------------------------


class schedule(BaseSchedule):  # noqa: N801  Celery's name
    """Due at a fixed interval: a number of seconds or a timedelta after the last due time.

    If `relative` is true, due times are rounded down to the interval's own unit (whole days, hours,
    minutes or seconds) on the clock of the entry's time zone.
    """

    def __init__(
        self,
        run_every: float | timedelta,
        relative: bool = False,
        nowfun: object = None,
        app: object = None,
    ) -> None:
        """Accept an interval; `nowfun` and `app` exist for compatibility and have no effect.

        Raises:
            ValueError: the interval is neither a number nor a timedelta, or is below 0.1 s.
        """
        if isinstance(run_every, (int, float)) and not isinstance(run_every, bool):
            if not math.isfinite(run_every):
                raise ValueError(f"an interval must be finite, not {run_every}")
            run_every = timedelta(seconds=run_every)
        if not isinstance(run_every, timedelta):
            raise ValueError(
                f"an interval must be a number of seconds or a timedelta, not {run_every!r}"
            )
        if run_every < _LEAST_EVERY:
            raise ValueError(
                f"an interval must be at least 0.1 s, not {run_every.total_seconds():g} s"
            )
        self.run_every = run_every
        self.relative = bool(relative)

    @property
    def seconds(self) -> float:
        """The interval in seconds."""
        return self.run_every.total_seconds()

    human_seconds = seconds

    def next_due(self, after: datetime, zone: tzinfo) -> datetime:
        """Return the time one interval after `after`."""
        return self._rounded(after + self.run_every, zone, after)

    def latest_due(self, after: datetime, until: datetime, zone: tzinfo) -> datetime | None:
        """Return the last due time up to `until`, in steps of one interval from `after`."""
        if self.relative:
            return super().latest_due(after, until, zone)
        count = (until - after) // self.run_every
        return after + count * self.run_every if count > 0 else None

    def _rounded(self, due: datetime, zone: tzinfo, after: datetime) -> datetime:
        if not self.relative:
            return due
        wall = due.astimezone(zone).replace(microsecond=0)
        if self.run_every >= _DAY:
            wall = wall.replace(hour=0, minute=0, second=0)
        elif self.run_every >= timedelta(hours=1):
            wall = wall.replace(minute=0, second=0)
        elif self.run_every >= _MINUTE:
            wall = wall.replace(second=0)
        rounded = wall.astimezone(UTC)
        return rounded if rounded > after else due

    def __eq__(self, other: object) -> bool:
        """Compare the interval and the rounding."""
        if not isinstance(other, schedule):
            return NotImplemented
        return (self.run_every, self.relative) == (other.run_every, other.relative)

    def __hash__(self) -> int:
        """Hash by the interval."""
        return hash((self.run_every, self.relative))

    def __repr__(self) -> str:
        """Show the interval."""
        return f"<every {self.run_every.total_seconds():g} s>"


# --- the sun -------------------------------------------------------------------------------------


class _Event(NamedTuple):
    """An event's method in ephem, the sun's height in degrees, and whether its centre counts."""

    method: str
    horizon: str = "0"
    of_center: bool = False


# As in Celery. At sunrise and sunset, refraction lifts the sun by 34 minutes of arc.
_EVENTS: Final = {
    "dawn_astronomical": _Event("next_rising", "-18", of_center=True),
    "dawn_nautical": _Event("next_rising", "-12", of_center=True),
    "dawn_civil": _Event("next_rising", "-6", of_center=True),
    "sunrise": _Event("next_rising", "-0:34"),
    "solar_noon": _Event("next_transit"),
    "sunset": _Event("next_setting", "-0:34"),
    "dusk_civil": _Event("next_setting", "-6", of_center=True),
    "dusk_nautical": _Event("next_setting", "-12", of_center=True),
    "dusk_astronomical": _Event("next_setting", "-18", of_center=True),
}

# Near the poles, the sun may stay up or down for half a year.
_SOLAR_DAYS: Final = 400


class solar(BaseSchedule):  # noqa: N801  Celery's name
    """Due at an event of the sun, such as ``sunset``, at a place on earth; needs ``greenq[solar]``.

    Nothing is due on days without the event, which occur near the poles.
    """

    def __init__(
        self, event: str, lat: float, lon: float, nowfun: object = None, app: object = None
    ) -> None:
        """Accept an event and a place.

        Args:
            event: ``dawn_astronomical``, ``dawn_nautical``, ``dawn_civil``, ``sunrise``,
                ``solar_noon``, ``sunset``, ``dusk_civil``, ``dusk_nautical`` or
                ``dusk_astronomical``.
            lat: degrees north, -90 to 90.
            lon: degrees east, -180 to 180.
            nowfun, app: accepted for compatibility with Celery; have no effect.

        Raises:
            ValueError: there is no such event or place.
            ImportError: the package ephem is not installed.
        """
        if event not in _EVENTS:
            raise ValueError(f"{event!r} is not a solar event: choose one of {', '.join(_EVENTS)}")
        if not -90 <= lat <= 90:
            raise ValueError(f"a latitude must be between -90 and 90 degrees, not {lat!r}")
        if not -180 <= lon <= 180:
            raise ValueError(f"a longitude must be between -180 and 180 degrees, not {lon!r}")
        self.event, self.lat, self.lon = event, lat, lon
        try:
            self._ephem = importlib.import_module("ephem")
        except ImportError as exc:
            raise ImportError("solar() needs ephem: pip install 'greenq[solar]'") from exc

    def next_due(self, after: datetime, zone: tzinfo) -> datetime | None:
        """Return the event's next time, in whole seconds; None if there is none for over a year."""
        # Each calculation begins at midnight and is used for that day only. If it began at another
        # moment, the result could differ by a fraction of a second, but all beats need the same
        # result.
        day = after.astimezone(UTC).date()
        for number in range(_SOLAR_DAYS):
            for due in self._due_on(day + timedelta(days=number)):
                if due > after:
                    return due
        return None

    def _due_on(self, day: date) -> Iterator[datetime]:
        """Yield the event's times on a day in UTC: one, or two if the event is getting earlier."""
        event, observer = _EVENTS[self.event], self._ephem.Observer()
        observer.lat, observer.lon = str(self.lat), str(self.lon)
        observer.elevation = observer.pressure = 0
        observer.horizon = event.horizon
        options = {"use_center": True} if event.of_center else {}
        start = datetime.combine(day, time())
        while True:
            try:
                found = getattr(observer, event.method)(self._ephem.Sun(), start=start, **options)
            except self._ephem.CircumpolarError:
                return
            moment: datetime = found.datetime()
            if moment.date() != day:
                return
            yield moment.replace(microsecond=0, tzinfo=UTC)
            start = moment + _MINUTE

    def __eq__(self, other: object) -> bool:
        """Compare the event and the place."""
        if not isinstance(other, solar):
            return NotImplemented
        return (self.event, self.lat, self.lon) == (other.event, other.lat, other.lon)

    def __hash__(self) -> int:
        """Hash by the event and the place."""
        return hash((self.event, self.lat, self.lon))

    def __repr__(self) -> str:
        """Show the event and the place."""
        return f"<{self.event} at latitude {self.lat:g}, longitude {self.lon:g}>"


# --- crontab -------------------------------------------------------------------------------------


class _Field(NamedTuple):
    """A field of a crontab: its first and last values, and the names of its values."""

    title: str
    first: int
    last: int
    names: tuple[str, ...] = ()


_MINUTES = _Field("minute", 0, 59)
_HOURS = _Field("hour", 0, 23)
_WEEKDAYS = _Field("day_of_week", 0, 6, ("sun", "mon", "tue", "wed", "thu", "fri", "sat"))
_MONTH_DAYS = _Field("day_of_month", 1, 31)
_MONTHS = _Field(
    "month_of_year",
    1,
    12,
    ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"),
)

_PART = re.compile(r"(?:(\*)(?:/(\d+))?|(\w+)(?:-(\w+)(?:/(\d+))?)?)")


def _values(field: _Field, spec: object) -> tuple[int, ...]:
    """Return the values that a field selects, sorted.

    Raises:
        ValueError: the text is malformed, or a value is out of range.
    """
    found: set[int] = set()
    if isinstance(spec, bool):
        raise ValueError(f"{field.title}: {spec!r} is not a crontab field")
    if isinstance(spec, int):
        found.add(_in_range(field, spec))
    elif isinstance(spec, str):
        for part in spec.split(","):
            found.update(_part_values(field, part.strip()))
    elif isinstance(spec, Iterable):
        for each in spec:
            if isinstance(each, bool) or not isinstance(each, int):
                raise ValueError(f"{field.title}: {each!r} is not a whole number")
            found.add(_in_range(field, each))
    else:
        raise ValueError(f"{field.title}: {spec!r} is not a crontab field")
    if not found:
        raise ValueError(f"{field.title}: {spec!r} selects nothing")
    return tuple(sorted(found))


def _part_values(field: _Field, part: str) -> Iterable[int]:
    match = _PART.fullmatch(part)
    if match is None:
        raise ValueError(f"{field.title}: {part!r} is not *, */n, n, n-m or n-m/k")
    star, star_step, low, high, span_step = match.groups()
    step = star_step or span_step
    if step is not None and int(step) < 1:
        raise ValueError(f"{field.title}: the step in {part!r} must be at least 1")
    if star:
        values = range(field.first, field.last + 1)
    else:
        start = _number(field, low)
        end = start if high is None else _number(field, high)
        values = range(start, end + 1)
        if end < start:
            # A range such as `fri-mon` continues at the beginning of the week.
            around = [*range(start, field.last + 1), *range(field.first, end + 1)]
            return around[:: int(step or 1)]
    return values[:: int(step or 1)]


def _number(field: _Field, text: str) -> int:
    if text.isdecimal():
        return _in_range(field, int(text))
    name = text[:3].lower()
    if name in field.names:
        return field.names.index(name) + field.first
    raise ValueError(f"{field.title}: {text!r} is not a number or a name")


def _in_range(field: _Field, value: int) -> int:
    if not field.first <= value <= field.last:
        hint = "; Sunday is 0" if field is _WEEKDAYS and value == 7 else ""
        raise ValueError(
            f"{field.title}: {value} is not between {field.first} and {field.last}{hint}"
        )
    return value


class crontab(BaseSchedule):  # noqa: N801  Celery's name
    """Due at the wall-clock times that match all five fields, as in Celery.

    A field is ``*``, a number, a list, a range (``1-5``, ``fri-mon``), a step (``*/15``,
    ``8-18/2``), several of these with commas, or an iterable of numbers. If both the day of the
    month and the day of the week are given, both must match; in cron, either is enough.

    When clocks change, a wall-clock time that does not exist is due once, at the end of the gap,
    and a time that occurs twice is due once, the first time. Hours given as ``*`` or with a step
    follow the elapsed time instead: nothing is made up for after a gap, and a repeated hour counts
    twice.
    """

    def __init__(
        self,
        minute: Any = "*",
        hour: Any = "*",
        day_of_week: Any = "*",
        day_of_month: Any = "*",
        month_of_year: Any = "*",
        nowfun: object = None,
        app: object = None,
    ) -> None:
        """Accept the fields; `nowfun` and `app` exist for compatibility and have no effect.

        Raises:
            ValueError: a field is malformed.
        """
        self._fields = tuple(
            _shown(each) for each in (minute, hour, day_of_month, month_of_year, day_of_week)
        )
        self._minutes = _values(_MINUTES, minute)
        self._hours = _values(_HOURS, hour)
        self._weekdays = frozenset(_values(_WEEKDAYS, day_of_week))
        self._month_days = _values(_MONTH_DAYS, day_of_month)
        self._months = frozenset(_values(_MONTHS, month_of_year))
        # True if the hours follow the elapsed time.
        self._flows = isinstance(hour, str) and ("*" in hour or "/" in hour)
        self._key = (
            *(self._minutes, self._hours, self._weekdays, self._month_days, self._months),
            self._flows,
        )
        self._hash = hash(self._key)

    @classmethod
    def from_string(cls, text: str) -> crontab:
        """Read ``minute hour day-of-month month day-of-week``, in the order of a crontab file.

        Raises:
            ValueError: there are not five fields, or one is malformed.
        """
        fields = text.split()
        if len(fields) != 5:
            raise ValueError(f"{text!r} has {len(fields)} fields; a crontab has five")
        minute, hour, day, month, weekday = fields
        return cls(minute, hour, weekday, day, month)

    @property
    def text(self) -> str:
        """The five fields in the order of a crontab file; `from_string` reads them."""
        return " ".join(self._fields)

    def next_due(self, after: datetime, zone: tzinfo) -> datetime | None:
        """Return the first due time later than `after`; None if no date ever matches."""
        after = after.astimezone(UTC)
        day = after.astimezone(zone).date()
        if after >= _bounds(zone, day)[1]:
            # The clock was put back across midnight.
            day += _DAY
        last = date(min(day.year + _YEARS, date.max.year - 1), 1, 1)
        while day <= last:
            start, _, is_even = _bounds(zone, day)
            if is_even:
                if self._has_date(day):
                    found = self._due_on_even_day(max(after - start, -_MINUTE))
                    if found is not None:
                        return start + found
            else:
                for due in _uneven_day(self, zone, day):
                    if due > after:
                        return due
            day = self._next_date(day)
        return None

    def _due_on_even_day(self, passed: timedelta) -> timedelta | None:
        """Return the first due time after `passed` on a day without a clock change."""
        number = passed // _MINUTE + 1
        hour, minute = divmod(number, 60)
        at = bisect_left(self._hours, hour)
        if at < len(self._hours) and self._hours[at] == hour:
            later = bisect_left(self._minutes, minute)
            if later < len(self._minutes):
                return timedelta(hours=hour, minutes=self._minutes[later])
            at += 1
        if at == len(self._hours):
            return None
        return timedelta(hours=self._hours[at], minutes=self._minutes[0])

    def _next_date(self, day: date) -> date:
        """Return the next day to examine, which may match or have a clock change."""
        day += _DAY
        if day.month not in self._months:
            # Never go beyond the first of the next month, because a gap that began in this month
            # may end on that day.
            return (day.replace(day=1) + timedelta(days=32)).replace(day=1)
        return day

    def _has_date(self, day: date) -> bool:
        return (
            day.month in self._months
            and day.day in self._month_days
            and day.isoweekday() % 7 in self._weekdays
        )

    def _has_wall_time(self, wall: datetime) -> bool:
        return (
            wall.minute in self._minutes
            and wall.hour in self._hours
            and self._has_date(wall.date())
        )

    def due_on_uneven_day(self, zone: tzinfo, day: date) -> tuple[datetime, ...]:
        """Return the due times on a day when clocks change, checking each minute."""
        start, end, _ = _bounds(zone, day)
        midnight = datetime(day.year, day.month, day.day)  # noqa: DTZ001  a wall time
        found: list[datetime] = []
        expected, now = midnight, start
        while now <= end:
            wall = now.astimezone(zone)
            is_repeated, wall = wall.fold == 1, wall.replace(tzinfo=None, fold=0)
            is_new = self._flows or not is_repeated
            is_due = now < end and is_new and self._has_wall_time(wall)
            gap_end = min(wall, midnight + _DAY)
            if is_due or (not self._flows and self._gap_has_due(expected, gap_end)):
                found.append(now)
            expected = wall + _MINUTE
            now += _MINUTE
        return tuple(found)

    def _gap_has_due(self, first: datetime, end: datetime) -> bool:
        """Return whether a time in a gap, from `first` up to `end` on the wall clock, is due."""
        while first < end:
            if self._has_wall_time(first):
                return True
            first += _MINUTE
        return False

    def __eq__(self, other: object) -> bool:
        """Compare what the fields select."""
        if not isinstance(other, crontab):
            return NotImplemented
        return self._key == other._key

    def __hash__(self) -> int:
        """Hash by what the fields select."""
        return self._hash

    def __repr__(self) -> str:
        """Show the five fields."""
        return f"<crontab {self.text}>"


def _shown(spec: object) -> str:
    """Return a field as text without spaces."""
    if isinstance(spec, Iterable) and not isinstance(spec, str):
        return ",".join(str(each) for each in sorted(spec))
    return re.sub(r"\s", "", str(spec))


@lru_cache(4096)
def _bounds(zone: tzinfo, day: date) -> tuple[datetime, datetime, bool]:
    """Return when a day begins and ends, and whether the clock runs evenly in between."""
    after = day + _DAY
    start = datetime(day.year, day.month, day.day, tzinfo=zone)
    end = datetime(after.year, after.month, after.day, tzinfo=zone)
    offsets = {start.utcoffset(), start.replace(fold=1).utcoffset(), end.utcoffset()}
    start, end = start.astimezone(UTC), end.astimezone(UTC)
    return start, end, len(offsets) == 1 and end - start == _DAY


@lru_cache(4096)
def _uneven_day(cron: crontab, zone: tzinfo, day: date) -> tuple[datetime, ...]:
    return cron.due_on_uneven_day(zone, day)


def maybe_schedule(value: object, relative: bool = False) -> Any:
    """Create a schedule from seconds or a timedelta; return other values unchanged."""
    if isinstance(value, (int, float, timedelta)) and not isinstance(value, bool):
        return schedule(value, relative)
    return value
