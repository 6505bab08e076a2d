"""Nothing that others fill grows without a bound: each row of docs/bounds.md is flooded here."""

from __future__ import annotations

import ast
import fnmatch
import inspect
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider

from greenq import Greenq
from greenq.beat.scheduler import Scheduler
from greenq.cli.events import Lines
from greenq.cli.top.model import EventTally
from greenq.config.queues import Binding, Exchange
from greenq.config.settings import TaskConfig
from greenq.consumer.event_sender import EventsStep
from greenq.contrib.opentelemetry import _Instrumentation
from greenq.errors import GreenqError, SignatureError
from greenq.events.cluster_state import State
from greenq.execution.revoked import Revoked
from greenq.execution.tally import TaskTally
from greenq.execution.workflow_index import WorkflowIndex
from greenq.monitoring.cluster_stats import ClusterStats
from greenq.monitoring.http_server import HttpServer, Response, json_response
from greenq.monitoring.metrics import Reading
from greenq.protocol import envelope, fast_decode
from greenq.protocol.clock import LamportClock
from greenq.protocol.event import EventWriter
from greenq.protocol.ids import new_id
from greenq.protocol.keys import Keys
from greenq.protocol.mailbox import REPLY_EXCHANGE, ControlRequest, Reply, ReplyTo
from greenq.protocol.message import TaskMessage, decode
from greenq.protocol.signer import Signer
from greenq.remote.queue_counts import QueueCounts, QueuesSnapshot
from greenq.running.request import Request
from greenq.sending.routing import Router
from greenq.states import FAILURE
from greenq.transport import recovery
from greenq.transport.broker import Broker
from greenq.transport.chords import Chords
from greenq.transport.client import Client, Published
from greenq.transport.continuation import Noted
from greenq.transport.dead_letters import DeadLimits, read_letter
from greenq.transport.fetch import Delivery
from greenq.transport.group_store import GroupStore, LoadReport
from greenq.transport.leases import Leases
from greenq.transport.mailbox import Mailbox
from greenq.transport.members import Recycling
from greenq.transport.owner import Owner
from greenq.transport.revokes import RevokeStore
from greenq.transport.schedule_store import ScheduleStore
from greenq.transport.settle import SETTLE, Fence, Move, Settlement, settle
from greenq.transport.takers import Takers
from greenq.transport.workflows import Workflows
from greenq.utils import log
from greenq.utils.log import Repeated
from greenq.utils.probe import Address
from greenq.watchdog.subscriber import Subscriber
from greenq.worker import Worker
from greenq.worker_parts.options import WorkerOptions
from tests.servers import ROOT, Server, greenq_worker
from tests.support import wait_until
from tests.unit.consumer.test_gossip import World
from tests.unit.node import Node
from tests.unit.rig import KeptOutbox, Rig

PAGE = Path(ROOT, "docs", "bounds.md").read_text("utf-8")
MIB = 1 << 20
JSON = frozenset({"application/json"})
HOUR_S = 3600

# Row → its flood.
IN_MEMORY: dict[str, Callable[[], None]] = {}
ON_SERVER: dict[str, Callable[[Server, Client], None]] = {}


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table below a heading of the page."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


MEMORY_ROWS = [row[0] for row in rows("In a worker and in a sender, filled by others")]
SERVER_ROWS = [row[0] for row in rows("On the server")]


def memory(row: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def add(flood: Callable[[], None]) -> Callable[[], None]:
        IN_MEMORY[row] = flood
        return flood

    return add


def on_server(*keys: str) -> Callable[..., Any]:
    def add(flood: Callable[[Server, Client], None]) -> object:
        ON_SERVER[", ".join(keys)] = flood
        return flood

    return add


def make_rig(**options: Any) -> Rig:
    rig = Rig(**options)
    rig.task("add", acks_late=True)(lambda x, y: x + y)
    return rig


def with_headers(rig: Rig, **headers: Any) -> bytes:
    message = json.loads(rig.delivery("add", "x", 1, 2).raw)
    message["headers"] |= headers
    return json.dumps(message).encode()


def event(kind: str, node: str, **fields: Any) -> dict[str, Any]:
    of_all = {"hostname": node, "pid": 7, "clock": 1, "timestamp": 1.0, "type": kind}
    return {**of_all, "local_received": 1.0, **fields}


# --- in memory ------------------------------------------------------------------------------------


@memory("totals of tasks")
def flood_totals() -> None:
    rig = make_rig()
    for number in range(300):
        rig.give("add", f"id {number}", 1, 2, shadow=f"{number}" * 300)

    assert rig.state.total == {"add": 300}


@memory("texts for people")
def flood_texts() -> None:
    rig, name, text = make_rig(), "x" * 1000, "x" * 65_000
    raw = with_headers(rig, shadow=name, origin=name, argsrepr=text, kwargsrepr=text)
    slow = decode(envelope.unwrap(raw), accept=JSON, max_body_bytes=MIB)

    # The fast way leaves long texts to the other one.
    assert fast_decode.read(raw, accept=JSON, max_body_bytes=MIB) is None
    assert (len(slow.shadow or ""), len(slow.origin or "")) == (200, 200)
    assert (len(slow.argsrepr or ""), len(slow.kwargsrepr or "")) == (2000, 2000)


@memory("ids of a message")
def flood_ids() -> None:
    for header in ("id", "root_id", "parent_id", "group"):
        rig = make_rig()
        delivery = rig.delivery("add", "x", 1, 2)
        rig.give_all([delivery._replace(raw=with_headers(rig, **{header: "x" * 1001}))])

        (move,) = rig.outbox.moves()
        assert move.key == "greenq.dead.celery"
        assert all(len(task_id) < 1000 for task_id, _state in rig.outbox.states())


@memory("revoked ids")
def flood_revoked() -> None:
    revoked = Revoked()
    revoked.update(f"{number}" for number in range(51_000))
    assert len(revoked.ids()) == 50_000
    revoked.update(f"{number}".ljust(1000) for number in range(5_000))
    assert sum(map(len, revoked.ids())) <= 4_000_000
    # While the server is away, what it is to keep waits here.
    new = revoked.take_new()
    assert len(new) <= 50_000
    revoked.return_new(new * 2)
    for number in range(5_000):
        revoked.add_stamps({"x" * 900: f"{number}".ljust(900)})
    assert sum(len(text) for texts in revoked.take_new() for text in texts) <= 4_000_000
    revoked.add("x" * 1001)
    assert max(map(len, revoked.ids())) == 1000

    # What has expired pushes nothing out, and revokes nobody's task.
    rig = make_rig()
    rig.state.revoked.add("revoked")
    for number in range(100):
        rig.give("add", f"{number}", 1, 2, expires=datetime.now(UTC) - timedelta(1))
    assert rig.state.revoked.ids() == ["revoked"]


@memory("stopped workflows")
def flood_stopped_workflows() -> None:
    revoked = Revoked()
    revoked.stop_workflows({f"{number}": "cancelled" for number in range(11_000)})
    assert len(revoked.workflows) == 10_000


@memory("groups in the index that clients have sent")
def flood_groups_of_clients() -> None:
    broker = Broker(Client("redis://nowhere.invalid"), Keys())
    index = WorkflowIndex(broker, Revoked(), "w@h", 60)
    body = {"task": "b", "args": [], "kwargs": {}, "options": {"task_id": "b"}}
    task: Any = None
    for number in range(1100):
        message = TaskMessage(task="t", id=f"{number}", group=f"g{number}", chord=body)
        index.began(Request(Delivery("", "celery", b""), message, task, acks_late=True))
    assert len(index._groups) == 1000


@memory("revoked stamps")
def flood_stamps() -> None:
    revoked = Revoked()
    revoked.add_stamps({f"name {number}": ["x"] for number in range(30_000)})
    revoked.add_stamps({"name": [f"{number}" for number in range(30_000)]})
    assert sum(map(len, revoked.stamps.values())) == 50_000
    revoked.add_stamps({"long": [f"{number}".ljust(900) for number in range(10_000)]})
    revoked.add_stamps({"x" * 1001: "x", "x": "x" * 1001})
    assert sum(map(len, revoked.stamps["long"])) <= 4_000_000
    assert "x" not in revoked.stamps


@memory("neighbours")
def flood_neighbours() -> None:
    world = World()
    world.greeted = {f"{number}" for number in range(12_000)}
    world.gossip.start()
    for number in range(12_000):
        world.gossip._note(event("worker-heartbeat", f"{number}", freq=1e9, junk="x" * 5000))
    world.gossip._note(event("worker-heartbeat", "x" * 256))

    assert len(world.gossip.neighbours) == 10_000
    assert len(world.gossip._strangers) <= 10_000
    assert not any("x" in repr(each) for each in world.gossip.neighbours.values())


@memory("elections")
def flood_elections() -> None:
    world = World()
    world.leased = None
    vote = {"topic": "lead", "action": "x" * 5000, "cver": 1}
    for number in range(1500):
        world.gossip._note(event("worker-elect", f"n{number % 3}", id=f"{number}", **vote))
    for number in range(25_000):
        world.gossip._note(event("worker-elect", f"{number}", id="1", **vote))
    world.gossip._note(event("worker-elect", "n", id="x" * 256, **vote))

    elections = world.gossip.voting.elections.values()
    assert len(elections) == 1000
    assert sum(len(each.votes) for each in elections) == 20_000
    assert all(each.action is None for each in elections)
    for number in range(1000):
        world.gossip.voting.decide(f"{number}")
    assert world.gossip.voting.votes == 0
    assert len(world.gossip.voting.decided) == 1000
    with pytest.raises(ValueError, match="255"):
        world.gossip.elect("x" * 256, "lead", None)


@memory("published messages received")
def flood_ear() -> None:
    hub: Any = SimpleNamespace(spawn_soon=lambda *_arguments, **_options: None)
    connection: Any = SimpleNamespace(subscribe=lambda *_kinds: None, unsubscribe=lambda *_kinds: 0)
    subscriber = Subscriber(hub, changed=bool)
    subscriber.subscribe("c", print)
    for size, count in ((10, 12_000), (MIB, 50)):
        messages = [Published("c", bytes(size))] * count
        connection.messages = lambda messages=messages: messages
        subscriber.poll(connection)
        assert len(subscriber._waiting) <= 10_000
        assert sum(len(each.data) for each in subscriber._waiting) <= 32 * MIB


@memory("published messages on a connection")
def flood_connection() -> None:
    connection = Client("redis://127.0.0.1:1/0").connection(pushes=True)
    for size, count in ((10, 12_000), (MIB, 50)):
        for _ in range(count):
            connection._keep([b"message", b"c", bytes(size)])
        assert len(connection._published) <= 10_000
        assert sum(len(each.data) for each in connection._published) <= 32 * MIB


def kept_events() -> EventsStep:
    outbox: Any = SimpleNamespace(wake=bool)
    return EventsStep(outbox, Keys(), "me@host", LamportClock(), tasks=True)


@memory("task events to publish")
def flood_task_events() -> None:
    events = kept_events()
    for _ in range(11_000):
        events.received(TaskMessage(task="t", id="i"))

    assert len(events._batch) == 10_000


@memory("worker events to publish")
def flood_worker_events() -> None:
    events = kept_events()
    for _ in range(11_000):
        events.send("worker-elect", {"id": "1"})
    assert len(events._others) == 10_000
    for _ in range(40):
        events.send("worker-elect", {"action": "x" * MIB})
    assert sum(len(each.text) for each in events._others) <= 16 * MIB


@memory("ETAs held")
def flood_etas() -> None:
    rig = make_rig()
    eta = datetime.now(UTC) + timedelta(seconds=60)
    rig.give("add", "large", "x" * 20_000, 2, eta=eta)
    assert len(rig.tasks.scheduled()) == 0
    one = rig.delivery("add", "one", 1, 2, eta=eta)
    rig.give_all(one._replace(tag=f"rig:{number}") for number in range(10, 4110))

    assert len(rig.tasks.scheduled()) == len(rig.timer._heap) == 4000
    assert len(rig.outbox.moves()) == 101


@memory("rate limits")
def flood_lines() -> None:
    rig = make_rig()
    rig.app.tasks["add"].rate_limit = "1/h"
    one = rig.delivery("add", "one", 1, 2)
    rig.give_all(one._replace(tag=f"rig:{number}") for number in range(10, 4210))

    assert len(rig.tasks.waiting()) == 4000
    assert len(rig.outbox.moves()) >= 100


class FullOutbox(KeptOutbox):
    """An outbox whose server is away."""

    def __init__(self) -> None:
        super().__init__()
        self.rests = 0
        self.entries = [Settlement("")] * 2000

    def wait_written(self, _timeout_s: float) -> bool:
        self.rests += 1
        return False


@memory("outcomes to write")
def flood_outbox() -> None:
    rig = make_rig()
    rig.fetcher.ready = [rig.delivery("add", f"{number}", 1, 2) for number in range(10)]
    outbox: Any = FullOutbox()
    rig.tasks._outbox = outbox
    rig.tasks._stopping = True
    rig.tasks.turn()

    assert (rig.fetcher.takes, outbox.rests) == (0, 1)


@memory("queues added")
def flood_queues() -> None:
    node = Node()
    take_from: Any = bool
    node.parts.queues._take_from = take_from  # type: ignore[method-assign]
    for number in range(1000):
        assert "ok" in node.ask("add_consumer", queue=f"{number}")
        node.ask("cancel_consumer", queue=f"{number}")
    for refused in ({"queue": "one more"}, {"queue": "1", "exchange": "x"}, {"queue": "x" * 256}):
        assert "ValueError" in node.ask("add_consumer", **refused)["error"]

    assert len(node.parts.queues._added) == 1000
    assert "ok" in node.ask("add_consumer", queue="1")
    node.close()


@memory("arguments in replies")
def flood_replies() -> None:
    node = Node()
    node.give("wait", "large", "x" * MIB)
    node.give("wait", "small", "x")

    told = {each["id"]: each["args"] for each in node.ask("active")}
    assert told["small"] == ["x"]
    assert isinstance(told["large"], str)
    assert len(told["large"]) < 3000
    node.close()


@memory("nodes that reply to a request")
def flood_answer() -> None:
    mailbox = Mailbox(Client("redis://127.0.0.1:1/0"), Keys())
    patched: Any = mailbox
    patched._client.pooled = lambda _s: closing(SimpleNamespace(close=bool))
    patched._publish = lambda *_arguments: 2
    patched._forget = bool
    patched._forget = lambda *_arguments: None
    many = {f"{number}": {} for number in range(20_000)}
    patched._replies = lambda *_arguments: iter([Reply("t", 1, many), Reply("t", 1, many)])

    assert len(mailbox.ask("ping")) == 10_000


@memory("log lines")
def flood_log(caplog: pytest.LogCaptureFixture) -> None:
    node, world = Node(), World()
    control: Any = node.parts.control
    with caplog.at_level(logging.INFO):
        for number in range(1000):
            control.handle(b"garbage %d" % number)
            world.gossip.receive(b"garbage %d" % number)
            world.gossip._note(event("worker-online", f"{number}"))
            world.gossip._note(event("worker-offline", f"{number}"))
            node.ask(f"nonsense {number}")
    node.close()

    assert len(caplog.records) == 1 + 4 * 100 - 100 + 1


@memory("a log line")
def flood_line() -> None:
    record = logging.LogRecord("x", 20, "x.py", 1, "%s", ("x" * 10 * MIB,), None)

    assert len(log._Formatter(colored=False).format(record)) < 101_000


@memory("routes known")
def flood_routes() -> None:
    router = Router(TaskConfig())
    for number in range(10_500):
        router.route(f"{number}")

    assert len(router._known) == 500


@memory("queues declared")
def flood_declared() -> None:
    client: Any = SimpleNamespace(pipeline=list)
    broker = Broker(client, Keys())
    for number in range(10_500):
        broker.declare([f"{number}"])

    assert len(broker._declared) == 500


@memory("names of lists")
def flood_lists() -> None:
    client: Any = SimpleNamespace(pipeline=list)
    lists: Any = Broker(client, Keys())._list
    for number in range(10_500):
        lists(f"{number}", number % 10)

    assert lists.cache_info().currsize == 10_000


@memory("queues asked about")
def flood_asked() -> None:
    takers = Takers(Keys())
    for number in range(10_500):
        takers.question(f"{number}")

    assert len(takers.ask_at_s) == 500


@memory("plans of sendings")
def flood_plans() -> None:
    app = make_rig().app
    for number in range(1000):
        app.producer.prepare("add", (), {}, {"queue": f"{number}"})

    assert len(app.producer._kept) <= 256


@memory("kinds of events")
def flood_kinds() -> None:
    writer = EventWriter("me@host", LamportClock())
    for number in range(200):
        writer.write(writer.stamp(f"mine-{number}", {}))

    assert len(writer._frames) == 100


@memory("refused signatures")
def flood_refused() -> None:
    signer, other = Signer(b"k" * 32), Signer(b"o" * 32)
    for number in range(200):
        for data in (b"%d" % number, *(each.seal("reply", "", b"{}") for each in (signer, other))):
            with suppress(SignatureError):
                signer.open("message", f"{number}", data)

    assert len(signer.refused) == 3


@memory("beginnings of signatures")
def flood_begun_signatures() -> None:
    signer: Any = Signer(b"k" * 32)
    for number in range(1500):
        signer.seal("message", f"{number}", "{}")

    assert signer._begun.cache_info().currsize == 1000


@memory("tasks that metrics count")
def flood_metrics() -> None:
    tally, error = TaskTally(), ValueError()
    active: set[Any] = set()
    parts: Any = SimpleNamespace(pool=SimpleNamespace(active=active))
    reading = Reading(parts, cast_none(), tally, cast_none(), cast_none())
    message, task = TaskMessage(task="t", id="i"), SimpleNamespace(name="t", trail=True)
    for number in range(1500):
        request = Request(Delivery("", f"{number}", b""), message, cast(task), acks_late=True)
        tally.received(request)
        active.add(request)
    assert reading.started().total() == 1500
    for request in active:
        tally.ended(request, FAILURE, error, 0.1)
    active.clear()
    for number in range(1500):
        tally.ended(request, FAILURE, type(f"E{number}", (Exception,), {})(), 0.1)

    assert len(tally.series) == 1001
    assert len(tally.failures) <= 1001
    assert reading.started().total() == 3000
    assert len(reading.started()) == 1001


@memory("connections for health and metrics")
def flood_connections() -> None:
    with ExitStack() as stack, answering({}) as server:
        most = 0
        for _ in range(100):
            stack.enter_context(connected(server)).sendall(b"G" * 1000)
            most = max(most, len(server._exchanges))
        assert b"200" in asked(server, "/quick")
        assert 16 < most <= 32
        # A long request is refused once it is too long.
        with connected(server) as talker, suppress(OSError):
            talker.sendall(b"G" * MIB)
        assert all(len(each._head) <= 16_384 for each in server._exchanges)
    assert server._exchanges == []


@memory("slow responses for health and metrics")
def flood_answers() -> None:
    go, counts = threading.Event(), []

    def slow() -> Response:
        go.wait(15)
        counts.append(len(server._wanted) + len(server._computed))
        return json_response(200, {})

    with ExitStack() as stack, answering({"/slow": slow, "/other": slow}) as server:
        clients = [stack.enter_context(connected(server)) for _ in range(30)]
        for number, client in enumerate(clients):
            client.sendall(b"GET /%s HTTP/1.1\r\n\r\n" % (b"other" if number % 2 else b"slow"))
        wait_until(lambda: sum(each.path is not None for each in server._exchanges) == 30)
        assert server._computing == {"/slow", "/other"}
        go.set()
        for client in clients:
            assert b" 200 " in client.recv(1000)
    assert len(counts) == 2
    assert max(counts) <= 2
    assert not server._computing


@contextmanager
def answering(slow: dict[str, Callable[[], Response]]) -> Iterator[HttpServer]:
    quick = {"/quick": lambda: json_response(200, {})}
    server = HttpServer([Address("127.0.0.1", 0)], quick=quick, slow=slow)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def connected(server: HttpServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.bound[0].port), 15)


def asked(server: HttpServer, path: str) -> bytes:
    with connected(server) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\n\r\n".encode())
        return client.recv(1000)


@memory("counts of the cluster's queues")
def flood_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks all the time, beside a worker that says that it takes from many queues."""
    node, now_s = Node(), 1000.0
    names = [f"{number}" for number in range(5000)]
    roll = SimpleNamespace(queues={"liar": names}, living=["liar"])
    monkeypatch.setattr("greenq.monitoring.cluster_stats.call_roll", lambda *_given: roll)
    monkeypatch.setattr(
        "greenq.monitoring.cluster_stats.look",
        lambda _broker, wanted: QueuesSnapshot(now_s, {name: QueueCounts(name) for name in wanted}),
    )
    stats: Any = ClusterStats(node.parts, clock=lambda: now_s)
    stats._connect = lambda: SimpleNamespace(
        client=SimpleNamespace(pipeline=lambda _commands: (0,), close=bool), keys=Keys()
    )
    for _ in range(500):
        now_s += 0.5
        stats.read()
    node.close()

    assert len(stats._looks) <= 62
    assert all(len(each.queues) == 1000 for each in stats._looks)


@memory("spans of messages being sent")
def flood_spans() -> None:
    instrumentation = _Instrumentation(TracerProvider(), MeterProvider())
    for number in range(1500):
        instrumentation.sending("t", {"id": f"{number}"}, "celery")

    assert len(instrumentation._sending) == 1000


@memory("tasks and workers of a monitor")
def flood_state() -> None:
    state = State()
    for number in range(11_000):
        state.event(event("task-received", f"{number}", uuid=f"{number}", name="t"))
        state.event(event("worker-heartbeat", f"{number}"))

    assert (len(state.tasks), len(state.workers)) == (10_000, 5_000)
    assert all(len(worker.heartbeats) < 10 for worker in state.workers.values())


@memory("tasks counted by `top`")
def flood_tally() -> None:
    tally = EventTally()
    for number in range(51_000):
        tally.note(
            {"type": "task-received", "uuid": f"{number}", "name": f"{number}", "runtime": 1}
        )

    assert len(tally._names) == 50_000
    assert len(tally._counts) == len(tally._runtimes) == 1001


@memory("tasks named by `events`")
def flood_lines_of_events() -> None:
    lines = Lines()
    for number in range(5000):
        lines.line(event("task-received", "n", uuid=f"{number}", name="t"))

    assert len(lines._names) == 4096


@pytest.mark.parametrize("row", MEMORY_ROWS)
def test_what_others_fill_in_memory_is_bounded(row: str, request: pytest.FixtureRequest) -> None:
    assert row in IN_MEMORY, f"a flood is missing for the row {row!r} of docs/bounds.md"
    flood: Any = IN_MEMORY[row]
    flood(*(request.getfixturevalue(name) for name in inspect.signature(flood).parameters))


def test_no_flood_is_without_a_row() -> None:
    assert IN_MEMORY.keys() <= set(MEMORY_ROWS)
    assert {key.replace("`", "") for key in SERVER_ROWS} == ON_SERVER.keys()


GROWING = {"deque", "set", "dict", "list", "Counter", "OrderedDict", "Backlog", "_Aging"}


def growing() -> Iterator[str]:
    """Find the attributes that are made empty and may grow, as Class.attribute."""
    for path in Path(ROOT, "greenq").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                for each in ast.walk(node):
                    if isinstance(each, ast.Assign | ast.AnnAssign) and _is_empty(each.value):
                        targets = each.targets if isinstance(each, ast.Assign) else [each.target]
                        yield from (
                            f"{node.name}.{target.attr}"
                            for target in targets
                            if isinstance(target, ast.Attribute)
                        )


def _is_empty(value: ast.expr | None) -> bool:
    match value:
        case ast.Dict(keys=[]) | ast.List(elts=[]):
            return True
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            return name in GROWING
    return False


def test_whatever_may_grow_stands_in_the_page() -> None:
    found = set(growing())

    assert len(found) > 50
    assert sorted(each for each in found if f"`{each}`" not in PAGE) == []


# --- on the server --------------------------------------------------------------------------------


def size_of(server: Server, key: str) -> int:
    return int(server.client.memory_usage(key, samples=0) or 0)


@on_server("greenq.dead.*")
def flood_dead(server: Server, client: Client) -> None:
    keys = Keys()
    broker = Broker(client, keys, DeadLimits(MIB, 2 * HOUR_S))
    now = datetime.now(UTC)

    def bury(raw: bytes, at: datetime = now) -> None:
        move = broker.bury("", "celery", raw, reason="r" * MIB, worker="w", now=at)
        settle(client, keys, [Settlement.moving(move)], fence=Fence(""))

    named = make_rig().delivery("add", "x", "x" * 50_000).raw
    for number in range(60):
        bury(named if number % 2 else b"%d" % number + bytes(MIB))
        assert size_of(server, "greenq.dead.celery") <= MIB
    letters = [
        read_letter("celery", each) for each in server.client.lrange("greenq.dead.celery", 0, -1)
    ]
    assert 5 < len(letters) < 30
    assert {len(each.raw) for each in letters} == {65_536, len(named)}
    assert [each.is_cut for each in letters] == [each.raw != named for each in letters]
    assert all(len(each.reason) < 2100 for each in letters)

    # One that is larger than half of all is cut, and the others stay.
    server.client.delete("greenq.dead.celery")
    bury(named)
    bury(with_headers(make_rig(), junk="x" * MIB))
    assert server.client.llen("greenq.dead.celery") == 2
    assert server.client.ttl("greenq.dead.celery") in range(2 * HOUR_S - 60, 2 * HOUR_S + 1)

    # Old ones go when others come.
    server.client.delete("greenq.dead.celery")
    bury(named, now - timedelta(hours=3))
    bury(named, now - timedelta(hours=1))
    bury(named)
    assert server.client.llen("greenq.dead.celery") == 2

    # By number.
    server.client.delete("greenq.dead.celery")
    moves = [Move("", "greenq.dead.celery", "dead 99999999 0 -", f"{i}") for i in range(10_500)]
    settle(client, keys, [Settlement.moving(move) for move in moves], fence=Fence(""))
    assert server.client.llen("greenq.dead.celery") == 10_000


@on_server("greenq.paused")
def flood_paused(server: Server, client: Client) -> None:
    broker = Broker(client, Keys())
    for number in range(1000):
        broker.pause(f"{number}", "x" * MIB)
    broker.pause("1", "again")
    for refused in ("one more", "x" * 256):
        with pytest.raises(ValueError, match=r"already|characters"):
            broker.pause(refused, "me")

    assert server.client.hlen("greenq.paused") == 1000
    assert size_of(server, "greenq.paused") < MIB


@on_server("_kombu.binding.reply.celery.pidbox")
def flood_askers(server: Server, client: Client) -> None:
    mailbox = Mailbox(client, Keys())
    with client.pooled() as connection:
        for _ in range(1100):
            to = ReplyTo(REPLY_EXCHANGE, new_id())
            mailbox._publish(connection, to, "x")

    assert server.client.scard("_kombu.binding.reply.celery.pidbox") == 1000
    assert server.client.sismember("_kombu.binding.reply.celery.pidbox", mailbox._member(to))


@on_server("*.reply.celery.pidbox")
def flood_reply_list(server: Server, client: Client) -> None:
    mailbox, to = Mailbox(client, Keys()), ReplyTo(REPLY_EXCHANGE, "me")
    request = ControlRequest(method="ping", ticket="t", reply_to=to)
    with client.pooled() as connection:
        mailbox._publish(connection, to, "x")
        server.client.rpush(to.queue, *range(9_990))
        answers = [mailbox.reply(request, "n", {}, connection=connection) for _ in range(30)]

    assert answers == [True] * 10 + [False] * 20
    assert 0 < server.client.ttl(to.queue) <= 60


@on_server("_kombu.binding.*", "_kombu.binding_permanent.*")
def flood_bindings(server: Server, client: Client) -> None:
    app = Greenq("bounds", broker=server.url, set_as_current=False)
    queues = Worker(app, WorkerOptions(hostname="me@host")).parts.queues
    take_from: Any = bool
    queues._take_from = take_from  # type: ignore[method-assign]
    for number in range(1100):
        with suppress(ValueError):
            queues.add(f"{number}", Binding(Exchange(f"x{number}"), "k"))
            queues.cancel(f"{number}")
    app.close()

    assert len(server.client.keys("_kombu.binding.*")) == 1000
    assert len(server.client.keys("_kombu.binding_permanent.*")) == 1000


@on_server("_kombu.binding_deadlines")
def flood_deadlines(server: Server, client: Client) -> None:
    flood_askers(server, client)

    assert server.client.zcard("_kombu.binding_deadlines") == 1


@on_server("greenq.unsealed")
def flood_unsealed(server: Server, client: Client) -> None:
    day_s, now_s = 86400, time.time()
    old = {f'{{"group": "{number}"}}': now_s - 8 * day_s for number in range(500)}
    server.client.zadd("greenq.unsealed", {**old, '{"group": "new"}': now_s - 6 * day_s})

    Chords(client, None, Keys(), 60).open("g", "proj.total", "b", None)

    assert server.client.zcard("greenq.unsealed") == 2


@on_server("greenq.workflows", "greenq.workflows.stopped")
def flood_workflows(server: Server, client: Client) -> None:
    index = Workflows(client, client, Keys(), 600)
    server.client.zadd(
        "greenq.workflows", {f"old{number}": number + 1e9 for number in range(10_100)}
    )
    server.client.zadd("greenq.workflows", {"kept": time.time() - 60})
    index.note([Noted("w", 600, "a", "w")])
    for number in range(20):
        index.note([Noted(f"w{number}", 600, "a", "w")])
    assert server.client.zcard("greenq.workflows") <= 10_000
    assert 0 < server.client.ttl("greenq.workflows") <= 30 * 24 * HOUR_S

    server.client.hset(
        "greenq.workflows.stopped", mapping={f"{n}": "paused 1" for n in range(10_001)}
    )
    index.stop("w", "cancelled")
    assert server.client.hlen("greenq.workflows.stopped") == 2
    now_s = int(time.time())
    new = {f"{number}": f"paused {now_s}" for number in range(10_001)}
    server.client.hset("greenq.workflows.stopped", mapping=new)
    with pytest.raises(GreenqError, match="too many workflows are stopped"):
        index.stop("w1", "paused")
    assert 0 < server.client.ttl("greenq.workflows.stopped") <= 30 * 24 * HOUR_S


@on_server("greenq.workflow.*")
def flood_workflow(server: Server, client: Client) -> None:
    index = Workflows(client, client, Keys(), 600)
    for first in range(0, 101_000, 1000):
        index.note([Noted("w", 600, f"{first + n}", "w") for n in range(1000)])
    assert server.client.hlen("greenq.workflow.w.nodes") == 100_000
    record = index.record("w")
    assert record is not None
    assert (record.left_out, record.counts["w"]) == (1000, 100_000)

    index.note([Noted("w", 600, f"{n}", "f", kept="x" * MIB) for n in range(30)])
    assert server.client.hlen("greenq.workflow.w.failed") == 16
    for _ in range(100):
        index.call("w", "e", "celery", "x")
    with pytest.raises(GreenqError, match="too many calls"):
        index.call("w", "e", "celery", "x")
    for key in server.client.keys("greenq.workflow.*"):
        assert 0 < server.client.ttl(key) <= 600
    index.stop("w", "paused")
    for key in server.client.keys("greenq.workflow.w*"):
        assert server.client.ttl(key) > 29 * 24 * HOUR_S


@on_server("celery-taskset-meta-*")
def flood_groups(server: Server, client: Client) -> None:
    app = Greenq("bounds", broker=server.url, set_as_current=False, result_expires=600)
    for number in range(50):
        app.GroupResult(f"g{number}", [app.AsyncResult("a")]).save()
    app.close()

    assert len(server.client.keys("celery-taskset-meta-*")) == 50
    assert ttl_in(server, "celery-taskset-meta-*", 600)


@on_server("greenq.gone")
def flood_gone(server: Server, client: Client) -> None:
    for number in range(150):
        server.client.zadd("greenq.leases", {f"{number}": 1})
        client.script(
            recovery._LEAVE,
            ["greenq.leases", f"greenq.owner.{number}", "greenq.gone"],
            [f"{number}", "1", 60, "died", recovery._GONE, recovery._GONE_S],
        )

    assert server.client.llen("greenq.gone") == 100
    assert 0 < server.client.ttl("greenq.gone") <= HOUR_S


@on_server("greenq.beat.entries", "greenq.beat.paused")
def flood_periodic(server: Server, client: Client) -> None:
    store = ScheduleStore(client, Keys())
    with server.client.pipeline() as many:
        for number in range(100_000):
            many.hset("greenq.beat.entries", f"{number}", "{}")
            many.hset("greenq.beat.paused", f"{number}", "{}")
        many.execute()
    store.put("1", "again")
    store.pause("1", {})
    for name, text in (("one more", "{}"), ("x" * 256, "{}"), ("2", "x" * MIB)):
        with pytest.raises(ValueError, match=r"already|characters|bytes"):
            store.put(name, text)
    with pytest.raises(ValueError, match="already"):
        store.pause("one more", {})

    assert server.client.hlen("greenq.beat.entries") == 100_000
    assert server.client.hlen("greenq.beat.paused") == 100_000


@on_server("greenq.beat.states", "greenq.beat.runs")
def flood_states(server: Server, client: Client) -> None:
    now_us = time.time_ns() // 1000
    for number in range(100):
        age_us = (399 + number % 2 * 2) * 24 * HOUR_S * 1_000_000
        server.client.hset("greenq.beat.states", f"{number}", f"{now_us - age_us} 0 - 0")
        server.client.hset("greenq.beat.runs", f"{number}", "{}")
    beat_once(server)

    assert server.client.hlen("greenq.beat.states") == 51
    assert server.client.hlen("greenq.beat.runs") == 50


@on_server("greenq.beat.history")
def flood_history(server: Server, client: Client) -> None:
    server.client.rpush("greenq.beat.history", *["1 1 id old"] * 10_000)
    beat_once(server)

    assert server.client.llen("greenq.beat.history") == 10_000
    assert server.client.lindex("greenq.beat.history", 0).endswith(b" each")


@on_server("greenq.beat.changes")
def flood_changes(server: Server, client: Client) -> None:
    store = ScheduleStore(client, Keys())
    for _ in range(100):
        store.put("each", "{}")
    assert server.client.get("greenq.beat.changes") == b"100"


@on_server("greenq.beat.leader.*")
def flood_leaders(server: Server, client: Client) -> None:
    beat_once(server)
    assert len(server.client.keys("greenq.beat.leader.*")) == 1
    assert ttl_in(server, "greenq.beat.leader.*", 10)


@on_server("greenq.processes.*")
def flood_processes(server: Server, client: Client) -> None:
    """Processes that come and go leave their reports for some seconds, their marks for a day."""
    report = LoadReport(busy=0.5, running=1, waiting=0, draining=False)
    for number in range(20):
        store = GroupStore(client, Keys(), group="g", process=f"p{number}", interval_s=1.0)
        store.report(report)
        store.mark(f"p{number}", drain=True)
    assert len(server.client.keys("greenq.processes.*")) == 3
    assert ttl_in(server, "greenq.processes.leader.*", 6)
    assert ttl_in(server, "greenq.processes.reports.*", 6)
    assert ttl_in(server, "greenq.processes.draining.*", 24 * HOUR_S)


@on_server("greenq.recycling.*")
def flood_recycling(server: Server, client: Client) -> None:
    """Many workers of one group reach their limits at once, each asks again and again."""
    keys = Keys()
    for number in range(50):
        owner = Owner(f"i{number}", f"w{number}@h", "")
        server.client.zadd("greenq.leases", {str(owner): time.time() + 60})
        server.client.hset(f"greenq.owner.i{number}", "queues", '["celery"]')
    nodes = [Recycling(client, keys, f"w{number}@h", lambda: ["celery"]) for number in range(50)]
    (key,) = {node._key() for node in nodes}
    for most in (3, 1, 10):
        granted = [node for node in nodes * 3 if not node.claim(most, 60.0)]
        assert {node._node for node in granted} <= {f"w{number}@h" for number in range(most)}
        assert server.client.zcard(key) == most
        assert 0 < server.client.ttl(key) <= 60
        server.client.delete(key)

    # One that died while it was away counts for so long only.
    server.client.zadd(key, {f"dead{number}@h": 1 for number in range(1000)})
    assert nodes[0].claim(1, 60.0) == []
    assert server.client.zcard(key) == 1
    nodes[0].returned()
    assert server.client.keys("greenq.recycling.*") == []


@on_server("greenq.revoked")
def flood_revoked_on_server(server: Server, client: Client) -> None:
    """Someone publishes revokes without end, which each worker writes there."""
    node, store = Revoked(), RevokeStore(client, Keys(), keep_s=600)
    for first in range(0, 52_000, 2_000):
        node.update(f"{first + n}" for n in range(2_000))
        store.add(node.take_new())
    assert server.client.zcard("greenq.revoked") == 50_000
    assert server.client.zscore("greenq.revoked", '["51999"]')
    assert not server.client.zscore("greenq.revoked", '["0"]')

    # In JSON, a character may take 12 bytes.
    for first in range(0, 3_000, 200):
        node.add_stamps({f"{first + n}".ljust(1000, "\U0001f600"): "\U0001f600" * 1000
                         for n in range(200)})  # fmt: skip
        store.add(node.take_new())
        assert size_of(server, "greenq.revoked") <= 32 * MIB
    found = RevokeStore(client, Keys(), keep_s=600).read_new()
    assert found[-1][0][0].startswith("2999")
    assert 1000 < len(found) < 2000
    node.add("x" * 1001)
    store.add(node.take_new())
    assert len(RevokeStore(client, Keys(), keep_s=600).read_new()) == len(found)
    assert 0 < server.client.ttl("greenq.revoked") <= 600


def beat_once(server: Server) -> None:
    """Have a beat send one task."""
    schedule = {"each": {"task": "t", "schedule": 0.2}}
    app = Greenq("bounds", broker=server.url, set_as_current=False, beat_schedule=schedule)
    beat = Scheduler(app)

    def sent() -> object:
        beat.tick()
        return server.client.llen("celery")

    wait_until(sent)
    app.close()


@on_server("unacked_mutex")
def flood_mutex(server: Server, client: Client) -> None:
    server.client.zadd("unacked_index", {"a:1": 1})
    broker, owner, none = Broker(client, Keys()), Owner("o", "n", ""), cast_none()
    with closing(client.connection()) as connection:
        leases = Leases(connection, broker, owner, queues=(), lease_s=3,
            visibility_timeout_s=1, recovery=none)  # fmt: skip
        assert leases.overdue() == ["a:1"]

    assert 0 < server.client.ttl("unacked_mutex") <= 10


def cast_none() -> Any:
    return None


def cast(value: object) -> Any:
    return value


def run_worker(server: Server) -> None:
    """Have a worker do one of each, and stop."""
    app = Greenq("bounds", broker=server.url, set_as_current=False)
    with greenq_worker(server.url, "-c", "50"):
        vote = {"id": "e1", "topic": "task", "action": {"task": "shared.add", "args": [1, 2]}}
        results = [app.send_task("shared.add", (1, number)) for number in range(300)]
        soon = app.send_task("shared.add", (1, 2), countdown=0.5)
        app.send_task("shared.add", (1, 2), expires=-1)
        app.send_task("not.there")
        wait_until(lambda: app.control.inspect().stats())
        app.control.broadcast("election", arguments=vote)
        for result in (*results, soon):
            result.get(timeout=15)
        wait_until(lambda: server.client.exists("greenq.elected.e1"))
        wait_until(lambda: not server.client.exists("celery", "unacked"))
    app.close()


def ttl_in(server: Server, pattern: str, most_s: int) -> bool:
    keys = server.client.keys(pattern)
    return all(0 < server.client.ttl(key) <= most_s for key in keys)


@on_server("greenq.leases")
def flood_leases(server: Server, client: Client) -> None:
    assert not server.client.exists("greenq.leases")


@on_server("greenq.owner.*")
def flood_owner(server: Server, client: Client) -> None:
    assert server.client.keys("greenq.owner.*")
    assert ttl_in(server, "greenq.owner.*", 7 * 24 * HOUR_S)


@on_server("greenq.begun.*")
def flood_begun(server: Server, client: Client) -> None:
    server.client.hset("greenq.owner.o", mapping={"next": 9, "call": 1})
    server.client.hset("unacked", "o:1", "record")
    names = ["unacked", "unacked_index", "greenq.owner.o", "greenq.begun.o", "greenq.leases"]
    client.script(SETTLE, names, [1, 0, 0, 10, "own", "o", "o:1", "b-"])

    assert server.client.scard("greenq.begun.o") == 1
    assert ttl_in(server, "greenq.begun.*", 7 * 24 * HOUR_S)
    server.client.delete("greenq.owner.o", "greenq.begun.o")


@on_server("greenq.relay.*")
def flood_relay(server: Server, client: Client) -> None:
    assert ttl_in(server, "greenq.relay.*", 3)


@on_server("greenq.clock")
def flood_clock(server: Server, client: Client) -> None:
    assert server.client.zcard("greenq.clock") == 1
    assert ttl_in(server, "greenq.clock", 7 * 24 * HOUR_S)


@on_server("greenq.elected.*")
def flood_elected(server: Server, client: Client) -> None:
    assert len(server.client.keys("greenq.elected.*")) == 1
    assert ttl_in(server, "greenq.elected.*", HOUR_S)


@on_server("celery-task-meta-*")
def flood_results(server: Server, client: Client) -> None:
    assert len(server.client.keys("celery-task-meta-*")) == 304
    assert ttl_in(server, "celery-task-meta-*", 24 * HOUR_S)


@on_server("unacked", "unacked_index", "greenq.inbox.*", "greenq.eta.*", "queues")
def flood_messages(server: Server, client: Client) -> None:
    left = server.client.keys("greenq.inbox.*") + server.client.keys("greenq.eta.*")
    assert not left
    assert not server.client.exists("unacked", "unacked_index", "celery")


# Those that look at what one worker has left behind.
AFTER_A_WORKER = (
    flood_leases, flood_owner, flood_begun, flood_relay, flood_clock, flood_elected, flood_results,
    flood_messages,
)  # fmt: skip


def row_of(flood: object) -> str:
    return next(row for row, each in ON_SERVER.items() if each is flood)


@pytest.mark.parametrize(
    "row",
    [
        row
        for row in (each.replace("`", "") for each in SERVER_ROWS)
        if ON_SERVER.get(row) not in AFTER_A_WORKER
    ],
)
def test_what_others_fill_on_the_server_is_bounded(row: str, server: Server) -> None:
    assert row in ON_SERVER, f"a flood is missing for the row {row!r} of docs/bounds.md"
    client = Client(server.url)
    ON_SERVER[row](server, client)
    client.close()


def test_what_a_worker_leaves_behind_ends_and_stands_in_the_page(server: Server) -> None:
    run_worker(server)
    client = Client(server.url)
    for flood in AFTER_A_WORKER:
        flood(server, client)
    client.close()

    patterns = [key for row in SERVER_ROWS for key in re.findall(r"`([^`]+)`", row)]
    left = [key.decode() for key in server.client.keys("*")]
    unknown = [key for key in left if not any(fnmatch.fnmatchcase(key, p) for p in patterns)]
    assert unknown == []


def test_each_kind_of_key_stands_in_the_page() -> None:
    """The names that `Keys` makes, with a star for what a queue, an owner and so on put there."""
    keys: Any = Keys()
    patterns = re.findall(r"`([^`]+)`", " ".join(SERVER_ROWS))
    for name, member in vars(Keys).items():
        if name.startswith("_") or name in {
            *("prefix", "sep", "steps", "result_prefix", "db", "queue", "queue_steps", "step_of"),
            "fanout",
        }:
            continue
        made = getattr(keys, name) if isinstance(member, property) else getattr(keys, name)("x")
        assert any(fnmatch.fnmatchcase(made, pattern) for pattern in patterns), made


def test_a_list_of_dead_letters_that_is_nearly_full_is_told_of_once_a_minute(
    server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greenq.transport.settle._crowded", Repeated(logging.getLogger("test")))
    key = "greenq.dead.celery"
    server.client.rpush(key, *range(7_990))
    client = Client(server.url)
    for number in range(20):
        move = Move("", key, "dead 99999999 0 -", f"{number}")
        settle(client, Keys(), [Settlement.moving(move)], fence=Fence(""))
    client.close()

    said = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert len(said) == 1
    assert f"{key}: 80 %" in said[0]
