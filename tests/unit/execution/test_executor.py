"""What a run tells, and how it is ended from outside: revoked, terminated."""

from __future__ import annotations

from typing import Any, NoReturn

import gevent
import pytest
from gevent.event import Event

from greenq.errors import (
    Ignore,
    Reject,
    TaskTerminated,
)
from greenq.transport.settle import ACKNOWLEDGE
from tests.unit.rig import DEADLINE_S, Rig, settle, wait_for, wait_stored


@pytest.fixture
def rig() -> Rig:
    return Rig(size=1)


# --- events ---------------------------------------------------------------------------------------


def test_success_is_told_after_it_was_written(rig: Rig) -> None:
    @rig.task("add")
    def add(x: int, y: int) -> str:
        return "x" * (x + y)

    rig.give("add", "a", 1, 2)

    assert rig.events.kinds == ["task-received", "task-started", "task-succeeded"]
    assert rig.events.of("task-started") == {"uuid": "a"}
    told = rig.events.of("task-succeeded")
    assert list(told) == ["uuid", "result", "runtime"]
    assert (told["uuid"], told["result"]) == ("a", "'xxx'")
    assert 0 < told["runtime"] < DEADLINE_S
    assert rig.events.entries == [0, 0, 1]


def test_start_is_told_after_the_early_acknowledgement(rig: Rig) -> None:
    seen: list[list[str]] = []

    @rig.task("early", acks_late=False)
    def early() -> None:
        seen.append(rig.outbox.begun())

    delivery = rig.give("early", "a")

    assert seen == [[delivery.tag]]
    assert rig.events.entries == [0, 1, 2]
    # Its outcome belongs to the stub that the acknowledgement has left, and ends that.
    assert rig.outbox.acks() == [delivery.tag]


def test_task_whose_early_acknowledgement_comes_too_late_does_not_start(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[str] = []

    @rig.task("early", acks_late=False)
    def early() -> None:
        ran.append("a")

    rig.outbox.gone.add("rig:1")
    rig.give("early", "a")

    assert ran == []
    assert "task-started" not in rig.events.kinds
    assert rig.outbox.states() == []
    assert rig.outbox.acks() == []
    assert rig.state.reserved == {}
    assert "does not start here: another worker now has it" in caplog.text


@pytest.mark.parametrize("acks_late", [False, True])
def test_outcome_names_its_message_for_the_log(rig: Rig, acks_late: bool) -> None:
    @rig.task("add", acks_late=acks_late)
    def add() -> int:
        return 3

    delivery = rig.give("add", "a")

    outcome = rig.outbox.entries[-1]
    assert (outcome.tag, outcome.action) == (delivery.tag, ACKNOWLEDGE)
    assert outcome.result is not None
    assert outcome.result.rule.startswith("s")
    assert str(outcome.about) == "add[a]"


def test_failure_is_told_with_the_real_exception(rig: Rig) -> None:
    @rig.task("fail")
    def fail() -> NoReturn:
        raise KeyError("not there")

    rig.give("fail", "a")

    told = rig.events.of("task-failed")
    assert list(told) == ["uuid", "exception", "traceback"]
    assert told["exception"] == "KeyError('not there')"
    assert told["traceback"].startswith("Traceback (most recent call last):")
    assert 'raise KeyError("not there")' in told["traceback"]
    assert rig.events.entries[-1] == 1


def test_retry_is_told_with_its_reason(rig: Rig) -> None:
    @rig.task("again", bind=True)
    def again(self: Any) -> NoReturn:
        try:
            raise KeyError("not yet")
        except KeyError as exc:
            raise self.retry(exc=exc, countdown=1) from None

    rig.give("again", "a")

    assert rig.events.kinds[2:] == ["task-retried"]
    told = rig.events.of("task-retried")
    assert list(told) == ["uuid", "exception", "traceback"]
    assert told["exception"] == "Retry(None, KeyError('not yet'), 1)"
    assert "self.retry" in told["traceback"]


def test_rejection_is_told_and_an_ignored_task_is_not(rig: Rig) -> None:
    @rig.task("requeue", acks_late=True)
    def requeue() -> NoReturn:
        raise Reject("later", requeue=True)

    @rig.task("drop")
    def drop() -> NoReturn:
        raise Reject("never")

    @rig.task("ignore")
    def ignore() -> NoReturn:
        raise Ignore

    rig.give("requeue", "a")
    assert rig.events.of("task-rejected") == {"uuid": "a", "requeue": True}
    rig.events.events.clear()
    rig.give("ignore", "b")
    assert rig.events.kinds == ["task-received", "task-started"]
    rig.events.events.clear()
    rig.give("drop", "c")
    assert rig.events.of("task-failed")["exception"] == "Reject('never', False)"
    assert "raise Reject" in rig.events.of("task-failed")["traceback"]


def test_run_whose_message_was_given_back_tells_nothing_of_its_end(rig: Rig) -> None:
    gate = Event()

    @rig.task("wait", acks_late=True)
    def wait() -> None:
        assert gate.wait(DEADLINE_S)

    rig.give("wait", "a")
    rig.tasks.give_back([rig.running("a")])
    gate.set()
    settle()

    assert rig.events.kinds == ["task-received", "task-started"]


# --- revoked --------------------------------------------------------------------------------------


@pytest.mark.parametrize("acks_late", [True, False])
def test_task_that_was_revoked_while_it_waited_for_its_slot_does_not_run(
    rig: Rig, acks_late: bool
) -> None:
    ran: list[str] = []

    @rig.task("run", acks_late=acks_late)
    def run(name: str) -> None:
        ran.append(name)

    # Before any greenlet has looked.
    deliveries = [rig.delivery("run", name, name) for name in "ab"]
    for delivery in deliveries:
        rig.tasks.admission.receive(delivery)
    rig.state.revoked.add("a")
    settle()

    assert ran == ["b"]
    assert rig.outbox.states() == [("a", "REVOKED"), ("b", "SUCCESS")]
    assert rig.outbox.acks() == [delivery.tag for delivery in deliveries]
    assert rig.events.of("task-revoked") == {
        "uuid": "a",
        "terminated": False,
        "signum": None,
        "expired": False,
    }
    assert rig.events.kinds.count("task-started") == 1
    assert rig.state.reserved == {}


# --- terminated -----------------------------------------------------------------------------------


@pytest.mark.parametrize("acks_late", [True, False])
def test_terminated_task_ends_and_its_cleaning_up_is_done(rig: Rig, acks_late: bool) -> None:
    cleaned: list[str] = []

    @rig.task("wait", acks_late=acks_late, autoretry_for=(BaseException,))
    def wait() -> None:
        try:
            gevent.sleep(DEADLINE_S)
        except Exception:
            cleaned.append("caught")
        finally:
            gevent.sleep(0.001)
            cleaned.append("finally")

    delivery = rig.give("wait", "a")
    rig.pool.end(rig.running("a"), "SIGKILL")
    wait_stored(rig)

    assert cleaned == ["finally"]
    assert rig.outbox.states() == [("a", "REVOKED")]
    (meta,) = rig.outbox.stored()
    assert meta["result"]["exc_type"] == "TaskRevokedError"
    assert meta["result"]["exc_message"] == ["terminated"]
    assert rig.outbox.acks() == [delivery.tag]
    assert rig.outbox.moves() == []
    # One event, and nothing after it.
    assert rig.events.kinds == ["task-received", "task-started", "task-revoked"]
    assert rig.events.of("task-revoked") == {
        "uuid": "a",
        "terminated": True,
        "signum": 9,
        "expired": False,
    }
    assert rig.state.reserved == {}
    assert rig.state.failed == 0


@pytest.mark.parametrize(
    ("given", "told"), [("SIGTERM", 15), ("KILL", 9), ("2", 2), ("nudge", "nudge")]
)
def test_signal_of_a_terminated_task_is_told_as_its_number(
    rig: Rig, given: str, told: object
) -> None:
    @rig.task("wait")
    def wait() -> None:
        gevent.sleep(DEADLINE_S)

    rig.give("wait", "a")
    rig.pool.end(rig.running("a"), given)
    wait_stored(rig)

    assert rig.events.of("task-revoked")["signum"] == told


def test_terminated_task_is_thrown_at_until_it_ends(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greenq.pool.AGAIN_S", 0.002)
    monkeypatch.setattr("greenq.pool._FINALLY_S", 0.004)
    caught: list[BaseException] = []

    @rig.task("stubborn")
    def stubborn() -> str:
        while len(caught) < 4:
            try:
                gevent.sleep(DEADLINE_S)
            except BaseException as exc:
                caught.append(exc)
        return "at last"

    rig.give("stubborn", "a")
    rig.pool.end(rig.running("a"))

    assert wait_stored(rig) == [("a", "REVOKED")]
    assert [type(exc) for exc in caught] == [TaskTerminated] * 4
    assert rig.events.kinds[2:] == ["task-revoked"]


def test_task_that_makes_another_error_of_its_end_was_terminated_all_the_same(rig: Rig) -> None:
    @rig.task("wraps")
    def wraps() -> None:
        try:
            gevent.sleep(DEADLINE_S)
        except BaseException as exc:
            raise ValueError("cannot clean up") from exc

    rig.give("wraps", "a")
    rig.pool.end(rig.running("a"))

    assert wait_stored(rig) == [("a", "REVOKED")]
    assert "cannot clean up" in rig.outbox.stored()[0]["traceback"]


def test_next_task_in_the_same_greenlet_is_not_hit(rig: Rig) -> None:
    gate = Event()
    greenlets = []

    @rig.task("wait")
    def wait(_name: str) -> str:
        greenlets.append(gevent.getcurrent())
        assert gate.wait(DEADLINE_S)
        return "waited"

    rig.give_all(rig.delivery("wait", name, name) for name in "ab")
    first = rig.running("a")
    rig.pool.end(first)
    rig.pool.end(first)
    wait_for(lambda: len(greenlets) == 2)
    rig.pool.end(first)
    gevent.sleep(0.01)
    gate.set()

    assert wait_stored(rig, 2) == [("a", "REVOKED"), ("b", "SUCCESS")]
    assert greenlets[0] is greenlets[1]


def test_task_that_has_just_ended_when_the_throw_is_due_has_succeeded(rig: Rig) -> None:
    gate = Event()

    @rig.task("wait")
    def wait() -> str:
        assert gate.wait(DEADLINE_S)
        return "waited"

    rig.give("wait", "a")
    # The task's turn comes before the hub looks at its timers.
    gate.set()
    rig.pool.end(rig.running("a"))

    assert wait_stored(rig) == [("a", "SUCCESS")]


def test_task_that_is_terminated_before_its_code_does_not_run_it(rig: Rig) -> None:
    ran: list[str] = []

    @rig.task("run", acks_late=False)
    def run() -> None:
        ran.append("a")

    # Its early acknowledgement is not confirmed yet.
    put, confirm = rig.outbox.put, []

    def put_later(entry: Any) -> None:
        confirm.append(entry.written)
        entry.written = None
        put(entry)

    rig.outbox.put = put_later  # type: ignore[method-assign]
    rig.give("run", "a")
    rig.pool.end(rig.running("a"))
    rig.outbox.put = put  # type: ignore[method-assign]
    confirm[0](True)
    settle()

    assert ran == []
    assert rig.outbox.states() == [("a", "REVOKED")]
    assert rig.events.of("task-revoked")["terminated"] is True
    assert "task-succeeded" not in rig.events.kinds


def test_result_that_cannot_be_stored_is_logged_without_an_empty_traceback(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    @rig.task("odd")
    def odd() -> object:
        return object()

    rig.give("odd", "a")
    wait_stored(rig)

    (text,) = (each.getMessage() for each in caplog.records if "cannot be stored" in each.message)
    assert not text.endswith("None")
