"""The loop of a beat: find what is due, claim it, and leave everything else to the server.

Any number of beats can run this loop. Among beats with the same entries, one leads and the others
only ask whether it still does. Correctness does not depend on the lead, since each due time is
claimed by a script on the server (lua/beat_claim.lua), and a claim that comes second does nothing.
"""

from __future__ import annotations

import heapq
import json
import logging
import math
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha1
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol
from zoneinfo import ZoneInfo

from greenq.beat.entries import ScheduleEntry, make_entry, read_entry
from greenq.beat.policies import NextAction, next_step
from greenq.beat.runs import Runs
from greenq.errors import (
    AccessRefused,
    ConfigError,
    ConnectFailed,
    ConnectionLost,
    GreenqError,
    OperationalError,
    Problem,
    SignatureError,
)
from greenq.protocol.ids import new_id
from greenq.transport.schedule_store import (
    LEAD_S,
    MOST_CLAIMS,
    NO_LIMITS,
    ClaimOutcome,
    DueClaim,
    EntryState,
    QueueLimits,
    ScheduleStore,
    read_state,
)
from greenq.transport.transport import Connected
from greenq.utils.log import OutageLog, Repeated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from greenq.remote.control import Control
    from greenq.sending.announced import Announced
    from greenq.sending.plan import SendPlan
    from greenq.sending.producer import Producer
    from greenq.task import BaseTask
    from greenq.transport.schedule_store import Lead, LeadCall

_log = logging.getLogger(__name__)

# How often a beat asks the server who leads, and whether entries were changed.
POLL_S: Final = 1.0

# How long a beat waits for changes if its link reports them.
_REST_S: Final = 60.0

# How long to wait after a refused send before trying to send the entry again.
_RETRY_US: Final = 1_000_000

# How soon to check again whether the last run has finished.
_WAIT_US: Final = 500_000

# A beat whose server has been silent for this long does not answer pings.
_ALIVE_S: Final = 15.0

# Entries that no beat has sent for this long are forgotten. It is longer than a year because other
# programs may send an entry once a year.
_FORGOTTEN_US: Final = 400 * 86400 * 1_000_000
_FORGOTTEN_AT_ONCE: Final = 1000

# Options relative to the time of sending; a message with one of them is encoded again each time.
_RELATIVE: Final = frozenset({"countdown", "expires"})

# How many drafts of messages are kept for sharing; if there are this many, all are dropped before
# another one is added.
_DRAFTS: Final = 1000

# A task sent within this time of its due time is on time, whatever the policy for missed due times.
_PROMPT_US: Final = 1_000_000

_HEADERS: Final = {"celery_beat_task": True}


class Link(Protocol):
    """Asks, on behalf of a beat, who leads, and wakes the beat when anything has changed."""

    @property
    def heard_s(self) -> float:
        """When the server last answered; until then, it was asked continuously."""

    def begin(self, call: LeadCall, lead: Lead) -> None:
        """From now on, make this call; `lead` is the server's latest reply."""

    def end(self) -> None:
        """Stop asking, and end the beat's `wait`."""

    def answer(self) -> Lead | None:
        """Return the latest reply, with the server's current time; None if the beat must ask."""

    def wait(self, seconds: float) -> None:
        """Wait until something changes, for at most `seconds`."""


class _Draft(NamedTuple):
    """What all messages of some entries have in common, and where they go."""

    plan: SendPlan
    queues: Sequence[str]
    lists: tuple[str, ...]
    channel: str
    limits: tuple[QueueLimits, ...]


@dataclass(slots=True, eq=False)
class _Slot:
    """An entry as this beat knows it.

    Attributes:
        entry: what is sent, and when.
        seen: its state as text, for the server to compare.
        state: the parsed state.
        step: what to do next; None if nothing will be due again or the entry is paused.
        following: the due time after that of `step`, once it is known.
        at: when to do `step`; this also marks the slot's valid place in the heap.
        draft: what its messages have in common.
    """

    entry: ScheduleEntry
    seen: str
    state: EntryState
    step: NextAction | None = None
    following: int | None = None
    at: int = 0
    draft: _Draft | None = None


@dataclass(slots=True)
class _Faults:
    """The entries that are failing, so that each outage is logged once."""

    failing: set[str] = field(default_factory=set)

    def failed(self, name: str, reason: object) -> None:
        level = logging.DEBUG if name in self.failing else logging.ERROR
        self.failing.add(name)
        _log.log(level, "entry %s was not sent and is tried again each second: %s", name, reason)

    def worked(self, name: str) -> None:
        if name in self.failing:
            self.failing.discard(name)
            _log.info("entry %s is sent again", name)


class BeatApp(Connected, Protocol):
    """What a beat needs from its app.

    Attributes:
        periodic_tasks: the fields of the entries that code has added, by name.
    """

    periodic_tasks: dict[str, dict[str, Any]]

    @property
    def tasks(self) -> Mapping[str, BaseTask[Any, Any]]:
        """All tasks by name."""

    @property
    def producer(self) -> Producer:
        """The object that writes and pushes messages."""

    @property
    def control(self) -> Control:
        """Commands to the workers."""

    def finalize(self) -> None:
        """Create the shared tasks, which would otherwise be created on first use."""


class Scheduler:
    """Sends one app's tasks as they become due, in one thread or greenlet, until stopped."""

    def __init__(
        self,
        app: BeatApp,
        *,
        clock: Callable[[], float] = time.monotonic,
        name: str | None = None,
        link: Link | None = None,
    ) -> None:
        """Send the entries of `app`, whose task modules have been imported.

        Args:
            app: the app.
            clock: a clock in seconds; only differences count.
            name: a readable name for this beat; by default, the host and the process id.
            link: asks who leads; with None, the beat itself asks every second.

        Raises:
            ConfigError: an entry in the settings or in the code is wrong.
        """
        self._app = app
        self._clock = clock
        self._link = link
        transport = app.transport
        self._store = ScheduleStore(transport.client, transport.keys, transport.signer)
        self._zone = ZoneInfo(app.config.task.timezone)
        self._coded = code_entries(app)
        self._schedule = fingerprint(self._coded.values())
        self.name = f"{name or f'{socket.gethostname()}/{os.getpid()}'}/{new_id()[:8]}"
        self._runs = Runs(transport, self._store, app.config.result.result_expires)
        self._slots: dict[str, _Slot] = {}
        self._heap: list[tuple[int, str]] = []
        # How far the server's time is ahead of `clock`, in microseconds.
        self._offset = 0
        self._changes = -1
        self._polled_s = -math.inf
        # When this beat last asked who leads, whether or not it got a reply; and whether it went so
        # long without asking that another beat may have led since the last reply.
        self._asked_s = -math.inf
        self._was_silent = False
        self._is_stopping = False
        self._drafts: dict[str, _Draft] = {}
        self._outage, self._result_outage = OutageLog(_log), OutageLog(_log)
        self._repeated = Repeated(_log)
        self._faults = _Faults()
        self.leads = False
        # When the server last answered, by `clock`.
        self.ticked_s = clock()

    # --- the loop ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Send what is due until `stop` is called. Switches: yes."""
        _log.info(
            "beat %s starts; entries in the settings and the code: %d", self.name, len(self._coded)
        )
        while not self._is_stopping:
            pause_s = self.try_tick()
            if self._link is None:
                time.sleep(pause_s)
            else:
                self._link.wait(pause_s)
        if self.leads:
            try:
                self._store.resign(self._schedule, self.name)
            except OperationalError as exc:
                _log.debug("the lead was not given up: %s", exc)

    def stop(self) -> None:
        """Make `run` end within a second; safe in a signal handler, since it takes no lock."""
        self._is_stopping = True
        if self._link is not None:
            self._link.end()

    def try_tick(self) -> float:
        """Run one turn of the loop and log outages; return the seconds until the next turn."""
        try:
            wait_s = self.tick()
        except OperationalError as exc:
            self._polled_s = -math.inf
            self._outage.failed("beat sends nothing until the server answers again", exc)
            return POLL_S
        self.ticked_s = self._clock()
        self._outage.recovered("beat can reach its server again")
        return wait_s

    def tick(self) -> float:
        """Run one turn: poll if it is time, and send what is due; return the pause in seconds.

        Raises:
            OperationalError: the server did not answer; nothing is lost, since the next turn tries
                again.
        """
        if self._link is not None or self._clock() - self._polled_s >= POLL_S:
            self._poll()
        if self.leads:
            self._send_due()
            self._look_at_runs()
        next_s = self._polled_s + (POLL_S if self._link is None else _REST_S) - self._clock()
        if self.leads and self._runs.due is not None:
            next_s = min(next_s, max(POLL_S, (self._runs.due - self.now()) / 1_000_000))
        if self.leads and self._heap:
            next_s = min(next_s, (self._heap[0][0] - self.now()) / 1_000_000)
        return max(0.0, next_s)

    def _look_at_runs(self) -> None:
        """Check how runs ended; an outage of the result server must not stop this loop."""
        try:
            self._runs.look(self.now())
        except OperationalError as exc:
            self._result_outage.failed("cannot read the results of periodic tasks", exc)
        else:
            self._result_outage.recovered("the results of periodic tasks can be read again")

    def now(self) -> int:
        """Return the server's time in microseconds, as far as this beat knows it."""
        return int(self._clock() * 1_000_000) + self._offset

    def _note_time(self, now: int) -> None:
        # The clock is read after the reply has arrived, so `now` is behind the server's time
        # rather than ahead of it.
        self._offset = now - int(self._clock() * 1_000_000)

    def _poll(self) -> None:
        """Ask who leads and what has changed; take over if no one leads."""
        lead = None if self._link is None else self._link.answer()
        now_s, offset = self._clock(), self._offset
        if self._link is not None:
            self._asked_s = max(self._asked_s, self._link.heard_s)
        self._was_silent |= now_s - self._asked_s > LEAD_S
        self._asked_s = now_s
        if lead is None:
            lead = self._store.lead(self._schedule, self.name)
            if self._link is not None:
                self._link.begin(self._store.lead_call(self._schedule, self.name), lead)
        self._polled_s = self._clock()
        self._note_time(lead.now)
        # The clock stops while the machine is suspended.
        self._was_silent |= self._offset - offset > LEAD_S * 1_000_000
        if lead.leads != self.leads:
            text = "this beat sends" if lead.leads else f"beat {lead.leader} sends; this one waits"
            _log.info("%s", text)
        if self._was_silent or not lead.leads:
            # What this beat knows about the entries is out of date, or soon will be.
            self._slots, self._heap = {}, []
        if lead.leads and (self._was_silent or not self.leads or lead.changes != self._changes):
            # The states are those that the previous leader wrote, so `leads` is set only after they
            # have been read.
            self._load(lead.changes)
        self._was_silent = False
        self.leads, self._changes = lead.leads, lead.changes

    # --- entries ----------------------------------------------------------------------------------

    def _load(self, changes: int) -> None:
        """Read entries, pauses and states from the server, whose count of changes is `changes`."""
        entries = dict(self._coded)
        for name, data in self._store.entries().items():
            try:
                entries[name] = read_entry(name, self._store.open_entry(name, data), self._zone)
            except (ConfigError, SignatureError) as exc:
                self._repeated.log("an entry added at run time is not used: %s", exc)
        paused, states = self._store.paused(), self._store.states()
        missing = [name for name in entries if name not in states]
        if missing:
            # If the count of changes has grown, the server has not lost its data: these entries are
            # new, or their states were removed after this beat last saw them.
            is_lost = changes <= self._changes
            known = {name: slot.seen for name, slot in self._slots.items()} if is_lost else {}
            states |= self._store.begin(missing, known, changes)
        self._forget(states.keys() - entries.keys(), states)
        kept, self._slots, self._heap = self._slots, {}, []
        for name, entry in entries.items():
            slot = kept.get(name)
            if slot is None or slot.entry != entry:
                slot = _Slot(entry, "", EntryState(0, 0, None, 0))
            self._slots[name] = slot
            if name not in states:
                # Entries have been changed since they were read; the next poll reads them again.
                slot.step = None
                continue
            is_known = slot.seen == states[name]
            if not is_known and not self._note_state(slot, states[name]):
                continue
            if name in paused:
                slot.step = None
            elif is_known and slot.step is not None:
                heapq.heappush(self._heap, (slot.at, name))
            else:
                self._plan(slot)
        self._faults.failing &= self._slots.keys()
        self._runs.keep_only(self._slots)
        self._runs.follow({name: slot.state for name, slot in self._slots.items()})

    def _forget(self, names: Iterable[str], states: Mapping[str, str]) -> None:
        """Forget entries that no beat has sent for a long time: renamed or removed ones."""
        before = self.now() - _FORGOTTEN_US
        dues = {name: states[name].partition(" ")[0] for name in names}
        old = [name for name, due in dues.items() if not due.isdecimal() or int(due) < before]
        if old:
            self._store.forget(old[:_FORGOTTEN_AT_ONCE])

    def _note_state(self, slot: _Slot, text: str) -> bool:
        try:
            slot.seen, slot.state = text, read_state(text)
        except ValueError:
            self._repeated.log("entry %s has an unreadable state: %.100r", slot.entry.name, text)
            return False
        return True

    def _plan(self, slot: _Slot, *, not_before: int = 0) -> None:
        """Find out what to do next for an entry, and when."""
        now, following = self.now(), slot.following
        slot.following = None
        try:
            if following is not None and slot.step is not None and slot.state.due == slot.step.due:
                ready = slot.entry.ready(following)
                slot.step = NextAction(following, ready, "send") if ready > now else None
            else:
                slot.step = None
            slot.step = slot.step or next_step(slot.entry, slot.state.due, now)
        except Exception:
            self._give_up(slot)
        if slot.step is not None:
            slot.at = max(slot.step.ready, not_before)
            heapq.heappush(self._heap, (slot.at, slot.entry.name))

    # --- sending ----------------------------------------------------------------------------------

    def _send_due(self) -> None:
        """Claim all due times that have come, in portions."""
        while due := self._pop_due(MOST_CLAIMS):
            try:
                self._claim(due)
            except OperationalError:
                # It is unknown whether the messages were sent; the next claim finds out.
                for slot in due:
                    heapq.heappush(self._heap, (slot.at, slot.entry.name))
                raise
            if self._is_stopping or self._clock() - self._polled_s >= POLL_S:
                return

    def _pop_due(self, most: int) -> list[_Slot]:
        found: list[_Slot] = []
        now = self.now()
        while self._heap and self._heap[0][0] <= now and len(found) < most:
            at, name = heapq.heappop(self._heap)
            slot = self._slots.get(name)
            if slot is not None and slot.step is not None and slot.at == at:
                found.append(slot)
        return found

    def _claim(self, due: list[_Slot]) -> None:
        now = self.now()
        claims: list[DueClaim] = []
        claimed: list[tuple[_Slot, Announced | None]] = []
        for slot, is_running in self._with_running(due, now):
            step = self._due_step(slot, now, is_running=is_running)
            if step is None:
                continue
            try:
                if step.action == "cancel" and slot.state.task_id is not None:
                    self._app.control.revoke(slot.state.task_id, terminate=True)
                claim, announced = self._write(slot, step)
            except (ConnectFailed, ConnectionLost):
                raise
            except GreenqError as exc:
                self._retry(slot, exc)
                continue
            claims.append(claim)
            claimed.append((slot, announced))
        if claims:
            outcomes = self._claimed(claims)
            for (slot, announced), claim, outcome in zip(claimed, claims, outcomes, strict=True):
                self._settle(slot, claim, outcome)
                if announced is not None and outcome.said == "sent":
                    announced.sent()

    def _claimed(self, claims: Sequence[DueClaim]) -> list[ClaimOutcome]:
        """Claim due times in one call, or one by one if this user is denied access to a queue."""
        try:
            now, outcomes = self._store.claim(claims)
        except AccessRefused as exc:
            if len(claims) == 1:
                return [ClaimOutcome(str(exc), claims[0].seen)]
            return [outcome for claim in claims for outcome in self._claimed([claim])]
        self._note_time(now)
        return outcomes

    def _with_running(self, due: Sequence[_Slot], now: int) -> Iterator[tuple[_Slot, bool]]:
        """Yield each slot and whether its last run is still running; retry if that is unknown."""
        asking = [(slot.entry.name, slot.state) for slot in due if slot.entry.overlap != "allow"]
        try:
            running = self._runs.running(asking, now)
        except OperationalError as exc:
            running, unknown = set(), dict(asking)
            for slot in due:
                if slot.entry.name in unknown:
                    self._retry(slot, exc)
        else:
            unknown = {}
        for slot in due:
            if slot.entry.name not in unknown:
                yield slot, slot.entry.name in running

    def _retry(self, slot: _Slot, reason: object) -> None:
        self._faults.failed(slot.entry.name, reason)
        self._plan(slot, not_before=self.now() + _RETRY_US)

    def _give_up(self, slot: _Slot) -> None:
        """Stop sending an entry whose schedule failed; a user-defined class can raise anything."""
        slot.step = None
        _log.exception("entry %s is no longer sent: its schedule failed", slot.entry.name)

    def _due_step(self, slot: _Slot, now: int, *, is_running: bool) -> NextAction | None:
        """Return what to do now for an entry; if that is nothing, plan it again and return None."""
        try:
            step = self._step_now(slot, now, is_running=is_running)
        except Exception:
            self._give_up(slot)
            return None
        if step is None or step.ready > now:
            self._plan(slot)
            return None
        if step.action == "wait":
            self._plan(slot, not_before=now + _WAIT_US)
            return None
        return step

    @staticmethod
    def _step_now(slot: _Slot, now: int, *, is_running: bool) -> NextAction | None:
        """Return what to do for an entry whose time has come, which is usually the planned step."""
        entry, step = slot.entry, slot.step
        assert step is not None
        slot.following = following = entry.next_due(step.due)
        is_only_one = following is None or entry.ready(following) > now
        if is_only_one and not is_running and now - step.ready < _PROMPT_US:
            return step
        return next_step(entry, slot.state.due, now, is_running=is_running)

    def _write(self, slot: _Slot, step: NextAction) -> tuple[DueClaim, Announced | None]:
        """Write the claim on a due time, with its message unless the due time is skipped."""
        entry = slot.entry
        claim = DueClaim(entry.name, slot.seen, step.due, step.ready)
        if step.action == "skip":
            return claim, None
        draft = slot.draft or self._draft(slot)
        task_id, texts, announced = self._app.producer.fill(
            draft.plan, draft.queues, entry.args, entry.kwargs
        )
        lists = draft.lists
        if lists and announced is not None:
            # Signal receivers may have changed the priority.
            lists = self._lists(draft.queues, announced.priority)
        channel, limits = draft.channel, draft.limits
        return claim._replace(
            task_id=task_id, texts=texts, lists=lists, channel=channel, limits=limits
        ), announced

    def _draft(self, slot: _Slot) -> _Draft:
        """Return what the messages of an entry have in common; entries of one task share it."""
        entry, producer = slot.entry, self._app.producer
        options = send_options(self._app, entry)
        # The route that a router function returns applies to one message only.
        is_kept = not producer.router.asks and all(options.get(each) is None for each in _RELATIVE)
        key = f"{entry.task} {sorted(options.items())!r}"
        draft = self._drafts.get(key) if is_kept else None
        if draft is None:
            plan = producer.draft(entry.task, entry.args, entry.kwargs, options)
            draft = self._draft_of(plan, producer.queues(plan, f"entry {entry.name}"))
            if not plan.broadcast and not plan.exchange:
                # If this user is not allowed to declare the queue, workers declare it.
                with suppress(AccessRefused):
                    self._app.transport.broker.declare(draft.queues)
            if not is_kept:
                return draft
            if len(self._drafts) >= _DRAFTS:
                self._drafts.clear()
            self._drafts[key] = draft
        slot.draft = draft
        return draft

    def _draft_of(self, plan: SendPlan, queues: Sequence[str]) -> _Draft:
        if plan.broadcast:
            channel = self._app.transport.keys.fanout(plan.exchange, plan.routing_key)
            return _Draft(plan, queues, (), channel, ())
        limits = tuple(map(self._limits, queues))
        return _Draft(plan, queues, self._lists(queues, plan.priority), "", limits)

    def _limits(self, queue: str) -> QueueLimits:
        broker = self._app.transport.broker
        expires, most = broker.limits_of(queue)
        if expires is None and most is None:
            return NO_LIMITS
        return QueueLimits(most or 0, round((expires or 0) * 1000), tuple(broker.lists([queue])))

    def _lists(self, queues: Sequence[str], priority: int) -> tuple[str, ...]:
        keys = self._app.transport.keys
        step = keys.step_of(priority)
        return tuple(keys.queue(queue, step) for queue in queues)

    def _settle(self, slot: _Slot, claim: DueClaim, outcome: ClaimOutcome) -> None:
        """Continue after a claim: the state on the server determines the next step."""
        name = slot.entry.name
        if not outcome.state:
            # The server has lost the entry's state, or the entry was removed.
            slot.step = None
            self.leads, self._polled_s = False, -math.inf
            return
        if outcome.state != slot.seen and not self._note_state(slot, outcome.state):
            return
        match outcome.said:
            case "sent":
                self._faults.worked(name)
                self._runs.follow({name: slot.state})
                _log.debug("entry %s: sent task %s", name, claim.task_id)
            case "skipped":
                _log.info("entry %s: a due time was skipped", name)
            case "changed" | "early":
                pass
            case "paused":
                slot.step = None
                return
            case refusal:
                self._retry(slot, refusal)
                return
        self._plan(slot)

    # --- for callers ------------------------------------------------------------------------------

    @property
    def is_alive(self) -> bool:
        """True if the server has answered recently."""
        return self._clock() - self.ticked_s < _ALIVE_S


def send_options(app: BeatApp, entry: ScheduleEntry) -> dict[str, Any]:
    """Return the options that an entry is sent with: its own, the task's, and Celery's header."""
    known = app.tasks.get(entry.task)
    options = dict(entry.options) if known is None else known.send_options(dict(entry.options))
    options["headers"] = {**(options.get("headers") or {}), **_HEADERS}
    return options


def code_entries(app: BeatApp) -> dict[str, ScheduleEntry]:
    """Return the entries of ``beat_schedule`` and ``add_periodic_task``, checked.

    Raises:
        ConfigError: entries are wrong; all problems are listed.
    """
    zone = ZoneInfo(app.config.task.timezone)
    app.finalize()
    found: dict[str, ScheduleEntry] = {}
    problems: list[Problem] = []
    given: Mapping[str, Any] = {**app.config.beat.beat_schedule, **app.periodic_tasks}
    for name, fields in given.items():
        try:
            entry = found[name] = make_entry(name, fields, zone)
        except ConfigError as exc:
            problems += exc.problems
            continue
        task = app.tasks.get(entry.task)
        ignores = app.config.task.task_ignore_result
        if task is not None and task.ignore_result is not None:
            ignores = task.ignore_result
        if entry.overlap != "allow" and (ignores or not app.transport.stores_results):
            reason = f"needs results to see whether a run has ended, but {entry.task} stores none"
            problems.append(Problem(f"beat_schedule[{name!r}].overlap", entry.overlap, reason))
    if problems:
        raise ConfigError(problems)
    return found


def fingerprint(entries: Iterable[ScheduleEntry]) -> str:
    """Return a text that identifies these entries; beats with the same entries share a leader.

    During a deployment, the old beats and the new beats each have a leader; claims prevent both
    leaders from sending the same due time.
    """
    lines = sorted(
        json.dumps([each.name, each.task, str(each.schedule), str(each.zone)], sort_keys=True)
        for each in entries
    )
    return sha1("\n".join(lines).encode(), usedforsecurity=False).hexdigest()[:16]


def upcoming(entry: ScheduleEntry, state: EntryState, now: int, most: int) -> list[int]:
    """Return up to `most` of the next due times of an entry."""
    step = next_step(entry, state.due, now)
    if step is None:
        return []

    def walk() -> Iterable[int]:
        due: int | None = step.due
        while due is not None:
            yield due
            due = entry.next_due(due)

    return list(islice(walk(), most))
