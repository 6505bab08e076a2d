"""Group commit: all outcomes that arrive during one write go out together in the next write.

There is no timer and no batch size. An idle outbox writes an entry immediately, and a busy outbox
collects entries until the current write is done. Each write is one script, which acknowledges or
moves a message only together with storing its outcome: a server out of memory refuses both. The
same call also publishes events.

A write that fails is repeated with the same content until the server accepts it. Repeated and late
writes are harmless, since an entry whose message is no longer held has no effect. The number of
entries is bounded by the number of running tasks.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from greenq.bootsteps.blueprint import StartStopPart
from greenq.errors import OperationalError, ServerError, TransportTimeout
from greenq.hub import Event, Greenlet, sleep, spawn
from greenq.transport.client import RESTED_S
from greenq.transport.continuation import KIND_SUCCESS
from greenq.transport.settle import (
    ACKNOWLEDGE,
    INDEX,
    MOVE,
    Fence,
    Settlement,
    settle,
)
from greenq.utils.backoff import Backoff
from greenq.utils.log import OutageLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from greenq.transport.client import Connection
    from greenq.transport.settle import Publication
    from greenq.transport.transport import Transport

_log = logging.getLogger(__name__)

# The maximum number of entries in one write, so that the write stays well within its timeout.
# Further entries wait for the next write.
_BATCH = 1000

# How often `stop` checks whether its time is up.
_LOOK_S = 0.1

_RETRY_FIRST_S = 0.05
_RETRY_MAX_S = 1.0


class Outbox(StartStopPart):
    """Writes entries in the order they were put, in one greenlet.

    The outbox uses one connection, or two if results have their own server. In that case results
    are written first.
    """

    name = "Outbox"
    requires = ("Watch",)

    def __init__(self, transport: Transport, owner: str, *, flush_timeout_s: float = 5.0) -> None:
        """Write to `transport`'s servers on behalf of the incarnation `owner`.

        `stop` waits up to `flush_timeout_s` for the remaining entries.
        """
        self._keys = transport.keys
        self._fence = Fence(owner)
        self.connection = transport.client.connection()
        results = transport.result_client
        self._results: Connection | None = None
        if results is not None and results is not transport.client:
            self._results = results.connection()
        self._flush_timeout_s = flush_timeout_s
        # `stop` waits at least until this time (monotonic), the end of the worker's grace period.
        self.until_s = 0.0
        # The entries not yet written, oldest first; other objects only count them.
        self.entries: list[Settlement] = []
        # The tags of messages whose ending another greenlet is still preparing; other objects only
        # count them.
        self.expected: set[str] = set()
        self._filled = Event()
        self._empty = Event()
        self._empty.set()
        self._greenlet: Greenlet | None = None
        # `collect` returns the events to publish with the next write, and is set by the sender of
        # events. `_has_events` says whether there are any.
        self.collect: Callable[[], Sequence[Publication]] = tuple
        self._has_events = False
        # If this is a set, the outbox adds to it the keys of all lists that it pushes messages to.
        self.pushed_to: set[str] | None = None
        # Only the outbox's own greenlet uses this: the entries of the current write that have not
        # sent their pushes.
        self._unsent: set[Settlement] = set()
        self._outage = OutageLog(_log)
        self._publish_outage = OutageLog(_log)
        self._index_outage = OutageLog(_log)
        self._batch = _BATCH

    def start(self) -> None:
        """Start writing."""
        self._greenlet = spawn(self._run, name="outbox", lasts=True)

    def stop(self) -> None:
        """Write the remaining entries; if the time runs out, log how many could not be written."""
        if self._greenlet is None:
            return
        began_s = time.monotonic()
        while not self._empty.wait(_LOOK_S):
            if time.monotonic() < max(began_s + self._flush_timeout_s, self.until_s):
                continue
            _log.error("%d outcomes could not be written; their tasks will run again", len(self))
            break
        self._greenlet.kill()
        self._greenlet = None
        for connection in (self.connection, self._results):
            if connection is not None:
                connection.close()

    def wake(self) -> None:
        """Schedule a write of the collected events. Switches: no."""
        self._has_events = True
        self._filled.set()
        self._empty.clear()

    def put(self, entry: Settlement) -> None:
        """Queue an entry to be written soon. Switches: no."""
        if self.expected:
            self.expected.discard(entry.tag)
        if not self.entries:
            # If other entries are waiting, the greenlet is already awake, and checks for more after
            # writing.
            self._filled.set()
            self._empty.clear()
        self.entries.append(entry)

    def expect(self, tag: str) -> None:
        """Count a message as not written until an entry with its tag is put. Switches: no."""
        self.expected.add(tag)
        self._empty.clear()

    def unwritten(self) -> list[Settlement]:
        """Return the unwritten entries in order; any thread may call this."""
        return list(self.entries)

    def tags(self) -> set[str]:
        """Return the tags of unwritten entries; any thread may call this."""
        tags = {entry.tag for entry in list(self.entries) if entry.tag}
        return tags | self.expected.copy()

    def __len__(self) -> int:
        """Count the entries that have not been written yet."""
        return len(self.entries) + len(self.expected)

    def wait_written(self, timeout_s: float) -> bool:
        """Wait until all entries are written; return False if time ran out. Switches: yes."""
        return bool(self._empty.wait(timeout_s))

    def _run(self) -> None:
        while True:
            self._filled.wait()
            # Entries put while this batch is being written set the event again.
            self._filled.clear()
            self._write_some()
            if self.entries:
                self._filled.set()
            elif not (self._filled.is_set() or self.expected):
                self._empty.set()

    def _write_some(self) -> None:
        """Write the oldest entries, and repeat until the server has accepted them."""
        pauses: Backoff | None = None
        publications: Sequence[Publication] = ()
        if self._has_events:
            self._has_events = False
            publications = self.collect()
        self._unsent.clear()
        while True:
            entries = self.entries[: self._batch]
            if self.pushed_to is not None:
                self.pushed_to.update(_pushed_to(entries))
            now_s = time.monotonic()
            for connection in (self.connection, self._results):
                if connection is not None and now_s - connection.used_at > RESTED_S:
                    connection.check_rested()
            try:
                not_held = self._write(entries, publications)
                break
            except OperationalError as exc:
                self._note_failure(exc)
                pauses = pauses or Backoff(_RETRY_FIRST_S, _RETRY_MAX_S)
                sleep(pauses.next_s())
        if pauses is not None:
            self._outage.recovered("outcomes are written again")
            # If a message is no longer held on a repeated write, the first attempt has most likely
            # settled it. Only an action that leaves a record or a stub behind shows for certain
            # that the message was lost.
            not_held = _keep_certain(not_held)
        self._batch = min(_BATCH, self._batch * 2)
        del self.entries[: len(entries)]
        for entry in entries:
            if entry.written is not None:
                entry.written(entry not in not_held)
            if entry.workflow is not None and entry.workflow.written:
                self._tell_written(entry, not_held)
        if not_held:
            _log_lost(not_held)

    def _note_failure(self, exc: OperationalError) -> None:
        if isinstance(exc, TransportTimeout):
            # The write may be too large for its timeout.
            self._batch = max(1, self._batch // 2)
        self._outage.failed(f"{len(self.entries)} outcomes are waiting to be written", exc)

    def _write(
        self, entries: list[Settlement], publications: Sequence[Publication] = ()
    ) -> set[Settlement]:
        """Write entries, and return those whose message was not held.

        An entry that the server refuses permanently does not stop the other entries.
        """
        try:
            return self._settle(entries, publications)
        except ServerError as exc:
            if exc.passes:
                raise
            if len(entries) > 1:
                not_held = [self._write([entry]) for entry in entries]
                self._settle([], publications)
                # The refused call may have settled the entries before the one that was refused.
                return _keep_certain(set().union(*not_held))
            _log.error("the server refused an outcome permanently: %s", exc.reply)
            # The state of this entry cannot be stored, and its message must not run again forever.
            if not entries:
                return set()
            refused = entries[0]
            self._unsent.add(refused)
            if refused.workflow is not None and refused.workflow.refused is not None:
                self.expect(refused.tag)
                refused.workflow.refused(refused, exc.reply)
            elif refused.result is not None:
                return self._write([Settlement(refused.tag, refused.action, move=refused.move)])
            return set()

    def _settle(
        self, entries: list[Settlement], publications: Sequence[Publication] = ()
    ) -> set[Settlement]:
        if not entries and not publications:
            return set()
        settled = settle(
            self.connection,
            self._keys,
            entries,
            publications,
            fence=self._fence,
            results=self._results,
        )
        self._note_unpublished(settled.unpublished)
        if settled.misplaced:
            self._note_misplaced(settled.misplaced, [entries[i] for i in settled.stuck])
        for i in settled.withheld | settled.stuck | settled.void:
            self._unsent.add(entries[i])
        for i in settled.withheld:
            self._complete(entries[i])
        return {entries[i] for i in settled.not_held}

    def _tell_written(self, entry: Settlement, not_held: set[Settlement]) -> None:
        """Notify the senders of a message's pushes; this runs the code of receivers."""
        assert entry.workflow is not None
        if entry not in not_held and entry not in self._unsent:
            spawn(_call_each, entry.workflow.written, entry.about, name="sent")

    def _complete(self, entry: Settlement) -> None:
        """Request a chord's completion, so that the ending of its last part sends the body."""
        assert entry.workflow is not None
        assert entry.workflow.complete is not None
        self.expect(entry.tag)
        entry.workflow.complete(entry)

    def _note_misplaced(self, misplaced: str, stuck: list[Settlement]) -> None:
        """Log what cannot be moved; report the refusal to each workflow that cannot continue."""
        _log.error("messages stay reserved because they cannot be moved: %s", misplaced)
        for entry in stuck:
            if entry.workflow is not None and entry.workflow.refused is not None:
                self.expect(entry.tag)
                entry.workflow.refused(entry, misplaced)

    def _note_unpublished(self, refused: str) -> None:
        if refused.startswith(INDEX):
            text = "the index of workflows is incomplete: it cannot be written"
            self._index_outage.failed(text, ServerError("HSET", refused.removeprefix(INDEX)))
        elif refused:
            text = "results and events are not published: their listeners receive nothing"
            self._publish_outage.failed(text, ServerError("PUBLISH", refused))


def _pushed_to(entries: Sequence[Settlement]) -> Iterator[str]:
    for entry in entries:
        if entry.workflow is not None:
            yield from (push.key for push in entry.workflow.pushes)


def _call_each(written: Sequence[Callable[[], object]], about: object) -> None:
    for call in written:
        try:
            call()
        except BaseException:
            # This is the boundary to user code, the receivers of after_task_publish.
            _log.exception("a receiver of the messages sent by task %s failed", about)


def _keep_certain(not_held: set[Settlement]) -> set[Settlement]:
    """Return the entries without those that an earlier attempt may have settled."""
    return {entry for entry in not_held if entry.action not in {ACKNOWLEDGE, MOVE}}


def _log_lost(not_held: set[Settlement]) -> None:
    """Log the tasks whose messages have been given to other workers in the meantime."""
    for entry in not_held:
        if entry.about is not None:
            _log.warning(
                "%s was given to another worker while it ran here, so it runs twice%s",
                entry.about, _describe_fate(entry),
            )  # fmt: skip


def _describe_fate(entry: Settlement) -> str:
    """Return a phrase that says what happens to the state of a message that is no longer held."""
    if entry.result is None:
        return ""
    if entry.result.rule.startswith(KIND_SUCCESS):
        return "; its success is stored unless the other run has ended"
    return "; the other run determines its state"
