"""Results: store, read, wait for, forget.

A result is a key with an expiry; storing it also publishes the same bytes on a channel of the same
name. All waiting callers receive them through the process's one `Listener`: ten thousand callers of
`get` share one connection, in plain threads and in greenlets alike.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from greenq.backoff import Backoff
from greenq.errors import (
    ConnectionLost,
    EncodeError,
    OperationalError,
    ResultTimeout,
    SignatureError,
)
from greenq.log import OutageLog
from greenq.protocol import compress, serialize
from greenq.protocol.limits import DENSE_BYTES, has_more_items, most_items
from greenq.protocol.meta import ResultMeta, decode_result, encode_result, utc_now
from greenq.states import FAILURE, PENDING, READY_STATES, REVOKED, SUCCESS
from greenq.transport.settle import Entry, StateWrite, settle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from greenq.config.settings import ResultConfig
    from greenq.protocol.keys import Keys
    from greenq.protocol.signature import Signer
    from greenq.transport.client import Client, Connection

_log = logging.getLogger(__name__)

_RETRY_MOST_S = 1.0

# A listening connection that does not answer for this long is dead.
_ANSWER_S = 2.0

# How often a thread without subscriptions checks whether it should end.
_IDLE_S = 60.0

# A read gets at least this long, even if the caller has less time left, since it may have to
# connect first.
_LEAST_READ_S = 1.0


class Backend:
    """The results on one server. Switches: yes, every method except `stored`."""

    def __init__(
        self,
        client: Client,
        keys: Keys,
        config: ResultConfig,
        accept_content: tuple[str, ...],
        accept_compression: tuple[str, ...],
        max_bytes: int,
        silence_s: float,
        signer: Signer | None = None,
    ) -> None:
        """Read and write results as `config` says.

        Args:
            client: the server.
            keys: its key names.
            config: the result section of the settings.
            accept_content: content accepted unless ``result_accept_content`` is set.
            accept_compression: compressions accepted in addition to ``result_compression``.
            max_bytes: limit on a result's size before it is decoded.
            silence_s: seconds of silence after which a listening connection is checked.
            signer: signs and checks results; None for neither.
        """
        # Whether results hold more than Celery's usually do: see `stored`.
        self.extends = config.result_extended
        self._client = client
        self._keys = keys
        self._config = config
        expiry = failure_expiry = int(config.result_expires or 0)
        if config.result_failure_expires is not None:
            failure_expiry = int(config.result_failure_expires)
        # The rules for each final state, then the one for all other states.
        self._rules = {
            SUCCESS: f"s{expiry}", FAILURE: f"f{failure_expiry}", REVOKED: f"f{expiry}"
        }  # fmt: skip
        self._rule = f"n{expiry}"
        names = config.result_accept_content
        self._accept = serialize.accepted(accept_content if names is None else names)
        self._accept_compression = compress.accepted(*accept_compression, config.result_compression)
        self._max_bytes = max_bytes
        self._is_plain = config.result_serializer == "json" and config.result_compression is None
        self._listener = Listener(client, silence_s)
        self._signer = signer

    def stored(
        self,
        task_id: str,
        status: str,
        result: object,
        *,
        traceback: str | None = None,
        children: tuple[object, ...] = (),
        group_id: str | None = None,
        parent_id: str | None = None,
        extended: Mapping[str, object] | None = None,
    ) -> StateWrite:
        """Return a state in the form in which it is stored and announced to waiting callers.

        Raises:
            EncodeError: the result cannot be serialized, or has more values than readers accept.
        """
        payload = encode_result(
            task_id=task_id,
            status=status,
            result=result,
            traceback=traceback,
            children=children,
            date_done=utc_now() if status in READY_STATES else None,
            group_id=group_id,
            parent_id=parent_id,
            extended=extended if self.extends else None,
            serializer=self._config.result_serializer,
            compression=self._config.result_compression,
        )
        if len(payload) > DENSE_BYTES and self._is_plain:
            most = most_items(self._max_bytes)
            if has_more_items(payload, most):
                raise EncodeError(
                    f"it has more than {most} values, the limit for reading with "
                    f"task_max_result_bytes = {self._max_bytes}; store it elsewhere "
                    "and return its location"
                )
        key = self._keys.result(task_id)
        if self._signer is not None:
            payload = self._signer.seal("result", "", payload)
        return StateWrite(key, self._rules.get(status, self._rule), payload)

    def store(self, task_id: str, status: str, result: object, **fields: Any) -> None:
        """Store a state at once; `fields` are those of `stored`."""
        state = self.stored(task_id, status, result, **fields)
        settle(self._client, self._keys, [Entry("", "k", result=state)])

    def get(self, task_id: str, *, timeout_s: float | None = None) -> ResultMeta:
        """Read a task's stored state; PENDING if there is none.

        Raises:
            SignatureError: a signature is asked for, and it has none that is valid.
        """
        payload = self._read(self._keys.result(task_id), timeout_s)
        return self._pending(task_id) if payload is None else self._decode(task_id, payload)

    def _read(self, key: str, timeout_s: float | None) -> bytes | None:
        """Read a key in two attempts, each with half of the time."""
        whole_s = self._client.call_timeout_s
        if timeout_s is not None:
            whole_s = min(max(timeout_s, _LEAST_READ_S), whole_s)
        payload: bytes | None
        try:
            payload = self._client.call("GET", key, timeout_s=whole_s / 2)
        except ConnectionLost:
            # The pooled connection died while idle, as after a restart; reading twice is harmless.
            payload = self._client.call("GET", key, timeout_s=whole_s / 2)
        return payload

    def forget(self, task_id: str) -> None:
        """Delete a task's stored state."""
        self._client.call("DEL", self._keys.result(task_id))

    def wait(
        self,
        task_id: str,
        *,
        timeout_s: float | None = None,
        interval_s: float | None = None,
        on_message: Callable[[ResultMeta], object] | None = None,
    ) -> ResultMeta:
        """Wait until a task has ended and return its state.

        Args:
            task_id: the task's.
            timeout_s: longest wait; None waits for ever.
            interval_s: read the stored state again after this much silence; None relies on the
                notification only.
            on_message: called with each state announced meanwhile, including the final one.

        Raises:
            ResultTimeout: the task did not end in time.
            SignatureError: what is stored has no valid signature, and one is asked for. An
                announcement without one is ignored; otherwise, anyone who may publish could end the
                wait.
        """
        started = time.monotonic()
        meta = self.get(task_id, timeout_s=timeout_s)
        if meta.status in READY_STATES:
            if on_message is not None:
                on_message(meta)
            return meta
        with self._listener.listen(self._keys.result(task_id)) as published:
            while True:
                payload = _next(published, started, timeout_s, interval_s)
                news = self._announced(task_id, payload) if payload else None
                waited_s = time.monotonic() - started
                if news is None:
                    if payload != b"" and timeout_s is not None and waited_s >= timeout_s:
                        raise ResultTimeout(task_id, timeout_s)
                    # The subscription has just begun (again), or nothing came for an interval:
                    # earlier states are stored. The listener deals with outages, and calls when
                    # they are over.
                    stored = None
                    with suppress(OperationalError):
                        left_s = None if timeout_s is None else timeout_s - waited_s
                        stored = self._read(self._keys.result(task_id), left_s)
                    if not stored:
                        continue
                    news = self._decode(task_id, stored)
                if on_message is not None:
                    on_message(news)
                if news.status in READY_STATES:
                    return news

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()

    def _announced(self, task_id: str, payload: bytes) -> ResultMeta | None:
        """Read an announced state; None if it is forged, since anyone may publish."""
        try:
            return self._decode(task_id, payload)
        except SignatureError:
            return None

    def _decode(self, task_id: str, payload: bytes) -> ResultMeta:
        """Read the state of a task.

        Raises:
            SignatureError: a signature is asked for, and it has none that is valid for this task.
        """
        signer = self._signer
        if signer is None:
            return self._read_state(payload)
        try:
            meta = self._read_state(signer.open("result", "", payload))
            if meta.task_id != task_id:
                raise SignatureError(f"it is signed as that of task {meta.task_id}")
        except SignatureError as exc:
            raise SignatureError(
                f"the result of task {task_id} is refused: {exc} (security_signing_key here and in "
                "the worker that stored it)"
            ) from exc
        return meta

    def _read_state(self, payload: bytes) -> ResultMeta:
        return decode_result(
            payload,
            serializer=self._config.result_serializer,
            accept=self._accept,
            max_bytes=self._max_bytes,
            accept_compression=self._accept_compression,
        )

    @staticmethod
    def _pending(task_id: str) -> ResultMeta:
        return ResultMeta(task_id=task_id, status=PENDING, result=None)


def _next(
    published: queue.SimpleQueue[bytes],
    started: float,
    timeout_s: float | None,
    interval_s: float | None,
) -> bytes | None:
    """Return the next announcement, b"" for a new subscription, None when it is time to read."""
    left_s = None if timeout_s is None else max(0.0, timeout_s - (time.monotonic() - started))
    waits = [seconds for seconds in (left_s, interval_s) if seconds is not None]
    try:
        return published.get(timeout=min(waits) if waits else None)
    except queue.Empty:
        return None


class Listener:
    """Listens to channels over one connection, in one thread, for all callers in this process.

    Only the thread touches the socket (two threads must not read and write a TLS socket at once);
    the others signal it through a socket pair. After a reconnection it asks every waiting caller to
    read the stored state again.
    """

    def __init__(self, client: Client, silence_s: float) -> None:
        """Prepare; the connection and the thread start with the first wait.

        After `silence_s` seconds of silence it checks the connection with a PING, and considers it
        dead when no answer comes within the client's timeout.
        """
        self._client = client
        self._silence_s = silence_s
        self._lock = threading.Lock()
        # The thread's own: when the server last sent anything (monotonic).
        self._received_s = 0.0
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        # Under the lock: who listens to what, and what changed since the thread last looked.
        self._channels: dict[str, list[queue.SimpleQueue[bytes]]] = {}
        self._changes: list[tuple[str, str]] = []
        self._thread: threading.Thread | None = None
        self._closing = False
        self._waker: socket.socket | None = None

    @contextmanager
    def listen(self, channel: str) -> Iterator[queue.SimpleQueue[bytes]]:
        """Yield a queue of published messages, with b"" each time the subscription begins."""
        published: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        with self._lock:
            if self._pid != os.getpid():
                self._reset()
            listeners = self._channels.setdefault(channel, [])
            listeners.append(published)
            # Subscribe even for a second listener: the server confirms again, and all read the
            # stored state again.
            self._changes.append(("SUBSCRIBE", channel))
            self._wake()
        try:
            yield published
        finally:
            with self._lock:
                listeners.remove(published)
                if not listeners and self._channels.get(channel) is listeners:
                    del self._channels[channel]
                    self._changes.append(("UNSUBSCRIBE", channel))
                    self._wake()

    def close(self) -> None:
        """End the thread and its connection."""
        with self._lock:
            self._closing = True
            if self._thread is not None:
                self._wake()

    def _wake(self) -> None:
        """Make the thread look at the changes; start it if needed. The caller holds the lock."""
        if self._thread is None:
            self._waker, ours = socket.socketpair()
            self._waker.setblocking(False)
            ours.setblocking(False)
            self._closing = False
            self._thread = threading.Thread(
                target=self._run, args=(ours,), name="greenq results", daemon=True
            )
            self._thread.start()
        assert self._waker is not None
        # If the pipe is full, the thread wakes anyway.
        with suppress(BlockingIOError):
            self._waker.send(b"!")

    def _run(self, wakeups: socket.socket) -> None:
        pauses = Backoff(0.05, _RETRY_MOST_S)
        outage = OutageLog(_log)
        connection = self._client.connection(timeout_s=_ANSWER_S)
        while not self._closing:
            try:
                self._resubscribe(connection)
                while not self._closing:
                    if self._turn(connection, wakeups):
                        pauses.reset()
                        outage.recovered("results are received again")
            except OperationalError as exc:
                connection.close()
                outage.failed("waiting for results is interrupted", exc)
                time.sleep(pauses.next_s())
        with self._lock:
            self._thread = None
            connection.close()
            wakeups.close()
            if self._waker is not None:
                self._waker.close()

    def _resubscribe(self, connection: Connection) -> None:
        with self._lock:
            self._changes.clear()
            channels = list(self._channels)
        if channels:
            connection.send([("SUBSCRIBE", *channels)])
        self._received_s = time.monotonic()

    def _turn(self, connection: Connection, wakeups: socket.socket) -> bool:
        """Send subscription changes, then read messages; True if any arrived."""
        with self._lock:
            changes, self._changes = self._changes, []
        if changes:
            connection.send(changes)
        left_s = self._received_s + self._silence_s - time.monotonic()
        if left_s <= 0 and connection.connected and self._channels:
            # Long silence: a dead peer does not answer the PING, and the read times out. New
            # waiting callers do not show that the connection works.
            connection.send([("PING",)])
            self._deliver(connection.receive("PING"))
            return True
        if not connection.wait_readable(wakeups, max(0.0, left_s) if self._channels else _IDLE_S):
            return False
        with suppress(BlockingIOError):
            wakeups.recv(4096)
        received = False
        while connection.has_answer():
            self._deliver(connection.receive("SUBSCRIBE"))
            received = True
        return received

    def _deliver(self, answer: Any) -> None:
        """Pass one pub/sub answer to its waiting callers."""
        if isinstance(answer, OperationalError):
            raise answer
        self._received_s = time.monotonic()
        kind, channel = answer[0], answer[1]
        if kind not in {b"message", b"subscribe"}:
            return
        payload = answer[2] if kind == b"message" else b""
        with self._lock:
            for listener in self._channels.get(channel.decode(), ()):
                listener.put(payload)
