"""Results: storing, reading, awaiting and forgetting them.

A result is a key with an expiry. Storing it also publishes the same bytes on a channel with the
same name. All waiting callers in a process receive their results through its one `ChannelListener`,
so ten thousand callers of `get` share one connection, in plain threads and in greenlets alike.
"""

from __future__ import annotations

import logging
import math
import queue
import time
from contextlib import closing, suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

from greenq.errors import (
    ConnectionLost,
    EncodeError,
    OperationalError,
    ProtocolError,
    ResultTimeout,
    SignatureError,
)
from greenq.protocol import compress, serialize
from greenq.protocol.limits import DENSE_BYTES, has_more_items, most_items
from greenq.protocol.meta import (
    ResultMeta,
    decode_group,
    decode_part,
    decode_result,
    encode_group,
    encode_part,
    encode_result,
    encode_success,
    is_plain,
    utc_now,
)
from greenq.states import FAILURE, PENDING, READY_STATES, REVOKED, SUCCESS
from greenq.transport.callbacks import Callbacks
from greenq.transport.continuation import (
    KIND_FINAL,
    KIND_PASSING,
    KIND_SUCCESS,
    ChordPart,
    chord_rule,
)
from greenq.transport.listener import PORTION, ChannelListener, Heard, portions
from greenq.transport.reads import Reads
from greenq.transport.settle import KEEP, Settlement, StateWrite, settle

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence

    from greenq.config.settings import ResultConfig
    from greenq.protocol.keys import Keys
    from greenq.protocol.signer import Signer
    from greenq.transport.client import Client
    from greenq.transport.listener import Ear

_log = logging.getLogger(__name__)

# The shortest timeout of a read, even if the caller has less time left: the read may have to
# connect first.
_LEAST_READ_S = 1.0

# While the server cannot be reached, waiting callers try to read at this interval.
_READ_AGAIN_S = 1.0

# If there are more tasks than this, only a sample of them is listened to: see `Backend._sample`.
_LISTENED = 256
_SAMPLE = 64

# The pause before the other tasks are read (again); it is longer if reading them would otherwise
# take more than a twentieth of the time.
_LOOK_S = 0.5
_LOOK_SHARE = 20


class Backend:
    """The results on one server. Switches: yes, in every method except `stored`."""

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
        """Read and write results as `config` specifies.

        Args:
            client: the server.
            keys: the server's key names.
            config: the result section of the settings.
            accept_content: the content types to accept unless ``result_accept_content`` is set.
            accept_compression: the compressions to accept in addition to ``result_compression``.
            max_bytes: the limit on a result's size before it is decoded.
            silence_s: seconds without data after which a listening connection is checked.
            signer: signs and checks results; None for neither.
        """
        # Whether results contain more fields than Celery's usually do; see `stored`.
        self.extends = config.result_extended
        self._client = client
        self._keys = keys
        self._key_start = keys.result("")
        self._config = config
        expiry = failure_expiry = int(config.result_expires or 0)
        if config.result_failure_expires is not None:
            failure_expiry = int(config.result_failure_expires)
        # The rule for each final state, and then the rule for all other states.
        self._rules = {
            SUCCESS: f"{KIND_SUCCESS}{expiry}",
            FAILURE: f"{KIND_FINAL}{failure_expiry}",
            REVOKED: f"{KIND_FINAL}{expiry}",
        }
        self._rule = f"{KIND_PASSING}{expiry}"
        # How long a chord is kept after its last change, and whether its parts are kept in order.
        chord_expiry = config.result_chord_expires
        self.chord_seconds = expiry if chord_expiry is None else int(chord_expiry)
        self._is_ordered = config.result_backend_transport_options.result_chord_ordered
        self._chord_rule = chord_rule(self._is_ordered, self.chord_seconds, expiry)
        names = config.result_accept_content
        self._max_bytes = max_bytes
        # The options for decoding any stored value.
        self._reading: dict[str, Any] = {
            "serializer": config.result_serializer,
            "accept": serialize.accepted(accept_content if names is None else names),
            "max_bytes": max_bytes,
            "accept_compression": compress.accepted(*accept_compression, config.result_compression),
        }
        self._is_plain = config.result_serializer == "json" and config.result_compression is None
        self._signer = signer
        self._reads = Reads(self._read_each)
        self._listener = ChannelListener(client, silence_s)
        self._callbacks = Callbacks(self._listener, self._follow)

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
        """Return a state in the form that is stored and announced to waiting callers.

        Raises:
            EncodeError: the result cannot be serialized, or has more values than readers accept.
        """
        more = traceback or extended
        if status == SUCCESS and self._is_plain and not more and is_plain(task_id):
            payload = encode_success(task_id, result, children, group_id, parent_id)
        else:
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
        key = self._key_start + task_id
        if self._signer is not None:
            payload = self._signer.seal("result", "", payload)
        return StateWrite(key, self._rules.get(status, self._rule), payload)

    def part(
        self, group_id: str, index: int | None, task_id: str, status: str, result: object
    ) -> ChordPart:
        """Return the part that a task of a header adds to its chord when the task ends.

        Raises:
            EncodeError: the result cannot be serialized.
        """
        place = "+inf" if index is None else str(index)
        config = self._config
        value = encode_part(
            task_id, status, result, config.result_serializer, config.result_compression
        )
        key = self._keys.group(group_id)
        return ChordPart(key, f"{task_id}:{place}", place, value, self._chord_rule)

    def read_chord(self, group: str) -> tuple[str | None, list[tuple[str, str, Any]], Any]:
        """Read a chord by its group's key. Switches: yes.

        Returns:
            The claim of the worker that is to send the body; the parts that have ended, in their
            order, as `decode_part` returns them; and the saved group, which is None unless the
            group's members include groups.

        Raises:
            ProtocolError: a part cannot be read.
        """
        read = "ZRANGE" if self._is_ordered else "LRANGE"
        claim, values, saved = self._client.pipeline(
            [("GET", f"{group}.c"), (read, f"{group}.j", 0, -1), ("GET", group)]
        )
        return (
            None if claim is None else claim.decode(errors="replace"),
            [decode_part(value, **self._reading) for value in values],
            None if saved is None else decode_group(saved, **self._reading),
        )

    def read_claim(self, group: str) -> str | None:
        """Read the claim of the worker that is to send the body of a chord, by its group's key."""
        claim = self._client.call("GET", f"{group}.c")
        return None if claim is None else claim.decode(errors="replace")

    def store(self, task_id: str, status: str, result: object, **fields: Any) -> None:
        """Store a state immediately; `fields` are the other arguments of `stored`."""
        state = self.stored(task_id, status, result, **fields)
        settle(self._client, self._keys, [Settlement("", KEEP, result=state)])

    def get(self, task_id: str) -> ResultMeta:
        """Read a task's stored state; a task without a stored state is PENDING."""
        return next(self.get_many((task_id,)))

    def get_many(self, task_ids: Iterable[str]) -> Iterator[ResultMeta]:
        """Read the stored states of tasks, in order."""
        for portion in portions(task_ids):
            payloads = self._payloads([self._keys.result(task_id) for task_id in portion])
            yield from map(self._meta, portion, payloads)

    def get_readable(self, task_ids: Iterable[str]) -> list[ResultMeta]:
        """Read the stored states of tasks, in order; an unreadable state counts as PENDING.

        Use this for lists of many tasks, where one bad result must not hide the others.
        """
        found = []
        for portion in portions(task_ids):
            payloads = self._payloads([self._keys.result(task_id) for task_id in portion])
            for task_id, payload in zip(portion, payloads, strict=True):
                try:
                    meta = self._meta(task_id, payload)
                except ProtocolError as exc:
                    _log.debug("the result of task %s cannot be read: %s", task_id, exc)
                    meta = self._meta(task_id, None)
                found.append(meta)
        return found

    def exists(self, task_id: str) -> bool:
        """Return whether a task has a stored state."""
        return bool(self._client.call("EXISTS", self._keys.result(task_id)))

    def _payloads(self, keys: Sequence[str], timeout_s: float = math.inf) -> list[bytes | None]:
        """Read keys in up to two attempts, each of which gets half of the time."""
        whole_s = min(max(timeout_s, _LEAST_READ_S), self._client.call_timeout_s)
        if len(keys) == 1:
            return [self._reads.one(keys[0], whole_s)]
        return self._in_two_attempts([("MGET", *keys)], whole_s)[0]  # type: ignore[no-any-return]

    def _read_each(self, keys: Sequence[str], timeout_s: float) -> list[Any]:
        """Read the keys of several callers; an error concerns only the key that it stands for."""
        return self._in_two_attempts([("GET", key) for key in keys], timeout_s)

    def _in_two_attempts(self, commands: list[tuple[str, ...]], whole_s: float) -> list[Any]:
        half_s, each = whole_s / 2, len(commands) if len(commands) > 1 else 0
        try:
            return self._client.pipeline(commands, optional=each, timeout_s=half_s)
        except ConnectionLost:
            # The pooled connection died while it was idle, for example because the server was
            # restarted. Reading twice is harmless.
            return self._client.pipeline(commands, optional=each, timeout_s=half_s)

    def forget(self, *task_ids: str) -> None:
        """Delete the stored states of tasks."""
        for portion in portions(task_ids):
            self._client.call("DEL", *map(self._keys.result, portion))

    def save_group(self, group_id: str, members: object) -> None:
        """Store a group's result tuple for as long as results are kept."""
        key, _rule, payload = self.saved_group(group_id, members)
        expiry_s = int(self._config.result_expires or 0)
        store = ("SETEX", key, expiry_s, payload) if expiry_s else ("SET", key, payload)
        self._client.pipeline([store, ("PUBLISH", key, payload)])

    def saved_group(self, group_id: str, members: object) -> StateWrite:
        """Return a group's result tuple in the form that is stored."""
        config = self._config
        payload = encode_group(
            members,
            serializer=config.result_serializer,
            compression=config.result_compression,
        )
        return StateWrite(self._keys.group(group_id), self._rule, payload)

    def restore_group(self, group_id: str) -> Any:
        """Read a group's result tuple; return None if there is none."""
        payload = self._payloads([self._keys.group(group_id)])[0]
        if payload is None:
            return None
        return decode_group(payload, **self._reading)

    def delete_group(self, group_id: str) -> None:
        """Delete a stored group, but not the results of its tasks."""
        self._client.call("DEL", self._keys.group(group_id))

    def wait(self, task_id: str, **how: Any) -> ResultMeta:
        """Wait until a task has ended, and return its state; `how` is passed on to `wait_many`.

        Raises:
            ResultTimeout: the task did not end in time.
        """
        with closing(self.wait_many((task_id,), **how)) as ended:
            return next(ended)

    def wait_many(
        self,
        task_ids: Iterable[str],
        *,
        timeout_s: float | None = None,
        interval_s: float | None = None,
        on_message: Callable[[ResultMeta], object] | None = None,
        on_interval: Callable[[], object] | None = None,
    ) -> Generator[ResultMeta]:
        """Yield each task's final state when the task ends, starting with tasks that have ended.

        Args:
            task_ids: the tasks' ids; each is yielded once.
            timeout_s: the time limit for all tasks together; None means no limit.
            interval_s: read the stored states again when nothing was announced for this many
                seconds; None means to rely on the announcements alone.
            on_message: called with each state announced in the meantime, including final states.
            on_interval: called each time nothing has been announced for `interval_s`.

        Raises:
            ResultTimeout: a task did not end in time.
        """
        ends_s = math.inf if timeout_s is None else time.monotonic() + timeout_s
        waiting = {self._keys.result(task_id): task_id for task_id in task_ids}
        yield from self._ends(waiting, ends_s, interval_s, on_message, on_interval)
        if waiting:
            raise ResultTimeout(next(iter(waiting.values())), timeout_s or 0.0, len(waiting) - 1)

    def wait_in_order(
        self,
        task_ids: Sequence[str],
        check: Callable[[ResultMeta], object],
        *,
        timeout_s: float | None = None,
        interval_s: float | None = None,
        on_interval: Callable[[], object] | None = None,
    ) -> Iterator[ResultMeta]:
        """Yield the final state of each task in order, keeping at most one portion of the states.

        Args:
            task_ids: the tasks' ids, each once.
            check: called with each final state as soon as the state is known, even for tasks whose
                turn has not come; may raise a task's exception.
            timeout_s, interval_s, on_interval: as for `wait_many`.

        Raises:
            ResultTimeout: a task did not end in time.
        """
        ends_s = math.inf if timeout_s is None else time.monotonic() + timeout_s
        # The tasks that are known to have ended.
        known = bytearray(len(task_ids))
        pause_s, position = _LOOK_S, 0
        for portion in portions(task_ids):
            position += len(portion)
            waiting = {self._keys.result(task_id): task_id for task_id in portion}
            found: dict[str, ResultMeta] = {}
            while waiting:
                until_s = min(ends_s, time.monotonic() + pause_s)
                for meta in self._ends(waiting, until_s, interval_s, None, on_interval):
                    check(meta)
                    found[meta.task_id] = meta
                if waiting and time.monotonic() >= ends_s:
                    others = len(waiting) - 1 + len(task_ids) - position
                    raise ResultTimeout(next(iter(waiting.values())), timeout_s or 0.0, others)
                if waiting:
                    pause_s = self._look_ahead(task_ids, position, known, check)
            for task_id in portion:
                yield found[task_id]

    def _look_ahead(
        self,
        task_ids: Sequence[str],
        position: int,
        known: bytearray,
        check: Callable[[ResultMeta], object],
    ) -> float:
        """Check which tasks after `position` have ended; return how long to pause afterwards."""
        began_s = time.monotonic()
        numbered = enumerate(task_ids[position:], position)
        for portion in portions(each for each in numbered if not known[each[0]]):
            waiting = {self._keys.result(task_id): task_id for _at, task_id in portion}
            for meta in self._final(self._reread(list(waiting), math.inf), waiting, None):
                check(meta)
            for at, task_id in portion:
                known[at] = self._keys.result(task_id) not in waiting
        return max(_LOOK_S, _LOOK_SHARE * (time.monotonic() - began_s))

    def _ends(
        self,
        waiting: dict[str, str],
        ends_s: float,
        interval_s: float | None,
        on_message: Callable[[ResultMeta], object] | None,
        on_interval: Callable[[], object] | None,
    ) -> Iterator[ResultMeta]:
        """Yield final states until no task is `waiting` or the time is `ends_s`."""
        for portion in portions(list(waiting)):
            for meta in self._final(self._read_stored(portion, ends_s), waiting, None):
                if on_message is not None:
                    on_message(meta)
                yield meta
        if on_message is None:
            yield from self._sample(waiting, ends_s, interval_s, on_interval)
        if waiting and (on_message is not None or len(waiting) <= _LISTENED):
            with self._listener.listen(*waiting) as ear:
                following = self._follow(ear, waiting, ends_s, interval_s, on_message, on_interval)
                yield from following

    def _sample(
        self,
        waiting: dict[str, str],
        ends_s: float,
        interval_s: float | None,
        on_interval: Callable[[], object] | None,
    ) -> Iterator[ResultMeta]:
        """Yield final states of many tasks until few are left or the time is `ends_s`.

        Announcing a state costs the server, the worker and this process as much as storing it. So
        only the last few tasks of a portion are listened to: once they have ended, most of the
        others have also ended, and their states are read together.
        """
        pause_s = _LOOK_S
        while len(waiting) > _LISTENED and time.monotonic() < ends_s:
            portion = list(islice(waiting, PORTION))
            sample = {key: waiting[key] for key in portion[-_SAMPLE:]}
            until_s = min(ends_s, time.monotonic() + pause_s)
            with self._listener.listen(*sample) as ear:
                for meta in self._follow(ear, sample, until_s, interval_s, None, on_interval):
                    waiting.pop(self._keys.result(meta.task_id), None)
                    yield meta
            # If a task of the sample takes long, the others may already have ended.
            began_s = time.monotonic()
            for keys in portions(list(waiting) if sample else portion):
                yield from self._final(self._reread(keys, ends_s), waiting, None)
            pause_s = max(_LOOK_S, _LOOK_SHARE * (time.monotonic() - began_s))

    def call_when_ended(
        self, task_ids: Iterable[str], call: Callable[[ResultMeta], object]
    ) -> None:
        """Register a function to be called in a thread with the final state of each of these tasks.

        One thread makes all of these calls, so `call` must be short, or at least must not wait for
        another such call.
        """
        self._callbacks.add({self._keys.result(each): each for each in task_ids}, call)

    def _follow(
        self,
        ear: Ear,
        waiting: dict[str, str],
        ends_s: float = math.inf,
        interval_s: float | None = None,
        on_message: Callable[[ResultMeta], object] | None = None,
        on_interval: Callable[[], object] | None = None,
    ) -> Iterator[ResultMeta]:
        """Yield final states that `ear` hears, until none is `waiting` or the time is `ends_s`."""
        unread: set[str] = set()
        while waiting:
            news = _hear(ear, ends_s, _READ_AGAIN_S if unread else interval_s)
            heard = [each for each in news if each.payload]
            yield from self._final(heard, waiting, on_message, unread)
            if time.monotonic() >= ends_s:
                return
            if not news and on_interval is not None:
                on_interval()
            # If a subscription has just begun (again), or if nothing was announced for an interval,
            # read the stored states.
            unread.update((each.channel for each in news if not each.payload) if news else waiting)
            for portion in portions([key for key in list(unread) if key in waiting]):
                try:
                    read = self._read_stored(portion, ends_s)
                except OperationalError:
                    # These keys stay in `unread`, so they are read again until the outage is over.
                    continue
                unread.difference_update(portion)
                yield from self._final(read, waiting, on_message)

    def _read_stored(self, keys: Sequence[str], ends_s: float) -> list[Heard]:
        """Read the states stored under these keys, as if they were announced now."""
        found = zip(keys, self._payloads(keys, ends_s - time.monotonic()), strict=True)
        return [Heard(key, payload) for key, payload in found if payload]

    def _reread(self, keys: Sequence[str], ends_s: float) -> list[Heard]:
        """Call `_read_stored`, but return nothing during an outage, since a later read follows."""
        try:
            return self._read_stored(keys, ends_s)
        except OperationalError:
            return []

    def _final(
        self,
        news: Iterable[Heard],
        waiting: dict[str, str],
        on_message: Callable[[ResultMeta], object] | None,
        forged: set[str] | None = None,
    ) -> Iterator[ResultMeta]:
        """Yield the final states among the news, and remove their keys from `waiting`.

        Anyone can publish, so announcements without a valid signature only add their keys to
        `forged`. If `forged` is None, the news comes from the stored states.
        """
        for key, payload in news:
            if key not in waiting:
                continue
            try:
                meta = self._decode(waiting[key], payload)
            except SignatureError:
                if forged is None:
                    del waiting[key]
                    raise
                forged.add(key)
                continue
            except ProtocolError:
                del waiting[key]
                raise
            if on_message is not None:
                on_message(meta)
            if meta.status in READY_STATES:
                del waiting[key]
                yield meta

    def close(self) -> None:
        """Stop listening, and drop the functions that have not been called yet."""
        self._callbacks.close()
        self._listener.close()

    def _decode(self, task_id: str, payload: bytes) -> ResultMeta:
        """Decode a task's state, and check its signature.

        Raises:
            SignatureError: a signature is required, but the state has none that is valid for this
                task.
        """
        signer = self._signer
        if signer is None:
            return self._read_state(payload)
        try:
            meta = self._read_state(signer.open("result", "", payload))
            if meta.task_id != task_id:
                raise SignatureError(f"it is signed as the result of task {meta.task_id}")
        except SignatureError as exc:
            raise SignatureError(
                f"the result of task {task_id} is refused: {exc}; check security_signing_key "
                "here and in the worker that stored it"
            ) from exc
        return meta

    def _read_state(self, payload: bytes) -> ResultMeta:
        return decode_result(payload, **self._reading)

    def _meta(self, task_id: str, payload: bytes | None) -> ResultMeta:
        if payload is None:
            return ResultMeta(task_id=task_id, status=PENDING, result=None)
        return self._decode(task_id, payload)


def _hear(ear: Ear, ends_s: float, interval_s: float | None) -> list[Heard]:
    """Wait for news and return all of it; return nothing if it is time to read or to give up."""
    wait_s = max(0.0, ends_s - time.monotonic())
    if interval_s is not None:
        wait_s = min(wait_s, interval_s)
    news = []
    with suppress(queue.Empty):
        news.append(ear.get(timeout=None if wait_s == math.inf else wait_s))
        while True:
            news.append(ear.get_nowait())
    return news
