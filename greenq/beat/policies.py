"""What to do next for an entry, computed from its schedule, its last due time and the time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from greenq.beat.entries import ScheduleEntry

Action = Literal["send", "skip", "wait", "cancel"]


class NextAction(NamedTuple):
    """The next thing to do for an entry. Times are unix microseconds, by the server's clock.

    Attributes:
        due: the due time that the action is for; the action also settles earlier due times that are
            still open.
        ready: when to act.
        action: ``send`` the task, ``skip`` the due time, ``wait`` for the last run, or ``cancel``
            the last run and send.
    """

    due: int
    ready: int
    action: Action


def next_step(
    entry: ScheduleEntry, last_due: int, now: int, *, is_running: bool = False
) -> NextAction | None:
    """Return what to do next; None if nothing will ever be due again.

    Args:
        entry: the entry.
        last_due: the last due time that was sent or skipped.
        now: the server's time; an action for a later time is only a forecast.
        is_running: True if the last run has not ended.
    """
    first = entry.next_due(last_due)
    if first is None:
        return None
    ready = entry.ready(first)
    if ready > now:
        return NextAction(first, ready, "send")
    due = first if entry.missed == "run_all" else _latest_ready(entry, first, now)
    ready = entry.ready(due)
    if entry.missed == "skip" and now - ready > entry.skip_after_s * 1_000_000:
        return NextAction(due, ready, "skip")
    return NextAction(due, ready, _on_overlap(entry) if is_running else "send")


def _latest_ready(entry: ScheduleEntry, first: int, now: int) -> int:
    """Return the last due time that is ready by now; `first` is known to be ready."""
    # Whatever the jitter, this due time is ready.
    due = entry.latest_due(first, now - int(entry.jitter_s * 1_000_000)) or first
    while (later := entry.next_due(due)) is not None and entry.ready(later) <= now:
        due = later
    return due


def _on_overlap(entry: ScheduleEntry) -> Action:
    match entry.overlap:
        case "skip":
            return "skip"
        case "queue_one":
            return "wait"
        case "cancel":
            return "cancel"
        case _:
            return "send"
