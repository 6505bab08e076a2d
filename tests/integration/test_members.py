"""Who holds a lease, and the clock that all share by the server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from greenq.errors import OperationalError
from greenq.protocol.keys import Keys
from greenq.transport.client import Client
from greenq.transport.members import look_around
from tests.servers import Server

pytestmark = pytest.mark.smoke

KEYS = Keys()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    made = Client(server.url)
    yield made
    made.close()


def lease(server: Server, member: str, for_s: float) -> None:
    server.client.zadd(KEYS.leases, {member: server.client.time()[0] + for_s})


def test_nobody_is_there_at_first(client: Client) -> None:
    assert look_around(client, KEYS, 5) == (set(), 5)


def test_those_are_there_whose_lease_has_not_ended(server: Server, client: Client) -> None:
    lease(server, "i1|a@host|boot/1:2", 60)
    lease(server, "i2|b@host|", 60)
    lease(server, "i3|dead@host|", -5)
    lease(server, "of another version", 60)

    assert look_around(client, KEYS, 0)[0] == {"a@host", "b@host", ""}


def test_the_highest_clock_is_told_to_all(server: Server, client: Client) -> None:
    assert [look_around(client, KEYS, clock)[1] for clock in (5, 3, 2**53, 7)] == [
        5, 5, 2**53, 2**53,
    ]  # fmt: skip
    assert server.client.ttl(KEYS.clock) > 0


def test_a_clock_that_cannot_be_told_hides_nobody(server: Server, client: Client) -> None:
    lease(server, "i1|a@host|", 60)
    server.client.set(KEYS.clock, "no set")

    assert look_around(client, KEYS, 5) == ({"a@host"}, 0)


def test_who_may_not_see_the_leases_is_told_so(server: Server, client: Client) -> None:
    server.client.set(KEYS.leases, "no set")

    with pytest.raises(OperationalError):
        look_around(client, KEYS, 5)
