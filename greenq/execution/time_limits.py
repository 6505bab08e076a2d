"""Time limits: the soft one raises an exception in the task's code, once; the hard one ends it.

`greenq.pool.Interrupt` throws the exceptions into the code; the pool also uses it to end revoked
tasks. The executor checks whether a run has limits at all, since most runs do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from greenq.errors import SoftTimeLimitExceeded, TaskTerminated, TimeLimitExceeded
from greenq.pool import AGAIN_S, Interrupt

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.config.settings import TaskConfig
    from greenq.running.outcome import Outcome
    from greenq.running.request import Request


def run_limited(request: Request, config: TaskConfig, run: Callable[[Request], Outcome]) -> Outcome:
    """Run a task's code, interrupting it at its time limits. Switches: yes."""
    hard_s, soft_s = limits_of(request, config)
    interrupts = []
    if soft_s:
        interrupts.append(Interrupt(request, lambda: SoftTimeLimitExceeded(soft_s), soft_s))
    if hard_s:

        def make_error() -> TaskTerminated:
            return TaskTerminated(TimeLimitExceeded(hard_s))

        interrupts.append(Interrupt(request, make_error, hard_s, again_s=AGAIN_S))
    outcome = run(request)
    for interrupt in interrupts:
        interrupt.cancel()
    return outcome


def limits_of(request: Request, config: TaskConfig) -> tuple[float | None, float | None]:
    """Return a run's hard and soft limits: those of the call, else of the task, else of the app."""
    hard_s, soft_s = request.message.timelimit
    task = request.task
    return (
        hard_s or task.time_limit or config.task_time_limit,
        soft_s or task.soft_time_limit or config.task_soft_time_limit,
    )
