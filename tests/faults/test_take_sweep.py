"""A message is in exactly one durable place at every point of a take, whatever fails there.

The promise: kill -9 or a broken connection at any moment loses no message and duplicates none.
"""

from __future__ import annotations

import signal
from collections import Counter

import pytest

from greenq.transport.client import load_script
from tests.faults.conftest import Scene
from tests.faults.proxy import BLMOVE, SETTLE, TAKE, Fault, How, Kind, When
from tests.support import wait_until

pytestmark = pytest.mark.faults

COUNT = 20
SLOTS = 10
# One take requests half of the slots.
TAKEN = SLOTS // 2

POINTS = [
    pytest.param(kind, when, id=f"{name} {when.value}")
    for name, kind in (("take", TAKE), ("BLMOVE", BLMOVE))
    for when in When
]


def wait_until_waiting(scene: Scene) -> None:
    """Wait until the worker has found an empty queue and blocks on it."""
    wait_until(lambda: scene.proxy.sent(BLMOVE) > 0)


def meet(scene: Scene, kind: Kind, fault: Fault) -> None:
    """Bring the worker to the fault, with COUNT tasks that it finds or waits for."""
    if kind is TAKE:
        scene.send(COUNT)
        scene.proxy.plan(fault)
        scene.worker("-c", str(SLOTS))
    else:
        scene.proxy.plan(fault)
        scene.worker("-c", str(SLOTS))
        if fault.when is not When.BEFORE:
            wait_until_waiting(scene)
            scene.send(COUNT)
    fault.wait_fired()
    if not scene.ids:
        scene.send(COUNT)


def leases(scene: Scene) -> list[str]:
    return [member.decode() for member in scene.server.client.zrange("greenq.leases", 0, -1)]


def check_one_place(scene: Scene) -> None:
    assert scene.queued() + scene.reserved() == Counter(scene.ids)


def check_second_worker_runs_all(scene: Scene, before: Counter[str]) -> None:
    """Check that a new worker runs what is queued and what the dead one held, each once."""
    scene.open_gate()
    scene.worker("-c", str(SLOTS), direct=True)
    wait_until(scene.is_done)
    assert scene.ran() - before == Counter(scene.ids)


@pytest.mark.parametrize(("kind", "when"), POINTS)
def test_message_is_in_one_place_when_the_worker_is_killed(
    scene: Scene, kind: Kind, when: When
) -> None:
    # Given a worker that is stopped at this very point, so that it cannot go on until its end.
    fault = Fault(kind, when, strike=lambda: scene.workers[0].send_signal(signal.SIGSTOP))

    # When it is killed there.
    meet(scene, kind, fault)
    scene.workers[0].kill()

    # Then each message is where the point says, once.
    check_one_place(scene)
    reserved = TAKEN if kind is TAKE and when is not When.BEFORE else 0
    assert scene.reserved().total() == reserved
    moved = kind is BLMOVE and when is not When.BEFORE
    assert scene.server.client.llen("greenq.inbox.celery") == int(moved)
    assert not scene.ran()
    # And another worker runs them all.
    check_second_worker_runs_all(scene, scene.ran())


def test_message_is_in_one_place_when_the_worker_is_killed_while_tasks_run(scene: Scene) -> None:
    scene.send(COUNT, "faults.hold")
    worker = scene.worker("-c", str(SLOTS))
    wait_until(lambda: scene.ran().total() == SLOTS)

    worker.kill()

    check_one_place(scene)
    assert scene.reserved() == scene.ran()
    check_second_worker_runs_all(scene, scene.ran())


@pytest.mark.parametrize("when", When)
def test_message_is_in_one_place_when_who_gives_it_back_is_killed_too(
    scene: Scene, when: When
) -> None:
    # Given a worker that died with tasks, and another that gives them back.
    scene.send(COUNT, "faults.hold")
    first = scene.worker("-c", str(SLOTS), direct=True)
    wait_until(lambda: scene.ran().total() == SLOTS)
    first.kill()
    fault = Fault(SETTLE, when, strike=lambda: scene.workers[1].send_signal(signal.SIGSTOP))
    scene.proxy.plan(fault)
    second = scene.worker("-c", "1")

    # When that one is killed, too, at this very point.
    fault.wait_fired()
    second.kill()

    check_one_place(scene)
    check_second_worker_runs_all(scene, scene.ran())


@pytest.mark.parametrize(("kind", "when"), POINTS)
def test_every_task_runs_once_when_the_connection_is_cut(
    scene: Scene, kind: Kind, when: When
) -> None:
    meet(scene, kind, Fault(kind, when))

    wait_until(scene.is_done)

    assert scene.ran() == Counter(scene.ids)
    assert scene.workers[0].alive


@pytest.mark.slow
def test_every_task_runs_once_when_the_answer_to_a_take_never_comes(scene: Scene) -> None:
    # A half-open connection: only a timeout shows that it is gone.
    meet(scene, TAKE, Fault(TAKE, When.EXECUTED, How.FREEZE))

    wait_until(scene.is_done, 20)

    assert scene.ran() == Counter(scene.ids)


def test_take_that_arrives_late_takes_nothing(scene: Scene) -> None:
    # Given a take that is still on its way when its connection has broken, as after a partition:
    # the worker repeated it, the first of the messages is done, and the others run.
    scene.server.client.script_load(load_script("take").source)
    fault = Fault(TAKE, When.BEFORE, How.LATE)
    scene.send(SLOTS, "faults.hold")
    scene.proxy.plan(fault)
    scene.worker("-c", str(SLOTS))
    fault.wait_fired()
    wait_until(lambda: scene.ran().total() == SLOTS)
    scene.open_gate(0)
    wait_until(lambda: scene.reserved().total() == SLOTS - 1)
    scene.send(COUNT, "faults.hold")
    wait_until(lambda: scene.ran().total() == SLOTS + 1)

    # When it arrives after all.
    fault.let_go.set()
    assert fault.over.wait(10)

    # Then its number is not above that of the last one, and it takes nothing: it overwrites no
    # record of a running task, and every task runs once.
    assert fault.answer.startswith(b"*2\r\n:0\r\n"), fault.answer
    assert scene.queued() + scene.reserved() == Counter(scene.ids[1:])
    scene.open_gate()
    wait_until(scene.is_done)
    assert scene.ran() == Counter(scene.ids)


def test_take_that_arrives_after_its_worker_died_takes_nothing(scene: Scene) -> None:
    # Given a worker that was killed while its take was on the way, and that nobody misses any more.
    scene.server.client.script_load(load_script("take").source)
    fault = Fault(
        TAKE, When.BEFORE, How.LATE, strike=lambda: scene.workers[0].send_signal(signal.SIGSTOP)
    )
    scene.proxy.plan(fault)
    scene.worker()
    fault.wait_fired()
    scene.workers[0].kill()
    second = scene.worker("-c", "1", direct=True)
    wait_until(lambda: [f"/{second.pid}:" in member for member in leases(scene)] == [True])
    second.send_signal(signal.SIGSTOP)
    scene.send(COUNT)

    # When it arrives after all.
    fault.let_go.set()
    assert fault.over.wait(10)

    # Then there is no lease any more whose end would have others give back what it took.
    assert fault.answer.startswith(b"-LAPSED"), fault.answer
    assert scene.queued() == Counter(scene.ids)
    second.send_signal(signal.SIGCONT)
    wait_until(scene.is_done, 20)
    assert scene.ran() == Counter(scene.ids)
