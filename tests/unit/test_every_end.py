"""Every task ends: whatever its retry, options, hooks or the log raise, it has an outcome."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, NoReturn

import gevent
import pytest

from greenq import Ignore, Queue, Reject, Task
from greenq.transport.settle import ACKNOWLEDGE, MOVE
from greenq.utils.log import keep_going
from tests.unit.rig import Rig, wait_for


@pytest.fixture
def rig() -> Rig:
    return Rig(size=1)


def outcome(rig: Rig, name: str, **options: Any) -> dict[str, Any]:
    """Run a task once and return its last state; its message must have gone somewhere."""
    delivery = rig.give(name, "a", **options)
    wait_for(lambda: not rig.pool.running and not rig.state.reserved)
    settled = [entry for entry in rig.outbox.entries if entry.tag == delivery.tag]
    assert any(entry.action in {ACKNOWLEDGE, MOVE} for entry in settled), "its message was left"
    stored: dict[str, Any] = rig.outbox.stored()[-1]
    return stored


RETRIES: list[dict[str, Any]] = [
    {"args": (object(),)},
    {"kwargs": {"s": {1}}},
    {"args": 5},
    {"kwargs": 5},
    {"serializer": "nope"},
    {"compression": "nope"},
    {"countdown": "5"},
    {"countdown": float("nan")},
    {"countdown": 1e300},
    {"eta": 5},
    {"eta": "tomorrow"},
    {"queue": 5},
    {"queue": "\udc80"},
    {"priority": "high"},
    {"expires": "tomorrow"},
    {"expires": object()},
    {"time_limit": "5"},
    {"headers": 5},
    {"headers": {"x": object()}},
    {"max_retries": "3"},
    {"countdwn": 3},
    {"task_id": "b"},
]


@pytest.mark.parametrize("options", RETRIES, ids=str)
@pytest.mark.parametrize("acks_late", [True, False])
def test_retry_that_cannot_be_is_a_failure(
    rig: Rig, options: dict[str, Any], acks_late: bool
) -> None:
    @rig.task("again", bind=True, acks_late=acks_late)
    def again(self: Any) -> NoReturn:
        raise self.retry(**options)

    assert outcome(rig, "again")["status"] == "FAILURE"


@pytest.mark.parametrize(
    "options",
    [{"countdown": timedelta(0)}, {"expires": timedelta(hours=1)},
     {"time_limit": timedelta(hours=1)}, {"queue": Queue("other")}, {"priority": 42}],
    ids=str,
)  # fmt: skip
def test_retry_takes_what_a_sending_takes(rig: Rig, options: dict[str, Any]) -> None:
    @rig.task("again", bind=True)
    def again(self: Any) -> NoReturn:
        raise self.retry(**{"countdown": 0} | options)

    assert outcome(rig, "again")["status"] == "RETRY"


OPTIONS: list[dict[str, Any]] = [
    {"autoretry_for": 5},
    {"autoretry_for": ["ValueError"]},
    {"autoretry_for": (ValueError,), "dont_autoretry_for": [5]},
    {"autoretry_for": (ValueError,), "retry_kwargs": {"countdown": "1"}},
    {"autoretry_for": (ValueError,), "retry_kwargs": 5},
    {"autoretry_for": (ValueError,), "retry_kwargs": {"nope": 1}},
    {"autoretry_for": (ValueError,), "retry_backoff": True, "retry_backoff_max": None},
    {"throws": 5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_task_with_an_option_that_is_wrong_fails(rig: Rig, options: dict[str, Any]) -> None:
    # As an attribute of the class, which nothing checks.
    @rig.task("fail", base=type("Base", (Task,), options))
    def fail() -> NoReturn:
        raise ValueError("no")

    assert outcome(rig, "fail")["status"] == "FAILURE"


@pytest.mark.parametrize("kind", [list, tuple, set])
def test_classes_may_be_any_collection(rig: Rig, kind: Any) -> None:
    @rig.task("again", autoretry_for=kind([ValueError]), dont_autoretry_for=kind([KeyError]))
    def again(key: bool) -> NoReturn:
        raise KeyError("no") if key else ValueError("no")

    rig.give("again", "a", False)
    rig.give("again", "b", True)
    wait_for(lambda: not rig.pool.running)
    assert rig.outbox.states() == [("a", "RETRY"), ("b", "FAILURE")]


def test_expected_exceptions_may_be_a_list(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    failed: list[Any] = []

    class Base(Task[Any, Any]):
        def on_failure(self, exc: Any, *call: Any) -> None:
            failed.append(exc)

    @rig.task("fail", base=Base, throws=[ValueError])
    def fail() -> NoReturn:
        raise ValueError("no")

    with caplog.at_level(logging.INFO):
        outcome(rig, "fail")
    assert "raised expected" in caplog.text
    assert len(failed) == 1


class Unfit(Exception):
    """An exception whose every method fails."""

    def __str__(self) -> str:
        raise RuntimeError("str")

    __repr__ = __str__
    __reduce__ = __str__  # type: ignore[assignment]

    @property
    def args(self) -> NoReturn:  # type: ignore[override]
        raise RuntimeError("args")


class Value:
    def __repr__(self) -> str:
        raise RuntimeError("repr")

    def __json__(self) -> str:
        raise SystemExit


@pytest.mark.parametrize(
    "raised",
    [
        Unfit(), SystemExit(1), KeyboardInterrupt(), gevent.GreenletExit(), gevent.Timeout(1),
        ValueError("\udc80"), ValueError(Value()), RecursionError(), MemoryError(), StopIteration(),
    ],
    ids=lambda exc: type(exc).__name__,
)  # fmt: skip
@pytest.mark.parametrize("acks", [True, False])
def test_whatever_is_raised_is_a_failure(rig: Rig, raised: BaseException, acks: bool) -> None:
    @rig.task("fail", acks_on_failure_or_timeout=acks)
    def fail() -> NoReturn:
        raise raised

    assert outcome(rig, "fail")["status"] == "FAILURE"


@pytest.mark.parametrize("value", [Value(), "\udc80", {1: {object()}}], ids=["repr", "text", "set"])
def test_whatever_is_returned_is_an_outcome(rig: Rig, value: Any) -> None:
    @rig.task("give")
    def give() -> Any:
        return value

    assert outcome(rig, "give")["status"] in ("SUCCESS", "FAILURE")


@pytest.mark.parametrize("error", [ValueError, SystemExit, gevent.GreenletExit, gevent.Timeout])
@pytest.mark.parametrize("hook", ["before_start", "on_success", "after_return", "__call__"])
def test_hook_that_raises_leaves_no_task_without_an_end(
    rig: Rig, hook: str, error: type[BaseException]
) -> None:
    def fail(*args: Any) -> NoReturn:
        raise error

    @rig.task("give", base=type("Base", (Task,), {hook: fail}))
    def give() -> None:
        pass

    before = hook in ("before_start", "__call__")
    assert outcome(rig, "give")["status"] == ("FAILURE" if before else "SUCCESS")


def test_what_cannot_be_settled_as_it_is_fails(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @rig.task("give")
    def give() -> None:
        pass

    def broken(*args: Any) -> NoReturn:
        raise RuntimeError("a fault of the worker's own")

    monkeypatch.setattr(rig.executor._results, "write", broken)
    assert outcome(rig, "give")["status"] == "FAILURE"
    assert "could not be settled: RuntimeError: a fault of the worker's own" in caplog.text


def test_what_has_no_state_at_all_is_among_the_dead_letters(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    @rig.task("give")
    def give() -> None:
        pass

    def broken(*args: Any, **more: Any) -> NoReturn:
        raise RuntimeError("no state")

    monkeypatch.setattr(type(rig.app.transport.backend), "stored", broken)
    rig.give("give", "a")
    wait_for(lambda: not rig.pool.running)
    (move,) = rig.outbox.moves()
    assert "no state" in move.text


class Raising(logging.Handler):
    def handle(self, record: logging.LogRecord) -> bool:
        raise RuntimeError("a handler that raises")


@pytest.fixture
def raising_log(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    root, handler = logging.getLogger("greenq"), Raising()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    keep_going()
    yield
    root.removeHandler(handler)
    root.setLevel(level)
    for name, logger in logging.root.manager.loggerDict.items():
        if name.partition(".")[0] == "greenq" and isinstance(logger, logging.Logger):
            logger.__class__ = logging.Logger


@pytest.mark.usefixtures("raising_log")
def test_log_that_raises_costs_no_task_its_end(rig: Rig, capfd: pytest.CaptureFixture[str]) -> None:
    @rig.task("give")
    def give() -> None:
        pass

    @rig.task("fail")
    def fail() -> NoReturn:
        raise ValueError("no")

    assert outcome(rig, "give")["status"] == "SUCCESS"
    assert outcome(rig, "fail")["status"] == "FAILURE"
    shown = capfd.readouterr().err
    assert "Task give[a] succeeded" in shown
    assert "[RuntimeError in a log handler]" in shown


class _Large:
    """Something that a task has in hand when it fails."""


def _fails(task: Any) -> None:
    raise ValueError("no")


def _fails_because(task: Any) -> None:
    try:
        raise KeyError("first")
    except KeyError as exc:
        raise ValueError("then") from exc


def _fails_in_a_group(task: Any) -> None:
    raise ExceptionGroup("both", [ValueError("a"), KeyError("b")])


def _retries(task: Any) -> None:
    try:
        raise ValueError("no")
    except ValueError as exc:
        raise task.retry(exc=exc, countdown=0) from exc


def _rejects(task: Any) -> None:
    raise Reject("no", requeue=False)


def _ignores(task: Any) -> None:
    raise Ignore("no")


ENDS = [_fails, _fails_because, _fails_in_a_group, _retries, _rejects, _ignores]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("again", [(), (Exception,)], ids=["once", "autoretry"])
def test_what_a_task_had_in_hand_is_freed_without_the_collector(
    rig: Rig, end: Any, again: tuple[type[Exception], ...]
) -> None:
    kept = []

    @rig.task("end", bind=True, autoretry_for=again, retry_kwargs={"countdown": 0})
    def run(self: Any) -> None:
        large = _Large()
        kept.append(weakref.ref(large))
        end(self)

    rig.give("end", "a")
    gc.disable()
    try:
        wait_for(lambda: not rig.pool.running and not rig.state.reserved)
        assert kept
        assert kept[0]() is None
    finally:
        gc.enable()
