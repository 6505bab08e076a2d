"""Checked schedule entries, from the settings, from code or from the server's JSON."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal
from zoneinfo import ZoneInfo

from greenq.config import validators
from greenq.errors import ConfigError, GreenqError, Problem
from greenq.schedules import BaseSchedule, crontab, maybe_schedule, schedule
from greenq.sending.options import SEND_OPTIONS, check_send_options
from greenq.utils.suggest import suggestion

if TYPE_CHECKING:
    from collections.abc import Callable

Missed = Literal["run_once", "run_all", "skip"]
Overlap = Literal["allow", "skip", "queue_one", "cancel"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

_OVERLAPS: Final = ("allow", "skip", "queue_one", "cancel")
_SKIP = re.compile(r"skip\((\d+(?:\.\d+)?)\)")

# Options that make sense only for a single send; an entry is sent repeatedly.
_OF_ONE_SENDING: Final = ("task_id", "root_id", "parent_id", "eta")


def to_us(moment: datetime) -> int:
    """Return an aware time in unix microseconds."""
    return (moment - _EPOCH) // _MICROSECOND


def from_us(moment_us: int) -> datetime:
    """Return unix microseconds as a time in UTC."""
    return _EPOCH + timedelta(microseconds=moment_us)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleEntry:
    """A task, its schedule, and what to do when a due time is missed or runs overlap.

    Attributes:
        name: the entry's name, which is unique on the server.
        task: the task's name.
        schedule: when the entry is due.
        args, kwargs, options: as for `send_task`.
        zone: the time zone of the wall-clock times.
        missed: what to do about missed due times.
        skip_after_s: with ``skip``, the delay after which a due time is skipped.
        overlap: what to do if the last run has not ended.
        jitter_s: the longest delay that is added to a due time.
        start, end: the first and the last possible due time.
    """

    name: str
    task: str
    schedule: BaseSchedule
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    zone: tzinfo = UTC
    missed: Missed = "run_once"
    skip_after_s: float = 0.0
    overlap: Overlap = "allow"
    jitter_s: float = 0.0
    start: datetime | None = None
    end: datetime | None = None

    def next_due(self, after_us: int) -> int | None:
        """Return the first due time later than `after_us`, or None."""
        if self.start is not None:
            after_us = to_us(self._from(after_us))
        due = _next_due(self.schedule, self.zone, after_us)
        if due is None or self.end is None:
            return due
        return due if due <= to_us(self.end) else None

    def latest_due(self, after_us: int, until_us: int) -> int | None:
        """Return the last due time later than `after_us` but not later than `until_us`, or None."""
        after, until = self._from(after_us), from_us(until_us)
        if self.end is not None:
            until = min(until, self.end)
        due = self.schedule.latest_due(after, until, self.zone) if after < until else None
        return None if due is None else to_us(due)

    def _from(self, after_us: int) -> datetime:
        """Return the time after which to look for due times; `start` may postpone it.

        An interval is counted from the last due time. To make `start` the first due time, an
        interval schedule looks from one interval before `start`.
        """
        after = from_us(after_us)
        if self.start is None or after >= self.start:
            return after
        if isinstance(self.schedule, schedule):
            return self.start - self.schedule.run_every
        return self.start - _MICROSECOND

    def ready(self, due_us: int) -> int:
        """Return when the task for a due time can be sent; every beat adds the same jitter."""
        if not self.jitter_s:
            return due_us
        share = zlib.crc32(f"{self.name}:{due_us}".encode()) / 2**32
        return due_us + int(share * self.jitter_s * 1_000_000)


# Thousands of entries may have the same crontab.
@lru_cache(4096)
def _next_due(plan: BaseSchedule, zone: tzinfo, after_us: int) -> int | None:
    due = plan.next_due(from_us(after_us), zone)
    return None if due is None else to_us(due)


_FIELDS: Final = frozenset({
    "task", "schedule", "args", "kwargs", "options", "relative", "timezone", "missed", "overlap",
    "jitter", "start", "end",
})  # fmt: skip


def make_entry(name: str, given: Mapping[str, Any], zone: tzinfo) -> ScheduleEntry:
    """Check an entry given as in ``beat_schedule``, and return it.

    Args:
        name: the entry's name.
        given: its fields.
        zone: the time zone of an entry without a ``timezone``.

    Raises:
        ConfigError: fields are wrong or missing; all of them are listed.
    """
    if isinstance(given, Mapping):
        reader = _EntryReader(name, given)
        entry = reader.entry(zone)
        if entry is not None:
            return entry
        raise ConfigError(reader.problems)
    reason = "must be a mapping with task and schedule"
    raise ConfigError([Problem(f"beat_schedule[{name!r}]", given, reason)])


class _EntryReader:
    """Reads the fields of one entry and collects the problems in them."""

    def __init__(self, name: str, given: Mapping[str, Any]) -> None:
        self._name = name
        self._given = given
        self.problems: list[Problem] = []

    def entry(self, zone: tzinfo) -> ScheduleEntry | None:
        """Return the entry, or None if there are problems."""
        for unknown in sorted(map(str, self._given.keys() - _FIELDS)):
            self._complain(unknown, f"no such field{suggestion(unknown, _FIELDS)}")
        task = self._read("task", _task_name)
        plan = self._read(
            "schedule", lambda value: read_schedule(value, self._given.get("relative"))
        )
        own_zone = self._read("timezone", _zone, zone)
        default: tuple[Missed, float] = ("run_once", 0.0)
        missed, skip_after_s = self._read("missed", _missed, default) or default
        made = {
            "args": self._read("args", _args, ()),
            "kwargs": self._read("kwargs", _mapping, {}),
            "options": self._read("options", lambda value: _options(str(task), value), {}),
            "overlap": self._read("overlap", _overlap, "allow"),
            "jitter_s": self._read("jitter", _seconds, 0.0),
            "start": self._read("start", lambda value: _moment(value, own_zone or zone), None),
            "end": self._read("end", lambda value: _moment(value, own_zone or zone), None),
        }
        if made["overlap"] == "queue_one" and missed != "run_once":
            reason = "queue_one sends only the latest due time, after the last run: omit missed"
            self._complain("missed", reason)
        if made["overlap"] != "allow" and (made["options"] or {}).get("ignore_result"):
            self._complain("overlap", "needs results, but the options contain ignore_result")
        if self.problems:
            return None
        return ScheduleEntry(
            name=self._name,
            task=task,
            schedule=plan,
            zone=own_zone,
            missed=missed,
            skip_after_s=skip_after_s,
            **made,
        )

    def _read(self, name: str, check: Callable[[Any], Any], *default: Any) -> Any:
        value = self._given.get(name)
        if value is None:
            if default:
                return default[0]
            self._complain(name, "is missing")
            return None
        try:
            return check(value)
        except (ValueError, GreenqError) as exc:
            self._complain(name, str(exc))
            return None

    def _complain(self, name: str, reason: str) -> None:
        value = validators.shown(name, self._given.get(name))
        self.problems.append(Problem(f"beat_schedule[{self._name!r}].{name}", value, reason))


def _task_name(value: Any) -> str:
    name = getattr(value, "name", value)
    if not isinstance(name, str) or not name:
        raise ValueError("must be a task or a task's name")
    return name


def read_schedule(value: Any, relative: Any = False) -> BaseSchedule:
    """Read a schedule: a schedule object, seconds, a timedelta, a crontab's text, or JSON data.

    Raises:
        ValueError: the value is none of these.
    """
    if isinstance(value, BaseSchedule):
        if type(value).__hash__ is None:
            raise ValueError(f"{type(value).__name__} defines __eq__ and must also define __hash__")
        return value
    if isinstance(value, str):
        return crontab.from_string(value)
    if isinstance(value, Mapping):
        if value.keys() == {"crontab"}:
            return crontab.from_string(value["crontab"])
        if "every" in value and value.keys() <= {"every", "relative"}:
            return schedule(value["every"], bool(value.get("relative")))
    found = maybe_schedule(value, bool(relative))
    if not isinstance(found, BaseSchedule):
        raise ValueError(
            "must be a number of seconds, a timedelta, a crontab, or an instance of a subclass of "
            "greenq.schedules.BaseSchedule"
        )
    return found


def _zone(value: Any) -> tzinfo:
    if isinstance(value, tzinfo):
        return value
    return ZoneInfo(validators.timezone().accept(value))


def _args(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError("must be a list or tuple")
    return tuple(value)


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(each, str) for each in value):
        raise ValueError("must be a mapping with text keys")
    return dict(value)


def _options(task: str, value: Any) -> dict[str, Any]:
    found = _mapping(value)
    for option in found:
        if option not in SEND_OPTIONS:
            raise ValueError(f"no send option {option!r}{suggestion(option, SEND_OPTIONS)}")
        if option in _OF_ONE_SENDING:
            raise ValueError(f"{option} applies to a single send, but an entry is sent repeatedly")
    return check_send_options(task, found)


def _missed(value: Any) -> tuple[Missed, float]:
    if value in ("run_once", "run_all"):
        return value, 0.0
    match = _SKIP.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("must be run_once, run_all, or skip(N) with a number of seconds")
    # A busy machine or a takeover alone can delay a task by up to a second.
    if float(match[1]) < 1:
        raise ValueError("skip(N): N must be at least 1 second")
    return "skip", float(match[1])


def _overlap(value: Any) -> Overlap:
    if value not in _OVERLAPS:
        raise ValueError(f"must be one of {', '.join(_OVERLAPS)}")
    found: Overlap = value
    return found


def _seconds(value: Any) -> float:
    if isinstance(value, timedelta):
        value = value.total_seconds()
    found: float = validators.seconds().accept(value)
    return found


def _moment(value: Any, zone: tzinfo) -> datetime:
    """Read a time; without an offset, it is a wall-clock time in the entry's zone."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError("is not an ISO 8601 time, such as 2031-01-02T03:04") from None
    if not isinstance(value, datetime):
        raise ValueError("must be a datetime, or text in ISO 8601")
    return (value if value.tzinfo is not None else value.replace(tzinfo=zone)).astimezone(UTC)


# --- as JSON -------------------------------------------------------------------------------------


def write_entry(name: str, given: Mapping[str, Any], zone: tzinfo) -> str:
    """Check an entry and return it as the JSON that the server stores.

    Raises:
        ConfigError: the entry is wrong, or its schedule, arguments or options have no JSON form.
    """
    entry = make_entry(name, given, zone)
    fields: dict[str, Any] = {each: value for each, value in given.items() if value is not None}
    fields.pop("relative", None)
    fields["task"] = entry.task
    fields["schedule"] = _schedule_as_json(name, entry.schedule)
    fields["timezone"] = str(entry.zone)
    for each, moment in (("start", entry.start), ("end", entry.end)):
        if moment is not None:
            fields[each] = moment.isoformat()
    if "jitter" in fields:
        fields["jitter"] = entry.jitter_s
    try:
        text = json.dumps(fields)
    except (TypeError, ValueError) as exc:
        reason = f"an entry added at run time must be JSON: {exc}"
        raise ConfigError([Problem(f"beat_schedule[{name!r}]", name, reason)]) from None
    # Check that other beats will be able to read the entry.
    read_entry(name, text, zone)
    return text


def _schedule_as_json(name: str, plan: BaseSchedule) -> dict[str, Any]:
    if isinstance(plan, crontab):
        return {"crontab": plan.text}
    if type(plan) is schedule:
        return {"every": plan.seconds, "relative": plan.relative}
    reason = "your own schedule class can be used only in the code, in beat_schedule"
    raise ConfigError([Problem(f"beat_schedule[{name!r}].schedule", plan, reason)])


def read_entry(name: str, text: str, zone: tzinfo) -> ScheduleEntry:
    """Read an entry from the server.

    Raises:
        ConfigError: the text is not a valid entry.
    """
    try:
        given = json.loads(text)
    except ValueError:
        given = text
    return make_entry(name, given, zone)
