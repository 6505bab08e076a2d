"""What the server refuses is not lost: it stays in place until the server accepts it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import redis

from tests.faults.conftest import Scene
from tests.faults.proxy import BLMOVE
from tests.support import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.smoke]

COUNT = 20


def run_out_of_memory(client: redis.Redis) -> None:
    client.config_set("maxmemory", 1)


def get_memory(client: redis.Redis) -> None:
    client.config_set("maxmemory", 0)


def become_replica(client: redis.Redis) -> None:
    client.replicaof("127.0.0.1", "1")


def become_primary(client: redis.Redis) -> None:
    client.replicaof("NO", "ONE")


@pytest.mark.parametrize(
    ("refuse", "relent"),
    [
        pytest.param(run_out_of_memory, get_memory, id="OOM"),
        pytest.param(become_replica, become_primary, id="READONLY"),
    ],
)
def test_no_message_is_acknowledged_while_its_result_is_refused(
    scene: Scene, refuse: Callable[[redis.Redis], None], relent: Callable[[redis.Redis], None]
) -> None:
    # Given tasks that run on a server that takes no result by the time they end.
    scene.send(COUNT, "faults.hold")
    worker = scene.worker("-c", str(COUNT))
    wait_until(lambda: scene.ran().total() == COUNT)
    refuse(scene.server.client)
    try:
        scene.open_gate()
        worker.wait_text("outcomes are waiting to be written")
        wait_until(lambda: worker.text.count("succeeded in") == COUNT)

        # Then each message stays reserved as long as its result is not stored.
        assert scene.reserved() == Counter(scene.ids)
        assert not scene.stored()
    finally:
        relent(scene.server.client)
    # And all is written when it takes them again, without a second run.
    wait_until(scene.is_done)
    assert scene.ran() == Counter(scene.ids)


def test_take_loses_nothing_when_another_key_is_no_list(scene: Scene) -> None:
    # Given two queues, the second of which is a key of another type.
    scene.server.client.set("wrong", "a string")
    scene.send(COUNT)

    worker = scene.worker("-c", "5", "-Q", "celery,wrong")

    # Then what is popped from the first is not lost in a script that fails because of the second.
    wait_until(scene.is_done)
    assert scene.ran() == Counter(scene.ids)
    # And the log says what is wrong.
    worker.wait_text("WRONGTYPE")


@pytest.mark.parametrize("key", ["unacked", "unacked_index"])
def test_nothing_is_taken_while_it_could_not_be_recorded(scene: Scene, key: str) -> None:
    # Given a key of another type in the place of the records, or of their index.
    worker = scene.worker("-c", "5")
    wait_until(lambda: scene.proxy.sent(BLMOVE) > 0)
    scene.server.client.delete(key)
    scene.server.client.set(key, "a string")
    scene.send(COUNT)
    worker.wait_text("WRONGTYPE")

    # Then all messages are on their queue, or on the way to whoever waits for them.
    client = scene.server.client
    wait_until(lambda: client.llen("celery") + client.llen("greenq.inbox.celery") == COUNT)
    # And run once it is removed.
    client.delete(key)
    wait_until(scene.is_done)
    assert scene.ran() == Counter(scene.ids)


def test_message_stays_reserved_when_its_next_place_is_no_list(scene: Scene) -> None:
    # Given a message whose dead-letter list is a key of another type.
    scene.server.client.set("greenq.dead.celery", "a string")
    worker = scene.worker("-c", "5")
    wait_until(lambda: scene.proxy.sent(BLMOVE) > 0)

    scene.send(1, "faults.unknown")
    worker.wait_text("stay reserved because they cannot be moved: WRONGTYPE greenq.dead.celery")

    assert scene.reserved() == Counter(scene.ids)
