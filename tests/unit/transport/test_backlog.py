"""What waits is bounded by number and by bytes, whichever thread takes it."""

from __future__ import annotations

import threading

import pytest

from greenq.transport.backlog import Backlog


def test_oldest_go_when_there_are_too_many() -> None:
    backlog: Backlog[str] = Backlog(3, 100, len)
    for text in "abcde":
        backlog.add(text)

    assert (list(backlog), backlog.dropped, backlog.full) == (["c", "d", "e"], 2, True)
    assert backlog.take_all() == ["c", "d", "e"]
    assert (len(backlog), backlog.bytes, backlog.full) == (0, 0, False)


def test_oldest_go_when_they_are_too_large_and_what_is_too_large_alone() -> None:
    backlog: Backlog[str] = Backlog(100, 10, len)
    for text in ("aaaa", "bbbb", "cccc"):
        backlog.add(text)
    assert (list(backlog), backlog.bytes) == (["bbbb", "cccc"], 8)

    backlog.add("d" * 11)
    assert (list(backlog), backlog.bytes, backlog.dropped) == ([], 0, 4)


def test_something_is_taken_out_once() -> None:
    backlog: Backlog[str] = Backlog(10, 10, len)
    backlog.add("a")

    assert backlog.remove("a")
    assert not backlog.remove("a")
    assert backlog.bytes == 0
    with pytest.raises(IndexError):
        backlog.pop()


def test_two_threads_come_to_the_right_count() -> None:
    backlog: Backlog[str] = Backlog(50, 1000, len)
    popped = 0
    done = threading.Event()

    def pop() -> None:
        nonlocal popped
        while not (done.is_set() and not len(backlog)):
            if len(backlog):
                try:
                    backlog.pop()
                except IndexError:
                    continue
                popped += 1

    thread = threading.Thread(target=pop)
    thread.start()
    for number in range(20_000):
        backlog.add("x" * (number % 7))
    done.set()
    thread.join(30)

    assert backlog.bytes == 0
    assert popped + backlog.dropped == 20_000
