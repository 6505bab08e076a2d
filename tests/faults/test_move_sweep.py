"""A message is in exactly one place at every point of every move except the take.

The promise: whatever fails at an early acknowledgement, a retry, a burial, a requeue, at parking,
promoting or recovering, nothing is lost and nothing that is done runs again.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from greenq import Greenq
from greenq.transport.client import load_script
from tests.faults.conftest import Scene
from tests.faults.proxy import BLMOVE, SETTLE, Fault, Kind, When, named, script, stores
from tests.servers import ROOT, Process, spawn_greenq
from tests.support import wait_until

pytestmark = pytest.mark.faults

SLOTS = 10

# A short lease, since the renewal shows a worker what is due.
PARKING: dict[str, Any] = {"worker_lease": 0.9, "task_eta_horizon": 0.2}
PARKED_S = 1.0

# The workers' app. A redelivered run or a retry succeeds, so every message that is not done runs
# exactly once more, wherever its worker left it.
APP = """
import json, os, time
from pathlib import Path
from greenq import Greenq, Reject

app = Greenq("moves", broker=os.environ["TEST_BROKER"], **json.loads(os.environ["TEST_SETTINGS"]))

def begin(task):
    with open(os.environ["TEST_RAN"], "a") as lines:
        lines.write(task.request.id + "\\n")
    return task.request.retries == 0 and not task.request.delivery_info["redelivered"]

@app.task(name="moves.mark", bind=True)
def mark(self, number):
    begin(self)
    return number

@app.task(name="moves.early", bind=True, acks_late=False)
def early(self, number):
    begin(self)
    return number

@app.task(name="moves.requeue", bind=True)
def requeue(self, number):
    if begin(self):
        raise Reject("again", requeue=True)
    return number

@app.task(name="moves.retry", bind=True)
def retry(self, number):
    if begin(self):
        raise self.retry(countdown=0)
    return number

@app.task(name="moves.hold", bind=True)
def hold(self, number):
    begin(self)
    while not Path(os.environ["TEST_GATE"]).exists():
        time.sleep(0.01)
    return number
"""


class Places(NamedTuple):
    """Where the messages are at one instant, by task id, and the stored states of tasks.

    `again` are the reserved messages that have been on their queue again: a worker may take them at
    the same moment.
    """

    queued: Counter[str]
    reserved: Counter[str]
    parked: Counter[str]
    dead: Counter[str]
    states: dict[str, str]
    again: Counter[str]

    @property
    def messages(self) -> Counter[str]:
        return self.queued + self.reserved + self.parked + self.dead

    @property
    def done(self) -> set[str]:
        return {task_id for task_id, state in self.states.items() if state == "SUCCESS"}


class Moves:
    """A scene whose workers run the app above."""

    def __init__(self, scene: Scene, folder: Path) -> None:
        self.scene = scene
        self.client = scene.server.client
        self._folder = folder
        (folder / "move_app.py").write_text(APP)

    def worker(self, *, direct: bool = False, **settings: object) -> Process:
        """Start a worker behind the proxy, or `direct` to the server; the scene kills it."""
        scene, folder = self.scene, self._folder
        worker = spawn_greenq(
            scene.server.url if direct else scene.proxy.url,
            folder / f"worker{len(scene.workers)}.log",
            *("-c", str(SLOTS)),
            app="move_app",
            settings=settings,
            env={
                "PYTHONPATH": os.pathsep.join(map(str, (ROOT, folder))),
                "TEST_RAN": str(folder / "ran"),
                "TEST_GATE": str(folder / "gate"),
            },
        )
        scene.workers.append(worker)
        return worker

    def send(self, count: int, task: str, **options: Any) -> None:
        """Send tasks directly to the server, each with its number as argument and in its id."""
        scene = self.scene
        with closing(Greenq("sender", broker=scene.server.url, set_as_current=False)) as app:
            for number in range(count):
                task_id = f"task-{number}"
                scene.ids.append(app.send_task(task, (number,), task_id=task_id, **options).id)

    def places(self) -> Places:
        """Look at all places in one transaction."""
        with self.client.pipeline() as look:
            for step in ("", "\x06\x163", "\x06\x166", "\x06\x169"):
                look.lrange(f"celery{step}", 0, -1)
            look.lrange("greenq.inbox.celery", 0, -1)
            look.hgetall("unacked")
            look.zrange("unacked_index", 0, -1)
            look.zrange("greenq.eta.celery", 0, -1)
            look.lrange("greenq.dead.celery", 0, -1)
            look.mget([f"celery-task-meta-{task_id}" for task_id in self.scene.ids])
            *lists, held, index, parked, dead, metas = look.execute()
        assert sorted(held) == sorted(index)
        states = zip(self.scene.ids, metas, strict=True)
        records = [json.dumps(json.loads(record)[0]) for record in held.values()]
        return Places(
            queued=_ids(message for messages in lists for message in messages),
            reserved=_ids(records),
            parked=_ids(member.partition(b"|")[2] for member in parked),
            dead=Counter(json.loads(letter)["task_id"] for letter in dead),
            states={each: json.loads(meta)["status"] for each, meta in states if meta},
            again=_ids(record for record in records if _has_moved(record)),
        )


def _has_moved(message: str) -> bool:
    headers = json.loads(message)["headers"]
    return bool(headers.get("redelivered") or headers["retries"] or headers["eta"])


def _ids(messages: Iterable[str | bytes]) -> Counter[str]:
    return Counter(json.loads(message)["headers"]["id"] for message in messages)


@pytest.fixture
def moves(scene: Scene, tmp_path: Path) -> Moves:
    # Scripts are loaded first, so that the faulty call executes the script in whichever test is
    # first.
    for name in ("settle", "promote", "lease", "take", "register", "claim", "leave"):
        scene.server.client.script_load(load_script(name).source)
    return Moves(scene, tmp_path)


# --- how a worker arrives at each step ------------------------------------------------------------


def _run(task: str) -> Callable[[Moves, Fault], None]:
    def arrive(moves: Moves, fault: Fault) -> None:
        moves.send(SLOTS, task)
        moves.scene.proxy.plan(fault)
        moves.worker()

    return arrive


def _poison(moves: Moves, fault: Fault) -> None:
    moves.send(SLOTS, "moves.mark")
    for message in moves.client.lrange("celery", 0, -1):
        moves.client.lpush("celery", json.dumps(json.loads(message) | {"body": "!"}))
        moves.client.rpop("celery")
    moves.scene.proxy.plan(fault)
    moves.worker()


def _far(moves: Moves, fault: Fault) -> None:
    # Sent when the worker waits, so that the ETAs are still far however long it takes to start.
    moves.worker(**PARKING)
    wait_until(lambda: moves.scene.proxy.sent(BLMOVE))
    moves.scene.proxy.plan(fault)
    moves.send(SLOTS, "moves.mark", countdown=PARKED_S)


def _due(moves: Moves, fault: Fault) -> None:
    moves.send(SLOTS, "moves.mark")
    waiting: Any = moves.client.lrange("celery", 0, -1)
    for message in waiting:
        moves.client.zadd("greenq.eta.celery", {b"1|%b" % message: time.time()})
    moves.client.delete("celery")
    moves.scene.proxy.plan(fault)
    moves.worker()


def _orphaned(moves: Moves, fault: Fault) -> None:
    moves.send(SLOTS, "moves.hold")
    first = moves.worker(direct=True)
    wait_until(lambda: moves.scene.ran().total() == SLOTS)
    first.kill()
    moves.scene.proxy.plan(fault)
    moves.worker()


def _shutdown(moves: Moves, fault: Fault) -> None:
    moves.send(2 * SLOTS, "moves.hold")
    worker = moves.worker(worker_prefetch_multiplier=2)
    wait_until(lambda: moves.places().reserved.total() == 2 * SLOTS)
    wait_until(lambda: moves.scene.ran().total() == SLOTS)
    moves.scene.proxy.plan(fault)
    worker.send_signal(signal.SIGTERM)


def _stop(moves: Moves, fault: Fault) -> None:
    # At the end of its stop, when everything it held is settled.
    moves.send(SLOTS, "moves.mark")
    worker = moves.worker()
    wait_until(lambda: len(moves.places().done) == SLOTS)
    wait_until(lambda: not moves.places().messages)
    moves.scene.proxy.plan(fault)
    worker.send_signal(signal.SIGTERM)


# --- the steps ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """One command on the path of a message.

    Attributes:
        arrive: brings a worker to it.
        kind: the command.
        goal: where a message is after the command and not before; "" if it moves none.
        runs: how often each task runs if no worker dies at the fault.
        early: whether messages are acknowledged before their tasks start.
    """

    arrive: Callable[[Moves, Fault], None]
    kind: Kind
    goal: str
    runs: int = 1
    early: bool = False


STEPS = {
    "early ack": Step(_run("moves.early"), SETTLE, "", early=True),
    "early ack, outcome": Step(_run("moves.early"), stores, "", early=True),
    "requeue": Step(_run("moves.requeue"), SETTLE, "queued", runs=2),
    "retry": Step(_run("moves.retry"), SETTLE, "queued", runs=2),
    "bury": Step(_poison, SETTLE, "dead", runs=0),
    "park": Step(_far, SETTLE, "parked"),
    "promote": Step(_due, script("promote"), "queued"),
    "recover, read": Step(_orphaned, named("HMGET"), "", runs=2),
    "recover, move": Step(_orphaned, SETTLE, "queued", runs=2),
    "recover, claim": Step(_orphaned, script("claim"), "", runs=2),
    "recover, forget": Step(_orphaned, script("leave"), "", runs=2),
    "register": Step(_run("moves.mark"), script("register"), ""),
    "take": Step(_run("moves.mark"), script("take"), ""),
    "close": Step(_stop, script("leave"), ""),
    "give back": Step(_shutdown, SETTLE, "queued"),
}


def meet(moves: Moves, step: Step, when: When) -> Places:
    """Stop a worker at a point of a step, and check that each message is in one place."""
    scene = moves.scene
    begun: list[Counter[str]] = []

    def strike() -> None:
        begun.append(scene.ran())
        # Keep it there during the inspection.
        scene.workers[-1].send_signal(signal.SIGSTOP)

    fault = Fault(step.kind, when, strike=strike)
    step.arrive(moves, fault)
    fault.wait_fired()
    places = moves.places()
    if step.early:
        # No task starts before the worker knows that its acknowledgement is on the server.
        assert not begun[0].keys() & places.messages.keys()
        assert set(places.messages.values()) <= {1}
        if step.kind is SETTLE:
            assert not begun[0]
            assert (places.messages == Counter(scene.ids)) is (when is When.BEFORE)
    else:
        assert places.messages + Counter(places.done) == Counter(scene.ids)
    assert {each for each, state in places.states.items() if state == "FAILURE"} == set(places.dead)
    if step.goal:
        reached = getattr(places, step.goal)
        if step.goal == "queued":
            reached = reached + places.again
        assert bool(reached) is (when is not When.BEFORE)
    return places


def check_ends(moves: Moves, lost: Iterable[str] = ()) -> None:
    """Wait until all tasks except the lost have ended and no message is left unless buried."""
    ids = set(moves.scene.ids) - set(lost)

    def ended() -> bool:
        places = moves.places()
        return places.messages == places.dead and ids <= places.done | set(places.dead)

    wait_until(ended)
    dead = moves.places().dead
    assert set(dead.values()) <= {1}
    assert not dead.keys() & moves.places().done


POINTS = [
    pytest.param(step, when, id=f"{name}: {when.value}")
    for name, step in STEPS.items()
    for when in When
]


@pytest.mark.parametrize(("step", "when"), POINTS)
def test_each_task_ends_once_when_the_connection_is_cut(
    moves: Moves, step: Step, when: When
) -> None:
    meet(moves, step, when)

    scene, worker = moves.scene, moves.scene.workers[-1]
    worker.send_signal(signal.SIGCONT)
    scene.open_gate()
    if step.arrive in (_shutdown, _stop):
        assert worker.wait_exit() == 0
        # A broken connection does not keep it from deregistering: it is not taken for dead.
        assert not moves.client.exists("greenq.leases")
        assert moves.places().messages == moves.places().queued
        moves.worker(direct=True)

    check_ends(moves)
    assert scene.ran() == Counter({task_id: step.runs for task_id in scene.ids if step.runs})
    assert scene.workers[-1].alive


@pytest.mark.parametrize(("step", "when"), POINTS)
def test_each_message_not_done_runs_once_more_when_the_worker_is_killed(
    moves: Moves, step: Step, when: When
) -> None:
    places = meet(moves, step, when)
    scene = moves.scene
    scene.workers[-1].kill()
    before = scene.ran()

    scene.open_gate()
    moves.worker(direct=True, **PARKING)

    # A task acknowledged early does not run again, by design.
    lost = set(scene.ids) - set(places.messages) - places.done
    assert step.early or not lost
    check_ends(moves, lost)
    again = places.messages if step.runs else Counter[str]()
    assert scene.ran() - before == again
    assert not step.early or set(scene.ran().values()) <= {1}
    assert not set(again) & places.done
