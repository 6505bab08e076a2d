"""Exchanges, limits and orders of queues, on a real server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from greenq import Binding, Broadcast, Exchange, Greenq, Queue
from greenq.config.queue_table import declared
from greenq.config.settings import TaskConfig
from greenq.errors import NotAllSent, QueueFull, Unroutable
from greenq.protocol.keys import Keys
from greenq.transport.broker import Broker
from greenq.transport.client import Client
from tests.servers import Server, greenq_worker
from tests.support import wait_until

MEDIA = Exchange("media", "topic")
WAIT_S = 20


def sender(server: Server, **settings: Any) -> Any:
    return closing(Greenq("sender", broker=server.url, set_as_current=False, **settings))


@pytest.fixture
def brokers(server: Server) -> Iterator[Any]:
    with closing(Client(server.url)) as client:
        yield lambda *queues: Broker(
            client, Keys(), queues=declared(TaskConfig(task_queues=queues))
        )


# --- bindings -------------------------------------------------------------------------------------


def test_a_queue_has_exactly_the_bindings_of_its_settings(server: Server, brokers: Any) -> None:
    more = (Binding(Exchange("jobs"), "run"), Binding(MEDIA, "media.*"))
    broker = brokers(Queue("media", MEDIA, "media.video", bindings=more), "plain", "w@host.dq2")
    broker.declare(["media", "plain", "unknown", "w@host.dq2"])

    def members(exchange: str) -> set[str]:
        found = server.client.smembers(f"_kombu.binding.{exchange}")
        assert found == server.client.smembers(f"_kombu.binding_permanent.{exchange}")
        return {each.decode().replace("\x06\x16", "|") for each in found}

    # None without a pattern: for Celery's senders it would match every routing key.
    assert members("media") == {
        r"media.video|^media\.video$|media",
        r"media.*|^media\.[^\.]+$|media",
    }
    assert members("jobs") == {"run||media"}
    assert members("plain") == {"plain||plain"}
    assert members("unknown") == {"unknown||unknown"}
    assert members("C.dq2") == {"w@host||w@host.dq2"}


def test_a_route_leads_by_an_exchange_to_the_queues_bound_to_it(server: Server) -> None:
    queues = [
        Queue("video", MEDIA, "media.video.#"),
        Queue("all-media", MEDIA, "#"),
        Queue("jobs", Exchange("jobs"), "run"),
    ]
    routes = [
        {"media.*": {"exchange": "media", "routing_key": "media.video"}},
        {"job": {"exchange": "jobs", "routing_key": "run", "priority": 6}},
        lambda name, args, *_rest, **_named: {"queue": f"shop-{args[0]}"} if args else None,
    ]
    with sender(server, task_queues=queues, task_routes=routes) as app:
        seen = app.send_task("media.cut")
        app.send_task("media.cut", routing_key="media.audio")
        app.send_task("job")
        app.send_task("other", (7,))
        app.send_task("other")

    assert server.queued_ids("video") == [seen.id]
    assert len(server.queued("all-media")) == 2
    assert len(server.queued("jobs\x06\x166")) == 1
    assert len(server.queued("shop-7")) == len(server.queued("celery")) == 1


def test_what_no_binding_takes_is_an_error_and_leaves_nothing(server: Server) -> None:
    with sender(
        server, task_queues=[Queue("video", MEDIA, "media.video.#"), Broadcast("all")]
    ) as app:
        for options in (
            {"exchange": "media", "routing_key": "audio"},
            {"exchange": "nowhere", "routing_key": "media.video"},
            {"queue": "video", "routing_key": "audio"},
            {"queue": "all"},
            {"exchange": Exchange("new", "fanout")},
        ):
            with pytest.raises(Unroutable):
                app.send_task("t", **options)
        with pytest.raises(NotAllSent) as caught:
            app.send_task_many("t", [((), {})], exchange="media", routing_key="audio")
    assert isinstance(caught.value.__cause__, Unroutable)
    assert list(caught.value.unknown) == []
    assert not [key for key in server.client.keys("*") if b"_kombu" not in key]


def test_a_binding_whose_pattern_takes_for_ever_does_not_keep_a_sender(server: Server) -> None:
    evil = "a.#\x06\x16^(a|aa|a?)+$\x06\x16evil"
    server.client.sadd("_kombu.binding.media", evil, b"\xff", "x")
    with sender(server) as app, pytest.raises(Unroutable):
        app.send_task("t", exchange="media", routing_key="a" * 60 + "b")


# --- a worker's queues ----------------------------------------------------------------------------


def test_a_worker_shows_and_serves_the_bindings_of_its_queues(server: Server) -> None:
    queues = {
        "video": {
            "exchange": "media",
            "exchange_type": "topic",
            "routing_key": "media.#",
            "expires": 600,
            "max_length": 10,
        },
        "news": {"exchange": "press", "exchange_type": "fanout", "routing_key": "eu.#"},
    }
    with greenq_worker(server.url, settings={"task_queues": queues}), sender(server) as app:
        answers: list[dict[str, Any]] = []

        def answered() -> bool:
            answers.append(app.control.inspect().active_queues() or {})
            return bool(answers[-1])

        # A busy worker may need more than the second that is given to an answer.
        wait_until(answered, WAIT_S)
        (shown,) = answers[-1].values()
        found = [
            (each["name"], each["exchange"]["name"], each["exchange"]["type"], each["routing_key"])
            for each in shown
        ]
        assert found == [
            ("video", "media", "topic", "media.#"),
            ("news", "press", "fanout", "eu.#"),
        ]
        assert [(each["expires"], each["max_length"]) for each in shown] == [
            (600.0, 10),
            (None, None),
        ]
        options: tuple[dict[str, Any], ...] = (
            {"exchange": "media", "routing_key": "media"},
            {"exchange": "press", "exchange_type": "fanout", "routing_key": "eu.west"},
            {"queue": "video"},
        )
        for each in options:
            assert app.send_task("shared.add", (1, 2), **each).get(timeout=WAIT_S) == 3
        with pytest.raises(Unroutable):
            app.send_task("shared.add", (1, 2), **options[1] | {"routing_key": "us.west"})
        server.wait_settled()


# --- expiry and length ----------------------------------------------------------------------------


def test_an_expiring_queue_is_declared_as_celery_does(server: Server, brokers: Any) -> None:
    broker = brokers(Queue("q", MEDIA, "k", expires=4000), Queue("p", MEDIA, "k"))
    server.client.sadd("_kombu.binding.old", "x")
    server.client.sadd("_kombu.binding.kept", "x")
    server.client.sadd("_kombu.binding_permanent.kept", "x")
    server.client.zadd("_kombu.binding_deadlines", {"old": 5, "kept": 5})
    broker.declare(["q"])
    seconds, micros = server.client.time()

    left_ms = server.client.zscore("_kombu.binding_deadlines", "media") - seconds * 1000
    assert 7_900_000 < left_ms <= 8_000_000 + micros / 1000
    assert server.client.smembers("_kombu.binding.media") == {b"k\x06\x16^k$\x06\x16q"}
    assert not server.client.exists("_kombu.binding_permanent.media")
    # What has expired is cleaned up, unless a permanent queue is bound to the same exchange.
    assert not server.client.exists("_kombu.binding.old")
    assert server.client.exists("_kombu.binding.kept")
    assert server.client.zcard("_kombu.binding_deadlines") == 1


def test_messages_of_a_queue_that_no_one_uses_expire(server: Server) -> None:
    with sender(server, task_queues=[Queue("q", expires=1), "plain"]) as app:
        app.send_task("t", queue="q", priority=6)
        app.send_task("t", queue="plain")
        assert 0 < server.client.pttl("q\x06\x166") <= 1000
    wait_until(lambda: not server.queued("q\x06\x166"))
    assert server.client.ttl("plain") == -1


def test_messages_of_a_queue_that_a_worker_takes_from_do_not_expire(server: Server) -> None:
    queues = {"q": {"expires": 2}}
    options = ("-c", "1", "--prefetch-multiplier", "1")
    with (
        greenq_worker(server.url, *options, settings={"task_queues": queues}),
        sender(server, task_queues=queues) as app,
    ):
        app.send_task("shared.sleep", (4,), queue="q")
        late = [app.send_task("shared.add", (1, number), queue="q") for number in range(3)]
        # They wait for longer than the queue lives without use.
        assert [result.get(timeout=WAIT_S) for result in late] == [1, 2, 3]


@pytest.mark.parametrize("priority", [0, 6])
def test_a_full_queue_takes_no_more(server: Server, priority: int) -> None:
    with sender(server, task_queues=[Queue("q", max_length=3)]) as app:
        for number in (0, priority, 0):
            app.send_task("t", queue="q", priority=number)
        with pytest.raises(QueueFull, match="'q' has 3 waiting messages, and its max_length is 3"):
            app.send_task("t", queue="q", priority=priority)
        server.client.lpop("q")
        with pytest.raises(NotAllSent) as caught:
            app.send_task_many("t", [((), {})] * 2, queue="q", priority=priority)
        app.send_task("t", queue="q", priority=priority)
    assert isinstance(caught.value.__cause__, QueueFull)
    assert sum(len(server.queued(key)) for key in ("q", "q\x06\x166")) == 3


# --- orders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "order"), [("priority", "bbbbbbaaaaaa"), ("sorted", "aaaaaabbbbbb")]
)
def test_a_worker_empties_one_queue_before_the_next_if_they_have_no_turns(
    server: Server, strategy: str, order: str
) -> None:
    settings = {"broker_transport_options": {"queue_order_strategy": strategy}}
    with sender(server) as app:
        queue_of = {
            app.send_task("shared.add", (1, 1), queue=queue).id: queue
            for _ in range(6)
            for queue in "ab"
        }
        with greenq_worker(server.url, "-Q", "b,a", "-c", "4", settings=settings) as worker:
            wait_until(lambda: worker.text.count(" succeeded in ") == 12, WAIT_S)
            received = re.findall(r"\[([0-9a-f-]{36})\] received", worker.text)
    assert "".join(queue_of[task_id] for task_id in received) == order
