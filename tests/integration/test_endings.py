"""Every way a task can end: whoever waits learns it, the message is settled, the worker goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from greenq import Greenq
from greenq.errors import RemoteError
from tests.servers import Process, Server, greenq_worker

pytestmark = pytest.mark.smoke

WAIT_S = 15


@dataclass(frozen=True)
class Fleet:
    """One worker, a client beside it, their server, and how the worker acknowledges."""

    worker: Process
    client: Greenq
    server: Server
    acks_late: bool

    def send(self, name: str, *args: Any) -> Any:
        return self.client.send_task(f"endings_app.{name}", args)

    def assert_goes_on(self) -> None:
        """The message is settled, and the next task runs in the same process."""
        self.server.wait_settled()
        assert self.send("add", 1, 2).get(timeout=WAIT_S) == 3
        assert self.worker.alive
        assert self.worker.text.count("Connected to ") == 1


@pytest.fixture(scope="module", params=[True, False], ids=["late ack", "early ack"])
def fleet(request: pytest.FixtureRequest, shared_server: Server) -> Iterator[Fleet]:
    shared_server.flush()
    settings = {
        "task_acks_late": request.param,
        "task_max_result_bytes": 100_000,
        "result_extended": True,
    }
    client = Greenq("client", broker=shared_server.url, set_as_current=False)
    # One slot: a task that does not give it back stops everything behind it.
    with greenq_worker(
        shared_server.url, "-c", "1", app="endings_app", settings=settings
    ) as worker:
        yield Fleet(worker, client, shared_server, request.param)
    client.close()


# Task, name of the exception's class, part of its text (None: nothing is asked of it).
FAILURES = [
    ("exception", "ValueError", "plain"),
    ("base_exception", "OwnBaseError", "base"),
    ("system_exit", "SystemExit", "3"),
    ("keyboard_interrupt", "KeyboardInterrupt", None),
    ("own_timeout", "Timeout", None),
    ("greenlet_exit", "GreenletExit", None),
    ("kills_itself", "GreenletExit", None),
    ("memory_error", "MemoryError", None),
    ("recursion_error", "RecursionError", "recursion"),
    ("unserializable", "EncodeError", "cannot be stored"),
    ("mute_value", "EncodeError", "cannot be stored"),
    ("circular", "EncodeError", "cannot be stored"),
    ("too_large", "EncodeError", "task_max_result_bytes"),
    ("error_too_large", "EncodeError", "task_max_result_bytes"),
    ("mute_error", "MuteError", None),
    ("argless_error", "ArglessError", None),
    ("from_finally", "KeyError", "second"),
    ("surrogate", "ValueError", None),
    ("reject", "Reject", "not at all"),
    ("wants_two", "TypeError", "missing 2 required"),
]


@pytest.mark.parametrize(("task", "kind", "text"), FAILURES, ids=[row[0] for row in FAILURES])
def test_a_failure_is_stored_and_the_worker_goes_on(
    fleet: Fleet, task: str, kind: str, text: str | None
) -> None:
    result = fleet.send(task)
    error = result.get(timeout=WAIT_S, propagate=False)
    assert result.state == "FAILURE"
    # Of what is no Exception, or has no class here, class and text are kept.
    name = error.type.rpartition(".")[2] if type(error) is RemoteError else type(error).__name__
    assert name == kind
    if text is not None:
        assert text in str(error)
    if kind not in {"EncodeError", "Reject"}:
        assert kind in result.traceback
    fleet.assert_goes_on()


def test_arguments_that_make_a_result_too_large_do_not_hinder_its_storing(fleet: Fleet) -> None:
    result = fleet.send("takes", "x" * 200_000)
    error = result.get(timeout=WAIT_S, propagate=False)
    assert "task_max_result_bytes" in str(error)
    fleet.assert_goes_on()


def test_a_success_is_stored(fleet: Fleet) -> None:
    assert fleet.send("add", 20, 22).get(timeout=WAIT_S) == 42
    fleet.assert_goes_on()


def test_a_retry_runs_again_under_the_same_id(fleet: Fleet) -> None:
    assert fleet.send("retry").get(timeout=WAIT_S) == "third run"
    fleet.assert_goes_on()


def test_a_retry_whose_reason_is_too_large_runs_again(fleet: Fleet) -> None:
    assert fleet.send("retry_too_large").get(timeout=WAIT_S) == "second run"
    fleet.assert_goes_on()


def test_an_ignored_task_leaves_no_state(fleet: Fleet) -> None:
    result = fleet.send("ignore")
    fleet.worker.wait_text(f"{result.id}] ignored")
    fleet.assert_goes_on()
    assert result.state == "PENDING"


def test_a_rejected_message_comes_again_when_it_is_requeued(fleet: Fleet) -> None:
    result = fleet.send("reject_requeue")
    assert result.get(timeout=WAIT_S) == "second delivery"
    fleet.assert_goes_on()


def test_a_rejected_message_is_among_the_dead_letters(fleet: Fleet) -> None:
    fleet.server.client.delete("greenq.dead.celery")
    result = fleet.send("reject")
    result.get(timeout=WAIT_S, propagate=False)
    fleet.assert_goes_on()
    letters = list(fleet.client.transport.dead.list(["celery"]))
    if not fleet.acks_late:
        # Its message was acknowledged before.
        assert letters == []
        return
    (letter,) = letters
    assert (letter.task_id, letter.task) == (result.id, "endings_app.reject")
    assert "not at all" in letter.reason


@pytest.mark.parametrize("error", ["Exception", "SystemExit"])
@pytest.mark.parametrize("hook", ["on_success", "after_return"])
def test_a_hook_that_raises_changes_nothing(fleet: Fleet, hook: str, error: str) -> None:
    assert fleet.send("hooked", hook, error).get(timeout=WAIT_S) == "fine"
    fleet.assert_goes_on()


@pytest.mark.parametrize("error", ["Exception", "SystemExit"])
def test_a_failure_hook_that_raises_hides_nothing(fleet: Fleet, error: str) -> None:
    result = fleet.send("hooked_failing", "on_failure", error)
    assert type(result.get(timeout=WAIT_S, propagate=False)) is KeyError
    fleet.assert_goes_on()


@pytest.mark.parametrize("error", ["Exception", "SystemExit"])
def test_a_start_hook_that_raises_fails_the_task(fleet: Fleet, error: str) -> None:
    result = fleet.send("hooked", "before_start", error)
    assert "before_start" in str(result.get(timeout=WAIT_S, propagate=False))
    assert result.state == "FAILURE"
    fleet.assert_goes_on()


def test_an_early_acknowledged_message_is_gone_before_its_code_runs(fleet: Fleet) -> None:
    result = fleet.send("sleep", 0.5)
    fleet.worker.wait_text(f"{result.id}] received")
    if fleet.acks_late:
        assert fleet.server.unacked()
    else:
        fleet.server.wait_settled(0.4)
    assert result.get(timeout=WAIT_S) == 0.5
    fleet.assert_goes_on()
