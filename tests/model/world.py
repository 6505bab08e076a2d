"""The model's world: workers made of the real parts, the server, the clock, and the faults.

`SimWorker` has everything about how a worker is assembled, `installed` everything that is replaced
in the product's modules.
"""

from __future__ import annotations

import gc
import logging
import re
import time as real_time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import greenlet
import hiredis

import greenq.consumer.refusals
import greenq.consumer.tasks
import greenq.consumer.waiting
import greenq.execution.executor
import greenq.execution.handover
import greenq.execution.lost
import greenq.execution.state
import greenq.execution.suspects
import greenq.execution.workflow_index
import greenq.running.outcome
import greenq.sending.producer
import greenq.timer
import greenq.transport.broker
import greenq.transport.fetch
import greenq.transport.leases
import greenq.transport.outbox
import greenq.watchdog.hub_thread
import greenq.watchdog.lease_keeper
import greenq.watchdog.thread
from greenq import Greenq
from greenq.consumer.tasks import Tasks
from greenq.errors import Ignore, OperationalError, Retry, TaskRevokedError, TaskTerminated
from greenq.execution.executor import Executor
from greenq.execution.handover import Handover
from greenq.execution.lost import LostMessages
from greenq.execution.state import WorkerState
from greenq.execution.stopped_workflows import StoppedWorkflows
from greenq.execution.workflow_index import WorkflowIndex
from greenq.sending.context import current_context
from greenq.timer import Timer
from greenq.transport.fetch import Fetcher
from greenq.transport.leases import Leases
from greenq.transport.outbox import Outbox
from greenq.transport.owner import Owner
from greenq.transport.recovery import Recovery
from greenq.transport.settle import Settlement
from greenq.watchdog.hooks import Holdings, HubCalls, Rescue, WatchLimits
from greenq.watchdog.hub_thread import HubThread
from greenq.watchdog.thread import Watch
from tests.model.celery import VISIBILITY_S, SimCelery
from tests.model.kernel import Actor, Kernel, Op, SimEvent, sim_run_all, sim_sleep, sim_spawn
from tests.model.net import CLOCKED, ModelServer, SimClient, lost, pack

T0 = 1_700_000_000.0
LEASE_S = 3.0
TICK_S = 0.001
HORIZON_S = 60.0

_STATUS = re.compile(rb'"status": ?"(\w+)"')
FINAL = frozenset({"SUCCESS", "FAILURE", "REVOKED"})


# --- what is replaced in the product's modules ----------------------------------------------------


class _Time:
    """The module `time` with the clocks of the world and of the calling worker."""

    CLOCK_BOOTTIME = real_time.CLOCK_BOOTTIME
    CLOCK_MONOTONIC = real_time.CLOCK_MONOTONIC

    @staticmethod
    def time() -> float:
        return _now() + getattr(getattr(greenlet.getcurrent(), "owner", None), "skew_s", 0.0)

    @staticmethod
    def monotonic() -> float:
        return _now() - T0 + 1000.0 + _offset()

    @staticmethod
    def clock_gettime(number: int) -> float:
        offset = 0.0 if number == real_time.CLOCK_BOOTTIME else _offset()
        return _now() - T0 + 1000.0 + offset

    sleep = staticmethod(sim_sleep)


def _kernel() -> Kernel | None:
    actor = greenlet.getcurrent()
    return actor.kernel if isinstance(actor, Actor) else None


def _now() -> float:
    kernel = _kernel()
    now: float = T0 if kernel is None else kernel.world.now
    return now


def _offset() -> float:
    actor = greenlet.getcurrent()
    return actor.owner.offset_s if isinstance(actor, Actor) else 0.0


class _Datetime(datetime):
    """`datetime` with the world's clock."""

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return datetime.fromtimestamp(_now(), tz)


_MODULES: list[tuple[Any, dict[str, Any]]] = [
    (greenq.consumer.tasks, {"Event": SimEvent, "sleep": sim_sleep}),
    (greenq.consumer.refusals, {"datetime": _Datetime, "spawn": sim_spawn}),
    (
        greenq.execution.handover,
        {"datetime": _Datetime, "sleep": sim_sleep, "spawn": sim_spawn},
    ),
    (greenq.consumer.waiting, {"datetime": _Datetime}),
    (
        greenq.execution.executor,
        {"time": _Time, "datetime": _Datetime, "Event": SimEvent, "sleep": sim_sleep},
    ),
    (greenq.execution.lost, {"datetime": _Datetime}),
    (greenq.sending.producer, {"time": _Time}),
    (greenq.execution.suspects, {"Event": SimEvent, "spawn": sim_spawn}),
    (greenq.timer, {"time": _Time, "Event": SimEvent, "spawn": sim_spawn}),
    (greenq.transport.broker, {"time": _Time}),
    (
        greenq.transport.fetch,
        {"time": _Time, "Event": SimEvent, "sleep": sim_sleep, "run_all": sim_run_all},
    ),
    (greenq.transport.leases, {"time": _Time}),
    # Makes a recovery take many portions.
    (greenq.transport.fetch, {"PORTION_COUNT": 1}),
    (
        greenq.transport.outbox,
        {"time": _Time, "Event": SimEvent, "sleep": sim_sleep, "spawn": sim_spawn},
    ),
    (greenq.watchdog.hub_thread, {"time": _Time}),
    (greenq.watchdog.lease_keeper, {"time": _Time, "sleep": sim_sleep}),
    (greenq.watchdog.thread, {"time": _Time, "sleep": sim_sleep}),
    (greenq.execution.state, {"time": _Time}),
    (greenq.execution.workflow_index, {"time": _Time}),
]

_ids = [0]


def _new_id() -> str:
    _ids[0] += 1
    return f"00000000-0000-4000-8000-{_ids[0]:012x}"


@contextmanager
def installed() -> Iterator[None]:
    """Make the product's modules use the model's clock, events and sleeps during the block."""
    before = []
    disabled = logging.root.manager.disable
    try:
        for module, names in _MODULES:
            for name, value in names.items():
                if hasattr(module, name):
                    before.append((module, name, getattr(module, name)))
                    setattr(module, name, value)
        for module, name, value in (
            (greenq.sending.producer, "new_id", _new_id),
            # Formatting tracebacks would take a tenth of the total time.
            (greenq.execution.executor, "trace_of", lambda _exc: "traceback"),
            (greenq.running.outcome, "trace_of", lambda _exc: "traceback"),
        ):
            before.append((module, name, getattr(module, name)))
            setattr(module, name, value)
        logging.disable(logging.CRITICAL)
        gc.disable()
        yield
    finally:
        gc.unfreeze()
        gc.enable()
        logging.disable(disabled)
        for module, name, value in reversed(before):
            setattr(module, name, value)


# --- the app, created once ------------------------------------------------------------------------


class Body(Exception):
    """The error of the model's tasks."""


class Site:
    """A server and an app on it: created once, reused by all schedules."""

    def __init__(
        self,
        server: ModelServer,
        *,
        two_servers: bool = False,
        steps: tuple[int, ...] = (0,),
        indexed: bool = False,
        **settings: Any,
    ) -> None:
        self.server = server
        options = {"priority_steps": list(steps)}
        self.app = app = Greenq(
            "model",
            broker="redis://127.0.0.1:1/0",
            backend="redis://127.0.0.1:1/1" if two_servers else None,
            set_as_current=False,
            broker_transport_options=options,
            task_eta_horizon=HORIZON_S,
            workflow_index=indexed,
            **settings,
        )
        for name, how in {
            "late": {"acks_late": True},
            "early": {"acks_late": False},
            "started": {"acks_late": True, "track_started": True},
            "once": {"acks_late": True, "reject_on_worker_lost": False},
        }.items():
            app.task(name=name, bind=True, max_retries=None, **how)(_body)
        transport = app.transport
        self.client = SimClient(server, 0)
        self.results = SimClient(server, 1) if two_servers else self.client
        any_transport: Any = transport
        any_transport.client = self.client
        any_transport.result_client = self.results
        any_transport.broker.client = self.client
        any_transport._backend._client = self.results
        self.broker = transport.broker
        self.keys = transport.keys
        self.transport = transport
        self.lost = LostMessages(app, "model")

    def reset(self) -> None:
        self.client.reset()
        self.results.reset()
        self.broker._declared.clear()
        # It uses the real clock, and does not matter to the protocol.
        self.broker._takers.question = lambda _queue: []  # type: ignore[method-assign]
        _ids[0] = 0

    def text(self, message: Any, options: dict[str, Any]) -> str:
        options = {
            **options, "task_id": message.id, "queue": message.queue, "priority": message.priority,
        }  # fmt: skip
        if message.eta_s is not None:
            options["eta"] = datetime.fromtimestamp(T0 + message.eta_s, UTC)
        text: str = self.app.producer.prepare(message.task, (), {}, options)["text"]
        return text


def _body(task: Any, *_results: Any) -> Any:
    """The body of every task of the model: stop, then end as the step says."""
    actor = greenlet.getcurrent()
    world = actor.kernel.world
    try:
        return world.run_body(actor, task)
    except (Body, Retry, Ignore):
        raise
    except Exception as exc:
        world.kernel.errors.append(f"a task's body: {exc!r}")
        raise


# --- a worker -------------------------------------------------------------------------------------


class SimPool:
    """`greenq.pool.Pool`: each request in its own actor."""

    def __init__(self, worker: SimWorker, size: int, run: Callable[[Any], None]) -> None:
        self.worker = worker
        self.size = size
        self._run = run
        self.capacity = size * worker.world.scenario.prefetch
        self.active: dict[Any, Actor] = {}
        self.queued: list[Any] = []
        self._room = SimEvent()
        self.empty = SimEvent()
        self.empty.set()
        self.abandoned: Callable[[list[Any]], None] = lambda _requests: None

    def end_turn(self) -> None:
        pass

    @property
    def running(self) -> int:
        return len(self.active)

    @property
    def waiting(self) -> int:
        return len(self.queued)

    @property
    def room(self) -> int:
        return self.capacity - len(self.active) - len(self.queued)

    def wait_room(self, timeout_s: float | None = None) -> None:
        if self.room <= 0:
            self._room.clear()
            self._room.wait()

    def wait_empty(self, timeout_s: float | None) -> bool:
        return self.empty.wait(timeout_s)

    def wake(self) -> None:
        self._room.set()

    def submit(self, request: Any) -> None:
        self.queued.append(request)
        self.empty.clear()
        self._begin()

    def _begin(self) -> None:
        while self.queued and len(self.active) < self.size:
            request = self.queued.pop(0)
            kernel = self.worker.world.kernel
            self.active[request] = kernel.spawn(self.worker, "task", self._work, request)

    def _work(self, request: Any) -> None:
        request.greenlet = greenlet.getcurrent()
        self.worker.world.note_taken_up(self.worker, request)
        try:
            self._run(request)
        finally:
            request.greenlet = None
            self.active.pop(request, None)
            if not self.worker.world.kernel.closing:
                self._begin()
                self._room.set()
                if not self.active and not self.queued:
                    self.empty.set()

    def unstarted(self) -> list[Any]:
        return list(self.queued)

    def withdraw(self, which: Callable[[Any], bool] | None = None) -> list[Any]:
        taken = [each for each in self.queued if which is None or which(each)]
        for each in taken:
            self.queued.remove(each)
        return taken

    def put_back(self, requests: list[Any]) -> None:
        self.queued[:0] = reversed(requests)

    def take_back(self, which: Callable[[Any], bool] | None = None) -> list[Any]:
        taken = self.withdraw(which)
        self._room.set()
        if not self.active and not self.queued:
            self.empty.set()
        return taken

    def end(self, request: Any) -> None:
        """End a request's code, or keep it from beginning."""
        error = TaskTerminated(TaskRevokedError("terminated"), "SIGTERM")
        if request.in_code is None:
            request.killed = error
        elif request.in_code:
            op = self.active[request].op
            if op is not None and op.body is not None and not op.done:
                request.killed = error
                op.actor.kernel.forget(op)
                op.actor.kernel.ready.append((op.actor, error))

    def end_all(self) -> None:
        """Abandon running requests, and end them."""
        self.queued.clear()
        requests = list(self.active.items())
        if requests:
            self.abandoned([request for request, _actor in requests])
        for _request, actor in requests:
            actor.kill()


class _Hub:
    """`greenq.hub.Hub`, as the watchdog uses it."""

    moved_s = float("inf")
    lag_s = 0.0

    def __init__(self, worker: SimWorker) -> None:
        self._worker = worker

    def spawn_soon(self, run: Callable[[], Any], *, name: str) -> None:
        worker = self._worker

        def when_it_moves() -> None:
            if worker.blocked:
                sim_sleep()
            run()

        worker.world.kernel.spawn(worker, name.split()[0], when_it_moves)

    def ping(self) -> None:
        pass

    def rests(self) -> bool:
        return True


class SimWorker:
    """One incarnation of a worker: the real parts, with minimal glue."""

    def __init__(self, world: World, name: str, size: int, queues: tuple[str, ...]) -> None:
        self.world = world
        self.name = name
        self.queues = queues
        self.offset_s = 0.0
        # When its lease was last lost, and whether it has one.
        self.lost_step = -1
        self.has_lease = True
        self.alive = True
        self.frozen = self.stopping = self.stopped = self.cold = False
        # A blocked hub, and what the watchdog still has to do then; a guard process that keeps the
        # lease of a frozen worker, or has ended that of a dead one.
        self.blocked = self.gives_away = self.guarded = self.is_ended = False
        site = world.site
        app, transport = site.app, site.transport
        self.state = WorkerState(self.boottime)
        self.owner = Owner(name, f"greenq@{name}", "")
        client: Any = site.client
        config = app.config
        self.hub: Any = _Hub(self)
        self.timer = Timer(self.monotonic)
        recovery = Recovery(
            client.connection(),
            None if site.results is client else site.results.connection(),
            transport.broker,
            claimant=name,
            claim_s=LEASE_S,
            max_deliveries=config.task.task_max_deliveries,
            may_run_again=self._may_run_again,
            bury=self._bury,
            now_s=lambda: world.now,
        )
        self.leases = Leases(
            client.connection(pushes=True),
            transport.broker,
            self.owner,
            queues=queues,
            visibility_timeout_s=3600.0,
            lease_s=LEASE_S,
            recovery=recovery,
        )
        self.watch = Watch(
            self.leases,
            self.hub,
            self.state,
            HubThread(lambda _frame: None),
            limits=WatchLimits(lease_s=LEASE_S, visibility_timeout_s=3600.0, blocked_after_s=1e9),
            holdings=Holdings(
                unsettled=self.unsettled,
                first_unused=lambda: self.fetcher.first_unused,
                is_waiting=lambda: self.fetcher.waiting,
                unwritten=lambda: self.outbox.unwritten(),
            ),
            calls=HubCalls(
                look=lambda: self.fetcher.wake(look=True),
                paused=self._pause,
                forgotten=self._register,
            ),
            rescue=Rescue(give_away=self._give_away),
            clock=self.boottime,
        )
        # Look for Celery's records only in scenarios that have some.
        self.watch.reclaimer.scores_at_s = 0.0 if world.scenario.overdue else 1e18
        self.outbox = Outbox(transport, name)
        index = None
        if world.scenario.flow:
            seconds = transport.workflows.seconds
            index = WorkflowIndex(transport.broker, self.state.revoked, f"greenq@{name}", seconds)
            index.on_held = self._look_soon
        self.pool = SimPool(self, size, lambda request: self.executor(request))
        handover = Handover(
            config=config.task,
            transport=transport,
            registry=app.tasks,
            producer=app.producer,
            outbox=self.outbox,
            hostname=f"greenq@{name}",
            index=index,
        )
        self.executor = Executor(
            config=config.task,
            transport=transport,
            producer=app.producer,
            outbox=self.outbox,
            state=self.state,
            hostname=f"greenq@{name}",
            handover=handover,
        )
        self.fetcher = Fetcher(client, transport.keys, queues, name, member=str(self.owner))
        pool: Any = self.pool
        self.tasks = Tasks(
            config=config.task,
            transport=transport,
            registry=app.tasks,
            fetcher=self.fetcher,
            outbox=self.outbox,
            pool=pool,
            timer=self.timer,
            state=self.state,
            hostname=f"greenq@{name}",
            handover=handover,
            left_behind=bool,
        )
        self.pool.abandoned = self.tasks.give_back
        self.stopped_workflows = StoppedWorkflows(transport.workflows, self.tasks.stop_workflows)
        self.consumer_over = SimEvent()
        self.watch_over = SimEvent()
        self._is_watch_ending = False

    def monotonic(self) -> float:
        return self.world.now - T0 + 1000.0 + self.offset_s

    def boottime(self) -> float:
        return self.world.now - T0 + 1000.0

    # --- the glue of greenq.worker ----------------------------------------------------------------

    def unsettled(self) -> tuple[set[str], int]:
        first_unused = self.fetcher.first_unused
        return self.tasks.unfinished | self.outbox.tags(), first_unused

    def register(self) -> None:
        requests = list(self.state.reserved.values())
        held = [request.delivery for request in requests if not request.settled]
        begun = {request.delivery.tag for request in requests if request.settled}
        self.fetcher.register(self.watch.question, held, begun | self.outbox.tags(), 5.0)

    def _register(self) -> None:
        with suppress(OperationalError):
            self.register()

    def _give_away(self, connection: Any) -> None:
        self.tasks.give_away(connection, self.owner.incarnation)

    def _may_run_again(self, name: str | None) -> bool:
        task = self.world.site.app.tasks.get(name or "")
        own = None if task is None else task.reject_on_worker_lost
        return True if own is None else own

    def _bury(
        self, tag: str, queue: str, raw: bytes, reason: str, task_id: str | None
    ) -> Settlement:
        return self.world.site.lost.bury(tag, queue, raw, reason, task_id)

    def _pause(self, paused: frozenset[str]) -> None:
        if paused != self.state.paused:
            self.state.paused = paused
            queues = [queue for queue in self.queues if queue not in paused]
            self.watch.set_queues(queues)
            self.fetcher.set_queues(queues)

    def look_for_pauses(self) -> None:
        self._pause(frozenset(self.world.site.broker.paused()))

    def start(self) -> None:
        kernel = self.world.kernel
        kernel.spawn(self, "watch", self._run_watch)
        kernel.spawn(self, "outbox", self._run_outbox)
        if self.world.scenario.flow:
            kernel.spawn(self, "look", self._run_looks)

    def _look_soon(self, _written: bool) -> None:
        for op in self.world.kernel.pending:
            if op.actor.owner is self and op.kind == "look":
                self.world.kernel.forget(op)
                self.world.kernel.ready.append((op.actor, None))
                return

    def _run_looks(self) -> None:
        """What `StoppedWorkflows` does, a turn when the scheduler says so."""
        self.stopped_workflows._look()
        while not self.stopping:
            op = Op(greenlet.getcurrent(), "look")
            op.fused = True
            self.world.kernel.park(op)
            self.stopped_workflows._look()

    def _run_outbox(self) -> None:
        self.outbox._greenlet = greenlet.getcurrent()  # type: ignore[assignment]
        self.outbox._run()

    def consume(self) -> None:
        self.world.kernel.spawn(self, "consumer", self._run_consumer)

    def _run_consumer(self) -> None:
        """Do the work of greenq.consumer.Consumer."""
        first = True
        while not self.stopping:
            try:
                self.register()
                # Nothing can be paused yet at its start.
                if not first:
                    self.look_for_pauses()
                first = False
                self.tasks.start()
                self.tasks.consume()
            except OperationalError:
                self.tasks.stop()
                if not self.stopping:
                    sim_sleep()
        self.consumer_over.set()

    def _run_watch(self) -> None:
        """What `Watch._run` does, a turn when the scheduler says so."""
        watch, kernel = self.watch, self.world.kernel
        actor = greenlet.getcurrent()
        watch.turn()
        while True:
            if not self._is_watch_ending:
                op = Op(actor, "watch")
                op.fused = True
                kernel.park(op)
            if self._is_watch_ending:
                break
            # A renewal may happen at any time, and with it a look at the lists.
            watch.lease.due_s = 0.0
            self.leases.connection.noticed = True
            if self.gives_away:
                self.gives_away = False
                with suppress(OperationalError):
                    self._give_away(self.leases.connection)
            watch.turn()
        watch.leave()
        self.watch_over.set()

    def stop(self, cold: bool) -> None:
        """Stop as the blueprint does. Runs in its own actor."""
        self.stopping = True
        tasks = self.tasks
        tasks.stop_consuming()
        self.consumer_over.wait()
        tasks.give_back_unstarted()
        tasks.leave()
        tasks.stop()
        if not cold:
            self.pool.empty.wait()
        self.end_runs()
        self.outbox.stop()
        self._is_watch_ending = True
        for op in list(self.world.kernel.pending):
            if op.actor.owner is self and op.kind == "watch":
                self.world.kernel.pending.remove(op)
                self.world.kernel.ready.append((op.actor, None))
        self.watch_over.wait()
        self.stopped = True
        self.alive = False

    def end_runs(self) -> None:
        if self.pool.active:
            self.world.excuse(self)
        self.pool.end_all()

    @property
    def takes(self) -> bool:
        """Whether this worker should take all there is."""
        return self.alive and not (self.stopping or self.tasks.draining or self.blocked)

    def local_state(self) -> Any:
        """This worker's part in the hash of the world."""
        return (
            self.name,
            (self.alive, self.frozen, self.stopping, self.stopped),
            self.state.paused,
            self.fetcher._next,
            self.fetcher._plan.queues,
            self.fetcher.unsure,
            len(self.tasks.admission.suspects),
            self.tasks.admission.suspects.busy,
            sorted(self.state.reserved),
            sorted(self.outbox.tags()),
            self.boottime() < self.state.lease_until_s,
            self.state.lease_lost_s > 0,
            self.watch.reclaimer.looks,
            sorted(self.watch.reclaimer.forgotten),
            self.watch.reclaimer.recovers(self.boottime()),
            self.tasks.draining,
            self.pool.waiting,
        )


class Sender:
    """A sender: publishes, and repeats it once if the answer is lost."""

    offset_s = 0.0
    frozen = blocked = False
    alive = True

    def __init__(self, world: World) -> None:
        self.world = world
        self.name = "S"

    def send(self, message: Any) -> None:
        broker, text = self.world.site.broker, self.world.texts[message.id]
        again = False
        while True:
            try:
                if again:
                    broker.publish_once(
                        message.queue, [text], message.priority, new_ids=[message.id]
                    )
                else:
                    broker.publish(message.queue, [text], message.priority)
                return
            except OperationalError:
                again = True
                sim_sleep()


class Run:
    """One beginning of a task's code."""

    __slots__ = ("early", "excused", "outcome", "step", "tag", "text_tag", "worker")

    def __init__(
        self, worker: Any, tag: str, text_tag: str, step: int, early: bool, excused: bool
    ) -> None:
        self.worker = worker
        self.tag = tag
        self.text_tag = text_tag
        self.step = step
        self.early = early
        # True if it may be repeated: its worker has lost its lease or died during the run.
        self.excused = excused
        self.outcome = ""


class World:
    """One schedule's run."""

    def __init__(self, site: Site, scenario: Any) -> None:
        self.site = site
        self.scenario = scenario
        self.kernel = Kernel()
        any_kernel: Any = self.kernel
        any_kernel.world = self
        self.now = T0
        self.step = 0
        self.labels: list[str] = []
        self.problems: list[str] = []
        self.late: list[Op] = []
        self.blocked: list[Op] = []
        self.faults_left = scenario.faults
        self.is_replay = False
        self.env: Counter[str] = Counter(scenario.env)
        self.workers: dict[str, SimWorker] = {}
        # Celery's.
        self.others: dict[str, SimCelery] = {}
        self.runs: dict[tuple[str, int], list[Run]] = {}
        # For each task that killed its worker: whether it was announced to run alone, each time.
        self.deaths: dict[str, list[bool]] = {}
        self.texts: dict[str, str] = scenario.texts(site)
        self.sent: set[str] = set()
        self.revoked: set[str] = set()
        # What workers had in hand when the server lost its data.
        self.survivors: set[str] = set()
        self.states: dict[str, str] = {}
        # The publications that nobody hears.
        self.published: list[Any] = []
        self.rolled_back = self.was_killed = False
        # When the server last lost data: what began before may begin again.
        self.rolled_step = -1
        self.doubled: set[str] = set()
        # What a Celery worker has found overdue: it will requeue these even if their owner is back.
        self.listed: set[str] = set()
        self.etas = {m.id: T0 + m.eta_s for m in scenario.messages if m.eta_s is not None}
        self.sender = Sender(self)
        # True if all environment steps are allowed: while it heals, and in a replay.
        self.healing = False
        site.reset()
        self.link = site.server.links[0]
        self.result_link = site.results.link
        # Reads the results after each write.
        keys = [site.keys.result(m.id) for m in scenario.messages]
        self._ids = [m.id for m in scenario.messages]
        self._look = pack(("MGET", *keys))
        self._begin()

    def _begin(self) -> None:
        link = self.link
        self.site.server.past.begin()
        for each in self.site.server.links:
            each.forget()
        link.later(pack(("FLUSHDB",)))
        if self.result_link is not link:
            self.result_link.later(pack(("FLUSHDB",)))
        self._prepare()
        for message in self.scenario.messages:
            if not message.later:
                key = self.site.keys.queue(message.queue, message.priority)
                link.later(pack(("LPUSH", key, self.texts[message.id])))
                self.sent.add(message.id)
        for group, size in self.scenario.chords.items():
            self.result_link.later(
                pack(("SET", f"{self.site.keys.group(group)}.s", size, "EX", 86400))
            )
        for name, (size, queues) in self.scenario.workers.items():
            self.add_worker(name, size, queues)
        for name in self.scenario.celery:
            celery = self.others[name] = SimCelery(self, name, "q")
            celery.start()
        self.kernel.run_ready()

    def _prepare(self) -> None:
        """Write what a scenario begins with besides its messages."""

    def add_worker(self, name: str, size: int, queues: tuple[str, ...]) -> SimWorker:
        """Start a worker whose first renewal succeeds at once."""
        worker = self.workers[name] = SimWorker(self, name, size, queues)
        worker.start()
        self.kernel.run_ready()
        tries = 0
        while (op := self._first(worker, "watch")) is not None and tries < 50:
            self.finish(op, self.carry_out(op))
            tries += 1
        while (op := self._first(worker, "look")) is not None:
            self.finish(op, self.carry_out(op))
        worker.consume()
        self.kernel.run_ready()
        for role in ("register", "consumer"):
            while (op := self._first(worker, role)) is not None and op.kind == "register":
                self.finish(op, self.carry_out(op))
        return worker

    def _first(self, worker: SimWorker, role: str) -> Op | None:
        for op in self.kernel.pending:
            if op.actor.owner is worker and op.actor.role == role and not op.fused:
                return op
        return None

    # --- steps ------------------------------------------------------------------------------------

    def choices(self) -> list[Op]:
        """Return the ops that may continue now."""
        return [op for op in self.kernel.pending if not self.stands(op)]

    @staticmethod
    def stands(op: Op) -> bool:
        """Return whether an op's actor cannot continue because its process or hub is blocked."""
        worker = op.actor.owner
        frozen: bool = worker.frozen or (worker.blocked and op.actor.role != "watch")
        return frozen

    def label_of(self, op: Op, among: list[Op]) -> str:
        name, number = op.name, 0
        for other in among:
            if other is op:
                break
            if other.name == name:
                number += 1
        return name if not number else f"{name}#{number + 1}"

    def find(self, name: str) -> Op | None:
        base, _, number = name.partition("#")
        found = [op for op in self.choices() if op.name == base]
        index = int(number) - 1 if number else 0
        return found[index] if index < len(found) else None

    def do(self, label: str) -> bool:
        """Run one step by its label; return False if there is no such step now."""
        if label[0] == "~":
            base, _, number = label[1:].partition("#")
            found = [op for op in self.late if op.name == base]
            index = int(number) - 1 if number else 0
            if index >= len(found):
                return False
            self.do_late(found[index], label)
            return True
        if "!" in label:
            return self.do_env(label)
        name, _, fate = label.partition(":")
        op = self.find(name)
        if op is None:
            return False
        if fate and fate not in self.fates(op):
            return False
        self.do_op(op, fate, label)
        return True

    def fates(self, op: Op) -> tuple[str, ...]:
        """Return how an op may go wrong."""
        if op.body is not None:
            return op.fates
        if op.timeout or op.actor.owner.name in self.others:
            return ()
        if op.state == "served" or (op.value is not None and op.script == "slow"):
            return ("lost",)
        if op.state == "new":
            return ("dropped",)
        if op.actor.owner is self.sender:
            # A push that arrives after it was sent again duplicates it: that is documented.
            return self.scenario.send_fates
        return self.scenario.fates

    def do_op(self, op: Op, fate: str, label: str) -> None:
        """Continue an op: execute it or not, and answer its actor or not."""
        self.step += 1
        self.now += TICK_S
        self.labels.append(label)
        if op.fused:
            actor = op.actor
            self.kernel.forget(op)
            if op.timeout:
                op.wait.done = True
                if actor.role == "stop":
                    # What it could not write in time is requeued and runs again, as it logs.
                    self.excuse(actor.owner)
                self.kernel.ready.append((actor, False))
            else:
                self.kernel.ready.append((actor, None))
            self.kernel.run_ready()
            following = actor.op
            if (
                op.timeout
                or following is None
                or following.fused
                or following.body is not None
                or following.state
                or following not in self.kernel.pending
            ):
                return
            op = following
        self._go(op, fate)

    def _go(self, op: Op, fate: str) -> None:
        if op.body is not None:
            if (fate or op.body) == "die":
                self._die(op)
            else:
                self.finish(op, fate)
        elif not fate:
            if op.script == "slow" or op.state == "served":
                self.finish(op, op.value)
            elif op.state == "new":
                self._block(op)
            else:
                self.finish(op, self.carry_out(op))
        elif fate == "slow":
            # Executed, but the answer is delayed.
            op.value = self.carry_out(op)
            op.script = "slow"
            op.name += "'"
        else:
            if fate == "lost" and op.script != "slow" and op.state != "served":
                self.carry_out(op)
            elif fate == "late":
                self.late.append(_copy(op))
            self.fail(op, lost(fate == "late"))

    def _die(self, op: Op) -> None:
        """Let a task kill its worker; its guard ends the lease, and another worker starts."""
        worker: SimWorker = op.actor.owner
        op.wait.outcome = "died"
        self.deaths.setdefault(op.kind[4:], []).append(worker.tasks.admission.suspects.alone)
        self.env_kill(worker, "")
        self.env_end(worker, "")
        number = sum(name[0] == worker.name[0] for name in self.workers) + 1
        self.add_worker(f"{worker.name[0]}{number}", worker.pool.size, worker.queues)

    def finish(self, op: Op, value: Any) -> None:
        """Give an op's actor its answer, and run all actors."""
        self.kernel.forget(op)
        self.kernel.ready.append((op.actor, value))
        self.kernel.run_ready()

    def fail(self, op: Op, error: Exception) -> None:
        self.kernel.forget(op)
        op.connection.waiting = None
        op.connection.close()
        op.actor.throw(error)
        self.kernel.run_ready()

    def _block(self, op: Op) -> None:
        (value,) = self.link.call(op.data, 1)
        if value is not None:
            self.finish(op, value)
            return
        op.state = "blocked"
        self.kernel.pending.remove(op)
        self.blocked.append(op)

    def unblock(self, op: Op) -> None:
        if op in self.blocked:
            self.blocked.remove(op)

    def carry_out(self, op: Op) -> list[Any]:
        """Execute an op's commands on the server, and their consequences."""
        link, kind = op.connection.link, op.kind
        if kind == "ask":
            op.actor.checked = self.step
        elif kind == "renew" and not op.actor.owner.has_lease:
            return self._carry_out_return(op)
        if op.script in CLOCKED:
            now = self.now
            link.later(self._clock(now))
        data, count = op.data, op.count
        looks = kind in {"write", "give"} and link is self.result_link
        if looks:
            data += self._look
        blocked = self.blocked if self.blocked and kind not in {"renew", "take", "ask"} else ()
        if blocked and link is self.link:
            data += b"".join([each.data for each in blocked])
        else:
            blocked = ()
        answers = link.call(data, count + looks + len(blocked))
        behind = answers[count:]
        del answers[count:]
        if looks:
            self.note_states(behind.pop(0))
        for each, value in zip(list(blocked), behind, strict=True):
            if value is not None:
                self._serve(each, value)
        return answers

    @staticmethod
    def _clock(now: float) -> bytes:
        return pack(("HSET", "model.clock", "s", int(now), "us", round(now % 1 * 1e6)))

    def _carry_out_return(self, op: Op) -> list[Any]:
        """Renew an ended lease: what has not been given away meanwhile is the worker's again."""
        worker: SimWorker = op.actor.owner
        worker.has_lease = True
        worker.guarded = False
        answers = self.carry_out(op)
        if worker.alive and not worker.stopping and not self.rolled_back:
            held = [
                run
                for runs in self.runs.values()
                for run in runs
                if run.worker is worker and run.excused and not run.outcome
            ]
            if held:
                data = b"".join(pack(("HEXISTS", "unacked", run.tag)) for run in held)
                for run, there in zip(held, self.link.call(data, len(held)), strict=True):
                    run.excused = not there or run.tag in self.listed
        return answers

    def _serve(self, op: Op, value: Any) -> None:
        """End a wait: its answer is on the way."""
        if isinstance(value, hiredis.ReplyError):
            raise RuntimeError(str(value))
        self.blocked.remove(op)
        op.state, op.value = "served", value
        op.kind = "woken"
        op.name = f"{op.actor.owner.name}.woken"
        if op.actor.owner.alive:
            self.kernel.pending.append(op)

    def do_late(self, op: Op, label: str) -> None:
        self.step += 1
        self.now += TICK_S
        self.labels.append(label)
        self.late.remove(op)
        self.carry_out(op)
        self.kernel.run_ready()

    # --- what tasks do ----------------------------------------------------------------------------

    def run_body(self, actor: Actor, task: Any) -> Any:
        context = current_context.get()
        assert context is not None
        request = context._delivered
        assert request is not None
        message = request.message
        # A replacement is another run of the same id.
        task_id, retries = message.id, message.retries + message.replaced_task_nesting
        text_tag = request.properties.get("delivery_tag", "")
        early = not request.acks_late
        self.begin(actor, request.delivery.tag, text_tag, task_id, retries, early=early)
        run = self.runs[task_id, retries][-1]
        op = Op(actor, f"run.{task_id}")
        plan = self.scenario.plans[task_id]
        op.body = plan[min(self.attempt(task_id, retries), len(plan) - 1)]
        op.fates = self.scenario.run_fates
        op.wait = run
        fate = self.kernel.park(op)
        if isinstance(fate, TaskTerminated):
            run.outcome = "ended"
            raise fate
        run.outcome = outcome = fate or op.body
        if outcome == "ok":
            return "done"
        if outcome == "retry":
            raise task.retry(countdown=0)
        if outcome == "replace":
            task.replace(self.scenario.signature(task_id, self.scenario.by_id[task_id].task))
        raise Body("failed")

    def attempt(self, _task_id: str, retries: int) -> int:
        """Return how often a task has been sent before."""
        return retries

    def note_taken_up(self, worker: SimWorker, request: Any) -> None:
        """Note that a request has got a slot."""

    def begin(
        self,
        actor: Actor,
        tag: str,
        text_tag: str,
        task_id: str,
        retries: int,
        *,
        early: bool = False,
    ) -> None:
        """Note that a task begins, and check whether it may."""
        worker: Any = actor.owner
        runs = self.runs.setdefault((task_id, retries), [])
        checked = actor.checked or self.step
        if early and task_id not in self.doubled and runs and runs[-1].step > self.rolled_step:
            self.problem(f"I2 {task_id} is acknowledged early and begins again, in {worker.name}")
        if not early and task_id not in self.doubled:
            # Without a lease, it may be overtaken between asking the server and starting.
            sure = worker.has_lease and worker.lost_step < checked
            for run in runs:
                if not run.excused and (
                    sure or (run.step <= checked and worker.lost_step < checked)
                ):
                    self.problem(
                        f"I2 {task_id} begins again in {worker.name}, although {run.worker.name} "
                        f"has begun it and has not lost it"
                    )
        is_other = any(run.text_tag != text_tag for run in runs)
        if retries and is_other and not self.rolled_back:
            self.problem(f"I8 {task_id} has two successors as retry {retries}")
        due = self.etas.get(task_id)
        if due is not None and not retries and self.now < due - 0.01:
            self.problem(f"I5 {task_id} begins {due - self.now:.3f} s too early")
        excused = not worker.has_lease or tag in self.listed
        runs.append(Run(worker, tag, text_tag, self.step, early, excused))

    def excuse(self, worker: Any) -> None:
        """Allow the messages reserved for a worker, which may have lost them, to run again."""
        worker.lost_step = self.step
        worker.has_lease = False
        held = [
            run
            for runs in self.runs.values()
            for run in runs
            if run.worker is worker and not run.excused
        ]
        if held:
            data = b"".join(pack(("HEXISTS", "unacked", run.tag)) for run in held)
            for run, there in zip(held, self.link.call(data, len(held)), strict=True):
                run.excused = bool(there)

    def note_listed(self, tags: set[str]) -> None:
        """Allow the messages of these tags, which a Celery worker will requeue, to run again."""
        self.listed |= tags
        for runs in self.runs.values():
            for run in runs:
                run.excused = run.excused or run.tag in tags

    def note_states(self, payloads: list[bytes | None]) -> None:
        """Check the results after a write: a success stays."""
        for task_id, payload in zip(self._ids, payloads, strict=True):
            if payload is None:
                continue
            status = _STATUS.search(payload)
            assert status is not None
            new, old = status[1].decode(), self.states.get(task_id)
            if new != old:
                if old == "SUCCESS" and not self.rolled_back:
                    self.problem(f"I4 the SUCCESS of {task_id} is replaced by {new}")
                self.states[task_id] = new

    def problem(self, text: str) -> None:
        if text not in self.problems:
            self.problems.append(text)

    # --- the environment --------------------------------------------------------------------------

    def env_choices(self) -> list[str]:
        """Return the labels of the environment steps possible now."""
        found = []
        for label, left in self.env.items():
            if left > 0 and self._may(label):
                found.append(label)
        return found

    def _may(self, label: str) -> bool:
        subject, _, verb = label.partition("!")
        verb, _, argument = verb.partition(":")
        if label in self.scenario.is_fault and self.faults_left <= 0 and not self.is_replay:
            return False
        if subject == "S":
            return argument not in self.sent
        if subject in self.others:
            celery = self.others[subject]
            return celery.alive and not (verb == "kill" and self._is_exposed(celery))
        worker = self.workers.get(subject)
        if verb == "restart":
            return worker is not None and not worker.alive and f"{subject}2" not in self.workers
        if verb == "time" and float(argument) > VISIBILITY_S and self._is_unsure():
            return False
        if subject == "*":
            return verb != "rollback" or self.env.get("*!snap", 0) == 0
        if worker is None or worker.stopped:
            return False
        if verb == "lease_end":
            return True
        if verb == "end":
            return not worker.alive and not worker.is_ended
        if not worker.alive:
            return False
        if verb == "thaw":
            return worker.frozen
        if worker.frozen:
            return verb in {"kill", "guard", "extend"}
        if verb == "unblock":
            return worker.blocked
        if verb in {"guard", "extend"}:
            return False
        if verb in {"drain", "stop", "cold"}:
            return not worker.stopping and not (verb == "drain" and worker.tasks.draining)
        if verb == "undrain":
            return worker.tasks.draining and not worker.stopping
        return True

    def _is_unsure(self) -> bool:
        """Return whether an answer is under way: none takes as long as Celery's timeout."""
        return any(w.alive and w.fetcher.unsure for w in self.workers.values())

    def _is_exposed(self, celery: SimCelery) -> bool:
        """Return whether Celery has popped a message and not yet recorded it."""
        return celery.is_exposed or any(
            op.actor.owner is celery and op.state == "served" for op in self.kernel.pending
        )

    def do_env(self, label: str) -> bool:
        if not self.healing:
            if not self._may(label) or (self.env.get(label, 0) <= 0 and not self.is_replay):
                return False
            self.env[label] -= 1
            if label in self.scenario.is_fault:
                self.faults_left -= 1
        self.step += 1
        self.now += TICK_S
        self.labels.append(label)
        subject, _, verb = label.partition("!")
        verb, _, argument = verb.partition(":")
        whom = self.others.get(subject) or self.workers.get(subject)
        getattr(self, f"env_{verb}")(whom, argument)
        self.kernel.run_ready()
        return True

    def env_send(self, _worker: None, argument: str) -> None:
        message = self.scenario.by_id[argument]
        self.sent.add(message.id)
        self.kernel.spawn(self.sender, "send", self.sender.send, message)

    def env_kill(self, worker: Any, how: str) -> None:
        """Kill the process; with "late", what it had under way arrives later."""
        self.excuse(worker)
        self.was_killed = True
        worker.alive = False
        worker.frozen = worker.blocked = False
        for op in list(self.kernel.pending):
            if op.actor.owner is worker:
                self.kernel.pending.remove(op)
                if how == "late" and op.connection and not op.state and op.script != "slow":
                    self.late.append(_copy(op))
        self.blocked = [op for op in self.blocked if op.actor.owner is not worker]

    def env_restart(self, worker: SimWorker, _argument: str) -> None:
        self.add_worker(f"{worker.name}2", worker.pool.size, worker.queues)

    def env_freeze(self, worker: SimWorker, _argument: str) -> None:
        worker.frozen = True
        self.env[f"{worker.name}!thaw"] += 1

    def env_block(self, worker: SimWorker, _argument: str) -> None:
        """Block the hub with a computing task: the watchdog gives away what has not begun."""
        worker.blocked = worker.gives_away = True
        self.env[f"{worker.name}!unblock"] += 1

    def env_unblock(self, worker: SimWorker, _argument: str) -> None:
        worker.blocked = worker.gives_away = False

    def env_guard(self, worker: SimWorker, _argument: str) -> None:
        """Let its guard keep the lease while it is frozen."""
        worker.guarded = True

    def env_extend(self, worker: SimWorker, _argument: str) -> None:
        """Let its guard prolong the lease once, perhaps too late."""
        if self._guard("extend", worker, self.now, LEASE_S) and not worker.has_lease:
            self.problem(f"I7 the lease of {worker.name} had ended and is prolonged")

    def env_end(self, worker: SimWorker, _argument: str) -> None:
        """Let the guard of a dead worker end its lease."""
        worker.is_ended = True
        self._guard("end_lease", worker, self.now)
        score = self.link.one("ZSCORE", "greenq.leases", str(worker.owner))
        if score is not None and float(score) >= self.now:
            self.problem(f"I7 {worker.name} is dead, and its lease goes on")

    def _guard(self, name: str, worker: SimWorker, now: float, *args: Any) -> Any:
        link, sha = self.link, self.site.server.shas[name]
        link.later(self._clock(now))
        return link.one("EVALSHA", sha, 1, "greenq.leases", str(worker.owner), *args)

    def env_restore(self, celery: SimCelery, _argument: str) -> None:
        celery.restore()

    def env_thaw(self, worker: SimWorker, _argument: str) -> None:
        worker.frozen = worker.guarded = False

    def env_lease_end(self, worker: SimWorker, _argument: str) -> None:
        self.pass_time(LEASE_S * 1.05, but=worker)

    def env_suspend(self, worker: SimWorker, _argument: str) -> None:
        """Suspend a machine: its monotonic clock stops, the server's goes on."""
        worker.offset_s -= LEASE_S * 1.05
        self.pass_time(LEASE_S * 1.05, but=worker)

    def env_time(self, _worker: None, argument: str) -> None:
        self.pass_time(float(argument))

    def pass_time(self, seconds: float, but: SimWorker | None = None) -> None:
        """Let time pass; living workers renew their leases meanwhile, all `but` one."""
        loses = seconds > LEASE_S
        kept = []
        for worker in self.workers.values():
            if worker.stopped:
                continue
            if worker is but or not worker.alive or worker.frozen or not worker.has_lease:
                if worker.guarded and worker.has_lease and worker is not but:
                    self._keep_guarded(worker, seconds)
                elif loses:
                    self.excuse(worker)
            else:
                kept.append(worker)
        if seconds > VISIBILITY_S:
            for celery in self.others.values():
                self.excuse(celery)
        self.now += seconds
        if seconds > LEASE_S:
            # What expires by the server's own clock.
            relay = self.site.keys.relay(self.scenario.queues)
            self.link.later(pack(("DEL", self.site.keys.unacked_mutex, relay)))
        for worker in kept:
            member = str(worker.owner)
            score = f"{self.now + LEASE_S:.6f}"
            self.link.later(pack(("ZADD", "greenq.leases", "XX", score, member)))
            worker.state.lease_until_s = worker.boottime() + LEASE_S
            if seconds > VISIBILITY_S / 4:
                for tag in sorted(worker.unsettled()[0]):
                    score = f"{self.now:.6f}"
                    self.link.later(pack(("ZADD", "unacked_index", "XX", score, tag)))
        for worker in self.workers.values():
            if worker.alive and not worker.frozen:
                self._run_timer(worker)

    def _keep_guarded(self, worker: SimWorker, seconds: float) -> None:
        """Let time pass for a frozen worker whose guard prolongs the lease."""
        at = self.now
        while at < self.now + seconds:
            if not self._guard("extend", worker, at, LEASE_S):
                self.problem(f"I7 the guard of {worker.name} could not keep its lease")
                return
            at += LEASE_S * 0.4

    def _run_timer(self, worker: SimWorker) -> None:
        if len(worker.timer):
            self.kernel.spawn(worker, "timer", worker.timer.run_due)

    def env_stop(self, worker: SimWorker, _argument: str) -> None:
        worker.stopping = True
        self.kernel.spawn(worker, "stop", worker.stop, False)

    def env_cold(self, worker: SimWorker, _argument: str) -> None:
        worker.stopping = True
        self.kernel.spawn(worker, "stop", worker.stop, True)

    def env_drain(self, worker: SimWorker, _argument: str) -> None:
        self.kernel.spawn(worker, "drain", worker.tasks.drain, True)

    def env_undrain(self, worker: SimWorker, _argument: str) -> None:
        self.kernel.spawn(worker, "drain", worker.tasks.drain, False)

    def env_pause(self, _worker: None, queue: str) -> None:
        self.link.later(pack(("HSET", "greenq.paused", queue, "{}")))

    def env_resume(self, _worker: None, queue: str) -> None:
        self.link.later(pack(("HDEL", "greenq.paused", queue)))

    def env_look(self, worker: SimWorker, _argument: str) -> None:
        """Make it look for pauses, as by remote control."""
        self.kernel.spawn(worker, "look", _unless_cut(worker.look_for_pauses))

    def env_revoke(self, _worker: None, task_id: str) -> None:
        self.revoked.add(task_id)
        for worker in self.workers.values():
            if worker.alive and not worker.frozen:
                self.kernel.spawn(worker, "revoke", worker.tasks.revoke, [task_id])

    def env_flush(self, _worker: None, _argument: str) -> None:
        for worker in self.workers.values():
            if worker.alive:
                requests = worker.state.reserved.values()
                self.survivors |= {r.message.id for r in requests if not r.settled}
        self.rolled_back = True
        self.link.later(pack(("FLUSHDB",)))
        if self.result_link is not self.link:
            self.result_link.later(pack(("FLUSHDB",)))
        self._excuse_all()

    def env_snap(self, _worker: None, _argument: str) -> None:
        self._copy_all(0, 2)

    def env_rollback(self, _worker: None, _argument: str) -> None:
        self.rolled_back = True
        # A message in hand is on its queue again, or will be: there are two copies.
        for worker in self.workers.values():
            self.doubled |= {r.message.id for r in worker.state.reserved.values()}
        self.doubled |= {task_id for task_id, _retries in self.runs}
        self._copy_all(2, 0)
        self._excuse_all()
        self._cut_all()

    def _cut_all(self) -> None:
        """Break all connections: the server has been replaced by another."""
        for op in list(self.kernel.pending):
            if op.connection is not None and op in self.kernel.pending:
                self.fail(op, lost(False))
        for op in list(self.blocked):
            self.blocked.remove(op)
            self.fail(op, lost(False))
        for worker in self.workers.values():
            worker.leases.connection.close()

    def _copy_all(self, source: int, goal: int) -> None:
        links = self.site.server.links
        links[0].call(pack(("PING",)), 1)
        links[goal].one("FLUSHDB")
        for key in links[source].one("KEYS", "*"):
            links[source].one("COPY", key, key, "DB", goal)

    def _excuse_all(self) -> None:
        self.rolled_step = self.step
        for worker in self.workers.values():
            worker.has_lease = False
            worker.lost_step = self.step
        for runs in self.runs.values():
            for run in runs:
                run.excused = True

    # --- the end ----------------------------------------------------------------------------------

    def close(self) -> None:
        self.kernel.close()


def _unless_cut(call: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        with suppress(OperationalError):
            call()

    return run


def _copy(op: Op) -> Op:
    """Return a copy of an op, to be delivered on its own."""
    copy = Op(op.actor, op.kind)
    copy.connection, copy.commands, copy.began = op.connection, op.commands, op.began
    copy.data, copy.count, copy.script = op.data, op.count, op.script
    return copy
