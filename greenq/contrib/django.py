"""Django: set up before the task modules are imported, and nothing of it left open by a task.

`greenq.app` imports this module, and it Django, where DJANGO_SETTINGS_MODULE names a project's
settings and Django is installed; nothing else does.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import django
from django.apps import apps
from django.core.cache import close_caches
from django.db import connections, transaction

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.app import Greenq

_log = logging.getLogger(__name__)


def set_up(app: Greenq) -> None:
    """Load the project's settings and INSTALLED_APPS, and have tasks leave no connection open.

    A second call does nothing.
    """
    if not apps.ready:
        _set_up_django()
    if close_connections not in app.task_end_hooks:
        app.on_task_end(close_connections)


def _set_up_django() -> None:
    """Do it; what Django's LOGGING does not name, it silences, but greenq's loggers speak on."""
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
    """Make a call when the open transaction commits, never if it rolls back; without one, now."""
    transaction.on_commit(call)


def close_connections() -> None:
    """Close what the running task has opened: connections to databases, and those of caches.

    Each greenlet has its own. Whatever CONN_MAX_AGE says, none is kept for the next task: a pool of
    five hundred greenlets would keep five hundred. With Django's own pool, closing gives the
    connection back to that.
    """
    for connection in connections.all(initialized_only=True):
        _close(connection)
    close_caches()


def _close(connection: Any) -> None:
    try:
        connection.close()
    except Exception:
        # A broken connection is as good as a closed one, and the task has its outcome.
        name = connection.alias
        _log.warning("a connection to the database %r could not be closed", name, exc_info=True)
    if connection.in_atomic_block or connection.connection is not None:
        # The next task of this greenlet starts with one that has no transaction to end.
        del connections[connection.alias]
