"""Calls functions when tasks end."""

from __future__ import annotations

import logging
import os
import queue
import threading
from contextvars import Context
from typing import TYPE_CHECKING

from greenq.errors import ProtocolError
from greenq.transport.listener import Heard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from greenq.protocol.meta import ResultMeta
    from greenq.transport.listener import ChannelListener, Ear

_log = logging.getLogger(__name__)


class Callbacks:
    """Functions to call when tasks end; a single thread calls them, one after another.

    The thread starts when the first function is added, and ends when no task is awaited any more.
    """

    def __init__(
        self,
        listener: ChannelListener,
        follow: Callable[[Ear, dict[str, str]], Iterator[ResultMeta]],
    ) -> None:
        """Subscribe through `listener`.

        `follow` yields the final states of the tasks in a dictionary of ids by channel, removes
        these tasks from the dictionary, and ends when the dictionary is empty.
        """
        self._listener = listener
        self._follow = follow
        self._lock = threading.Lock()
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._ear: Ear = queue.SimpleQueue()
        # The lock protects the next two attributes: the awaited ids by channel; and for each id,
        # the channel and the functions to call.
        self._waiting: dict[str, str] = {}
        self._calls: dict[str, tuple[str, list[Callable[[ResultMeta], object]]]] = {}
        self._thread: threading.Thread | None = None

    def add(self, tasks: dict[str, str], call: Callable[[ResultMeta], object]) -> None:
        """Register a function to be called when each of `tasks` (ids by channel) ends."""
        with self._lock:
            if self._pid != os.getpid():
                self._reset()
            for channel, task_id in tasks.items():
                self._calls.setdefault(task_id, (channel, []))[1].append(call)
            self._waiting.update(tasks)
            # Subscribe even to a channel that the thread already listens to, since each
            # confirmation makes the thread read the stored state.
            self._listener.subscribe(self._ear, list(tasks))
            if self._thread is None:
                # The context is empty, so that tasks sent by a callback do not become children of a
                # running task.
                self._thread = threading.Thread(
                    target=Context().run, args=(self._run,), name="greenq callbacks", daemon=True
                )
                self._thread.start()

    def close(self) -> None:
        """End the thread; the remaining calls are dropped."""
        with self._lock:
            self._waiting.clear()
            self._calls.clear()
            self._ear.put(Heard("", b""))

    def _run(self) -> None:
        while True:
            try:
                for meta in self._follow(self._ear, self._waiting):
                    self._call(meta)
            except ProtocolError:
                _log.exception("cannot read a result: no callback is called for its task")
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return

    def _call(self, meta: ResultMeta) -> None:
        with self._lock:
            channel, calls = self._calls.pop(meta.task_id, ("", []))
            self._listener.unsubscribe(self._ear, [channel])
        for call in calls:
            try:
                call(meta)
            except Exception:
                _log.exception("a callback failed when task %s ended", meta.task_id)
