"""A worker whose hub is blocked by a task that computes: it answers, beats, and says by what."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest

from greenq import Greenq
from greenq.cli import main
from tests.servers import Process, Server, greenq_worker, valkey
from tests.support import wait_until

WAIT_S = 15

# The one that computes takes from a queue of its own.
BLOCKED = "busy@hub"
OTHERS = ("left@hub", "right@hub")
ALL = {BLOCKED, *OTHERS}

BEAT_S = 1.0
# Celery's monitors hold a worker for dead after two intervals; the rest is for a slow machine.
GAP_S = 2 * BEAT_S + 0.5

# Long enough for the others' gossip, which looks every five seconds who has been silent for two
# intervals.
LONG_S = 5 + 2 * BEAT_S + 1


@dataclass(frozen=True)
class Fleet:
    """Three workers, a client beside them and their server."""

    workers: dict[str, Process]
    client: Greenq
    server: Server

    def block(self, seconds: float) -> str:
        """Have a task compute for so long; return its name and id when it does."""
        task_id = self.client.send_task("limits_app.compute", (seconds,), queue="busy").id
        wait_until(lambda: self.blocker() is not None, WAIT_S)
        return f"limits_app.compute[{task_id}]"

    def blocker(self) -> dict[str, Any] | None:
        """Return what blocks the hub, as the worker says."""
        (reply,) = self.client.control.ping([BLOCKED], timeout=WAIT_S)
        return reply[BLOCKED].get("blocked")

    def wait_free(self) -> None:
        wait_until(lambda: self.blocker() is None, WAIT_S)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    settings = {"worker_shutdown_grace": 0.1, "worker_hub_lag_warning": 0.5}
    beat = ("--heartbeat-interval", str(BEAT_S))

    def worker(node: str, *options: str) -> Any:
        return greenq_worker(
            server.url, "-n", node, *beat, *options, app="limits_app", settings=settings
        )

    with (
        valkey() as server,
        worker(BLOCKED, "-Q", "busy") as busy,
        worker(OTHERS[0]) as left,
        worker(OTHERS[1]) as right,
    ):
        client = Greenq("client", broker=server.url, set_as_current=False)
        wait_until(lambda: len(client.control.ping()) == len(ALL), WAIT_S)
        yield Fleet(dict(zip((BLOCKED, *OTHERS), (busy, left, right), strict=True)), client, server)
        client.close()


def names(blocked: dict[str, Any], task: str) -> bool:
    """Tell whether a worker says that this task blocks it, and where, and for how long."""
    return blocked["by"] == task and "limits_app.py:" in blocked["where"] and blocked["for_s"] > 0


@pytest.mark.parametrize("command", ["ping", "status", "hub"])
def test_all_workers_answer_and_the_blocked_one_says_by_what(fleet: Fleet, command: str) -> None:
    task = fleet.block(1.5)
    replies = getattr(fleet.client.control.inspect(timeout=WAIT_S), command)()
    assert replies.keys() == ALL
    assert names(replies[BLOCKED]["blocked"], task)
    assert [replies[node].get("blocked") for node in OTHERS] == [None, None]
    # It was still blocked when it had answered.
    assert fleet.blocker() is not None
    fleet.wait_free()


def test_what_needs_the_hub_is_answered_by_the_others_then_and_by_all_later(fleet: Fleet) -> None:
    task = fleet.block(2)
    inspect = fleet.client.control.inspect(timeout=0.5)
    assert inspect.scheduled().keys() == set(OTHERS)
    # It needs no hub.
    assert inspect.active().keys() == ALL
    assert names(inspect.ping()[BLOCKED]["blocked"], task)

    fleet.wait_free()
    assert inspect.active().keys() == ALL
    hub = fleet.client.control.inspect(BLOCKED).hub()
    assert hub["blocked"] is None
    blockers = [each for each in hub["blockers"] if each["by"] == task]
    assert [each["for_s"] >= 1.5 for each in blockers] == [True]
    assert fleet.workers[BLOCKED].text.count(f"by {task} at ") == 1


@pytest.mark.parametrize("behind", [False, True])
def test_what_comes_along_with_an_answer_is_not_forgotten(fleet: Fleet, behind: bool) -> None:
    # The socket, at which the worker waits, tells nothing of what has been read already.
    connection = fleet.client.transport.client.connection(pushes=True)
    connection.subscribe(["channel"])
    assert not connection.has_answer()
    if behind:
        connection.send([("PING",)])
        fleet.server.client.publish("channel", "news")
        with socket.socket(fileno=os.dup(connection.fileno())) as peeked:
            peeked.settimeout(WAIT_S)
            wait_until(lambda: b"news" in peeked.recv(4096, socket.MSG_PEEK), WAIT_S)
        assert connection.receive("PING") == b"PONG"
    else:
        assert connection.call("PUBLISH", "channel", "news") == 1
    assert connection.has_answer()
    assert [message.data for message in connection.messages()] == [b"news"]
    assert not connection.has_answer()
    connection.close()
    assert not connection.has_answer()


def test_command_line_says_it(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*argv: str) -> str:
        assert main([*argv, "-b", fleet.server.url, "--timeout", str(WAIT_S)]) == 0
        return capsys.readouterr().out

    task = fleet.block(2)
    pinged = run("ping").splitlines()
    status = json.loads(run("status", "--json"))
    assert {line.partition(":")[0] for line in pinged} == ALL
    assert [line for line in pinged if "pong, blocked" in line and task in line]
    assert {node: reply["ok"] for node, reply in status.items()} == {
        BLOCKED: "blocked", OTHERS[0]: "ok", OTHERS[1]: "ok",
    }  # fmt: skip
    fleet.wait_free()


def test_elections_have_one_winner_while_a_worker_is_blocked(fleet: Fleet) -> None:
    # Longer than votes are waited for: the others decide alone.
    fleet.block(3)
    elections = [f"election-{number}" for number in range(8)]
    for each in elections:
        options = {"queue": "won", "task_id": each}
        fleet.client.control.election(each, "task", {"task": "limits_app.add", "options": options})

    def are_decided() -> bool:
        texts = [worker.text for worker in fleet.workers.values()]
        return all(f"elected for task {each}" in text for each in elections for text in texts)

    wait_until(are_decided, WAIT_S)
    assert sorted(fleet.server.queued_ids("won")) == elections


@pytest.mark.slow
def test_blocked_worker_beats_and_is_lost_only_when_it_dies(fleet: Fleet) -> None:
    beats: list[dict[str, Any]] = []
    receiver = fleet.client.events.Receiver(
        {"worker-heartbeat": lambda event: event["hostname"] == BLOCKED and beats.append(event)}
    )

    def hear(until: Callable[[], object]) -> None:
        deadline_s = time.monotonic() + LONG_S + WAIT_S
        while not until():
            assert time.monotonic() < deadline_s
            for event in receiver.wait(0.1):
                receiver.process(event["type"], event)

    def saying() -> list[dict[str, Any]]:
        return [beat for beat in beats if beat.get("blocked")]

    receiver.open()
    try:
        hear(lambda: beats)
        assert not saying()
        task = fleet.block(LONG_S)
        hear(lambda: saying() and not beats[-1].get("blocked"))
    finally:
        receiver.close()

    *during, last = saying()
    assert all(names(beat["blocked"], task) for beat in during)
    # The last one may find the hub on its way on, with the task behind it.
    assert names(last["blocked"], task) or last["blocked"]["by"] == "no task"
    lasted_s = [beat["blocked"]["for_s"] for beat in saying()]
    assert lasted_s == sorted(lasted_s)
    assert lasted_s[-1] > LONG_S - GAP_S
    gaps_s = [
        later["local_received"] - earlier["local_received"] for earlier, later in pairwise(beats)
    ]
    assert max(gaps_s) < GAP_S
    # Every beat is of its own time, and of its own number.
    assert [beat["clock"] for beat in beats] == sorted({beat["clock"] for beat in beats})
    lost = f"missed heartbeat from {BLOCKED}"
    assert not any(lost in fleet.workers[node].text for node in OTHERS)
    # Nor does it hold the others for lost, whom it could not hear.
    assert "missed heartbeat" not in fleet.workers[BLOCKED].text

    fleet.workers[BLOCKED].kill()
    for node in OTHERS:
        fleet.workers[node].wait_text(lost, WAIT_S)
