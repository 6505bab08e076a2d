"""Django: set it up before task modules are imported, and close connections that tasks leave open.

greenq imports this module, and with it Django, only if DJANGO_SETTINGS_MODULE names a project's
settings and Django is installed.
"""

from __future__ import annotations

import functools
import logging
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import django
from django.apps import apps
from django.core.cache import close_caches
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from greenq.sending.context import current_context

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.app import Greenq

_log = logging.getLogger(__name__)

# Parts of the error texts of databases that have no connections left. The text is the only clue,
# since psycopg has no error code for an error while connecting.
_FULL = ("too many clients", "too many connections", "connection slots are reserved",
         "no more connections allowed")  # fmt: skip

# How long a task waits for a connection in total, and the longest interval between its attempts. A
# task of the same worker that closes a connection wakes a waiting task earlier.
_PATIENCE_S = 60.0
_LOOK_AGAIN_S = 0.25

# The shortest time between warnings about a full database.
_WARN_EVERY_S = 60.0


def set_up(app: Greenq) -> None:
    """Load the project's settings and INSTALLED_APPS; close each task's connections when it ends.

    A second call does nothing.
    """
    if not apps.ready:
        _set_up_django()
    if close_connections not in app.task_end_hooks:
        app.on_task_end(close_connections)
    if not hasattr(BaseDatabaseWrapper.connect, "waits"):
        _wait_when_full()


def _set_up_django() -> None:
    """Set up Django; re-enable greenq's loggers, which LOGGING disables if it omits them."""
    loggers = list(logging.Logger.manager.loggerDict)
    own = [name for name in loggers if name == "greenq" or name.startswith("greenq.")]
    spoke = [name for name in own if not logging.getLogger(name).disabled]
    django.setup()
    for name in spoke:
        logging.getLogger(name).disabled = False


def packages() -> list[str]:
    """Return the packages of INSTALLED_APPS, in their order."""
    return [config.name for config in apps.get_app_configs()]


def on_commit(call: Callable[[], object]) -> None:
    """Call `call` when the open transaction commits, or immediately if there is none."""
    transaction.on_commit(call)


def close_connections() -> None:
    """Close the database and cache connections that the running task has opened.

    Each greenlet has its own connections. CONN_MAX_AGE has no effect, because no connection is kept
    for the next task; otherwise, a pool of five hundred greenlets would keep five hundred
    connections. With Django's own connection pool, closing a connection returns it to the pool.
    """
    close_caches()
    ident = threading.get_ident()
    # Merely reading Django's connections would leave values in this greenlet's locals.
    if ident in _users:
        _users.discard(ident)
        for connection in connections.all(initialized_only=True):
            _close(connection)


def _close(connection: Any) -> None:
    try:
        connection.close()
    except Exception:
        # Only log the error: a broken connection is as good as closed, and the task's outcome is
        # already known.
        name = connection.alias
        _log.warning("could not close a connection to the database %r", name, exc_info=True)
    if connection.in_atomic_block or connection.connection is not None:
        # The next task in this greenlet must get a connection without an open transaction.
        del connections[connection.alias]
    _queue.one_is_free()


class _ConnectionQueue:
    """The tasks waiting for a connection to any database, in order of arrival."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._warned_s = 0.0
        self.waiting = 0

    def wait(self) -> None:
        """Wait briefly for a connection to be closed, by a task here or by another process."""
        with self._changed:
            self.waiting += 1
            try:
                self._changed.wait(_LOOK_AGAIN_S)
            finally:
                self.waiting -= 1

    def one_is_free(self) -> None:
        """Wake one waiting task."""
        if self.waiting:
            with self._changed:
                self._changed.notify()

    def warn(self, alias: str) -> None:
        """Log that tasks are waiting for the database `alias`, unless this was logged recently."""
        now_s = time.monotonic()
        if self._warned_s and now_s < self._warned_s + _WARN_EVERY_S:
            return
        self._warned_s = now_s
        _log.warning(
            "the database %r has no connections left, so tasks wait up to %g s for one; run "
            "fewer tasks at once (-c), or share a connection pool (OPTIONS['pool'] in DATABASES)",
            alias,
            _PATIENCE_S,
        )


_queue = _ConnectionQueue()

# The idents of the greenlets whose tasks have opened connections.
_users: set[int] = set()


def _wait_when_full() -> None:
    """Make tasks wait when their database refuses another connection.

    This matters because a worker may try to open hundreds of connections at once.
    """
    connect = BaseDatabaseWrapper.connect

    @functools.wraps(connect)
    def connect_or_wait(self: Any) -> None:
        if current_context.get() is None:
            connect(self)
            return
        until_s = time.monotonic() + _PATIENCE_S
        if _queue.waiting:
            # Tasks that have waited longer go first.
            _queue.wait()
        while True:
            try:
                connect(self)
            except Exception as exc:
                if not _is_full(exc) or time.monotonic() > until_s:
                    raise
                _queue.warn(self.alias)
            else:
                _users.add(threading.get_ident())
                return
            _queue.wait()

    connect_or_wait.waits = True  # type: ignore[attr-defined]
    BaseDatabaseWrapper.connect = connect_or_wait


def _is_full(exc: BaseException) -> bool:
    text = str(exc).lower()
    return any(words in text for words in _FULL)


def warn_of_blocking() -> None:
    """Log a warning if a database driver blocks the whole worker during each query."""
    # `connections.all()` must come first, since it imports the drivers.
    aliases = {each.alias: getattr(each, "Database", None) for each in connections.all()}
    psycopg2 = sys.modules.get("psycopg2")
    if psycopg2 is None or sys.modules["psycopg2.extensions"].get_wait_callback() is not None:
        return
    for alias, driver in aliases.items():
        if driver is psycopg2:
            _log.warning(
                "the database %r is used through psycopg2, which blocks all tasks during each "
                "query: install psycopg 3, or call psycogreen.gevent.patch_psycopg()",
                alias,
            )
