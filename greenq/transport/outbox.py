"""Group commit: everything that finished while the last write was under way goes out in the next.

No timer and no size decides when to write: an idle outbox writes an entry at once, a busy one
gathers what comes meanwhile. In each write the order is results, then moves (requeue, retry, bury),
then acknowledgements, in one script, so that a message is acknowledged only with its outcome
stored: a server without memory refuses the one with the other. Behind them, in the same call, goes
the news: events for whoever listens.

What cannot be written is kept and written again with the same content until the server takes it;
all of it may be repeated harmlessly. It is bounded by what runs.
"""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING

from greenq.bootsteps import StartStopStep
from greenq.errors import OperationalError, ServerError, TransportTimeout
from greenq.hub import Event, Greenlet, sleep, spawn
from greenq.outage import Outage
from greenq.transport.settle import settle

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from greenq.transport.client import Connection
    from greenq.transport.links import Transport
    from greenq.transport.settle import Move, Publication, Stored

_log = logging.getLogger(__name__)

# Entries written in one go; more wait for the next turn, so that one write stays well under its
# timeout.
_BATCH = 1000

_RETRY_FIRST_S = 0.05
_RETRY_MOST_S = 1.0


class Entry:
    """What one finished task, or one acknowledgement, wants written."""

    __slots__ = ("ack", "move", "result", "written")

    def __init__(
        self,
        result: Stored | None = None,
        *,
        ack: str | None = None,
        move: Move | None = None,
        written: Callable[[], object] | None = None,
    ) -> None:
        """Keep the parts.

        Args:
            result: a state to store and announce.
            ack: delivery tag to acknowledge.
            move: where the reserved message goes, instead of being acknowledged.
            written: called when all of it is on the server.
        """
        self.result = result
        self.ack = ack
        self.move = move
        self.written = written


class Outbox(StartStopStep):
    """Writes entries in the order in which they were put, in one greenlet.

    Over one connection, or two when results have a server of their own; results are written first
    then.
    """

    name = "Outbox"
    requires = ("Watch",)

    def __init__(self, transport: Transport, *, flush_timeout_s: float = 5.0) -> None:
        """Write to `transport`'s servers; `stop` waits `flush_timeout_s` for what is left."""
        self._keys = transport.keys
        self.connection = transport.client.connection()
        results = transport.result_client
        self._results: Connection | None = None
        if results is not None and results is not transport.client:
            self._results = results.connection()
        self._flush_timeout_s = flush_timeout_s
        self._entries: list[Entry] = []
        self._filled = Event()
        self._empty = Event()
        self._empty.set()
        self._greenlet: Greenlet | None = None
        # Fetches what is to be published with the next write; whoever has news sets it.
        self.news: Callable[[], Sequence[Publication]] = tuple
        # Own greenlet only.
        self._outage = Outage(_log)
        self._unheard = Outage(_log)
        self._batch = _BATCH

    def start(self) -> None:
        """Begin to write."""
        self._greenlet = spawn(self._run, name="outbox")

    def stop(self) -> None:
        """Write what is left; if the server is away too long, say what stays reserved."""
        if self._greenlet is None:
            return
        if not self._empty.wait(self._flush_timeout_s):
            _log.error(
                "%d outcomes could not be written; their tasks will run again", len(self._entries)
            )
        self._greenlet.kill()
        self._greenlet = None
        for connection in (self.connection, self._results):
            if connection is not None:
                connection.close()

    def stir(self) -> None:
        """Have the news fetched and written soon. Switches: no."""
        self._filled.set()
        self._empty.clear()

    def put(self, entry: Entry) -> None:
        """Have an entry written soon. Switches: no."""
        self._entries.append(entry)
        self._filled.set()
        self._empty.clear()

    def tags(self) -> set[str]:
        """Return the tags of what is not written yet; any thread may ask."""
        moves = [(entry.ack, entry.move) for entry in list(self._entries)]
        return {tag for ack, move in moves if (tag := ack or (move and move.tag))}

    def __len__(self) -> int:
        """Count the entries that are not written yet."""
        return len(self._entries)

    def wait_written(self, timeout_s: float) -> bool:
        """Wait until all is written; False if the time did not suffice. Switches: yes."""
        return bool(self._empty.wait(timeout_s))

    def _run(self) -> None:
        while True:
            self._filled.wait()
            # What comes while this is written sets it again.
            self._filled.clear()
            self._write_some()
            if self._entries:
                self._filled.set()
            elif not self._filled.is_set():
                self._empty.set()

    def _write_some(self) -> None:
        """Write the oldest entries, again and again until the server has taken them."""
        pause_s = _RETRY_FIRST_S
        news = self.news()
        while True:
            entries = self._entries[: self._batch]
            try:
                self._write(entries, news)
            except OperationalError as exc:
                if isinstance(exc, TransportTimeout):
                    # It may be too much for the time it has.
                    self._batch = max(1, self._batch // 2)
                self._outage.say(f"{len(self._entries)} outcomes wait to be written", exc)
                sleep(pause_s * random.uniform(0.5, 1.0))
                pause_s = min(pause_s * 2, _RETRY_MOST_S)
            else:
                break
        self._outage.over("outcomes are written again")
        self._batch = min(_BATCH, self._batch * 2)
        del self._entries[: len(entries)]
        for entry in entries:
            if entry.written is not None:
                entry.written()

    def _write(self, entries: list[Entry], news: Sequence[Publication] = ()) -> None:
        """Write entries; of several, what the server refuses for good does not stop the others."""
        try:
            self._settle(entries, news)
        except ServerError as exc:
            if exc.passes:
                raise
            # A move whose goal is of another type has stopped nothing: see the script.
            stopped = not exc.reply.startswith("WRONGTYPE")
            if stopped and len(entries) > 1:
                for entry in entries:
                    self._write([entry])
                self._settle([], news)
                return
            _log.error("the server refused an outcome for good: %s", exc.reply)
            # It is the state that cannot be stored, and its message must not run for ever.
            if stopped and entries[0].result is not None:
                self._write([Entry(ack=entries[0].ack, move=entries[0].move)])

    def _settle(self, entries: list[Entry], news: Sequence[Publication] = ()) -> None:
        results = [entry.result for entry in entries if entry.result is not None]
        moves = [entry.move for entry in entries if entry.move is not None]
        acks = [entry.ack for entry in entries if entry.ack is not None]
        if self._results is not None and results:
            self._note_unheard(settle(self._results, self._keys, results))
            results = []
        if results or moves or acks or news:
            self._note_unheard(settle(self.connection, self._keys, results, moves, acks, news))

    def _note_unheard(self, refused: str) -> None:
        if refused:
            text = "results and events are not published: who waits for them hears nothing"
            self._unheard.say(text, ServerError("PUBLISH", refused))
