"""Queues that are paused, counted, bound and looked at, on a real server."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from socket import gethostname

import pytest

from greenq import Greenq
from greenq.protocol.keys import Keys
from greenq.sending.routing import worker_direct
from greenq.transport.broker import Broker
from greenq.transport.client import Client
from greenq.transport.leases import Leases
from greenq.transport.owner import Owner
from tests.servers import Server, greenq_worker
from tests.support import wait_until

KEYS = Keys()
PRIORITY_6 = "a\x06\x166"


@pytest.fixture
def broker(server: Server) -> Iterator[Broker]:
    with closing(Client(server.url)) as client:
        yield Broker(client, KEYS)


@contextmanager
def leases_of(broker: Broker, *queues: str, name: str = "own") -> Iterator[Leases]:
    with closing(broker.client.connection()) as connection:
        yield Leases(
            connection,
            broker,
            Owner(name, f"{name}@host", ""),
            queues=queues,
            lease_s=60.0,
            visibility_timeout_s=3600.0,
            recovery=None,  # type: ignore[arg-type]  # nobody has died here
        )


# --- pausing --------------------------------------------------------------------------------------


def test_a_paused_queue_is_known_with_who_did_it_until_it_is_resumed(broker: Broker) -> None:
    began = time.time()
    assert broker.paused() == {}

    broker.pause("a", "w1@host")
    broker.pause("b", "gen5@host")

    paused = broker.paused()
    assert {queue: told["by"] for queue, told in paused.items()} == {
        "a": "w1@host",
        "b": "gen5@host",
    }
    assert all(began <= told["at"] <= time.time() for told in paused.values())
    assert broker.resume("a")
    assert not broker.resume("a")
    assert list(broker.paused()) == ["b"]


@pytest.mark.parametrize("text", [b"", b"\xff", b"[1]", b"null", b"now", b"5"])
def test_a_queue_is_paused_whatever_is_written_beside_it(
    server: Server, broker: Broker, text: bytes
) -> None:
    server.client.hset("greenq.paused", "a", text)

    assert broker.paused() == {"a": {"by": "?", "at": None}}


def test_each_renewal_tells_which_queues_are_paused(broker: Broker) -> None:
    with leases_of(broker, "a") as leases:
        assert leases.renew().paused == frozenset()
        broker.pause("a", "me")
        broker.pause("elsewhere", "me")
        assert leases.renew().paused == {"a", "elsewhere"}
        broker.resume("a")
        assert leases.renew().paused == {"elsewhere"}


@pytest.mark.parametrize("queues", [(), ("a", "b")])
def test_a_lease_is_renewed_whatever_lies_where_the_paused_queues_are(
    server: Server, broker: Broker, queues: tuple[str, ...]
) -> None:
    server.client.set("greenq.paused", "no hash")
    with leases_of(broker, *queues) as leases:
        assert not leases.renew().held
        renewal = leases.renew()
    assert renewal.held
    assert renewal.paused == frozenset()


def test_a_paused_queue_waits_in_the_whole_cluster_until_it_is_resumed(server: Server) -> None:
    def blocked() -> int:
        count: int = server.client.info("clients")["blocked_clients"]
        return count

    app = Greenq("sender", broker=server.url, set_as_current=False)
    others = blocked()
    options = ("-Q", "celery,other")
    with (
        closing(app),
        greenq_worker(server.url, "-n", "first", *options),
        greenq_worker(server.url, "-n", "second", *options),
    ):
        # Each worker waits on one connection for each queue.
        wait_until(lambda: blocked() == others + 4)
        app.transport.broker.pause("celery", "me")
        inspect = app.control.inspect(["first@" + gethostname(), "second@" + gethostname()])
        wait_until(
            lambda: [told["paused"] for told in inspect.status().values()] == [["celery"]] * 2
        )
        # While they rearrange their waits, there may be as many for a moment.
        wait_until(lambda: all(blocked() == others + 2 for _ in range(100)))

        held_back = app.send_task("shared.add", (1, 2))
        inbox = server.client.lmove("celery", "greenq.inbox.celery")
        second = app.send_task("shared.add", (3, 4))
        # Both workers look after others meanwhile, and at their queues with each renewal.
        for number in range(10):
            assert app.send_task("shared.echo", (number,), queue="other").get(timeout=5)
        assert len(server.queued()) == 1
        assert server.client.lrange("greenq.inbox.celery", 0, -1) == [inbox]

        assert app.transport.broker.resume("celery")
        assert (held_back.get(timeout=5), second.get(timeout=5)) == (3, 7)


# --- what the watch looks at ----------------------------------------------------------------------


def test_a_renewal_looks_at_the_queues_of_the_moment(server: Server, broker: Broker) -> None:
    due_at = time.time() + 1000
    for key in (PRIORITY_6, "greenq.inbox.b"):
        server.client.lpush(key, "message")
    server.client.zadd("greenq.eta.a", {"1|message": due_at})
    server.client.zadd("greenq.eta.b", {"1|message": due_at + 1})

    def seen(leases: Leases) -> tuple[bool, float | None]:
        renewal = leases.renew()
        return renewal.work, renewal.next_due

    with leases_of(broker, "a") as leases:
        assert seen(leases) == (True, pytest.approx(due_at))
        for queues, expected in (
            (["b"], (True, pytest.approx(due_at + 1))),
            (["c"], (False, None)),
            ([], (False, None)),
            (["c", "b", "a"], (True, pytest.approx(due_at))),
        ):
            leases.set_queues(queues)
            assert seen(leases) == expected


def test_who_still_has_a_queue_moves_its_parked_messages_back(
    server: Server, broker: Broker
) -> None:
    server.client.zadd("greenq.eta.a", {"1|message": time.time() - 1})
    with leases_of(broker, "a", "b") as first, leases_of(broker, "a", name="other") as second:
        first.set_queues(["b"])
        assert first.promote() == 0
        assert second.promote() == 1
    assert server.queued("a") == [b"message"]


# --- counting -------------------------------------------------------------------------------------


def test_depths_count_each_place_of_each_queue(server: Server, broker: Broker) -> None:
    for key, count in (
        *(("a", 1), ("a\x06\x163", 2), (PRIORITY_6, 3), ("a\x06\x169", 4)),
        *(("greenq.inbox.a", 5), ("greenq.dead.a", 7), ("b", 8)),
    ):
        server.client.lpush(key, *(f"message {number}" for number in range(count)))
    server.client.zadd("greenq.eta.a", {f"1|message {number}": number for number in range(6)})
    nothing = dict.fromkeys((0, 3, 6, 9, "inbox", "parked", "dead"), 0)

    trips = broker.client.traffic.round_trips
    assert broker.depths(["a", "b", "c", "a"]) == {
        "a": {0: 1, 3: 2, 6: 3, 9: 4, "inbox": 5, "parked": 6, "dead": 7},
        "b": nothing | {0: 8},
        "c": nothing,
    }
    assert broker.client.traffic.round_trips == trips + 1


def test_no_queues_have_no_messages(broker: Broker) -> None:
    assert broker.depth([]) == 0
    assert broker.depths([]) == {}


# --- queues of workers, and of all ----------------------------------------------------------------


def test_a_worker_takes_from_a_queue_of_its_own(server: Server) -> None:
    app = Greenq("sender", broker=server.url, set_as_current=False)
    settings = {"worker_direct": True}
    with (
        closing(app),
        greenq_worker(server.url, "-n", "w1@host", settings=settings) as first,
        greenq_worker(server.url, "-n", "w2@host", settings=settings) as second,
    ):
        for node, worker in (("w1@host", first), ("w2@host", second)):
            result = app.send_task("shared.add", (1, 2), queue=worker_direct(node))
            assert result.get(timeout=5) == 3
            assert f"shared.add[{result.id}] received" in worker.text
        assert app.send_task("shared.add", (3, 4)).get(timeout=5) == 7

        # As Celery's workers bind it: no other exchange is made for it.
        members = {f"{node}\x06\x16\x06\x16{node}.dq2".encode() for node in ("w1@host", "w2@host")}
        for name in ("_kombu.binding", "_kombu.binding_permanent"):
            assert server.client.smembers(f"{name}.C.dq2") == members
        assert not server.client.exists("_kombu.binding.w1@host.dq2")
        # A sender that knows only the exchange reaches it, too.
        options = {"exchange": "C.dq2", "routing_key": "w2@host"}
        assert app.send_task("shared.add", (5, 6), **options).get(timeout=5) == 11


def test_a_broadcast_tells_how_many_hear_it(server: Server, broker: Broker) -> None:
    texts = [json.dumps({"number": number}) for number in range(3)]
    assert broker.broadcast("all", texts, "celery") == 0

    with server.client.pubsub() as first, server.client.pubsub() as second:
        first.subscribe("/0.all/celery")
        second.psubscribe("/0.all/*")
        for listener in (first, second):
            assert listener.get_message(timeout=5)
        assert broker.broadcast("all", texts, "celery") == 2
        for listener in (first, second):
            heard = [listener.get_message(timeout=5)["data"].decode() for _ in texts]
            assert heard == texts
    assert not server.client.exists("all")
