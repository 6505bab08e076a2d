"""A real worker: tasks are revoked, terminated, out of time, or held to a rate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest

from greenq import Greenq
from greenq.errors import TaskRevokedError, TimeLimitExceeded
from greenq.protocol.event import read_events
from tests.servers import Process, Server, greenq_worker
from tests.support import wait_until

WAIT_S = 15


@dataclass(frozen=True)
class Fleet:
    """One worker, a client beside it, their server, and what is published of tasks."""

    worker: Process
    client: Greenq
    server: Server
    channel: Any
    heard: list[dict[str, Any]]

    def send(self, name: str, *args: Any, **options: Any) -> Any:
        return self.client.send_task(f"limits_app.{name}", args, **options)

    def noted(self) -> list[str]:
        return [line.decode() for line in self.server.client.lrange("noted", 0, -1)]

    def wait_noted(self, text: str) -> None:
        wait_until(lambda: text in self.noted(), WAIT_S)

    def events_of(self, task_id: str, last: str) -> list[dict[str, Any]]:
        """Return the events of a task, in their order, when the one that is to be last has come."""

        def found() -> list[dict[str, Any]]:
            while message := self.channel.get_message(ignore_subscribe_messages=True):
                self.heard.extend(read_events(message["data"], frozenset({"application/json"})))
            mine = [event for event in self.heard if event.get("uuid") == task_id]
            return sorted(mine, key=lambda event: event["clock"])

        wait_until(lambda: any(event["type"] == last for event in found()), WAIT_S)
        # What comes late is here when a task behind it has ended.
        behind = self.send("add", 1, 1)
        wait_until(lambda: found() and self._has_heard(behind.id, "task-succeeded"), WAIT_S)
        return found()

    def _has_heard(self, task_id: str, kind: str) -> bool:
        return any(each.get("uuid") == task_id and each["type"] == kind for each in self.heard)

    def inspect(self, command: str) -> Any:
        (answer,) = getattr(self.client.control.inspect(), command)().values()
        return answer


@pytest.fixture(scope="module", params=[True, False], ids=["late ack", "early ack"])
def fleet(request: pytest.FixtureRequest, shared_server: Server) -> Iterator[Fleet]:
    shared_server.flush()
    settings = {"task_acks_late": request.param, "worker_send_task_events": True}
    client = Greenq("client", broker=shared_server.url, set_as_current=False)
    channel = shared_server.client.pubsub()
    channel.psubscribe("/0.celeryev/task*")
    with greenq_worker(shared_server.url, "-c", "4", app="limits_app", settings=settings) as worker:
        # It answers, so it hears.
        wait_until(lambda: client.control.inspect().ping(), WAIT_S)
        yield Fleet(worker, client, shared_server, channel, [])
    channel.close()
    client.close()


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


# --- revoke and terminate -------------------------------------------------------------------------


def test_terminated_task_cleans_up_and_whoever_waits_learns_it(fleet: Fleet) -> None:
    result = fleet.send("wait", "terminated")
    fleet.wait_noted("terminated begins")

    fleet.client.control.revoke(result.id, terminate=True, signal="SIGKILL", reply=True)

    with pytest.raises(TaskRevokedError, match="terminated"):
        result.get(timeout=WAIT_S)
    fleet.wait_noted("terminated cleaned up")
    events = fleet.events_of(result.id, "task-revoked")
    assert kinds(events) == ["task-received", "task-started", "task-revoked"]
    told = events[-1]
    assert (told["terminated"], told["signum"], told["expired"]) == (True, 9, False)
    fleet.server.wait_settled()


def test_stubborn_task_is_terminated_in_the_end(fleet: Fleet) -> None:
    result = fleet.send("stubborn", "first", 2)
    # With an early acknowledgement it counts as active before its code begins.
    wait_until(lambda: "first begins" in fleet.noted(), WAIT_S)

    fleet.client.control.terminate(result.id, reply=True)

    with pytest.raises(TaskRevokedError, match="terminated"):
        result.get(timeout=WAIT_S)
    assert fleet.noted().count("first swallowed TaskTerminated") == 2
    assert kinds(fleet.events_of(result.id, "task-revoked")).count("task-revoked") == 1


def test_task_that_waits_for_its_eta_is_discarded_at_once(fleet: Fleet) -> None:
    result = fleet.send("add", 1, 2, countdown=30)
    wait_until(lambda: fleet.inspect("scheduled"), WAIT_S)

    fleet.client.control.revoke(result.id, reply=True)

    with pytest.raises(TaskRevokedError, match="revoked"):
        result.get(timeout=WAIT_S)
    events = fleet.events_of(result.id, "task-revoked")
    assert kinds(events) == ["task-received", "task-revoked"]
    assert fleet.inspect("scheduled") == []
    fleet.server.wait_settled()


def test_nothing_is_said_of_an_id_that_nobody_holds_until_it_turns_up(fleet: Fleet) -> None:
    fleet.client.control.revoke("turns up", reply=True)
    assert not fleet.server.client.exists("celery-task-meta-turns up")

    result = fleet.send("add", 1, 2, task_id="turns up")

    with pytest.raises(TaskRevokedError, match="revoked"):
        result.get(timeout=WAIT_S)
    assert kinds(fleet.events_of("turns up", "task-revoked")) == ["task-revoked"]
    fleet.server.wait_settled()


# --- time limits ----------------------------------------------------------------------------------


def test_hard_limit_is_stored_and_told_once(fleet: Fleet) -> None:
    result = fleet.send("wait", "limited", time_limit=0.3)

    with pytest.raises(TimeLimitExceeded, match=r"0\.3"):
        result.get(timeout=WAIT_S)

    fleet.wait_noted("limited cleaned up")
    events = fleet.events_of(result.id, "task-failed")
    assert kinds(events) == ["task-received", "task-started", "task-failed"]
    assert events[-1]["exception"] == "TimeLimitExceeded(0.3)"
    took_s = events[-1]["timestamp"] - events[1]["timestamp"]
    assert took_s >= 0.3
    fleet.server.wait_settled()


def test_stubborn_task_ends_at_its_hard_limit(fleet: Fleet) -> None:
    result = fleet.send("stubborn", "second", 3, time_limit=0.1)

    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=WAIT_S)

    assert fleet.noted().count("second swallowed TaskTerminated") == 3
    assert kinds(fleet.events_of(result.id, "task-failed")).count("task-failed") == 1


def test_soft_limit_may_be_caught(fleet: Fleet) -> None:
    result = fleet.send("careful", "caught", soft_time_limit=0.1, time_limit=30)

    assert result.get(timeout=WAIT_S) == "caught"
    assert "caught soft" in fleet.noted()


def test_limit_that_passed_while_the_hub_was_blocked_strikes_when_it_moves(fleet: Fleet) -> None:
    result = fleet.send("compute", 0.5, time_limit=0.1)

    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=WAIT_S)


def test_limits_that_were_set_from_afar_hold_for_the_next_run(fleet: Fleet) -> None:
    control = fleet.client.control
    control.time_limit("limits_app.wait", soft=None, hard=0.1, reply=True)

    with pytest.raises(TimeLimitExceeded):
        fleet.send("wait", "from afar").get(timeout=WAIT_S)

    control.time_limit("limits_app.wait", soft=None, hard=None, reply=True)
    assert fleet.send("wait", "no limit", 0.3).get(timeout=WAIT_S) == "no limit"


# --- rate limits ----------------------------------------------------------------------------------


def test_limited_tasks_begin_no_more_often_than_they_may_and_hold_up_no_other(
    fleet: Fleet,
) -> None:
    results = [fleet.send("limited", number) for number in range(12)]
    other = fleet.send("add", 1, 2)

    assert other.get(timeout=WAIT_S) == 3
    assert not results[-1].ready()
    began_s = [result.get(timeout=WAIT_S) for result in results]
    # In order, and none too early. The tenth of a second is the token's; the task runs a bit later.
    assert all(later - earlier > 0.08 for earlier, later in pairwise(began_s))
    assert began_s[-1] - began_s[0] > 11 * 0.1 - 0.02
    fleet.server.wait_settled()


def test_rate_limit_is_changed_from_afar_also_for_what_waits(fleet: Fleet) -> None:
    control = fleet.client.control
    control.rate_limit("limits_app.limited", "1/h", reply=True)
    results = [fleet.send("limited", number) for number in range(5)]
    wait_until(lambda: len(fleet.inspect("reserved")) >= 4, WAIT_S)

    control.rate_limit("limits_app.limited", "1000/s", reply=True)

    assert all(result.get(timeout=WAIT_S) for result in results)
    control.rate_limit("limits_app.limited", "10/s", reply=True)
    fleet.server.wait_settled()


# --- drain ----------------------------------------------------------------------------------------


def test_drained_worker_gives_back_what_has_not_begun_and_finishes_what_runs(
    fleet: Fleet,
) -> None:
    def drain(on: bool) -> None:
        fleet.client.control.broadcast("drain", {"on": on}, reply=True)

    running = fleet.send("wait", "runs on", 1)
    fleet.wait_noted("runs on begins")
    later = fleet.send("add", 1, 2, countdown=0.5)
    wait_until(lambda: fleet.inspect("scheduled"), WAIT_S)

    drain(True)
    waiting = fleet.send("add", 3, 4)

    assert running.get(timeout=WAIT_S) == "runs on"
    wait_until(lambda: not fleet.server.unacked(), WAIT_S)
    assert set(fleet.server.queued_ids()) == {later.id, waiting.id}
    drain(False)
    assert (later.get(timeout=WAIT_S), waiting.get(timeout=WAIT_S)) == (3, 7)
    fleet.server.wait_settled()
