"""Voting: counts the votes of the elections in progress, and finds each winner."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from greenq.protocol.limits import KEPT_NAME, named

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from greenq.consumer.event_sender import EventsStep
    from greenq.timer import Timer, TimerEntry
    from greenq.utils.log import Repeated

_log = logging.getLogger(__name__)

# How long to wait for votes.
_VOTES_S = 2.0

# A timer that fires later than this shows that this worker was blocked.
LATE_S = 0.5

# A worker that was blocked gets this long to read what other workers have sent in the meantime.
_HEAR_S = 0.2

# The maximum number of elections at once; the worker ignores further ones.
_ELECTIONS = 1000

# The maximum number of votes in all elections at once; further ones do not count.
_VOTES = 20_000

# The version of the election protocol; votes of other versions do not count.
_VERSION = 1


@dataclass(slots=True)
class Election:
    """An election in progress.

    Attributes:
        deadline: ends the election even if votes are missing.
        votes: the clock, name and topic in each node's vote.
        action: what this worker does if it wins.
        is_known: whether the leases have been read since the election began, so that all voters are
            known.
    """

    deadline: TimerEntry
    votes: dict[str, tuple[int, str, str]] = field(default_factory=dict)
    action: Any = None
    is_known: bool = False


class Voting:
    """The elections in progress.

    When an election is requested, each worker votes by publishing its clock. The lowest clock wins;
    among equal clocks, the smallest name wins. Each worker finds the winner by itself, with the
    same result, as soon as it has the votes of all live neighbours, or after two seconds.
    """

    def __init__(
        self,
        events: EventsStep,
        timer: Timer,
        *,
        hostname: str,
        leaders: Mapping[str, Callable[[Any], object]],
        claim: Callable[[str], bool],
        neighbours: Collection[str],
        stood_still: Callable[[TimerEntry], bool],
        look: Callable[[], object],
        begin: Callable[[Callable[[], object], str], object],
        repeated: Repeated,
    ) -> None:
        """Vote for the node `hostname`.

        Args:
            leaders: for each topic, the function that the winner calls with the election's action.
            claim: claims a win on the server; returns False if another worker has claimed it.
            neighbours: the nodes whose votes are awaited; the caller updates this collection.
            stood_still: returns whether this worker was blocked until this timer fired, or still
                has unread events.
            look: requests a read of the leases; `know` must be called after it.
            begin: runs a function in a separate named greenlet.
            repeated: the log for what other workers can cause.
        """
        self._events = events
        self._timer = timer
        self._hostname = hostname
        self._leaders = leaders
        self._claim = claim
        self._neighbours = neighbours
        self._stood_still = stood_still
        self._look = look
        self._begin = begin
        self._repeated = repeated
        self.elections: dict[str, Election] = {}
        # The number of votes in all elections.
        self.votes = 0
        # Finished elections, remembered so that a late vote does not reopen one.
        self.decided: deque[str] = deque(maxlen=_ELECTIONS)

    def stop(self) -> None:
        """Forget the elections in progress."""
        for election in self.elections.values():
            election.deadline.cancel()
        self.elections.clear()
        self.votes = 0

    def elect(self, election_id: str, topic: str, action: object, *, late: bool = False) -> None:
        """Vote in an election that was requested; `late` means that this worker was blocked.

        Raises:
            ValueError: the election's id or topic is too long.
        """
        for name, value in (("id", election_id), ("topic", topic)):
            wrong = KEPT_NAME.wrong(value)
            if wrong:
                raise ValueError(named(f"the election's {name}", wrong))
        if len(self.elections) >= _ELECTIONS:
            self._repeated.log(
                "too many elections at once: not voting in %s", election_id, level=logging.ERROR
            )
            return
        vote = {"id": election_id, "topic": topic, "action": action, "cver": _VERSION}
        if late:
            self._timer.call_after(_HEAR_S, lambda: self._vote_late(election_id, vote))
        else:
            self._events.send("worker-elect", vote)

    def _vote_late(self, election_id: str, vote: Mapping[str, Any]) -> None:
        """Vote although this worker was blocked, unless others may already have decided."""
        if election_id not in self.elections and election_id not in self.decided:
            self._events.send("worker-elect", vote)

    def count(self, event: Mapping[str, Any]) -> None:
        """Record and acknowledge a vote, and decide the election if no vote is missing."""
        election_id, topic, node = event.get("id"), event.get("topic"), event["hostname"]
        takes = KEPT_NAME.takes
        if not takes(election_id) or not takes(topic) or not takes(node):
            self._repeated.log(
                "a vote by %.100s does not count: its id, topic or node is not a name", node
            )
            return
        if event.get("cver") != _VERSION:
            self._repeated.log(
                "%s has a different election protocol; its vote does not count", node
            )
            return
        if self.votes >= _VOTES:
            self._repeated.log("too many votes at once: the vote of %s does not count", node)
            return
        election = self.elections.get(election_id)
        is_new = election is None
        if election is None:
            if election_id in self.decided or len(self.elections) >= _ELECTIONS:
                return
            deadline = self._timer.call_after(_VOTES_S, lambda: self._close(election_id))
            election = self.elections[election_id] = Election(deadline)
        self.votes += node not in election.votes
        election.votes[node] = event["clock"], f"{node}.{event.get('pid')!s:.20}", topic
        if node == self._hostname:
            election.action = event.get("action")
        # Celery's workers count these acknowledgements.
        self._events.send("worker-elect-ack", {"id": election_id})
        if is_new:
            self._look()
        self._decide_if_complete(election_id)

    def know(self, begun: Iterable[Election]) -> None:
        """Note that the leases have been read since these elections began."""
        for election in begun:
            election.is_known = True
        self.decide_all()

    def decide_all(self) -> None:
        """Decide the elections for which no vote is missing any more."""
        for election_id in list(self.elections):
            self._decide_if_complete(election_id)

    def _decide_if_complete(self, election_id: str) -> None:
        """Decide if all nodes, except those known to be lost, have voted."""
        election = self.elections.get(election_id)
        if election is None or not election.is_known:
            return
        # Compare the numbers first, because comparing many names takes long.
        if len(election.votes) < len(self._neighbours):
            return
        # Even silent neighbours count: they may have voted while this worker was blocked.
        if election.votes.keys() >= {*self._neighbours, self._hostname}:
            self.decide(election_id)

    def _close(self, election_id: str) -> None:
        """Decide without the missing votes."""
        election = self.elections[election_id]
        if self._stood_still(election.deadline):
            # After being blocked, this worker may have read only its own vote, and could become a
            # second leader.
            election.deadline = self._timer.call_after(_HEAR_S, lambda: self._close(election_id))
        else:
            self.decide(election_id)

    def decide(self, election_id: str) -> None:
        """Find the winner among the votes, and act if it is this worker."""
        election = self.elections.pop(election_id)
        self.votes -= len(election.votes)
        election.deadline.cancel()
        self.decided.append(election_id)
        node, (_clock, _name, topic) = min(election.votes.items(), key=lambda vote: vote[1][:2])
        if node != self._hostname:
            self._repeated.log(
                "%s was elected for %s %s", node, topic, election_id, level=logging.INFO
            )
            return
        self._repeated.log(
            "this worker was elected for %s %s", topic, election_id, level=logging.INFO
        )
        act = self._leaders.get(topic)
        if act is None:
            known = ", ".join(sorted(self._leaders))
            self._repeated.log(
                "no leader is registered for elections on %r: known topics are %s",
                *(topic, known), level=logging.ERROR,
            )  # fmt: skip
            return
        self._begin(
            partial(self._lead, election_id, topic, partial(act, election.action)), "leader"
        )

    def _lead(self, election_id: str, topic: str, act: Callable[[], object]) -> None:
        """Act as the winner, unless another worker, which lacked this one's vote, has done so."""
        try:
            if self._claim(election_id):
                act()
            else:
                _log.warning("another worker acts as the winner of %s %s", topic, election_id)
        except Exception:
            _log.exception("the action of the elected worker for %s failed", topic)
