"""Tasks for the example project beside its own: they wait, break things and leave things behind."""

from __future__ import annotations

import contextvars
import threading
from typing import Any

from django.db import connection, transaction
from django.utils import translation

from greenq import shared_task

_local = threading.local()
_variable: contextvars.ContextVar[str | None] = contextvars.ContextVar("variable", default=None)


@shared_task(name="extra.sleep")
def sleep(seconds: float) -> int:
    """Wait within the database."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(%s), pg_backend_pid()", [seconds])
        return int(cursor.fetchone()[1])


@shared_task(name="extra.leave")
def leave(tenant: str) -> None:
    """Leave behind whatever can be left."""
    _local.tenant = tenant
    _variable.set(tenant)
    translation.activate("de")
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('shop.tenant', %s, false)", [tenant])
    transaction.set_autocommit(False)


@shared_task(name="extra.look")
def look() -> list[Any]:
    """Return what is there of somebody else's."""
    found = [getattr(_local, "tenant", None), _variable.get()]
    found.append(translation.get_language() if translation.get_language() != "en-us" else None)
    if not transaction.get_autocommit():
        found.append("no autocommit")
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('shop.tenant', true)")
        found.append(cursor.fetchone()[0] or None)
    return [value for value in found if value is not None]


@shared_task(name="extra.broken")
def broken() -> None:
    """Have the server end this task's own connection, as a restart of it would."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")


@shared_task(name="extra.in_atomic")
def in_atomic() -> None:
    """End in the middle of a transaction that nobody ends."""
    transaction.atomic().__enter__()
    with connection.cursor() as cursor:
        cursor.execute("UPDATE orders_product SET in_stock = 99")
