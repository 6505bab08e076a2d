"""Replies to ``inspect ping`` for as long as a beat's loop is running."""

from __future__ import annotations

import logging
import socket
import threading
from typing import TYPE_CHECKING, Final

from greenq.errors import ContentDisallowed, DecodeError, OperationalError, SignatureError
from greenq.protocol.mailbox import EXCHANGE, read_request
from greenq.protocol.serialize import accepted
from greenq.transport.mailbox import Mailbox

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.transport.transport import Connected

_log = logging.getLogger(__name__)

# How long to wait for requests each time; a stop is noticed afterwards.
_WAIT_S: Final = 1.0

# The interval between checks that the connection is alive, and between attempts to connect.
_CHECK_S: Final = 10.0

_PONG: Final = {"ok": "pong"}


class Pings(threading.Thread):
    """Answers pings to ``celerybeat@<host>``, the name of Celery's beat; ignores other requests."""

    def __init__(self, app: Connected, is_alive: Callable[[], bool]) -> None:
        """Reply while `is_alive()` is true; no reply means that the beat is not sending."""
        super().__init__(name="pings", daemon=True)
        transport = app.transport
        self.node = f"celerybeat@{socket.gethostname()}"
        self._loop_runs = is_alive
        self._connection = transport.client.connection(pushes=True)
        self._channel = transport.keys.fanout(EXCHANGE)
        self._accept = accepted(app.config.task.accept_content)
        self._clock = app.clock
        self._signer = transport.signer
        self._mailbox = Mailbox(
            transport.client,
            transport.keys,
            accept=app.config.task.accept_content,
            serializer=app.config.task.task_serializer,
            clock=app.clock,
            signer=transport.signer,
        )
        self._ended = threading.Event()

    def run(self) -> None:
        """Answer requests until `stop` is called."""
        while not self._ended.is_set():
            try:
                self._connection.subscribe([self._channel])
                self._answer()
            except OperationalError as exc:
                _log.debug("pings are not answered: %s", exc)
                self._connection.close()
                self._ended.wait(_CHECK_S)
        self._connection.close()

    def stop(self) -> None:
        """Ask the thread to finish."""
        self._ended.set()

    def _answer(self) -> None:
        """Answer requests while the connection is alive."""
        silent_s = 0.0
        while not self._ended.is_set():
            messages = self._connection.messages(_WAIT_S)
            for message in messages:
                self._handle(message.data)
            silent_s = 0.0 if messages else silent_s + _WAIT_S
            if silent_s >= _CHECK_S:
                self._connection.call("PING")
                silent_s = 0.0

    def _handle(self, data: bytes) -> None:
        try:
            if self._signer is not None:
                data = self._signer.open("request", self._channel, data)
            request = read_request(data, self._accept)
        except SignatureError as exc:
            _log.debug("a control request was dropped: %s", exc)
            return
        except (DecodeError, ContentDisallowed) as exc:
            _log.debug("a message that is not a control request was ignored: %s", exc)
            return
        if request.method != "ping" or request.needs_regex or not request.is_for(self.node):
            return
        self._clock.adjust(request.clock)
        if self._loop_runs():
            self._mailbox.reply(request, self.node, _PONG)
