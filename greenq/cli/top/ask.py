"""Observes a cluster for ``greenq top`` in two threads: one polls, the other receives events."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar

from greenq.cli import queues, show, status
from greenq.cli.common import ask, called_roll
from greenq.cli.top.model import ClusterSnapshot, Greenlets
from greenq.errors import OperationalError
from greenq.remote.queue_counts import QueuesSnapshot, from_counts

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from greenq.app import Greenq
    from greenq.events.cluster_state import State

T = TypeVar("T")

# How many greenlets, oldest first, are shown in detail.
_GREENLETS: Final = 20

# A thread notices within this time that it must end.
_TURN_S: Final = 0.25

_ENABLED: Final = "task events enabled"


class Asker:
    """Asks the workers that the command line selects.

    Each round sends `status` to all workers, then `hub` to those that have replied, and `greenlets`
    to one of them. Celery's workers do not know `status` and log a traceback. Once such a worker
    has replied, later rounds find all nodes with a broadcast `ping`, and send `status` only to
    other nodes.
    """

    def __init__(self, app: Greenq, args: argparse.Namespace, state: State) -> None:
        """Ask the workers of `app`; `state` is kept up to date from the workers' events."""
        self._app = app
        self._args = args
        self._state = state
        self._queues = set(queues.known_queues(app))
        self._foreign: set[str] = set()
        self._asked: set[str] = set()
        self._changed: set[str] = set()

    def __enter__(self) -> Self:
        """Start asking."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Disable the task events that this object has enabled."""
        if self._changed:
            self._app.control.mailbox.tell("disable_events", destination=sorted(self._changed))

    def look(self, chosen: str | None = None) -> ClusterSnapshot:
        """Do one round, asking the chosen worker (by default, the first) for its greenlets.

        Raises:
            OperationalError: the server cannot be reached, or refuses a command.
        """
        pongs = self._ask("ping") if self._foreign else {}
        statuses = self._statuses(pongs)
        for reply in statuses.values():
            named = show.part(reply, "queues")
            self._queues.update(each for each in named or () if isinstance(each, str))
        foreign = self._foreign & (pongs.keys() | statuses.keys())
        ours = [node for node in statuses if node not in foreign]
        hubs = self._ask("hub", destination=ours)
        if self._args.events:
            self._enable_events({*ours, *foreign})
        return ClusterSnapshot(
            at_s=time.monotonic(),
            statuses={node: statuses[node] for node in ours},
            foreign={node: self._read_heartbeats(node) for node in foreign},
            hubs=hubs,
            queues=self._depths(),
            takers=queues.takers(
                called_roll(self._app), self._ask("active_queues", destination=sorted(foreign))
            ),
            greenlets=self._greenlets(chosen, statuses, ours),
        )

    def greenlets(self, node: str) -> Greenlets:
        """Ask one worker for its greenlets; do not ask workers that are not greenq's.

        Raises:
            OperationalError: the server cannot be reached, or refuses a command.
        """
        if node in self._foreign:
            return Greenlets(node=node)
        replies = self._ask("greenlets", {"limit": _GREENLETS}, destination=[node])
        return Greenlets(node=node, reply=replies.get(node))

    def _statuses(self, pongs: Mapping[str, Any]) -> dict[str, Any]:
        if not self._foreign:
            replies = self._ask("status")
        else:
            replies = self._ask("status", destination=sorted(pongs.keys() - self._foreign))
        for node, reply in replies.items():
            if show.is_error(reply) and status.state(reply)[0] != "error":
                self._foreign.add(node)
        return replies

    def _depths(self) -> QueuesSnapshot:
        """Count the waiting messages without reading them."""
        broker = self._app.transport.broker
        paused = broker.paused()
        found = {
            name: from_counts(name, counts, paused.get(name))
            for name, counts in broker.depths(sorted(self._queues)).items()
        }
        return QueuesSnapshot(time.monotonic(), found)

    def _greenlets(
        self, chosen: str | None, statuses: Mapping[str, Any], ours: list[str]
    ) -> Greenlets | None:
        node = chosen or min(ours, default=None)
        if node is None:
            return None
        if node not in ours or show.part(statuses[node], "blocked") is not None:
            # The worker cannot reply until its process or its hub runs again.
            return Greenlets(node=node)
        return self.greenlets(node)

    def _read_heartbeats(self, node: str) -> dict[str, Any]:
        """Return the counts that a worker's heartbeats report."""
        worker = self._state.workers.get(node)
        if worker is None:
            return {}
        return {"active": worker.active, "processed": worker.processed}

    def _enable_events(self, nodes: set[str]) -> None:
        """Enable the task events of nodes, once for each incarnation."""
        self._asked &= nodes
        replies = self._ask("enable_events", destination=sorted(nodes - self._asked))
        self._asked |= replies.keys()
        self._changed.update(
            node for node, reply in replies.items() if show.part(reply, "ok") == _ENABLED
        )

    def _ask(
        self,
        method: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        destination: list[str] | None = None,
    ) -> dict[str, Any]:
        if destination is not None and not destination:
            # An empty destination would mean all workers.
            return {}
        return ask(self._app, self._args, method, arguments, destination=destination)


class Thread(Generic[T]):
    """A thread that queues its findings for another thread."""

    def __init__(self, name: str) -> None:
        """Create the thread; entering the `with` block starts it."""
        self._found: SimpleQueue[T | Exception] = SimpleQueue()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    def __enter__(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        """End the thread, and wait until it has ended."""
        self.end()
        self._thread.join()

    def take(self) -> list[T]:
        """Return what was found since the last call.

        Raises:
            Exception: the error that has ended the thread.
        """
        found = []
        with suppress(Empty):
            while True:
                each = self._found.get_nowait()
                if isinstance(each, Exception):
                    raise each
                found.append(each)
        return found

    def end(self) -> None:
        """Ask the thread to end soon."""
        self._ended.set()

    def run(self) -> None:
        """Do the thread's work until `_ended` is set."""
        raise NotImplementedError

    def _main(self) -> None:
        try:
            self.run()
        except Exception as exc:
            self._found.put(exc)


class Sampler(Thread["ClusterSnapshot | Greenlets"]):
    """Polls at regular intervals."""

    def __init__(self, asker: Asker, interval_s: float) -> None:
        """Poll with `asker` every `interval_s`."""
        super().__init__("greenq top: asks")
        self._asker = asker
        self._interval_s = interval_s
        self._woken = threading.Event()
        self._paused = False
        self._chosen: str | None = None

    def choose(self, node: str | None) -> None:
        """Ask for the greenlets of this worker immediately, and then at each poll."""
        self._chosen = node
        self._woken.set()

    def pause(self, *, on: bool) -> None:
        """Pause or resume polling."""
        self._paused = on
        self._woken.set()

    def end(self) -> None:
        """Ask the thread to end soon."""
        super().end()
        self._woken.set()

    def run(self) -> None:
        """Poll once in each interval."""
        due_s = time.monotonic() + self._interval_s
        seen = None
        while not self._ended.is_set():
            chosen = self._chosen
            if time.monotonic() >= due_s and not self._paused:
                self._found.put(self._look(chosen))
                due_s = max(due_s + self._interval_s, time.monotonic())
            elif chosen is not None and chosen != seen:
                self._found.put(self._greenlets(chosen))
            seen = chosen
            if self._chosen == seen:
                left_s = None if self._paused else max(0.0, due_s - time.monotonic())
                self._woken.wait(left_s)
            self._woken.clear()

    def _look(self, chosen: str | None) -> ClusterSnapshot:
        try:
            return self._asker.look(chosen)
        except OperationalError as exc:
            return ClusterSnapshot(at_s=time.monotonic(), trouble=str(exc))

    def _greenlets(self, chosen: str) -> ClusterSnapshot | Greenlets:
        try:
            return self._asker.greenlets(chosen)
        except OperationalError as exc:
            return ClusterSnapshot(at_s=time.monotonic(), trouble=str(exc))


class EventsThread(Thread["dict[str, Any]"]):
    """Receives events, and keeps the state of the workers up to date."""

    def __init__(self, app: Greenq, state: State) -> None:
        """Receive the events of `app`; worker events update `state`."""
        super().__init__("greenq top: events")
        self._state = state
        self._receiver = app.events.Receiver()

    def __enter__(self) -> Self:
        """Subscribe; events published from now on are received.

        Raises:
            OperationalError: the server cannot be reached, or refuses a command.
        """
        # There is no need to request heartbeats, since replies show which workers are alive.
        self._receiver.open(wakeup=False)
        return super().__enter__()

    def run(self) -> None:
        """Receive events until the thread is asked to end."""
        try:
            while not self._ended.is_set():
                for event in self._receiver.wait(_TURN_S):
                    if event["type"].startswith("worker-"):
                        self._state.event(event)
                    self._found.put(event)
        finally:
            self._receiver.close()
