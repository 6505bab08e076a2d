"""Time limits: whose holds, what the task sees of it, and that no other task is hit."""

from __future__ import annotations

import gc
import time
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenq import Task
from greenq.errors import (
    SoftTimeLimitExceeded,
    TaskTerminated,
    TimeLimitExceeded,
)
from greenq.pool import Interrupt
from tests.unit.rig import DEADLINE_S, Rig, wait_stored

SOON_S = 0.01


@pytest.fixture
def rig() -> Rig:
    return Rig(size=1)


@pytest.mark.parametrize("whose", ["message", "task", "setting"])
def test_hard_limit_ends_a_task(whose: str) -> None:
    settings = {"task_time_limit": SOON_S} if whose == "setting" else {}
    rig = Rig(size=1, **settings)

    @rig.task("wait", autoretry_for=(BaseException,))
    def wait() -> None:
        try:
            gevent.sleep(DEADLINE_S)
        except Exception:
            pytest.fail("a hard limit is no Exception")

    rig.app.tasks["wait"].time_limit = {"task": SOON_S, "message": DEADLINE_S}.get(whose)
    options = {"time_limit": SOON_S} if whose == "message" else {}
    delivery = rig.give("wait", "a", **options)

    assert wait_stored(rig) == [("a", "FAILURE")]
    (meta,) = rig.outbox.stored()
    assert meta["result"] == {
        "exc_type": "TimeLimitExceeded",
        "exc_message": [SOON_S],
        "exc_module": "billiard.exceptions",
    }
    assert "gevent.sleep(DEADLINE_S)" in meta["traceback"]
    assert rig.outbox.acks() == [delivery.tag]
    assert rig.events.kinds == ["task-received", "task-started", "task-failed"]
    assert rig.events.of("task-failed")["exception"] == f"TimeLimitExceeded({SOON_S})"
    assert rig.state.failed == 1


def test_message_is_buried_at_a_hard_limit_where_failures_are_not_acknowledged(rig: Rig) -> None:
    @rig.task("wait", acks_late=True, acks_on_failure_or_timeout=False, time_limit=SOON_S)
    def wait() -> None:
        gevent.sleep(DEADLINE_S)

    delivery = rig.give("wait", "a")

    assert wait_stored(rig) == [("a", "FAILURE")]
    assert rig.outbox.acks() == []
    assert [move.tag for move in rig.outbox.moves()] == [delivery.tag]
    assert rig.outbox.moves()[0].key == "greenq.dead.celery"


def test_task_that_swallows_its_hard_limit_is_thrown_at_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greenq.execution.time_limits.AGAIN_S", 0.002)
    monkeypatch.setattr("greenq.pool.AGAIN_S", 0.002)
    caught: list[float] = []

    @rig.task("stubborn", time_limit=SOON_S)
    def stubborn() -> str:
        while len(caught) < 3:
            try:
                gevent.sleep(DEADLINE_S)
            except BaseException:
                caught.append(time.monotonic())
        return "at last"

    rig.give("stubborn", "a")

    assert wait_stored(rig) == [("a", "FAILURE")]
    assert rig.outbox.stored()[0]["result"]["exc_type"] == "TimeLimitExceeded"
    assert len(caught) == 3


@pytest.mark.parametrize("whose", ["message", "task", "setting"])
def test_soft_limit_is_raised_once_and_may_be_caught(whose: str) -> None:
    settings = {"task_soft_time_limit": SOON_S} if whose == "setting" else {}
    rig = Rig(size=1, **settings)
    caught: list[BaseException] = []

    @rig.task("careful")
    def careful() -> str:
        try:
            gevent.sleep(DEADLINE_S)
        except SoftTimeLimitExceeded as exc:
            caught.append(exc)
            gevent.sleep(2 * SOON_S)
        return "cleaned up"

    rig.app.tasks["careful"].soft_time_limit = {"task": SOON_S, "message": DEADLINE_S}.get(whose)
    rig.give("careful", "a", **({"soft_time_limit": SOON_S} if whose == "message" else {}))

    assert wait_stored(rig) == [("a", "SUCCESS")]
    assert rig.outbox.stored()[0]["result"] == "cleaned up"
    assert [exc.args for exc in caught] == [(SOON_S,)]


def test_soft_limit_that_is_not_caught_fails_the_task(rig: Rig) -> None:
    @rig.task("wait", soft_time_limit=SOON_S)
    def wait() -> None:
        gevent.sleep(DEADLINE_S)

    rig.give("wait", "a")

    assert wait_stored(rig) == [("a", "FAILURE")]
    assert rig.outbox.stored()[0]["result"]["exc_type"] == "SoftTimeLimitExceeded"


def test_soft_limit_may_be_retried_by_itself(rig: Rig) -> None:
    @rig.task("wait", soft_time_limit=SOON_S, autoretry_for=(SoftTimeLimitExceeded,))
    def wait() -> None:
        gevent.sleep(DEADLINE_S)

    rig.give("wait", "a")

    assert wait_stored(rig) == [("a", "RETRY")]


def test_hard_limit_strikes_a_task_that_goes_on_after_its_soft_one(rig: Rig) -> None:
    seen: list[str] = []

    @rig.task("both", soft_time_limit=SOON_S, time_limit=2 * SOON_S)
    def both() -> None:
        try:
            gevent.sleep(DEADLINE_S)
        except SoftTimeLimitExceeded:
            seen.append("soft")
            gevent.sleep(DEADLINE_S)

    rig.give("both", "a")

    assert wait_stored(rig) == [("a", "FAILURE")]
    assert seen == ["soft"]
    assert rig.outbox.stored()[0]["result"]["exc_type"] == "TimeLimitExceeded"


def test_limits_of_a_task_that_has_ended_hit_nobody(rig: Rig) -> None:
    gate, greenlets = Event(), []

    @rig.task("quick", time_limit=SOON_S, soft_time_limit=SOON_S)
    def quick() -> None:
        greenlets.append(gevent.getcurrent())
        gevent.sleep(0)

    @rig.task("wait")
    def wait() -> str:
        greenlets.append(gevent.getcurrent())
        assert gate.wait(DEADLINE_S)
        return "waited"

    rig.give("quick", "a")
    rig.give("wait", "b")
    gevent.sleep(4 * SOON_S)
    gate.set()

    assert wait_stored(rig, 2) == [("a", "SUCCESS"), ("b", "SUCCESS")]
    assert greenlets[0] is greenlets[1]


def test_limit_does_not_reach_the_hooks_after_the_run(rig: Rig) -> None:
    ended: list[str] = []

    class Slow(Task[Any, Any]):
        def on_success(self, *_args: Any) -> None:
            gevent.sleep(3 * SOON_S)
            ended.append("hook")

    @rig.task("hooked", base=Slow, time_limit=SOON_S)
    def hooked() -> None:
        """Return at once."""

    rig.give("hooked", "a")

    assert wait_stored(rig) == [("a", "SUCCESS")]
    assert ended == ["hook"]


def test_termination_does_not_reach_the_hooks_after_the_run(rig: Rig) -> None:
    began, gate, ended = Event(), Event(), Event()

    class Slow(Task[Any, Any]):
        def on_success(self, *_args: Any) -> None:
            began.set()
            assert gate.wait(DEADLINE_S)
            ended.set()

    rig.task("hooked", base=Slow)(lambda: "returned")
    rig.give("hooked", "a")
    assert began.wait(DEADLINE_S)

    request = rig.running("a")
    rig.pool.end(request)
    gevent.sleep(0.005)
    assert not request.interrupt(TaskTerminated(TimeLimitExceeded(1)))
    gate.set()

    assert wait_stored(rig) == [("a", "SUCCESS")]
    assert ended.is_set()
    assert rig.events.kinds[2:] == ["task-succeeded"]


def test_nothing_of_a_limit_is_left_when_the_task_has_ended(rig: Rig) -> None:
    rig.task("quick", time_limit=3600, soft_time_limit=3600)(lambda: None)
    rig.give_all(rig.delivery("quick", str(number)) for number in range(10))
    assert len(rig.outbox.stored()) == 10

    gc.collect()

    left = [each for each in gc.get_objects() if isinstance(each, Interrupt)]
    assert [each for each in left if each._request.message.task == "quick"] == []


def test_task_that_never_lets_the_loop_run_ends_as_it_ends(rig: Rig) -> None:
    @rig.task("computes", time_limit=SOON_S)
    def computes() -> str:
        ends_s = time.monotonic() + 2 * SOON_S
        while time.monotonic() < ends_s:
            pass
        return "computed"

    rig.give("computes", "a")

    assert wait_stored(rig) == [("a", "SUCCESS")]


def test_terminated_before_its_limit_it_was_terminated(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greenq.pool._FINALLY_S", DEADLINE_S)
    caught: list[Any] = []

    @rig.task("stubborn", time_limit=3 * SOON_S)
    def stubborn() -> None:
        while len(caught) < 2:
            try:
                gevent.sleep(DEADLINE_S)
            except TaskTerminated as exc:
                caught.append(exc.reason)

    rig.give("stubborn", "a")
    rig.pool.end(rig.running("a"))

    assert wait_stored(rig) == [("a", "REVOKED")]
    assert isinstance(caught[1], TimeLimitExceeded)
