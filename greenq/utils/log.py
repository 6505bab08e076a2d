"""Logging, set up only for the command line; a task's log lines contain the task's name and id.

Nothing here takes effect before `setup` is called, so a program that only sends keeps its own
logging.
"""

from __future__ import annotations

import _thread
import errno
import fcntl
import io
import json
import logging
import logging.handlers
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol, TextIO

from greenq.errors import ConfigError, OperationalError, Problem, ServerError
from greenq.protocol.text import printable
from greenq.protocol.text import record as as_record

if TYPE_CHECKING:
    from io import TextIOWrapper
    from pathlib import Path

FORMAT: Final = "[%(asctime)s: %(levelname)s/%(processName)s] %(message)s"
TASK_FORMAT: Final = (
    "[%(asctime)s: %(levelname)s/%(processName)s] %(task_name)s[%(task_id)s]: %(message)s"
)
LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """The format of log lines.

    Attributes:
        format, task_format: format strings for `logging`, for lines from outside and inside tasks.
        date_format, task_date_format: the formats of times in these lines; None means the default
            of `logging`.
        json: write each line as a JSON object instead.
    """

    format: str = FORMAT
    task_format: str = TASK_FORMAT
    date_format: str | None = None
    task_date_format: str | None = None
    json: bool = False


class Running(Protocol):
    """The data about a task in a log line."""

    @property
    def task(self) -> str:
        """The task's name."""

    @property
    def id(self) -> str:
        """The execution's id."""

    @property
    def root_id(self) -> str | None:
        """The id of the first task of its workflow."""


# The task running in this greenlet or thread; `greenq.sending.context.current_context` is the same
# variable.
task_log_context: ContextVar[Running | None] = ContextVar("greenq_task", default=None)

_PLAIN: Final = "\033[0m"
_COLORS: Final = {
    logging.DEBUG: "\033[34m",
    logging.WARNING: "\033[33m",
    logging.ERROR: "\033[31m",
    logging.CRITICAL: "\033[35m",
}


_PLAIN_STYLE: Final = Style()

_OWN_FD: Final = 100


def setup(
    level: str,
    *,
    logfile: str | Path | None = None,
    color: bool | None = None,
    stream: TextIO | None = None,
    hijack_root: bool = True,
    style: Style = _PLAIN_STYLE,
) -> None:
    """Send the log to `logfile` or, if that is None, to `stream` (by default, standard error).

    Args:
        level: the lowest level that is logged, in upper or lower case.
        logfile: the file that lines are appended to; its directory must exist.
        color: whether to colour lines; None means only if the log goes to a terminal and NO_COLOR
            is not set.
        stream: where the log goes if `logfile` is None.
        hijack_root: whether to replace the root logger's existing handlers.
        style: the format of the lines.

    Raises:
        ConfigError: there is no such level, or the file cannot be written.
    """
    if level.upper() not in LEVELS:
        raise ConfigError([Problem("loglevel", level, "must be one of " + ", ".join(LEVELS))])
    root = logging.getLogger()
    if hijack_root or not root.handlers:
        handler = _handler(logfile, stream or sys.stderr, color, style)
        for old in root.handlers[:]:
            root.removeHandler(old)
            old.close()
        root.addHandler(handler)
    root.setLevel(level.upper())


# The parent of the task loggers. It has no handlers, but receivers of after_setup_task_logger can
# add some. It is not below ``greenq``, since the level of ``greenq`` is for greenq's own lines.
task_logger: Final = logging.getLogger("greenq_task")


def get_task_logger(name: str) -> logging.Logger:
    """Return the logger `name`; its lines from a task contain the task's name and id.

    So do the lines of any other logger; this function exists for compatibility with Celery. The
    logger's records also pass through `task_logger`, unless the logger already has a parent other
    than the root logger.
    """
    logger = logging.getLogger(name)
    if logger.parent is logging.root and logger is not task_logger:
        logger.parent = task_logger
    return logger


def wants_color(stream: TextIO, wanted: bool | None = None) -> bool:
    """Return whether to colour output to `stream`.

    If `wanted` is None, output is coloured if it goes to a terminal and NO_COLOR is not set.
    """
    if wanted is not None:
        return wanted
    return stream.isatty() and not os.environ.get("NO_COLOR")


def _own(stream: TextIO) -> TextIO:
    """Return another stream to the same file or, if that is impossible, `stream` itself."""
    try:
        # Choose a high number, so that a task that closes the first few descriptors does not close
        # this one.
        number = fcntl.fcntl(stream.fileno(), fcntl.F_DUPFD_CLOEXEC, _OWN_FD)
    except (OSError, ValueError):
        # The stream is closed, or has no descriptor.
        return stream
    return open(number, "w", encoding=stream.encoding, errors=stream.errors, buffering=1)


def _handler(
    logfile: str | Path | None, stream: TextIO, color: bool | None, style: Style
) -> logging.Handler:
    handler: logging.Handler
    if logfile is None:
        handler = _OwnStream(stream)
        colored = wants_color(stream, color)
    else:
        try:
            handler = _File(logfile, encoding="utf-8")
        except OSError as error:
            reason = f"cannot be written: {error.strerror}"
            raise ConfigError([Problem("logfile", str(logfile), reason)]) from error
        colored = bool(color)
    handler.addFilter(add_task)
    handler.setFormatter(_JsonFormatter() if style.json else _Formatter(style, colored=colored))
    return handler


def add_task(record: logging.LogRecord) -> bool:
    """Give `record` the fields task_name, task_id and root_id.

    The function can also be used as a filter for other handlers.
    """
    running = task_log_context.get()
    record.task_name = None if running is None else printable(running.task)
    record.task_id = None if running is None else printable(running.id)
    record.root_id = None if running is None else printable(running.root_id or running.id)
    return True


def keep_going() -> None:
    """Keep errors in log handlers from stopping greenq's own code or losing a line.

    A task may close the log's stream or add a handler that raises. Other loggers still raise errors
    in the code that uses them.
    """
    global _stderr
    _stderr = _identity(2)
    for handler in (*logging.root.handlers, *logging.getLogger("greenq").handlers):
        # The watchdog thread also logs. If an operating system thread holds one of gevent's locks,
        # a greenlet that waits for the lock may wait forever. So use a real lock, which is held
        # only while a line is written.
        handler.lock = _thread.RLock()
    for name, logger in list(logging.root.manager.loggerDict.items()):
        own = name == "greenq" or name.startswith("greenq.")
        if own and type(logger) is logging.Logger:
            logger.__class__ = _Unfailing


class _Unfailing(logging.Logger):
    """A logger whose handlers may raise; a record that they cannot write goes to descriptor 2."""

    def handle(self, record: logging.LogRecord) -> None:
        """Pass a record to the handlers."""
        try:
            super().handle(record)
        except Exception as exc:
            _write_plainly(record, exc)


def _write_plainly(record: logging.LogRecord, error: BaseException) -> None:
    """Write a record to file descriptor 2, because a handler could not write it.

    Nothing is written if a task has closed the descriptor, since its number may have been reused,
    for example by a connection.
    """
    if _identity(2) != _stderr:
        return
    try:
        text = _plain.format(record)
    except Exception:
        text = f"{record.levelname}: {record.msg!r} (cannot be formatted)"
    reason = f"[{type(error).__name__} in a log handler]"
    with suppress(OSError):
        os.write(2, f"{text} {reason}\n".encode(errors="backslashreplace"))


def _identity(number: int) -> tuple[int, int] | None:
    """Return the identity of the file behind a descriptor; None if it is closed."""
    try:
        facts = os.fstat(number)
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


# The file behind descriptor 2 at startup; `keep_going` updates it.
_stderr = _identity(2)


class _Keeping(logging.Handler):
    """A handler whose errors never reach the caller and never lose a line."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        """Report the error as logging does; if that fails, still write the record."""
        error = sys.exception()
        if error is not None and getattr(getattr(self, "stream", None), "closed", False):
            _write_plainly(record, error)
            return
        try:
            with _undirected():
                super().handleError(record)
        except Exception as exc:
            _write_plainly(record, exc)


class _OwnStream(_Keeping, logging.StreamHandler[TextIO]):
    """A stream with its own descriptor, so that it stays open when a task closes `given`."""

    def __init__(self, given: TextIO) -> None:
        super().__init__(_own(given))
        self._is_own = self.stream is not given

    def close(self) -> None:
        super().close()
        if self._is_own:
            self.stream.close()


class _File(_Keeping, logging.handlers.WatchedFileHandler):
    """A file that may be renamed or deleted, for example by rotation; the next line reopens it.

    A link is followed only if the user or root created it, as with ``/dev/stdout``: another user's
    link could redirect the log to any of this user's files.
    """

    def _open(self) -> TextIOWrapper:
        with suppress(FileNotFoundError):
            facts = os.lstat(self.baseFilename)
            if stat.S_ISLNK(facts.st_mode) and facts.st_uid not in (0, os.geteuid()):
                reason = f"it is a link that belongs to user {facts.st_uid}"
                raise PermissionError(errno.EPERM, reason, self.baseFilename)
        return super()._open()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; no failure reaches the caller."""
        try:
            super().emit(record)
        except Exception:
            # The directory has been removed, or is no longer writable.
            self.handleError(record)


class _Formatter(logging.Formatter):
    """Formats records so that no part of one can imitate another record or control a terminal."""

    def __init__(self, style: Style = _PLAIN_STYLE, *, colored: bool) -> None:
        super().__init__(style.format, style.date_format)
        self._colored = colored
        self._of_tasks = logging.Formatter(style.task_format, style.task_date_format)

    def format(self, record: logging.LogRecord) -> str:
        # greenq's own lines about a task already name the task.
        own = record.name == "greenq" or record.name.startswith("greenq.")
        named = getattr(record, "task_id", None) is not None and not own
        line = as_record(self._of_tasks.format(record) if named else super().format(record))
        color = _COLORS.get(record.levelno) if self._colored else None
        return f"{color}{line}{_PLAIN}" if color else line


_plain = _Formatter(colored=False)


class _JsonFormatter(logging.Formatter):
    """Formats each record as one JSON object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields: dict[str, object] = {
            "time": at.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
            **_task_of(record),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            fields["stack"] = self.formatStack(record.stack_info)
        own = {name: value for name, value in vars(record).items() if name not in _OF_RECORDS}
        return json.dumps(fields | own, default=repr)


# The attributes that logging and the filter set on every record; any others were passed as `extra`.
_OF_RECORDS: Final = frozenset(
    {
        *vars(logging.makeLogRecord({})),
        *("message", "asctime", "task_name", "task_id", "root_id", "taskName"),
    }
)


def _task_of(record: logging.LogRecord) -> dict[str, str]:
    """Return the name and ids of a record's task: the running task, or a task in the arguments."""
    task_id = getattr(record, "task_id", None)
    if task_id is not None:
        return {
            "task_name": getattr(record, "task_name", ""),
            "task_id": task_id,
            "root_id": getattr(record, "root_id", task_id),
        }
    # For example, the worker logs "Task %s received" outside the context of the request.
    for argument in record.args if isinstance(record.args, tuple) else ():
        found: Any = getattr(argument, "message", None)
        if hasattr(found, "root_id") and hasattr(found, "task"):
            root_id = found.root_id or found.id
            return {"task_name": found.task, "task_id": found.id, "root_id": root_id}
    return {}


# --- standard output and standard error ---

# Text without a line ending that is longer than this is logged in pieces.
_MOST_CHARS: Final = 8192


class Redirected(io.TextIOBase):
    """Replaces sys.stdout or sys.stderr, and logs each line written to it.

    The log line names the task that wrote the text. Text without a line ending is held back until a
    line ending follows, another task writes, or `flush` is called.
    """

    def __init__(self, name: str, level: int, original: TextIO) -> None:
        """Log as ``greenq_redirected.<name>``; errors of the log itself go to `original`."""
        self._log = logging.getLogger(f"greenq_redirected.{name}")
        self._log.__class__ = _Unfailing
        self._level = level
        self._original = original
        # The text waiting for its line ending, and its writer. The lock is a real one, since tasks
        # may have threads; no code waits while it holds the lock.
        self._text = ""
        self._running: Running | None = None
        self._lock = _thread.RLock()
        # The greenlets and threads whose lines are being logged at the moment.
        self._busy: set[int] = set()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the original stream."""
        return self._original.encoding

    @property
    def buffer(self) -> object:
        """The buffer of the original stream, since bytes are not redirected."""
        return self._original.buffer

    def fileno(self) -> int:
        """Return the descriptor of the original stream, for child processes."""
        return self._original.fileno()

    def isatty(self) -> bool:
        """Return False, since log lines should have no colours."""
        return False

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, text: str) -> int:
        """Log the lines of `text`."""
        if _thread.get_ident() in self._busy:
            # A handler of the log is writing to the stream that is being logged.
            return self._original.write(text)
        for line, running in self._add(text, task_log_context.get()):
            self._emit(line, running)
        return len(text)

    def flush(self) -> None:
        """Log the text that is waiting for its line ending."""
        with self._lock:
            text, running = self._text, self._running
            self._text, self._running = "", None
        self._emit(text, running)

    def close(self) -> None:
        """Log the waiting text, but stay open, since other tasks use the same stream."""
        self.flush()

    @contextmanager
    def bypassed(self) -> Iterator[None]:
        """During the block, send this greenlet's or thread's text to the original stream."""
        ident = _thread.get_ident()
        is_outermost = ident not in self._busy
        self._busy.add(ident)
        try:
            yield
        finally:
            if is_outermost:
                self._busy.discard(ident)

    def _add(self, text: str, running: Running | None) -> list[tuple[str, Running | None]]:
        """Add text that `running` writes; return the complete lines with their writers.

        If another writer's text is still waiting for its line ending, that text counts as complete.
        """
        with self._lock:
            complete: list[tuple[str, Running | None]] = []
            if self._text and running is not self._running:
                complete.append((self._text, self._running))
                self._text = ""
            *lines, rest = (self._text + text).split("\n")
            if len(rest) > _MOST_CHARS:
                lines, rest = [*lines, rest], ""
            # Do not keep a reference to a task that has ended.
            self._text, self._running = rest, running if rest else None
        return complete + [(line, running) for line in lines]

    def _emit(self, line: str, running: Running | None) -> None:
        line = line.rstrip()
        if not line:
            return
        token = task_log_context.set(running)
        try:
            with self.bypassed():
                self._log.log(self._level, "%s", line)
        finally:
            task_log_context.reset(token)


def _undirected() -> AbstractContextManager[None]:
    """Return a context manager that keeps text written to sys.stderr out of the log."""
    return sys.stderr.bypassed() if isinstance(sys.stderr, Redirected) else nullcontext()


@contextmanager
def redirect(level: str) -> Iterator[None]:
    """During the block, log text written to sys.stdout and sys.stderr at `level`."""
    number = logging.getLevelNamesMapping()[level]
    before = sys.stdout, sys.stderr
    redirected = tuple(
        Redirected(name, number, stream)
        for name, stream in zip(("stdout", "stderr"), before, strict=True)
    )
    sys.stdout, sys.stderr = redirected
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for each in redirected:
            each.flush()


# --- outages ---


class OutageLog:
    """Logs when an outage begins and ends, for a part that keeps retrying.

    Each kind of error is logged once per outage; repetitions are logged at DEBUG.
    """

    def __init__(self, log: logging.Logger) -> None:
        """Write to `log`."""
        self._log = log
        self._said: set[str] = set()

    def failed(self, text: str, exc: OperationalError) -> None:
        """Log that `exc` was raised, if its kind is new; `text` states the consequence."""
        kind = exc.reply.split(" ", 1)[0] if isinstance(exc, ServerError) else type(exc).__name__
        if kind in self._said:
            self._log.debug("%s: %s", text, exc)
        else:
            self._said.add(kind)
            self._log.warning("%s: %s", text, exc)

    def recovered(self, text: str) -> None:
        """Log that the outage is over, if there was one."""
        if self._said:
            self._said.clear()
            self._log.info("%s", text)


_MINUTE_S: Final = 60.0


class Repeated:
    """Limits log lines about data from outside: a few of each kind, then only their number.

    A kind is a line's text before formatting, so the code limits the number of kinds. The number of
    lines not logged is logged with the first line of the same kind after that minute.
    """

    def __init__(
        self,
        log: logging.Logger,
        *,
        at_once: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Write to `log` at most `at_once` lines of each kind a minute."""
        self._log = log
        self._at_once = at_once
        self._clock = clock
        # For each kind: when its current minute began, and the number of lines since.
        self._minutes: dict[str, tuple[float, int]] = {}

    def log(self, text: str, *arguments: object, level: int = logging.WARNING) -> None:
        """Log a line, or merely count it."""
        now_s = self._clock()
        began_s, count = self._minutes.get(text, (now_s, 0))
        skipped = 0
        if now_s - began_s >= _MINUTE_S:
            skipped = max(0, count - self._at_once)
            began_s, count = now_s, 0
        self._minutes[text] = began_s, count + 1
        if count >= self._at_once:
            self._log.debug(text, *arguments)
        elif skipped:
            self._log.log(level, text + " (and %d more of these since the last one)",
                *arguments, skipped)  # fmt: skip
        else:
            self._log.log(level, text, *arguments)
