"""The mailbox on the server: asks all workers, or some of them, and reads their replies.

requester binds its own list and publishes the request, in one script (lua/ask.lua) that returns
         the number of subscribers; then reads its list until that many have replied
worker   pushes its reply on that list if the requester is still waiting (lua/reply.lua)

The mailbox works the same in threads and in greenlets. Reading blocks on one of the client's pooled
connections.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from greenq.errors import (
    ConnectFailed,
    ConnectionLost,
    OperationalError,
    ProtocolError,
    SignatureError,
)
from greenq.protocol.clock import LamportClock
from greenq.protocol.ids import new_id
from greenq.protocol.keys import binding_member
from greenq.protocol.mailbox import (
    EXCHANGE,
    REPLY_EXCHANGE,
    ControlRequest,
    Reply,
    ReplyTo,
    read_reply,
    write_reply,
    write_request,
)
from greenq.protocol.serialize import accepted
from greenq.transport.client import load_script
from greenq.utils.log import Repeated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from greenq.protocol.keys import Keys
    from greenq.protocol.signer import Signer
    from greenq.transport.client import Client, Connection

_log = logging.getLogger(__name__)

_ASK = load_script("ask")
_REPLY = load_script("reply")

# If no reply arrives for this long, all workers except busy ones have probably replied.
_QUIET_S = 0.05

# How long Celery processes must leave the requester's binding alone. This is Celery's own figure.
_BINDING_KEPT_MS = 3_600_000
# How long replies are kept. Nothing reads the list of a dead requester, and a live requester reads
# a reply within milliseconds.
_REPLY_KEPT_MS = 60_000
# The maximum number of requesters whose bindings are kept, and of waiting replies per requester.
_ASKERS = 1000
_REPLIES = 10_000
# The maximum number of nodes whose replies are accepted.
_NODES = 10_000
# The shortest timeout of a BRPOP: for the server, 0 means no limit.
_LEAST_WAIT_S = 0.001
_MOST_AT_ONCE = 1000

# Log at most one line a minute about data that other programs may push.
_forged = Repeated(_log)

_TWINS = (
    "several workers are named %s, so their replies hide each other: give each its own name with -n"
)


class Mailbox:
    """Remote control over one server. Switches: yes, in all methods."""

    def __init__(
        self,
        client: Client,
        keys: Keys,
        *,
        accept: Iterable[str] = ("json",),
        serializer: str = "json",
        clock: LamportClock | None = None,
        signer: Signer | None = None,
    ) -> None:
        """Use `client`'s server.

        Args:
            client: the workers' server.
            keys: the server's key names.
            accept: serializers and content types accepted in replies.
            serializer: the serializer for requests and replies.
            clock: the app's clock; None creates a new one.
            signer: signs requests and replies, and checks replies; None for neither.
        """
        self._client = client
        self._keys = keys
        self._accept = accepted(accept)
        self._serializer = serializer
        self._clock = clock or LamportClock()
        self._signer = signer

    def ask(
        self,
        method: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        destination: Sequence[str] | None = None,
        pattern: str | None = None,
        matcher: str | None = None,
        timeout_s: float = 1.0,
        limit: int | None = None,
        on_reply: Callable[[str, Any], object] | None = None,
        on_quiet: Callable[[Mapping[str, Any]], bool] | None = None,
    ) -> dict[str, Any]:
        """Send a request and return the replies by node name; empty if no worker replied.

        Return as soon as enough replies have arrived: those of all subscribers, those of all nodes
        named in `destination`, or `limit` replies. Otherwise return after `timeout_s`. This is the
        case with a `pattern`, since the number of matching nodes is unknown, or if a subscriber is
        busy or is not a worker at all.

        Args:
            method: the command's name.
            arguments: the command's keyword arguments.
            destination: the nodes that should carry out the command; None or empty means all.
            pattern: a pattern that node names must match, in the notation given by `matcher`.
            matcher: ``glob`` or ``pcre``.
            timeout_s: how long to wait for replies after publishing the request.
            limit: stop after this many replies.
            on_reply: called with the node name and the reply when each reply arrives. If workers
                share a name, it is called for each of their replies, but only one is returned.
            on_quiet: called once, with the replies so far, when none has arrived for a moment; if
                it returns True, the wait ends.

        Raises:
            EncodeError: an argument cannot be serialized; nothing was sent.
            OperationalError: the server could not be reached, or was lost in the meantime.
        """
        to = ReplyTo(REPLY_EXCHANGE, new_id())
        request = ControlRequest(
            method=method,
            arguments=arguments or {},
            destination=list(destination) if destination else None,
            pattern=pattern,
            matcher=matcher,
            ticket=new_id(),
            reply_to=to,
            clock=self._clock.forward(),
            expires=time.time() + timeout_s,
        )
        text = self._write(request)
        answers: dict[str, Any] = {}
        with self._client.pooled(timeout_s + self._client.call_timeout_s) as connection:
            was_reached, is_lost = True, False
            try:
                subscribed = self._publish(connection, to, text)
                most = min(subscribed, limit or subscribed)
                wanted = frozenset(destination or ())
                may_end = None if on_quiet is None else partial(on_quiet, answers)
                left_s = timeout_s if subscribed else 0
                replies = self._replies(connection, request, to, left_s, may_end)
                # Count replies, not names: two workers may share a name.
                for count, reply in enumerate(replies, start=1):
                    for node, answer in islice(reply.replies.items(), _NODES):
                        if node in answers:
                            _log.warning(_TWINS, node)
                        answers[node] = answer
                        if on_reply is not None:
                            on_reply(node, answer)
                    is_enough = count >= most or len(answers) >= _NODES
                    if is_enough or (wanted and wanted <= answers.keys()):
                        break
            except (ConnectFailed, ConnectionLost) as exc:
                # If the server cannot be reached, there is nothing to remove from it. The caller
                # gets this error, so do not log it again.
                was_reached, is_lost = not isinstance(exc, ConnectFailed), True
                raise
            finally:
                if was_reached:
                    self._forget(connection, to, logging.DEBUG if is_lost else logging.WARNING)
        return answers

    def tell(
        self,
        method: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        destination: Sequence[str] | None = None,
        pattern: str | None = None,
        matcher: str | None = None,
    ) -> int:
        """Send a request that needs no reply, and return the number of subscribers.

        Raises:
            EncodeError: an argument cannot be serialized; nothing was sent.
            OperationalError: the server could not be reached.
        """
        request = ControlRequest(
            method=method,
            arguments=arguments or {},
            destination=list(destination) if destination else None,
            pattern=pattern,
            matcher=matcher,
            clock=self._clock.forward(),
        )
        subscribed: int = self._client.call(
            "PUBLISH", self._keys.fanout(EXCHANGE), self._write(request)
        )
        return subscribed

    def _write(self, request: ControlRequest) -> str | bytes:
        text = write_request(request, serializer=self._serializer)
        if self._signer is None:
            return text
        return self._signer.seal("request", self._keys.fanout(EXCHANGE), text)

    def reply(
        self,
        request: ControlRequest,
        node: str,
        reply: object,
        *,
        connection: Connection | None = None,
    ) -> bool:
        """Reply to a request as the worker `node`; return False if the requester no longer waits.

        Raises:
            EncodeError: the reply cannot be serialized.
            OperationalError: the server could not be reached.
        """
        to = request.reply_to
        if to is None:
            return False
        text: str | bytes = write_reply(
            node,
            reply,
            ticket=request.ticket,
            clock=self._clock.forward(),
            to=to,
            serializer=self._serializer,
        )
        if self._signer is not None:
            text = self._signer.seal("reply", to.queue, text)
        keys = [self._keys.binding(to.exchange), self._keys.queue(to.queue)]
        args = [self._member(to), text, _REPLY_KEPT_MS, _REPLIES]
        run = self._client.script if connection is None else connection.script
        return bool(run(_REPLY, keys, args))

    def _member(self, to: ReplyTo) -> str:
        return binding_member(to.routing_key, "", to.queue, self._keys.sep)

    def _publish(self, connection: Connection, to: ReplyTo, text: str | bytes) -> int:
        """Bind the requester's list, publish its request, and return the number of subscribers."""
        keys = [self._keys.binding(to.exchange), self._keys.binding_deadlines]
        channel = self._keys.fanout(EXCHANGE)
        args = [self._member(to), to.exchange, _BINDING_KEPT_MS, _ASKERS, channel, text]
        subscribed: int = connection.script(_ASK, keys, args)
        return subscribed

    def _replies(
        self,
        connection: Connection,
        request: ControlRequest,
        to: ReplyTo,
        timeout_s: float,
        may_end: Callable[[], bool] | None,
    ) -> Iterator[Reply]:
        """Yield the replies to a request as they arrive, until the timeout.

        The generator also stops if no reply has arrived for a moment and `may_end` returns True.
        """
        key = self._keys.queue(to.queue)
        ends_s = time.monotonic() + timeout_s
        while (left_s := ends_s - time.monotonic()) > 0:
            if may_end is not None:
                left_s = min(left_s, _QUIET_S)
            # One round trip returns the first reply, and all others that have arrived by then.
            first, others = connection.pipeline(
                [("BRPOP", key, max(left_s, _LEAST_WAIT_S)), ("RPOP", key, _MOST_AT_ONCE)]
            )
            if may_end is not None and first is None:
                if may_end():
                    return
                may_end = None
            for raw in (*(first or ())[1:], *(others or ())):
                reply = self._read(raw, request, to)
                if reply is not None:
                    yield reply

    def _read(self, raw: bytes, request: ControlRequest, to: ReplyTo) -> Reply | None:
        try:
            if self._signer is not None:
                raw = self._signer.open("reply", to.queue, raw)
            reply = read_reply(raw, self._accept)
        except SignatureError as exc:
            _forged.log("a reply to %s was dropped: %s", request.method, exc)
            return None
        except ProtocolError as exc:
            _log.debug("ignored an unreadable reply to %s: %s", request.method, exc)
            return None
        self._clock.adjust(reply.clock)
        if reply.ticket != request.ticket:
            _log.debug("ignored a reply to %s with the ticket of another request", request.method)
            return None
        return reply

    def _forget(self, connection: Connection, to: ReplyTo, level: int) -> None:
        """Remove the requester's binding and list."""
        try:
            connection.pipeline(
                [
                    ("SREM", self._keys.binding(to.exchange), self._member(to)),
                    ("DEL", self._keys.queue(to.queue)),
                ]
            )
        except OperationalError as exc:
            # The replies matter more than a leftover binding.
            _log.log(level, "could not remove the list of replies %s: %s", to.queue, exc)
