"""StateDB: a file that keeps revoked tasks and the cluster's clock across restarts of the worker.

The file is JSON. It is replaced as a whole: a new file is written under another name, synced to
disk, and renamed, so a crash leaves either the old file or the new one.
"""

from __future__ import annotations

import dbm
import json
import logging
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from greenq.bootsteps.blueprint import StartStopPart
from greenq.errors import ConfigError, Problem
from greenq.hub import in_thread, spawn
from greenq.protocol.limits import CLOCK, KEY

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from greenq.execution.state import WorkerState
    from greenq.timer import Timer, TimerEntry

_log = logging.getLogger(__name__)

# The interval between checks for changes; the clock alone is written less often.
_LOOK_S: Final = 5.0
_CLOCK_EVERY_S: Final = 60.0

# A file with 50,000 ids and as many stamps is smaller than this.
_MOST_BYTES: Final = 64 * 1024 * 1024
_FORMAT: Final = "greenq.state"
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Saved:
    """The contents of the file.

    Attributes:
        clock: the logical clock.
        revoked: ids, or pairs of a stamp's name and value, each with its Unix time; oldest first.
    """

    clock: int = 0
    revoked: tuple[tuple[tuple[str, ...], float], ...] = ()


def save(path: Path | str, saved: Saved) -> None:
    """Replace the file with one that contains `saved`.

    Raises:
        OSError: the file cannot be written; the old file is unchanged.
    """
    text = json.dumps(
        {
            "format": _FORMAT,
            "version": _VERSION,
            "clock": saved.clock,
            "revoked": [[*texts, round(at_s, 3)] for texts, at_s in saved.revoked],
        }
    )
    new = f"{path}.new"
    number = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with open(number, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(number)
    os.replace(new, path)
    # The directory must also be synced, since its entry now refers to another file.
    folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load(path: Path | str) -> Saved:
    """Read the file; a missing or empty file counts as an empty state.

    Raises:
        ConfigError: the file cannot be read, or `save` did not write it.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        if _is_shelve(path):
            # The database may be in files with additional suffixes, such as .db.
            raise _problem(path, _CELERYS) from None
        return Saved()
    except OSError as exc:
        raise _problem(path, f"cannot be read: {exc.strerror}") from exc
    if not content:
        return Saved()
    try:
        if len(content) > _MOST_BYTES:
            raise ValueError("it is too large")
        return _parse(json.loads(content))
    except (ValueError, TypeError, KeyError, RecursionError) as exc:
        raise _problem(path, _CELERYS if _is_shelve(path) else _DAMAGED) from exc


def _parse(found: Any) -> Saved:
    """Check and convert the contents that `save` has written.

    Raises:
        ValueError, TypeError, KeyError: `save` did not write it.
    """
    if (
        found["format"] != _FORMAT
        or found["version"] != _VERSION
        or not CLOCK.takes(found["clock"])
    ):
        raise ValueError("another format")
    revoked = tuple((tuple(texts), float(at_s)) for *texts, at_s in found["revoked"])
    if not all(1 <= len(texts) <= 2 and all(map(KEY.takes, texts)) for texts, _at_s in revoked):
        raise ValueError("no ids")
    return Saved(found["clock"], revoked)


_CELERYS: Final = (
    "is Celery's state file (a shelve of pickles), which greenq does not read, since loading "
    "one can run any code: name another file"
)
_DAMAGED: Final = "was not written by greenq, or is damaged: name another file, or delete this one"


def _is_shelve(path: Path | str) -> bool:
    """Return whether a file is a database of Python's dbm, as a shelve is."""
    try:
        return bool(dbm.whichdb(os.fspath(path)))
    except Exception:
        # `whichdb` fails on some files that are not databases at all.
        return False


def _problem(path: Path | str, reason: str) -> ConfigError:
    return ConfigError([Problem("worker_state_db", str(path), reason)])


class StateDB(StartStopPart):
    """Keeps the revoked tasks and the clock of a worker in a file; see the module's docstring."""

    name = "StateDB"
    requires = ("Timer",)

    def __init__(
        self,
        path: str,
        state: WorkerState,
        timer: Timer,
        *,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        """Read the file into `state`.

        Raises:
            ConfigError: the file cannot be read, or greenq did not write it.
        """
        # The path is made absolute, since the app may change the working directory.
        self.path = os.path.abspath(path)
        self._state, self._timer, self._now_s = state, timer, now_s
        self._entry: TimerEntry | None = None
        self._is_writing = False
        self._failure = ""
        saved, now = load(self.path), now_s()
        for texts, at_s in saved.revoked:
            state.revoked.put(texts, age_s=max(0.0, now - at_s))
        if saved.clock:
            state.clock.adjust(saved.clock)
        self._written = (-1, saved.clock)
        self._written_s = now

    def start(self) -> None:
        """Write the file now, and then whenever something has changed.

        Raises:
            ConfigError: the file cannot be written.
        """
        try:
            in_thread(save, self.path, self._content())
        except OSError as exc:
            raise _problem(self.path, f"cannot be written: {exc.strerror}") from exc
        self._note()
        self._entry = self._timer.call_repeatedly(_LOOK_S, self._look)

    def stop(self) -> None:
        """Write the file one last time. Switches: yes."""
        if self._entry is not None:
            self._entry.cancel()
            self._entry = None
            self._write()

    def info(self) -> dict[str, object]:
        """Return the file's path."""
        return {"path": self.path}

    def _look(self) -> None:
        changes, clock = self._written
        state = self._state
        is_late = self._now_s() - self._written_s >= _CLOCK_EVERY_S
        is_new = state.revoked.changes != changes or (is_late and state.clock.value != clock)
        if is_new and not self._is_writing:
            self._is_writing = True
            spawn(self._write, name="statedb")

    def _write(self) -> None:
        """Write the file; log a failure once. Switches: yes."""
        try:
            content = self._content()
            self._note()
            in_thread(save, self.path, content)
        except OSError as exc:
            self._written = (-1, -1)
            if self._failure != str(exc):
                self._failure = str(exc)
                _log.warning("%s; a restart may forget revoked tasks", exc)
        else:
            self._failure = ""
        finally:
            self._is_writing = False

    def _note(self) -> None:
        self._written = (self._state.revoked.changes, self._state.clock.value)
        self._written_s = self._now_s()

    def _content(self) -> Saved:
        now, state = self._now_s(), self._state
        aged = sorted(state.revoked.aged(), key=lambda each: -each[1])
        return Saved(state.clock.value, tuple((texts, now - age_s) for texts, age_s in aged))
