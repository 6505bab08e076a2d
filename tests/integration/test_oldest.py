"""A queue tells how long its oldest message has waited, if greenq has sent it."""

from __future__ import annotations

import time

import pytest

from greenq import Greenq
from greenq.protocol.keys import Keys
from greenq.transport.broker import Broker
from greenq.transport.client import Client
from tests.servers import Server

pytestmark = pytest.mark.smoke


def test_the_oldest_message_of_each_queue_is_found_in_all_of_its_lists(server: Server) -> None:
    app = Greenq("sender", broker=server.url)
    broker = Broker(Client(server.url), Keys())
    before = time.time()
    app.send_task("any", queue="mail", priority=9)
    between = time.time()
    for _ in range(3):
        app.send_task("any", queue="mail")
    app.send_task_many("any", [((), {})] * 3, queue="web")
    server.client.lpush("others", b"no message", b'{"properties": {"delivery_tag": "uuid"}}')

    oldest = broker.oldest(["mail", "web", "others", "empty"])

    assert before - 0.001 <= oldest["mail"] <= between
    assert between - 0.001 <= oldest["web"] <= time.time()
    assert oldest.keys() == {"mail", "web"}
    assert broker.oldest([]) == {}
    app.close()
