"""The pool runs as many requests at once as its size says, and gives every slot back."""

from __future__ import annotations

import logging
from collections.abc import Callable

import gevent
import pytest
from gevent.event import Event

from greenq.pool import Pool

DEADLINE_S = 5.0


class Name(str):
    """Stands for a request."""

    greenlet: object = None


class Work:
    """Stands for `run`: notes what begins and how it ends; each request runs until it is let go."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self._gates: dict[str, Event] = {}

    def __call__(self, request: str) -> None:
        self.begun.append(request)
        try:
            assert self._gate(request).wait(DEADLINE_S), f"{request} was never let go"
        except gevent.GreenletExit:
            self.ended.append(f"{request} killed")
            return
        self.ended.append(request)
        if request.startswith("bad"):
            raise SystemExit(request)

    def let_go(self, *requests: str) -> None:
        for request in requests:
            self._gate(request).set()
        settle()

    def _gate(self, request: str) -> Event:
        return self._gates.setdefault(request, Event())


def settle() -> None:
    """Let every greenlet that can run do so."""
    for _ in range(5):
        gevent.sleep(0)


@pytest.fixture
def work() -> Work:
    return Work()


def make_pool(work: Callable[..., None], size: int, **options: object) -> Pool:
    return Pool(size, work, **options)  # type: ignore[arg-type]


def submit(pool: Pool, *requests: str) -> None:
    for request in requests:
        pool.submit(Name(request))  # type: ignore[arg-type]
    settle()


def test_no_more_run_than_the_size_says_and_the_rest_follow_in_order(work: Work) -> None:
    pool = make_pool(work, 2)

    submit(pool, "a", "b", "c", "d")
    assert (work.begun, pool.running, pool.waiting) == (["a", "b"], 2, 2)
    work.let_go("b")
    assert (work.begun, pool.running, pool.waiting) == (["a", "b", "c"], 2, 1)
    work.let_go("a", "c", "d")

    assert work.begun == ["a", "b", "c", "d"]
    assert (pool.running, pool.waiting, pool.peak) == (0, 0, 2)


@pytest.mark.parametrize(
    ("size", "multiplier", "held", "room"),
    [(2, 1, 0, 2), (2, 1, 2, 0), (2, 4, 3, 5), (2, 1, 3, -1), (1000, 1, 1, 999)],
)
def test_room_is_what_may_still_be_taken(
    work: Work, size: int, multiplier: int, held: int, room: int
) -> None:
    pool = make_pool(work, size, prefetch_multiplier=multiplier)
    names = [str(number) for number in range(held)]

    submit(pool, *names)

    assert pool.room == room
    work.let_go(*names)


def test_growing_starts_what_waits_and_wakes_who_waits_for_room_at_once(work: Work) -> None:
    pool = make_pool(work, 1)
    submit(pool, "a", "b", "c")
    waiting = gevent.spawn(pool.wait_room)
    settle()
    assert not waiting.ready()

    pool.resize(10)
    settle()

    assert waiting.ready()
    assert work.begun == ["a", "b", "c"]
    work.let_go("a", "b", "c")


def test_shrinking_lets_the_surplus_end_with_its_present_request(work: Work) -> None:
    pool = make_pool(work, 3)
    submit(pool, "a", "b", "c", "d")

    pool.resize(1)
    assert (pool.running, pool.room) == (3, -3)
    work.let_go("a", "b")
    assert work.begun == ["a", "b", "c"]
    work.let_go("c")

    assert work.begun == ["a", "b", "c", "d"]
    work.let_go("d")
    assert pool.peak == 3


def test_end_of_a_request_wakes_who_waits_for_room(work: Work) -> None:
    pool = make_pool(work, 1)
    submit(pool, "a")
    waiting = gevent.spawn(pool.wait_room)
    settle()
    assert not waiting.ready()

    work.let_go("a")

    assert waiting.ready()


def test_wake_ends_the_wait_for_room_without_any(work: Work) -> None:
    pool = make_pool(work, 1)
    submit(pool, "a")
    waiting = gevent.spawn(pool.wait_room)
    settle()

    pool.wake()
    settle()

    assert waiting.ready()
    work.let_go("a")


def test_slot_is_given_back_when_running_fails(
    work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(work, 1)
    submit(pool, "bad", "next")

    with caplog.at_level(logging.CRITICAL):
        work.let_go("bad")

    assert work.begun == ["bad", "next"]
    assert "bad was left without an outcome" in caplog.text
    work.let_go("next")
    assert pool.room == 1


def test_take_back_returns_what_has_no_slot_in_order(work: Work) -> None:
    pool = make_pool(work, 1)
    submit(pool, "a", "b", "c")

    assert pool.take_back() == ["b", "c"]

    work.let_go("a")
    assert work.begun == ["a"]


def test_stop_waits_for_what_runs(work: Work) -> None:
    abandoned: list[list[str]] = []
    pool = make_pool(work, 2, grace_s=DEADLINE_S, abandoned=abandoned.append)
    submit(pool, "a", "b")
    stopping = gevent.spawn(pool.stop)
    settle()

    work.let_go("a")
    assert not stopping.ready()
    work.let_go("b")

    stopping.join(DEADLINE_S)
    assert work.ended == ["a", "b"]
    assert abandoned == []


@pytest.mark.parametrize("how", ["no grace", "hurry", "terminate"])
def test_what_still_runs_is_handed_over_before_it_is_ended(work: Work, how: str) -> None:
    seen: list[tuple[set[str], list[str]]] = []
    pool = make_pool(
        work,
        2,
        grace_s=0.0 if how == "no grace" else DEADLINE_S,
        abandoned=lambda requests: seen.append((set(requests), list(work.ended))),
    )
    submit(pool, "a", "b")

    stopping = gevent.spawn(pool.terminate if how == "terminate" else pool.stop)
    if how == "hurry":
        settle()
        assert not stopping.ready()
        pool.hurry()
    stopping.join(DEADLINE_S)

    assert seen == [({"a", "b"}, [])]
    assert sorted(work.ended) == ["a killed", "b killed"]
    assert pool.running == 0


def test_stop_of_an_idle_pool_returns_at_once(work: Work) -> None:
    pool = make_pool(work, 2, grace_s=DEADLINE_S)

    stopping = gevent.spawn(pool.stop)
    settle()

    assert stopping.ready()
