"""The OS thread beside the hub: it keeps the lease and sees when the hub stands still.

A task that computes for twenty seconds delays its neighbours. It must not cost the worker its lease
as well, nor keep the messages of a dead worker from coming back, so both are done here, on a thread
and a connection that need nothing of the hub.
"""

from __future__ import annotations

import logging
import math
import sys
import time
import traceback
from typing import TYPE_CHECKING

from greenq.bootsteps import StartStopStep
from greenq.errors import OperationalError, TransportTimeout
from greenq.hub import NativeThread, sleep
from greenq.outage import Outage

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from greenq.hub import Hub
    from greenq.transport.leases import Leases
    from greenq.worker_state import WorkerState

_log = logging.getLogger(__name__)

# The hub is asked this often whether it moves.
_LOOK_S = 0.5

# Between two tries to renew a lease.
_RETRY_S = 0.25

# Between two moves of parked messages, at least.
_SOON_S = 0.02

# Renewing is due after this share of the lease. So two tries with their timeouts fit in.
_RENEW_AFTER = 0.4


class Watch(StartStopStep):
    """Renews the lease, recovers what the dead held, and names the task that blocks the hub.

    1. Renew the lease in good time, whatever the hub does.
    2. Say so when the renewal has seen that there is work, or nothing at all: a consumer that waits
       then waits in vain. Its connection may be dead, or somebody died over what was handed to him.
    3. Give back the messages of owners whose lease has ended, or whose process on this machine has.
       Not right after this worker was without the server: the others may just be coming back, too.
    4. Renew the scores of held records often enough for Celery workers beside us.
    5. Move parked messages back when they are due.
    6. Log once when the hub has not moved for a while, with the task, its line and its stack, and
       once when it moves again.
    """

    name = "Watch"
    requires = ("Hub",)

    def __init__(
        self,
        leases: Leases,
        hub: Hub,
        state: WorkerState,
        *,
        lease_s: float,
        visibility_timeout_s: float,
        blocked_after_s: float,
        blocking_task: Callable[[FrameType | None], str | None],
        held: Callable[[], tuple[set[str], int]],
        look: Callable[[], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Watch `hub` and speak for the owner of `leases`.

        Args:
            state: what this worker holds.
            lease_s: how long a lease holds.
            visibility_timeout_s: that of the fleet.
            blocked_after_s: log a hub that stands still for so long.
            blocking_task: names the task to which a frame of the hub's thread belongs, None if to
                none.
            held: returns the tags that are not settled on the server yet, as far as this process
                knows, and the first number that no tag has had.
            look: called in the hub's thread, in a greenlet, when a consumer that waits should look
                itself.
            clock: seconds, monotonic.
        """
        self._leases = leases
        self._hub = hub
        self._state = state
        self._lease_s = lease_s
        self._renew_every_s = lease_s * _RENEW_AFTER
        self._scores_every_s = visibility_timeout_s / 4
        self._blocked_after_s = blocked_after_s
        self._blocking_task = blocking_task
        self._held = held
        self._look = look
        self._clock = clock
        self._thread: NativeThread | None = None
        # The thread's own.
        self._renew_at_s = self._scores_at_s = 0.0
        self._promote_at_s = math.inf
        self._recover_from_s: float | None = None
        self._was_connected = False
        # After a reconnection: how often to look for what the server has forgotten, and what the
        # last look has found.
        self._looks = 0
        self._forgotten: set[str] = set()
        self._outage = Outage(_log)
        # When the hub was asked whether it moves, when to look at it again, and whether it is known
        # to be blocked.
        self._asked_s = self._look_at_s = -math.inf
        self._blocked = False
        # Written by the thread, read by anybody.
        self.held = False
        self.problem: OperationalError | None = None
        self.blocked_count = 0
        self.recovered_count = 0

    def start(self) -> None:
        """Start the thread."""
        self._thread = NativeThread(self._run, name="greenq watch")

    def stop(self) -> None:
        """Stop the thread and give up the lease. Switches: yes."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.stop()
            deadline_s = self._clock() + self._lease_s
            while not thread.ended and self._clock() < deadline_s:
                sleep(0.005)

    def wait_held(self, timeout_s: float) -> bool:
        """Wait until the lease is written for the first time. Switches: yes."""
        deadline_s = self._clock() + timeout_s
        while not self.held and self._clock() < deadline_s:
            sleep(0.005)
        return self.held

    # --- the thread -------------------------------------------------------------------------------

    def _run(self, thread: NativeThread) -> None:
        self._renew()
        while not thread.wait(self._pause_s()):
            if self._clock() >= self._look_at_s:
                self._look_at_hub(thread.hub_thread)
            if self._clock() >= self._promote_at_s:
                self._promote()
            if self._clock() >= self._renew_at_s:
                self._renew()
        try:
            if not self._state.reserved:
                self._leases.release()
        except OperationalError as exc:
            _log.info("the lease could not be given up and will end by itself: %s", exc)
        self._leases.connection.close()

    def _renew(self) -> None:
        now = self._clock()
        self._renew_at_s = now + self._renew_every_s
        try:
            if not self._leases.connection.connected:
                self._connect(now)
            renewal = self._leases.renew()
            if not renewal.held and self.held:
                self._lost(now)
            self._state.lease_until_s = now + self._lease_s
            self.held = True
            self.problem = None
            self._outage.over("the lease is renewed again")
            if renewal.work:
                self._hub.spawn_soon(self._look, name="look for work")
            self._state.clock_offset_s = renewal.server_time - time.time()
            self._promote_at_s = math.inf
            if renewal.next_due is not None:
                self._promote_at_s = self._clock() + renewal.next_due - renewal.server_time
            if self._recover_from_s is not None and now >= self._recover_from_s:
                for owner in renewal.expired:
                    self.recovered_count += self._leases.recover(owner)
            if self._looks:
                self._look_for_forgotten()
            if now >= self._scores_at_s:
                self._scores_at_s = now + self._scores_every_s
                self._leases.renew_scores(list(self._state.reserved))
                living = [owner.incarnation for owner in self._leases.others()]
                own = self._leases.incarnation
                self.recovered_count += self._leases.recover_overdue([*living, own])
        except OperationalError as exc:
            self.problem = exc
            self._outage.say("the lease could not be renewed", exc)
            self._leases.connection.close()
            self._renew_at_s = now + min(_RETRY_S, self._renew_every_s)
            if isinstance(exc, TransportTimeout):
                # A closed connection is noticed by itself, one that is silent is not.
                self._hub.spawn_soon(self._look, name="look for the server")

    def _lost(self, now: float) -> None:
        """Note that the lease has ended; who was away cannot tell who else was."""
        self._state.lease_lost_s = self._clock()
        self._recover_from_s = now + self._lease_s
        _log.error(
            "this worker lost its lease; others may run the tasks that it holds: %d",
            len(self._state.reserved),
        )

    def _look_for_forgotten(self) -> None:
        """Give back what two looks have found: with one alone it might be just on its way."""
        self._looks -= 1
        known, first_unused = self._held()
        found = self._leases.forgotten(known, first_unused)
        self.recovered_count += self._leases.give_back_forgotten(found & self._forgotten)
        self._forgotten = found if self._looks else set()

    def _pause_s(self) -> float:
        """Return how long nothing is due."""
        due_s = min(self._look_at_s, self._promote_at_s, self._renew_at_s)
        return max(_SOON_S, due_s - self._clock())

    def _promote(self) -> None:
        """Move what is due back to its queues; the renewal right after it tells what is next."""
        other_duty_s = min(self._renew_at_s, self._look_at_s)
        try:
            while self._leases.promote():
                if self._clock() >= other_duty_s:
                    return
            self._renew_at_s = self._clock()
        except OperationalError as exc:
            _log.debug("parked messages could not be moved: %s", exc)
            self._leases.connection.close()

    def _connect(self, now: float) -> None:
        """Reach the server; decide from when on an ended lease means a dead owner."""
        self._leases.connection.connect()
        if self._was_connected:
            grace_s = self._lease_s
            self._looks, self._forgotten = 2, set()
        else:
            # A first start. If the server itself is young, the others may still be on their way
            # back.
            grace_s = max(0.0, 2 * self._lease_s - self._leases.uptime_s())
            for owner in self._leases.others():
                if owner.is_dead:
                    self.recovered_count += self._leases.recover(owner)
        self._was_connected = True
        self._recover_from_s = now + grace_s

    def _look_at_hub(self, hub_thread: int) -> None:
        """Ask the hub whether it moves; if it has not answered for long, say who blocks it."""
        now = self._clock()
        self._look_at_s = now + min(_LOOK_S, self._blocked_after_s)
        if self._hub.moved_s >= self._asked_s:
            if self._blocked:
                self._blocked = False
                _log.warning("the hub moves again; it was blocked for %.1f s", self._hub.lag_s)
            self._asked_s = now
            self._hub.ping()
            return
        still_s = now - self._asked_s
        if self._blocked:
            return
        if still_s < self._blocked_after_s:
            self._look_at_s = self._asked_s + self._blocked_after_s
            return
        self._blocked = True
        self.blocked_count += 1
        # There is no public way to another thread's frame.
        frame = sys._current_frames().get(hub_thread)  # noqa: SLF001
        task = self._blocking_task(frame) or "no task"
        where, stack = _where(frame)
        _log.warning(
            "the hub has been blocked for %.1f s by %s at %s; all other tasks stand still\n%s",
            still_s, task, where, stack,
        )  # fmt: skip


def _where(frame: FrameType | None) -> tuple[str, str]:
    """Return the file and line that a frame is at, and its stack as text."""
    if frame is None:
        return "?", ""
    stack = "".join(traceback.format_stack(frame))
    return f"{frame.f_code.co_filename}:{frame.f_lineno}", stack
