"""The lead of a worker's beat: when it is asked for, and when the beat is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from greenq.errors import AccessRefused, ConnectionLost, OperationalError
from greenq.transport.leases import Renewal
from greenq.transport.schedule_store import LEAD_S, RENEW_S, Lead, LeadCall
from greenq.watchdog.beat_lead import BeatLead

if TYPE_CHECKING:
    from collections.abc import Callable

CALL = LeadCall("leader", "changes", "me", LEAD_S)
LEADS = Lead(5_000_000, True, 7, "me")


class World:
    """A clock, a connection and a hub that do as they are told."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.connection = self
        self.changed = False
        self.closed = self.woken = self.told = 0
        self.number: int | OperationalError = 7
        self.lead = BeatLead(
            self,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            wake=self.wake,
            clock=lambda: self.now_s,
        )

    def wake(self) -> None:
        self.woken += 1

    def spawn_soon(self, run: Callable[[], object], *, name: str) -> None:
        assert name == "beat"
        self.told += 1
        run()

    def changes(self, key: str) -> int:
        assert key == "changes"
        self.changed = False
        if isinstance(self.number, OperationalError):
            raise self.number
        return self.number

    def close(self) -> None:
        self.closed += 1

    def renew(self, answer: Lead | None) -> LeadCall | None:
        """Renew the lease, and return what was asked."""
        asked = self.lead.call(self.now_s)
        self.lead.renewed(
            Renewal(held=True, server_time=0.0, work=False, next_due=None, expired=[], lead=answer)
        )
        return asked

    def later(self, seconds: float, answer: Lead = LEADS) -> Lead:
        """Let time pass, also for the server, and return its answer then."""
        self.now_s += seconds
        return answer._replace(now=int((self.now_s - 95.0) * 1_000_000))


@pytest.fixture
def world() -> World:
    """Return a world whose beat sleeps for a long time; it has asked just now."""
    world = World()
    world.lead.begin(CALL, LEADS)
    world.lead._runs_s = world.now_s + 60.0
    return world


def test_without_a_beat_nothing_is_asked() -> None:
    world = World()
    world.changed = True

    assert world.renew(None) is None

    assert world.lead.answer() is None
    assert world.lead.due_s == world.lead.look_s == float("inf")


def test_a_beat_that_has_asked_goes_on_asking_with_each_renewal(world: World) -> None:
    assert world.woken == 1
    for _ in range(20):
        assert world.lead.due_s == pytest.approx(world.now_s + RENEW_S)
        assert world.renew(world.later(RENEW_S)) == CALL
    assert world.told == 0


def test_a_beat_asks_by_itself_after_a_silence_in_which_another_may_have_led(world: World) -> None:
    began_s = world.now_s
    world.renew(world.later(LEAD_S + 0.1))

    assert world.told == 1
    assert world.lead.answer() is None
    assert world.lead.heard_s == began_s


def test_the_answer_has_the_servers_time(world: World) -> None:
    world.now_s += 1.0
    assert world.lead.answer() == LEADS._replace(now=LEADS.now + 1_000_000)


@pytest.mark.parametrize(
    "news",
    [LEADS._replace(leads=False, leader="other"), LEADS._replace(changes=8)],
    ids=["leader", "changes"],
)
def test_the_beat_is_told_what_is_new(world: World, news: Lead) -> None:
    news = world.later(1.0, news)
    world.renew(news)
    assert world.told == 1
    assert world.lead.answer() == news

    world.renew(world.later(1.0, news))
    assert world.told == 1


def test_the_beat_is_told_when_a_clock_was_set(world: World) -> None:
    after = world.later(1.0)
    world.renew(after._replace(now=after.now + 3_600_000_000))
    assert world.told == 1


def test_a_change_is_seen_at_once_if_it_is_announced(world: World) -> None:
    assert world.lead.look_s == float("inf")
    world.changed, world.number = True, 8
    assert world.lead.look_s <= world.now_s

    assert world.lead.look()

    assert world.told == 1
    answer = world.lead.answer()
    assert answer is not None
    assert answer.changes == 8
    # Reading all entries takes long, so the next look comes later.
    world.changed = True
    assert world.lead.look_s == world.now_s + 1.0


def test_without_announcements_renewals_come_each_second(world: World) -> None:
    world.changed, world.number = True, AccessRefused("no")
    assert world.lead.look()
    world.renew(world.later(1.0))
    assert world.lead.due_s == pytest.approx(world.now_s + 1.0)
    assert world.told == world.closed == 0
    assert world.lead.look_s == float("inf")


def test_a_lost_connection_is_closed(world: World) -> None:
    world.changed, world.number = True, ConnectionLost("gone")
    assert not world.lead.look()
    assert world.closed == 1


def test_after_a_failure_the_beat_asks_by_itself(world: World) -> None:
    world.lead.failed()
    assert world.told == 1
    assert world.lead.answer() is None
    assert world.renew(None) is None

    world.lead.begin(CALL, LEADS)
    assert world.renew(world.later(1.0)) is not None


def test_a_refused_answer_is_a_failure(world: World) -> None:
    assert world.renew(None) is not None
    assert world.lead.answer() is None
    assert world.told == 1


def test_an_old_answer_does_not_count(world: World) -> None:
    world.now_s += LEAD_S + 0.1
    assert world.lead.answer() is None


def test_a_beat_that_does_not_run_loses_the_lead_as_if_it_had_not_called(world: World) -> None:
    began_s = world.lead._runs_s = world.now_s + 1.0
    terms: list[Any] = []
    while world.now_s < began_s + 10:
        asked = world.renew(world.later(1.0))
        terms.append(asked and asked.term_s)
    ends_s = [began_s + late_s + term_s for late_s, term_s in enumerate(terms) if term_s]
    assert max(ends_s) == pytest.approx(began_s + LEAD_S)
    assert terms[-1] is None


def test_a_beat_that_has_ended_asks_no_more(world: World) -> None:
    world.lead.end()
    assert world.renew(None) is None
    assert world.lead.answer() is None
    # Its last turn may still be under way.
    world.lead.begin(CALL, LEADS)
    assert world.renew(None) is None
    # Returns at once.
    world.lead.wait(60.0)
