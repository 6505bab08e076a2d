"""`app.control`: what it sends is what Celery's sends, and its answers have Celery's shapes."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from greenq.config.queues import Broadcast
from greenq.config.settings import Config
from greenq.errors import ContentDisallowed
from greenq.protocol.clock import LamportClock
from greenq.protocol.keys import Keys
from greenq.protocol.mailbox import EXCHANGE, ControlRequest, read_request, write_reply
from greenq.protocol.serialize import accepted
from greenq.remote.control import Control
from tests.vectors import load

JSON = accepted(["json"])


class Server:
    """What a client of the mailbox speaks with: notes requests, and has nodes that reply.

    Attributes:
        requests: what was published.
        replies: what is replied to the next request, node by node.
    """

    call_timeout_s = 5.0

    def __init__(self) -> None:
        self.requests: list[ControlRequest] = []
        self.replies: list[tuple[str, Any]] = []

    def call(self, *command: Any) -> int:
        verb, channel, text = command
        assert (verb, channel) == ("PUBLISH", "/0.celery.pidbox")
        self.requests.append(read_request(text.encode(), JSON))
        return 1

    @contextmanager
    def pooled(self, timeout_s: float) -> Iterator[Server]:
        yield self

    def script(self, script: Any, keys: list[str], args: list[Any]) -> int:
        self.call("PUBLISH", *args[-2:])
        return len(self.replies)

    def pipeline(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        if commands[0][0] != "BRPOP":
            return [1, 1]
        request = self.requests[-1]
        assert request.reply_to is not None
        elements = [
            write_reply(node, reply, ticket=request.ticket, clock=1, to=request.reply_to).encode()
            for node, reply in self.replies
        ]
        return [(b"key", elements[0]), elements[1:] or None]


class Broker:
    """Notes what is done to queues; each has three messages."""

    def __init__(self) -> None:
        self.done: list[tuple[str, ...]] = []

    def purge(self, queue: str) -> int:
        self.done.append(("purge", queue))
        return 3

    def pause(self, queue: str, by: str) -> None:
        self.done.append(("pause", queue, by))

    def resume(self, queue: str) -> None:
        self.done.append(("resume", queue))


@pytest.fixture
def server() -> Server:
    return Server()


def control_of(server: Server, **settings: Any) -> Any:
    transport = SimpleNamespace(client=server, keys=Keys(), broker=Broker(), signer=None)
    app: Any = SimpleNamespace(
        config=Config.build(settings), transport=transport, clock=LamportClock()
    )
    return Control(app)


@pytest.fixture
def control(server: Server) -> Any:
    return control_of(server)


def recorded(capture: str, method: str) -> ControlRequest:
    """Return the first request with a method that Celery sent in a recording."""
    requests = (
        read_request(command.args[2], JSON)
        for command in load.commands(capture)
        if command.args[0] == b"PUBLISH" and command.args[1].endswith(EXCHANGE.encode())
    )
    return next(request for request in requests if request.method == method)


def what(request: ControlRequest) -> tuple[Any, ...]:
    """Return what a request says, in the order of the wire, but for ids and times."""
    arguments = json.dumps(dict(request.arguments))
    return request.method, arguments, request.destination, request.ticket is not None


# --- as Celery asks -------------------------------------------------------------------------------

QUERIED = "5ae5b36c-73a3-45c9-a90d-fa5afb010cce", "reserved-1", "scheduled-1", "none"
REPLY = {"reply": True}
# Recording, method, how greenq's API is called for the same.
CALLS = [
    ("beat_control", "ping", lambda c: c.ping()),
    ("consumers", "add_consumer", lambda c: c.add_consumer("extra", **REPLY)),
    ("consumers", "cancel_consumer", lambda c: c.cancel_consumer("extra", **REPLY)),
    ("events_toggle", "enable_events", lambda c: c.enable_events(**REPLY)),
    ("events_toggle", "disable_events", lambda c: c.disable_events(**REPLY)),
    ("events_toggle", "heartbeat", lambda c: c.heartbeat(**REPLY)),
    ("events_toggle", "shutdown", lambda c: c.shutdown(**REPLY)),
    ("pool_control", "pool_grow", lambda c: c.pool_grow(2, **REPLY)),
    ("pool_control", "pool_shrink", lambda c: c.pool_shrink(**REPLY)),
    ("pool_control", "autoscale", lambda c: c.autoscale(5, 1, **REPLY)),
    ("pool_control", "pool_restart", lambda c: c.pool_restart(**REPLY)),
    ("rate_limit", "rate_limit", lambda c: c.rate_limit("wireapp.add", "10/m", **REPLY)),
    ("time_limit", "time_limit", lambda c: c.time_limit("wireapp.sleepy", 1, 2, **REPLY)),
    ("mingle_gossip", "revoke", lambda c: c.revoke(("old-1", "old-2"), **REPLY)),
    ("mingle_gossip", "hello", lambda c: c.inspect().hello("w1@wire", [])),
    (
        "revoke_stamped",
        "revoke_by_stamped_headers",
        lambda c: c.revoke_by_stamped_headers({"mtask_id": ["m-1", "m-2"]}, **REPLY),
    ),
    *(
        ("inspect", method, lambda c, m=method, a=args: getattr(c.inspect(["w1@wire"]), m)(*a))
        for method, args in [
            ("ping", ()),
            ("report", ()),
            ("conf", ()),
            ("stats", ()),
            ("clock", ()),
            ("active", ()),
            ("reserved", ()),
            ("scheduled", ()),
            ("query_task", QUERIED),
            ("query_task", (QUERIED,)),
            ("registered", ()),
            ("revoked", ()),
            ("active_queues", ()),
            ("memsample", ()),
            ("memdump", ()),
        ]
    ),
]


@pytest.mark.parametrize(("capture", "method", "call"), CALLS)
def test_request_is_the_one_that_celery_sends(
    control: Any, server: Server, capture: str, method: str, call: Any
) -> None:
    call(control)
    assert what(server.requests[0]) == what(recorded(capture, method))


# --- broadcasts -----------------------------------------------------------------------------------


def test_broadcast_answers_a_list_of_replies(control: Any, server: Server) -> None:
    server.replies = [("w1@a", 1), ("w2@a", 2), ("w1@a", 3)]
    heard: list[Any] = []
    asked = control.broadcast("mine", {"a": 1}, reply=True, callback=heard.append, b=2)
    # Two workers of one name are two, as in Celery's list.
    assert asked == heard == [{"w1@a": 1}, {"w2@a": 2}, {"w1@a": 3}]
    assert server.requests[0].arguments == {"a": 1, "b": 2}


def test_broadcast_without_reply_answers_nothing(control: Any, server: Server) -> None:
    server.replies = [("w1@a", 1)]
    assert control.broadcast("mine") is None
    (request,) = server.requests
    assert (request.reply_to, request.ticket, request.expires) == (None, None, 0)


def test_nobody_there_is_an_empty_list(control: Any) -> None:
    assert control.broadcast("mine", reply=True) == []
    assert control.ping() == []


def test_limit_ends_a_broadcast(control: Any, server: Server) -> None:
    server.replies = [("w1@a", 1), ("w2@a", 2)]
    assert control.broadcast("mine", reply=True, limit=1) == [{"w1@a": 1}]


@pytest.mark.parametrize("destination", ["w1@a", ["w1@a"], ("w1@a",)])
def test_who_is_meant_is_passed_on(control: Any, server: Server, destination: Any) -> None:
    control.revoke("t", destination=destination, pattern="w*", matcher="glob")
    (request,) = server.requests
    assert request.destination == ["w1@a"]
    assert (request.pattern, request.matcher) == ("w*", "glob")


def test_terminate_is_a_revoke(control: Any, server: Server) -> None:
    control.terminate("t", signal="SIGKILL")
    (request,) = server.requests
    assert request.method == "revoke"
    assert request.arguments == {"task_id": "t", "terminate": True, "signal": "SIGKILL"}


def test_election_and_drain_are_told(control: Any, server: Server) -> None:
    control.election("e", "task", {"task": "add"})
    control.drain(["w1@a"])
    first, second = server.requests
    assert (first.method, dict(first.arguments)) == (
        "election", {"id": "e", "topic": "task", "action": {"task": "add"}},
    )  # fmt: skip
    assert (second.method, second.destination) == ("drain", ["w1@a"])


def test_options_of_a_new_queue_are_among_the_arguments(control: Any, server: Server) -> None:
    control.add_consumer("q", "ex", "topic", "a.#", options={"queue_arguments": {"x": 1}})
    assert server.requests[0].arguments == {
        "queue": "q",
        "exchange": "ex",
        "exchange_type": "topic",
        "routing_key": "a.#",
        "queue_arguments": {"x": 1},
    }


def test_clock_of_the_app_is_used(control: Any, server: Server) -> None:
    control.heartbeat()
    control.heartbeat()
    assert [request.clock for request in server.requests] == [1, 2]


def test_requests_are_written_with_the_serializer_of_tasks(server: Server) -> None:
    control = control_of(server, task_serializer="yaml", accept_content=["yaml"])
    with pytest.raises(ContentDisallowed, match=r"application/x-yaml"):
        control.heartbeat()


# --- inspect --------------------------------------------------------------------------------------


def test_inspect_answers_by_node(control: Any, server: Server) -> None:
    server.replies = [("w1@a", {"clock": 1}), ("w2@a", {"clock": 2})]
    assert control.inspect().clock() == {"w1@a": {"clock": 1}, "w2@a": {"clock": 2}}
    assert control.inspect(limit=1).clock() == {"w1@a": {"clock": 1}}


def test_inspect_of_one_name_answers_its_reply(control: Any, server: Server) -> None:
    server.replies = [("w1@a", {"clock": 1})]
    assert control.inspect("w1@a").clock() == {"clock": 1}
    assert control.inspect().ping("w1@a") == {"clock": 1}
    assert control.inspect(["w1@a"]).clock() == {"w1@a": {"clock": 1}}
    # Somebody else's reply is not the one that was asked for.
    assert control.inspect("w2@a").clock() is None


def test_inspect_answers_none_when_nobody_replies(control: Any) -> None:
    assert control.inspect().ping() is None
    assert control.inspect("w1@a").ping() is None


def test_inspect_passes_its_options_on(control: Any, server: Server) -> None:
    server.replies = [("w1@a", 1)]
    heard: list[Any] = []
    control.inspect(pattern="w.", matcher="pcre", callback=heard.append).stats()
    (request,) = server.requests
    assert (request.pattern, request.matcher) == ("w.", "pcre")
    assert heard == [{"w1@a": 1}]


@pytest.mark.parametrize(
    ("call", "method", "arguments"),
    [
        (lambda i: i.status(), "status", {}),
        (lambda i: i.hub(), "hub", {}),
        (lambda i: i.autoscale_log(), "autoscale_log", {}),
        (lambda i: i.greenlets(), "greenlets", {}),
        (lambda i: i.greenlets(5), "greenlets", {"limit": 5}),
        (lambda i: i.active(True), "active", {"safe": True}),
        (lambda i: i.scheduled(limit=10, offset=0), "scheduled", {"limit": 10, "offset": 0}),
        (lambda i: i.query_task("one"), "query_task", {"ids": ["one"]}),
        (lambda i: i.registered("rate_limit"), "registered", {"taskinfoitems": ["rate_limit"]}),
        (lambda i: i.registered_tasks(), "registered", {"taskinfoitems": []}),
        (lambda i: i.conf(True), "conf", {"with_defaults": True}),
        (
            lambda i: i.objgraph("Task", 5, 2),
            "objgraph",
            {"num": 5, "max_depth": 2, "type": "Task"},
        ),
        (lambda i: i.ask("mine", a=1), "mine", {"a": 1}),
    ],
)
def test_inspect_asks_with_arguments(
    control: Any, server: Server, call: Any, method: str, arguments: Any
) -> None:
    call(control.inspect())
    assert (server.requests[0].method, server.requests[0].arguments) == (method, arguments)


# --- queues ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "queues"),
    [
        ({}, ["celery"]),
        ({"task_default_queue": "mine"}, ["mine"]),
        ({"task_queues": ["a", "b"]}, ["a", "b"]),
        ({"task_queues": ["a", Broadcast("b")]}, ["a"]),
    ],
)
def test_purge_empties_the_apps_queues(server: Server, settings: Any, queues: list[str]) -> None:
    control = control_of(server, **settings)
    assert control.purge() == 3 * len(queues)
    assert control.discard_all() == 3 * len(queues)
    broker = control._app.transport.broker
    assert broker.done == [("purge", queue) for queue in queues] * 2


def test_pause_names_who_has_paused(control: Any) -> None:
    control.pause("q")
    control.resume("q")
    (_, queue, by), resumed = control._app.transport.broker.done
    assert queue == "q"
    assert by.startswith("gen")
    assert by.endswith(f"@{socket.gethostname()}")
    assert resumed == ("resume", "q")
