"""Who is alive, and who is elected, as one worker sees it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenq.consumer.gossip import Gossip
from greenq.errors import ConnectionLost
from greenq.protocol.clock import LamportClock
from greenq.protocol.keys import Keys
from greenq.timer import Timer
from tests.published import published

ME, OTHER, THIRD = "me@host", "other@host", "third@host"


class World:
    """One worker's gossip, with a clock of the test's."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.timer = Timer(lambda: self.now_s)
        self.clock = LamportClock()
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.led: list[Any] = []
        self.is_first = True
        # Who holds a lease, None when the server is away, and how often that was looked at.
        self.leased: set[str] | None = set()
        self.looks = 0
        # What happens while they are looked at, once.
        self.during: Callable[[], object] | None = None
        self.greeted: set[str] = set()
        # The channels that are listened to.
        self.heard: set[str] = set()
        # Something was published that has not been dealt with yet.
        self.unheard = False
        # How long what it hears now has waited for it.
        self.late_s = 0.0
        self.gossip = Gossip(
            self,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            self.timer,
            Keys(),
            self.clock,
            hostname=ME,
            accept=frozenset({"application/json"}),
            leaders={"lead": self.led.append, "fail": self._fail},
            claim=self._claim,
            leased=self._leased,
            greeted=lambda: self.greeted,
            begin=lambda run, _name: run(),
            now_s=lambda: self.now_s,
        )

    def _claim(self, _election_id: str) -> bool:
        return self.is_first

    @staticmethod
    def _fail(_action: object) -> None:
        raise RuntimeError("of the leader")

    def _leased(self) -> set[str]:
        if self.leased is None:
            raise ConnectionLost("of the server")
        self.looks += 1
        answer, during = self.leased, self.during
        self.during = None
        if during is not None:
            during()
        return answer

    # As an ear and as events.
    def subscribe(self, channel: str, _handle: object) -> None:
        assert channel.startswith("/0.celeryev/worker.")
        self.heard.add(channel.removeprefix("/0.celeryev/"))

    def unsubscribe(self, channel: str) -> None:
        self.heard.discard(channel.removeprefix("/0.celeryev/"))

    def has_waiting(self, channel: str) -> bool:
        return self.unheard and channel.removeprefix("/0.celeryev/") in self.heard

    def send(self, kind: str, fields: dict[str, Any]) -> None:
        self.sent.append((kind, fields))

    def hear(self, kind: str, node: str, clock: int = 1, **fields: Any) -> None:
        event = {"hostname": node, "pid": 7, "clock": clock, "timestamp": 1.0, "type": kind}
        self.gossip.receive(published({**event, **fields}))

    def vote(self, node: str, clock: int, *, topic: str = "lead", election: str = "e1") -> None:
        fields = {"id": election, "topic": topic, "action": f"of {node}", "cver": 1}
        self.hear("worker-elect", node, clock, **fields)

    def pass_s(self, seconds: float) -> None:
        ends_s = self.now_s + seconds
        while self.now_s < ends_s:
            self.stand_still(min(0.1, ends_s - self.now_s))

    def stand_still(self, seconds: float) -> None:
        """Let time pass in which this worker does nothing."""
        self.now_s += seconds
        self.timer.run_due()


@pytest.fixture
def world() -> World:
    world = World()
    world.gossip.start()
    return world


class TestNeighbours:
    def test_a_worker_is_there_as_long_as_it_is_heard_of(self, world: World) -> None:
        world.hear("worker-online", OTHER, freq=2.0)
        world.pass_s(3.9)
        world.hear("worker-heartbeat", OTHER, freq=2.0)
        world.pass_s(3.9)
        assert set(world.gossip.neighbours) == {OTHER}

        world.pass_s(5.0)

        assert world.gossip.neighbours == {}

    def test_a_worker_that_says_good_bye_is_gone_at_once(self, world: World) -> None:
        world.hear("worker-heartbeat", OTHER)
        world.hear("worker-offline", OTHER)

        assert world.gossip.neighbours == {}

    @pytest.mark.parametrize("unheard", [True, False])
    def test_nobody_is_lost_for_what_this_worker_has_not_heard_yet(
        self, world: World, unheard: bool
    ) -> None:
        world.hear("worker-heartbeat", OTHER, freq=2.0)
        # In the hub all is on time, or late: the one when another thread hears, the other when the
        # whole process was stopped.
        world.unheard = unheard
        (world.pass_s if unheard else world.stand_still)(6)
        assert set(world.gossip.neighbours) == {OTHER}

        world.unheard = False
        world.hear("worker-heartbeat", OTHER, freq=2.0)
        world.pass_s(3.9)
        assert set(world.gossip.neighbours) == {OTHER}
        world.pass_s(5)
        assert world.gossip.neighbours == {}

    def test_its_own_interval_counts(self, world: World) -> None:
        world.hear("worker-heartbeat", OTHER, freq=30)
        world.pass_s(50)

        assert OTHER in world.gossip.neighbours

    def test_own_events_are_no_neighbour_and_move_the_clock_by_one(self, world: World) -> None:
        world.hear("worker-heartbeat", ME, clock=500)

        assert (world.gossip.neighbours, world.clock.value) == ({}, 1)

    def test_the_clock_goes_past_that_of_others(self, world: World) -> None:
        world.hear("worker-heartbeat", OTHER, clock=500)

        assert world.clock.value == 501

    def test_a_clock_that_nobody_can_have_counted_up_to_is_not_followed(self, world: World) -> None:
        world.hear("worker-heartbeat", OTHER, clock=10**300)
        world.hear("worker-heartbeat", OTHER, clock=1 << 60)

        assert world.clock.value <= 1

    def test_stopping_forgets_all(self, world: World) -> None:
        world.hear("worker-heartbeat", OTHER)
        world.vote(OTHER, 1)
        world.gossip.stop()
        world.pass_s(60)

        assert (world.gossip.neighbours, world.led) == ({}, [])


BEAT = "worker.heartbeat"
WINDOW_S, LINGER_S, AGAIN_S, LOOK_S = 5, 120, 300, 10


class TestHeartbeats:
    def test_alone_it_listens_to_them_for_a_while_only(self, world: World) -> None:
        assert BEAT in world.heard
        world.pass_s(2 * WINDOW_S + 1)

        assert world.heard == {"worker.online", "worker.offline", "worker.elect"}

    def test_those_of_greenq_do_not_keep_it_listening(self, world: World) -> None:
        world.leased = {OTHER}
        world.hear("worker-online", OTHER, sw_ident="greenq", freq=2.0)
        world.hear("worker-heartbeat", OTHER, sw_ident="greenq", freq=2.0)
        world.vote(OTHER, 5)
        world.pass_s(2 * WINDOW_S + 1)

        assert BEAT not in world.heard
        assert set(world.gossip.neighbours) == {OTHER}

    @pytest.mark.parametrize("kind", ["worker-online", "worker-heartbeat"])
    def test_one_of_another_kind_is_listened_to_as_long_as_it_beats(
        self, world: World, kind: str
    ) -> None:
        world.pass_s(2 * WINDOW_S + 1)
        world.hear(kind, OTHER, sw_ident="py-celery", freq=2.0)
        for _ in range(200):
            world.pass_s(2)
            world.hear("worker-heartbeat", OTHER, sw_ident="py-celery", freq=2.0)
            assert BEAT in world.heard

        world.pass_s(LINGER_S + WINDOW_S + 1)
        if BEAT in world.heard:
            # One of the windows that come now and then, at a random time.
            world.pass_s(2 * WINDOW_S + 1)

        assert BEAT not in world.heard
        assert world.gossip.neighbours == {}

    def test_one_that_beats_seldom_is_not_given_up_between_two_beats(self, world: World) -> None:
        world.hear("worker-heartbeat", OTHER, sw_ident="py-celery", freq=400.0)
        world.pass_s(700)

        assert BEAT in world.heard
        assert OTHER in world.gossip.neighbours

    def test_one_that_was_there_before_and_says_hello_is_listened_to(self) -> None:
        world = World()
        world.leased, world.greeted = {THIRD}, {OTHER, THIRD}
        world.gossip.start()
        world.pass_s(LINGER_S - WINDOW_S)
        assert BEAT in world.heard

        world.pass_s(2 * WINDOW_S + 1)

        assert BEAT not in world.heard

    def test_when_all_that_said_hello_hold_leases_it_listens_no_longer(self) -> None:
        world = World()
        world.leased, world.greeted = {OTHER, THIRD}, {OTHER, THIRD}
        world.gossip.start()
        world.pass_s(2 * WINDOW_S + 1)

        assert BEAT not in world.heard

    def test_one_of_which_only_a_vote_was_heard_is_listened_to(self, world: World) -> None:
        world.pass_s(2 * WINDOW_S + 1)
        world.vote(OTHER, 5)
        world.pass_s(LOOK_S)

        assert BEAT in world.heard

    def test_now_and_then_it_listens_for_those_that_it_has_missed(self, world: World) -> None:
        heard = []
        for _ in range(AGAIN_S * 3):
            world.pass_s(1)
            heard.append(BEAT in world.heard)

        # Twice in a quarter of an hour at least; and for most of that not.
        assert 3 <= [*pairwise(heard)].count((False, True)) + 1 <= 5
        assert sum(heard) < 50

    def test_whom_it_did_not_listen_to_is_not_lost(self, world: World) -> None:
        world.leased = {OTHER}
        world.hear("worker-heartbeat", OTHER, sw_ident="greenq", freq=2.0)
        world.pass_s(60)
        # One of another kind comes: from now on all are heard.
        world.hear("worker-online", THIRD, sw_ident="py-celery", freq=2.0)
        for _ in range(10):
            world.pass_s(1.9)
            world.hear("worker-heartbeat", THIRD, sw_ident="py-celery", freq=2.0)
            world.hear("worker-heartbeat", OTHER, sw_ident="greenq", freq=2.0)
            assert set(world.gossip.neighbours) == {OTHER, THIRD}

    def test_stopped_it_listens_to_nothing(self, world: World) -> None:
        world.gossip.stop()
        world.pass_s(AGAIN_S * 2)

        assert (world.heard, world.looks) == (set(), 1)


class TestLeases:
    def test_who_holds_one_is_there_until_it_has_ended(self, world: World) -> None:
        world.leased = {ME, OTHER, ""}
        world.pass_s(LOOK_S + 1)
        assert set(world.gossip.neighbours) == {OTHER}
        world.pass_s(600)
        assert set(world.gossip.neighbours) == {OTHER}

        world.leased = {ME}
        world.pass_s(LOOK_S + 1)

        assert world.gossip.neighbours == {}

    def test_who_comes_while_they_are_looked_at_stays(self, world: World) -> None:
        world.during = lambda: world.hear("worker-online", OTHER, sw_ident="greenq", freq=2.0)
        world.pass_s(LOOK_S + 1)

        assert set(world.gossip.neighbours) == {OTHER}

    def test_they_are_looked_at_seldom_and_in_a_large_fleet_more_seldom(self, world: World) -> None:
        world.pass_s(100)
        assert 9 <= world.looks <= 11

        world.leased = {f"n{number}@host" for number in range(1000)}
        world.pass_s(2 * LOOK_S)
        world.looks = 0
        world.pass_s(1000)

        assert 8 <= world.looks <= 11

    def test_a_server_that_is_away_is_asked_again(self, world: World) -> None:
        world.leased = None
        world.pass_s(LOOK_S * 2)
        world.leased = {OTHER}
        world.pass_s(LOOK_S + 1)

        assert set(world.gossip.neighbours) == {OTHER}

    def test_an_answer_that_comes_after_the_stop_counts_no_more(self, world: World) -> None:
        world.leased = {OTHER}
        world.during = world.gossip.stop
        world.pass_s(LOOK_S + 1)

        assert world.gossip.neighbours == {}

    def test_an_answer_that_comes_after_a_restart_is_asked_for_anew(self, world: World) -> None:
        def restart() -> None:
            world.leased = {THIRD}
            world.gossip.stop()
            world.gossip.start()

        world.leased, world.during = {OTHER}, restart
        world.pass_s(LOOK_S)

        assert set(world.gossip.neighbours) == {THIRD}

    def test_in_an_election_whoever_holds_one_is_waited_for(self, world: World) -> None:
        world.leased = {ME, OTHER}
        world.vote(ME, 5)
        assert world.led == []

        world.vote(OTHER, 9)

        assert world.led == [f"of {ME}"]

    def test_in_an_election_who_holds_one_no_longer_is_not_waited_for(self, world: World) -> None:
        world.leased = {ME, OTHER, THIRD}
        world.pass_s(LOOK_S + 1)
        world.leased = {ME, THIRD}
        world.vote(ME, 5)
        assert world.led == []

        world.vote(THIRD, 9)

        assert world.led == [f"of {ME}"]

    def test_an_election_that_begins_during_a_look_gets_one_of_its_own(self, world: World) -> None:
        def vote() -> None:
            world.leased = {ME, OTHER}
            world.vote(ME, 5)

        world.leased, world.during = {ME}, vote
        world.pass_s(LOOK_S)
        assert world.led == []

        world.vote(OTHER, 1)
        world.pass_s(3)

        assert world.led == []

    def test_without_an_answer_an_election_ends_in_time(self, world: World) -> None:
        world.leased = None
        world.vote(ME, 5)
        world.pass_s(1.9)
        assert world.led == []

        world.pass_s(0.2)

        assert world.led == [f"of {ME}"]


class TestElections:
    def test_asked_for_an_election_it_votes(self, world: World) -> None:
        world.gossip.elect("e1", "lead", {"any": 1})

        assert world.sent == [
            ("worker-elect", {"id": "e1", "topic": "lead", "action": {"any": 1}, "cver": 1})
        ]

    @pytest.mark.parametrize("others", [True, False])
    def test_asked_long_ago_it_votes_if_no_other_has(self, world: World, others: bool) -> None:
        world.late_s = 3.0
        world.gossip.elect("e1", "lead", None)
        assert world.sent == []
        if others:
            world.vote(OTHER, 5)
        world.late_s = 0.0

        world.pass_s(0.3)

        votes = [kind for kind, _fields in world.sent if kind == "worker-elect"]
        assert votes == ([] if others else ["worker-elect"])

    def test_alone_it_wins_with_its_own_vote(self, world: World) -> None:
        world.vote(ME, 5)

        assert world.led == [f"of {ME}"]
        assert world.sent == [("worker-elect-ack", {"id": "e1"})]

    @pytest.mark.parametrize(("mine", "others", "won"), [(1, 2, True), (3, 2, False)])
    def test_the_lowest_clock_wins_when_all_have_voted(
        self, world: World, mine: int, others: int, won: bool
    ) -> None:
        world.hear("worker-heartbeat", OTHER)

        world.vote(ME, mine)
        assert world.led == []
        world.vote(OTHER, others)

        assert bool(world.led) is won

    def test_of_equal_clocks_the_smallest_name_wins(self, world: World) -> None:
        world.hear("worker-heartbeat", OTHER)
        world.vote(OTHER, 1)
        world.vote(ME, 1)

        assert world.led == [f"of {ME}"]

    def test_the_order_of_the_votes_does_not_matter(self, world: World) -> None:
        world.hear("worker-heartbeat", OTHER)
        world.vote(OTHER, 9)
        assert world.led == []

        world.vote(ME, 3)

        assert world.led == [f"of {ME}"]

    def test_a_slow_worker_is_waited_for_but_not_for_ever(self, world: World) -> None:
        world.hear("worker-heartbeat", OTHER, freq=60)
        world.vote(ME, 5)
        world.pass_s(1.9)
        assert world.led == []

        world.pass_s(0.2)

        assert world.led == [f"of {ME}"]

    @pytest.mark.parametrize("unheard", [True, False])
    def test_votes_that_have_not_been_heard_yet_count(self, world: World, unheard: bool) -> None:
        world.hear("worker-heartbeat", OTHER, freq=60)
        world.vote(ME, 5)
        world.unheard = unheard
        (world.pass_s if unheard else world.stand_still)(4)
        assert world.led == []

        world.unheard = False
        world.vote(OTHER, 1)
        world.pass_s(4)

        assert world.led == []

    def test_whom_it_could_not_hear_while_it_stood_still_is_waited_for(self, world: World) -> None:
        world.hear("worker-heartbeat", OTHER, freq=2.0)
        world.stand_still(4.5)
        world.vote(ME, 5)
        assert world.led == []

        world.vote(OTHER, 1)
        world.pass_s(4)

        assert world.led == []

    def test_having_stood_still_it_decides_in_the_end(self, world: World) -> None:
        world.hear("worker-heartbeat", OTHER, freq=60)
        world.vote(ME, 5)
        world.stand_still(4)
        assert world.led == []

        world.pass_s(0.3)

        assert world.led == [f"of {ME}"]

    def test_a_worker_that_leaves_is_not_waited_for(self, world: World) -> None:
        world.hear("worker-heartbeat", OTHER)
        world.vote(ME, 5)

        world.hear("worker-offline", OTHER)

        assert world.led == [f"of {ME}"]

    def test_a_worker_that_did_not_vote_does_not_win(self, world: World) -> None:
        world.vote(OTHER, 5)
        world.pass_s(3)

        assert world.led == []

    @pytest.mark.parametrize(("late", "first"), [(OTHER, ME), (ME, OTHER)])
    def test_a_late_vote_changes_nothing(self, world: World, late: str, first: str) -> None:
        world.vote(first, 5)
        world.pass_s(3)
        decided = list(world.led)

        world.vote(late, 1)
        world.pass_s(3)

        assert world.led == decided

    def test_a_winner_does_not_act_when_another_has(self, world: World) -> None:
        world.is_first = False

        world.vote(ME, 5)

        assert world.led == []

    def test_elections_do_not_mix(self, world: World) -> None:
        world.hear("worker-heartbeat", OTHER)
        world.vote(ME, 1, election="e1")
        world.vote(ME, 9, election="e2")
        world.vote(OTHER, 5, election="e2")
        world.vote(OTHER, 5, election="e1")

        assert len(world.led) == 1

    @pytest.mark.parametrize("topic", ["nobody's", "fail"])
    def test_what_goes_wrong_after_an_election_is_logged(
        self, world: World, topic: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.ERROR)

        world.vote(ME, 1, topic=topic)

        assert topic in caplog.text

    def test_another_way_to_elect_does_not_count(self, world: World) -> None:
        world.hear("worker-elect", ME, id="e1", topic="lead", action=1, cver=2)

        assert (world.led, world.sent) == ([], [])


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
_FIELDS = st.dictionaries(
    st.sampled_from(["hostname", "type", "clock", "timestamp", "freq", "pid", "id", "topic",
        "action", "cver"]),
    _JSON | st.sampled_from([ME, OTHER, "worker-elect", "worker-heartbeat", "worker-offline", 1]),
)  # fmt: skip


@given(st.binary() | st.one_of(_FIELDS, _JSON, st.lists(_FIELDS)).map(published))
def test_whatever_is_published_is_survived(data: bytes) -> None:
    world = World()
    world.gossip.start()

    world.gossip.receive(data)
    world.pass_s(10)
