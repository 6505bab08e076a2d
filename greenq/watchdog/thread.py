"""The OS thread beside the hub: it keeps the lease and sees when the hub stands still.

A task that computes for twenty seconds delays its neighbours. It must not cost the worker its lease
as well, nor its place in the cluster, nor keep the messages of a dead worker from coming back. So
all that is done here, on a thread and a connection that need nothing of the hub.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import time
import traceback
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from greenq.bootsteps.blueprint import StartStopPart
from greenq.errors import AccessRefused, OperationalError, ServerError, TransportTimeout
from greenq.hub import NativeThread, poll_readable, sleep
from greenq.log import OutageLog
from greenq.protocol.text import listed
from greenq.watchdog.guard_process import account
from greenq.watchdog.subscriber import Subscriber

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

    from greenq.execution.state import WorkerState
    from greenq.hub import Hub, Signals
    from greenq.transport.client import Connection
    from greenq.transport.leases import Leases, Renewal
    from greenq.transport.settle import Entry, Publication
    from greenq.watchdog.guard_process import Guard

_log = logging.getLogger(__name__)

# The hub is asked this often whether it moves.
_LOOK_S = 0.5

# Between two tries to renew a lease.
_RETRY_S = 0.25

# Between two looks at lists that nobody waits for, at least.
_RELAY_S = 0.005

# How long the end may take: what the server still holds is given back then.
_LEAVE_S = 10.0

# Between two moves of parked messages, at least.
_SOON_S = 0.02

# Renewing is due after this share of the lease. So two tries with their timeouts fit in.
_RENEW_AFTER = 0.4

# A hub that has not begun with a message by now, or owes an answer for so long, is held for blocked
# when that must be answered.
_PATIENCE_S = 0.05

# What blocks the hub is named again after so long, then as often as the last one says.
_NAMED_AGAIN_S = (10.0, 60.0, 300.0)

# How much of a wish to stop each signal is: at two the process ends, with or without its hub.
_STOPPING: dict[int, int] = {signal.SIGTERM: 1, signal.SIGINT: 1, signal.SIGQUIT: 2}

# So long the hub has to stop by itself when it is to end at once.
_LEAVE_AFTER_S = 1.0

# For the last line of the log, then the kernel ends the process.
_LAST_WORDS_S = 2

# Tasks that a log line names.
_NAMED = 20

# Blockers that are remembered.
_BLOCKERS = 100


@dataclass(slots=True)
class Blocker:
    """What kept the hub from moving.

    Attributes:
        at: when it was noticed, unix time.
        for_s: how long the hub stood still, or has so far.
        by: the task and its id, or ``no task``.
        where: file and line.
    """

    at: float
    for_s: float
    by: str
    where: str


class Heartbeat(NamedTuple):
    """What is published now and then: how often, seconds, and a function that writes it.

    The function is called in the watch thread; it gets what blocks the hub, None if nothing does.
    """

    every_s: float
    write: Callable[[Blocker | None], Publication]


class Watch(StartStopPart):
    """Renews the lease, recovers what the dead held, and names the task that blocks the hub.

    1. Renew the lease in good time, whatever the hub does.
    2. Say so when the renewal has seen that there is work, or nothing at all: a consumer that waits
       then waits in vain. Its connection may be dead, or somebody died over what was handed to him.
    3. Give back the messages of owners whose lease has ended, or whose process on this machine has,
       a portion a turn. Not right after this worker was without the server: the others may just be
       coming back, too.
    4. Renew the scores of held records often enough for Celery workers beside us.
    5. Move parked messages back when they are due.
    6. Log when the hub has not moved for a while, with the task, its line and its stack, and when
       it moves again; have what has not begun given to others meanwhile.
    7. Hear of signals; when the hub is blocked, say by what, and end the process if that is wanted.
    8. Hear what is published to the worker, and publish its heartbeat.
       Hand on what comes to lists that nobody waits for, if this worker is the one to do so.
    9. At the end, give back what the server still holds of this owner, then give up the lease.
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
        first_unused: Callable[[], int],
        is_waiting: Callable[[], bool],
        look: Callable[[], object],
        paused: Callable[[frozenset[str]], object],
        forgotten: Callable[[], object],
        give_away: Callable[[Connection], object],
        unwritten: Callable[[], list[Entry]],
        guard: Guard | None = None,
        signals: Signals | None = None,
        blocked_limit_s: float = 0.0,
        stacks: Callable[[], str] | None = None,
        cut: Callable[[Connection], object] | None = None,
        end_process: Callable[[], object] | None = None,
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
                knows, and the first number that no tag had had before.
            first_unused: returns the first number that no tag has had, as far as it knows.
            is_waiting: tells whether this worker waits for messages: then it may relay.
            look: called in the hub's thread, in a greenlet, when a consumer that waits should look
                itself.
            paused: called in the same way with the queues that are paused.
            forgotten: called in the same way when the server does not know this owner.
            give_away: called in the watch thread when the hub is blocked, to give back what has not
                begun over a connection.
            unwritten: called at the end: what could not be written before.
            guard: keeps the lease while no Python runs in this process; None: nobody does.
            signals: those that must work while the hub is blocked, too.
            blocked_limit_s: end the process when its hub has been blocked for so long; 0: never.
            stacks: returns the stacks of all greenlets and threads, for the log.
            cut: called there before, to wait for messages no longer, over a connection.
            end_process: called in the watch thread to end the process without the hub.
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
        self._first_unused = first_unused
        self._is_waiting = is_waiting
        self._look = look
        self._paused = paused
        self._forgotten_all = forgotten
        self._give_away = give_away
        self._unwritten = unwritten
        self._guard = guard
        self._signals = signals
        self._blocked_limit_s = blocked_limit_s
        self._stacks = stacks
        self._cut = cut
        self._end_process = end_process or _end_process
        self._clock = clock
        # How often the worker was asked to stop (a cold stop counts twice), when last, and when to
        # see whether the hub has heard of it. The same for a look at the stacks.
        self._stops = 0
        self._signalled_s = -math.inf
        self._mind_signals_at_s = math.inf
        self._waiting_signals: set[int] = set()
        # When to name again what blocks the hub.
        self._name_again_s = math.inf
        self._thread: NativeThread | None = None
        # What is published to this worker is heard over the lease's connection.
        self.subscriber = Subscriber(hub, changed=self._wake)
        # The thread's own.
        self._renew_at_s = self._scores_at_s = 0.0
        self._renew_now = False
        self._promote_at_s = math.inf
        self._relay_at_s = math.inf
        self._recover_from_s: float | None = None
        self._was_connected = self._was_away = False
        # After a reconnection: how often to look for what the server has forgotten, and what the
        # last look has found.
        self._looks = 0
        self._look_again_s = 0.0
        self._forgotten: set[str] = set()
        self._outage = OutageLog(_log)
        self._is_refused = False
        # When the hub was asked whether it moves, when to look at it again, and whether it is known
        # to be blocked.
        self._asked_s = self._look_at_s = -math.inf
        self._blocked: Blocker | None = None
        # Something may have been read that has not been heard yet: no wait would tell of it.
        self._is_behind = False
        self._beat: Heartbeat | None = None
        self._beat_at_s = math.inf
        self._beat_slack_s = 0.0
        # Written by the thread, read by anybody.
        self.blockers: deque[Blocker] = deque(maxlen=_BLOCKERS)
        self.held = False
        self.problem: OperationalError | None = None
        # What this owner has to answer when it registers.
        self.question = ""
        self.left_count = 0

    def start(self) -> None:
        """Start the guard and the thread."""
        if self._guard is not None:
            self._guard.start()
        self._thread = NativeThread(self._run, name="greenq watch")

    def stop(self) -> None:
        """Stop the thread and give up the lease. Switches: yes."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.stop()
            deadline_s = self._clock() + _LEAVE_S
            while not thread.ended and self._clock() < deadline_s:
                sleep(0.005)
            if thread.ended:
                thread.close()
        if self._guard is not None:
            self._guard.stop()

    def beat(self, beat: Heartbeat | None) -> None:
        """Publish something now and then from now on, the first time at once; None: no more.

        It goes with the renewal of the lease that is next to its time, if there is one.
        """
        self._beat = beat
        self._beat_at_s = -math.inf if beat is not None else math.inf
        rides = beat is not None and beat.every_s > self._renew_every_s
        self._beat_slack_s = self._renew_every_s / 2 if rides else 0.0
        self._wake()

    def _wake(self) -> None:
        if self._thread is not None:
            self._thread.wake()

    def wait_held(self, timeout_s: float) -> bool:
        """Wait until the lease is written for the first time. Switches: yes."""
        deadline_s = self._clock() + timeout_s
        while not self.held and self._clock() < deadline_s:
            sleep(0.005)
        return self.held

    # --- the thread -------------------------------------------------------------------------------

    def _run(self, thread: NativeThread) -> None:
        self._leases.connection.poll = poll_readable
        self.turn()
        while not self._rest(thread):
            self.turn(told=not thread.timed_out)
        self.leave()

    def _rest(self, thread: NativeThread) -> bool:
        """Wait until something is due, and say so if no Python ran for much longer; True: end."""
        pause_s = self._pause_s()
        began_s, awake_s, cpu_s = self._state.now_s(), self._clock(), time.process_time()
        signals = -1 if self._signals is None else self._signals.fileno()
        is_over = thread.wait(pause_s, self._leases.connection.fileno(), signals)
        late_s = self._state.now_s() - began_s - pause_s
        if late_s >= self._blocked_after_s:
            suspended_s = late_s - (self._clock() - awake_s - pause_s)
            # Whoever held the GIL has only just let go of it.
            found = self._find_blocker(late_s)
            self.blockers.append(found)
            _log.warning(
                "%s; the hub is at %s, in %s",
                account(late_s, time.process_time() - cpu_s, suspended_s), found.where, found.by,
            )  # fmt: skip
        return is_over

    def turn(self, *, told: bool = True) -> None:
        """Do what is due; `told`: something may have been published to this worker."""
        if self._signals is not None:
            self._hear_signals(self._signals)
        if self._clock() >= self._look_at_s:
            self._look_at_hub()
        # With an answer, something that was published may have come along.
        if self._clock() >= self._promote_at_s:
            self._promote()
            told = True
        if self._renew_now or self._clock() >= self._renew_at_s:
            self._renew()
            told = True
        if self._clock() >= self._relay_at_s and self._leases.connection.noticed:
            self._relay()
            told = True
        # Last of what uses this connection. Most wake-ups are looks at the hub alone.
        if told or self._is_behind or self._clock() >= self._speak_at_s():
            self._attend()
        while self._leases.recovery.busy and self._clock() < self._next_duty_s():
            self._leases.recovery.step()

    def leave(self) -> None:
        """Give back what the server still holds of this owner, then give up its lease."""
        # Once more over new connections: what is not given back here counts as a death's.
        if not self._left():
            self._left(is_last=True)

    def _left(self, *, is_last: bool = False) -> bool:
        """Do so; False if the server could not be reached."""
        try:
            self.left_count += self._leases.leave(self._unwritten())
        except OperationalError as exc:
            if is_last:
                _log.info("the lease could not be given up and will end by itself: %s", exc)
            return False
        finally:
            self._leases.recovery.close()
            self._leases.connection.close()
        if self.left_count:
            _log.warning(
                "%d messages whose outcome is not written are back on their queues",
                self.left_count,
            )
        return True

    def _next_duty_s(self) -> float:
        return min(self._renew_at_s, self._look_at_s, self._promote_at_s, self._mind_signals_at_s)

    def _renew(self) -> None:
        self._renew_now = False
        now, asked_s = self._clock(), self._state.now_s()
        self._renew_at_s = now + self._renew_every_s
        try:
            if not self._leases.connection.connected:
                self._connect(now)
            renewal = self._leases.renew(
                self._news(now + self._beat_slack_s), would_relay=self._is_waiting()
            )
            # Before anything else is asked, which takes its time. An answer that was long under way
            # tells what the server's clock said then.
            if self._state.now_s() - asked_s < self._lease_s / 2:
                self._state.clock_offset_s = renewal.server_time - time.time()
            if self._guard is not None:
                self._guard.beat()
            self.question = renewal.question
            if renewal.unheard:
                self._say_refused(renewal.unheard)
            if not renewal.held and self.held:
                self._lost(now, renewal)
            self._state.lease_until_s = asked_s + self._lease_s
            self.held = True
            self.problem = None
            self._outage.recovered("the lease is renewed again")
            self._hand_on(renewal)
            if not renewal.relays:
                self._relay_at_s = math.inf
            elif self._relay_at_s == math.inf:
                self._relay_at_s = now
            self._promote_at_s = math.inf
            if renewal.next_due is not None:
                self._promote_at_s = self._clock() + renewal.next_due - renewal.server_time
            if self._recover_from_s is not None and now >= self._recover_from_s:
                for owner in renewal.expired:
                    self._leases.recovery.add(owner)
            if self._looks and now >= self._look_again_s:
                self._look_again_s = now + self._renew_every_s
                self._look_for_forgotten()
            if now >= self._scores_at_s:
                self._scores_at_s = now + self._scores_every_s
                self._leases.renew_scores(sorted(self._held()[0]))
                self._leases.recovery.add_overdue(self._leases.overdue)
        except OperationalError as exc:
            self.problem = exc
            self._outage.failed("the lease could not be renewed", exc)
            self._leases.connection.close()
            self._renew_at_s = now + min(_RETRY_S, self._renew_every_s)
            if not self._was_connected:
                # A worker that starts in an outage: the others are away, too, and not dead.
                self._was_away = True
            if isinstance(exc, TransportTimeout):
                # A closed connection is noticed by itself, one that is silent is not.
                self._hub.spawn_soon(self._look, name="look for the server")

    def _hand_on(self, renewal: Renewal) -> None:
        """Have the hub do what a renewal gives rise to."""
        if not renewal.first_unused:
            self._hub.spawn_soon(self._forgotten_all, name="register")
        if renewal.paused != self._state.paused:
            self._hub.spawn_soon(partial(self._paused, renewal.paused), name="pause queues")
        # What the server has given tags to, an answer that never came would have told.
        if renewal.work or renewal.first_unused > self._first_unused():
            self._hub.spawn_soon(self._look, name="look for work")

    def _lost(self, now: float, renewal: Renewal) -> None:
        """Note that the lease has ended; who was away cannot tell who else was."""
        self._state.lease_lost_s = self._state.now_s()
        self._recover_from_s = now + self._lease_s
        if renewal.first_unused:
            here = [each for each in list(self._state.reserved.values()) if not each.settled]
            held = self._leases.held()
            gone = [str(each) for each in here if each.delivery.tag not in held]
            _log.error(
                "this worker lost its lease; of the %d tasks that it holds, %d were given to others"
                " and run twice if they had begun here%s",
                len(here), len(gone), f": {listed(gone, _NAMED)}" if gone else "",
            )  # fmt: skip
        else:
            _log.error("the server has lost its data; it learns anew what this worker has in hand")

    def _look_for_forgotten(self) -> None:
        """Give back what two looks have found: with one alone it might be just on its way."""
        self._looks -= 1
        known, first_unused = self._held()
        found = self._leases.forgotten(known, first_unused)
        self._leases.give_back_forgotten(found & self._forgotten)
        self._forgotten = found if self._looks else set()
        if not self._leases.recovery.busy:
            self._leases.recovery.close()

    def _pause_s(self) -> float:
        """Return how long nothing is due."""
        if self._leases.recovery.busy:
            return 0.0
        due_s = self._next_duty_s()
        if self._leases.connection.connected:
            due_s = min(due_s, self._speak_at_s())
        pause_s = max(_SOON_S, due_s - self._clock())
        if self._leases.connection.noticed:
            pause_s = min(pause_s, max(0.0, self._relay_at_s - self._clock()))
        return pause_s

    def _speak_at_s(self) -> float:
        """Return when to beat, or to answer in the hub's place, monotonic."""
        return min(self._beat_at_s + self._beat_slack_s, self._impatient_s())

    def _impatient_s(self) -> float:
        """Return when to answer in the hub's place: at once if it is known to stand."""
        patience_s = 0.0 if self._is_still(_PATIENCE_S) else _PATIENCE_S
        return self.subscriber.oldest_s + patience_s

    def _attend(self) -> None:
        """Hear what has been published, answer what the hub does not, publish the heartbeat.

        Until nothing is left of that, or another duty is due.
        """
        connection = self._leases.connection
        other_duty_s = self._next_duty_s()
        self._is_behind = False
        has_called = True
        try:
            # What comes along with an answer is here already, and no wait would tell of it.
            while has_called and connection.connected:
                has_called = False
                if self.subscriber.poll(connection):
                    self._ask_hub()
                if self._clock() >= self._impatient_s():
                    self.subscriber.answer_urgent(connection)
                    has_called = True
                news = self._news(self._clock() - self._beat_slack_s)
                if news is not None:
                    connection.call("PUBLISH", *news)
                    has_called = True
                if self._clock() >= other_duty_s:
                    self._is_behind = has_called
                    return
        except (AccessRefused, ServerError) as exc:
            self._say_refused(exc)
        except OperationalError as exc:
            _log.info("nothing is heard of others until the server is reached again: %s", exc)
            connection.close()
            self._renew_at_s = self._clock()

    def _relay(self) -> None:
        """Hand on what has come; under a storm of changes, only so often."""
        self._relay_at_s = self._clock() + _RELAY_S
        try:
            if self._leases.relay():
                self._hub.spawn_soon(self._look, name="look for work")
        except (AccessRefused, ServerError) as exc:
            # Some proxies and managed servers refuse it; the renewals see what has come.
            self._relay_at_s = math.inf
            _log.info("changes of queues' less urgent lists are not announced: %s", exc)
        except OperationalError as exc:
            _log.debug("nothing is handed on: %s", exc)
            self._leases.connection.close()
            self._renew_at_s = self._clock()

    def _say_refused(self, why: object) -> None:
        """Log that this worker may not hear or tell, once for each connection."""
        level = logging.DEBUG if self._is_refused else logging.WARNING
        self._is_refused = True
        _log.log(level, "this worker is no full member of its cluster: %s", why)

    def _news(self, until_s: float) -> Publication | None:
        """Return the heartbeat if it is due until then."""
        beat = self._beat
        if beat is None or self._beat_at_s > until_s:
            return None
        now = self._clock()
        next_s = self._beat_at_s + beat.every_s
        # After the first one, and after a pause, the interval begins anew.
        self._beat_at_s = next_s if next_s > now else now + beat.every_s
        return beat.write(self.blocking())

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
        self.subscriber.reconnected()
        self._is_refused = False
        if self._was_connected:
            grace_s = self._lease_s
            self._looks, self._forgotten = 2, set()
        elif self._was_away:
            grace_s = self._lease_s
        else:
            # A first start. If the server itself is young, the others may still be on their way
            # back.
            grace_s = max(0.0, 2 * self._lease_s - self._leases.uptime_s())
            for owner in self._leases.others():
                if owner.is_dead:
                    self._leases.recovery.add(owner)
        self._was_connected = True
        self._recover_from_s = now + grace_s

    def _look_at_hub(self) -> None:
        """Ask the hub whether it moves; if it has not answered for long, say who blocks it."""
        now = self._clock()
        self._look_at_s = now + min(_LOOK_S, self._blocked_after_s)
        blocked = self._blocked
        if self._hub.moved_s >= self._asked_s:
            if blocked is not None or not self._hub.rests():
                self._ask_hub()
            return
        still_s = now - self._asked_s
        if blocked is not None:
            blocked.for_s = still_s
            self._still_blocked(blocked)
            return
        if still_s < self._blocked_after_s:
            self._look_at_s = self._asked_s + self._blocked_after_s
            return
        blocked = self._find_blocker(still_s)
        self._blocked = blocked
        self.blockers.append(blocked)
        self._name_again_s = _next_naming_s(still_s)
        self._say(
            logging.WARNING,
            "the hub has been blocked for %.1f s by %s at %s; all other tasks stand still\n%s",
            still_s, blocked.by, blocked.where, _stack(self._hub_frame()),
        )  # fmt: skip
        try:
            self._give_away(self._leases.connection)
        except OperationalError as exc:
            _log.info("what has not begun here waits until the hub moves: %s", exc)

    def _still_blocked(self, blocked: Blocker) -> None:
        """Name again what has blocked the hub for long; end the process when it is too long."""
        if 0 < self._blocked_limit_s <= blocked.for_s:
            self._abandon(
                f"the hub has been blocked for {blocked.for_s:.0f} s by {blocked.by} at "
                f"{blocked.where}, longer than worker_hub_blocked_limit "
                f"({self._blocked_limit_s:g} s)",
                by_task=True,
            )
        elif blocked.for_s >= self._name_again_s:
            self._name_again_s = _next_naming_s(blocked.for_s)
            now = self._find_blocker(blocked.for_s)
            blocked.by, blocked.where = now.by, now.where
            self._say(
                logging.WARNING,
                "the hub is still blocked, for %.0f s now, by %s at %s; all other tasks stand "
                "still",
                blocked.for_s, blocked.by, blocked.where,
            )  # fmt: skip

    # --- signals ----------------------------------------------------------------------------------

    def _hear_signals(self, signals: Signals) -> None:
        """Note the signals that have come; a hub that moves acts on them itself."""
        for number in signals.read():
            if number in _STOPPING:
                self._stops += _STOPPING[number]
            elif number != signal.SIGUSR1:
                continue
            self._waiting_signals.add(number)
            self._signalled_s = self._clock()
            patience_s = _LEAVE_AFTER_S if self._stops > 1 else _LOOK_S
            self._mind_signals_at_s = self._signalled_s + patience_s
            self._ask_hub()
        if self._clock() >= self._mind_signals_at_s:
            self._mind_signals_at_s = math.inf
            waiting, self._waiting_signals = self._waiting_signals, set()
            if self._hub.moved_s < self._signalled_s:
                self._signals_in_vain(signals, waiting)

    def _signals_in_vain(self, signals: Signals, waiting: set[int]) -> None:
        """Do in the hub's place what the signals ask for."""
        blocked = self._find_blocker(self._clock() - min(self._asked_s, self._signalled_s))
        if signal.SIGUSR1 in waiting:
            signals.done(signal.SIGUSR1)
            self._say(logging.WARNING, "%s", self._all_stacks())
        if not waiting & _STOPPING.keys():
            return
        if self._stops > 1:
            self._abandon(
                f"asked to stop at once, and the hub has been blocked for {blocked.for_s:.1f} s "
                f"by {blocked.by} at {blocked.where}"
            )
            return
        self._say(
            logging.WARNING,
            "asked to stop, but the hub has been blocked for %.1f s by %s at %s; the worker stops "
            "when it moves again; a second SIGTERM or SIGINT, or SIGQUIT, ends it at once and "
            "gives its messages back",
            blocked.for_s, blocked.by, blocked.where,
        )  # fmt: skip

    def _abandon(self, why: str, *, by_task: bool = False) -> None:
        """End the process without its hub.

        With `by_task` its messages come back as a dead worker's do, so that it is counted which
        tasks ran: one that blocks every worker must not go round for ever. Without, it was a
        person's wish, and nothing is counted.
        """
        # Whatever hangs from here on, a server or a log that nobody reads, the kernel ends it.
        signal.alarm(int(_LEAVE_S))
        text = "" if not by_task else f"\n{self._all_stacks()}"
        try:
            if self._cut is not None:
                self._cut(self._leases.connection)
        except OperationalError as exc:
            self._say(logging.INFO, "what comes meanwhile is left to the others: %s", exc)
        if not by_task:
            self.leave()
        signal.alarm(_LAST_WORDS_S)
        how = "its messages are back on their queues" if not by_task else "others run its messages"
        self._say(logging.CRITICAL, "%s: the worker ends now, and %s%s", why, how, text)
        self._end_process()

    def _all_stacks(self) -> str:
        return _stack(self._hub_frame()) if self._stacks is None else self._stacks()

    def _say(self, level: int, text: str, *arguments: object) -> None:
        """Log a line about a blocked hub, unless it is the log that blocks it: one would wait, too.

        A pipe that nobody reads keeps whoever writes a line, and the lock of the handler with it.
        """
        frame = self._hub_frame()
        while frame is not None:
            if frame.f_code.co_filename == logging.__file__:
                return
            frame = frame.f_back
        _log.log(level, text, *arguments)

    def _ask_hub(self) -> None:
        """Have the hub note that it moves, unless it owes an answer; a late one is logged."""
        if self._hub.moved_s < self._asked_s:
            return
        blocked, self._blocked = self._blocked, None
        if blocked is not None:
            blocked.for_s = self._hub.lag_s
            _log.warning("the hub moves again; it was blocked for %.1f s", blocked.for_s)
        self._asked_s = self._clock()
        self._hub.ping()

    def set_queues(self, queues: Sequence[str]) -> None:
        """Look for work and due ETAs in these queues; any thread may call."""
        self._leases.set_queues(queues)
        self._wake()

    def tell(self, queues: Sequence[str]) -> None:
        """Have the server know soon which queues are taken from; any thread may call."""
        self._leases.tell(queues)
        self._renew_now = True
        self._wake()

    def blocking_now(self) -> Blocker | None:
        """Return what blocks the hub; None when it is the hub that asks."""
        thread = self._thread
        return None if thread is None or not thread.runs_here() else self.blocking(0.0)

    def _is_still(self, patience_s: float) -> bool:
        """Tell whether the hub owes an answer for so long."""
        return self._hub.moved_s < self._asked_s <= self._clock() - patience_s

    def blocking(self, patience_s: float = _LOOK_S) -> Blocker | None:
        """Return what blocks the hub, None while it moves; only another thread can ask.

        Args:
            patience_s: hold a hub for blocked that has not answered for so long.
        """
        if not self._is_still(patience_s):
            return None
        return self._find_blocker(self._clock() - self._asked_s)

    def _find_blocker(self, still_s: float) -> Blocker:
        frame = self._hub_frame()
        by = self._blocking_task(frame) or "no task"
        where = "?" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
        return Blocker(time.time(), still_s, by, where)

    def _hub_frame(self) -> FrameType | None:
        thread = self._thread
        # There is no public way to another thread's frame.
        return sys._current_frames().get(thread.hub_thread) if thread else None  # noqa: SLF001


def _end_process() -> None:
    """Leave without looking back: nothing that needs the hub would ever end."""
    os._exit(1)


def _next_naming_s(blocked_s: float) -> float:
    """Return after how long a blocker is named again that has been named just now."""
    for due_s in _NAMED_AGAIN_S:
        if blocked_s < due_s:
            return due_s
    every_s = _NAMED_AGAIN_S[-1]
    return (blocked_s // every_s + 1) * every_s


def _stack(frame: FrameType | None) -> str:
    """Return a frame's stack as text."""
    return "" if frame is None else "".join(traceback.format_stack(frame))
