"""Combined reads for many concurrent callers."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from greenq.errors import OperationalError, TransportTimeout

# How many callers read at the same time; each of them also reads for others.
_READERS: Final = 4

# How many keys each of these callers reads at once.
_PORTION: Final = 1000

# The item that is put into a caller's queue when it is that caller's turn to read.
_TURN: Final = object()


class _Read:
    """One caller's read: its key, and the queue where the reply, or the turn to read, arrives."""

    __slots__ = ("answer", "key")

    def __init__(self, key: str) -> None:
        self.key = key
        self.answer: queue.SimpleQueue[Any] = queue.SimpleQueue()


class Reads:
    """Reads one key for each of many callers, with few commands and few connections.

    A few callers read at a time. The keys of callers that arrive in the meantime are collected. The
    caller whose turn is next reads these keys in one round trip and distributes the replies.
    """

    def __init__(self, read: Callable[[Sequence[str], float], list[Any]]) -> None:
        """Read with `read`, which returns a reply or an error for each key in the given time."""
        self._read = read
        self._lock = threading.Lock()
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        # The lock protects the keys that no caller is reading yet, and the number of turns.
        self._gathered: deque[_Read] = deque()
        self._turns = 0

    def one(self, key: str, timeout_s: float) -> bytes | None:
        """Read a key. Switches: yes.

        Raises:
            OperationalError: the key could not be read in time.
        """
        if self._pid != os.getpid():
            self._reset()
        own = _Read(key)
        with self._lock:
            self._gathered.append(own)
            if self._turns < _READERS:
                self._turns += 1
                own.answer.put(_TURN)
        answer: Any = _TURN
        try:
            while answer is _TURN:
                answer = own.answer.get(timeout=timeout_s)
                if answer is _TURN:
                    self._take_turn(timeout_s)
        except queue.Empty:
            raise TransportTimeout(f"no answer to GET within {timeout_s:g} s") from None
        finally:
            if answer is _TURN or not own.answer.empty():
                self._leave(own)
        if isinstance(answer, OperationalError):
            raise answer
        found: bytes | None = answer
        return found

    def _take_turn(self, timeout_s: float) -> None:
        """Read the collected keys, then pass on the turn."""
        with self._lock:
            portion = [self._gathered.popleft() for _ in range(min(_PORTION, len(self._gathered)))]
        answers: list[Any] | None = None
        try:
            answers = self._read([each.key for each in portion], timeout_s) if portion else []
        except OperationalError as exc:
            answers = [exc] * len(portion)
        finally:
            if answers is None:
                # This greenlet is being killed, so another caller reads for those that are still
                # waiting.
                with self._lock:
                    self._gathered.extendleft(reversed(portion))
            else:
                for each, answer in zip(portion, answers, strict=True):
                    each.answer.put(answer)
            self._pass_on()

    def _pass_on(self) -> None:
        with self._lock:
            if self._gathered:
                self._gathered[0].answer.put(_TURN)
            else:
                self._turns -= 1

    def _leave(self, own: _Read) -> None:
        """Stop waiting; pass on any turns given to this caller."""
        with self._lock, suppress(ValueError):
            self._gathered.remove(own)
        with suppress(queue.Empty):
            while True:
                if own.answer.get_nowait() is _TURN:
                    self._pass_on()
