"""The lead of the worker's beat, which each renewal of the lease asks for.

A separate `greenq beat` asks the server every second who leads and whether entries have changed. In
a worker, each renewal of the lease, a call that is made anyway, also asks who leads, and the server
announces changes. So an idle beat sends nothing, and does not wake the hub.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from greenq.errors import AccessRefused, OperationalError, ServerError
from greenq.hub import Event
from greenq.transport.schedule_store import LEAD_S, RENEW_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.hub import Hub
    from greenq.transport.leases import Leases, Renewal
    from greenq.transport.schedule_store import Lead, LeadCall

_log = logging.getLogger(__name__)

# Beats see changes within this time, even if the server does not announce them. They do not check
# more often, since reading all entries takes a long time.
_SEEN_S = 1.0

# A larger difference (in microseconds) means that a clock was set, or that this machine was
# suspended.
_CLOCK_MOVED_US = 100_000


class BeatLead:
    """Keeps the lead for the worker's beat, and wakes the beat when something has changed.

    1. The beat itself asks the server at first (calling `begin` with the answer), and again after
       each failure. In between, the beat reads `answer`, and sleeps in `wait`.
    2. The watchdog thread asks with each renewal (`call`), and reads announced changes (`look`).
    3. A beat that does not run when it should, because its hub is blocked, loses the lead, as if it
       had stopped asking.
    """

    def __init__(
        self, leases: Leases, hub: Hub, *, wake: Callable[[], object], clock: Callable[[], float]
    ) -> None:
        """Ask over the connection of `leases`; `wake` makes the watchdog thread run soon."""
        self._leases = leases
        self._hub = hub
        self._wake = wake
        self._clock = clock
        # Either thread replaces each of the next two attributes as a whole: the call, which is None
        # if no beat asks, and the latest answer, with the time of its arrival.
        self._call: LeadCall | None = None
        self._answer: tuple[Lead, float] | None = None
        # When the latest answer arrived; a failure does not reset this.
        self._heard_s = -math.inf
        # When the beat is to run next; while the beat is running, when it began to run.
        self._runs_s = math.inf
        self._news = Event()
        self._is_over = False
        # Only the watchdog thread uses the next three attributes: whether the last renewal asked,
        # whether the server announces changes, and the earliest time to check for them.
        self._is_asked = False
        self._is_told = True
        self._look_s = -math.inf
        # When to renew the lease for the beat.
        self.due_s = math.inf

    # --- hub's thread -----------------------------------------------------------------------------

    def begin(self, call: LeadCall, lead: Lead) -> None:
        """Ask with each renewal from now on; `lead` is the server's latest reply."""
        if self._is_over:
            return
        now_s = self._clock()
        self._answer, self._call, self._heard_s = (lead, now_s), call, now_s
        self.due_s = now_s + RENEW_S
        self._wake()

    def end(self) -> None:
        """Stop asking, and end the beat's `wait`."""
        self._is_over = True
        self._call = self._answer = None
        self.due_s = math.inf
        self._news.set()

    @property
    def heard_s(self) -> float:
        """When the server last answered; it was asked regularly until then."""
        return self._heard_s

    def answer(self) -> Lead | None:
        """Return the latest answer, with the server's current time; None if the beat must ask."""
        answer, now_s = self._answer, self._clock()
        if answer is None or now_s - answer[1] > LEAD_S:
            return None
        return _aged(answer, now_s)

    def wait(self, seconds: float) -> None:
        """Wait until something changes, for at most `seconds`. Switches: yes."""
        self._runs_s = self._clock() + seconds
        self._news.wait(seconds)
        self._news.clear()
        self._runs_s = self._clock()

    # --- watchdog thread --------------------------------------------------------------------------

    def call(self, now_s: float) -> LeadCall | None:
        """Return what a renewal at `now_s` should ask; None means nothing."""
        call = self._call
        left_s = LEAD_S - max(0.0, now_s - self._runs_s)
        self._is_asked = call is not None and left_s > 0
        if call is None:
            return None
        self.due_s = now_s + (RENEW_S if self._is_told else _SEEN_S)
        return call._replace(term_s=left_s) if self._is_asked else None

    def renewed(self, renewal: Renewal) -> None:
        """Store the server's reply to a renewal."""
        if not self._is_asked:
            return
        if renewal.lead is None:
            self.failed()
        else:
            self._note(renewal.lead)

    def failed(self) -> None:
        """Make the beat ask the server itself, which reveals what is wrong."""
        if self._call is not None:
            self._call = self._answer = None
            self.due_s = math.inf
            self._tell()

    @property
    def look_s(self) -> float:
        """When to check what has changed; infinity if no change was announced."""
        is_changed = self._call is not None and self._leases.connection.changed
        return self._look_s if is_changed else math.inf

    def look(self) -> bool:
        """Read the number of changes, and request the next announcement; False if disconnected."""
        call, answer = self._call, self._answer
        self._look_s = self._clock() + _SEEN_S
        if call is None or answer is None:
            return True
        try:
            changes = self._leases.changes(call.changes)
        except (AccessRefused, ServerError) as exc:
            # Some proxies and managed servers refuse this command.
            self._is_told = False
            _log.info(
                "changes to periodic tasks are not announced, so renewals ask about them: %s", exc
            )
        except OperationalError as exc:
            _log.debug("could not read whether entries have changed: %s", exc)
            self._leases.connection.close()
            return False
        else:
            self._is_told = True
            lead, at_s = answer
            if changes != lead.changes:
                # Only the number of changes is new; the rest of the answer is as old as before.
                self._answer = lead._replace(changes=changes), at_s
                self._tell()
        return True

    def _note(self, lead: Lead) -> None:
        now_s = self._clock()
        if now_s - self._heard_s > LEAD_S:
            # Another beat may have led in the meantime. The worker's beat finds that out by asking.
            self.failed()
            return
        self._heard_s = now_s
        before, self._answer = self._answer, (lead, now_s)
        if before is None or before[0][1:] != lead[1:]:
            self._tell()
        elif abs(lead.now - _aged(before, now_s).now) > _CLOCK_MOVED_US:
            # The beat is waiting for a due time, which now comes earlier or later than expected.
            self._tell()

    def _tell(self) -> None:
        self._runs_s = min(self._runs_s, self._clock())
        self._hub.spawn_soon(self._news.set, name="beat")


def _aged(answer: tuple[Lead, float], now_s: float) -> Lead:
    """Return an answer with the server's time as it is at `now_s`."""
    lead, at_s = answer
    return lead._replace(now=lead.now + int((now_s - at_s) * 1_000_000))
