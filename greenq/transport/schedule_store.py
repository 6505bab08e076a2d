"""The data that beats share on the server: entries added at run time, states, pauses, history.

One script (lua/beat_claim.lua) claims a due time and sends its messages, by the server's clock. So
any number of beats can run.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from greenq.errors import SignatureError
from greenq.transport.client import load_script

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from greenq.protocol.keys import Keys
    from greenq.protocol.signer import Signer
    from greenq.transport.client import Client

_CLAIM = load_script("beat_claim")
_BEGIN = load_script("beat_begin")
_SET = load_script("beat_set")
_LEAD = load_script("beat_lead")

# Another beat takes over if the leader has not called for this long.
LEAD_S: Final = 3.8

# A worker's beat asks who leads whenever the worker's lease is renewed, and at least this often.
# Together with LEAD_S, this leaves room for two late calls, and a leader that has died is replaced
# within 5 s.
RENEW_S: Final = 1.2

MOST_ENTRIES: Final = 100_000
MOST_HISTORY: Final = 10_000
_NAME_CHARS: Final = 255
_ENTRY_BYTES: Final = 64 * 1024

# How many claims, and how many new states, one call may contain. These are limited because the
# server runs one script at a time.
MOST_CLAIMS: Final = 200
_MOST_BEGUN: Final = 1000


class EntryState(NamedTuple):
    """The progress of an entry. Times are unix microseconds of the server's clock.

    Attributes:
        due: its last due time that was sent or skipped, or the time at which its schedule started.
        sent: when its last task was sent; 0 if none was sent.
        task_id: the id of that task.
        runs: how many tasks were sent.
    """

    due: int
    sent: int
    task_id: str | None
    runs: int


def read_state(text: str) -> EntryState:
    """Parse a state from the server.

    Raises:
        ValueError: the text is not a state.
    """
    due, sent, task_id, runs = text.split(" ")
    return EntryState(int(due), int(sent), None if task_id == "-" else task_id, int(runs))


class QueueLimits(NamedTuple):
    """The limits of a queue.

    Attributes:
        most: how many messages may wait; 0 means any number.
        lives_ms: how long its lists are kept without use; 0 means no limit.
        lists: all lists of the queue; empty if the queue has no limits.
    """

    most: int = 0
    lives_ms: int = 0
    lists: tuple[str, ...] = ()


NO_LIMITS: Final = QueueLimits()


class DueClaim(NamedTuple):
    """A due time to send or, if there are no texts, to skip.

    Attributes:
        name: the entry's name.
        seen: the entry's state, as the text that was last read.
        due: the due time.
        ready: when it may be sent; later than `due` if the entry has jitter.
        task_id: the message's task id.
        texts: the message's text for each of the lists, or once for the channel.
        lists, channel: where to push the message, or to publish it.
        limits: the limits of each list's queue; empty if no queue has any.
    """

    name: str
    seen: str
    due: int
    ready: int
    task_id: str = ""
    texts: tuple[str | bytes, ...] = ()
    lists: tuple[str, ...] = ()
    channel: str = ""
    limits: tuple[QueueLimits, ...] = ()


class ClaimOutcome(NamedTuple):
    """The outcome of a claim: sent, skipped, changed, early, paused or an error.

    Attributes:
        said: one of these words, or the error.
        state: the entry's state now, as text; empty if the server has none.
    """

    said: str
    state: str


class Lead(NamedTuple):
    """The server's reply to a beat that asks for the lead.

    Attributes:
        now: the server's time, in microseconds.
        leads: whether the caller leads.
        changes: how many times entries have been changed at run time.
        leader: the beat that leads.
    """

    now: int
    leads: bool
    changes: int
    leader: str


class LeadCall(NamedTuple):
    """The part of a lease's renewal that asks for the lead of the worker's beat.

    Attributes:
        leader, changes: the keys.
        who: the beat.
        term_s: how many seconds may pass until the leader calls again.
    """

    leader: str
    changes: str
    who: str
    term_s: float


class Sent(NamedTuple):
    """A record in the history; times are in unix microseconds."""

    due: int
    sent: int
    task_id: str
    name: str


class ScheduleStore:
    """The periodic entries of one server. Switches: yes."""

    def __init__(self, client: Client, keys: Keys, signer: Signer | None = None) -> None:
        """Use `client`'s server with the key names of `keys`.

        `signer` signs and checks entries added at run time; None means neither.
        """
        self._client = client
        self._keys = keys
        self._signer = signer

    # --- for beats -----------------------------------------------------------------------------

    def lead(self, schedule: str, who: str) -> Lead:
        """Ask for the lead among the beats with the same entries, or keep the lead."""
        keys = [self._keys.beat_leader(schedule), self._keys.beat_changes]
        now, leads, changes, leader = self._client.script(_LEAD, keys, [who, int(LEAD_S * 1000)])
        return Lead(int(now), bool(leads), int(changes), leader.decode(errors="replace"))

    def lead_call(self, schedule: str, who: str) -> LeadCall:
        """Return the data that makes a lease renewal ask for the lead, as `lead` does."""
        return LeadCall(self._keys.beat_leader(schedule), self._keys.beat_changes, who, LEAD_S)

    def resign(self, schedule: str, who: str) -> None:
        """Give up the lead, so that another beat need not wait until the lead expires."""
        key = self._keys.beat_leader(schedule)
        if self._client.call("GET", key) == who.encode():
            self._client.call("DEL", key)

    def claim(self, claims: Sequence[DueClaim]) -> tuple[int, list[ClaimOutcome]]:
        """Claim at most `MOST_CLAIMS` due times; return the server's time and the outcome of each.

        Repeating a call whose reply was lost sends nothing twice.
        """
        keys = [self._keys.beat_states, self._keys.beat_paused, self._keys.beat_history]
        args: list[Any] = [MOST_HISTORY]
        for claim in claims:
            limits = claim.limits or (NO_LIMITS,) * len(claim.texts)
            args += [*claim[:5], claim.channel, len(claim.texts)]
            for text, limit in zip(claim.texts, limits, strict=True):
                args += [limit.most, limit.lives_ms, len(limit.lists), text]
            for key, limit in zip(claim.lists, limits, strict=False):
                keys += [key, *limit.lists]
        now, *said = self._client.script(_CLAIM, keys, args)
        texts = [each.decode(errors="replace") for each in said]
        return int(now), list(map(ClaimOutcome, texts[::2], texts[1::2]))

    def begin(self, names: Sequence[str], known: Mapping[str, str], changes: int) -> dict[str, str]:
        """Give each entry without a state its `known` state, or one that starts now.

        Entries are omitted if any entry was changed after `changes` was read, because that change
        may have removed them.
        """
        states: dict[str, str] = {}
        for at in range(0, len(names), _MOST_BEGUN):
            part = names[at : at + _MOST_BEGUN]
            args = [each for name in part for each in (name, known.get(name, ""))]
            keys = [self._keys.beat_states, self._keys.beat_changes]
            answer = self._client.script(_BEGIN, keys, [changes, *args])
            if not answer:
                break
            states.update(zip(part, (each.decode() for each in answer), strict=True))
        return states

    def forget(self, names: Sequence[str]) -> None:
        """Delete what is stored about entries that no longer exist."""
        keys = self._keys
        self._client.pipeline([("HDEL", key, *names) for key in (keys.beat_states, keys.beat_runs)])

    # --- for all programs ------------------------------------------------------------------------

    def states(self) -> dict[str, str]:
        """Return the state of each entry, as text."""
        return self._texts(self._keys.beat_states)

    def entries(self) -> dict[str, bytes]:
        """Return the entries added at run time, in their stored form, for `open_entry`."""
        return self._fields(self._keys.beat_entries)

    def open_entry(self, name: str, data: bytes) -> str:
        """Return, as JSON, an entry that was added at run time.

        Raises:
            SignatureError: a signature is required, but the entry has none that is valid for this
                name.
        """
        if self._signer is not None:
            try:
                data = self._signer.open("entry", name, data)
            except SignatureError as exc:
                raise SignatureError(
                    f"the periodic entry {name!r} added at run time is refused: {exc}; remove it "
                    "with greenq beat remove, or add it again with security_signing_key set"
                ) from exc
        return data.decode(errors="replace")

    def paused(self) -> dict[str, dict[str, Any]]:
        """Return the paused entries: ``{name: {"by": who, "at": unix seconds}}``."""
        found = self._texts(self._keys.beat_paused)
        return {name: _note(text) for name, text in found.items()}

    def runs(self) -> dict[str, dict[str, Any]]:
        """Return how the last finished run of each entry ended."""
        return {name: _note(text) for name, text in self._texts(self._keys.beat_runs).items()}

    def history(self, limit: int) -> list[Sent]:
        """Return up to `limit` records of the history, newest first."""
        lines = self._client.call("LRANGE", self._keys.beat_history, 0, limit - 1)
        found = []
        for line in lines:
            due, sent, task_id, name = line.decode(errors="replace").split(" ", 3)
            found.append(Sent(int(due), int(sent), task_id, name))
        return found

    def _texts(self, key: str) -> dict[str, str]:
        return {name: data.decode(errors="replace") for name, data in self._fields(key).items()}

    def _fields(self, key: str) -> dict[str, bytes]:
        answer = self._client.call("HGETALL", key)
        names = [name.decode(errors="replace") for name in answer[::2]]
        return dict(zip(names, answer[1::2], strict=True))

    # --- changes ----------------------------------------------------------------------------------

    def put(self, name: str, text: str) -> None:
        """Add an entry, or replace the entry with this name.

        Raises:
            ValueError: the name or the entry is too long, or there are too many entries.
        """
        _check_name(name)
        if len(text.encode()) > _ENTRY_BYTES:
            raise ValueError(f"entry {name!r} is longer than {_ENTRY_BYTES:,} bytes")
        sealed = text if self._signer is None else self._signer.seal("entry", name, text)
        self._set(self._keys.beat_entries, name, sealed)

    def remove(self, name: str) -> bool:
        """Remove an entry that was added at run time; return False if there is none."""
        keys = self._keys
        hashes = (keys.beat_entries, keys.beat_states, keys.beat_paused, keys.beat_runs)
        deleting = [("HDEL", key, name) for key in hashes]
        commands = [("MULTI",), *deleting, ("INCR", keys.beat_changes), ("EXEC",)]
        return bool(self._client.pipeline(commands)[-1][0])

    def pause(self, name: str, note: Mapping[str, Any]) -> None:
        """Pause an entry, so that nothing is sent for it until the entry is resumed."""
        _check_name(name)
        self._set(self._keys.beat_paused, name, json.dumps(note))

    def resume(self, name: str) -> bool:
        """Resume a paused entry and start its schedule now; return False if it was not paused."""
        keys = [self._keys.beat_states, self._keys.beat_changes, self._keys.beat_paused]
        return bool(self._client.script(_BEGIN, keys, ["", name, ""]))

    def note_runs(self, notes: Mapping[str, Mapping[str, Any]]) -> None:
        """Store how the last run of each of these entries ended."""
        fields = [each for name, note in notes.items() for each in (name, json.dumps(note))]
        self._client.call("HSET", self._keys.beat_runs, *fields)

    def _set(self, key: str, name: str, text: str | bytes) -> None:
        if not self._client.script(
            _SET, [key, self._keys.beat_changes], [name, text, MOST_ENTRIES]
        ):
            raise ValueError(f"there are already {MOST_ENTRIES:,} entries; remove some first")


def _check_name(name: str) -> None:
    if not 0 < len(name) <= _NAME_CHARS:
        raise ValueError(f"the name of an entry must have 1 to {_NAME_CHARS} characters")


def _note(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}
