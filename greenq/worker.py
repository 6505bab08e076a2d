"""One worker: its parts, made once and in one place, and its life from start to exit code."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import weakref
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from greenq import log
from greenq.autoscale import Autoscaler
from greenq.bootsteps.blueprint import Blueprint, DisabledPart, custom
from greenq.config.node_names import node_name
from greenq.config.settings import DEFAULT_CONCURRENCY
from greenq.consumer import Consumer
from greenq.consumer.agent import Agent
from greenq.consumer.connection import Connection
from greenq.consumer.event_sender import Events
from greenq.consumer.gossip import Gossip
from greenq.consumer.heart import INTERVAL_S, Heart
from greenq.consumer.mingle import Mingle
from greenq.consumer.remote_control import Control
from greenq.consumer.tasks import Tasks
from greenq.diagnostics.stacks import all_stacks
from greenq.errors import ConfigError, OperationalError, Problem, WorkerFault, WorkerLostError
from greenq.execution.executor import Executor, running_task
from greenq.execution.processes import leave_process, refuse_fork
from greenq.execution.state import WorkerState
from greenq.hub import Event, GreenletExit, Hub, Signals, spawn
from greenq.log import keep_going
from greenq.pool import Pool
from greenq.protocol.envelope import header
from greenq.protocol.serialize import accepted
from greenq.sending.producer import SendOptions
from greenq.sending.routing import Broadcast, QueueSource, select_queues, worker_direct
from greenq.states import FAILURE
from greenq.timer import Timer
from greenq.transport.facts import eviction_warning, server_facts
from greenq.transport.fetch import Fetcher
from greenq.transport.leases import Leases
from greenq.transport.mailbox import Mailbox
from greenq.transport.members import look_around
from greenq.transport.outbox import Outbox
from greenq.transport.owner import Owner, new_owner
from greenq.transport.recovery import Recovery
from greenq.transport.settle import Entry
from greenq.watchdog.guard_process import Guard
from greenq.watchdog.thread import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from greenq.app import Greenq
    from greenq.request import Request
    from greenq.transport.client import Connection as RedisConnection

_log = logging.getLogger(__name__)

# Anybody who may publish can have queues added, and their bindings stay: so many for each worker.
_MOST_ADDED = 1000

# How long it is known who has acted for an election.
_ELECTED_S = 3600

# For each portion of what is registered anew.
_REGISTER_TIMEOUT_S = 5.0

EXIT_OK = 0
EXIT_FAILED = 1


def _terminals() -> set[int]:
    """Return which of the three standard files are terminals, and still there."""
    return {number for number in (0, 1, 2) if os.isatty(number)}


def _forget(reference: weakref.ref[Worker]) -> None:
    found = reference()
    if found is not None:
        found.forget()


def _end_child(entry: Entry) -> None:
    """End a forked child that has come to the end of its parent's task, whose outcome it is not."""
    sys.stderr.write(
        f"process {os.getpid()} was forked in the task {entry.about or '?'} and ends with it here; "
        "the worker alone settles a task (end a forked child with os._exit)\n"
    )
    sys.stderr.flush()
    os._exit(EXIT_FAILED)


class Worker:
    """A worker of an app, in this process.

    Its blueprint starts Timer, Hub, Watch, Outbox, Pool, Autoscaler, Consumer, in this order, and
    stops them in reverse: first nothing new is taken, then what runs ends, then what it left is
    written, then the lease is given up.
    """

    def __init__(
        self,
        app: Greenq,
        *,
        queues: Iterable[str] = (),
        exclude_queues: Iterable[str] = (),
        concurrency: int | None = None,
        autoscale: tuple[int, int] | None = None,
        hostname: str | None = None,
        task_events: bool | None = None,
        mingle: bool = True,
        gossip: bool = True,
        heartbeat: bool = True,
        heartbeat_interval_s: float | None = None,
        control: bool | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Make all parts; nothing is started and nothing is sent.

        Args:
            app: whose tasks to run; its task modules are imported now.
            queues: to take from; none means those of the settings.
            exclude_queues: not to take from.
            concurrency: tasks at once; None means the setting.
            autoscale: (most, least) instead of a fixed concurrency.
            hostname: node name, ``greenq@host`` by default.
            task_events: tell of tasks; None means the setting.
            mingle, gossip, heartbeat: whether the consumer has these steps.
            heartbeat_interval_s: seconds between two heartbeats; None is two.
            control: answer remote control; None means the setting.
            options: values of the app's own options, for its own steps.

        Raises:
            ConfigError: a queue is unknown, or one of the app's own steps is wrong.
        """
        app.import_task_modules()
        config = app.config
        self.app = app
        self.hostname = node_name(hostname)
        selected = select_queues(config.task, tuple(queues), tuple(exclude_queues))
        if not selected:
            reason = "no queue is left to take from: all of them are excluded"
            raise ConfigError([Problem("exclude_queues", tuple(exclude_queues), reason)])
        self.queues = tuple(name for name in selected if isinstance(name, str))
        if config.worker.worker_direct:
            self.queues += (worker_direct(self.hostname),)
        self.broadcasts = tuple(name for name in selected if isinstance(name, Broadcast))
        # Of queues that were added with an exchange of their own.
        self.sources: dict[str, QueueSource] = {
            queue.name: QueueSource(queue.name, "fanout", config.task.task_default_queue)
            for queue in self.broadcasts
        }
        if config.worker.worker_direct:
            own = QueueSource("C.dq2", "direct", self.hostname)
            self.sources[worker_direct(self.hostname)] = own
        # What was added since the start: each has left a binding on the server.
        self._added: set[tuple[str, QueueSource]] = set()
        self.autoscale = autoscale
        fixed = concurrency or config.worker.worker_concurrency or DEFAULT_CONCURRENCY
        self.concurrency = autoscale[1] if autoscale else fixed
        self.state = WorkerState()
        self.state.clock = app.clock
        # This process as an owner of messages; never the same twice.
        self.owner = new_owner(self.hostname)
        self.exit_code = EXIT_OK
        self._started_s = time.monotonic()
        self._ended = Event()
        self._is_cold = False
        self._has_looked = self._runs = False
        transport = app.transport
        self.timer = Timer()
        self.hub = Hub(crashed=self._crashed)
        self.signals = Signals(self.hub)
        transport_options = config.broker.broker_transport_options
        # A dead connection is noticed and replaced before the lease ends that is renewed over it.
        answer_s = max(0.5, config.worker.worker_lease / 3)
        results = transport.result_client
        recovery = Recovery(
            transport.client.connection(),
            None if results in (None, transport.client) else results.connection(),
            transport.broker,
            claimant=self.owner.incarnation,
            claim_s=config.worker.worker_lease,
            max_deliveries=config.task.task_max_deliveries,
            may_run_again=self._may_run_again,
            bury=self._bury,
            now_s=lambda: time.time() + self.state.clock_offset_s,
        )
        self.watch = Watch(
            Leases(
                transport.client.connection(pushes=True, timeout_s=answer_s),
                transport.broker,
                self.owner,
                queues=self.queues,
                visibility_timeout_s=transport_options.visibility_timeout,
                lease_s=config.worker.worker_lease,
                recovery=recovery,
            ),
            self.hub,
            self.state,
            lease_s=config.worker.worker_lease,
            visibility_timeout_s=transport_options.visibility_timeout,
            blocked_after_s=config.worker.worker_hub_lag_warning,
            blocking_task=running_task,
            held=self._held,
            first_unused=lambda: self.fetcher.first_unused,
            is_waiting=lambda: self.fetcher.waiting,
            look=self._look,
            paused=self._pause,
            forgotten=self._register,
            give_away=self._give_away,
            unwritten=lambda: self.outbox.unwritten(),
            signals=self.signals,
            blocked_limit_s=config.worker.worker_hub_blocked_limit,
            stacks=self._stacks,
            cut=lambda connection: self.fetcher.cut(connection),
            end_process=partial(leave_process, EXIT_FAILED),
            guard=Guard(
                transport.client.url,
                key=transport.keys.leases,
                member=str(self.owner),
                lease_s=config.worker.worker_lease,
                silence_limit_s=config.worker.worker_silence_limit,
                embedded=transport.client.is_embedded,
            ),
        )
        self.outbox = Outbox(transport, self.owner.incarnation)
        self.events = Events(
            self.outbox,
            transport.keys,
            self.hostname,
            app.clock,
            tasks=config.worker.worker_send_task_events if task_events is None else task_events,
        )
        executor = Executor(
            config=config.task,
            transport=transport,
            producer=app.producer,
            outbox=self.outbox,
            state=self.state,
            hostname=self.hostname,
            events=self.events,
            end_hooks=app.task_end_hooks,
        )
        self.pool = Pool(
            self.concurrency,
            executor,
            prefetch_multiplier=config.worker.worker_prefetch_multiplier,
            grace_s=config.worker.worker_shutdown_grace,
            keep_locals=config.worker.worker_task_locals == "keep",
        )
        strategy = transport_options.queue_order_strategy
        self.fetcher = Fetcher(
            transport.client,
            transport.keys,
            self._in_order(self.queues),
            self.owner.incarnation,
            rotate=strategy == "round_robin",
            member=str(self.owner),
        )
        self.tasks = Tasks(
            config=config.task,
            transport=transport,
            registry=app.tasks,
            fetcher=self.fetcher,
            outbox=self.outbox,
            pool=self.pool,
            timer=self.timer,
            state=self.state,
            hostname=self.hostname,
            left_behind=self._left_behind,
            events=self.events,
            rate_limits=not config.worker.worker_disable_rate_limits,
        )
        self.pool.abandoned = self.tasks.give_back
        self.autoscaler: Autoscaler | None = None
        if autoscale:
            self.autoscaler = Autoscaler(
                self.pool,
                self.timer,
                self.hub,
                most=autoscale[0],
                least=autoscale[1],
                keepalive_s=config.worker.worker_autoscale_keepalive,
                interval_s=config.worker.worker_autoscale_interval,
                backlog=self.tasks.backlog,
            )
        self.connection = Connection(self)
        subscriber, accept = self.watch.subscriber, accepted(config.task.accept_content)
        mailbox = Mailbox(
            transport.client,
            transport.keys,
            accept=config.task.accept_content,
            serializer=config.task.task_serializer,
            clock=app.clock,
        )
        self.mingle = Mingle(mailbox, self.state, self.hostname) if mingle else None
        self.gossip: Gossip | None = None
        if gossip:
            self.gossip = Gossip(
                subscriber,
                self.events,
                self.timer,
                transport.keys,
                app.clock,
                hostname=self.hostname,
                accept=accepted(("json", *config.task.accept_content)),
                leaders={"task": self._send_elected, **app.leaders},
                claim=self._claim,
                leased=self._look_around,
                greeted=self._greeted,
            )
        self.control: Control | None = None
        remote = config.worker.worker_enable_remote_control
        if remote if control is None else control:
            self.control = Control(
                self,
                subscriber,
                mailbox,
                transport.keys,
                app.clock,
                accept=accept,
                accept_pcre=config.worker.worker_remote_control_pcre,
                looks_only=remote == "inspect",
            )
        self.heart: Heart | None = None
        if heartbeat:
            self.heart = Heart(
                self.events,
                self.watch,
                self.pool,
                self.state,
                interval_s=heartbeat_interval_s or INTERVAL_S,
            )
        agent = config.worker.worker_agent
        self.consumer = Consumer(
            self,
            [
                self.connection,
                self.events,
                self.mingle or DisabledPart(Mingle),
                self.gossip or DisabledPart(Gossip),
                self.tasks,
                self.control or DisabledPart(Control),
                self.heart or DisabledPart(Heart),
                Agent(agent, self) if agent else DisabledPart(Agent),
            ],
            custom_steps=app.steps["consumer"],
            options=options or {},
            retry_at_start=config.broker.broker_connection_retry_on_startup,
            max_retries=config.broker.broker_connection_max_retries,
        )  # fmt: skip
        self.blueprint = Blueprint(
            "worker",
            [
                self.timer, self.hub, self.watch, self.outbox, self.pool,
                self.autoscaler or DisabledPart(Autoscaler), self.consumer,
                *custom(app.steps["worker"], self, options or {}),
            ],
        )  # fmt: skip

    @property
    def uptime_s(self) -> float:
        """Seconds since this worker was made."""
        return time.monotonic() - self._started_s

    def run(self, *, signals: bool = True) -> int:
        """Work until stopped and return the exit code. Switches: yes.

        With `signals`, SIGTERM and SIGINT stop warm (finish what runs), a second one cold; SIGQUIT
        is cold at once; SIGUSR1 logs what everything does at the moment; SIGHUP opens the log file
        anew, or stops warm when it tells that the terminal was closed. They work while the hub is
        blocked, too: the watch thread hears of them.
        """
        os.register_at_fork(after_in_child=partial(_forget, weakref.ref(self)))
        if signals:
            # The process is this worker's alone.
            refuse_fork()
            self.signals.on(signal.SIGTERM, self._on_stop_signal)
            self.signals.on(signal.SIGINT, self._on_stop_signal)
            self.signals.on(signal.SIGQUIT, self.stop_cold)
            self.signals.on(signal.SIGUSR1, self._log_stacks)
            # nohup has it ignored.
            if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
                self.signals.on(signal.SIGHUP, partial(self._on_hangup, _terminals()))
        keep_going()
        self._runs = True
        try:
            return self._run()
        finally:
            self._runs = False
            self.signals.close()

    def _run(self) -> int:
        self.blueprint.start()
        self._ended.wait()
        if self._is_cold:
            self.blueprint.terminate()
        else:
            self.blueprint.stop()
        self.blueprint.shutdown()
        return self.exit_code

    def start(self) -> None:
        """Start without waiting, for a program that runs a worker beside something else."""
        spawn(partial(self.run, signals=False), name="worker")

    def stop(self, why: str = "") -> None:
        """Stop warm: take nothing more, finish what runs in time, give back the rest."""
        self._ended.set()
        self.outbox.until_s = time.monotonic() + self.app.config.worker.worker_shutdown_grace
        text = f" ({why})" if why else ""
        _log.info("warm shutdown%s: %d tasks run", text, self.pool.running)

    def stop_cold(self) -> None:
        """Stop now: everything unfinished goes back to its queue."""
        self.exit_code = EXIT_FAILED
        self._is_cold = True
        self.outbox.until_s = 0.0
        self.pool.hurry()
        self._ended.set()
        _log.warning("cold shutdown: %d tasks go back to their queues", self.pool.running)

    def _look_around(self) -> set[str]:
        """Return the nodes that hold a lease; share the clock with them. Switches: yes."""
        transport, clock = self.app.transport, self.app.clock
        nodes, highest = look_around(transport.client, transport.keys, clock.value)
        if highest > clock.value:
            clock.adjust(highest)
        return nodes

    def _greeted(self) -> frozenset[str]:
        """Return the nodes that have answered this worker's hello."""
        return self.mingle.met if self.mingle is not None else frozenset()

    def _on_stop_signal(self) -> None:
        if self._ended.is_set():
            self.stop_cold()
        else:
            self.stop()

    def _on_hangup(self, terminals: set[int]) -> None:
        """Open the log anew, as after its rotation; the end of a terminal is another thing."""
        if terminals - _terminals():
            self.stop("its terminal was closed")
        else:
            log.reopen()

    def _log_stacks(self) -> None:
        _log.warning("%s", self._stacks())

    def _stacks(self) -> str:
        """Return the stacks of all greenlets and threads; any thread may ask."""
        running = self.pool.active
        names = {each.greenlet: str(each) for each in running if each.greenlet is not None}
        return all_stacks(names)

    def forget(self) -> None:
        """In a forked child: run nothing, take nothing, and end where the task ends."""
        if not self._runs:
            return
        self.signals.forget()
        self.hub.forget()
        self.outbox.put = _end_child  # type: ignore[method-assign]

    def _left_behind(self) -> None:
        """Let the autoscaler know at once that more waits than the pool has room for."""
        if self.autoscaler is not None and self.pool.room <= 0:
            self.autoscaler.tick()

    def _look(self) -> None:
        """Have a consumer that waits look for work."""
        self.fetcher.wake(look=True)

    def _held(self) -> tuple[set[str], int]:
        """Tell what is not settled on the server, and which tag is the next; any thread may ask."""
        # In this order: what is taken meanwhile has a number beyond the first one.
        first_unused = self.fetcher.first_unused
        return self.tasks.unfinished | self.outbox.tags(), first_unused

    def look_at_server(self) -> None:
        """Warn of what will go wrong with this server, once; and of a worker of the same name.

        Switches: yes.
        """
        if self._has_looked:
            return
        self._has_looked = True
        transport = self.app.transport
        try:
            warning = eviction_warning(server_facts(transport.client))
            leases = transport.client.call("ZRANGE", transport.keys.leases, 0, -1)
        except OperationalError as exc:
            _log.info("the server does not tell of its memory: %s", exc)
            return
        if warning is not None:
            _log.warning("%s", warning)
        owners = [Owner.parse(each.decode(errors="replace")) for each in leases]
        twins = [
            each
            for each in owners
            if each.node == self.hostname and each != self.owner and not each.is_dead
        ]
        if twins:
            _log.warning(
                "another worker is named %s, too, or was until a moment ago: of two, one's answers "
                "hide the other's; name them with -n",
                self.hostname,
            )

    def register(self) -> None:
        """Make this owner known to the server, with all that it has in hand. Switches: yes.

        Raises:
            OperationalError: the server is away, or the lease has ended.
        """
        requests = list(self.state.reserved.values())
        held = [request.delivery for request in requests if not request.settled]
        begun = {request.delivery.tag for request in requests if request.settled}
        is_new = self.fetcher.register(
            self.watch.question, held, begun | self.outbox.tags(), _REGISTER_TIMEOUT_S
        )
        if is_new and self.fetcher.first_unused > 1:
            _log.warning(
                "the server had lost its data: what this worker has in hand is there again: %d",
                len(requests),
            )

    def _register(self) -> None:
        """Do so if possible; the next renewal of the lease asks for it again."""
        try:
            self.register()
        except OperationalError as exc:
            _log.info("the server does not know this worker yet: %s", exc)

    def _give_away(self, connection: RedisConnection) -> None:
        """Have other workers run what waits here for a slot; the watch thread calls it."""
        self.tasks.give_away(connection, self.owner.incarnation)

    def _may_run_again(self, name: str | None) -> bool:
        """Tell whether a task runs again when its worker is lost."""
        task = self.app.tasks.get(name or "")
        own = None if task is None else task.reject_on_worker_lost
        return self.app.config.task.task_reject_on_worker_lost if own is None else own

    def _bury(self, tag: str, queue: str, raw: bytes, reason: str, task_id: str | None) -> Entry:
        """Put a lost worker's message among the dead letters; who waits for it learns why."""
        _log.error(
            "task %s[%s] of queue %s is among the dead letters: %s",
            header(raw, "task"), task_id, queue, reason,
        )  # fmt: skip
        transport, now = self.app.transport, datetime.now(UTC)
        move = transport.broker.bury(tag, queue, raw, reason=reason, worker=self.hostname, now=now)
        if task_id is None or not transport.stores_results:
            return Entry.moving(move)
        error = WorkerLostError(reason)
        state = transport.backend.stored(task_id, FAILURE, error, date_done=now.isoformat())
        return Entry.moving(move, state)

    def give_up(self, error: Exception) -> None:
        """End a worker that cannot go on."""
        self.exit_code = EXIT_FAILED
        self._ended.set()
        _log.critical("the worker ends: %s", error)

    def _crashed(self, what: str, error: BaseException) -> None:
        """End, since a part of the worker itself is gone: what runs may finish, if it can."""
        if self._ended.is_set() and isinstance(error, GreenletExit):
            # Killed because the worker ends.
            return
        if what == "greenlet outbox":
            # Whatever ends now is not written any more.
            self.pool.hurry()
        self.give_up(WorkerFault(f"its {what} has ended: {type(error).__name__}: {error}"))

    # --- remote control ---------------------------------------------------------------------------

    def add_queue(self, queue: str, source: QueueSource) -> None:
        """Take from one more queue, and have what is published on its exchange go there.

        Switches: yes.

        Raises:
            ValueError: the key of this name is something else than a queue, or too many queues were
                added to this worker.
            OperationalError: it could not be declared, and is not taken from.
        """
        if (queue, source) not in self._added and len(self._added) >= _MOST_ADDED:
            raise ValueError(
                f"{_MOST_ADDED:,} queues were added to this worker since its start, which is the "
                "most: name its queues with -Q"
            )
        broker = self.app.transport.broker
        kind = broker.kind(queue)
        if kind not in ("none", "list"):
            raise ValueError(f"{queue!r} cannot be a queue: the key of this name is a {kind}")
        self._added.add((queue, source))
        broker.declare([queue])
        if source != QueueSource(queue, "direct", queue):
            is_topic = source.exchange_type == "topic"
            broker.bind(queue, source.exchange, source.routing_key, is_topic=is_topic)
            self.sources[queue] = source
        if queue not in self.queues:
            self.queues = (*self.queues, queue)
            self._take_from()
            self.tell()

    def cancel_queue(self, queue: str) -> None:
        """Take from a queue no longer; what was taken runs. Switches: yes."""
        self.queues = tuple(name for name in self.queues if name != queue)
        self.sources.pop(queue, None)
        self._take_from()
        self.tell()

    def tell(self) -> None:
        """Have the server know what this worker takes from, for those who ask. Switches: no."""
        self.watch.tell(self.taken_queues)

    @property
    def taken_queues(self) -> tuple[str, ...]:
        """The queues that it takes from, paused or not, and those that it hears broadcasts of."""
        return (*self.queues, *(queue.name for queue in self.broadcasts))

    def look_for_pauses(self) -> None:
        """Take from no queue that is paused, and from all others. Switches: yes."""
        self._pause(frozenset(self.app.transport.broker.paused()))

    def _pause(self, paused: frozenset[str]) -> None:
        before = self.state.paused
        if paused == before:
            return
        for queue in sorted((paused ^ before) & set(self.queues)):
            how = "paused" if queue in paused else "taken from again"
            _log.warning("queue %s is %s", queue, how)
        self.state.paused = paused
        self._take_from()

    def _take_from(self) -> None:
        """Have fetcher and lease look at the queues as they are now."""
        queues = [queue for queue in self.queues if queue not in self.state.paused]
        self.watch.set_queues(queues)
        self.fetcher.set_queues(self._in_order(queues))

    def _in_order(self, queues: Iterable[str]) -> list[str]:
        strategy = self.app.config.broker.broker_transport_options.queue_order_strategy
        return sorted(queues) if strategy == "sorted" else list(queues)

    def terminate(self, which: Callable[[Request], bool], signal_name: str) -> list[str]:
        """End running tasks and return their ids. Switches: no."""
        ended = [request for request in self.pool.active if which(request)]
        for request in ended:
            self.pool.end(request, signal_name)
        return [request.message.id for request in ended]

    def _claim(self, election_id: str) -> bool:
        """Ask the server whether this worker is the first to act as an election's winner."""
        transport = self.app.transport
        key = transport.keys.elected(election_id)
        set_now = transport.client.call("SET", key, self.hostname, "NX", "EX", _ELECTED_S)
        return set_now is not None

    def _send_elected(self, action: Any) -> None:
        """Send the task that an election was held for.

        Raises:
            ConfigError: `action` is no signature.
        """
        if not isinstance(action, dict) or not isinstance(action.get("task"), str):
            raise ConfigError([Problem("action", action, "is no signature of a task")])
        options = {
            name: value
            for name, value in (action.get("options") or {}).items()
            if name in SendOptions.__annotations__
        }
        self.app.send_task(
            action["task"], action.get("args") or (), action.get("kwargs") or {}, **options
        )

    def info(self) -> dict[str, Any]:
        """Tell about this worker: its parts' own information, those of custom steps included."""
        return {**self.blueprint.info(), **self.consumer.blueprint.info()}
