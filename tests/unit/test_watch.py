"""The thread beside the hub: when it renews, when it rings, and when it calls the hub blocked."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from greenq import ear
from greenq.errors import (
    AccessRefused,
    ConnectionLost,
    OperationalError,
    ServerError,
    TransportTimeout,
)
from greenq.transport.client import Message
from greenq.transport.leases import Renewal
from greenq.transport.settle import Publication
from greenq.watch import Beat, Blocker, Watch
from greenq.worker_state import WorkerState

LEASE_S = 3.0
BLOCKED_AFTER_S = 1.0


class World:
    """A clock, a server and a hub that do as they are told."""

    connected = True
    incarnation = "own"

    def __init__(self) -> None:
        self.now_s = 100.0
        self.answer: Renewal | OperationalError = renewal()
        self.connection = self
        self.rung = 0
        self.due, self.promote_takes_s = 0, 0.01
        self.paused: list[frozenset[str]] = []
        # Of the connection: what was sent, what is published to this worker, and what goes wrong.
        self.calls: list[tuple[object, ...]] = []
        self.published: list[Message] = []
        self.problem: OperationalError | None = None
        # Beats that went with a renewal.
        self.ridden = 0
        # Of the hub.
        self.answers = True
        self.resting, self.pings = False, 0
        self.sent_for: list[Callable[[], object]] = []
        self.asked_s = self.moved_s = self.lag_s = 0.0
        self.watch = Watch(
            self,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            WorkerState(),
            lease_s=LEASE_S,
            visibility_timeout_s=3600.0,
            blocked_after_s=BLOCKED_AFTER_S,
            blocking_task=lambda _: "proj.add[id]",
            held=lambda: (set(), 1),
            look=lambda: None,
            paused=lambda queues: self.paused.append(queues),
            clock=lambda: self.now_s,
        )
        self.watch._thread = SimpleNamespace(  # type: ignore[assignment]
            hub_thread=threading.get_ident(), wake=lambda: None, runs_here=lambda: True
        )

    # As leases and their connection.
    def renew(self, news: Publication | None = None) -> Renewal:
        if isinstance(self.answer, OperationalError):
            raise self.answer
        if news is not None:
            try:
                self.call("PUBLISH", *news)
            except (AccessRefused, ServerError) as exc:
                return self.answer._replace(unheard=str(exc))
            self.ridden += 1
        return self.answer

    def connect(self) -> None:
        self.connected = True

    def uptime_s(self) -> float:
        return 3600.0

    def renew_scores(self, _tags: list[str]) -> None: ...

    def others(self) -> list[Any]:
        return []

    def recover_overdue(self, _living: list[str]) -> int:
        return 0

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

    def messages(self) -> list[Message]:
        heard, self.published = self.published, []
        return heard

    def promote(self) -> int:
        self.now_s += self.promote_takes_s
        self.due, moved = max(0, self.due - 1000), min(self.due, 1000)
        return moved

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
            assert run is self.watch._look
            self.rung += 1
        else:
            self.sent_for.append(run)

    def run(self, seconds: float) -> list[float]:
        """Look whenever it is due, for so long; return the moments."""
        end_s, looks = self.now_s + seconds, []
        while (due_s := max(self.now_s, self.watch._look_at_s)) <= end_s:
            self.now_s = due_s
            looks.append(due_s)
            self.watch._look_at_hub()
        self.now_s = end_s
        return looks

    def attend_for(self, seconds: float) -> None:
        """Look and attend whenever one of both is due, for so long."""
        end_s = self.now_s + seconds
        while (due_s := self.now_s + self.watch._pause_s()) <= end_s:
            self.now_s = due_s
            if self.now_s >= self.watch._look_at_s:
                self.watch._look_at_hub()
            if self.now_s >= self.watch._renew_at_s:
                self.watch._renew()
            self.watch._attend()
        self.now_s = end_s


def renewal(*, work: bool = False, paused: tuple[str, ...] = ()) -> Renewal:
    return Renewal(
        held=True, server_time=0.0, work=work, next_due=None, expired=[], paused=frozenset(paused)
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

    world.watch._renew()

    assert world.rung == rings


def test_all_etas_that_are_due_are_moved_in_one_go_but_no_other_duty_waits_for_them() -> None:
    world = World()
    world.watch._renew()
    world.watch._look_at_s = world.now_s + 0.5

    world.due = 10_000
    world.watch._promote()

    # What is due next, a renewal tells.
    assert (world.due, world.watch._renew_at_s) == (0, world.now_s)

    world.watch._renew()
    renew_at_s = world.watch._renew_at_s
    world.watch._look_at_s = world.now_s + 0.5
    world.due, world.promote_takes_s = 1_000_000, 0.1
    world.watch._promote()

    assert world.now_s <= world.watch._look_at_s + world.promote_takes_s
    assert world.due > 0
    assert world.watch._renew_at_s == renew_at_s


@pytest.mark.parametrize("lease_s", [3.0, 10.0, 60.0])
def test_a_renewal_on_a_dead_connection_leaves_time_for_another(lease_s: float) -> None:
    world = World()
    world.watch._renew_every_s *= lease_s / LEASE_S
    world.watch._renew()
    renewed_s = world.now_s
    world.now_s = world.watch._renew_at_s
    # The limit of a worker's connection for this.
    world.answer = TransportTimeout("silent")
    world.watch._renew()

    again_s = world.watch._renew_at_s + lease_s / 3

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
    assert world.watch.blocked_count == 1

    # Resting then or at work, its end is told.
    world.answers, world.resting = True, resting
    world.move()
    world.run(1.0)
    assert "the hub moves again" in caplog.text


@pytest.mark.parametrize(("blocked_s", "said"), [(0.9, 0), (1.5, 1), (20.0, 1)])
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

    assert world.watch.blocked_count == said
    texts = [record.getMessage() for record in caplog.records]
    assert [text.split(" by ")[0] for text in texts[:1]] == [
        f"the hub has been blocked for {BLOCKED_AFTER_S:.1f} s"
    ] * said
    assert len(texts) == 2 * said
    if said:
        assert "by proj.add[id] at " in texts[0]
        assert "the hub moves again; it was blocked for" in texts[1]


# --- the cluster ----------------------------------------------------------------------------------


class Heart:
    """What a watch publishes for somebody, and what it is told of the hub."""

    def __init__(self, world: World, every_s: float = 2.0) -> None:
        self.told: list[Blocker | None] = []
        self.beat = Beat(every_s, self.write)
        world.watch.beat(self.beat)

    def write(self, blocker: Blocker | None) -> Publication:
        self.told.append(blocker)
        return Publication("beats", "beat")


def test_the_first_beat_is_at_once_and_the_others_go_with_the_renewals_next_to_their_time() -> None:
    world = World()
    world.watch._renew()
    Heart(world, every_s=2.0)

    world.attend_for(60.0)

    at_s = [call[0] - 100.0 for call in world.calls if call[1:] == ("PUBLISH", "beats", "beat")]
    assert at_s[0] == pytest.approx(0.02, abs=0.01)
    assert len(at_s) == pytest.approx(30, abs=1)
    assert max(later - one for one, later in pairwise(at_s)) < 2.0 + LEASE_S * 0.4
    assert world.ridden == len(at_s) - 1


def test_beats_that_are_more_frequent_than_renewals_have_their_own_time() -> None:
    world = World()
    world.watch._renew()
    Heart(world, every_s=0.5)

    world.attend_for(10.0)

    at_s = [call[0] - 100.0 for call in world.calls if call[1:] == ("PUBLISH", "beats", "beat")]
    assert len(at_s) == pytest.approx(20, abs=1)
    assert max(later - one for one, later in pairwise(at_s)) < 0.6


def test_a_beat_that_is_given_anew_is_published_at_once() -> None:
    world = World()
    world.watch._renew()
    heart = Heart(world, every_s=10.0)
    world.attend_for(1.0)

    world.watch.beat(heart.beat)
    world.attend_for(0.1)

    assert len(heart.told) == 2


def test_without_a_beat_nothing_is_published() -> None:
    world = World()
    world.watch._renew()
    heart = Heart(world)
    world.attend_for(1.0)

    world.watch.beat(None)
    world.attend_for(60.0)

    assert len(heart.told) == 1


def test_a_beat_is_told_what_blocks_the_hub() -> None:
    world = World()
    world.watch._renew()
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
    world.watch._renew()
    heart = Heart(world)
    world.attend_for(1.0)
    world.problem = ConnectionLost("gone")
    world.watch._beat_at_s = world.now_s - LEASE_S

    world.watch._attend()

    # The lease is renewed at once: that connects again.
    assert not world.connected
    assert world.watch._renew_at_s == world.now_s
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
    world.watch.ear.listen("channel", print)
    Heart(world)
    world.problem = problem

    world.attend_for(60.0)

    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert "no full member of its cluster" in said[0]
    assert world.connected
    assert world.watch.held
    assert world.watch._state.lease_until_s > world.now_s


@pytest.fixture
def hearing(monkeypatch: pytest.MonkeyPatch) -> World:
    """A world whose ear has the same clock."""
    world = World()
    monkeypatch.setattr(ear, "time", SimpleNamespace(monotonic=lambda: world.now_s))
    return world


def test_a_hub_that_is_known_to_stand_is_answered_for_at_once(hearing: World) -> None:
    world = hearing
    answered_s: list[float] = []
    handled: list[bytes] = []
    world.watch.ear.listen(
        "channel", handled.append, urgent=lambda _data: lambda _: answered_s.append(world.now_s)
    )
    world.watch._renew()
    world.attend_for(1.0)

    # The hub moves: it is the one who answers.
    world.published = [Message("channel", b"1")]
    asked_s = world.now_s
    world.watch._attend()
    for run in world.sent_for:
        run()
    world.sent_for.clear()
    world.attend_for(1.0)
    assert (handled, answered_s) == ([b"1"], [])

    # It has just stopped: it gets a moment.
    world.answers = False
    world.published = [Message("channel", b"2")]
    asked_s = world.now_s
    world.watch._attend()
    world.attend_for(0.2)
    assert [at_s - asked_s for at_s in answered_s] == [pytest.approx(0.05, abs=0.03)]

    # It is known to stand: it gets none.
    world.attend_for(5.0)
    world.published = [Message("channel", b"3")]
    asked_s = world.now_s
    world.watch._attend()
    assert answered_s[1:] == [asked_s]
    assert handled == [b"1"]


def test_a_hub_that_moved_and_stands_again_is_known_to_stand(
    hearing: World, caplog: pytest.LogCaptureFixture
) -> None:
    world = hearing
    found: list[Blocker | None] = []
    world.watch.ear.listen(
        "channel", print, urgent=lambda _: lambda _: found.append(world.watch.blocking_now())
    )
    world.watch._renew()
    world.attend_for(1.0)
    world.answers = False
    world.attend_for(3.0)
    assert world.watch.blocked_count == 1

    # For a moment only, between two looks.
    world.answers = True
    world.move()
    world.answers = False
    world.published = [Message("channel", b"ping")]
    world.watch._attend()
    world.attend_for(0.2)

    (blocker,) = found
    assert blocker is not None
    assert blocker.for_s < 0.2
    assert "the hub moves again" in caplog.text


def test_whatever_is_wrong_with_an_urgent_answer_the_thread_goes_on(
    hearing: World, caplog: pytest.LogCaptureFixture
) -> None:
    world = hearing

    def broken(_data: bytes) -> None:
        raise RuntimeError("of a command")

    world.watch.ear.listen("channel", print, urgent=broken)
    world.answers = False
    world.watch._asked_s = world.now_s
    world.published = [Message("channel", b"1"), Message("channel", b"2")]

    world.attend_for(1.0)

    assert caplog.text.count("RuntimeError: of a command") == 2
    # They wait for the hub.
    assert len(world.sent_for) == 1


def test_the_hub_is_told_when_other_queues_are_paused() -> None:
    world = World()
    for queues in ((), ("a",), ("a",), ("a", "b"), ()):
        world.answer = renewal(paused=queues)
        world.watch._renew()

    for run in world.sent_for:
        run()

    assert world.paused == [{"a"}, {"a", "b"}, frozenset()]
