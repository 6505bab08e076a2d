"""greenq's performance goals as data, and whether a run meets them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.figures import NotMeasured, Ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.figures import Results


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal.

    Attributes:
        workload: the workload, as shown.
        what: the figure and what it is compared with, as shown.
        target: the value to reach.
        measured: a function that finds the figure in a run.
        at_most: whether the figure may not exceed the target; otherwise it may not be below it.
        form: the format of the figures.
    """

    workload: str
    what: str
    target: float
    measured: Callable[[Results], float | Ratio]
    at_most: bool = False
    form: str = "{:.2f}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A goal and a run's figure; `measured` is None if the run does not have it."""

    goal: Goal
    measured: float | None
    by_round: float | None
    met: bool


def verdicts(results: Results) -> list[Verdict]:
    """Compare a run with all goals."""
    return [_verdict(goal, results) for goal in GOALS]


def _verdict(goal: Goal, results: Results) -> Verdict:
    try:
        found = goal.measured(results)
    except NotMeasured:
        return Verdict(goal, None, None, met=False)
    by_round = found.by_round if isinstance(found, Ratio) else None
    value = found.value if isinstance(found, Ratio) else found
    met = value <= goal.target if goal.at_most else value >= goal.target
    return Verdict(goal, value, by_round, met)


def _against(workload: str, theirs: str, figure: str = "rate") -> Callable[[Results], Ratio]:
    return lambda results: results.ratio(workload, "greenq", theirs, figure)


def _own(workload: str, figure: str) -> Callable[[Results], float]:
    return lambda results: results.median(workload, "greenq", figure)


def _own_ratio(one: str, other: str, figure: str) -> Callable[[Results], Ratio]:
    return lambda results: results.own_ratio(one, other, "greenq", figure)


def _bytes_ratio(results: Results) -> float:
    ours, theirs = (
        sum(results.median("noop", who, figure) for figure in ("bytes_in", "bytes_out"))
        for who in ("greenq", "celery")
    )
    return ours / theirs


def _late_beyond_drain_s(results: Results) -> float:
    """Return how late the last ETA ran, less the time that draining as many no-ops takes."""
    late_s, tasks = _own("etas", "late_s")(results), _own("etas", "tasks")(results)
    return late_s - tasks / _own("noop", "rate")(results)


_NOOP = "no-op with results, one process"
_TALLY = "no-op without results"
_LOAD = "Redis a task under load, results on"
_SEND = "sending"
_LATENCY = "idle latency, end to end"
_IDLE = "idle worker"
_PING = "ping of 3 workers"
_FETCH = "HTTP GETs of 200 ms, 1,000 at once"
_TIMES = "{:.2f} ×"
_MANY_TIMES = "{:.1f} ×"

GOALS: Sequence[Goal] = (
    Goal(_NOOP, "of the bare loop", 0.8, _against("noop", "bare"), form=_TIMES),
    Goal(_NOOP, "dramatiq gevent", 6.5, _against("noop", "dramatiq"), form=_MANY_TIMES),
    Goal(_NOOP, "Celery gevent, defaults", 65, _against("noop", "celery"), form=_MANY_TIMES),
    Goal(_NOOP, "Celery gevent, tuned", 25, _against("noop", "celery-tuned"), form=_MANY_TIMES),
    Goal(_NOOP, "BullMQ", 1.0, _against("noop", "bullmq"), form=_TIMES),
    Goal(_TALLY, "of its bare loop", 0.7, _against("tally", "bare"), form=_TIMES),
    Goal(_TALLY, "dramatiq gevent", 5, _against("tally", "dramatiq"), form=_MANY_TIMES),
    Goal(
        "worker CPU a task, with results",
        "of the bare loop's",
        1.5,
        _against("noop", "bare", "worker_cpu_us"),
        at_most=True,
        form=_TIMES,
    ),
    Goal("10,000 sleeps of 1 s at 1,000", "of the ideal", 0.97, _own("nap-1000", "ideal_share")),
    Goal("20,000 sleeps of 1 s at 5,000", "of the ideal", 0.85, _own("nap-5000", "ideal_share")),
    Goal("20,000 sleeps of 1 s at 10,000", "of the ideal", 0.65, _own("nap-10000", "ideal_share")),
    Goal(
        "memory a task in flight at 10,000",
        "KB",
        12,
        _own("nap-10000", "in_flight_kb"),
        at_most=True,
        form="{:.1f}",
    ),
    Goal(_FETCH, "plain gevent without a queue", 0.9, _against("fetch", "plain"), form=_TIMES),
    Goal(_FETCH, "dramatiq gevent", 1.8, _against("fetch", "dramatiq"), form=_TIMES),
    Goal(_LOAD, "commands", 4, _own("noop", "commands"), at_most=True),
    Goal(_LOAD, "reads", 0.05, _own("noop", "reads"), at_most=True, form="{:.3f}"),
    Goal(_LOAD, "of Celery's bytes", 0.5, _bytes_ratio, at_most=True, form=_TIMES),
    Goal(_SEND, "one by one, Celery's delay", 4, _against("send-one", "celery"), form=_MANY_TIMES),
    Goal(_SEND, "in bulk, Celery's batch", 10, _against("send-bulk", "celery"), form=_MANY_TIMES),
    Goal(_SEND, "in bulk, a bare pipeline", 40 / 48, _against("send-bulk", "floor"), form=_TIMES),
    Goal(_LATENCY, "p50, of SAQ's", 1, _against("latency", "saq", "p50_ms"), True, _TIMES),
    Goal(_LATENCY, "p99, of SAQ's", 1, _against("latency", "saq", "p99_ms"), True, _TIMES),
    Goal(_IDLE, "commands a second", 1, _own("idle", "client_commands_s"), at_most=True),
    Goal(_IDLE, "CPU, s a minute", 0.1, _own("idle", "cpu_s_a_minute"), True, "{:.3f}"),
    Goal(_IDLE, "MB", 45, _own("idle", "rss_mb"), at_most=True, form="{:.1f}"),
    Goal(_IDLE, "connections", 6, _own("idle", "connections"), at_most=True, form="{:.0f}"),
    Goal(_IDLE, "50 of them, one message: workers' commands", 2, _own("fleet", "wakes"), True),
    Goal(
        "500,000 queued",
        "of its own rate at 10,000",
        0.95,
        _own_ratio("noop-500k", "noop-10k", "rate"),
        form=_TIMES,
    ),
    Goal(
        "500,000 queued",
        "of its own memory at 10,000",
        1.1,
        _own_ratio("noop-500k", "noop-10k", "peak_mb"),
        at_most=True,
        form=_TIMES,
    ),
    Goal(
        "50,000 ETAs due together",
        "s late, beyond what draining them takes",
        1,
        _late_beyond_drain_s,
        at_most=True,
    ),
    Goal("50,000 ETAs due together", "KB a waiting task", 1.5, _own("etas", "waiting_kb"), True),
    Goal("1,000,000 far ETAs", "MiB of worker memory", 10, _own("far-etas", "growth_mb"), True),
    Goal("1,000,000 far ETAs", "s late at p99", 1, _own("far-etas", "late_p99_s"), at_most=True),
    Goal(
        "no-op with results, events and heartbeats on",
        "of its own rate without",
        0.75,
        _own_ratio("events", "no-events", "rate"),
        form=_TIMES,
    ),
    Goal(_PING, "ms, p50", 50, _own("inspect", "p50_ms"), at_most=True, form="{:.1f}"),
    Goal(_PING, "ms, worst of 20", 50, _own("inspect", "worst_ms"), at_most=True, form="{:.1f}"),
    Goal(
        f"{_PING}, one hub blocked",
        "ms, worst of 20",
        200,
        _own("inspect-blocked", "worst_ms"),
        at_most=True,
        form="{:.1f}",
    ),
    Goal(_IDLE, "hears 50 others: % of a core", 2, _own("heartbeats", "cpu_percent"), at_most=True),
    Goal(
        "2 processes on 2 cores",
        "of one",
        1.7,
        _own_ratio("processes-2", "noop", "rate"),
        form=_TIMES,
    ),
)
