"""Builds the parts of a worker, each once, and puts them in order."""

from __future__ import annotations

import importlib
import time
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from greenq.autoscale import Autoscaler
from greenq.beat.step import Beat
from greenq.bootsteps.blueprint import Blueprint, DisabledPart, custom
from greenq.config.node_names import file_name, node_name
from greenq.config.queue_table import declared
from greenq.config.queues import Broadcast, Queue
from greenq.config.settings import DEFAULT_CONCURRENCY
from greenq.consumer import Consumer
from greenq.consumer.agent import Agent
from greenq.consumer.connection import ConnectionStep
from greenq.consumer.elections import Elections
from greenq.consumer.event_sender import EventsStep
from greenq.consumer.gossip import Gossip
from greenq.consumer.heart import INTERVAL_S, Heart
from greenq.consumer.mingle import Mingle
from greenq.consumer.queue_set import QueueSet, in_order
from greenq.consumer.remote_control import ControlStep
from greenq.consumer.revokes import Revokes
from greenq.consumer.tasks import Tasks
from greenq.diagnostics.stacks import all_stacks
from greenq.errors import ConfigError, Problem
from greenq.execution.executor import Executor, running_task
from greenq.execution.handover import Handover
from greenq.execution.lost import LostMessages
from greenq.execution.processes import leave_process
from greenq.execution.revoked import Revoked
from greenq.execution.state import WorkerState
from greenq.execution.statedb import StateDB
from greenq.execution.stopped_workflows import StoppedWorkflows
from greenq.execution.tally import TaskTally
from greenq.execution.workflow_index import WorkflowIndex
from greenq.hub import Hub, Signals
from greenq.pool import Pool
from greenq.protocol.serialize import accepted
from greenq.sending.routing import select_queues, worker_direct
from greenq.supervision.controller import Processes
from greenq.supervision.sizing import Rules
from greenq.timer import Timer
from greenq.transport.fetch import Fetcher
from greenq.transport.group_store import GroupStore
from greenq.transport.leases import Leases
from greenq.transport.mailbox import Mailbox
from greenq.transport.members import Recycling
from greenq.transport.outbox import Outbox
from greenq.transport.owner import new_owner
from greenq.transport.recovery import Recovery
from greenq.transport.revokes import RevokeStore
from greenq.upkeep.adaptive import Adaptive
from greenq.upkeep.autoreload import Autoreloader
from greenq.upkeep.recycle import Recycle, RecycleLimits
from greenq.watchdog.guard_process import GuardProcess
from greenq.watchdog.hooks import Holdings, HubCalls, Rescue, WatchLimits
from greenq.watchdog.hub_thread import HubThread
from greenq.watchdog.thread import Watch
from greenq.worker_parts.options import EXIT_FAILED
from greenq.worker_parts.parts import Parts

if TYPE_CHECKING:
    from greenq.app import Greenq
    from greenq.bootsteps.blueprint import Part
    from greenq.consumer.remote_control import Commands
    from greenq.supervision.supervisor import Membership
    from greenq.worker_parts.options import WorkerOptions
    from greenq.worker_parts.parts import Life


def build(
    app: Greenq, options: WorkerOptions, *, life: Life, commands: Commands, **given: Any
) -> Parts:
    """Build all parts; nothing is started or sent.

    Args:
        app: the app whose tasks to run; its task modules are imported.
        options: the options for this worker.
        life: lets the parts stop the worker.
        commands: the remote control commands.
        given: ready-made parts, by their names in `Parts`; these parts are not built.

    Raises:
        ConfigError: a queue is unknown, or all queues are excluded.
    """
    builder = _Builder(app, options, life, commands)
    vars(builder).update(given)
    return builder.parts


def build_consumer(parts: Parts, options: WorkerOptions, worker: object) -> Consumer:
    """Build the consumer with its steps; the app's own steps receive `worker`."""
    app, agent = parts.app, parts.app.config.worker.worker_agent
    steps = [
        parts.connection,
        parts.events,
        parts.mingle or DisabledPart(Mingle),
        parts.revokes,
        parts.gossip or DisabledPart(Gossip),
        parts.tasks,
        parts.control or DisabledPart(ControlStep),
        parts.heart or DisabledPart(Heart),
        Agent(agent, worker) if agent else DisabledPart(Agent),
    ]
    consumer = Consumer(
        steps,
        worker=worker,
        app=app,
        hostname=parts.hostname,
        tasks=parts.tasks,
        queues=parts.queues,
        give_up=parts.life.give_up,
        custom_steps=app.steps["consumer"],
        options=options.step_options,
        retry_at_start=app.config.broker.broker_connection_retry_on_startup,
        max_retries=app.config.broker.broker_connection_max_retries,
    )
    parts.tasks.admission.send_signals_as(consumer)
    return consumer


def build_blueprint(
    parts: Parts, options: WorkerOptions, worker: object, consumer: Consumer, monitoring: Part
) -> Blueprint:
    """Order the parts of `worker`, including the app's own steps."""
    steps = [
        parts.timer,
        parts.hub,
        monitoring,
        parts.watch,
        parts.outbox,
        parts.pool,
        parts.autoreloader or DisabledPart(Autoreloader),
        parts.autoscaler or DisabledPart(Autoscaler),
        parts.processes or DisabledPart(Processes),
        parts.beat or DisabledPart(Beat),
        parts.recycle or DisabledPart(Recycle),
        parts.state_db or DisabledPart(StateDB),
        parts.stopped_workflows or DisabledPart(StoppedWorkflows),
        consumer,
        *custom(parts.app.steps["worker"], worker, options.step_options),
    ]
    return Blueprint("worker", steps)


def stacks(pool: Pool) -> str:
    """Return the stacks of all greenlets and threads; any thread may call this."""
    names = {each.greenlet: str(each) for each in pool.active if each.greenlet is not None}
    return all_stacks(names)


class _Builder:
    """Builds each part on first use, so the order follows from the parts' dependencies.

    If two parts need each other, one gets a lambda that looks up the other when it is called.
    """

    def __init__(self, app: Greenq, options: WorkerOptions, life: Life, commands: Commands) -> None:
        self.app = app
        self.config = app.config
        self.transport = app.transport
        self.options = options
        self.life = life
        self.commands = commands
        self.hostname = node_name(options.hostname)
        self.owner = new_owner(self.hostname)
        self.selected = self._select_queues()
        self.queue_names = self._queue_names()
        broker = app.config.broker
        self.visibility_timeout_s = broker.broker_transport_options.visibility_timeout
        self.queue_order = broker.broker_transport_options.queue_order_strategy
        self.lease_s = app.config.worker.worker_lease

    @cached_property
    def parts(self) -> Parts:
        return Parts(
            app=self.app,
            hostname=self.hostname,
            owner=self.owner,
            started_s=time.monotonic(),
            life=self.life,
            state=self.state,
            timer=self.timer,
            hub=self.hub,
            signals=self.signals,
            watch=self.watch,
            outbox=self.outbox,
            events=self.events,
            pool=self.pool,
            fetcher=self.fetcher,
            tasks=self.tasks,
            queues=self.queues,
            autoreloader=self.autoreloader,
            autoscaler=self.autoscaler,
            processes=self.processes,
            beat=self.beat,
            recycle=self.recycle,
            state_db=self.state_db,
            revokes=self.revokes,
            connection=self.connection,
            mingle=self.mingle,
            gossip=self.gossip,
            control=self.control,
            heart=self.heart,
            stopped_workflows=self.stopped_workflows,
        )

    # --- queues -----------------------------------------------------------------------------------

    def _select_queues(self) -> tuple[str | Broadcast, ...]:
        queues, excluded = tuple(self.options.queues), tuple(self.options.exclude_queues)
        selected = select_queues(self.config.task, queues, excluded)
        if not selected:
            reason = "no queue is left to consume from: all of them are excluded"
            raise ConfigError([Problem("exclude_queues", excluded, reason)])
        return selected

    def _queue_names(self) -> tuple[str, ...]:
        names = tuple(name for name in self.selected if isinstance(name, str))
        if self.config.worker.worker_direct:
            names += (worker_direct(self.hostname),)
        return names

    @cached_property
    def queues(self) -> QueueSet:
        broadcasts = tuple(name for name in self.selected if isinstance(name, Broadcast))
        return QueueSet(
            self.queue_names,
            broadcasts,
            transport=self.transport,
            state=self.state,
            fetcher=self.fetcher,
            watch=self.watch,
            timer=self.timer,
            strategy=self.queue_order,
        )

    def _weights(self) -> dict[str, int]:
        """Return the weights of the queues; empty if the queues do not take turns."""
        if self.queue_order != "round_robin":
            return {}
        queues = declared(self.config.task).values()
        return {queue.name: queue.weight for queue in queues if isinstance(queue, Queue)}

    # --- the hub ----------------------------------------------------------------------------------

    @cached_property
    def state(self) -> WorkerState:
        state = WorkerState(revoked=Revoked(keep_s=self.config.worker.worker_revoke_expires))
        state.clock = self.app.clock
        return state

    @cached_property
    def timer(self) -> Timer:
        return Timer()

    @cached_property
    def hub(self) -> Hub:
        return Hub(crashed=self.life.crashed)

    @cached_property
    def signals(self) -> Signals:
        return Signals(self.hub)

    # --- the watchdog thread ----------------------------------------------------------------------

    @cached_property
    def watch(self) -> Watch:
        config = self.config.worker
        return Watch(
            self.leases,
            self.hub,
            self.state,
            HubThread(running_task, lambda: stacks(self.pool)),
            limits=WatchLimits(
                lease_s=self.lease_s,
                visibility_timeout_s=self.visibility_timeout_s,
                blocked_after_s=config.worker_hub_lag_warning,
                blocked_limit_s=config.worker_hub_blocked_limit,
            ),
            holdings=Holdings(
                unsettled=self._unsettled,
                first_unused=lambda: self.fetcher.first_unused,
                is_waiting=lambda: self.fetcher.waiting,
                unwritten=lambda: self.outbox.unwritten(),
            ),
            calls=HubCalls(
                look=lambda: self.fetcher.wake(look=True),
                paused=lambda paused: self.queues.pause(paused),
                forgotten=lambda: self.connection.try_register(),
            ),
            rescue=Rescue(
                give_away=lambda redis: self.tasks.give_away(redis, self.owner.incarnation),
                cut=lambda redis: self.fetcher.cut(redis),
                end_process=partial(leave_process, EXIT_FAILED),
            ),
            guard=self.guard,
            signals=self.signals,
        )

    def _unsettled(self) -> tuple[set[str], int]:
        """Return the unsettled tags and the next tag's number; any thread may call this."""
        # Read the number first, since a message taken afterwards has this number or a higher one.
        first_unused = self.fetcher.first_unused
        return self.tasks.unfinished | self.outbox.tags(), first_unused

    @cached_property
    def leases(self) -> Leases:
        client = self.transport.client
        # The timeout is short, so that a dead connection is replaced before the lease ends.
        answer_s = max(0.5, self.lease_s / 3)
        return Leases(
            client.connection(pushes=True, timeout_s=answer_s),
            self.transport.broker,
            self.owner,
            queues=self.queue_names,
            visibility_timeout_s=self.visibility_timeout_s,
            lease_s=self.lease_s,
            recovery=self.recovery,
        )

    @cached_property
    def recovery(self) -> Recovery:
        client, results = self.transport.client, self.transport.result_client
        lost = LostMessages(self.app, self.hostname)
        return Recovery(
            client.connection(),
            None if results in (None, client) else results.connection(),
            self.transport.broker,
            claimant=self.owner.incarnation,
            claim_s=self.lease_s,
            max_deliveries=self.config.task.task_max_deliveries,
            may_run_again=lost.may_run_again,
            bury=lost.bury,
            now_s=lambda: time.time() + self.state.clock_offset_s,
        )

    @cached_property
    def guard(self) -> GuardProcess:
        client = self.transport.client
        return GuardProcess(
            client.url,
            key=self.transport.keys.leases,
            member=str(self.owner),
            lease_s=self.lease_s,
            silence_limit_s=self.config.worker.worker_silence_limit,
            embedded=client.is_embedded,
        )

    # --- from the queue to the result -------------------------------------------------------------

    @cached_property
    def fetcher(self) -> Fetcher:
        return Fetcher(
            self.transport.client,
            self.transport.keys,
            in_order(self.queue_names, self.queue_order),
            self.owner.incarnation,
            rotate=self.queue_order == "round_robin",
            weights=self._weights(),
            member=str(self.owner),
        )

    @cached_property
    def tasks(self) -> Tasks:
        return Tasks(
            config=self.config.task,
            transport=self.transport,
            registry=self.app.tasks.with_built_in(),
            fetcher=self.fetcher,
            outbox=self.outbox,
            pool=self.pool,
            timer=self.timer,
            state=self.state,
            hostname=self.hostname,
            handover=self.handover,
            left_behind=self._left_behind,
            taken=self._resume_autoscaler if self.options.autoscale else None,
            events=self.events,
            rate_limits=not self.config.worker.worker_disable_rate_limits,
        )

    @cached_property
    def pool(self) -> Pool:
        autoscale, config = self.options.autoscale, self.config.worker
        fixed = self.options.concurrency or config.worker_concurrency or DEFAULT_CONCURRENCY
        pool = Pool(
            autoscale[1] if autoscale else fixed,
            self.executor,
            prefetch_multiplier=config.worker_prefetch_multiplier,
            grace_s=config.worker_shutdown_grace,
            keep_locals=config.worker_task_locals == "keep",
        )
        pool.abandoned = lambda requests: self.tasks.give_back(requests)
        return pool

    @cached_property
    def executor(self) -> Executor:
        return Executor(
            config=self.config.task,
            transport=self.transport,
            producer=self.app.producer,
            outbox=self.outbox,
            state=self.state,
            hostname=self.hostname,
            handover=self.handover,
            events=self.events,
            end_hooks=self.app.task_end_hooks,
        )

    @cached_property
    def handover(self) -> Handover:
        return Handover(
            config=self.config.task,
            transport=self.transport,
            registry=self.app.tasks,
            producer=self.app.producer,
            outbox=self.outbox,
            hostname=self.hostname,
            index=self.index,
        )

    @cached_property
    def index(self) -> WorkflowIndex | None:
        if not self.config.task.workflow_index:
            return None
        seconds = self.transport.workflows.seconds
        return WorkflowIndex(self.transport.broker, self.state.revoked, self.hostname, seconds)

    @cached_property
    def stopped_workflows(self) -> StoppedWorkflows | None:
        if self.index is None:
            return None
        stopped = StoppedWorkflows(
            self.transport.workflows,
            lambda stopped: self.tasks.stop_workflows(stopped),
        )
        self.index.on_held = stopped.held
        return stopped

    @cached_property
    def outbox(self) -> Outbox:
        return Outbox(self.transport, self.owner.incarnation)

    @cached_property
    def autoreloader(self) -> Autoreloader | None:
        if not self.options.autoreload:
            return None
        return Autoreloader(lambda why: self.life.restart(why), spawn_soon=self.hub.spawn_soon)

    @cached_property
    def autoscaler(self) -> Autoscaler | None:
        if not self.options.autoscale:
            return None
        most, least = self.options.autoscale
        adaptive = Adaptive() if self.config.worker.worker_autoscale_adaptive else None
        if adaptive is not None:
            self.state.tally = self.state.tally or TaskTally()
        return Autoscaler(
            self.pool,
            self.timer,
            self.hub,
            most=most,
            least=least,
            keepalive_s=self.config.worker.worker_autoscale_keepalive,
            interval_s=self.config.worker.worker_autoscale_interval,
            backlog=self.tasks.backlog,
            adaptive=adaptive,
            ended=lambda: self.state.tally.totals() if self.state.tally else (0, 0.0),
            is_empty=lambda: self.tasks.is_empty,
        )

    @cached_property
    def processes(self) -> Processes | None:
        if self.options.processes is None:
            return None
        config, (most, least) = self.config.worker, self.options.processes
        # Import the module only here, since an XML-RPC client takes two megabytes of memory.
        place: Membership = importlib.import_module("greenq.supervision.supervisor").membership()
        interval_s = config.worker_processes_interval
        store = GroupStore(
            self.transport.client,
            self.transport.keys,
            group=place.fingerprint(self.owner.where),
            process=place.process,
            interval_s=interval_s,
        )
        return Processes(
            place,
            store,
            rules=Rules(
                most=most,
                least=least,
                grow_after_s=config.worker_processes_grow_after,
                keepalive_s=config.worker_processes_keepalive,
            ),
            interval_s=interval_s,
            pool=self.pool,
            tasks=self.tasks,
            broker=self.transport.broker,
            queues=lambda: self.fetcher.queues,
        )

    @cached_property
    def beat(self) -> Beat | None:
        return Beat(self.app, self.hostname, self.watch.beat_lead) if self.options.beat else None

    @cached_property
    def recycle(self) -> Recycle | None:
        config = self.config.worker
        limits = RecycleLimits(
            tasks=config.worker_max_tasks_per_child,
            memory_kb=config.worker_max_memory_per_child,
            lifetime_s=config.worker_max_lifetime,
        )
        if not limits:
            return None
        client, keys = self.transport.client, self.transport.keys
        return Recycle(
            limits,
            self.timer,
            Recycling(client, keys, self.hostname, lambda: self.queues.taken),
            slots=self.pool.size,
            done=self.state.finished,
            is_ready=lambda: self.fetcher.waiting or self.fetcher.working,
            end=lambda why: self.life.recycle(why),
            at_once=config.worker_recycle_at_once,
            jitter=config.worker_recycle_jitter,
            grace_s=config.worker_shutdown_grace,
        )

    @cached_property
    def state_db(self) -> StateDB | None:
        path = self.config.worker.worker_state_db
        return StateDB(file_name(path, self.hostname), self.state, self.timer) if path else None

    def _left_behind(self) -> None:
        """Have the autoscaler decide now if more messages wait than the pool has room for."""
        if self.autoscaler is not None and self.pool.room <= 0:
            self.autoscaler.tick()

    def _resume_autoscaler(self) -> None:
        assert self.autoscaler is not None
        self.autoscaler.resume()

    # --- the cluster ------------------------------------------------------------------------------

    @cached_property
    def connection(self) -> ConnectionStep:
        return ConnectionStep(
            transport=self.transport,
            owner=self.owner,
            watch=self.watch,
            queues=self.queues,
            fetcher=self.fetcher,
            outbox=self.outbox,
            state=self.state,
            receive=self.tasks.receive,
        )

    @cached_property
    def events(self) -> EventsStep:
        chosen = self.options.task_events
        return EventsStep(
            self.outbox,
            self.transport.keys,
            self.hostname,
            self.app.clock,
            tasks=self.config.worker.worker_send_task_events if chosen is None else chosen,
            signer=self.transport.signer,
        )

    @cached_property
    def mailbox(self) -> Mailbox:
        return Mailbox(
            self.transport.client,
            self.transport.keys,
            accept=self.config.task.accept_content,
            serializer=self.config.task.task_serializer,
            clock=self.app.clock,
            signer=self.transport.signer,
        )

    @cached_property
    def mingle(self) -> Mingle | None:
        return Mingle(self.mailbox, self.state, self.hostname) if self.options.mingle else None

    @cached_property
    def revokes(self) -> Revokes:
        keep_s = self.config.worker.worker_revoke_expires
        return Revokes(
            RevokeStore(self.transport.client, self.transport.keys, keep_s=keep_s),
            self.state.revoked,
            spawn_soon=self.hub.spawn_soon,
            discard=lambda: self.tasks.revoke(),
        )

    @cached_property
    def gossip(self) -> Gossip | None:
        if not self.options.gossip:
            return None
        elections = Elections(self.app, self.hostname)
        return Gossip(
            self.watch.subscriber,
            self.events,
            self.timer,
            self.transport.keys,
            self.app.clock,
            hostname=self.hostname,
            accept=accepted(("json", *self.config.task.accept_content)),
            leaders={"task": elections.send, **self.app.leaders},
            claim=elections.claim,
            leased=elections.voters,
            greeted=self._greeted,
            signer=self.transport.signer,
        )

    def _greeted(self) -> frozenset[str]:
        """Return the nodes that have replied to this worker's hello."""
        return self.mingle.met if self.mingle is not None else frozenset()

    @cached_property
    def control(self) -> ControlStep | None:
        config, chosen = self.config.worker, self.options.control
        remote = config.worker_enable_remote_control
        if not (remote if chosen is None else chosen):
            return None
        return ControlStep(
            self.commands,
            lambda name, arguments: self.commands.run(name, self.parts, arguments),
            self.watch.subscriber,
            self.mailbox,
            self.transport.keys,
            self.app.clock,
            hostname=self.hostname,
            accept=accepted(self.config.task.accept_content),
            accept_pcre=config.worker_remote_control_pcre,
            looks_only=remote == "inspect",
            signer=self.transport.signer,
        )

    @cached_property
    def heart(self) -> Heart | None:
        if not self.options.heartbeat:
            return None
        return Heart(
            self.events,
            self.watch,
            self.pool,
            self.state,
            interval_s=self.options.heartbeat_interval_s or INTERVAL_S,
            spawn_soon=self.hub.spawn_soon,
        )
