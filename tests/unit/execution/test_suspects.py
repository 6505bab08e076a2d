"""Suspects: messages whose workers have died run one at a time, alone, and the server knows."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenq.protocol import envelope
from greenq.transport.fetch import Delivery
from greenq.transport.settle import RUN_ALONE
from tests.unit.rig import DEADLINE_S, Rig, settle, wait_for


class Place:
    """A worker whose tasks run until they are let go; what runs at the same time is noted."""

    def __init__(self, **options: Any) -> None:
        self.rig = Rig(size=4, **options)
        self.gates: dict[str, Event] = {}
        self.began: list[str] = []
        self.beside: dict[str, set[str]] = {}
        self.known_alone: dict[str, str] = {}

        @self.rig.task("wait", bind=True)
        def wait(task: Any) -> None:
            name = task.request.id
            self.began.append(name)
            running = {each.message.id for each in self.rig.pool.active}
            for each in running:
                self.beside.setdefault(each, set()).update(running - {each})
            self.known_alone[name] = (self.rig.outbox.alone() or [""])[-1]
            assert self.gate(name).wait(DEADLINE_S)

    def gate(self, name: str) -> Event:
        return self.gates.setdefault(name, Event())

    def delivery(self, name: str, deaths: int = 0, **options: Any) -> Delivery:
        delivery = self.rig.delivery("wait", name, **options)
        if not deaths:
            return delivery
        return delivery._replace(raw=envelope.mark_redelivered(delivery.raw, deaths).encode())

    def give(self, name: str, deaths: int = 0, **options: Any) -> Delivery:
        return self.rig.give_all([self.delivery(name, deaths, **options)])[0]

    def let_go(self, *names: str) -> None:
        for name in names:
            self.gate(name).set()
        settle()

    def close(self) -> None:
        for name in [*self.began, *(each.message.id for each in self.rig.tasks.waiting())]:
            self.gate(name).set()
        wait_for(lambda: not self.rig.pool.active)


def in_(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def test_a_suspect_begins_when_all_others_have_ended_and_the_server_knows() -> None:
    place = Place()
    place.give("a")
    place.give("b")
    suspect = place.give("suspect", deaths=2)
    assert place.began == ["a", "b"]
    assert place.rig.outbox.alone() == []
    assert [each.message.id for each in place.rig.tasks.waiting()] == ["suspect"]

    place.let_go("a")
    assert place.began == ["a", "b"]
    place.let_go("b")

    assert place.began == ["a", "b", "suspect"]
    assert place.known_alone["suspect"] == suspect.tag
    assert place.beside["suspect"] == set()
    assert place.rig.outbox.alone() == [suspect.tag]
    place.let_go("suspect")
    # And it knows when that is over, after the outcome.
    assert place.rig.outbox.alone() == [suspect.tag, ""]
    assert place.rig.outbox.entries[-1].action == RUN_ALONE
    assert place.rig.outbox.states()[-1] == ("suspect", "SUCCESS")


def test_a_suspect_does_not_begin_before_the_server_has_confirmed_it() -> None:
    place = Place()
    put, later = place.rig.outbox.put, []

    def put_later(entry: Any) -> None:
        if entry.action == RUN_ALONE:
            later.append(entry.written)
            entry.written = None
        put(entry)

    place.rig.outbox.put = put_later  # type: ignore[method-assign]
    place.give("suspect", deaths=2)
    assert place.began == []

    later.pop()(True)
    settle()

    assert place.began == ["suspect"]
    place.close()


def test_suspects_run_one_after_the_other_in_their_order() -> None:
    place = Place()
    tags = [place.give(name, deaths=3).tag for name in "abc"]
    assert place.began == ["a"]

    for name in "abc":
        place.let_go(name)

    assert place.began == ["a", "b", "c"]
    assert all(not beside for beside in place.beside.values())
    # Each is announced in the place of the one before.
    assert place.rig.outbox.alone() == [*tags, ""]


def test_nothing_is_taken_from_the_first_suspect_until_after_the_last() -> None:
    place = Place()
    consuming = gevent.spawn(place.rig.tasks.consume)
    settle()
    place.rig.fetcher.ready = [place.delivery("suspect", deaths=2)]
    place.rig.fetcher.wake()
    settle()
    takes = place.rig.fetcher.takes
    place.rig.fetcher.ready = [place.delivery("next")]
    place.rig.fetcher.wake()
    settle()
    assert (place.began, place.rig.fetcher.takes) == (["suspect"], takes)

    place.let_go("suspect")

    wait_for(lambda: place.began == ["suspect", "next"])
    assert place.beside["suspect"] == set()
    place.close()
    place.rig.tasks.stop_consuming()
    consuming.join(DEADLINE_S)
    assert consuming.successful()


def test_what_becomes_due_while_a_suspect_runs_alone_goes_back_to_its_queue() -> None:
    # Else it would run beside it, and could kill the worker in its name.
    place = Place()
    due = place.give("due", eta=in_(10))
    place.give("suspect", deaths=2)
    assert place.began == ["suspect"]

    place.rig.pass_time(11)

    assert place.began == ["suspect"]
    assert [(move.tag, move.side) for move in place.rig.outbox.moves()] == [(due.tag, "next")]
    assert due.tag not in place.rig.state.reserved
    place.let_go("suspect")
    later = place.give("later", eta=in_(10))
    place.rig.pass_time(11)
    assert place.began == ["suspect", "later"]
    assert later.tag in place.rig.state.reserved
    place.close()


def test_what_came_with_a_suspect_runs_before_it() -> None:
    place = Place()

    place.rig.give_all([place.delivery("suspect", deaths=2), place.delivery("beside")])

    assert place.began == ["beside"]
    place.let_go("beside")
    assert place.began == ["beside", "suspect"]
    assert place.beside["suspect"] == set()
    place.close()


def test_a_suspect_does_not_wait_for_ever_and_then_its_death_counts_for_nobody_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("greenq.execution.suspects._PATIENCE_S", 0.01)
    place = Place()
    place.give("long")
    place.give("suspect", deaths=2)

    wait_for(lambda: place.began == ["long", "suspect"])

    assert place.rig.outbox.alone() == []
    assert "runs alongside other tasks, which have not ended in time" in caplog.text
    place.close()
    wait_for(lambda: not place.rig.tasks.admission.suspects.busy)


@pytest.mark.parametrize(
    ("deaths", "most", "is_suspect"), [(1, 5, False), (2, 5, True), (1, 2, True), (1, 1, True)]
)
def test_who_is_a_suspect(deaths: int, most: int, is_suspect: bool) -> None:
    place = Place(task_max_deliveries=most)
    place.give("other")

    place.give("a", deaths=deaths)

    assert ("a" not in place.began) is is_suspect
    place.close()
    wait_for(lambda: not place.rig.state.reserved)


def test_what_was_given_back_without_a_death_is_no_suspect() -> None:
    place = Place(task_max_deliveries=1)
    delivery = place.delivery("a")
    place.give("other")

    place.rig.give_all([delivery._replace(raw=envelope.mark_redelivered(delivery.raw).encode())])

    assert place.began == ["other", "a"]
    place.close()


def test_a_suspect_that_is_revoked_while_it_waits_is_discarded() -> None:
    place = Place()
    place.give("long")
    place.give("a", deaths=2)
    place.give("b", deaths=2)

    place.rig.tasks.revoke(ids=["a"])

    assert place.rig.outbox.states() == [("a", "REVOKED")]
    place.let_go("long")
    assert place.began == ["long", "b"]
    place.close()


def test_suspects_that_wait_are_given_back_when_the_worker_drains(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    place = Place()
    place.give("long")
    tags = [place.give(name, deaths=2).tag for name in "ab"]

    place.rig.tasks.drain(True)

    assert [move.tag for move in place.rig.outbox.moves()] == tags[::-1]
    place.let_go("long")
    assert place.began == ["long"]
    assert not place.rig.tasks.admission.suspects.busy
    assert place.rig.outbox.alone() == []


def test_a_suspect_that_has_expired_while_it_waited_does_not_run() -> None:
    place = Place()
    place.give("long")
    place.give("late", deaths=2, expires=in_(30))
    place.give("next", deaths=2)

    place.rig.state.clock_offset_s = 60
    place.let_go("long")

    assert place.began == ["long", "next"]
    assert ("late", "REVOKED") in place.rig.outbox.states()
    place.let_go("next")
    assert place.rig.outbox.alone()[-1] == ""
    assert not place.rig.tasks.admission.suspects.busy
