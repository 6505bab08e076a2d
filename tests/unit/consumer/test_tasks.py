"""Admission: what is discarded, what waits and for what, what remote control changes."""

from __future__ import annotations

import base64
import json
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenq.consumer import tasks
from greenq.errors import ConnectionLost, NotRegistered
from greenq.transport.fetch import Taken
from tests.unit.rig import DEADLINE_S, Rig, settle, stamped, wait_for


def soon(seconds: float = 60) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


@pytest.fixture
def rig() -> Rig:
    return make_rig()


def make_rig(**options: Any) -> Rig:
    """Return a rig with the tasks `add`, and `wait`, which runs until the gate opens."""
    rig = Rig(**options)
    gate = Event()

    @rig.task("add")
    def add(x: int, y: int) -> int:
        return x + y

    @rig.task("wait")
    def wait() -> str:
        assert gate.wait(DEADLINE_S)
        return "waited"

    rig.gate = gate  # type: ignore[attr-defined]
    return rig


def let_go(rig: Rig) -> None:
    rig.gate.set()  # type: ignore[attr-defined]
    settle()


# --- events ---------------------------------------------------------------------------------------


def test_received_says_what_the_message_says(rig: Rig) -> None:
    eta, expires = soon(60), soon(600)

    rig.give("add", "a", 1, 2, eta=eta, expires=expires, shadow="nice", root_id="r", parent_id="p")

    (kind, fields), *others = rig.events.events
    assert others == []
    assert kind == "task-received"
    assert list(fields.items()) == [
        ("uuid", "a"),
        ("name", "nice"),
        ("args", "(1, 2)"),
        ("kwargs", "{}"),
        ("root_id", "r"),
        ("parent_id", "p"),
        ("retries", 0),
        ("eta", eta),
        ("expires", expires),
    ]


def test_without_anybody_who_wants_events_none_is_sent(rig: Rig) -> None:
    rig.events.tasks = False

    rig.give("add", "a", 1, 2)
    rig.give("unknown", "b")
    rig.state.revoked.add("c")
    rig.give("add", "c", 1, 2)

    assert rig.events.events == []
    assert rig.outbox.states() == [("a", "SUCCESS"), ("b", "FAILURE"), ("c", "REVOKED")]


def test_unknown_task_is_told_with_its_exception_alone(rig: Rig) -> None:
    rig.give("unknown", "a")

    assert rig.events.events == [
        ("task-failed", {"uuid": "a", "exception": "NotRegistered('unknown')"})
    ]
    assert rig.events.entries == [1]


def test_undecodable_message_is_told_to_nobody(rig: Rig) -> None:
    delivery = rig.delivery("add", "a", 1, 2)

    rig.give_all([delivery._replace(raw=b"{nonsense")])

    assert rig.events.events == []
    assert len(rig.outbox.moves()) == 1


# --- revoked and expired --------------------------------------------------------------------------


def assert_discarded(rig: Rig, task_id: str, tag: str, *, expired: bool = False) -> None:
    """One task was discarded: stored, acknowledged, told, and it did not run."""
    assert rig.outbox.states() == [(task_id, "REVOKED")]
    (meta,) = rig.outbox.stored()
    reason = "expired" if expired else "revoked"
    assert meta["result"] == {
        "exc_type": "TaskRevokedError",
        "exc_message": [reason],
        "exc_module": "celery.exceptions",
    }
    assert rig.outbox.acks() == [tag]
    assert rig.events.of("task-revoked") == {
        "uuid": task_id,
        "terminated": False,
        "signum": None,
        "expired": expired,
    }
    assert "task-started" not in rig.events.kinds
    # What is told comes after what is written.
    assert rig.events.entries[-1] == 1
    assert rig.state.reserved == {}


def test_revoked_message_is_discarded_when_it_turns_up(rig: Rig) -> None:
    rig.tasks.revoke(ids=["a"])
    # Nobody here holds it, so nothing is said of it yet.
    assert rig.outbox.entries == []

    delivery = rig.give("add", "a", 1, 2)

    assert_discarded(rig, "a", delivery.tag)
    assert rig.events.kinds == ["task-revoked"]


def test_message_is_discarded_by_its_stamp(rig: Rig) -> None:
    rig.tasks.revoke(stamps={"tenant": ["x"]})

    (delivery,) = rig.give_all([stamped(rig.delivery("add", "a", 1, 2), tenant="x")])

    assert_discarded(rig, "a", delivery.tag)
    rig.give_all([stamped(rig.delivery("add", "b", 1, 2), tenant="y")])
    assert rig.outbox.states()[-1] == ("b", "SUCCESS")


def test_expired_message_is_discarded_and_revokes_nothing(rig: Rig) -> None:
    delivery = rig.give("add", "a", 1, 2, expires=soon(-1))

    assert_discarded(rig, "a", delivery.tag, expired=True)
    assert rig.state.revoked.ids() == []
    # The id may have been made up: whose it is runs.
    rig.give("add", "a", 1, 2)
    assert rig.outbox.states()[-1] == ("a", "SUCCESS")


def test_task_that_expires_before_its_eta_is_discarded_then(rig: Rig) -> None:
    delivery = rig.give("add", "a", 1, 2, eta=soon(60), expires=soon(30))
    assert rig.outbox.entries == []

    rig.state.clock_offset_s = 60
    rig.pass_time(61)

    assert_discarded(rig, "a", delivery.tag, expired=True)


@pytest.mark.parametrize("where", ["message", "task", "setting"])
@pytest.mark.parametrize("stores_errors", [False, True])
def test_discarded_task_has_a_state_if_its_failure_would_have_one(
    where: str, stores_errors: bool
) -> None:
    rig = make_rig(
        task_ignore_result=where == "setting", task_store_errors_even_if_ignored=stores_errors
    )
    rig.app.tasks["add"].ignore_result = True if where == "task" else None
    rig.tasks.revoke(ids=["a"])

    delivery = rig.give("add", "a", 1, 2, ignore_result=True if where == "message" else None)

    assert rig.outbox.states() == ([("a", "REVOKED")] if stores_errors else [])
    assert rig.outbox.acks() == [delivery.tag]


@pytest.mark.parametrize("where", ["eta", "slot", "rate limit"])
def test_revoking_discards_at_once_what_waits_here(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    rig = make_rig(size=1)
    rig.app.tasks["add"].rate_limit = "1/h" if where == "rate limit" else None
    if where == "rate limit":
        rig.give("add", "first", 1, 1)
    elif where == "slot":
        rig.give("wait", "first")
    options = {"eta": soon()} if where == "eta" else {}
    delivery = rig.give("add", "a", 1, 2, **options)
    rig.give("add", "other", 1, 2, **options)
    before = len(rig.outbox.entries)
    waiting = [*rig.tasks.waiting(), *(request for _, request in rig.tasks.scheduled())]
    assert [request.message.id for request in waiting] == ["a", "other"]

    rig.tasks.revoke(ids=["a"])

    assert rig.outbox.states()[before:] == [("a", "REVOKED")]
    assert rig.outbox.acks()[before:] == [delivery.tag]
    assert rig.events.of("task-revoked")["uuid"] == "a"
    # It has left its place, and the others have not.
    let_go(rig)
    rig.pass_time(7200)
    assert rig.outbox.states()[-1] == ("other", "SUCCESS")
    assert [each for each, _ in rig.outbox.states()].count("a") == 1
    assert rig.state.reserved == {}
    assert "a timer call failed" not in caplog.text


def test_revoking_a_running_task_lets_it_run_and_names_it(rig: Rig) -> None:
    rig.give("wait", "a")

    assert rig.tasks.revoke(ids=["a", "unknown"]) == [rig.running("a")]

    let_go(rig)
    assert rig.outbox.states() == [("a", "SUCCESS")]
    # A second delivery of it does not run.
    rig.give("wait", "a")
    assert rig.outbox.states()[1:] == [("a", "REVOKED")]


# --- what waits here ------------------------------------------------------------------------------


def test_scheduled_are_etas_alone_and_waiting_the_others() -> None:
    rig = make_rig(size=1)
    rig.app.tasks["add"].rate_limit = "1/h"
    rig.give("wait", "runs")
    rig.give("wait", "slot")
    rig.give("add", "first", 1, 1)
    rig.give("add", "limited", 1, 1)
    rig.give("wait", "later", eta=soon(90))
    eta = soon(60)
    rig.give("wait", "soon", eta=eta)

    scheduled = rig.tasks.scheduled()

    assert [request.message.id for _, request in scheduled] == ["soon", "later"]
    assert scheduled[0][0] == datetime.fromisoformat(eta)
    waiting = [request.message.id for request in rig.tasks.waiting()]
    assert sorted(waiting) == ["first", "limited", "slot"]
    assert [request.message.id for request in rig.pool.active] == ["runs"]
    let_go(rig)


# --- rate limits ----------------------------------------------------------------------------------


def succeeded(rig: Rig) -> list[str]:
    return [task_id for task_id, state in rig.outbox.states() if state == "SUCCESS"]


def test_task_with_a_rate_limit_waits_without_a_slot_and_holds_up_no_other() -> None:
    rig = make_rig(size=1)
    rig.app.tasks["add"].rate_limit = "30/m"

    rig.give_all(rig.delivery("add", name, 1, 2) for name in "abc")
    rig.give("wait", "other")
    let_go(rig)

    assert sorted(succeeded(rig)) == ["a", "other"]
    assert rig.pool.room == 1
    assert len(rig.state.reserved) == 2
    rig.pass_time(2.1)
    assert succeeded(rig)[2:] == ["b"]
    rig.pass_time(2.1)
    assert succeeded(rig)[2:] == ["b", "c"]
    assert rig.state.reserved == {}


def test_rate_limit_holds_for_what_has_waited_for_its_eta(rig: Rig) -> None:
    rig.app.tasks["add"].rate_limit = 1
    rig.give_all(rig.delivery("add", name, 1, 2, eta=soon(10)) for name in "ab")

    rig.pass_time(10.5)
    # Which is first depends on the time that passed while they were taken.
    assert len(succeeded(rig)) == 1
    rig.pass_time(1)

    assert sorted(succeeded(rig)) == ["a", "b"]


def test_default_rate_limit_holds_for_tasks_that_have_none_of_their_own() -> None:
    rig = make_rig(task_default_rate_limit="1/h")
    rig.app.tasks["wait"].rate_limit = 0
    let_go(rig)

    rig.give_all(rig.delivery("add", name, 1, 2) for name in "ab")
    rig.give_all(rig.delivery("wait", name) for name in "cd")

    assert sorted(succeeded(rig)) == ["a", "c", "d"]


def test_limits_can_be_switched_off() -> None:
    rig = make_rig(rate_limits=False, task_default_rate_limit="1/h")
    rig.app.tasks["add"].rate_limit = "1/h"

    rig.give_all(rig.delivery("add", name, 1, 2) for name in "abc")

    assert succeeded(rig) == ["a", "b", "c"]


@pytest.mark.parametrize("rate", [None, 0, "100/s"])
def test_new_rate_limit_holds_for_what_waits_here(rig: Rig, rate: Any) -> None:
    rig.app.tasks["add"].rate_limit = "1/h"
    rig.give_all(rig.delivery("add", name, 1, 2) for name in "abc")

    rig.tasks.set_rate_limit("add", rate)
    rig.pass_time(1)

    assert succeeded(rig) == ["a", "b", "c"]
    assert rig.app.tasks["add"].rate_limit == rate


def test_new_rate_limit_holds_for_what_comes(rig: Rig) -> None:
    rig.give("add", "a", 1, 2)

    rig.tasks.set_rate_limit("add", "1/h")
    rig.give_all(rig.delivery("add", name, 1, 2) for name in "bc")

    assert succeeded(rig) == ["a", "b"]


def test_rate_limit_that_is_none_changes_nothing(rig: Rig) -> None:
    rig.app.tasks["add"].rate_limit = "1/h"

    with pytest.raises(ValueError, match="rate limit 'fast'"):
        rig.tasks.set_rate_limit("add", "fast")
    with pytest.raises(NotRegistered):
        rig.tasks.set_rate_limit("unknown", "1/s")

    assert rig.app.tasks["add"].rate_limit == "1/h"


def test_more_than_can_wait_here_is_put_aside_and_others_have_their_turn(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greenq.consumer.waiting._ETAS_HELD", 3)
    rig.app.tasks["add"].rate_limit = "0.1/s"

    rig.give_all(rig.delivery("add", str(number), 1, 2) for number in range(6))
    rig.give("wait", "other")
    let_go(rig)

    assert sorted(succeeded(rig)) == ["0", "other"]
    assert [request.message.id for request in rig.tasks.waiting()] == ["1", "2", "3"]
    # Those come back when it is their turn, at whichever worker has time then.
    now = datetime.now(UTC).timestamp()
    moves = rig.outbox.moves()
    assert [(move.tag, move.key) for move in moves] == [
        ("rig:5", "greenq.eta.celery"),
        ("rig:6", "greenq.eta.celery"),
    ]
    assert [round(move.side - now) for move in moves] == [40, 50]
    assert set(rig.state.reserved) == {"rig:2", "rig:3", "rig:4"}


def test_expired_while_it_waited_for_its_rate_limit(rig: Rig) -> None:
    rig.app.tasks["add"].rate_limit = "1/h"
    rig.give("add", "a", 1, 2)
    rig.give("add", "b", 1, 2, expires=soon(30))

    rig.state.clock_offset_s = 60
    rig.pass_time(3601)

    assert rig.outbox.states() == [("a", "SUCCESS"), ("b", "REVOKED")]


# --- what was published to all --------------------------------------------------------------------


def test_message_to_all_runs_and_nothing_is_acknowledged(rig: Rig) -> None:
    rig.tasks.receive(rig.delivery("add", "a", 1, 2))
    settle()

    assert rig.outbox.states() == [("a", "SUCCESS")]
    assert rig.outbox.acks() == []
    assert rig.outbox.moves() == []
    assert rig.state.reserved == {}
    assert rig.events.kinds == ["task-received", "task-started", "task-succeeded"]


def test_message_to_all_runs_although_the_lease_has_ended(rig: Rig) -> None:
    rig.state.lease_until_s = 0.0

    rig.tasks.receive(rig.delivery("add", "a", 1, 2))
    settle()

    assert rig.outbox.states() == [("a", "SUCCESS")]


@pytest.mark.parametrize("acks_late", [False, True])
def test_message_to_all_that_wants_to_run_again_has_failed(rig: Rig, acks_late: bool) -> None:
    @rig.task("again", bind=True, acks_late=acks_late)
    def again(self: Any) -> None:
        raise self.retry(countdown=1)

    rig.tasks.receive(rig.delivery("again", "a"))
    settle()

    assert rig.outbox.states() == [("a", "FAILURE")]
    assert rig.outbox.acks() == []
    assert rig.outbox.moves() == []


def test_message_to_all_waits_here_for_any_eta(rig: Rig) -> None:
    far = rig.app.config.task.task_eta_horizon + 100

    rig.tasks.receive(rig.delivery("add", "a", 1, 2, eta=soon(far)))
    rig.pass_time(far + 1)

    assert rig.outbox.moves() == []
    assert rig.outbox.states() == [("a", "SUCCESS")]


@pytest.mark.parametrize("how", ["unknown task", "nonsense", "revoked"])
def test_message_to_all_that_cannot_run_is_dropped(
    rig: Rig, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    rig.state.revoked.add("revoked")
    delivery = rig.delivery("unknown" if how == "unknown task" else "add", how)
    if how == "nonsense":
        delivery = delivery._replace(raw=b"{")

    with caplog.at_level(logging.INFO):
        rig.tasks.receive(delivery)
        settle()

    assert rig.outbox.entries == []
    (record,) = [each for each in caplog.records if each.name.startswith("greenq.consumer.")]
    assert how == "revoked" or "was a broadcast, and is dropped" in record.getMessage()


# --- drain ----------------------------------------------------------------------------------------


def ids_of(moves: list[Any]) -> list[str]:
    return [move.tag for move in moves]


def test_drain_gives_back_what_has_not_started_and_lets_run_what_runs() -> None:
    rig = make_rig(size=1)
    rig.app.tasks["add"].rate_limit = "1/h"
    runs = rig.give("wait", "runs")
    slot = rig.give("wait", "slot")
    eta = rig.give("wait", "eta", eta=soon())
    limited = [rig.give("add", "x", 1, 1), rig.give("add", "limited", 1, 1)]
    rig.tasks.receive(rig.delivery("wait", "to all"))

    rig.tasks.drain(True)

    assert rig.tasks.draining
    # The newest is pushed first, so that the oldest is taken first.
    assert ids_of(rig.outbox.moves()) == [limited[1].tag, limited[0].tag, eta.tag, slot.tag]
    assert set(rig.state.reserved) == {runs.tag}
    let_go(rig)
    rig.pass_time(7200)
    # What the server has no record of cannot be given back: it runs.
    assert succeeded(rig) == ["runs", "to all"]


def test_nothing_is_taken_while_draining(rig: Rig) -> None:
    consuming = gevent.spawn(rig.tasks.consume)
    settle()
    rig.tasks.drain(True)
    settle()
    takes = rig.fetcher.takes

    rig.fetcher.ready = [rig.delivery("add", "a", 1, 2)]
    rig.fetcher.wake()
    rig.pool.wake()
    settle()
    assert rig.fetcher.takes == takes
    assert not consuming.ready()
    rig.tasks.drain(False)
    settle()

    assert not rig.tasks.draining
    assert succeeded(rig) == ["a"]
    rig.tasks.stop_consuming()
    consuming.join(DEADLINE_S)
    assert consuming.successful()


def test_what_a_take_brings_while_draining_begins_goes_back(rig: Rig) -> None:
    rig.fetcher.ready = [rig.delivery("add", name, 1, 2) for name in "ab"]
    rig.fetcher.taking = lambda: rig.tasks.drain(True)

    consuming = gevent.spawn(rig.tasks.consume)
    settle()

    assert ids_of(rig.outbox.moves()) == ["rig:2", "rig:1"]
    assert succeeded(rig) == []
    rig.tasks.stop_consuming()
    consuming.join(DEADLINE_S)
    assert consuming.successful()


def test_what_follows_a_message_that_took_long_to_read_goes_back_if_draining_begins_then(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "_TURN_S", -1.0)
    # What is compressed is not read the short way.
    rig.fetcher.ready = [rig.delivery("add", name, 1, 2, compression="zlib") for name in "abc"]
    rig.fetcher.taking = lambda: gevent.spawn_later(0, rig.tasks.drain, True)

    consuming = gevent.spawn(rig.tasks.consume)
    wait_for(lambda: len(rig.outbox.moves()) == 3)

    # The first one had been read, but tasks begin only after the pause.
    assert succeeded(rig) == []
    assert ids_of(rig.outbox.moves()) == ["rig:1", "rig:3", "rig:2"]
    assert rig.tasks.unfinished == set()
    rig.tasks.stop_consuming()
    consuming.join(DEADLINE_S)
    assert consuming.successful()


def test_tasks_begin_while_other_messages_take_long_to_read(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "_TURN_S", -1.0)
    reader, succeeded_before = rig.tasks.admission.reader, []
    unwrap = reader.unwrap

    def slowly(raw: bytes) -> Any:
        succeeded_before.append(len(succeeded(rig)))
        return unwrap(raw)

    monkeypatch.setattr(reader, "unwrap", slowly)
    rig.fetcher.ready = [rig.delivery("add", name, 1, 2, compression="zlib") for name in "abcd"]

    consuming = gevent.spawn(rig.tasks.consume)
    wait_for(lambda: len(succeeded(rig)) == 4)

    assert succeeded_before == [0, 1, 2, 3]
    rig.tasks.stop_consuming()
    consuming.join(DEADLINE_S)


def test_worker_that_drains_can_be_stopped(rig: Rig) -> None:
    consuming = gevent.spawn(rig.tasks.consume)
    settle()
    rig.tasks.drain(True)
    settle()

    rig.tasks.stop_consuming()
    consuming.join(DEADLINE_S)

    assert consuming.successful()


# --- what an answer that got lost may have reserved -----------------------------------------------


@pytest.mark.parametrize("busy", ["full", "draining", "suspect"])
def test_what_a_lost_answer_may_have_reserved_is_fetched_before_all_else(busy: str) -> None:
    # Nobody else can take it, and the server counts it as held here.
    rig = make_rig(size=1)
    if busy == "full":
        rig.give("wait", "a")
    elif busy == "draining":
        rig.tasks.drain(True)
    else:
        rig.tasks.admission.suspects._over.clear()
    rig.fetcher.unsure = True
    rig.fetcher.take = lambda most: rig.fetcher.asked.append(most) or take(most)  # type: ignore[method-assign,attr-defined,func-returns-value]
    rig.fetcher.asked = []  # type: ignore[attr-defined]
    held = [rig.delivery("add", "b", 1, 2), rig.delivery("add", "c", 1, 2)]

    def take(_most: int) -> Taken:
        rig.fetcher.unsure = False
        return Taken(held, 5)

    rig.tasks.turn()
    settle()

    assert rig.fetcher.asked == [0]  # type: ignore[attr-defined]
    if busy == "draining":
        assert ids_of(rig.outbox.moves()) == ["rig:2", "rig:1"]
    else:
        assert len(rig.state.reserved) + len(succeeded(rig)) == 2 + (busy == "full")
    let_go(rig)


def test_lease_that_ended_between_a_take_and_its_second_answer_is_noticed(rig: Rig) -> None:
    # What was reserved by then may be somebody else's: its age is that of the first try.
    rig.tasks.admission.taken_s = 10.0
    rig.state.lease_lost_s = 20.0
    rig.fetcher.unsure = True
    rig.fetcher.ready = [rig.delivery("wait", "a")]
    rig.fetcher.take = lambda _most: Taken(rig.fetcher.ready, 0)  # type: ignore[method-assign]
    asked: list[str] = []
    rig.app.transport.broker.is_taken_away = lambda tag: not asked.append(tag)  # type: ignore[method-assign,func-returns-value]

    rig.tasks.turn()
    settle()

    assert asked == ["rig:1"]
    assert rig.state.reserved == {}
    assert rig.outbox.entries == []


# --- a hub that stands still ----------------------------------------------------------------------


class Settling:
    """A connection to a server that takes what is settled, or refuses."""

    def __init__(self, problem: Exception | None = None) -> None:
        self.problem = problem
        self.calls: list[list[Any]] = []

    def script(self, _script: object, _names: list[str], arguments: list[Any]) -> list[Any]:
        self.calls.append(arguments)
        if self.problem is not None:
            raise self.problem
        return [b"", b"", b""]


def test_what_has_not_begun_is_given_away_newest_first_while_the_hub_stands(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = make_rig(size=1)
    runs, *rest = [rig.give("wait", name) for name in "abc"]
    eta = rig.give("wait", "eta", eta=soon())
    rig.tasks.receive(rig.delivery("wait", "to all"))
    connection: Any = Settling()

    rig.tasks.give_away(connection, "owner")

    ((count, *arguments),) = connection.calls
    # In the owner's name: with others that have recovered them meanwhile, nothing is moved.
    assert (count, arguments[3]) == (2, "own")
    assert [each for each in arguments if each in {one.tag for one in rest}] == [
        rest[1].tag, rest[0].tag,
    ]  # fmt: skip
    # What waits for its ETA stays: it is not late yet. So does what nobody else could have.
    assert set(rig.state.reserved) == {runs.tag, eta.tag}
    assert [each.message.id for each in rig.tasks.waiting()] == ["to all"]
    assert "gave 2 messages that had not begun back" in caplog.text
    let_go(rig)
    assert succeeded(rig) == ["a", "to all"]


def test_nothing_to_give_away_asks_nothing_of_the_server(rig: Rig) -> None:
    connection: Any = Settling()

    rig.tasks.give_away(connection, "owner")

    assert connection.calls == []


def test_what_could_not_be_given_away_runs_here_if_it_is_still_ours() -> None:
    rig = make_rig(size=1)
    rig.give("wait", "a")
    lost = rig.give("add", "b", 1, 2)
    rig.give("add", "c", 1, 2)
    connection: Any = Settling(ConnectionLost("the answer may be lost"))

    with pytest.raises(ConnectionLost):
        rig.tasks.give_away(connection, "owner")
    assert [each.message.id for each in rig.tasks.waiting()] == ["b", "c"]

    # It was carried out, and one of them has begun elsewhere.
    rig.app.transport.broker.is_taken_away = lambda tag: tag == lost.tag  # type: ignore[method-assign]
    let_go(rig)
    assert succeeded(rig) == ["a", "c"]
    assert rig.state.reserved == {}


def test_who_is_being_admitted_counts_as_unfinished(rig: Rig) -> None:
    # The watch thread gives back what nobody here knows of.
    rig.give("wait", "a")
    rig.tasks._admitting = [rig.delivery("add", "b", 1, 2)]

    assert rig.tasks.unfinished == {"rig:1", "rig:2"}
    let_go(rig)


# --- what follows a step --------------------------------------------------------------------------


def step(rig: Rig, task_id: str, name: str = "wait", queue: str = "celery") -> Any:
    """Return the message of a task that is followed by another one, on a queue."""
    following = rig.app.tasks["add"].si(1, 2).set(queue=queue)
    return rig.delivery(name, task_id, chain=[following])


def test_the_next_step_is_taken_without_a_wait(rig: Rig) -> None:
    let_go(rig)
    rig.fetcher.ready = [step(rig, "a")]
    rig.fetcher.wait = lambda: pytest.fail("it waited")  # type: ignore[method-assign]

    rig.tasks.turn()

    assert rig.outbox.states() == [("a", "SUCCESS")]


@pytest.mark.parametrize("why", ["it goes elsewhere", "the step runs on", "nothing follows"])
def test_what_this_worker_cannot_take_now_is_waited_for(rig: Rig, why: str) -> None:
    if why != "the step runs on":
        let_go(rig)
    if why == "nothing follows":
        rig.fetcher.ready = [rig.delivery("wait", "a")]
    else:
        rig.fetcher.ready = [step(rig, "a", queue="other" if "elsewhere" in why else "celery")]
    waits: list[int] = []
    rig.fetcher.wait = lambda: not waits.append(1)  # type: ignore[method-assign,func-returns-value]

    rig.tasks.turn()

    assert waits == [1]
    assert rig.outbox.pushed_to is None
    let_go(rig)


def test_a_worker_told_to_stop_meanwhile_does_not_wait(rig: Rig) -> None:
    rig.fetcher.ready = [step(rig, "a")]
    rig.fetcher.wait = lambda: pytest.fail("it waited")  # type: ignore[method-assign]
    gevent.spawn(rig.tasks.stop_consuming)

    rig.tasks.turn()

    let_go(rig)


def test_the_body_of_a_chord_is_kept_once(rig: Rig) -> None:
    def chord(group: str, *args: object) -> dict[str, Any]:
        body = rig.app.tasks["add"].s(*args)
        return dict(body, args=list(args), options={"task_id": "body", "group_id": group})

    bodies = [chord("g"), chord("g"), chord("other"), chord("other", 1)]
    for number, body in enumerate(bodies):
        rig.give("wait", str(number), group_id="g", group_index=number, chord=body)

    kept = [rig.running(str(number)).message.chord for number in range(4)]
    assert kept == bodies
    assert len({id(each) for each in kept}) == 3
    let_go(rig)


def test_a_part_with_a_sound_body_and_a_wrong_follower_is_refused(rig: Rig) -> None:
    body = dict(rig.app.tasks["add"].s(), options={"task_id": "body", "group_id": "g"})
    rig.give("wait", "a", group_id="g", group_index=0, chord=body)
    good = rig.delivery("wait", "b", group_id="g", group_index=1, chord=body, link=[body])
    bad = json.loads(good.raw)
    args, kwargs, embed = json.loads(base64.b64decode(bad["body"]))
    embed["callbacks"] = [{"task": 7}]
    bad["body"] = base64.b64encode(json.dumps([args, kwargs, embed]).encode()).decode()

    rig.give_all([good._replace(raw=json.dumps(bad).encode())])

    assert ("b", "FAILURE") in rig.outbox.states()
    let_go(rig)
