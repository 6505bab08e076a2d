"""What the watchdog thread is given: its limits, and the functions that it calls for a worker."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenq.transport.client import Connection
    from greenq.transport.settle import Settlement


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchLimits:
    """Durations and time limits.

    Attributes:
        lease_s: how long a lease lasts.
        visibility_timeout_s: the age at which records that no lease covers are requeued.
        blocked_after_s: how long the hub may be blocked before that is logged.
        blocked_limit_s: how long the hub may be blocked before the process is ended; 0 means
            no limit.
    """

    lease_s: float
    visibility_timeout_s: float
    blocked_after_s: float
    blocked_limit_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """What this process knows about the messages it holds.

    All of these functions are called in the watchdog thread.

    Attributes:
        unsettled: returns the tags that are not yet settled on the server, and the first unused tag
            number, which is read before the tags.
        first_unused: returns the first unused tag number.
        is_waiting: returns whether this worker is waiting for messages, so that it can relay.
        unwritten: called when the worker ends; returns the outcomes that could not be written.
    """

    unsettled: Callable[[], tuple[set[str], int]]
    first_unused: Callable[[], int]
    is_waiting: Callable[[], bool]
    unwritten: Callable[[], list[Settlement]]


@dataclass(frozen=True, slots=True, kw_only=True)
class HubCalls:
    """Functions for the hub; each is called in the hub's thread, in a new greenlet.

    Attributes:
        look: called when a waiting consumer should check for messages itself.
        paused: called with the queues that are paused.
        forgotten: called when the server does not know this owner.
    """

    look: Callable[[], object]
    paused: Callable[[frozenset[str]], object]
    forgotten: Callable[[], object]


def _no_cut(_connection: Connection) -> None:
    """Do nothing, because there is no wait to stop."""


def _end_process() -> None:
    """End immediately, since code that needs the hub would never finish."""
    os._exit(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescue:
    """What the watchdog thread itself does when the hub cannot.

    Attributes:
        give_away: called with a connection, in the watchdog thread, when the hub is blocked, to
            requeue messages that have not begun.
        cut: called with a connection, in the watchdog thread, before it ends the process, to stop
            waiting for messages.
        end_process: ends the process immediately.
    """

    give_away: Callable[[Connection], object]
    cut: Callable[[Connection], object] = _no_cut
    end_process: Callable[[], object] = _end_process
