"""Control: receives remote control requests, carries them out and replies."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from greenq.bootsteps.blueprint import StartStopPart
from greenq.errors import (
    ContentDisallowed,
    DecodeError,
    EncodeError,
    OperationalError,
    SignatureError,
)
from greenq.protocol.mailbox import EXCHANGE, NO_REPLY, read_request
from greenq.protocol.serialize import saferepr
from greenq.utils.log import Repeated

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from greenq.protocol.clock import LamportClock
    from greenq.protocol.keys import Keys
    from greenq.protocol.mailbox import ControlRequest
    from greenq.protocol.signer import Signer
    from greenq.transport.client import Connection
    from greenq.transport.mailbox import Mailbox
    from greenq.watchdog.subscriber import Subscriber

_log = logging.getLogger(__name__)

# How long the start waits for the server to confirm the subscription. After that time, the worker
# runs anyway, and subscribes when it can.
_HEARD_S = 2.0


class Commands(Protocol):
    """The remote control commands by name; see `greenq.commands.registry.Panel`."""

    def is_urgent(self, name: str) -> bool:
        """Return whether a command runs without the hub."""

    def changes(self, name: str) -> bool:
        """Return whether a command changes something."""

    def run(self, name: str, worker: Any, arguments: Mapping[str, Any]) -> Any:
        """Run a command on the parts of a worker and return its reply."""


class ControlStep(StartStopPart):
    """Answers requests to this worker, to a group of workers, or to all.

    The hub carries out requests one by one; while it is blocked, the watchdog thread answers those
    that do not need the hub. A faulty request gets an error reply or a log line.
    """

    name = "Control"
    requires = ("Tasks",)

    def __init__(
        self,
        commands: Commands,
        run: Callable[[str, Mapping[str, Any]], Any],
        subscriber: Subscriber,
        mailbox: Mailbox,
        keys: Keys,
        clock: LamportClock,
        *,
        hostname: str,
        accept: frozenset[str],
        accept_pcre: bool = False,
        looks_only: bool = False,
        signer: Signer | None = None,
    ) -> None:
        """Answer requests on behalf of the node `hostname`.

        Args:
            commands: the commands.
            run: runs a command on the worker, given its name and arguments.
            subscriber: receives the requests.
            mailbox: sends the replies.
            keys, clock: those of the worker.
            hostname: the worker's node name.
            accept: the accepted content types of requests.
            accept_pcre: whether requests may select nodes by regular expressions.
            looks_only: whether to refuse commands that change something.
            signer: checks requests; None accepts them unsigned.
        """
        self._commands = commands
        self._run = run
        self._hostname = hostname
        self._subscriber = subscriber
        self._mailbox = mailbox
        self._clock = clock
        self._accept = accept
        self._accept_pcre = accept_pcre
        self._repeated = Repeated(_log)
        self._looks_only = looks_only
        self._signer = signer
        self._channel = keys.fanout(EXCHANGE)
        # The number of malformed or refused requests.
        self.ignored = 0

    def start(self) -> None:
        """Subscribe to requests. Switches: yes."""
        self._subscriber.subscribe(self._channel, self.handle, urgent=self.urgent)
        # A worker that has reported that it is ready must receive the next request.
        self._subscriber.wait_heard(_HEARD_S)

    def stop(self) -> None:
        """Unsubscribe."""
        self._subscriber.unsubscribe(self._channel)

    def handle(self, data: bytes) -> None:
        """Carry out a request if it is for this worker, and reply. Switches: yes."""
        request = self._read(data, counts=True)
        if request is not None and self._is_meant(request):
            self._clock.adjust(request.clock)
            self._answer(request, None)

    def urgent(self, data: bytes) -> Callable[[Connection], object] | None:
        """Return a function that lets the watchdog thread answer; None if only the hub can.

        Requests that are faulty or forged, or that use a regular expression, are left to the hub: a
        slow match must not delay the thread that renews the lease.
        """
        if self._signer is not None and not self._signer.trusts("request", self._channel, data):
            return None
        request = self._read(data)
        if request is None or request.needs_regex or not request.is_for(self._hostname):
            return None
        return partial(self._answer, request) if self._commands.is_urgent(request.method) else None

    def _is_meant(self, request: ControlRequest) -> bool:
        try:
            return request.is_for(self._hostname, accept_pcre=self._accept_pcre)
        except ValueError as exc:
            self.ignored += 1
            self._repeated.log("a control request was refused: %s", exc)
            return False

    def _read(self, data: bytes, *, counts: bool = False) -> ControlRequest | None:
        """Read a request; return None if it cannot be read.

        The watchdog thread may read a request that the hub reads again, so only the hub counts it.
        """
        try:
            if self._signer is not None:
                data = self._signer.open("request", self._channel, data)
            return read_request(data, self._accept)
        except SignatureError as exc:
            self.ignored += 1
            self._repeated.log("a control request was dropped: %s", exc)
            return None
        except (DecodeError, ContentDisallowed) as exc:
            if counts:
                self.ignored += 1
                self._repeated.log("a message that is not a control request was ignored: %s", exc)
            return None

    def _answer(self, request: ControlRequest, connection: Connection | None) -> None:
        _log.debug("control: %.100s(%s)", request.method, saferepr(request.arguments))
        reply = self._carry_out(request, connection)
        if request.reply_to is None or reply is NO_REPLY:
            return
        send = partial(self._mailbox.reply, request, self._hostname, connection=connection)
        try:
            try:
                send(reply)
            except EncodeError as exc:
                send({"error": f"the reply to {request.method} cannot be sent: {exc}"})
        except OperationalError as exc:
            _log.warning("the reply to %s could not be sent: %s", request.method, exc)

    def _carry_out(self, request: ControlRequest, connection: Connection | None) -> Any:
        if self._looks_only and self._commands.changes(request.method):
            return {
                "error": f"{request.method} is refused: this worker answers only inspect commands, "
                "because worker_enable_remote_control is 'inspect'"
            }
        try:
            try:
                return self._run(request.method, request.arguments)
            except RuntimeError as exc:
                if connection is None or "changed size" not in str(exc):
                    raise
                # The hub resumed and changed a table while the watchdog thread was reading it, so
                # run the command again.
                return self._run(request.method, request.arguments)
        except Exception as exc:
            # A command may be user code, so its error goes to the sender of the request. Even
            # converting a user's exception to text may fail.
            text = saferepr(exc)
            if isinstance(exc, LookupError | TypeError | ValueError):
                self._repeated.log("control command %.100s failed: %s", request.method, text)
            else:
                _log.exception("control command %.100s failed: %s", request.method, text)
            return {"error": text}
