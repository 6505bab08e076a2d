"""A finished task's outcome is written as a whole, whatever breaks during the write.

The promise: a message is acknowledged only after its outcome is stored; a failed write is repeated
until the server has it, and no task runs again because of that.
"""

from __future__ import annotations

import signal
from collections import Counter

import pytest

from tests.faults.conftest import Scene
from tests.faults.proxy import SETTLE, Command, Fault, How, Kind, When, stores
from tests.support import wait_until

pytestmark = pytest.mark.faults

COUNT = 20


def is_text(command: Command) -> bool:
    """Count the calls with the script's text, which are sent if the server does not know it."""
    return SETTLE(command) and command[0] == b"EVAL"


# One write is one call of the script, with results, moves and acknowledgements together.
POINTS = [
    pytest.param(kind, when, id=f"{name} {when.value}")
    for name, kind in (("settle", stores), ("settle, forgotten", is_text))
    for when in When
]


@pytest.fixture(autouse=True)
def _no_script_is_known(scene: Scene) -> None:
    # The worker does not load it before its first outcome either, since it runs without heartbeats,
    # whose first event would.
    scene.server.client.script_flush()


@pytest.mark.parametrize(("kind", "when"), POINTS)
def test_everything_is_written_once_when_the_connection_is_cut(
    scene: Scene, kind: Kind, when: When
) -> None:
    fault = scene.proxy.plan(Fault(kind, when))
    scene.send(COUNT)
    worker = scene.worker("-c", "10", "--without-heartbeat")
    fault.wait_fired()

    wait_until(scene.is_done)

    assert scene.ran() == Counter(scene.ids)
    assert worker.alive


@pytest.mark.parametrize(("kind", "when"), POINTS)
def test_no_message_is_gone_without_its_result_when_the_worker_is_killed(
    scene: Scene, kind: Kind, when: When
) -> None:
    # Given a worker that is stopped at this very point of its first write, and killed there.
    fault = Fault(kind, when, strike=lambda: scene.workers[0].send_signal(signal.SIGSTOP))
    scene.proxy.plan(fault)
    scene.send(COUNT)
    scene.worker("-c", "10", "--without-heartbeat")
    fault.wait_fired()
    scene.workers[0].kill()

    # Then each message is somewhere, once, or its result is stored.
    places = scene.queued() + scene.reserved()
    assert set(places) | scene.stored() == set(scene.ids)
    assert set(places.values()) == {1}
    # And no message is both: reserved until its result is there, and not a moment longer.
    assert not set(places) & scene.stored()


def test_write_that_hangs_is_written_again(scene: Scene) -> None:
    # A half-open connection: only a timeout shows that it is gone.
    fault = scene.proxy.plan(Fault(stores, When.EXECUTED, How.FREEZE))
    scene.send(COUNT)
    scene.worker("-c", "10", "--without-heartbeat")
    fault.wait_fired()

    wait_until(scene.is_done, 20)

    assert scene.ran() == Counter(scene.ids)
