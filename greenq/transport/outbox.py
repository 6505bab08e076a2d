"""Group commit: everything that finished while the last write was under way goes out in the next.

No timer and no size decides when to write: an idle outbox writes an entry at once, a busy one
gathers what comes meanwhile. In each write the order is results, then moves (requeue, retry, bury),
then acknowledgements, in one transaction, so that a message is acknowledged only with its outcome
stored: a server without memory would refuse the one and carry out the other.

What cannot be written is kept and written again with the same content until the server takes it;
all of it may be repeated harmlessly. It is bounded by what runs.
"""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING

from greenq.bootsteps import StartStopStep
from greenq.errors import ConnectionLost, OperationalError, ServerError, TransportTimeout
from greenq.hub import Event, Greenlet, sleep, spawn
from greenq.outage import Outage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from greenq.transport.broker import Move
    from greenq.transport.client import Command, Connection
    from greenq.transport.links import Transport

_log = logging.getLogger(__name__)

# Entries written in one go; more wait for the next turn, so that one write stays well under its
# timeout.
_BATCH = 1000

_RETRY_FIRST_S = 0.05
_RETRY_MOST_S = 1.0


class Entry:
    """What one finished task, or one acknowledgement, wants written."""

    __slots__ = ("ack", "commands", "move", "written")

    def __init__(
        self,
        commands: Sequence[Command] = (),
        *,
        ack: str | None = None,
        move: Move | None = None,
        written: Callable[[], object] | None = None,
    ) -> None:
        """Keep the parts.

        Args:
            commands: result and notification, each harmless when repeated.
            ack: delivery tag to acknowledge.
            move: the reserved message's way back to a list, instead of an acknowledgement.
            written: called when all of it is on the server.
        """
        self.commands = commands
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
        self._broker = transport.broker
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
        # Own greenlet only.
        self._outage = Outage(_log)
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
            self._write_some()
            if not self._entries:
                self._filled.clear()
                self._empty.set()

    def _write_some(self) -> None:
        """Write the oldest entries, again and again until the server has taken them."""
        pause_s = _RETRY_FIRST_S
        while True:
            entries = self._entries[: self._batch]
            try:
                self._write(entries)
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

    def _write(self, entries: list[Entry]) -> None:
        commands = [command for entry in entries for command in entry.commands]
        if self._results is not None:
            self._send(self._results, commands)
            commands = []
        moves = [entry.move for entry in entries if entry.move is not None]
        tags = [entry.ack for entry in entries if entry.ack is not None]
        if moves:
            commands.append(self._broker.move_command(moves))
            commands += self._broker.bound_commands(moves)
        if tags:
            commands += self._broker.ack_commands(tags)
        self._send(self.connection, commands)

    def _send(self, connection: Connection, commands: list[Command]) -> None:
        if not commands:
            return
        if connection.connect() and connection is self.connection:
            self._broker.load_scripts(connection)
        answers = connection.try_transaction(commands)
        for command, answer in zip(commands, answers, strict=True):
            if isinstance(answer, OperationalError):
                self._refused(command, answer)

    def _refused(self, command: Command, error: OperationalError) -> None:
        """Raise if the command should be sent again, else say what is lost by its refusal."""
        if not isinstance(error, ServerError):
            raise error
        if error.reply.startswith("NOSCRIPT"):
            self._broker.load_scripts(self.connection)
            raise ConnectionLost("the server had forgotten the scripts; they are loaded again")
        if error.passes:
            raise error
        _log.error("the server refused %s of %s for good: %s", command[0], command[1], error.reply)
