"""Taking and waiting, against a real server, without a worker around it."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from tests.servers import ROOT, Server

# The intake runs on gevent, which must be patched in; the test process is not.
_DRIVER = """
from greenq.hub import patch
patch()
import sys
import gevent
from greenq.protocol.keys import Keys
from greenq.transport.client import Client
from greenq.transport.intake import Intake

client = Client(sys.argv[1])
queues = sys.argv[2].split(",")
intake = Intake(client, Keys(), queues, "owner")


def push_when_blocked(*pushes):
    connections = len(intake.connections)
    with gevent.Timeout(5):
        while f"blocked_clients:{connections}\\r" not in client.call("INFO", "clients").decode():
            gevent.sleep(0.005)
    commands = [("MULTI",), *(("LPUSH", key, "message") for key in pushes), ("EXEC",)]
    client.pipeline(commands)


def wait_for(*pushes):
    assert intake.take(10).deliveries == []
    pushing = gevent.spawn(push_when_blocked, *pushes)
    with gevent.Timeout(5):
        assert intake.wait()
    pushing.get()
    return intake.take(10)
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


PRIORITY_3 = "a\\x06\\x163"


@pytest.mark.parametrize(
    ("queues", "pushes"),
    [
        ("a", ["a"]),
        ("a", [PRIORITY_3]),
        # The notice of the one and the answer of the other come together.
        ("a", [PRIORITY_3, "a"]),
        ("a", ["a", PRIORITY_3]),
        ("a,b", ["b"]),
        ("a,b", ["a", "b"]),
        ("a,b", ["b", PRIORITY_3]),
        ("a,b,c,d,e,f", ["f"]),
        ("a,b,c,d,e,f", ["f", "a", "d", PRIORITY_3]),
    ],
)
def test_a_waiting_intake_wakes_and_takes_all_when_messages_arrive(
    server: Server, queues: str, pushes: list[str]
) -> None:
    drive(
        server,
        queues,
        f"""
        for _ in range(3):
            batch = wait_for({", ".join(f"'{push}'" for push in pushes)})
            assert len(batch.deliveries) == {len(pushes)}, batch
            assert batch.depth == 0
        """,
    )


def test_wake_ends_the_waits_on_all_queues(server: Server) -> None:
    drive(
        server,
        "a,b,c",
        """
        import time
        intake.take(1)
        gevent.spawn_later(0.1, intake.wake)
        began = time.monotonic()
        assert not intake.wait()
        assert time.monotonic() - began < 1.5
        """,
    )


def test_wake_to_look_makes_a_take_follow(server: Server) -> None:
    drive(
        server,
        "a,b",
        """
        gevent.spawn_later(0.1, intake.wake, look=True)
        with gevent.Timeout(5):
            assert intake.wait()
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
            client.call("CLIENT", "KILL", "ID", intake.connections[1].number)

        gevent.spawn(cut_when_blocked)
        try:
            with gevent.Timeout(5):
                intake.wait()
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
        first = [delivery.raw.decode() for delivery in intake.take(4).deliveries]
        assert sorted(first) == ["a0", "a1", "b0", "b1"], first
        rest = [delivery.raw.decode() for delivery in intake.take(100).deliveries]
        assert rest[-1] == "last"
        assert [raw for raw in rest if raw[0] == "a"] == ["a2", "a3", "a4"]
        assert [raw for raw in rest[:-1] if raw[0] == "b"] == ["b2", "b3", "b4"]
        """,
    )


def test_what_is_held_is_recorded_as_kombu_would_read_it(server: Server) -> None:
    server.client.lpush("a", '{"some": "envelope"}')
    drive(server, "a", "intake.take(1)")
    assert server.unacked() == {b"owner:1": b'[{"some": "envelope"}, "", "a"]'}
