"""The OS thread alongside the hub, which renews the lease and notices when the hub is blocked.

A task that computes for twenty seconds delays the other tasks. It must not also cost the worker its
lease or its place in the cluster, nor keep the messages of a dead worker from being recovered. So
the duties listed in `Watch` use a thread and a connection that do not need the hub.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from greenq.bootsteps.blueprint import StartStopPart
from greenq.errors import OperationalError, TransportTimeout
from greenq.hub import NativeThread, poll_readable, sleep
from greenq.watchdog.beat_lead import BeatLead
from greenq.watchdog.cluster import ClusterLink
from greenq.watchdog.ending import LEAVE_S, Ending
from greenq.watchdog.hub_monitor import HubMonitor
from greenq.watchdog.lease_keeper import LeaseKeeper
from greenq.watchdog.notifier import Notifier
from greenq.watchdog.reclaimer import Reclaimer
from greenq.watchdog.relay import Parked, Relay
from greenq.watchdog.signal_monitor import SignalMonitor
from greenq.watchdog.silence import SilenceMonitor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from greenq.execution.state import WorkerState
    from greenq.hub import Hub, Signals
    from greenq.transport.leases import Leases
    from greenq.watchdog.guard_process import GuardProcess
    from greenq.watchdog.heartbeat import Heartbeat
    from greenq.watchdog.hooks import Holdings, HubCalls, Rescue, WatchLimits
    from greenq.watchdog.hub_thread import Blocker, HubThread
    from greenq.watchdog.subscriber import Subscriber

# The shortest time between moves of parked messages.
_SOON_S = 0.02

# The lease is renewed after this fraction of its duration. This leaves time for two attempts with
# their timeouts.
_RENEW_AFTER = 0.4


class Watch(StartStopPart):
    """The watchdog thread, and its schedule: which duty runs when.

    Each duty has its own class:

    1. `LeaseKeeper` renews the lease, even if the hub is blocked, and `Notifier` makes the hub act
       on the reply: a consumer may wait in vain because its connection is dead, or because a
       message was handed to a worker that died.
    2. `Reclaimer` requeues the messages of dead owners, a portion at a time.
    3. `Parked` moves parked messages back when they are due; `Relay` moves messages from lists that
       no worker is waiting on.
    4. `HubMonitor` logs what blocks the hub, `SignalMonitor` acts on signals in place of the hub,
       and `SilenceMonitor` logs when no Python code ran at all.
    5. `ClusterLink` reads messages published to the worker, and publishes its heartbeat.
    6. `BeatLead` asks who leads the beats, on behalf of the worker's own beat.
    7. `Ending` requeues messages that the server still holds for this owner, then gives up the
       lease.
    """

    name = "Watch"
    requires = ("Hub",)

    def __init__(
        self,
        leases: Leases,
        hub: Hub,
        state: WorkerState,
        hub_thread: HubThread,
        *,
        limits: WatchLimits,
        holdings: Holdings,
        calls: HubCalls,
        rescue: Rescue,
        guard: GuardProcess | None = None,
        signals: Signals | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Watch `hub` and act for the owner of `leases`.

        Args:
            leases: the owner's calls to the server, over a separate connection.
            hub: the hub to watch.
            state: the messages this worker holds.
            hub_thread: shows what is running in the hub's thread.
            limits: the durations and time limits.
            holdings: shows what this process knows about its messages.
            calls: the functions that this thread has the hub call.
            rescue: what this thread does when the hub cannot.
            guard: renews the lease while no Python code runs in this process; None for no guard.
            signals: the signals that must also work while the hub is blocked.
            clock: seconds, monotonic.
        """
        self._leases = leases
        self._guard = guard
        self._clock = clock
        # When the thread last ran (monotonic). The thread itself writes this, and any thread may
        # read it.
        self.turned_s = math.inf
        renew_every_s = limits.lease_s * _RENEW_AFTER
        self.hub_thread = hub_thread
        self._ending = Ending(leases, hub_thread, holdings, rescue)
        self.monitor = HubMonitor(
            hub, hub_thread, self._ending, limits,
            give_away=lambda: rescue.give_away(leases.connection), clock=clock,
        )  # fmt: skip
        self._signals = SignalMonitor(signals, self.monitor, hub_thread, self._ending, clock=clock)
        self._silence = SilenceMonitor(
            hub_thread, self.monitor.blockers.append, limits.blocked_after_s, state.now_s, clock
        )
        self.cluster = ClusterLink(
            leases, hub, self.monitor, wake=self._wake, renew_every_s=renew_every_s, clock=clock
        )
        self._notifier = Notifier(hub, state, calls, holdings)
        self._relay = Relay(leases, self._notifier, clock=clock)
        self._parked = Parked(leases, clock=clock)
        self.beat_lead = BeatLead(leases, hub, wake=self._wake, clock=clock)
        self.reclaimer = Reclaimer(leases, holdings, limits, renew_every_s=renew_every_s)
        self.lease = LeaseKeeper(
            leases, state, self.cluster, self.beat_lead, self.reclaimer,
            lease_s=limits.lease_s, renew_every_s=renew_every_s,
            is_waiting=holdings.is_waiting, guard=guard, clock=clock,
        )  # fmt: skip

    # --- any thread -------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the guard and the thread."""
        if self._guard is not None:
            self._guard.start()
        self.hub_thread.watcher = NativeThread(self._run, name="greenq watch")

    def stop(self) -> None:
        """Stop the thread and give up the lease. Switches: yes."""
        thread, self.hub_thread.watcher = self.hub_thread.watcher, None
        if thread is not None:
            thread.stop()
            deadline_s = self._clock() + LEAVE_S
            while not thread.ended and self._clock() < deadline_s:
                sleep(0.005)
            if thread.ended:
                thread.close()
        if self._guard is not None:
            self._guard.stop()

    @property
    def question(self) -> str:
        """The challenge that this owner must return when it registers."""
        return self.lease.question

    @property
    def subscriber(self) -> Subscriber:
        """The object that passes on messages published to this worker."""
        return self.cluster.subscriber

    @property
    def blockers(self) -> Sequence[Blocker]:
        """What has blocked the hub, oldest first."""
        return self.monitor.blockers

    def blocking_now(self) -> Blocker | None:
        """Return what is blocking the hub; None if the hub's own thread asks."""
        return self.monitor.blocking(0.0) if self.hub_thread.is_other() else None

    def beat(self, beat: Heartbeat | None) -> None:
        """Publish a heartbeat from now on, starting immediately; None stops it."""
        self.cluster.heartbeats.set(beat)
        self._wake()

    def set_queues(self, queues: Sequence[str]) -> None:
        """Check these queues for work and due ETAs from now on."""
        self._leases.set_queues(queues)
        self._wake()

    def announce_queues(self, queues: Sequence[str]) -> None:
        """Report the worker's queues to the server soon."""
        self.lease.announce_queues(queues)
        self._wake()

    def _wake(self) -> None:
        if self.hub_thread.watcher is not None:
            self.hub_thread.watcher.wake()

    # --- watchdog thread --------------------------------------------------------------------------

    def _run(self, thread: NativeThread) -> None:
        connection = self._leases.connection
        connection.poll = poll_readable
        self.turn()
        while not self._silence.wait(
            thread, self.pause_s(), connection.fileno(), self._signals.fileno()
        ):
            self.turn(published=not thread.timed_out)
        self.leave()

    def turn(self, *, published: bool = True) -> None:
        """Run the due duties; if `published`, a message may have been published to this worker."""
        self.turned_s = self._clock()
        self._signals.check()
        if self._clock() >= self.monitor.due_s:
            self.monitor.look()
        # Each of the following calls may read a published message together with its reply.
        if self._clock() >= self._parked.due_s:
            self.promote()
            published = True
        if self.lease.is_due() or self._clock() >= self.beat_lead.due_s:
            self.renew()
            published = True
        if self._clock() >= self.beat_lead.look_s:
            self._reached(self.beat_lead.look())
            published = True
        if self._clock() >= self._relay.due_s and self._leases.connection.noticed:
            self._reached(self._relay.relay())
            published = True
        # This is the last duty on this connection. Most wake-ups only check the hub, and skip it.
        if published or self.cluster.is_behind or self._clock() >= self.cluster.due_s:
            self.attend()
        while self._leases.recovery.busy and self._clock() < self._next_duty_s():
            self._leases.recovery.step()

    def renew(self) -> None:
        """Renew the lease, and pass the server's reply to each duty."""
        now = self._clock()
        try:
            renewal = self.lease.renew(now)
            self._notifier.renewed(renewal)
            self._relay.renewed(renewal, now)
            self._parked.renewed(renewal)
            self.beat_lead.renewed(renewal)
            self.reclaimer.renewed(renewal, now)
        except OperationalError as exc:
            self.lease.failed(now, exc)
            self.beat_lead.failed()
            self.reclaimer.failed()
            if isinstance(exc, TransportTimeout):
                # The hub notices a closed connection by itself, but not one that has died silently.
                self._notifier.look_for_server()

    def promote(self) -> None:
        """Move due messages; the renewal that follows immediately learns the next due time."""
        if self._parked.promote(min(self.lease.due_s, self.monitor.due_s)):
            self.lease.due_s = self._clock()

    def attend(self) -> None:
        """Read published messages, and publish the heartbeat, until another duty is due."""
        self._reached(self.cluster.attend(self._next_duty_s()))

    def leave(self) -> None:
        """Requeue messages that the server still holds for this owner, then give up its lease."""
        self._ending.leave()

    def pause_s(self) -> float:
        """Return the seconds until the next duty is due."""
        if self._leases.recovery.busy:
            return 0.0
        due_s = self._next_duty_s()
        if self._leases.connection.connected:
            due_s = min(due_s, self.cluster.due_s)
        pause_s = max(_SOON_S, min(due_s, self.beat_lead.look_s) - self._clock())
        if self._leases.connection.noticed:
            pause_s = min(pause_s, max(0.0, self._relay.due_s - self._clock()))
        return pause_s

    def _reached(self, is_reached: bool) -> None:
        """If the server was not reached, make the lease due now, since its renewal reconnects."""
        if not is_reached:
            self.lease.due_s = self._clock()

    def _next_duty_s(self) -> float:
        return min(
            self.lease.due_s, self.beat_lead.due_s, self.monitor.due_s, self._parked.due_s,
            self._signals.due_s,
        )  # fmt: skip
