"""What follows a task is sent once, whatever breaks at whichever step of the hand-over.

A chain with a chord in it, run one task at a time, settles in six calls: the first step with the
chord's header, one part, the last part (withheld), the last part with the body, the body with the
step after it, and that step. Each of them fails once, by a cut connection or a killed worker.
"""

from __future__ import annotations

import json
import signal
from collections import defaultdict

import pytest

from greenq import chain, group
from tests.faults.conftest import Scene
from tests.faults.proxy import SETTLE, Fault, When
from tests.support import wait_until

pytestmark = pytest.mark.faults

# Five at least: the ends of b and c may be written by one call.
CALLS = range(1, 6)
WHOLE = ["e", ["d", [["b", ["a"]], ["c", ["a"]]]]]


def send(scene: Scene) -> None:
    app = scene._app

    def step(name: str) -> object:
        return app.signature("faults.step", task_id=name)

    chain(
        step("a"), group(step("b"), step("c"), app=app), step("d"), step("e"), app=app
    ).apply_async()


def result(scene: Scene, task_id: str) -> object:
    meta = scene.server.client.get(f"celery-task-meta-{task_id}")
    return None if meta is None else json.loads(meta)["result"]


def is_over(scene: Scene) -> bool:
    return result(scene, "e") is not None and not scene.queued() and not scene.reserved()


def assert_sent_once(scene: Scene) -> dict[str, int]:
    """Check that each task had one message and the right result; return how often each ran."""
    tags: defaultdict[str, set[str]] = defaultdict(set)
    runs: defaultdict[str, int] = defaultdict(int)
    for line, count in scene.ran().items():
        task_id, _, tag = line.partition(":")
        tags[task_id].add(tag)
        runs[task_id] += count
    assert {task_id: len(found) for task_id, found in tags.items()} == dict.fromkeys("abcde", 1)
    assert result(scene, "e") == WHOLE
    return runs


@pytest.mark.parametrize("when", [When.BEFORE, When.EXECUTED], ids=lambda when: when.value)
@pytest.mark.parametrize("number", CALLS)
def test_a_cut_sends_and_runs_everything_once(scene: Scene, number: int, when: When) -> None:
    fault = scene.proxy.plan(Fault(SETTLE, when, number=number))
    send(scene)
    worker = scene.worker("-c", "1", "--without-heartbeat")
    fault.wait_fired()

    wait_until(lambda: is_over(scene), 20)

    assert assert_sent_once(scene) == dict.fromkeys("abcde", 1)
    assert worker.alive


@pytest.mark.parametrize("when", [When.BEFORE, When.EXECUTED], ids=lambda when: when.value)
@pytest.mark.parametrize("number", CALLS)
def test_a_kill_sends_everything_once(scene: Scene, number: int, when: When) -> None:
    fault = Fault(
        SETTLE, when, number=number,
        strike=lambda: scene.workers[0].send_signal(signal.SIGSTOP),
    )  # fmt: skip
    scene.proxy.plan(fault)
    send(scene)
    scene.worker("-c", "1", "--without-heartbeat")
    fault.wait_fired()
    scene.workers[0].kill()
    scene.worker("-c", "1", "--without-heartbeat", direct=True)

    wait_until(lambda: is_over(scene), 40)

    runs = assert_sent_once(scene)
    # Only what was in hand may run again: at most b and c, as the end of b is written while c runs.
    assert sum(runs.values()) <= 7
