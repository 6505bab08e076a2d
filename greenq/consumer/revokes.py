"""Revokes: keeps revoked tasks on the server, and reads them back whenever the worker connects."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from greenq.bootsteps.blueprint import StartStopPart
from greenq.errors import AccessRefused, OperationalError, ServerError
from greenq.utils.log import OutageLog

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.execution.revoked import Revoked
    from greenq.transport.revokes import RevokeStore

_log = logging.getLogger(__name__)


class Revokes(StartStopPart):
    """Shares revoked tasks with workers that start later, through the server.

    A revocation therefore stays in force even after all workers that received it have ended. A
    revocation published while this worker had no connection also reaches it.
    """

    name = "Revokes"
    requires = ("Connection",)

    def __init__(
        self,
        store: RevokeStore,
        revoked: Revoked,
        *,
        spawn_soon: Callable[..., None],
        discard: Callable[[], object],
    ) -> None:
        """Synchronize `revoked` with `store`.

        Args:
            store: the revoked tasks on the server.
            revoked: the revoked tasks that this worker knows.
            spawn_soon: starts a greenlet; any thread may call it.
            discard: discards waiting tasks that are revoked.
        """
        self._store = store
        self._revoked = revoked
        self._spawn_soon = spawn_soon
        self._discard = discard
        self._outage = OutageLog(_log)
        self._is_writing = False
        revoked.on_new = self._soon

    def start(self) -> None:
        """Read new revocations from the server, and write this worker's new ones. Switches: yes.

        Raises:
            OperationalError: the server cannot be reached.
        """
        try:
            for texts, age_s in self._store.read_new():
                self._revoked.put(texts, age_s=age_s)
            self._store_new()
        except (AccessRefused, ServerError) as exc:
            # A missing permission, or a server out of memory, must not keep tasks waiting.
            self._failed(exc)
        self._discard()

    def _soon(self) -> None:
        """Write new revocations soon; any thread may call this."""
        if not self._is_writing:
            self._is_writing = True
            self._spawn_soon(self._write, name="revokes")

    def _write(self) -> None:
        self._is_writing = False
        try:
            self._store_new()
        except OperationalError as exc:
            # The revocations are written when the worker connects again, or with the next
            # revocation.
            self._failed(exc)

    def _store_new(self) -> None:
        new = self._revoked.take_new()
        try:
            self._store.add(new)
        except OperationalError:
            self._revoked.return_new(new)
            raise
        self._outage.recovered("revoked tasks are kept on the server again")

    def _failed(self, exc: OperationalError) -> None:
        self._outage.failed("revoked tasks are not kept on the server", exc)
