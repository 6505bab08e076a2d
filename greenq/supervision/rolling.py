"""A rolling restart: the workers of a group are drained and restarted one after another.

If a worker does not come up, the rolling restart ends, and the remaining workers keep running the
code that they have loaded.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, Protocol

from greenq.errors import SupervisorError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from greenq.supervision.supervisor import Process, Supervisor

_POLL_S: Final = 0.2


class Nodes(Protocol):
    """The workers of a cluster, as known from the server and from their replies."""

    def here(self) -> Mapping[int, str]:
        """Return the nodes of this machine that hold a lease, by process id."""

    def ask(self, node: str, method: str, arguments: Mapping[str, Any]) -> Any:
        """Return a node's reply to a remote control command, or None if no reply arrives."""


class RollingRestart:
    """Restarts the running workers of a group, one at a time."""

    def __init__(
        self,
        supervisor: Supervisor,
        group: str,
        nodes: Nodes,
        *,
        drain_s: float,
        ready_s: float,
        say: Callable[[str], object],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Prepare to restart `group`.

        Args:
            supervisor: the supervisord that runs the group.
            group: the group's name.
            nodes: the workers.
            drain_s: how long to wait for a worker's running tasks. Tasks that take longer get the
                worker's worker_shutdown_grace to finish, and are then requeued.
            ready_s: how long a restarted worker may take to answer.
            say: called with progress messages.
            clock, sleep: a monotonic clock in seconds, and a function that waits.
        """
        self._supervisor, self._group, self._nodes = supervisor, group, nodes
        self._drain_s, self._ready_s, self._say = drain_s, ready_s, say
        self._clock, self._sleep = clock, sleep

    def run(self) -> int:
        """Restart all running workers and return their number.

        Raises:
            SupervisorError: no worker is running, or a worker did not come up; the workers after
                that worker were not restarted.
            OperationalError: the server cannot be reached, or refuses to answer.
        """
        running = self._running()
        for done, process in enumerate(running):
            try:
                self._restart(process)
            except SupervisorError as exc:
                left = [each.name for each in running[done + 1 :]]
                raise SupervisorError(
                    f"{exc}\n{done} of {len(running)} workers were restarted"
                    + (f"; not restarted: {', '.join(left)}" if left else "")
                ) from None
        return len(running)

    def _running(self) -> Sequence[Process]:
        """Return the running workers, all of which must hold a lease."""
        group = self._supervisor.group(self._group)
        if not group:
            raise SupervisorError(
                f"supervisord at {self._supervisor.url} has no group {self._group}: name one with "
                "--group; `supervisorctl status` shows each group's name before the colon"
            )
        running = [each for each in group if each.is_up]
        nodes = self._nodes.here()
        strange = [each.name for each in running if each.pid not in nodes]
        if strange:
            raise SupervisorError(
                f"nothing was restarted: {', '.join(strange)} of group {self._group} hold no lease "
                "on the server. Are they workers of this app and server (-A, -b)? Have they "
                "just been started?"
            )
        if not running:
            raise SupervisorError(f"no process of group {self._group} is running; start one")
        return running

    def _restart(self, process: Process) -> None:
        name, node = process.name, self._nodes.here().get(process.pid, "")
        self._drain(name, node)
        self._say(f"{name}: stopping")
        self._supervisor.stop(self._group, name, wait=True)
        self._say(f"{name}: starting")
        self._supervisor.start(self._group, name, wait=True)
        self._wait_ready(name)
        self._say(f"{name}: ready")

    def _drain(self, name: str, node: str) -> None:
        """Make a worker drain, and wait for its tasks; if interrupted, end the draining."""
        if self._nodes.ask(node, "drain", {}) is None:
            self._say(f"{name}: accepts no remote commands, so it is stopped without draining")
            return
        self._say(f"{name}: draining")
        deadline_s = self._clock() + self._drain_s
        try:
            while self._clock() < deadline_s:
                status = self._nodes.ask(node, "status", {})
                running = status.get("active") if isinstance(status, dict) else None
                if running == 0:
                    return
                self._sleep(_POLL_S)
        except BaseException:
            self._nodes.ask(node, "drain", {"on": False})
            raise
        self._say(f"{name}: tasks are still running after {self._drain_s:g} s")

    def _wait_ready(self, name: str) -> None:
        """Wait until a restarted worker holds a lease and answers."""
        deadline_s = self._clock() + self._ready_s
        while self._clock() < deadline_s:
            (process,) = (each for each in self._supervisor.group(self._group) if each.name == name)
            node = self._nodes.here().get(process.pid)
            if process.is_up and node and self._nodes.ask(node, "ping", {}) is not None:
                return
            self._sleep(_POLL_S)
        raise SupervisorError(
            f"{name} did not come up within {self._ready_s:g} s (supervisord says "
            f"{process.state}): see its log"
        )
