"""The options of one worker, and the exit codes of its process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

EXIT_OK = 0
EXIT_FAILED = 1
# The exit code of a worker that has reached a limit (EX_TEMPFAIL). A supervisor restarts the worker
# after any exit code except 0.
EXIT_RECYCLED = 75


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """The options of one worker, from a program or the command line.

    Attributes:
        queues: the queues to take from; empty means those in the settings.
        exclude_queues: queues not to take from.
        concurrency: the number of concurrent tasks; None means the setting.
        autoscale: (most, least) instead of a fixed concurrency.
        processes: (most, least) processes of the supervisord group; None leaves it unchanged.
        hostname: the node name, ``greenq@host`` by default.
        task_events: whether to send task events; None means the setting.
        mingle, gossip, heartbeat: whether the consumer has these steps.
        heartbeat_interval_s: seconds between heartbeats; None means two seconds.
        control: whether to accept remote control commands; None means the setting.
        beat: whether to send periodic tasks, too.
        autoreload: whether to restart when a source file of the app has changed.
        step_options: values of the app's own command line options, for its own steps.
    """

    queues: tuple[str, ...] = ()
    exclude_queues: tuple[str, ...] = ()
    concurrency: int | None = None
    autoscale: tuple[int, int] | None = None
    processes: tuple[int, int] | None = None
    hostname: str | None = None
    task_events: bool | None = None
    mingle: bool = True
    gossip: bool = True
    heartbeat: bool = True
    heartbeat_interval_s: float | None = None
    control: bool | None = None
    beat: bool = False
    autoreload: bool = False
    step_options: Mapping[str, Any] = field(default_factory=dict)
