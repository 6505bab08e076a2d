"""`app.periodic`: operations on periodic entries, for programs and the command line."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from greenq.beat.entries import ScheduleEntry, from_us, read_entry, to_us, write_entry
from greenq.beat.scheduler import BeatApp, code_entries, send_options, upcoming
from greenq.errors import GreenqError
from greenq.transport.schedule_store import EntryState, ScheduleStore, read_state
from greenq.utils.suggest import suggestion

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from greenq.protocol.ids import TaskIds
    from greenq.transport.schedule_store import Sent

# A backfill with more due times than this is refused.
MOST_BACKFILL = 10_000


@dataclass(frozen=True, slots=True)
class Listed:
    """An entry and its current state.

    Attributes:
        entry: the entry.
        is_added: True if it was added at run time rather than in the settings or the code.
        state: the last due time that beats have handled, and its run; None until a beat has seen
            the entry.
        paused: who paused it and when; None if it is not paused.
        last_run: how its last finished run ended: ``id``, ``state``, ``sent``, ``took``.
    """

    entry: ScheduleEntry
    is_added: bool
    state: EntryState | None
    paused: dict[str, Any] | None
    last_run: dict[str, Any]

    def next(self, most: int, now: datetime) -> list[datetime]:
        """Return up to `most` of the entry's next due times; none while it is paused."""
        if self.paused is not None:
            return []
        now_us = to_us(now)
        state = self.state or EntryState(now_us, 0, None, 0)
        return [from_us(due) for due in upcoming(self.entry, state, now_us, most)]


class PeriodicTasks:
    """The periodic entries of an app and of its server. Switches: yes.

    Every beat sees a change within a second. An entry from `add` is stored on the server until
    `remove`; it replaces an entry with the same name in the settings or the code.
    """

    def __init__(self, app: BeatApp) -> None:
        """Use the app's server."""
        self._app = app
        self._store = ScheduleStore(app.transport.client, app.transport.keys, app.transport.signer)
        self._zone = ZoneInfo(app.config.task.timezone)

    def entries(self) -> list[Listed]:
        """Return all entries, sorted by name: those in the code and those added at run time.

        Raises:
            ConfigError: an entry is wrong.
            SignatureError: an entry added at run time has no valid signature, and the settings
                require one.
        """
        coded = code_entries(self._app)
        added = {
            name: read_entry(name, self._store.open_entry(name, data), self._zone)
            for name, data in self._store.entries().items()
        }
        states, paused, runs = self._store.states(), self._store.paused(), self._store.runs()
        return [
            Listed(
                entry,
                name in added,
                read_state(states[name]) if name in states else None,
                paused.get(name),
                runs.get(name, {}),
            )
            for name, entry in sorted({**coded, **added}.items())
        ]

    def get(self, name: str) -> Listed:
        """Return one entry.

        Raises:
            GreenqError: there is no entry with this name.
        """
        entries = {each.entry.name: each for each in self.entries()}
        if name not in entries:
            hint = suggestion(name, entries)
            raise GreenqError(f"there is no periodic entry {name!r}{hint}")
        return entries[name]

    def add(self, name: str, task: Any, schedule: Any, **fields: Any) -> None:
        """Add an entry, or replace the one with this name; `fields` are those of ``beat_schedule``.

        Raises:
            ConfigError: a field is wrong, or has no JSON form.
            ValueError: the entry is too large, or there are too many entries.
        """
        text = write_entry(name, {"task": task, "schedule": schedule, **fields}, self._zone)
        self._store.put(name, text)

    def remove(self, name: str) -> bool:
        """Remove an entry that was added at run time; return False if there is no such entry."""
        return self._store.remove(name)

    def pause(self, name: str) -> None:
        """Make all beats stop sending an entry until it is resumed.

        Raises:
            GreenqError: there is no such entry.
        """
        self.get(name)
        by = f"{socket.gethostname()}/{os.getpid()}"
        self._store.pause(name, {"by": by, "at": time.time()})

    def resume(self, name: str) -> bool:
        """Resume a paused entry from now on; return False if it was not paused."""
        return self._store.resume(name)

    def run(self, name: str) -> str:
        """Send an entry's task now, and return the task's id; the due times do not change.

        Raises:
            GreenqError: there is no such entry, or its task could not be sent.
        """
        entry = self.get(name).entry
        options = send_options(self._app, entry)
        return self._app.producer.send(entry.task, entry.args, entry.kwargs, options)

    def due_times(self, name: str, start: datetime, end: datetime) -> list[datetime]:
        """Return an entry's due times from `start` up to `end`.

        Raises:
            GreenqError: there is no such entry, or there are more than 10,000 due times.
        """
        found = list(self._due_times(self.get(name).entry, start, end))
        if len(found) > MOST_BACKFILL:
            raise GreenqError(
                f"entry {name!r} has more than {MOST_BACKFILL:,} due times in this period; choose "
                "a shorter one"
            )
        return found

    def backfill(self, name: str, start: datetime, end: datetime) -> TaskIds:
        """Send an entry's task once for each due time from `start` up to `end`; return the ids.

        Raises:
            GreenqError: there is no such entry, there are too many due times, or not all tasks
                could be sent.
        """
        count = len(self.due_times(name, start, end))
        entry = self.get(name).entry
        calls = ((entry.args, entry.kwargs) for _ in range(count))
        return self._app.producer.send_many(entry.task, calls, send_options(self._app, entry))

    @staticmethod
    def _due_times(entry: ScheduleEntry, start: datetime, end: datetime) -> Iterator[datetime]:
        due = entry.next_due(to_us(start) - 1)
        for _ in range(MOST_BACKFILL + 1):
            if due is None or due >= to_us(end):
                return
            yield from_us(due)
            due = entry.next_due(due)

    def history(self, limit: int = 100) -> list[Sent]:
        """Return the latest sends, newest first; at most 10,000 are kept."""
        return self._store.history(limit)
