"""The mailbox on a real server: who is asked, who replies, when that ends, what is left behind."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from greenq.errors import EncodeError, OperationalError
from greenq.protocol.clock import LamportClock
from greenq.protocol.keys import Keys
from greenq.protocol.mailbox import (
    EXCHANGE,
    REPLY_EXCHANGE,
    ControlRequest,
    ReplyTo,
    read_request,
    write_reply,
)
from greenq.protocol.serialize import accepted
from greenq.transport.client import Client
from greenq.transport.mailbox import Mailbox
from tests.servers import ROOT, Server
from tests.support import FairTime, wait_until

pytestmark = pytest.mark.smoke

KEYS = Keys()
BINDING = KEYS.binding(REPLY_EXCHANGE)
# Far more than any of these tests takes unless asking waits for somebody in vain.
LONG_S = 60.0
AT_ONCE_S = 10.0

Answer = Callable[[Mailbox, ControlRequest], object]


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    client = Client(server.url)
    yield client
    client.close()


@pytest.fixture
def mailbox(client: Client) -> Mailbox:
    return Mailbox(client, KEYS)


def pong(node: str) -> Answer:
    """Answer like a worker of this name, if it is meant."""

    def answer(mailbox: Mailbox, request: ControlRequest) -> None:
        if request.is_for(node):
            mailbox.reply(request, node, {"ok": "pong"})

    return answer


def silent(mailbox: Mailbox, request: ControlRequest) -> None:
    """Be subscribed and say nothing."""


@contextmanager
def member(server: Server, answer: Answer, keys: Keys = KEYS) -> Iterator[list[ControlRequest]]:
    """Be subscribed to requests and answer them; yields those that came."""
    client = Client(server.url)
    mailbox = Mailbox(client, keys, clock=LamportClock(100))
    pubsub = server.client.pubsub(ignore_subscribe_messages=True)
    heard: list[ControlRequest] = []

    def hear(message: dict[str, Any]) -> None:
        request = read_request(message["data"], accepted(["json"]))
        heard.append(request)
        answer(mailbox, request)

    channel = keys.fanout(EXCHANGE)

    def subscribed() -> int:
        count: int = server.client.pubsub_numsub(channel)[0][1]
        return count

    before = subscribed()
    pubsub.subscribe(**{channel: hear})
    wait_until(lambda: subscribed() > before)
    thread = pubsub.run_in_thread(sleep_time=0.01)
    try:
        yield heard
    finally:
        thread.stop()
        thread.join()
        client.close()


@contextmanager
def members(server: Server, *answers: Answer) -> Iterator[None]:
    with ExitStack() as stack:
        for answer in answers:
            stack.enter_context(member(server, answer))
        yield


@contextmanager
def at_once() -> Iterator[None]:
    """Fail if what is done within waits for somebody in vain."""
    clock = FairTime()
    yield
    assert clock.passed_s() < AT_ONCE_S


def left_behind(server: Server) -> list[bytes]:
    """Return the keys of the mailbox that exist."""
    return [*server.client.keys(f"*{REPLY_EXCHANGE}")]


# --- asking ---------------------------------------------------------------------------------------


def test_asking_ends_with_the_last_reply(server: Server, client: Client, mailbox: Mailbox) -> None:
    heard: list[tuple[str, Any]] = []
    with members(server, pong("w1@a"), pong("w2@a"), pong("w3@a")), at_once():
        replies = mailbox.ask(
            "ping", timeout_s=LONG_S, on_reply=lambda node, reply: heard.append((node, reply))
        )
    assert replies == {f"w{number}@a": {"ok": "pong"} for number in (1, 2, 3)}
    assert dict(heard) == replies
    # Nothing stays but the time at which Celery's sweep may look at the exchange.
    assert left_behind(server) == []
    assert server.client.zscore(KEYS.binding_deadlines, REPLY_EXCHANGE) is not None


def test_asking_takes_few_round_trips(server: Server, client: Client, mailbox: Mailbox) -> None:
    # Given three that reply in the same moment
    def answer(_: Mailbox, request: ControlRequest) -> None:
        to = request.reply_to
        assert to is not None
        nodes = ("w1@a", "w2@a", "w3@a")
        replies = [write_reply(n, "here", ticket=request.ticket, clock=1, to=to) for n in nodes]
        server.client.lpush(to.queue, *replies)

    with members(server, answer, silent, silent), at_once():
        # When they are asked again, the server knowing the script
        mailbox.ask("ping", timeout_s=LONG_S)
        before = client.traffic.round_trips
        assert len(mailbox.ask("ping", timeout_s=LONG_S)) == 3
    # Then it takes one to publish, one to read, one to clean up
    assert client.traffic.round_trips - before == 3


def test_asking_ends_at_once_when_nobody_is_subscribed(server: Server, mailbox: Mailbox) -> None:
    with at_once():
        assert mailbox.ask("ping", timeout_s=LONG_S) == {}
    assert left_behind(server) == []


def test_asking_ends_when_those_named_have_replied(server: Server, mailbox: Mailbox) -> None:
    with members(server, pong("w1@a"), pong("w2@a"), silent), at_once():
        assert mailbox.ask("ping", destination=["w2@a"], timeout_s=LONG_S) == {
            "w2@a": {"ok": "pong"}
        }


def test_asking_ends_with_as_many_replies_as_wanted(server: Server, mailbox: Mailbox) -> None:
    with members(server, pong("w1@a"), pong("w2@a"), silent), at_once():
        assert len(mailbox.ask("ping", limit=1, timeout_s=LONG_S)) == 1


def test_asking_ends_in_time_when_somebody_is_silent(server: Server, mailbox: Mailbox) -> None:
    with members(server, pong("w1@a"), silent), at_once():
        started = time.monotonic()
        assert mailbox.ask("ping", timeout_s=0.3) == {"w1@a": {"ok": "pong"}}
        assert time.monotonic() - started >= 0.3
    assert left_behind(server) == []


def test_only_those_that_a_pattern_means_reply(server: Server, mailbox: Mailbox) -> None:
    with members(server, pong("w1@a"), pong("v1@a")):
        asked = {"pattern": "w*", "matcher": "glob", "timeout_s": 0.3}
        assert mailbox.ask("ping", **asked) == {"w1@a": {"ok": "pong"}}


def test_two_workers_of_one_name_are_told_of(
    server: Server, mailbox: Mailbox, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str] = []
    with members(server, pong("w1@a"), pong("w1@a")), at_once():
        replies = mailbox.ask(
            "ping", timeout_s=LONG_S, on_reply=lambda node, _reply: heard.append(node)
        )
    assert replies == {"w1@a": {"ok": "pong"}}
    assert heard == ["w1@a", "w1@a"]
    assert "several workers are named w1@a" in caplog.text


def test_replies_that_are_none_are_ignored(
    server: Server, mailbox: Mailbox, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(_: Mailbox, request: ControlRequest) -> None:
        to = request.reply_to
        assert to is not None
        wrong = write_reply("w1@a", "wrong", ticket="another", clock=1, to=to)
        yaml = write_reply("w1@a", "no", ticket=request.ticket, clock=1, to=to, serializer="yaml")
        right = write_reply("w1@a", "right", ticket=request.ticket, clock=1, to=to)
        server.client.lpush(to.queue, b"\xff", "{}", wrong, yaml, right)

    with (
        caplog.at_level(logging.DEBUG, "greenq.transport.mailbox"),
        members(server, answer),
        at_once(),
    ):
        assert mailbox.ask("ping", timeout_s=LONG_S) == {"w1@a": "right"}
    assert caplog.text.count("ignored") == 4


def test_everything_is_removed_when_the_callers_code_fails(
    server: Server, mailbox: Mailbox
) -> None:
    def fail(_node: str, _reply: Any) -> None:
        raise RuntimeError("mine")

    with members(server, pong("w1@a")), pytest.raises(RuntimeError, match="mine"):
        mailbox.ask("ping", timeout_s=LONG_S, on_reply=fail)
    assert left_behind(server) == []


def test_nothing_is_sent_that_cannot_be_written(server: Server, mailbox: Mailbox) -> None:
    with member(server, silent) as heard:
        with pytest.raises(EncodeError):
            mailbox.ask("ping", {"a": object()})
        mailbox.tell("last")
        wait_until(lambda: heard)
    assert [request.method for request in heard] == ["last"]
    assert left_behind(server) == []


def test_a_lost_connection_is_an_error_and_leaves_nothing(
    server: Server, client: Client, mailbox: Mailbox
) -> None:
    failed: list[OperationalError] = []

    def ask() -> None:
        try:
            mailbox.ask("ping", timeout_s=LONG_S)
        except OperationalError as exc:
            failed.append(exc)

    with members(server, silent):
        thread = threading.Thread(target=ask)
        thread.start()

        def waits() -> list[dict[str, Any]]:
            # The flag of a client that is blocked by a command.
            return [each for each in server.client.client_list() if "b" in each["flags"]]

        wait_until(waits)
        assert left_behind(server) == [BINDING.encode()]
        server.client.client_kill_filter(_id=waits()[0]["id"])
        thread.join(AT_ONCE_S)
    assert "lost the connection" in str(failed[0])
    assert left_behind(server) == []


def test_many_threads_ask_at_once_and_each_gets_its_own(server: Server, mailbox: Mailbox) -> None:
    def echo(node: str) -> Answer:
        return lambda box, request: box.reply(request, node, dict(request.arguments))

    replies: dict[int, dict[str, Any]] = {}

    def ask(number: int) -> None:
        replies[number] = mailbox.ask("echo", {"number": number}, timeout_s=LONG_S)

    with members(server, echo("w1@a"), echo("w2@a")), at_once():
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert replies == {
        number: {"w1@a": {"number": number}, "w2@a": {"number": number}} for number in range(30)
    }
    assert left_behind(server) == []


def test_greenlets_ask_at_once(server: Server) -> None:
    # Given a program on gevent, in a process of its own
    program = f"""
from greenq.hub import patch
patch()
import gevent
from greenq.protocol.keys import Keys
from greenq.transport.client import Client
from greenq.transport.mailbox import Mailbox
mailbox = Mailbox(Client({server.url!r}), Keys())
asking = [gevent.spawn(mailbox.ask, "ping", timeout_s=1.0) for _ in range(8)]
gevent.joinall(asking, raise_error=True)
print([each.value for each in asking])
"""
    # When its greenlets ask a cluster in which somebody is silent
    with members(server, pong("w1@a"), silent):
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True, text=True, cwd=ROOT, timeout=60, check=False,
        )  # fmt: skip
        took_s = time.monotonic() - started
    # Then they wait beside one another, not one after the other
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([{"w1@a": {"ok": "pong"}}] * 8)
    assert took_s < 6


def test_prefix_and_database_are_those_of_the_keys(server: Server) -> None:
    keys = Keys(prefix="pre:", db=3)
    client = Client(server.url.removesuffix("/0") + "/3")
    mailbox = Mailbox(client, keys)

    def answer(_: Mailbox, request: ControlRequest) -> None:
        mailbox.reply(request, "w1@a", client.call("SMEMBERS", f"pre:{BINDING}")[0].decode())

    with member(server, answer, keys), at_once():
        replies = mailbox.ask("ping", timeout_s=LONG_S)
    client.close()
    # The member of the binding has no prefix.
    oid, _, pattern_and_queue = replies["w1@a"].partition(keys.sep)
    assert pattern_and_queue == f"{keys.sep}{oid}.{REPLY_EXCHANGE}"


def test_the_binding_is_safe_from_celerys_sweep_for_an_hour(
    server: Server, mailbox: Mailbox
) -> None:
    # Given a deadline that a Celery process has set further away
    now_ms = time.time() * 1000
    with member(server, pong("w1@a")):
        mailbox.ask("ping", timeout_s=LONG_S)
        assert server.client.zscore(KEYS.binding_deadlines, REPLY_EXCHANGE) == pytest.approx(
            now_ms + 3_600_000, abs=30_000
        )
        later = int(now_ms) + 9_000_000
        server.client.zadd(KEYS.binding_deadlines, {REPLY_EXCHANGE: later})
        # Then asking does not lower it
        mailbox.ask("ping", timeout_s=LONG_S)
    assert server.client.zscore(KEYS.binding_deadlines, REPLY_EXCHANGE) == later


# --- telling --------------------------------------------------------------------------------------


def test_telling_reaches_everybody_and_wants_no_reply(server: Server, client: Client) -> None:
    clock = LamportClock(7)
    mailbox = Mailbox(client, KEYS, clock=clock)
    with member(server, silent) as heard:
        assert mailbox.tell("revoke", {"task_id": "t"}, destination=["w1@a"]) == 1
        wait_until(lambda: heard)
    assert heard == [
        ControlRequest(method="revoke", arguments={"task_id": "t"}, destination=["w1@a"], clock=8)
    ]
    assert mailbox.tell("revoke", {"task_id": "t"}) == 0


# --- replying -------------------------------------------------------------------------------------


def test_clocks_go_past_one_another(server: Server, client: Client) -> None:
    clock = LamportClock(5)
    mailbox = Mailbox(client, KEYS, clock=clock)
    with member(server, pong("w1@a")) as heard:
        mailbox.ask("ping", timeout_s=LONG_S)
        # The asker's was forwarded; the member's, at 100, was forwarded for its reply.
        assert (heard[0].clock, clock.value) == (6, 102)


def test_nothing_is_pushed_when_the_asker_is_gone(server: Server, mailbox: Mailbox) -> None:
    with member(server, silent) as heard:
        mailbox.ask("ping", timeout_s=0.05)
        wait_until(lambda: heard)
    assert mailbox.reply(heard[0], "w1@a", "late") is False
    assert left_behind(server) == []


def test_a_request_without_a_return_address_gets_no_reply(mailbox: Mailbox) -> None:
    assert mailbox.reply(ControlRequest(method="ping"), "w1@a", None) is False


def test_replies_to_an_asker_that_died_vanish(
    server: Server, client: Client, mailbox: Mailbox
) -> None:
    # Given an asker that has left its binding behind
    to = ReplyTo(REPLY_EXCHANGE, "dead")
    server.client.sadd(BINDING, f"dead{KEYS.sep}{KEYS.sep}{to.queue}")
    request = ControlRequest(method="ping", ticket="t", reply_to=to)
    # When workers reply, on a connection of their own or a pooled one
    connection = client.connection()
    assert mailbox.reply(request, "w1@a", 1) is True
    assert mailbox.reply(request, "w2@a", 2, connection=connection) is True
    connection.close()
    # Then the list ends by itself
    assert server.client.llen(to.queue) == 2
    assert 0 < server.client.pttl(to.queue) <= 60_000
