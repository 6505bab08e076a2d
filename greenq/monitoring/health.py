"""Whether this worker is alive, ready and started, for probes that restart it or wait for it.

    live      red if only ending the process helps. It is never red because the server of the queues
              is down: a restart would not help, and all workers would restart together.
    started   red until all parts have started; then green, even if the server does not answer, for
              the same reason.
    ready     red while no messages are taken, unless that is intended.

The code only reads attributes, is safe in any thread, and never waits.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from greenq.watchdog.hub_monitor import LOOK_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.consumer import Consumer
    from greenq.worker_parts.parts import Parts

# The watchdog thread may wait for a silent server, so it counts as dead only after this time, even
# if `worker_hub_blocked_limit` is smaller.
LEAST_WATCH_S: Final = 60.0


class HealthReport(NamedTuple):
    """The answer to a probe.

    Attributes:
        reasons: why the answer is red, one sentence each; empty if it is green.
        notes: other things that an operator may want to know, such as paused queues.
        facts: further data about the worker.
    """

    reasons: list[str]
    notes: list[str]
    facts: dict[str, Any]

    @property
    def ok(self) -> bool:
        """True if the answer is green."""
        return not self.reasons

    def as_json(self) -> dict[str, Any]:
        """Return the answer as data for JSON."""
        return {
            "status": "ok" if self.ok else "failing",
            "reasons": self.reasons,
            "notes": self.notes,
            **self.facts,
        }


class Health:
    """Answers the three probes of one worker. Thread-safe."""

    def __init__(
        self, parts: Parts, consumer: Consumer, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Report on the parts of a worker; `clock` is the watchdog thread's clock."""
        self._parts = parts
        self._consumer = consumer
        self._clock = clock
        config = parts.app.config.worker
        self._limit_s = config.worker_hub_blocked_limit
        self._lag_s = config.worker_hub_lag_warning
        self._shown_s = min(LOOK_S, self._lag_s)

    def live(self) -> HealthReport:
        """Report whether the process must be restarted."""
        reasons = []
        limit_s = self._limit_s
        blocker = self._parts.watch.monitor.blocking(self._shown_s)
        if blocker is not None and 0 < limit_s <= blocker.for_s:
            reasons.append(
                f"the hub has been blocked for {blocker.for_s:.0f} s by {blocker.by} at "
                f"{blocker.where}, longer than worker_hub_blocked_limit ({limit_s:g} s)"
            )
        silent_s = self._clock() - self._parts.watch.turned_s
        if limit_s > 0 and silent_s >= max(limit_s, LEAST_WATCH_S):
            reasons.append(f"the watchdog thread has not run for {silent_s:.0f} s")
        return self._report(reasons)

    def started(self) -> HealthReport:
        """Report whether all parts have started."""
        has_started = self._consumer.has_started
        return self._report([] if has_started else ["the worker is starting"])

    def ready(self) -> HealthReport:
        """Report whether messages are taken, or are intentionally not taken."""
        parts, consumer = self._parts, self._consumer
        if consumer.is_stopping:
            return self._report(["the worker is stopping"])
        if not consumer.has_started:
            return self._report(["the worker is starting"])
        reasons = []
        blocker = parts.watch.monitor.blocking(self._lag_s)
        if blocker is not None:
            reasons.append(
                f"the hub has been blocked for {blocker.for_s:.1f} s by {blocker.by} at "
                f"{blocker.where}"
            )
        if parts.state.now_s() >= parts.state.lease_until_s:
            lost = parts.watch.lease.problem or "it was not renewed in time"
            reasons.append(f"the worker holds no lease: {lost}")
        if not consumer.is_consuming:
            why = consumer.problem or "the worker is still connecting"
            reasons.append(f"no messages are taken: {why}")
        return self._report(reasons)

    def _report(self, reasons: list[str]) -> HealthReport:
        parts = self._parts
        blocker = parts.watch.monitor.blocking(self._shown_s)
        paused = sorted(parts.state.paused.intersection(parts.queues.names))
        notes = [f"queue {queue} is paused" for queue in paused]
        if parts.tasks.draining:
            notes.append("draining: no messages are taken, as requested")
        if blocker is not None:
            notes.append(f"the hub is blocked by {blocker.by}")
        lease_s = parts.state.lease_until_s - parts.state.now_s()
        facts = {
            "node": parts.hostname,
            "pid": os.getpid(),
            "uptime_s": round(parts.uptime_s, 1),
            "lease_s": round(max(0.0, lease_s), 1),
            "running": parts.pool.running,
            "size": parts.pool.size,
            "queues": list(parts.queues.names),
            "blocked": None if blocker is None else asdict(blocker),
        }
        return HealthReport(reasons, notes, facts)
