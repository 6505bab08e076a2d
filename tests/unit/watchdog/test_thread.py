"""The thread beside the hub: when it renews, when it rings, and when it calls the hub blocked."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from greenq.errors import (
    AccessRefused,
    ConnectionLost,
    OperationalError,
    ServerError,
    TransportTimeout,
)
from greenq.execution.state import WorkerState
from greenq.transport.client import Published
from greenq.transport.leases import Renewal
from greenq.transport.owner import Owner
from greenq.transport.schedule_store import LeadCall
from greenq.transport.settle import Publication, Settlement
from greenq.watchdog import subscriber
from greenq.watchdog.heartbeat import Heartbeat
from greenq.watchdog.hooks import Holdings, HubCalls, Rescue, WatchLimits
from greenq.watchdog.hub_thread import Blocker, HubThread
from greenq.watchdog.thread import Watch

LEASE_S = 3.0
BLOCKED_AFTER_S = 1.0


class FakeRecovery:
    """Portions of work: each takes some time."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.portions = 0
        self.takes_s = 0.1
        self.added: list[Owner] = []
        self.overdue: list[object] = []
        self.closed = 0

    @property
    def busy(self) -> bool:
        return self.portions > 0

    def add(self, owner: Owner) -> None:
        self.added.append(owner)

    def add_overdue(self, tags: object) -> None:
        self.overdue.append(tags)

    def step(self) -> None:
        self._world.now_s += self.takes_s
        self.portions -= 1

    def close(self) -> None:
        self.closed += 1


class World:
    """A clock, a server and a hub that do as they are told."""

    connected = True
    incarnation = "own"

    def __init__(
        self, lease_s: float = LEASE_S, *, blocked_limit_s: float = 0.0, **rescue: Any
    ) -> None:
        self.now_s = 100.0
        self.answer: Renewal | OperationalError = renewal()
        self.connection = self
        self.rung = 0
        self.due, self.promote_takes_s = 0, 0.01
        self.paused: list[frozenset[str]] = []
        self.recovery = FakeRecovery(self)
        self.left = 0
        self.found: set[str] = set()
        self.given_back: list[set[str]] = []
        self.given_away = 0
        self.first_unused = 1
        # Whether this worker waits for messages, and what it has told of that.
        self.is_waiting = self.would_relay = False
        # What the last renewal has asked for this worker's beat.
        self.lead: LeadCall | None = None
        # As the connection: whether a change was announced; as the leases: what was handed on.
        self.noticed = False
        self.relayed = 0
        self.beyond = False
        # How often this owner was to be made known.
        self.registered = 0
        # Of the connection: what was sent, what is published to this worker, and what goes wrong.
        self.calls: list[tuple[object, ...]] = []
        self.published: list[Published] = []
        self.problem: OperationalError | None = None
        # Beats that went with a renewal.
        self.ridden = 0
        # Of the hub.
        self.answers = True
        self.resting, self.pings = False, 0
        self.sent_for: list[Callable[[], object]] = []
        self.asked_s = self.moved_s = self.lag_s = 0.0
        self.state = WorkerState(lambda: self.now_s)
        self.watch = Watch(
            self,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            self.state,
            HubThread(lambda _: "proj.add[id]"),
            limits=WatchLimits(
                lease_s=lease_s,
                visibility_timeout_s=3600.0,
                blocked_after_s=BLOCKED_AFTER_S,
                blocked_limit_s=blocked_limit_s,
            ),
            holdings=Holdings(
                unsettled=lambda: (set(), 1),
                first_unused=lambda: self.first_unused,
                is_waiting=lambda: self.is_waiting,
                unwritten=list,
            ),
            calls=HubCalls(look=self.look, paused=self.pause, forgotten=self.register),
            rescue=Rescue(give_away=self.give_away, **rescue),
            clock=lambda: self.now_s,
        )
        self.watch.hub_thread.watcher = SimpleNamespace(  # type: ignore[assignment]
            hub_thread=threading.get_ident(), wake=lambda: None, runs_here=lambda: True
        )

    # As leases and their connection.
    def renew(
        self,
        publication: Publication | None = None,
        *,
        would_relay: bool = False,
        lead: LeadCall | None = None,
    ) -> Renewal:
        self.would_relay, self.lead = would_relay, lead
        if isinstance(self.answer, OperationalError):
            raise self.answer
        if publication is not None:
            try:
                self.call("PUBLISH", *publication)
            except (AccessRefused, ServerError) as exc:
                return self.answer._replace(unpublished=str(exc))
            self.ridden += 1
        return self.answer

    def connect(self) -> None:
        self.connected = True

    def uptime_s(self) -> float:
        return 3600.0

    def renew_scores(self, _tags: list[str]) -> None: ...

    def others(self) -> list[Any]:
        return []

    def overdue(self) -> list[str]:
        return []

    def leave(self, unwritten: list[Settlement]) -> int:
        assert unwritten == []
        return self.left

    def held(self) -> set[str]:
        return set()

    def relay(self) -> bool:
        self.noticed = False
        self.relayed += 1
        if self.problem is not None:
            raise self.problem
        return self.beyond

    def forgotten(self, known: set[str], first_unused: int) -> set[str]:
        assert first_unused == 1
        return self.found - known

    def give_back_forgotten(self, tags: set[str]) -> None:
        self.given_back.append(tags)

    def has_answer(self) -> bool:
        return bool(self.published)

    def close(self) -> None:
        self.connected = False

    def call(self, *command: object) -> int:
        if self.problem is not None:
            raise self.problem
        self.calls.append((self.now_s, *command))
        return 1

    def subscribe(self, channels: list[str], patterns: list[str]) -> None:
        self.call("SUBSCRIBE", *channels, *patterns)

    def messages(self) -> list[Published]:
        heard, self.published = self.published, []
        return heard

    def promote(self) -> int:
        self.now_s += self.promote_takes_s
        self.due, moved = max(0, self.due - 1000), min(self.due, 1000)
        return moved

    def pause(self, queues: frozenset[str]) -> None:
        self.paused.append(queues)
        self.state.paused = queues

    def give_away(self, connection: object) -> None:
        assert connection is self
        if self.problem is not None:
            raise self.problem
        self.given_away += 1

    def look(self) -> None: ...

    def register(self) -> None: ...

    # As a hub.
    def rests(self) -> bool:
        return self.resting and self.answers

    def ping(self) -> None:
        self.pings += 1
        self.asked_s = self.now_s
        self.move()

    def move(self) -> None:
        if self.answers:
            self.moved_s, self.lag_s = self.now_s, self.now_s - self.asked_s

    def spawn_soon(self, run: Any, *, name: str) -> None:
        if name.startswith("look"):
            assert run == self.look
            self.rung += 1
        elif name == "register":
            assert run == self.register
            self.registered += 1
        else:
            self.sent_for.append(run)

    def run(self, seconds: float) -> list[float]:
        """Look whenever it is due, for so long; return the moments."""
        end_s, looks = self.now_s + seconds, []
        while (due_s := max(self.now_s, self.watch.monitor.due_s)) <= end_s:
            self.now_s = due_s
            looks.append(due_s)
            self.watch.monitor.look()
        self.now_s = end_s
        return looks

    def attend_for(self, seconds: float) -> None:
        """Look and attend whenever one of both is due, for so long."""
        end_s = self.now_s + seconds
        while (due_s := self.now_s + self.watch.pause_s()) <= end_s:
            self.now_s = due_s
            self.watch.turn()
        self.now_s = end_s


def renewal(
    *,
    held: bool = True,
    work: bool = False,
    paused: tuple[str, ...] = (),
    expired: tuple[Owner, ...] = (),
    first_unused: int = 1,
    relays: bool = False,
) -> Renewal:
    return Renewal(
        held=held,
        server_time=0.0,
        work=work,
        next_due=None,
        expired=list(expired),
        paused=frozenset(paused),
        first_unused=first_unused,
        relays=relays,
    )


@pytest.mark.parametrize(
    ("answer", "rings"),
    [
        (renewal(), 0),
        (renewal(work=True), 1),
        (TransportTimeout("silent"), 1),
        # What refuses or hangs up is noticed by itself.
        (ServerError("EVALSHA", "OOM"), 0),
    ],
)
def test_consumer_is_rung_when_there_is_work_or_the_server_is_silent(
    answer: Renewal | OperationalError, rings: int
) -> None:
    world = World()
    world.answer = answer

    world.watch.renew()

    assert world.rung == rings


def test_all_etas_that_are_due_are_moved_in_one_go_but_no_other_duty_waits_for_them() -> None:
    world = World()
    world.watch.renew()
    world.watch.monitor.due_s = world.now_s + 0.5

    world.due = 10_000
    world.watch.promote()

    # What is due next, a renewal tells.
    assert (world.due, world.watch.lease.due_s) == (0, world.now_s)

    world.watch.renew()
    renew_at_s = world.watch.lease.due_s
    world.watch.monitor.due_s = world.now_s + 0.5
    world.due, world.promote_takes_s = 1_000_000, 0.1
    world.watch.promote()

    assert world.now_s <= world.watch.monitor.due_s + world.promote_takes_s
    assert world.due > 0
    assert world.watch.lease.due_s == renew_at_s


@pytest.mark.parametrize("lease_s", [3.0, 10.0, 60.0])
def test_a_renewal_on_a_dead_connection_leaves_time_for_another(lease_s: float) -> None:
    world = World(lease_s)
    world.watch.renew()
    renewed_s = world.now_s
    world.now_s = world.watch.lease.due_s
    # The limit of a worker's connection for this.
    world.answer = TransportTimeout("silent")
    world.watch.renew()

    again_s = world.watch.lease.due_s + lease_s / 3

    assert again_s < renewed_s + lease_s


def test_an_idle_hub_is_asked_twice_a_second_and_never_called_blocked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()

    looks = world.run(60.0)

    assert len(looks) == pytest.approx(2 * 60, abs=1)
    assert not caplog.records


def test_a_hub_that_rests_is_not_woken_to_say_that_it_moves() -> None:
    world = World()
    world.resting = True

    world.run(60.0)

    assert world.pings == 0


@pytest.mark.parametrize("resting", [True, False])
@pytest.mark.parametrize("rested_s", [10.0, 10.49])
def test_a_block_is_named_in_time_even_after_a_rest(
    rested_s: float, resting: bool, caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    world.resting = True
    world.run(rested_s)
    world.answers = False

    world.run(BLOCKED_AFTER_S + 0.5)
    assert len(world.watch.blockers) == 1

    # Resting then or at work, its end is told.
    world.answers, world.resting = True, resting
    world.move()
    world.run(1.0)
    assert "the hub runs again" in caplog.text


@pytest.mark.parametrize(("blocked_s", "said"), [(0.9, 0), (1.5, 1), (9.0, 1)])
def test_a_blocked_hub_is_named_once_and_so_is_its_end(
    blocked_s: float, said: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    world = World()
    world.run(10.0)

    world.answers = False
    world.run(blocked_s)
    world.answers = True
    world.move()
    world.run(10.0)

    assert len(world.watch.blockers) == said
    texts = [record.getMessage() for record in caplog.records]
    assert [text.split(" by ")[0] for text in texts[:1]] == [
        f"the hub has been blocked for {BLOCKED_AFTER_S:.1f} s"
    ] * said
    assert len(texts) == 2 * said
    if said:
        assert "by proj.add[id] at " in texts[0]
        assert "the hub runs again; it was blocked for" in texts[1]


def test_a_hub_that_stays_blocked_is_named_again_and_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    world = World()
    world.run(1.0)
    world.answers = False
    world.run(1000.0)

    said = [record.getMessage() for record in caplog.records]
    still = [text for text in said if "the hub is still blocked" in text]
    after_s = [round(float(text.split(" for ")[1].split(" s")[0]), -1) for text in still]
    assert after_s == [10, 60, 300, 600, 900]
    assert all("by proj.add[id] at " in text for text in still)
    assert len(world.watch.blockers) == 1


def test_a_hub_that_is_blocked_for_too_long_ends_the_process(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greenq.watchdog.ending.signal.alarm", lambda _seconds: None)
    ended: list[float] = []
    world = World(end_process=lambda: ended.append(world.now_s), blocked_limit_s=30.0)
    world.run(20.0)
    world.answers = False
    world.run(29.0)
    assert not ended
    world.run(2.0)
    assert ended
    assert "longer than worker_hub_blocked_limit (30 s)" in caplog.text


def test_a_log_that_blocks_the_hub_does_not_block_the_watch_as_well() -> None:
    world = World()

    class Stuck(logging.Handler):
        """Stands for a pipe that nobody reads: here the hub is inside of logging."""

        def emit(self, record: logging.LogRecord) -> None:
            if record.name == "stuck":
                world.watch.hub_thread.log(logging.WARNING, "would wait for the handler's lock")
            else:
                said.append(record.getMessage())

    said: list[str] = []
    handler = Stuck()
    logging.getLogger().addHandler(handler)
    try:
        logging.getLogger("stuck").warning("a line")
    finally:
        logging.getLogger().removeHandler(handler)
    assert said == []


# --- the cluster ----------------------------------------------------------------------------------


class Heart:
    """What a watch publishes for somebody, and what it is told of the hub."""

    def __init__(self, world: World, every_s: float = 2.0) -> None:
        self.told: list[Blocker | None] = []
        self.beat = Heartbeat(every_s, self.write)
        world.watch.beat(self.beat)

    def write(self, blocker: Blocker | None) -> Publication:
        self.told.append(blocker)
        return Publication("beats", "beat")


def test_the_first_beat_is_at_once_and_the_others_go_with_the_renewals_next_to_their_time() -> None:
    world = World()
    world.watch.renew()
    Heart(world, every_s=2.0)

    world.attend_for(60.0)

    at_s = [call[0] - 100.0 for call in world.calls if call[1:] == ("PUBLISH", "beats", "beat")]
    assert at_s[0] == pytest.approx(0.02, abs=0.01)
    assert len(at_s) == pytest.approx(30, abs=1)
    assert max(later - one for one, later in pairwise(at_s)) < 2.0 + LEASE_S * 0.4
    assert world.ridden == len(at_s) - 1


def test_beats_that_are_more_frequent_than_renewals_have_their_own_time() -> None:
    world = World()
    world.watch.renew()
    Heart(world, every_s=0.5)

    world.attend_for(10.0)

    at_s = [call[0] - 100.0 for call in world.calls if call[1:] == ("PUBLISH", "beats", "beat")]
    assert len(at_s) == pytest.approx(20, abs=1)
    assert max(later - one for one, later in pairwise(at_s)) < 0.6


def test_a_beat_that_is_given_anew_is_published_at_once() -> None:
    world = World()
    world.watch.renew()
    heart = Heart(world, every_s=10.0)
    world.attend_for(1.0)

    world.watch.beat(heart.beat)
    world.attend_for(0.1)

    assert len(heart.told) == 2


def test_without_a_beat_nothing_is_published() -> None:
    world = World()
    world.watch.renew()
    heart = Heart(world)
    world.attend_for(1.0)

    world.watch.beat(None)
    world.attend_for(60.0)

    assert len(heart.told) == 1


def test_a_beat_is_told_what_blocks_the_hub() -> None:
    world = World()
    world.watch.renew()
    heart = Heart(world, every_s=1.0)
    world.attend_for(5.0)
    assert heart.told == [None] * 5

    world.answers = False
    world.attend_for(5.0)

    late = heart.told[-1]
    assert late is not None
    assert late.by == "proj.add[id]"
    assert late.for_s == pytest.approx(4.5, abs=1.0)
    assert late.where.rpartition(":")[0].endswith(".py")


def test_a_beat_stops_with_the_connection_and_goes_on_with_the_next() -> None:
    world = World()
    world.watch.renew()
    heart = Heart(world)
    world.attend_for(1.0)
    world.problem = ConnectionLost("gone")
    world.now_s += 10.0

    world.watch.attend()

    # The lease is renewed at once: that connects again.
    assert not world.connected
    assert world.watch.lease.due_s == world.now_s
    world.problem, world.connected = None, True
    world.attend_for(3.0)
    assert len([call for call in world.calls if call[1:] == ("PUBLISH", "beats", "beat")]) == 2
    assert len(heart.told) == 3


@pytest.mark.parametrize(
    "problem", [AccessRefused("no channels"), ServerError("PUBLISH", "NOPERM of this user")]
)
def test_a_refusal_is_said_once_and_the_lease_goes_on(
    problem: OperationalError, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    world = World()
    world.watch.subscriber.subscribe("channel", print)
    Heart(world)
    world.problem = problem

    world.attend_for(60.0)

    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert "not a full member of its cluster" in said[0]
    assert world.connected
    assert world.watch.lease.held
    assert world.state.lease_until_s > world.now_s


@pytest.fixture
def hearing(monkeypatch: pytest.MonkeyPatch) -> World:
    """A world whose ear has the same clock."""
    world = World()
    monkeypatch.setattr(subscriber, "time", SimpleNamespace(monotonic=lambda: world.now_s))
    return world


def test_a_hub_that_is_known_to_stand_is_answered_for_at_once(hearing: World) -> None:
    world = hearing
    answered_s: list[float] = []
    handled: list[bytes] = []
    world.watch.subscriber.subscribe(
        "channel", handled.append, urgent=lambda _data: lambda _: answered_s.append(world.now_s)
    )
    world.watch.renew()
    world.attend_for(1.0)

    # The hub moves: it is the one who answers.
    world.published = [Published("channel", b"1")]
    asked_s = world.now_s
    world.watch.attend()
    for run in world.sent_for:
        run()
    world.sent_for.clear()
    world.attend_for(1.0)
    assert (handled, answered_s) == ([b"1"], [])

    # It has just stopped: it gets a moment.
    world.answers = False
    world.published = [Published("channel", b"2")]
    asked_s = world.now_s
    world.watch.attend()
    world.attend_for(0.2)
    assert [at_s - asked_s for at_s in answered_s] == [pytest.approx(0.05, abs=0.03)]

    # It is known to stand: it gets none.
    world.attend_for(5.0)
    world.published = [Published("channel", b"3")]
    asked_s = world.now_s
    world.watch.attend()
    assert answered_s[1:] == [asked_s]
    assert handled == [b"1"]


def test_a_hub_that_moved_and_stands_again_is_known_to_stand(
    hearing: World, caplog: pytest.LogCaptureFixture
) -> None:
    world = hearing
    found: list[Blocker | None] = []
    world.watch.subscriber.subscribe(
        "channel", print, urgent=lambda _: lambda _: found.append(world.watch.blocking_now())
    )
    world.watch.renew()
    world.attend_for(1.0)
    world.answers = False
    world.attend_for(3.0)
    assert len(world.watch.blockers) == 1

    # For a moment only, between two looks.
    world.answers = True
    world.move()
    world.answers = False
    world.published = [Published("channel", b"ping")]
    world.watch.attend()
    world.attend_for(0.2)

    (blocker,) = found
    assert blocker is not None
    assert blocker.for_s < 0.2
    assert "the hub runs again" in caplog.text


def test_whatever_is_wrong_with_an_urgent_answer_the_thread_goes_on(
    hearing: World, caplog: pytest.LogCaptureFixture
) -> None:
    world = hearing

    def broken(_data: bytes) -> None:
        raise RuntimeError("of a command")

    world.watch.subscriber.subscribe("channel", print, urgent=broken)
    world.answers = False
    world.watch.monitor.asked_s = world.now_s
    world.published = [Published("channel", b"1"), Published("channel", b"2")]

    world.attend_for(1.0)

    assert caplog.text.count("RuntimeError: of a command") == 2
    # They wait for the hub, which is also told that the server knows the channel.
    assert len(world.sent_for) == 2


def test_the_hub_is_told_when_other_queues_are_paused() -> None:
    world = World()
    for queues in ((), ("a",), ("a",), ("a", "b"), ()):
        world.answer = renewal(paused=queues)
        world.watch.renew()
        for run in world.sent_for:
            run()
        world.sent_for.clear()

    assert world.paused == [{"a"}, {"a", "b"}, frozenset()]


def test_a_hub_that_has_not_dealt_with_a_pause_is_told_again() -> None:
    world = World()
    world.answer = renewal(paused=("a",))

    world.watch.renew()
    world.watch.renew()

    assert len(world.sent_for) == 2


# --- what the server knows of this worker, and of the dead ----------------------------------------


def test_a_worker_that_the_server_does_not_know_is_made_known_until_it_does() -> None:
    world = World()
    world.answer = renewal(first_unused=0)
    world.watch.renew()
    world.watch.renew()
    assert world.registered == 2

    world.answer = renewal(first_unused=1)
    world.watch.renew()

    assert world.registered == 2


def test_tags_that_the_server_has_given_and_no_answer_has_told_of_are_looked_for() -> None:
    world = World()
    world.first_unused = 5
    world.answer = renewal(first_unused=5)
    world.watch.renew()
    assert world.rung == 0

    world.answer = renewal(first_unused=6)
    world.watch.renew()

    assert world.rung == 1


@pytest.mark.parametrize(
    ("first_unused", "said"),
    [(7, "this worker lost its lease"), (0, "the server has lost its data")],
)
def test_a_lost_lease_is_said_noted_and_nobody_is_called_dead_for_a_while(
    first_unused: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    other = Owner("other", "node", "")
    world = World()
    world.watch.renew()
    world.now_s += 100.0

    world.answer = renewal(held=False, first_unused=first_unused, expired=(other,))
    world.watch.renew()

    (record,) = [each for each in caplog.records if each.levelname == "ERROR"]
    assert said in record.getMessage()
    assert world.state.lease_lost_s == world.now_s
    world.answer = renewal(expired=(other,))
    world.now_s += LEASE_S - 0.1
    world.watch.renew()
    assert world.recovery.added == []
    world.now_s += 0.2
    world.watch.renew()
    assert world.recovery.added == [other]


def test_the_lease_holds_from_before_the_renewal_was_sent() -> None:
    world = World()
    renew = world.renew

    def slow(*args: Any, **options: Any) -> Renewal:
        world.now_s += 1.0
        return renew(*args, **options)

    world.renew = slow  # type: ignore[method-assign]
    began_s = world.now_s

    world.watch.renew()

    assert world.state.lease_until_s == began_s + LEASE_S


def test_portions_of_recovery_are_done_in_between_the_other_duties() -> None:
    world = World()
    world.watch.turn()
    world.recovery.portions = 100
    assert world.watch.pause_s() == 0.0
    began_s, renewals, done = world.now_s, [], []
    renew = world.renew

    def note(*args: Any, **options: Any) -> Renewal:
        renewals.append(world.now_s)
        return renew(*args, **options)

    world.renew = note  # type: ignore[method-assign]
    while world.recovery.busy:
        world.watch.turn()
        done.append(world.recovery.portions)

    # One hundred tenths of a second, and no renewal was late by more than one portion.
    assert world.now_s - began_s == pytest.approx(10.0, abs=0.2)
    assert done[0] >= 90
    every_s = [later - one for one, later in pairwise([began_s, *renewals])]
    assert max(every_s) <= LEASE_S * 0.4 + 0.2


def test_what_two_looks_after_a_reconnection_find_is_given_back() -> None:
    world = World()
    world.connected = False
    world.watch.renew()
    world.found = {"own:1", "own:2"}
    world.connected = False
    world.watch.renew()
    assert world.given_back == [set()]

    # Only now has the server heard of one of them.
    world.found = {"own:2", "own:3"}
    world.attend_for(LEASE_S)

    assert world.given_back == [set(), {"own:2"}]


def test_at_the_end_all_that_the_server_still_holds_is_given_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    world = World()
    world.left = 3

    world.watch.leave()

    assert "3 messages with unwritten outcomes are back on their queues" in caplog.text
    assert not world.connected
    assert world.recovery.closed


@pytest.mark.parametrize("fails", [1, 2])
def test_a_connection_that_is_lost_at_the_end_is_replaced_once(
    fails: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    world = World()
    tried: list[bool] = []

    def leave(_unwritten: list[Settlement]) -> int:
        tried.append(world.connected)
        world.connected = True
        if len(tried) <= fails:
            raise ConnectionLost("gone")
        return 3

    world.leave = leave  # type: ignore[method-assign]

    world.watch.leave()

    # Each time over a new one.
    assert tried == [True, False]
    assert ("3 messages with unwritten outcomes" in caplog.text) is (fails == 1)
    assert ("could not be given up" in caplog.text) is (fails == 2)
    assert not world.connected


def test_a_hub_that_is_blocked_has_others_run_what_waits_here(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    world = World()
    world.run(10.0)
    world.answers = False
    world.run(5.0)
    # Once: what comes later cannot come while the hub stands.
    assert world.given_away == 1

    world.answers = True
    world.move()
    world.run(5.0)
    world.answers, world.problem = False, ConnectionLost("gone")
    world.run(5.0)

    assert world.given_away == 1
    assert "messages that have not begun here wait until the hub runs" in caplog.text


def test_whoever_waits_would_relay_and_the_one_that_does_hands_on_what_is_announced() -> None:
    world = World()
    world.noticed = True
    world.watch.turn()
    assert (world.would_relay, world.relayed) == (False, 0)

    def renew() -> None:
        world.now_s += 2.0
        world.watch.turn()

    world.is_waiting = True
    world.answer = renewal(relays=True)
    renew()
    assert (world.would_relay, world.relayed) == (True, 1)

    world.noticed = True
    # A storm of changes: no more often than every few milliseconds.
    world.watch.turn()
    assert world.relayed == 1
    assert 0 < world.watch.pause_s() <= 0.005
    world.now_s += 0.005
    world.watch.turn()
    assert world.relayed == 2

    world.is_waiting, world.answer = False, renewal()
    renew()
    world.noticed = True
    renew()
    assert (world.would_relay, world.relayed) == (False, 2)


def test_a_worker_looks_itself_when_a_queue_that_nobody_waits_for_has_messages() -> None:
    world = World()
    world.is_waiting, world.beyond, world.noticed = True, True, True
    world.answer = renewal(relays=True)

    world.watch.turn()
    world.watch.turn()

    assert world.relayed == 1
    assert world.rung == 1


def test_where_changes_are_not_announced_the_renewals_look_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    world = World()
    world.is_waiting, world.noticed = True, True
    world.answer = renewal(relays=True)
    world.problem = AccessRefused("CLIENT TRACKING is not allowed")

    world.watch.turn()
    world.noticed = True
    world.watch.turn()

    assert world.relayed == 1
    assert "does not announce messages on less urgent lists" in caplog.text
    assert world.connected
