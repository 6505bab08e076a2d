"""A connection whose holder waits for the socket as the thread beside the hub does."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from greenq.errors import ConnectionLost, TransportTimeout
from greenq.hub import poll_readable
from greenq.transport.client import Client, Connection
from tests.servers import Server
from tests.support import wait_until

pytestmark = pytest.mark.smoke


@pytest.fixture
def connection(server: Server) -> Iterator[Connection]:
    client = Client(server.url)
    made = client.connection(pushes=True, timeout_s=0.5)
    made.poll = poll_readable
    yield made
    made.close()
    client.close()


def test_it_carries_out_commands(connection: Connection) -> None:
    assert connection.call("ECHO", "x" * 1_000_000) == b"x" * 1_000_000
    assert connection.pipeline([("SET", "a", 1), ("GET", "a")]) == [b"OK", b"1"]


def test_what_is_published_is_heard_also_when_it_comes_with_an_answer(
    server: Server, connection: Connection
) -> None:
    connection.subscribe(["one", "two"], ["p*"])
    assert connection.messages() == []

    for channel in ("one", "two", "pattern"):
        server.client.publish(channel, "news")
    # Read together with an answer: nothing is left in the socket.
    connection.call("PING")
    server.client.publish("one", "more")

    heard: list[tuple[str, bytes]] = []

    def all_heard() -> bool:
        heard.extend(connection.messages())
        return len(heard) == 4

    wait_until(all_heard)
    assert heard == [("one", b"news"), ("two", b"news"), ("pattern", b"news"), ("one", b"more")]


def test_waiting_for_a_message_ends_when_it_comes_or_in_time(
    server: Server, connection: Connection
) -> None:
    connection.subscribe(["one"])
    began_s = time.monotonic()
    assert connection.messages(0.2) == []
    assert 0.2 <= time.monotonic() - began_s < 2

    server.client.publish("one", "news")
    assert connection.messages(5.0) == [("one", b"news")]


def test_a_silent_server_is_a_timeout(connection: Connection) -> None:
    with pytest.raises(TransportTimeout):
        connection.call("BLPOP", "nothing", 5)

    assert not connection.connected


def test_a_server_that_hangs_up_is_noticed(server: Server, connection: Connection) -> None:
    connection.identify()
    server.client.client_kill_filter(_id=str(connection.number))

    with pytest.raises(ConnectionLost):
        wait_until(connection.messages)
