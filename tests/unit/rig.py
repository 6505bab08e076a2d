"""The parts of a worker that a task passes, real ones, between a fake fetcher and a fake outbox."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import gevent
import msgspec
import pytest

from greenq import Greenq
from greenq.bootsteps.blueprint import StartStopPart
from greenq.consumer.tasks import Tasks
from greenq.execution.executor import Executor
from greenq.execution.handover import Handover
from greenq.execution.state import WorkerState
from greenq.pool import Pool
from greenq.protocol import envelope
from greenq.protocol.clock import LamportClock
from greenq.protocol.event import EventWriter
from greenq.protocol.message import TaskMessage
from greenq.running.request import Request
from greenq.timer import Timer
from greenq.transport.fetch import Delivery, Taken
from greenq.transport.settle import ACKNOWLEDGE, BEGIN, RUN_ALONE, Settlement

DEADLINE_S = 5.0

# Where nobody listens: nothing here connects.
NOWHERE = "redis://127.0.0.1:1/0"


def settle() -> None:
    """Let every greenlet that can run do so."""
    for _ in range(50):
        gevent.sleep(0)


def wait_for(condition: Callable[[], object]) -> None:
    """Let the others run until `condition` is true."""
    with gevent.Timeout(DEADLINE_S):
        while not condition():
            gevent.sleep(0.001)


def keep_sent(app: Greenq, monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Any]]:
    """Keep the options of what an app sends, instead of sending it."""
    kept: list[Mapping[str, Any]] = []

    def send(_name: str, _args: Any, _kwargs: Any, options: Mapping[str, Any]) -> str:
        kept.append(options)
        return "id"

    monkeypatch.setattr(app.producer, "send", send)
    return kept


# What every event has.
_OF_ALL = ("hostname", "utcoffset", "pid", "clock", "timestamp", "type")


class Heard:
    """An `EventSender` that keeps what it is told, and how many entries the outbox had then."""

    tasks = True

    def __init__(self, outbox: KeptOutbox) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.entries: list[int] = []
        self._outbox = outbox
        self._writer = EventWriter("greenq@rig", LamportClock())

    def send(self, kind: str, fields: Mapping[str, Any]) -> None:
        self.events.append((kind, dict(fields)))
        self.entries.append(len(self._outbox.entries))

    def received(self, message: TaskMessage) -> None:
        self._keep(self._writer.received(message))

    def started(self, uuid: str) -> None:
        self._keep(self._writer.started(uuid))

    def succeeded(self, uuid: str, result: str, runtime: float) -> None:
        self._keep(self._writer.succeeded(uuid, result, runtime))

    def _keep(self, event: Any) -> None:
        fields = msgspec.structs.asdict(event)
        kind = fields["type"]
        self.send(kind, {name: fields[name] for name in fields if name not in _OF_ALL})

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _fields in self.events]

    def of(self, kind: str) -> dict[str, Any]:
        """Return the fields of the one event of a kind."""
        (fields,) = [fields for each, fields in self.events if each == kind]
        return fields


class KeptOutbox(StartStopPart):
    """An outbox whose server answers at once; it keeps all entries.

    Attributes:
        gone: tags of which the server says that they are not held.
    """

    name = "Outbox"
    requires = ("Watch",)

    def __init__(self) -> None:
        self.entries: list[Settlement] = []
        self.expected: set[str] = set()
        self.pushed_to: set[str] | None = None
        self.gone: set[str] = set()

    def wake(self) -> None:
        """Publish nothing: events stay where they are gathered."""

    def tags(self) -> set[str]:
        return set()

    def expect(self, tag: str) -> None:
        """Nothing is waited for here."""

    def put(self, entry: Settlement) -> None:
        self.entries.append(entry)
        if self.pushed_to is not None and entry.workflow is not None:
            self.pushed_to.update(push.key for push in entry.workflow.pushes)
        if entry.written is not None:
            entry.written(entry.tag not in self.gone)

    def __len__(self) -> int:
        return 0

    def stored(self) -> list[dict[str, Any]]:
        """Return the states, in the order in which they were stored."""
        results = [entry.result for entry in self.entries if entry.result is not None]
        return [json.loads(result.payload) for result in results]

    def states(self) -> list[tuple[str, str]]:
        """Return the stored states as (task id, state)."""
        return [(meta["task_id"], meta["status"]) for meta in self.stored()]

    def acks(self) -> list[str]:
        """Return the tags that were acknowledged with the end of their messages."""
        return [entry.tag for entry in self.entries if entry.action == ACKNOWLEDGE and entry.tag]

    def begun(self) -> list[str]:
        """Return the tags that were acknowledged before their run."""
        return [entry.tag for entry in self.entries if entry.action == BEGIN]

    def alone(self) -> list[str]:
        """Return what was announced to run alone, in order; "" for nothing."""
        return [entry.tag for entry in self.entries if entry.action == RUN_ALONE]

    def moves(self) -> list[Any]:
        return [entry.move for entry in self.entries if entry.move is not None]


class HandFetcher:
    """A fetcher that gives what a test puts into it."""

    queues = ("celery",)
    lists = frozenset({"celery"})
    working = True
    unsure = False

    def __init__(self) -> None:
        self.ready: list[Delivery] = []
        self.takes = 0
        # Called when a take is under way.
        self.taking: Callable[[], object] = bool
        self._woken = gevent.event.Event()

    def take(self, most: int) -> Taken:
        self.takes += 1
        self.unsure = False
        self.taking()
        given, self.ready = self.ready[:most], self.ready[most:]
        return Taken(given, len(self.ready))

    def wait(self) -> bool:
        self._woken.clear()
        assert self._woken.wait(DEADLINE_S), "nobody woke the fetcher"
        return bool(self.ready)

    def wake(self, *, look: bool = False) -> None:
        self._woken.set()

    def close(self) -> None:
        pass


class Clock:
    """Seconds that a test lets pass."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Rig:
    """An app's tasks, and what runs them."""

    def __init__(self, *, size: int = 10, rate_limits: bool = True, **settings: Any) -> None:
        self.app = Greenq("rig", broker=NOWHERE, set_as_current=False, **settings)
        self.outbox = KeptOutbox()
        self.events = Heard(self.outbox)
        self.state = WorkerState()
        self.state.lease_until_s = self.state.now_s() + 3600
        self.clock = Clock()
        self.timer = Timer(self.clock)
        self.fetcher = HandFetcher()
        self.abandoned: list[Request] = []
        outbox: Any = self.outbox
        fetcher: Any = self.fetcher
        self.handover = Handover(
            config=self.app.config.task,
            transport=self.app.transport,
            registry=self.app.tasks,
            producer=self.app.producer,
            outbox=outbox,
            hostname="greenq@rig",
        )
        self.executor = Executor(
            config=self.app.config.task,
            transport=self.app.transport,
            producer=self.app.producer,
            outbox=outbox,
            state=self.state,
            hostname="greenq@rig",
            handover=self.handover,
            events=self.events,
            end_hooks=self.app.task_end_hooks,
        )
        self.pool = Pool(size, self.executor)
        self.tasks = Tasks(
            config=self.app.config.task,
            transport=self.app.transport,
            registry=self.app.tasks,
            fetcher=fetcher,
            outbox=outbox,
            pool=self.pool,
            timer=self.timer,
            state=self.state,
            hostname="greenq@rig",
            handover=self.handover,
            left_behind=bool,
            events=self.events,
            rate_limits=rate_limits,
        )
        self.tasks.admission.taken_s = self.state.now_s()
        self._tags = 0

    def task(self, name: str, **options: Any) -> Callable[[Callable[..., Any]], Any]:
        """Register a task."""
        return self.app.task(name=name, **options)

    def delivery(
        self, name: str, task_id: str, *args: Any, tag: str | None = None, **options: Any
    ) -> Delivery:
        """Make a reserved message."""
        self._tags += 1
        prepared = self.app.producer.prepare(name, args, {}, options | {"task_id": task_id})
        tag = f"rig:{self._tags}" if tag is None else tag
        return Delivery(tag, "celery", prepared["text"].encode())

    def give(self, name: str, task_id: str, *args: Any, **options: Any) -> Delivery:
        """Have Tasks admit one message."""
        return self.give_all([self.delivery(name, task_id, *args, **options)])[0]

    def give_all(self, deliveries: Iterable[Delivery]) -> list[Delivery]:
        """Have Tasks admit messages, as one take brings them."""
        given = list(deliveries)
        for delivery in given:
            self.tasks.admission.receive(delivery)
        settle()
        return given

    def running(self, task_id: str) -> Request:
        """Return the request of a task that runs."""
        (request,) = [each for each in self.pool.active if each.message.id == task_id]
        return request

    def pass_time(self, seconds: float) -> None:
        """Let time pass for the timer, and what is due happen, in its order."""
        end_s = self.clock.now_s + seconds
        while (wait_s := self.timer.run_due()) is not None and self.clock.now_s + wait_s <= end_s:
            self.clock.now_s += wait_s
            settle()
        self.clock.now_s = end_s
        self.timer.run_due()
        settle()


def stamped(delivery: Delivery, **stamps: Any) -> Delivery:
    """Return a message with stamps."""
    unwrapped = envelope.unwrap(delivery.raw)
    headers = unwrapped.headers | {"stamped_headers": list(stamps), "stamps": stamps}
    text = envelope.wrap(
        unwrapped.body,
        content_type=unwrapped.content_type,
        content_encoding=unwrapped.content_encoding,
        headers=headers,
        properties=unwrapped.properties,
    )
    return delivery._replace(raw=text.encode())


def wait_stored(rig: Rig, count: int = 1) -> list[tuple[str, str]]:
    """Wait until that many states are stored and no task runs; return them with their ids."""
    wait_for(lambda: len(rig.outbox.stored()) >= count and not rig.pool.running)
    return rig.outbox.states()
