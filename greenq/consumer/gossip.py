"""Gossip: tracks which other workers are alive, and takes part in elections."""

from __future__ import annotations

import logging
import math
import random
import time
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from greenq.bootsteps.blueprint import StartStopPart
from greenq.consumer.voting import LATE_S, Voting
from greenq.errors import ContentDisallowed, DecodeError, OperationalError, SignatureError
from greenq.hub import spawn
from greenq.protocol.event import EXCHANGE, SILENT_INTERVALS, read_events
from greenq.protocol.limits import INTERVAL, KEPT_NAME
from greenq.utils.log import Repeated

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from greenq.consumer.event_sender import EventsStep
    from greenq.protocol.clock import LamportClock
    from greenq.protocol.keys import Keys
    from greenq.protocol.signer import Signer
    from greenq.timer import Timer, TimerEntry
    from greenq.watchdog.subscriber import Subscriber

_log = logging.getLogger(__name__)

# Rare events, which are always subscribed to: a worker joins, leaves or votes.
_RARE = ("worker.online", "worker.offline", "worker.elect")

# Frequent events, which are subscribed to only while there may be workers that cannot be noticed in
# any other way. Acknowledgements of votes advance the clock, as heartbeats do.
_FREQUENT = ("worker.heartbeat", "worker.elect.ack")

# After it starts, and at intervals, a worker listens to all heartbeats for this long, which is
# slightly more than two of Celery's intervals.
_LISTEN_S = 5.0
_LISTEN_EVERY_S = 300.0

# Listening to heartbeats ends when no event from a worker of another kind has arrived for this
# long, or for two intervals of a worker whose heartbeats are less frequent.
_LINGER_S = 120.0

# How often to look for silent neighbours while subscribed to heartbeats.
_CHECK_S = 5.0

# How often to read the leases of a small fleet. In a large fleet, reading takes a long time and is
# done less often: the pause is `_LOOK_EACH_S` for each member.
_LOOK_S = 10.0
_LOOK_EACH_S = 0.1

# How many lines of each kind are logged per minute; this is enough for a fleet that is starting.
_LINES = 100

# The maximum number of neighbours at once; further ones are ignored.
_NEIGHBOURS = 10_000

# The software name (`sw_ident`) of workers with leases, and the event types that carry it.
_OURS = "greenq"
_TELLING = ("worker-online", "worker-heartbeat")


@dataclass(slots=True)
class Neighbour:
    """Another worker.

    Attributes:
        node: the worker's name.
        freq_s: the interval of its heartbeats; infinite if only its lease is known.
        heard_s: when its last event arrived, monotonic.
        leased: True if it holds a lease, so that its heartbeats are not needed.
    """

    node: str
    freq_s: float = 2.0
    heard_s: float = 0.0
    leased: bool = False


def _begin(run: Callable[[], object], name: str) -> None:
    spawn(run, name=name)


class Gossip(StartStopPart):
    """Listens to the events of workers.

    1. Keep the list of live neighbours. greenq's workers hold leases, which are read, together with
       the workers' clocks, for each election and at intervals. Their heartbeats, whose number grows
       with the fleet, are therefore not needed.
    2. Listen to heartbeats while there are workers of another kind (Celery's), which have no
       leases. Such workers are found by their reply to a starting worker's hello or by their
       events; to find any others, gossip listens at intervals.
    3. Hold elections (`Voting`), so that of all workers that receive a request, one acts on it.
    """

    name = "Gossip"
    requires = ("Events",)

    def __init__(
        self,
        subscriber: Subscriber,
        events: EventsStep,
        timer: Timer,
        keys: Keys,
        clock: LamportClock,
        *,
        hostname: str,
        accept: frozenset[str],
        leaders: Mapping[str, Callable[[Any], object]],
        claim: Callable[[str], bool],
        leased: Callable[[], Iterable[str]],
        greeted: Callable[[], Collection[str]] = frozenset,
        begin: Callable[[Callable[[], object], str], object] = _begin,
        signer: Signer | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Listen on behalf of the node `hostname`.

        Args:
            accept: content types of events.
            leaders: for each topic, the function that the winner of an election calls with the
                election's action.
            claim: claims the win of an election on the server; returns False if another worker has
                claimed it.
            leased: asks the server for the nodes that hold a lease, and adopts their clock; may
                switch.
            greeted: returns the nodes that have replied to this worker's hello.
            begin: runs a function in a separate named greenlet.
            signer: checks the events; None accepts them unsigned.
        """
        self.neighbours: dict[str, Neighbour] = {}
        self._subscriber = subscriber
        self._timer = timer
        self._clock = clock
        self._hostname = hostname
        self._accept = accept
        self._leased = leased
        self._greeted = greeted
        self._begin = begin
        self._signer = signer
        self._now_s = now_s
        self._rare = [keys.fanout(EXCHANGE, key) for key in _RARE]
        self._frequent = [keys.fanout(EXCHANGE, key) for key in _FREQUENT]
        self._check: TimerEntry | None = None
        self._timers: list[TimerEntry] = []
        # When listening to heartbeats began, and when it may end at the earliest; infinite if not
        # listening.
        self._listens_from_s = math.inf
        self._listens_until_s = 0.0
        self._is_looking = self._looks_again = False
        # How many messages on the event channels could not be read.
        self.ignored = 0
        # The nodes that have replied to this worker's hello, kept until it is known which of them
        # hold a lease.
        self._strangers: set[str] = set()
        self._repeated = Repeated(_log, at_once=_LINES)
        self.voting = Voting(
            events, timer, hostname=hostname, leaders=leaders, claim=claim,
            neighbours=self.neighbours, stood_still=self._stood_still, look=self._look,
            begin=begin, repeated=self._repeated,
        )  # fmt: skip

    def start(self) -> None:
        """Start listening to events and reading the leases."""
        for channel in self._rare:
            self._subscriber.subscribe(channel, self.receive)
        self._strangers = set(islice(self._greeted(), _NEIGHBOURS))
        self._listen(_LISTEN_S)
        every_s = _LISTEN_EVERY_S * random.uniform(0.8, 1.2)
        self._timers = [
            self._timer.call_repeatedly(every_s, lambda: self._listen(_LISTEN_S)),
            self._timer.call_after(_LOOK_S, self._look_on),
        ]
        self._look()

    def stop(self) -> None:
        """Stop listening, and forget everything that may change before the next start."""
        for channel in self._rare:
            self._subscriber.unsubscribe(channel)
        self._listen_no_longer()
        for entry in self._timers:
            entry.cancel()
        self._timers = []
        self.voting.stop()
        self.neighbours.clear()

    def elect(self, election_id: str, topic: str, action: object) -> None:
        """Vote in an election that was requested.

        Raises:
            ValueError: the election's id or topic is too long.
        """
        late = self._subscriber.late_s > LATE_S
        self.voting.elect(election_id, topic, action, late=late)

    def receive(self, data: bytes) -> None:
        """Record a worker's event."""
        try:
            if self._signer is not None:
                data = self._signer.open("event", EXCHANGE, data)
            events = read_events(data, self._accept)
        except (DecodeError, ContentDisallowed, SignatureError) as exc:
            self.ignored += 1
            self._repeated.log("a message that is not a worker's event was ignored: %s", exc)
            return
        for event in events:
            self._note(event)

    # --- who is there -----------------------------------------------------------------------------

    def _listen(self, seconds: float) -> None:
        """Listen to heartbeats for at least this long."""
        now_s = self._now_s()
        self._listens_until_s = max(self._listens_until_s, now_s + seconds)
        if self._check is None:
            self._listens_from_s = now_s
            for channel in self._frequent:
                self._subscriber.subscribe(channel, self.receive)
            self._check = self._timer.call_repeatedly(_CHECK_S, self.drop_silent)

    def _listen_no_longer(self) -> None:
        self._listens_from_s, self._listens_until_s = math.inf, 0.0
        for channel in self._frequent:
            self._subscriber.unsubscribe(channel)
        if self._check is not None:
            self._check.cancel()
            self._check = None

    def drop_silent(self) -> None:
        """Forget the neighbours that have been silent for too long."""
        if self._check is None or self._stood_still(self._check):
            return
        now_s = self._now_s()
        for neighbour in list(self.neighbours.values()):
            # Only the time that this worker spent listening counts.
            silent_s = now_s - max(neighbour.heard_s, self._listens_from_s)
            if silent_s >= SILENT_INTERVALS * neighbour.freq_s:
                self._lose(neighbour)
        if now_s >= self._listens_until_s:
            self._listen_no_longer()

    def _lose(self, neighbour: Neighbour) -> None:
        del self.neighbours[neighbour.node]
        self._repeated.log("missed heartbeat from %s", neighbour.node, level=logging.INFO)
        self.voting.decide_all()

    def _look_on(self) -> None:
        """Read the leases now, and again after a pause that grows with the number of neighbours."""
        self._look()
        pause_s = max(_LOOK_S, _LOOK_EACH_S * len(self.neighbours))
        self._timers[-1] = self._timer.call_after(pause_s, self._look_on)

    def _look(self) -> None:
        """Schedule a read of the leases; if one is in progress, read again after it."""
        self._looks_again = True
        if not self._is_looking:
            self._is_looking = True
            self._begin(self._look_at_leases, "gossip")

    def _look_at_leases(self) -> None:
        """Find out which nodes hold a lease, for the elections that have begun. Switches: yes."""
        try:
            while self._looks_again:
                self._looks_again = False
                timers, begun = self._timers, list(self.voting.elections.values())
                # A node that joins during the call may be missing from the result.
                before = {each.node for each in self.neighbours.values() if each.leased}
                leased = {*self._leased()} - {self._hostname, ""}
                # If gossip was stopped during the call, the result no longer counts, even if gossip
                # has been started again.
                if self._timers is timers:
                    self._follow(before, leased)
                    self.voting.know(begun)
        except OperationalError as exc:
            # Even if the leases are unknown, elections end after two seconds.
            _log.debug("the leases could not be read: %s", exc)
        finally:
            self._is_looking = False

    def _follow(self, before: set[str], leased: set[str]) -> None:
        """Note which nodes hold a lease, and which ones no longer do."""
        for node in leased:
            neighbour = self.neighbours.get(node) or self._add(node, freq_s=math.inf)
            if neighbour is not None:
                neighbour.leased = True
        for node in before - leased:
            if node in self.neighbours:
                self._lose(self.neighbours[node])
        # Some nodes may be known only from a vote.
        strangers = {each.node for each in self.neighbours.values() if not each.leased}
        if strangers or not leased.issuperset(self._strangers):
            self._listen(_LINGER_S)
        self._strangers.clear()

    def _note(self, event: Mapping[str, Any]) -> None:
        node, kind = event["hostname"], event["type"]
        if node == self._hostname:
            self._clock.forward()
        else:
            self._clock.adjust(event["clock"])
            self._meet(node, kind, event)
        if kind == "worker-elect":
            self.voting.count(event)

    def _meet(self, node: str, kind: str, event: Mapping[str, Any]) -> None:
        if kind == "worker-offline":
            if self.neighbours.pop(node, None):
                self._repeated.log("%s left", node, level=logging.INFO)
                self.voting.decide_all()
            return
        neighbour = self.neighbours.get(node) or self._add(node)
        if neighbour is None:
            return
        freq_s = event.get("freq")
        if INTERVAL.takes(freq_s):
            neighbour.freq_s = float(freq_s)
        neighbour.heard_s = self._now_s()
        if event.get("sw_ident") == _OURS:
            # A worker writes its lease before its first event.
            neighbour.leased = True
        elif kind in _TELLING and not neighbour.leased:
            self._listen(max(_LINGER_S, SILENT_INTERVALS * neighbour.freq_s))

    def _add(self, node: str, freq_s: float = 2.0) -> Neighbour | None:
        """Add and return a neighbour; None if there are too many or its name is too long."""
        if len(self.neighbours) >= _NEIGHBOURS or not KEPT_NAME.takes(node):
            return None
        neighbour = self.neighbours[node] = Neighbour(node, freq_s, self._now_s())
        self._repeated.log("%s joined", node, level=logging.INFO)
        return neighbour

    def _stood_still(self, due: TimerEntry) -> bool:
        """Return whether this worker was blocked or still has unread events from others."""
        is_late = self._timer.clock() - due.due_s > LATE_S
        has_waiting = self._subscriber.has_waiting
        return is_late or any(map(has_waiting, (*self._rare, *self._frequent)))
