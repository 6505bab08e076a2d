"""Connecting and sending: who is called, with what, and what their errors do."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
from typing import Any

import pytest

from greenq import Greenq, Task, shared_task, signals
from greenq.signals import Signal
from tests.unit.rig import NOWHERE


@pytest.fixture
def signal() -> Signal:
    return Signal(("value",), name="happened")


class Notes:
    """A receiver that is a method."""

    def __init__(self) -> None:
        self.values: list[Any] = []

    def receive(self, value: Any = None, **_: Any) -> str:
        self.values.append(value)
        return "noted"


def test_receiver_gets_the_signal_the_sender_and_the_arguments(signal: Signal) -> None:
    seen: list[dict[str, Any]] = []

    @signal.connect
    def receive(**kwargs: Any) -> str:
        seen.append(kwargs)
        return "seen"

    assert signal.send("me", value=1) == [(receive, "seen")]
    assert seen == [{"signal": signal, "sender": "me", "value": 1}]
    assert signal.send_robust("me", value=2) == [(receive, "seen")]


def test_without_receivers_nothing_is_called(signal: Signal) -> None:
    assert not signal.receivers
    assert not signal.has_listeners()
    assert signal.send("me") == []


def test_decorator_takes_arguments(signal: Signal) -> None:
    @signal.connect(sender="me")
    def mine(**_: Any) -> None: ...

    @signal.connect("you")
    def yours(**_: Any) -> None: ...

    assert signal.send("me") == [(mine, None)]
    assert signal.send("you") == [(yours, None)]
    assert signal.send("another") == []
    assert signal.has_listeners("me")
    assert not signal.has_listeners("another")


def test_sender_may_be_a_task_or_stand_for_one(signal: Signal) -> None:
    @shared_task(name="signals.shared")
    def shared() -> None: ...

    app = Greenq("one", broker=NOWHERE)
    notes = Notes()
    signal.connect(notes.receive, sender=shared)
    signal.send(app.tasks["signals.shared"], value="its task")

    @app.task(name="signals.other")
    def other() -> None: ...

    assert isinstance(other, Task)
    signal.send(other, value="another task")
    assert notes.values == ["its task"]


def test_reference_is_weak(signal: Signal) -> None:
    notes = Notes()
    signal.connect(notes.receive)

    def local(**_: Any) -> None: ...

    signal.connect(local)
    assert len(signal.send()) == 2
    del notes, local
    gc.collect()
    # Not only passed over: nothing is left to look at.
    assert signal.receivers == []


def test_strong_reference_lasts(signal: Signal) -> None:
    signal.connect(Notes().receive, weak=False)
    signal.connect(lambda **_: "kept", weak=False)
    gc.collect()
    assert [response for _, response in signal.send()] == ["noted", "kept"]


def test_same_receiver_is_connected_once(signal: Signal) -> None:
    notes = Notes()
    signal.connect(notes.receive)
    signal.connect(notes.receive)
    signal.send(value=1)
    assert notes.values == [1]
    # For another sender, it is another connection.
    signal.connect(notes.receive, sender="me")
    assert len(signal.send("me")) == 2


def test_one_uid_is_connected_once(signal: Signal) -> None:
    def first(**_: Any) -> str:
        return "first"

    def second(**_: Any) -> str:
        return "second"

    signal.connect(first, dispatch_uid="only")
    signal.connect(second, dispatch_uid="only")
    assert signal.send() == [(first, "first")]
    assert signal.disconnect(dispatch_uid="only")
    assert signal.send() == []


def test_disconnect(signal: Signal) -> None:
    notes = Notes()
    signal.connect(notes.receive, sender="me")
    assert not signal.disconnect(notes.receive)
    assert signal.disconnect(notes.receive, sender="me")
    assert not signal.disconnect(notes.receive, sender="me")
    assert not signal.receivers


def test_receiver_may_disconnect_itself_while_it_is_called(signal: Signal) -> None:
    calls: list[str] = []

    @signal.connect
    def once(**_: Any) -> None:
        calls.append("once")
        signal.disconnect(once)

    @signal.connect
    def always(**_: Any) -> None:
        calls.append("always")

    signal.send()
    signal.send()
    assert calls == ["once", "always", "always"]


def test_error_of_a_receiver_is_logged_and_stops_no_other(
    signal: Signal, caplog: pytest.LogCaptureFixture
) -> None:
    error = ValueError("mine")

    @signal.connect
    def fails(**_: Any) -> None:
        raise error

    notes = Notes()
    signal.connect(notes.receive)
    assert signal.send(value=1) == [(fails, error), (notes.receive, "noted")]
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "fails" in record.message
    assert "of signal happened failed" in record.message
    assert record.exc_info is not None
    assert record.exc_info[1] is error


def test_what_is_no_exception_passes(signal: Signal) -> None:
    @signal.connect
    def leaves(**_: Any) -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        signal.send()


def test_retried_receiver_is_called_until_it_succeeds(
    signal: Signal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("greenq.signals.time.sleep", pauses.append)
    tries: list[int] = []

    def connect() -> None:
        @signal.connect(retry=True)
        def at_last(**_: Any) -> str:
            tries.append(1)
            if len(tries) < 3:
                raise ConnectionError("not yet")
            return "done"

    connect()
    gc.collect()
    assert [response for _, response in signal.send()] == ["done"]
    assert len(tries) == 3
    assert len(pauses) == 2
    assert "will be called again in" in caplog.text
    signal.disconnect(signal.receivers[0].find())
    assert not signal.receivers


def test_what_cannot_receive_is_refused(signal: Signal) -> None:
    def without_keywords(sender: Any) -> None: ...

    class Slotted:
        __slots__ = ()

        def __call__(self, **_: Any) -> None: ...

    with pytest.raises(ValueError, match=r"must accept keyword arguments .* signal happened"):
        signal.connect(without_keywords)
    with pytest.raises(TypeError, match="connect it with weak=False"):
        signal.connect(Slotted())
    with pytest.raises(TypeError, match="must be a function, not 3"):
        signal.connect(sender="me")(3)
    assert not signal.receivers


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("task_sent", "after_task_publish"),
        ("worker_before_create_process", "greenlets"),
        ("eventlet_pool_started", "worker_ready"),
        ("user_preload_options", "user_options"),
    ],
)
def test_signal_that_has_no_meaning_here_says_why(name: str, why: str) -> None:
    with pytest.raises(ImportError, match=f"no signal '{name}': .*{why}"):
        exec(f"from greenq.signals import {name}")


def test_there_is_every_signal_of_celery_or_a_reason() -> None:
    # In a process of its own: Celery's module must not meet greenq's elsewhere.
    code = (
        "import celery.signals, greenq.signals as ours\n"
        "for name in celery.signals.__all__ + ('import_modules', 'user_preload_options'):\n"
        "    theirs = getattr(celery.signals, name)\n"
        "    if name in ours._NOT_HERE: continue\n"
        "    missing = theirs.providing_args - getattr(ours, name).providing_args\n"
        "    assert not missing, (name, missing)\n"
        "    assert getattr(ours, name).name == name\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_repr_names_the_signal() -> None:
    assert repr(signals.task_success) == "<Signal task_success: result, runtime>"
