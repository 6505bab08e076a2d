"""Reads of many callers are put together, and none of them is left waiting."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from greenq.errors import ConnectionLost, OperationalError, TransportTimeout
from greenq.transport.reads import Reads
from tests.support import wait_until


class Gate:
    """A server that answers when it is opened."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.open = threading.Event()
        self.error: BaseException | None = None

    def read(self, keys: Sequence[str], timeout_s: float) -> list[Any]:
        self.asked.append(list(keys))
        assert self.open.wait(20)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return [key.upper() for key in keys]


class Callers:
    """Threads that read, each one key."""

    def __init__(self, reads: Reads) -> None:
        self.reads = reads
        self.found: dict[str, Any] = {}
        self.threads: list[threading.Thread] = []

    def start(self, *keys: str, timeout_s: float = 20) -> None:
        for key in keys:
            thread = threading.Thread(target=self._run, args=(key, timeout_s))
            thread.start()
            self.threads.append(thread)

    def _run(self, key: str, timeout_s: float) -> None:
        try:
            self.found[key] = self.reads.one(key, timeout_s)
        except (OperationalError, KeyboardInterrupt) as exc:
            self.found[key] = exc

    def join(self) -> dict[str, Any]:
        for thread in self.threads:
            thread.join(20)
        return self.found


def busy(gate: Gate, callers: Callers) -> None:
    """Let four callers read, which is all that may."""
    for number in range(4):
        callers.start(f"k{number}")
        wait_until(lambda number=number: len(gate.asked) == number + 1)  # type: ignore[misc]


def gathered(callers: Callers, count: int) -> None:
    wait_until(lambda: len(callers.reads._gathered) == count)


def test_those_who_come_meanwhile_are_read_together() -> None:
    gate = Gate()
    callers = Callers(Reads(gate.read))
    busy(gate, callers)
    keys = [f"x{number}" for number in range(50)]
    callers.start(*keys)
    gathered(callers, 50)
    gate.open.set()
    found = callers.join()
    assert found == {key: key.upper() for key in found}
    assert len(found) == 54
    # Four single ones, then all others; a turn that finds nothing reads nothing.
    assert [len(keys) for keys in gate.asked] == [1, 1, 1, 1, 50]
    assert callers.reads._turns == 0


def test_error_reaches_all_whose_keys_were_read_and_no_others() -> None:
    gate = Gate()
    callers = Callers(Reads(gate.read))
    busy(gate, callers)
    callers.start("x", "y")
    gathered(callers, 2)
    gate.error = ConnectionLost("gone")
    gate.open.set()
    found = callers.join()
    assert sum(isinstance(each, ConnectionLost) for each in found.values()) == 1
    assert (found["x"], found["y"]) == ("X", "Y")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), TransportTimeout("slow")])
def test_caller_that_is_ended_passes_its_turn_on(error: BaseException) -> None:
    gate = Gate()
    callers = Callers(Reads(gate.read))
    busy(gate, callers)
    callers.start("x")
    gathered(callers, 1)
    gate.error = error
    gate.open.set()
    found = callers.join()
    assert found["x"] == "X"
    assert callers.reads._turns == 0
    assert sum(each is error for each in found.values()) == 1
    assert callers.reads.one("y", 1) == "Y"


def test_caller_that_has_waited_too_long_leaves() -> None:
    gate = Gate()
    callers = Callers(Reads(gate.read))
    busy(gate, callers)
    with pytest.raises(TransportTimeout, match=r"within 0\.05 s"):
        callers.reads.one("late", 0.05)
    assert not callers.reads._gathered
    gate.open.set()
    callers.join()
    assert callers.reads.one("y", 1) == "Y"
    assert ["late"] not in gate.asked
