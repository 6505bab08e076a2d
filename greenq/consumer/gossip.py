"""Gossip: who else is alive, and which one of all is to do something that only one may do."""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from greenq.bootsteps import StartStopStep
from greenq.errors import ContentDisallowed, DecodeError
from greenq.hub import spawn
from greenq.protocol.event import EXCHANGE, SILENT_INTERVALS, read_events

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from greenq.consumer.events import Events
    from greenq.ear import Ear
    from greenq.protocol.clock import LamportClock
    from greenq.protocol.keys import Keys
    from greenq.timer import Entry, Timer

_log = logging.getLogger(__name__)

# How often neighbours are looked for that have fallen silent.
_CHECK_S = 5.0

# A vote that has not come by then is not waited for.
_VOTES_S = 2.0

# What is done so much later than it was due was held up: this worker stood still.
_LATE_S = 0.5

# Then the others, who may not have, get so long to be heard.
_HEAR_S = 0.2

# Elections at once; what goes beyond is not taken part in.
_ELECTIONS = 1000

# Neighbours at once; of more, nothing is kept.
_NEIGHBOURS = 10_000

# The version of the way in which workers elect; others' votes do not count.
_VERSION = 1


@dataclass(slots=True)
class Neighbour:
    """Another worker.

    Attributes:
        node: its name.
        freq_s: its heartbeat's interval.
        heard_s: when it was last heard of, monotonic.
        told: the fields of its last event.
    """

    node: str
    freq_s: float = 2.0
    heard_s: float = 0.0
    told: Mapping[str, Any] = field(default_factory=dict)

    def is_alive(self, now_s: float) -> bool:
        """Tell whether it was heard of within two of its intervals."""
        return now_s < self.heard_s + SILENT_INTERVALS * self.freq_s


@dataclass(slots=True)
class _Election:
    """The votes for one election: node to (clock, name, topic, action)."""

    deadline: Entry
    votes: dict[str, tuple[int, str, str, Any]] = field(default_factory=dict)


def _begin(run: Callable[[], object]) -> None:
    spawn(run, name="leader")


class Gossip(StartStopStep):
    """Listens to the events of all workers.

    1. Keep the list of live neighbours, and the logical clock ahead of theirs.
    2. Hold elections. Who asks for one has all workers vote: each publishes its clock. The lowest
       clock wins, of equal ones the smallest name. Every worker comes to the same end by itself, as
       soon as it has the vote of each live neighbour, or after two seconds.
    """

    name = "Gossip"
    requires = ("Events",)

    def __init__(
        self,
        ear: Ear,
        events: Events,
        timer: Timer,
        keys: Keys,
        clock: LamportClock,
        *,
        hostname: str,
        accept: frozenset[str],
        leaders: Mapping[str, Callable[[Any], object]],
        claim: Callable[[str], bool],
        begin: Callable[[Callable[[], object]], object] = _begin,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Listen for the node `hostname`.

        Args:
            accept: content types of events.
            leaders: what the winner of an election on a topic does with its action.
            claim: asks the server whether no other has acted as the winner of an election.
            begin: has something done in a greenlet of its own.
        """
        self.neighbours: dict[str, Neighbour] = {}
        self._ear = ear
        self._events = events
        self._timer = timer
        self._clock = clock
        self._hostname = hostname
        self._accept = accept
        self._leaders = leaders
        self._claim = claim
        self._begin = begin
        self._now_s = now_s
        self._channel = keys.fanout(EXCHANGE, "worker.*")
        self._elections: dict[str, _Election] = {}
        # Late votes must not open them again.
        self._decided: deque[str] = deque(maxlen=_ELECTIONS)
        self._check: Entry | None = None

    def start(self) -> None:
        """Begin to listen."""
        self._ear.listen(self._channel, self.hear)
        self._check = self._timer.call_repeatedly(_CHECK_S, self.drop_silent)

    def stop(self) -> None:
        """Listen no longer, and forget what may change meanwhile."""
        self._ear.ignore(self._channel)
        if self._check is not None:
            self._check.cancel()
        for election in self._elections.values():
            election.deadline.cancel()
        self._elections.clear()
        self.neighbours.clear()

    def elect(self, election_id: str, topic: str, action: object) -> None:
        """Vote in an election that somebody has asked for."""
        if len(self._elections) >= _ELECTIONS:
            _log.error("too many elections at once: no vote in %s", election_id)
            return
        vote = {"id": election_id, "topic": topic, "action": action, "cver": _VERSION}
        if self._ear.late_s > _LATE_S:
            self._timer.call_after(_HEAR_S, lambda: self._vote_late(election_id, vote))
        else:
            self._events.send("worker-elect", vote)

    def _vote_late(self, election_id: str, vote: Mapping[str, Any]) -> None:
        """Vote after having stood still, if no other has: those may have decided already."""
        if election_id not in self._elections and election_id not in self._decided:
            self._events.send("worker-elect", vote)

    def hear(self, data: bytes) -> None:
        """Take note of a worker's event."""
        try:
            events = read_events(data, self._accept)
        except (DecodeError, ContentDisallowed) as exc:
            _log.warning("what came as an event of a worker is none: %s", exc)
            return
        for event in events:
            self._note(event)

    def drop_silent(self) -> None:
        """Forget the neighbours that have not been heard of for too long."""
        if self._check is not None and self._stood_still(self._check):
            return
        now_s = self._now_s()
        for neighbour in list(self.neighbours.values()):
            if not neighbour.is_alive(now_s):
                del self.neighbours[neighbour.node]
                _log.info("missed heartbeat from %s", neighbour.node)
                self._decide_all()

    def _note(self, event: Mapping[str, Any]) -> None:
        node, kind = event["hostname"], event["type"]
        if node == self._hostname:
            self._clock.forward()
        else:
            self._clock.adjust(event["clock"])
            self._meet(node, kind, event)
        if kind == "worker-elect":
            self._count(event)

    def _meet(self, node: str, kind: str, event: Mapping[str, Any]) -> None:
        if kind == "worker-offline":
            if self.neighbours.pop(node, None):
                _log.info("%s left", node)
                self._decide_all()
            return
        neighbour = self.neighbours.get(node)
        if neighbour is None:
            if len(self.neighbours) >= _NEIGHBOURS:
                return
            neighbour = self.neighbours[node] = Neighbour(node)
            _log.info("%s is there", node)
        freq_s = event.get("freq")
        if isinstance(freq_s, int | float) and 0 < freq_s < float("inf"):
            neighbour.freq_s = float(freq_s)
        neighbour.heard_s = self._now_s()
        neighbour.told = event

    def _count(self, event: Mapping[str, Any]) -> None:
        """Note a vote, say that it was heard, and look whether it was the last one."""
        election_id, topic = event.get("id"), event.get("topic")
        if not isinstance(election_id, str) or not isinstance(topic, str):
            _log.warning("a vote of %s names no election", event["hostname"])
            return
        if event.get("cver") != _VERSION:
            _log.warning("%s elects in another way; its vote does not count", event["hostname"])
            return
        election = self._elections.get(election_id)
        if election is None:
            if election_id in self._decided or len(self._elections) >= _ELECTIONS:
                return
            deadline = self._timer.call_after(_VOTES_S, lambda: self._close(election_id))
            election = self._elections[election_id] = _Election(deadline)
        voter = f"{event['hostname']}.{event.get('pid')}"
        election.votes[event["hostname"]] = event["clock"], voter, topic, event.get("action")
        # Celery's workers count these.
        self._events.send("worker-elect-ack", {"id": election_id})
        self._decide_if_complete(election_id)

    def _decide_all(self) -> None:
        for election_id in list(self._elections):
            self._decide_if_complete(election_id)

    def _decide_if_complete(self, election_id: str) -> None:
        """Decide when all have voted that are not known to be lost."""
        # Even if silent for too long: they may have spoken while this worker stood still.
        if self.neighbours.keys() | {self._hostname} <= self._elections[election_id].votes.keys():
            self._decide(election_id)

    def _close(self, election_id: str) -> None:
        """Decide without the votes that have not come."""
        election = self._elections[election_id]
        if self._stood_still(election.deadline):
            # Its own vote may be the only one that it knows, and would make it a second leader.
            election.deadline = self._timer.call_after(_HEAR_S, lambda: self._close(election_id))
        else:
            self._decide(election_id)

    def _stood_still(self, due: Entry) -> bool:
        """Tell whether what the others have said meanwhile is still to be heard."""
        is_late = self._timer.clock() - due.due_s > _LATE_S
        return is_late or self._ear.has_waiting(self._channel)

    def _decide(self, election_id: str) -> None:
        """Find the winner among those who have voted; if it is this worker, it acts."""
        election = self._elections.pop(election_id)
        election.deadline.cancel()
        self._decided.append(election_id)
        node, (_clock, _name, topic, action) = min(
            election.votes.items(), key=lambda vote: vote[1][:2]
        )
        if node != self._hostname:
            _log.info("%s was elected for %s %s", node, topic, election_id)
            return
        _log.info("this worker was elected for %s %s", topic, election_id)
        act = self._leaders.get(topic)
        if act is None:
            known = ", ".join(sorted(self._leaders))
            _log.error("nobody leads in elections on %r: known topics are %s", topic, known)
            return
        self._begin(partial(self._lead, election_id, topic, partial(act, action)))

    def _lead(self, election_id: str, topic: str, act: Callable[[], object]) -> None:
        """Act as the winner, unless a worker that decided without this one's vote has."""
        try:
            if self._claim(election_id):
                act()
            else:
                _log.warning("another worker acts as the winner of %s %s", topic, election_id)
        except Exception:
            _log.exception("what the elected worker was to do for %s failed", topic)
