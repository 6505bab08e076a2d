"""The signals of a task in a worker: their order, their arguments, and receivers that fail."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import gevent
import pytest
from gevent.event import Event

from greenq import Ignore, Reject, Task, signals
from greenq.errors import NotRegistered, TaskRevokedError, TimeLimitExceeded
from greenq.sending.context import Context, current_context
from greenq.signals import Signal
from greenq.states import FAILURE, IGNORED, REJECTED, RETRY, REVOKED, SUCCESS
from tests.unit.rig import Rig, wait_for

NAMES = (
    "before_task_publish", "after_task_publish", "task_received", "task_prerun", "task_postrun",
    "task_success", "task_retry", "task_failure", "task_revoked", "task_rejected", "task_unknown",
    "task_internal_error",
)  # fmt: skip


class Notes:
    """What the receivers have been given, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any, dict[str, Any]]] = []

    def take(self, signal: Signal, sender: Any, **kwargs: Any) -> None:
        assert signal.name is not None
        self.calls.append((signal.name, sender, kwargs))

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.calls]

    def of(self, name: str) -> dict[str, Any]:
        (found,) = [kwargs for each, _, kwargs in self.calls if each == name]
        return found


@pytest.fixture
def rig() -> Iterator[Rig]:
    yield Rig(size=1)
    for name in NAMES:
        getattr(signals, name).receivers = []


@pytest.fixture
def notes() -> Iterator[Notes]:
    made = Notes()
    for name in NAMES:
        getattr(signals, name).connect(made.take)
    yield made
    for name in NAMES:
        getattr(signals, name).disconnect(made.take)


def give(rig: Rig, name: str, task_id: str, *args: Any, **options: Any) -> None:
    """Have a message run; its own sending sends no signals that count here."""
    before, signals.before_task_publish.receivers = signals.before_task_publish.receivers, []
    after, signals.after_task_publish.receivers = signals.after_task_publish.receivers, []
    delivery = rig.delivery(name, task_id, *args, **options)
    signals.before_task_publish.receivers, signals.after_task_publish.receivers = before, after
    rig.give_all([delivery])


def test_success(rig: Rig, notes: Notes) -> None:
    @rig.task("add")
    def add(x: int, y: int) -> int:
        return x + y

    give(rig, "add", "a", 1, 2)
    wait_for(lambda: "task_postrun" in notes.names)
    assert notes.names == ["task_received", "task_prerun", "task_success", "task_postrun"]
    assert [sender for _, sender, _ in notes.calls[1:]] == [add] * 3
    request = notes.of("task_received")["request"]
    assert (request.id, request.name, request.args, request.kwargs) == ("a", "add", [1, 2], {})
    assert (request.task_id, request.task_name) == ("a", "add")
    call = {"task_id": "a", "task": add, "args": [1, 2], "kwargs": {}}
    assert notes.of("task_prerun") == call
    assert notes.of("task_postrun") == call | {"retval": 3, "state": SUCCESS}
    success = notes.of("task_success")
    assert success["result"] == 3
    assert success["runtime"] > 0


def test_hooks_of_the_class_come_in_between(rig: Rig, notes: Notes) -> None:
    class Hooked(Task[..., Any]):
        def before_start(self, *_: Any) -> None:
            notes.calls.append(("before_start", None, {}))

        def on_success(self, *_: Any) -> None:
            notes.calls.append(("on_success", None, {}))

        def after_return(self, *_: Any) -> None:
            notes.calls.append(("after_return", None, {}))

    @rig.task("hooked", base=Hooked)
    def hooked() -> None: ...

    @rig.app.on_task_end
    def end() -> None:
        notes.calls.append(("on_task_end", None, {}))

    give(rig, "hooked", "a")
    wait_for(lambda: "on_task_end" in notes.names)
    assert notes.names == [
        "task_received", "task_prerun", "before_start", "on_success", "task_success",
        "after_return", "task_postrun", "on_task_end",
    ]  # fmt: skip


def test_failure(rig: Rig, notes: Notes) -> None:
    error = ValueError("no")

    @rig.task("bad")
    def bad(_x: int) -> NoReturn:
        raise error

    give(rig, "bad", "a", 1)
    wait_for(lambda: "task_postrun" in notes.names)
    assert notes.names == ["task_received", "task_prerun", "task_failure", "task_postrun"]
    failure = notes.of("task_failure")
    einfo, trace = failure.pop("einfo"), failure.pop("traceback")
    assert failure == {"task_id": "a", "exception": error, "args": [1], "kwargs": {}}
    # The exception itself has none any more: it would keep the run's frames.
    assert traceback.extract_tb(trace)[-1].name == "bad"
    assert error.__traceback__ is None
    assert einfo.exception is error
    assert "ValueError: no" in str(einfo)
    assert (notes.of("task_postrun")["retval"], notes.of("task_postrun")["state"]) == (
        error, FAILURE,
    )  # fmt: skip


def test_retry_announces_the_next_run(rig: Rig, notes: Notes) -> None:
    error = ValueError("later")

    @rig.task("again", bind=True)
    def again(self: Any) -> NoReturn:
        raise self.retry(exc=error, countdown=1)

    def trace(headers: Any, properties: Any, **_: Any) -> None:
        headers["trace"] = "t"
        properties["priority"] = 9

    signals.before_task_publish.connect(trace)
    give(rig, "again", "a")
    wait_for(lambda: "task_postrun" in notes.names)
    assert notes.names == [
        "task_received", "task_prerun", "before_task_publish", "after_task_publish", "task_retry",
        "task_postrun",
    ]  # fmt: skip
    assert notes.of("before_task_publish")["headers"]["retries"] == 1
    retry = notes.of("task_retry")
    assert isinstance(retry["request"], Context)
    assert retry["request"].id == "a"
    assert retry["reason"].exc is error
    assert notes.of("task_postrun")["state"] == RETRY
    # The changed message is what is moved, to the list of its priority.
    (entry,) = [each for each in rig.outbox.entries if each.move is not None]
    assert '"trace": "t"' in str(entry.move.text)
    assert entry.move.key.endswith("\x06\x169")


@pytest.mark.parametrize(
    ("make", "state"),
    [
        (lambda: Ignore(), IGNORED),
        (lambda: Reject("no", requeue=True), REJECTED),
    ],
)
def test_ignored_and_rejected_runs_have_no_signal_of_their_own(
    rig: Rig, notes: Notes, make: Callable[[], Exception], state: str
) -> None:
    @rig.task("ends")
    def ends() -> NoReturn:
        raise make()

    give(rig, "ends", "a")
    wait_for(lambda: "task_postrun" in notes.names)
    assert notes.names == ["task_received", "task_prerun", "task_postrun"]
    assert notes.of("task_postrun")["state"] == state


def test_terminated_while_running(rig: Rig, notes: Notes) -> None:
    started = Event()

    @rig.task("long")
    def long() -> None:
        started.set()
        gevent.sleep(60)

    give(rig, "long", "a")
    assert started.wait(5)
    rig.pool.end(rig.running("a"))
    wait_for(lambda: "task_postrun" in notes.names)
    assert notes.names == ["task_received", "task_prerun", "task_revoked", "task_postrun"]
    revoked = notes.of("task_revoked")
    assert revoked.pop("request").id == "a"
    assert revoked == {"terminated": True, "signum": 15, "expired": False}
    assert notes.of("task_postrun")["state"] == REVOKED
    assert isinstance(notes.of("task_postrun")["retval"], TaskRevokedError)


def test_time_limits_hold_for_receivers_of_prerun(rig: Rig, notes: Notes) -> None:
    ran: list[int] = []

    @rig.task("limited", time_limit=0.05)
    def limited() -> None:
        ran.append(1)

    def wait(**_: Any) -> None:
        gevent.sleep(60)

    signals.task_prerun.connect(wait)
    give(rig, "limited", "a")
    wait_for(lambda: "task_postrun" in notes.names)
    assert not ran
    assert isinstance(notes.of("task_failure")["exception"], TimeLimitExceeded)


def test_discarded_before_its_run(rig: Rig, notes: Notes) -> None:
    @rig.task("late")
    def late() -> None: ...

    give(rig, "late", "a", expires=-1)
    assert notes.names == ["task_revoked"]
    revoked = notes.of("task_revoked")
    assert revoked.pop("request").id == "a"
    assert revoked == {"terminated": False, "signum": None, "expired": True}
    assert notes.calls[0][1] is late


def test_unknown_task(rig: Rig, notes: Notes) -> None:
    rig.tasks.admission.send_signals_as("the consumer")
    give(rig, "nobody.knows", "a", 1)
    assert notes.names == ["task_unknown"]
    assert notes.calls[0][1] == "the consumer"
    unknown = notes.of("task_unknown")
    assert (unknown["name"], unknown["id"]) == ("nobody.knows", "a")
    assert isinstance(unknown["exc"], NotRegistered)
    message = unknown["message"]
    assert message.headers["task"] == "nobody.knows"
    assert message.properties["correlation_id"] == "a"
    assert message.delivery_info["routing_key"] == message.queue == "celery"
    assert message.body.startswith(b"[[1]")


def test_what_is_no_task_call(rig: Rig, notes: Notes) -> None:
    delivery = rig.delivery("any", "a")
    notes.calls.clear()
    rig.give_all([delivery._replace(raw=b"not JSON")])
    assert notes.names == ["task_rejected"]
    message = notes.of("task_rejected")["message"]
    assert (message.raw, message.headers, message.body) == (b"not JSON", {}, b"")
    assert "JSON" in str(notes.of("task_rejected")["exc"])


def test_internal_error(rig: Rig, notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("a bug of ours")

    @rig.task("fine")
    def fine() -> None: ...

    def fail(*_: Any) -> NoReturn:
        raise error

    monkeypatch.setattr(rig.executor._results, "write", fail)
    give(rig, "fine", "a")
    wait_for(lambda: "task_postrun" in notes.names)
    assert notes.names == [
        "task_received", "task_prerun", "task_internal_error", "task_failure", "task_postrun",
    ]  # fmt: skip
    told = notes.of("task_internal_error")
    assert told["exception"] is error
    assert told["request"]["id"] == told["task_id"] == "a"
    assert told["request"]["delivery_info"]["routing_key"] == "celery"


class OwnBaseError(BaseException):
    """Not an Exception, such as gevent's Timeout."""


@pytest.mark.parametrize("kind", [ValueError, OwnBaseError])
@pytest.mark.parametrize("name", ["task_success", "task_postrun"])
def test_receiver_that_fails_at_the_end_changes_nothing(
    rig: Rig, caplog: pytest.LogCaptureFixture, kind: type[BaseException], name: str
) -> None:
    @rig.task("fine")
    def fine() -> str:
        return "fine"

    def fail(**_: Any) -> NoReturn:
        raise kind("mine")

    getattr(signals, name).connect(fail)
    for task_id in ("a", "b"):
        give(rig, "fine", task_id)
    wait_for(lambda: len(rig.outbox.stored()) == 2)
    wait_for(lambda: caplog.text.count(f"signal {name} failed") == 2)
    assert [state for _, state in rig.outbox.states()] == [SUCCESS] * 2


def test_receiver_of_prerun_that_fails_does_not_stop_the_task(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    @rig.task("fine")
    def fine() -> str:
        return "fine"

    def fail(**_: Any) -> NoReturn:
        raise ValueError("mine")

    signals.task_prerun.connect(fail)
    give(rig, "fine", "a")
    wait_for(lambda: len(rig.outbox.stored()) == 1)
    assert rig.outbox.states()[0][1] == SUCCESS
    assert "signal task_prerun failed" in caplog.text


def test_receivers_run_in_the_greenlet_and_context_of_the_task(rig: Rig) -> None:
    seen: list[Any] = []

    def look(**_: Any) -> None:
        context = current_context.get()
        seen.append((gevent.getcurrent(), context and context.id))

    for name in ("task_prerun", "task_success", "task_postrun"):
        getattr(signals, name).connect(look)

    @rig.task("fine")
    def fine() -> None:
        look()

    give(rig, "fine", "a")
    wait_for(lambda: len(seen) == 4)
    assert len(set(seen)) == 1
    assert seen[0][1] == "a"
