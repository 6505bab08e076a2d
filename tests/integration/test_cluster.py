"""Real workers as members of a cluster: steered, asked, elected, and ended by nothing they hear."""

from __future__ import annotations

import base64
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from greenq import Greenq
from greenq.protocol.event import read_events
from tests.published import published
from tests.servers import Process, Server, greenq_worker, valkey
from tests.support import wait_until

WAIT_S = 20
JSON = frozenset({"application/json"})
BEAT = "/0.celeryev/worker.heartbeat"
CONTROL = "/0.celery.pidbox"


class Cluster:
    """A server, a client beside it, and workers that are stopped at the end."""

    def __init__(self, server: Server, stack: ExitStack) -> None:
        self.server = server
        self.stack = stack
        self.client = stack.enter_context(
            closing(Greenq("client", broker=server.url, set_as_current=False))
        )
        self.control = self.client.control

    def worker(
        self, name: str, *options: str, settings: dict[str, Any] | None = None, **others: Any
    ) -> Process:
        """Start a worker and wait until it hears the others, if it can."""
        worker = self.stack.enter_context(
            greenq_worker(
                others.pop("url", self.server.url), "-n", f"{name}@host", *options,
                app="cluster_app", settings=settings, **others,
            )
        )  # fmt: skip
        return worker.wait_text(f"{name}@host is ready")

    def send(self, task: str, *args: Any, **options: Any) -> Any:
        return self.client.send_task(f"cluster_app.{task}", args, **options)

    def ask(self, name: str, method: str, **arguments: Any) -> Any:
        """Return one worker's reply; asked again while it does not hear yet."""
        replies: list[Any] = []

        def answered() -> bool:
            inspect = self.control.inspect([f"{name}@host"])
            replies[:] = (inspect.ask(method, **arguments) or {}).values()
            return bool(replies)

        wait_until(answered, WAIT_S)
        return replies[0]

    def tell(self, name: str, method: str, **arguments: Any) -> Any:
        """Have one worker do something and return what it replies."""
        self.ask(name, "ping")
        (reply,) = self.control.broadcast(method, arguments, [f"{name}@host"], reply=True) or ()
        return reply[f"{name}@host"]

    def noted(self) -> list[str]:
        return [line.decode() for line in self.server.client.lrange("noted", 0, -1)]

    def open_gate(self) -> None:
        self.server.client.set("gate", 1)


@contextmanager
def cluster_on(server: Server) -> Iterator[Cluster]:
    with ExitStack() as stack:
        made = Cluster(server, stack)
        try:
            yield made
        finally:
            # A test that fails must not wait for the tasks that it holds.
            made.open_gate()


@pytest.fixture
def cluster(server: Server) -> Iterator[Cluster]:
    with cluster_on(server) as made:
        yield made


# --- asking ---------------------------------------------------------------------------------------


def test_a_full_worker_answers(cluster: Cluster) -> None:
    cluster.worker("w", "-c", "2")
    results = [cluster.send("hold", f"t{number}") for number in range(6)]
    wait_until(lambda: len(cluster.ask("w", "active")) == 2, WAIT_S)

    status = cluster.ask("w", "status")

    assert (status["active"], status["size"]) == (2, 2)
    assert cluster.ask("w", "ping") == {"ok": "pong"}
    assert cluster.ask("w", "load", factor=10) == {"load": 20}
    cluster.open_gate()
    assert [result.get(timeout=WAIT_S) for result in results] == [f"t{n}" for n in range(6)]


@pytest.mark.parametrize("total", [15_000, pytest.param(50_000, marks=pytest.mark.heavy)])
def test_many_scheduled_tasks_are_paged(cluster: Cluster, total: int) -> None:
    cluster.worker("w")
    held = 4000
    calls = (((number, 1), {}) for number in range(total))
    cluster.client.send_task_many("cluster_app.add", calls, countdown=290)
    parked = cluster.client.transport.broker.depths

    # The worker keeps so many, and the server the others; both are listed, and each once.
    wait_until(lambda: parked(["celery"])["celery"]["parked"] == total - held, 60)
    size = 7000
    pages = [cluster.ask("w", "scheduled", limit=size, offset=n) for n in range(0, total + 1, size)]
    assert [len(page) for page in pages] == [size] * (total // size) + [1000]
    listed = [each for page in pages for each in page]
    assert len({each["request"]["id"] for each in listed}) == total
    etas = [each["eta"] for each in listed]
    assert etas[:held] == sorted(etas[:held])
    assert etas[held:] == sorted(etas[held:])
    # Whoever asks for no page gets one, not all.
    assert len(cluster.ask("w", "scheduled")) == 1000
    assert cluster.ask("w", "scheduled", offset=total) == []
    # And other tasks have their turn.
    assert cluster.send("add", 1, 2).get(timeout=WAIT_S) == 3


# --- queues ---------------------------------------------------------------------------------------


def test_a_paused_queue_is_left_alone_by_those_who_start_later_too(cluster: Cluster) -> None:
    queues = ("-Q", "celery,other")
    first = cluster.worker("first", *queues)
    cluster.control.pause("celery")
    first.wait_text("queue celery is paused")
    second = cluster.worker("second", *queues)

    def paused(name: str) -> bool:
        return bool(cluster.ask(name, "status")["paused"] == ["celery"])

    wait_until(lambda: paused("first") and paused("second"), WAIT_S)
    waiting = [cluster.send("add", number, 1) for number in range(20)]
    # Both take from the other queue meanwhile.
    for number in range(40):
        assert cluster.send("add", number, 1, queue="other").get(timeout=WAIT_S) == number + 1
    assert sum(cluster.client.transport.broker.depths(["celery"])["celery"].values()) == 20
    assert not any(result.ready() for result in waiting)

    # Each of them can resume it for all.
    assert cluster.tell("second", "resume", queue="celery")["ok"]

    assert [result.get(timeout=WAIT_S) for result in waiting] == [n + 1 for n in range(20)]
    for worker in (first, second):
        worker.wait_text("queue celery is resumed")


def test_a_drained_worker_leaves_all_to_the_others(cluster: Cluster) -> None:
    drained, other = cluster.worker("drained"), cluster.worker("other")
    held = [cluster.send("hold", f"t{number}") for number in range(10)]
    wait_until(
        lambda: len(cluster.ask("drained", "active")) + len(cluster.ask("other", "active")) == 10
    )

    assert "draining" in cluster.tell("drained", "drain")["ok"]
    for number in range(50):
        assert cluster.send("add", number, 1).get(timeout=WAIT_S) == number + 1

    assert "cluster_app.add[" not in drained.text
    assert other.text.count("cluster_app.add[") >= 50
    assert cluster.ask("drained", "status")["draining"] is True
    cluster.open_gate()
    assert sorted(result.get(timeout=WAIT_S) for result in held) == [f"t{n}" for n in range(10)]
    cluster.tell("drained", "drain", on=False)
    cluster.tell("other", "drain")
    assert cluster.send("add", 1, 2).get(timeout=WAIT_S) == 3
    assert "cluster_app.add[" in drained.text


def test_queues_are_added_and_cancelled_under_load_without_loss(cluster: Cluster) -> None:
    cluster.worker("w", "-c", "20")
    names = [f"n{number}" for number in range(3000)]
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for method in ("add_consumer", "cancel_consumer"):
                for queue in ("q1", "q2"):
                    assert cluster.tell("w", method, queue=queue)["ok"]

    changing = threading.Thread(target=change)
    changing.start()
    try:
        for number, name in enumerate(names):
            cluster.send("mark", name, queue=("celery", "q1", "q2")[number % 3])
    finally:
        stop.set()
        changing.join(WAIT_S)
    for queue in ("q1", "q2"):
        cluster.tell("w", "add_consumer", queue=queue)

    wait_until(lambda: len(cluster.noted()) >= len(names), WAIT_S)
    wait_until(lambda: not cluster.server.unacked(), WAIT_S)
    assert Counter(cluster.noted()) == Counter(names)
    left = cluster.client.transport.broker.depths(["celery", "q1", "q2"])
    assert sum(sum(places.values()) for places in left.values()) == 0


def test_a_key_that_is_no_queue_is_not_taken_from(cluster: Cluster) -> None:
    cluster.worker("w")
    cluster.server.client.hset("no-queue", "a", "b")

    told = cluster.tell("w", "add_consumer", queue="no-queue")

    assert "the key with this name is a hash" in told["error"]
    assert cluster.ask("w", "status")["queues"] == ["celery"]
    assert cluster.send("add", 1, 2).get(timeout=WAIT_S) == 3


# --- faults ---------------------------------------------------------------------------------------


@contextmanager
def heard(server: Server, channel: str) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Listen to a channel of events; what is yielded returns those since the last call."""
    with server.client.pubsub() as listener:
        listener.psubscribe(channel)
        assert listener.get_message(timeout=5)

        def news() -> list[dict[str, Any]]:
            told = []
            while message := listener.get_message(ignore_subscribe_messages=True):
                told += read_events(message["data"], JSON)
            return told

        yield news


def test_all_comes_back_after_a_restart_of_the_server() -> None:
    with valkey() as server, cluster_on(server) as cluster:
        workers = {name: cluster.worker(name) for name in ("a", "b")}
        for name, other in (("a", "b"), ("b", "a")):
            workers[name].wait_text(f"{other}@host joined")

        server.stop()
        for worker in workers.values():
            worker.wait_text("no tasks are taken")
        server.start()

        # Control, heartbeats, gossip, tasks: within seconds.
        wait_until(lambda: len(cluster.control.inspect().ping() or {}) == 2, 10)
        with heard(server, BEAT) as beats:
            seen: set[str] = set()

            def both_beat() -> bool:
                seen.update(event["hostname"] for event in beats())
                return seen == {"a@host", "b@host"}

            wait_until(both_beat, 10)
        for name, other in (("a", "b"), ("b", "a")):
            wait_until(lambda w=workers[name], o=other: w.text.count(f"{o}@host joined") >= 2, 10)  # type: ignore[misc]
        cluster.control.election("after", "cluster_app.lead", "on")
        wait_until(lambda: cluster.noted() == ["led on"], 10)
        assert cluster.send("add", 1, 2).get(timeout=WAIT_S) == 3
        assert not any("Traceback" in worker.text for worker in workers.values())


def test_a_full_member_needs_few_connections(cluster: Cluster) -> None:
    before = {each["id"] for each in cluster.server.client.client_list()}
    cluster.worker("w", "-E", "-c", "50")
    for number in range(100):
        cluster.send("add", number, 1).get(timeout=WAIT_S)
        cluster.ask("w", "stats")
    cluster.control.election("e", "cluster_app.lead", 1)
    wait_until(lambda: cluster.noted() == ["led 1"], WAIT_S)

    # Those of this process are not the worker's.
    own = {f"127.0.0.1:{port}" for port in ports_of(os.getpid(), cluster.server.port)}
    workers = [
        each["addr"]
        for each in cluster.server.client.client_list()
        if each["id"] not in before and each["addr"] not in own
    ]
    assert 3 <= len(workers) <= 6


def ports_of(pid: int, server_port: int) -> set[int]:
    """Return the local ports of a process's connections to a port."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = set()
    for line in Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]:
        fields = line.split()
        if fields[9] in inodes and int(fields[2].split(":")[1], 16) == server_port:
            found.add(int(fields[1].split(":")[1], 16))
    return found


def test_a_user_without_channels_runs_tasks_and_says_once_what_is_missing(cluster: Cluster) -> None:
    user = cluster.server.client
    user.acl_setuser("worker", enabled=True, passwords=["+word"], keys=["*"], categories=["+@all"],
                     reset_channels=True)  # fmt: skip
    try:
        url = f"redis://worker:word@127.0.0.1:{cluster.server.port}/0"
        worker = cluster.worker("w", url=url)
        results = [cluster.send("add", number, 1) for number in range(20)]
        wait_until(lambda: "not a full member" in worker.text, WAIT_S)
        # Several heartbeats later it has said no more.
        sent_s = time.monotonic()
        while time.monotonic() < sent_s + 5:
            results.append(cluster.send("add", 1, 1))
            wait_until(results[-1].ready, WAIT_S)
        # Nobody could be told, but what is stored is there.
        assert [r.get(timeout=WAIT_S) for r in results[:20]] == list(range(1, 21))
        cluster.server.wait_settled()
        assert worker.text.count("not a full member") == 1
        assert worker.text.count("NOPERM") <= 5
        assert worker.stop() == 0
    finally:
        user.acl_deluser("worker")


# --- steps ----------------------------------------------------------------------------------------

ORDER = [
    "Connection",
    "Events",
    "Mingle",
    "Revokes",
    "Gossip",
    "Tasks",
    "Control",
    "Heart",
    "Agent",
]
AGENT = {"worker_agent": "cluster_app:Agent"}


def started(worker: Process) -> list[str]:
    return [
        line.split("consumer: starting ")[1].split()[0]
        for line in worker.text.splitlines()
        if "consumer: starting " in line
    ]


def test_steps_start_in_the_order_of_the_seeds_then_the_worker_is_ready(cluster: Cluster) -> None:
    worker = cluster.worker("w", settings=AGENT, loglevel="DEBUG")

    assert started(worker) == ORDER
    assert worker.text.index("starting Agent") < worker.text.index("w@host is ready")


@pytest.mark.parametrize(
    ("without", "options", "settings"),
    [
        ("Mingle", ("--without-mingle",), AGENT),
        ("Gossip", ("--without-gossip",), AGENT),
        ("Heart", ("--without-heartbeat",), AGENT),
        ("Control", (), {**AGENT, "worker_enable_remote_control": False}),
        ("Agent", (), {}),
    ],
)
def test_each_optional_step_can_be_switched_off(
    cluster: Cluster, without: str, options: tuple[str, ...], settings: dict[str, Any]
) -> None:
    with heard(cluster.server, BEAT) as beats:
        worker = cluster.worker("w", *options, settings=settings, loglevel="DEBUG")

        assert started(worker) == [name for name in ORDER if name != without]
        assert cluster.send("add", 1, 2).get(timeout=WAIT_S) == 3
        if without == "Control":
            wait_until(beats, WAIT_S)
            assert cluster.control.inspect(timeout=0.5).ping() is None
        elif without == "Heart":
            cluster.ask("w", "heartbeat")
            assert beats() == []
        else:
            assert cluster.ask("w", "ping") == {"ok": "pong"}
            wait_until(beats, WAIT_S)
        assert worker.stop() == 0
    assert "Traceback" not in worker.text


def test_all_optional_steps_can_be_switched_off_together(cluster: Cluster) -> None:
    options = ("--without-mingle", "--without-gossip", "--without-heartbeat")
    settings = {"worker_enable_remote_control": False}

    worker = cluster.worker("w", *options, settings=settings, loglevel="DEBUG")

    assert started(worker) == ["Connection", "Events", "Revokes", "Tasks"]
    assert cluster.send("add", 1, 2).get(timeout=WAIT_S) == 3


def test_an_agent_lives_as_long_as_the_connection() -> None:
    with valkey() as server, cluster_on(server) as cluster:
        worker = cluster.worker("w", settings=AGENT)
        wait_until(lambda: cluster.noted() == ["agent of w@host starts"])
        # It waits for work: the loss of a connection that is not open yet would not be one.
        wait_until(lambda: server.client.info("clients")["blocked_clients"] == 1)

        server.client.client_kill_filter(_type="normal", skipme=True)
        wait_until(lambda: len(cluster.noted()) >= 2, WAIT_S)
        wait_until(lambda: cluster.noted()[-1] == "agent of w@host starts", WAIT_S)
        worker.stop()

        assert cluster.noted()[-1] == "agent of w@host stops"


# --- who hears whom -------------------------------------------------------------------------------


def test_a_fleet_of_greenq_does_not_listen_to_its_own_heartbeats() -> None:
    names = [f"w{number}" for number in range(4)]
    with valkey() as server, cluster_on(server) as cluster:
        workers = {name: cluster.worker(name) for name in names}

        def listeners() -> int:
            patterns: int = server.client.pubsub_numpat()
            return patterns + sum(count for _, count in server.client.pubsub_numsub(BEAT))

        wait_until(lambda: listeners() == 0, WAIT_S)
        # They beat all the same, for whoever wants to hear it.
        with heard(server, BEAT) as beats:
            seen: set[str] = set()

            def all_beat() -> bool:
                seen.update(event["hostname"] for event in beats())
                return seen == {f"{name}@host" for name in names}

            wait_until(all_beat, WAIT_S)
        # They know of each other, wait for each other's votes, and notice who is lost.
        cluster.control.election("e", "cluster_app.lead", "on")
        wait_until(lambda: cluster.noted() == ["led on"], WAIT_S)
        workers["w3"].kill()
        for name in names[:3]:
            workers[name].wait_text("missed heartbeat from w3@host", WAIT_S)
            assert workers[name].text.count("missed heartbeat") == 1
        assert listeners() == 0


# --- elections ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3])
def test_each_election_has_one_winner(cluster: Cluster, size: int) -> None:
    names = [f"w{number}" for number in range(size)]
    workers = {name: cluster.worker(name) for name in names}
    for name, worker in workers.items():
        cluster.ask(name, "ping")
        for other in names:
            if other != name:
                worker.wait_text(f"{other}@host joined")

    task = {"task": "cluster_app.mark", "args": ["elected task"], "kwargs": {}, "options": {}}
    for number in range(5):
        cluster.control.election(f"e{number}", "cluster_app.lead", number)
    cluster.control.election("by task", "task", task)

    expected = sorted([*(f"led {number}" for number in range(5)), "elected task"])
    wait_until(lambda: len(cluster.noted()) >= len(expected), WAIT_S)
    ids = [*(f"e{number}" for number in range(5)), "by task"]
    for worker in workers.values():
        wait_until(
            lambda w=worker: all(f"elected for {name} {i}" in w.text for name, i in topics(ids))
        )  # type: ignore[misc]
    assert sorted(cluster.noted()) == expected
    for election_id in ids:
        won = [f"this worker was elected for {t} {i}" for t, i in topics([election_id])]
        assert sum(worker.text.count(won[0]) for worker in workers.values()) == 1
    assert not any("Traceback" in worker.text for worker in workers.values())


def topics(ids: list[str]) -> list[tuple[str, str]]:
    return [("task" if each == "by task" else "cluster_app.lead", each) for each in ids]


# --- whatever is published ------------------------------------------------------------------------


def rubbish() -> list[bytes]:
    """Return what no program should publish, the same in every run."""
    dice = random.Random(5)
    values: list[Any] = [
        None, True, -1, 10**30, 1e308, float("nan"), float("inf"), "", "x" * 10_000, "\ud800", [],
        {}, [[]], {"a": {"b": []}}, [None] * 100,
    ]  # fmt: skip
    event = {"hostname": "ghost@host", "type": "worker-heartbeat", "clock": 1, "timestamp": 1.0}
    request = {"method": "ping", "arguments": {}, "destination": None, "pattern": None}
    to = {"exchange": "reply.celery.pidbox", "routing_key": "nobody"}
    made = [b"", b"\xff\xfe\x00", b"{", b"[" * 50_000, b"null", b"5", b'"text"', b"[]", b"{}"]
    made += [dice.randbytes(size) for size in (1, 10, 1000, 100_000)]
    made += [published(value) for value in values]
    for value in values:
        made += [published({**event, name: value}) for name in (*event, "freq", "pid")]
        made += [
            published({**event, "type": kind, name: value})
            for kind in ("worker-elect", "worker-elect-ack", "worker-offline")
            for name in ("id", "topic", "action", "cver", "clock")
        ]
        made += [
            published({**request, "ticket": "t", "reply_to": to, name: value})
            for name in (*request, "matcher", "ticket", "reply_to")
        ]
        made += [
            published({**request, "method": method, "arguments": {name: value}, "ticket": "t",
                "reply_to": to})
            for method, name in (
                ("revoke", "task_id"), ("revoke", "nonsense"), ("active", "safe"),
                ("scheduled", "limit"), ("greenlets", "limit"), ("hello", "revoked"),
                ("revoke_by_stamped_headers", "headers"), ("election", "id"), ("nonsense", "x"),
            )
        ]  # fmt: skip
        for name in ("body", "content-encoding", "content-type", "headers", "properties"):
            made += [published(event, **{name: value}), published(request, **{name: value})]
    return made


def test_nothing_that_is_published_ends_a_step(cluster: Cluster) -> None:
    workers = {name: cluster.worker(name, "-E") for name in ("a", "b")}
    channels = (
        CONTROL,
        BEAT,
        "/0.celeryev/worker.elect",
        "/0.celeryev/worker.",
        "/0.celeryev/task.multi",
    )
    made = rubbish()
    for channel in channels:
        for data in made:
            cluster.server.client.publish(channel, data)

    # All of it was heard and dealt with: what comes behind it is answered, and is what it was.
    for name, worker in workers.items():
        assert cluster.ask(name, "ping") == {"ok": "pong"}
        assert worker.alive
        assert "crashed" not in worker.text
        assert "was not handled" not in worker.text
    with heard(cluster.server, BEAT) as beats:
        seen: set[str] = set()

        def both_beat() -> bool:
            seen.update(event["hostname"] for event in beats())
            return {"a@host", "b@host"} <= seen

        wait_until(both_beat, WAIT_S)
    cluster.control.election("after", "cluster_app.lead", "on")
    wait_until(lambda: "led on" in cluster.noted(), WAIT_S)
    assert cluster.send("add", 1, 2).get(timeout=WAIT_S) == 3


def test_wrong_replies_do_not_end_a_start(cluster: Cluster) -> None:
    """One who answers rubbish to everybody is among those whom a worker mingles with."""
    stop = threading.Event()
    answers = count()
    with cluster.server.client.pubsub() as listener:
        listener.subscribe(CONTROL)
        assert listener.get_message(timeout=5)

        def answer() -> None:
            made = rubbish()
            while not stop.is_set():
                message = listener.get_message(ignore_subscribe_messages=True, timeout=0.05)
                if message is None:
                    continue
                body = json.loads(base64.b64decode(json.loads(message["data"])["body"]))
                to = body.get("reply_to")
                if to:
                    key = f"{to['routing_key']}.{to['exchange']}"
                    headers = {"ticket": body["ticket"], "clock": 10**30}
                    wrong = [{"ghost@host": {"revoked": value}} for value in (None, 5, "x", [5])]
                    cluster.server.client.lpush(
                        key, *made, *(published(each, headers=headers) for each in wrong)
                    )
                    next(answers)

        answering = threading.Thread(target=answer)
        answering.start()
        try:
            worker = cluster.worker("w")
        finally:
            stop.set()
            answering.join(WAIT_S)
    assert next(answers) >= 1
    assert "mingled with ghost@host" in worker.text
    assert cluster.send("add", 1, 2).get(timeout=WAIT_S) == 3
    assert cluster.ask("w", "ping") == {"ok": "pong"}
