"""Taking and waiting, against a real server, without a worker around it."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from tests.servers import ROOT, Server

# The fetcher runs on gevent, which must be patched in; the test process is not.
_DRIVER = """
from greenq.hub import patch
patch()
import sys
import gevent
from greenq.protocol.keys import Keys
from greenq.transport.broker import Broker
from greenq.transport.client import Client
from greenq.transport.fetch import Fetcher
from greenq.transport.leases import Leases
from greenq.transport.owner import Owner

client = Client(sys.argv[1])
queues = [queue for queue in sys.argv[2].split(",") if queue]
fetcher = Fetcher(client, Keys(), queues, "owner", member="owner||")
# As the watch and the consumer's start do: without either, a take is refused.
lease = Client(sys.argv[1]).connection(pushes=True)
leases = Leases(
    lease, Broker(client, Keys()), Owner("owner", "", ""), queues=queues,
    lease_s=60.0, visibility_timeout_s=3600.0, recovery=None,
)
assert fetcher.register(leases.renew().question, [], [], 5.0)


def watch():
    # What a renewal sees is left alone: the relay has to do without.
    while True:
        if leases.renew(would_relay=fetcher.waiting).relays and lease.noticed:
            if leases.relay():
                fetcher.wake(look=True)
        gevent.sleep(0.01)


gevent.spawn(watch)


def set_queues(queues):
    # As a worker does.
    leases.set_queues(queues)
    fetcher.set_queues(queues)


def bodies(batch):
    return [(delivery.queue, delivery.raw.decode()) for delivery in batch.deliveries]


def blocked():
    for line in client.call("INFO", "clients").decode().splitlines():
        if line.startswith("blocked_clients:"):
            return int(line.partition(":")[2])


def when(condition, run):
    def wait_and_run():
        with gevent.Timeout(30):
            while not condition():
                gevent.sleep(0.005)
        return run()

    return gevent.spawn(wait_and_run)


def push_when_blocked(*pushes):
    connections = len(fetcher.connections)
    with gevent.Timeout(30):
        while f"blocked_clients:{connections}\\r" not in client.call("INFO", "clients").decode():
            gevent.sleep(0.005)
    commands = [("MULTI",), *(("LPUSH", key, "message") for key in pushes), ("EXEC",)]
    client.pipeline(commands)


def wait_for(*pushes):
    assert fetcher.take(10).deliveries == []
    pushing = gevent.spawn(push_when_blocked, *pushes)
    with gevent.Timeout(30):
        assert fetcher.wait()
        # The relay may have told of what the take before had found already.
        while not (batch := fetcher.take(10)).deliveries:
            assert fetcher.wait()
    pushing.get()
    return batch
"""


def drive(server: Server, queues: str, code: str) -> None:
    """Run `code` in a patched process, with `wait_for` at hand."""
    script = _DRIVER + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", script, server.url, queues],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


PRIORITY_3 = "a\x06\x163"


@pytest.mark.parametrize(
    ("queues", "rounds"),
    [
        # What the relay hands on and the answer to the wait come together in the last two.
        ("a", [["a"], [PRIORITY_3], [PRIORITY_3, "a"], ["a", PRIORITY_3]]),
        ("a,b", [["b"], ["a", "b"], ["b", PRIORITY_3]]),
        ("a,b,c,d,e,f", [["f"], ["f", "a", "d", PRIORITY_3]]),
    ],
)
def test_a_waiting_intake_wakes_and_takes_all_when_messages_arrive(
    server: Server, queues: str, rounds: list[list[str]]
) -> None:
    drive(
        server,
        queues,
        f"""
        for pushes in {rounds * 3}:
            batch = wait_for(*pushes)
            assert len(batch.deliveries) == len(pushes), (pushes, batch)
            assert batch.depth == 0
        """,
    )


def test_wake_ends_the_waits_on_all_queues(server: Server) -> None:
    drive(
        server,
        "a,b,c",
        """
        import time
        fetcher.take(1)
        gevent.spawn_later(0.1, fetcher.wake)
        began = time.monotonic()
        assert not fetcher.wait()
        assert time.monotonic() - began < 1.5
        """,
    )


def test_wake_to_look_makes_a_take_follow(server: Server) -> None:
    drive(
        server,
        "a,b",
        """
        gevent.spawn_later(0.1, fetcher.wake, look=True)
        with gevent.Timeout(30):
            assert fetcher.wait()
        """,
    )


def test_all_waits_end_when_one_connection_is_lost(server: Server) -> None:
    drive(
        server,
        "a,b,c",
        """
        from greenq.errors import ConnectionLost

        def cut_when_blocked():
            push_when_blocked()
            client.call("CLIENT", "KILL", "ID", fetcher.connections[1].number)

        gevent.spawn(cut_when_blocked)
        try:
            with gevent.Timeout(30):
                fetcher.wait()
            raise AssertionError("it does not tell")
        except ConnectionLost:
            pass
        """,
    )


def test_takes_are_fair_between_queues_and_urgent_first(server: Server) -> None:
    for queue in ("a", "b"):
        for number in range(5):
            server.client.lpush(queue, f"{queue}{number}")
    server.client.lpush("b\x06\x169", "last")
    drive(
        server,
        "a,b",
        """
        first = [delivery.raw.decode() for delivery in fetcher.take(4).deliveries]
        assert sorted(first) == ["a0", "a1", "b0", "b1"], first
        rest = [delivery.raw.decode() for delivery in fetcher.take(100).deliveries]
        assert rest[-1] == "last"
        assert [raw for raw in rest if raw[0] == "a"] == ["a2", "a3", "a4"]
        assert [raw for raw in rest[:-1] if raw[0] == "b"] == ["b2", "b3", "b4"]
        """,
    )


def test_what_is_held_is_recorded_as_kombu_would_read_it(server: Server) -> None:
    server.client.lpush("a", '{"some": "envelope"}')
    drive(server, "a", "fetcher.take(1)")
    assert server.unacked() == {b"owner:1": b'[{"some": "envelope"}, "", "a"]'}


# --- queues that come and go ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "push"),
    [
        ("a", "b", "b"),
        ("a,b", "b", "b"),
        ("a", "a,b", "b"),
        ("a,b", "b,a", PRIORITY_3),
        ("a", "a,b", "b\\x06\\x169"),
        # Beyond the first few: from relayed to waited for, and the other way round.
        ("a,b,c,d,e", "b,c,d,e", "e"),
        ("b,c,d,e", "a,b,c,d,e", "e"),
        ("", "a", "a"),
    ],
)
def test_a_waiting_intake_goes_on_with_other_queues(
    server: Server, before: str, after: str, push: str
) -> None:
    drive(
        server,
        before,
        f"""
        connections, old = fetcher.connections, len(fetcher.queues[:4])
        assert fetcher.take(10).deliveries == []
        changing = when(lambda: blocked() == old, lambda: set_queues("{after}".split(",")))
        with gevent.Timeout(30):
            assert fetcher.wait()
        changing.get()
        for _ in range(2):
            batch = wait_for("{push}")
            assert bodies(batch) == [("{push}".split("\x06")[0], "message")], batch
        # One connection for each queue that is waited for, and no others.
        connections += fetcher.connections
        assert sum(each.connected for each in set(connections)) == len(fetcher.queues[:4])
        """,
    )


def test_a_queue_that_was_left_out_is_left_alone(server: Server) -> None:
    drive(
        server,
        "a,b",
        """
        fetcher.take(10)
        when(lambda: blocked() == 2, lambda: set_queues(["b"]))
        assert fetcher.wait()
        client.pipeline([("LPUSH", key, "message") for key in ("a", "a\x06\x163", "b")])
        assert bodies(fetcher.take(10)) == [("b", "message")]
        with gevent.Timeout(0.3, False):
            while fetcher.wait():
                assert bodies(fetcher.take(10)) == []
        """,
    )
    assert server.client.llen("a") == server.client.llen("a\x06\x163") == 1
    assert not server.client.exists("greenq.inbox.a")


def test_without_queues_nothing_is_asked_until_there_are_some(server: Server) -> None:
    server.client.lpush("a", "message")
    drive(
        server,
        "a",
        """
        fetcher.set_queues([])
        assert fetcher.take(10) == ([], 0)
        with gevent.Timeout(30):
            assert fetcher.wait()
        before = client.traffic.commands
        for look in (False, True):
            assert fetcher.take(10) == ([], 0)
            waiting = gevent.spawn(fetcher.wait)
            with gevent.Timeout(0.2, False):
                waiting.join()
            assert not waiting.dead
            fetcher.wake(look=look)
            assert waiting.get(timeout=5) is look
        assert client.traffic.commands == before
        assert fetcher.connections == []

        waiting = gevent.spawn(fetcher.wait)
        gevent.sleep(0)
        fetcher.set_queues(["a"])
        assert waiting.get(timeout=5)
        assert bodies(fetcher.take(10)) == [("a", "message")]
        """,
    )


def test_what_lies_in_the_inbox_of_a_new_queue_is_found_at_once(server: Server) -> None:
    server.client.lpush("greenq.inbox.b", "message")
    drive(
        server,
        "a",
        """
        fetcher.take(10)
        fetcher.set_queues(["a", "b"])
        with gevent.Timeout(1):
            assert fetcher.wait()
        assert bodies(fetcher.take(10)) == [("b", "message")]
        """,
    )


def test_a_take_that_is_under_way_names_the_queues_it_was_asked_with(server: Server) -> None:
    for queue in ("a", "b"):
        server.client.lpush(queue, f"of {queue}")
    drive(
        server,
        "a,b",
        """
        script = fetcher._connection.script

        def change_meanwhile(*call):
            answer = script(*call)
            fetcher.set_queues(["c", "a"])
            return answer

        class Meanwhile:
            script = staticmethod(change_meanwhile)

        connection, fetcher._connection = fetcher._connection, Meanwhile
        batch = fetcher.take(10)
        fetcher._connection = connection
        assert sorted(bodies(batch)) == [("a", "of a"), ("b", "of b")]
        assert fetcher.queues == ("c", "a")
        # The new ones are looked at before anything is waited for.
        with gevent.Timeout(1):
            assert fetcher.wait()
        """,
    )


@pytest.mark.parametrize("after", ["", "b", "c,b"])
@pytest.mark.parametrize("most", [1, 10])
def test_what_a_take_reserved_whose_answer_got_lost_is_not_forgotten(
    server: Server, after: str, most: int
) -> None:
    for number in range(3):
        server.client.lpush("a", f"a{number}")
        server.client.lpush("b", f"b{number}")
    drive(
        server,
        "a,b",
        f"""
        from greenq.errors import ConnectionLost

        def lose_answer(*call):
            script(*call)
            raise ConnectionLost("lost")

        class Losing:
            script = staticmethod(lose_answer)

        script = fetcher._connection.script
        connection, fetcher._connection = fetcher._connection, Losing
        try:
            fetcher.take(4)
            raise AssertionError("it was not lost")
        except ConnectionLost:
            pass
        fetcher._connection = connection
        after = [queue for queue in "{after}".split(",") if queue]
        fetcher.set_queues(after)

        taken = []
        while deliveries := fetcher.take({most}).deliveries:
            taken += [(delivery.queue, delivery.raw.decode()) for delivery in deliveries]
        expected = [("a", "a0"), ("a", "a1"), ("b", "b0"), ("b", "b1")]
        expected += [("b", "b2")] if "b" in after else []
        assert sorted(taken) == expected, taken
        assert fetcher.queues == tuple(after)
        assert not fetcher.unsure
        """,
    )
    assert server.queued("a") == [b"a2"]
    assert len(server.unacked()) == 5 - (not after)


def test_a_message_that_comes_with_the_change_goes_back_to_its_queue(server: Server) -> None:
    server.client.lpush("a", "second")
    drive(
        server,
        "a",
        """
        assert len(fetcher.take(10).deliveries) == 1
        unblock = fetcher._unblock

        def push_just_before(waiter):
            client.call("LPUSH", "a", "message")
            return unblock(waiter)

        fetcher._unblock = push_just_before
        changing = when(lambda: blocked() == 1, lambda: fetcher.set_queues([]))
        with gevent.Timeout(30):
            assert fetcher.wait()
        changing.get()
        """,
    )
    assert server.queued("a") == [b"message"]
    assert not server.client.exists("greenq.inbox.a")
