"""The pool runs as many requests at once as its size says, and gives every slot back."""

from __future__ import annotations

import gc
import logging
import random
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.local import local

from greenq.hub import let_others_run
from greenq.pool import Interrupt, Pool

DEADLINE_S = 5.0
ROOT = Path(__file__).parents[2]


class Name(str):
    """Stands for a request."""

    greenlet: Any = None

    def throw(self, *exc: Any) -> None:
        if self.greenlet is not None:
            self.greenlet.throw(*exc)


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
    for _ in range(50):
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


def test_tasks_that_hold_the_hub_before_they_wait_do_not_begin_in_one_iteration() -> None:
    loop, iterations = gevent.get_hub().loop, []

    def run(_request: object) -> None:
        iterations.append(loop.iteration)
        began_s = time.monotonic()
        while time.monotonic() - began_s < 0.006:
            pass
        gevent.sleep(0)

    pool = make_pool(run, 10)
    for name in "abcd":
        pool.submit(Name(name))  # type: ignore[arg-type]
    assert pool.wait_empty(DEADLINE_S)

    assert len(set(iterations)) == 4


def test_no_more_than_one_greenlet_waits_for_the_next_iteration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = Event()
    pool = make_pool(lambda _request: gate.wait(DEADLINE_S), 30)
    for number in range(30):
        pool.submit(Name(number))  # type: ignore[arg-type]
    wait_for(lambda: pool.running == 30)
    gate.set()
    assert pool.wait_empty(DEADLINE_S)
    monkeypatch.setattr("greenq.pool._TURN_S", 0.0)
    wait, waiting = pool._let_others_run, []

    def count() -> None:
        waiting.append(None)
        assert len(waiting) == 1
        wait()
        waiting.pop()

    monkeypatch.setattr(pool, "_let_others_run", count)
    for number in range(200):
        pool.submit(Name(number))  # type: ignore[arg-type]
    # Each time, surplus greenlets wake, which have nothing to do.
    for size in range(29, 19, -1):
        pool.resize(size)
        let_others_run()

    assert pool.waiting > 0
    assert pool.wait_empty(DEADLINE_S)


def test_greenlet_that_has_ended_can_be_shown() -> None:
    greenlets = []
    pool = make_pool(lambda request: greenlets.append(request.greenlet), 1)
    pool.submit(Name("a"))  # type: ignore[arg-type]
    assert pool.wait_empty(DEADLINE_S)
    pool.stop()
    wait_for(lambda: greenlets[0].dead)

    assert repr(greenlets[0]).startswith("<PoolGreenlet at 0x")


def test_no_task_begins_in_an_iteration_whose_turn_has_ended() -> None:
    loop, iterations = gevent.get_hub().loop, []
    pool = make_pool(lambda _request: iterations.append(loop.iteration), 10)

    pool.submit(Name("a"))  # type: ignore[arg-type]
    pool.end_turn()
    ended = loop.iteration
    assert pool.wait_empty(DEADLINE_S)

    assert iterations[0] > ended


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


def test_take_back_of_some_leaves_the_others_in_order_and_makes_room(work: Work) -> None:
    pool = make_pool(work, 1, prefetch_multiplier=4)
    submit(pool, "a", "b1", "c", "b2")
    waiting = gevent.spawn(pool.wait_room)
    settle()
    assert pool.unstarted() == ["b1", "c", "b2"]
    assert not waiting.ready()

    assert pool.take_back(lambda request: str(request).startswith("b")) == ["b1", "b2"]
    settle()

    assert waiting.ready()
    assert pool.unstarted() == ["c"]
    work.let_go("a", "c")
    assert work.begun == ["a", "c"]


def test_withdraw_takes_what_has_no_slot_and_wakes_nobody(work: Work) -> None:
    # Any thread may: of what belongs to the hub it touches nothing but the line.
    pool = make_pool(work, 1, prefetch_multiplier=4)
    submit(pool, "a", "b1", "c", "b2")
    waiting = gevent.spawn(pool.wait_room)
    settle()

    taken: list[str] = []
    thread = threading.Thread(
        target=lambda: taken.extend(pool.withdraw(lambda each: str(each).startswith("b")))
    )
    thread.start()
    thread.join(DEADLINE_S)
    settle()

    assert taken == ["b1", "b2"]
    assert pool.unstarted() == ["c"]
    assert not waiting.ready()
    work.let_go("a", "c")
    assert work.begun == ["a", "c"]


def test_what_was_withdrawn_is_put_back_in_its_place(work: Work) -> None:
    pool = make_pool(work, 1, prefetch_multiplier=4)
    submit(pool, "a", "b", "c")
    newest_first = pool.withdraw()[::-1]
    submit(pool, "d")

    pool.put_back(newest_first)
    work.let_go("a", "b", "c", "d")

    assert work.begun == ["a", "b", "c", "d"]


def test_what_is_put_back_when_all_have_gone_to_rest_meanwhile_runs(work: Work) -> None:
    pool = make_pool(work, 1, prefetch_multiplier=4)
    submit(pool, "a", "b", "c")
    newest_first = pool.withdraw()[::-1]
    # The hub moves again, and finds nothing to do.
    work.let_go("a", "b", "c")
    assert pool.wait_empty(DEADLINE_S)

    thread = threading.Thread(target=pool.put_back, args=(newest_first,))
    thread.start()
    thread.join(DEADLINE_S)
    settle()

    wait_for(lambda: work.ended == ["a", "b", "c"])
    assert pool.wait_empty(DEADLINE_S)


def test_each_request_runs_or_is_withdrawn_whoever_is_first(work: Work) -> None:
    # While the hub hands out requests, the watch thread takes them out of the line.
    pool = make_pool(work, 10, prefetch_multiplier=1000)
    names = [f"{number}" for number in range(3000)]
    work.let_go(*names)
    withdrawn: list[str] = []
    over = threading.Event()

    def withdraw() -> None:
        while not over.is_set():
            withdrawn.extend(pool.withdraw())  # type: ignore[arg-type]

    thread = threading.Thread(target=withdraw)
    thread.start()
    for name in names:
        pool.submit(Name(name))  # type: ignore[arg-type]
        gevent.sleep(0)
    wait_for(lambda: not pool.unstarted() and not pool.active)
    over.set()
    thread.join(DEADLINE_S)

    assert sorted([*work.begun, *withdrawn]) == sorted(names)


def test_wait_empty_waits_until_nothing_runs_and_nothing_waits(work: Work) -> None:
    pool = make_pool(work, 1)
    assert pool.wait_empty(None)
    submit(pool, "a", "b")
    waiting = gevent.spawn(pool.wait_empty, None)

    work.let_go("a")
    assert not waiting.ready()
    assert not pool.wait_empty(0.001)
    work.let_go("b")

    assert waiting.get(timeout=DEADLINE_S)
    submit(pool, "c")
    assert not pool.wait_empty(0.001)


def test_pool_is_empty_when_the_last_that_waited_was_taken_back(work: Work) -> None:
    pool = make_pool(work, 1)
    submit(pool, "a", "b")
    work_over = gevent.spawn(pool.wait_empty, None)
    pool.take_back()
    settle()
    assert not work_over.ready()

    work.let_go("a")

    assert work_over.get(timeout=DEADLINE_S)
    # Also of one that never ran anything.
    pool.submit(Name("c"))  # type: ignore[arg-type]
    assert pool.take_back() == ["c"]
    assert pool.wait_empty(DEADLINE_S)


def test_stop_waits_for_what_runs(work: Work) -> None:
    abandoned: list[list[str]] = []
    pool = make_pool(work, 2, grace_s=DEADLINE_S, abandoned=abandoned.append)
    submit(pool, "a", "b")
    stopping = gevent.spawn(pool.stop)
    settle()

    work.let_go("a")
    assert not stopping.ready()
    work.let_go("b")

    assert stopping.ready()
    assert work.ended == ["a", "b"]
    assert abandoned == []


def test_stop_does_not_wait_for_what_was_taken_back(work: Work) -> None:
    pool = make_pool(work, 1, grace_s=DEADLINE_S)
    submit(pool, "a", "b")
    stopping = gevent.spawn(pool.stop)
    settle()

    assert pool.take_back() == ["b"]
    assert not stopping.ready()
    work.let_go("a")

    assert stopping.ready()
    assert work.begun == ["a"]


@pytest.mark.parametrize("how", ["no grace", "end_grace", "terminate"])
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
    if how == "end_grace":
        settle()
        assert not stopping.ready()
        pool.end_grace()
    stopping.join(DEADLINE_S)

    assert seen == [({"a", "b"}, [])]
    assert sorted(work.ended) == ["a killed", "b killed"]
    assert pool.running == 0


def test_stop_of_an_idle_pool_returns_at_once(work: Work) -> None:
    pool = make_pool(work, 2, grace_s=DEADLINE_S)

    stopping = gevent.spawn(pool.stop)
    settle()

    assert stopping.ready()


# --- greenlets that last --------------------------------------------------------------------------


def wait_for(condition: Callable[[], object]) -> None:
    """Let the others run until `condition` is true."""
    with gevent.Timeout(DEADLINE_S):
        while not condition():
            gevent.sleep(0.001)


def test_tasks_that_do_not_wait_run_in_one_greenlet() -> None:
    greenlets: list[object] = []
    pool = make_pool(lambda request: greenlets.append(request.greenlet), 10)

    submit(pool, *(str(number) for number in range(100)))

    assert len(greenlets) == 100
    # One more was sent for when the first began.
    assert len(pool._greenlets) <= 2
    assert len(set(greenlets)) == 1
    assert pool.peak == 1


def test_request_knows_the_greenlet_that_runs_it() -> None:
    pairs: list[tuple[object, object]] = []
    pool = make_pool(lambda request: pairs.append((request.greenlet, gevent.getcurrent())), 2)

    submit(pool, "a", "b")

    assert [one is other for one, other in pairs] == [True, True]


def test_greenlets_rest_and_are_used_again(work: Work) -> None:
    pool = make_pool(work, 5)
    submit(pool, "a", "b", "c")
    work.let_go("a", "b", "c")
    # One more had come and found nothing.
    resting = set(pool._greenlets)
    assert len(resting) <= 4

    for turn in range(20):
        names = [f"{name}{turn}" for name in "abc"]
        submit(pool, *names)
        assert pool.running == 3
        work.let_go(*names)

    assert set(pool._greenlets) == resting
    assert len(pool._resting) == len(resting)


def test_last_greenlet_that_went_to_rest_is_the_first_to_be_woken(work: Work) -> None:
    seen: dict[str, object] = {}

    def run(request: Name) -> None:
        seen[request] = request.greenlet
        work(request)

    pool = make_pool(run, 3)
    submit(pool, "a", "b", "c")
    work.let_go("b")
    work.let_go("a")
    work.let_go("c")

    for name in ("d", "e", "f"):
        submit(pool, name)
        work.let_go(name)

    assert seen["d"] is seen["e"] is seen["f"] is seen["c"]


def test_there_are_never_more_greenlets_than_the_size_says(work: Work) -> None:
    pool = make_pool(work, 3)
    names = [str(number) for number in range(30)]

    submit(pool, *names)
    assert len(pool._greenlets) == 3
    work.let_go(*names)

    assert sorted(work.ended) == sorted(names)
    assert len(pool._greenlets) == 3
    assert pool.peak == 3


def test_a_thread_left_behind_under_the_same_number_is_nobodys(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(work, 1)
    left, spawn = threading.Thread(name="left behind"), pool._greenlets.spawn

    def spawn_with_an_old_number(run: Callable[[], None]) -> gevent.Greenlet:
        greenlet = spawn(run)
        monkeypatch.setitem(threading._active, id(greenlet), left)  # type: ignore[attr-defined]
        return greenlet

    monkeypatch.setattr(pool._greenlets, "spawn", spawn_with_an_old_number)
    submit(pool, "a")
    (greenlet,) = pool._greenlets
    assert threading._active.get(id(greenlet)) is not left  # type: ignore[attr-defined]
    work.let_go("a")

    assert list(pool._greenlets) == [greenlet]


def test_shrinking_ends_those_that_rest_above_the_size(work: Work) -> None:
    pool = make_pool(work, 10)
    names = [str(number) for number in range(10)]
    submit(pool, *names)
    work.let_go(*names)
    assert len(pool._greenlets) == 10

    pool.resize(4)
    settle()

    assert len(pool._greenlets) == 4
    assert len(pool._resting) == 4


def test_shrinking_ends_those_that_run_above_the_size_with_their_request(work: Work) -> None:
    pool = make_pool(work, 10)
    names = [str(number) for number in range(10)]
    submit(pool, *names)

    pool.resize(2)
    work.let_go(*names)
    settle()

    assert sorted(work.ended) == sorted(names)
    assert len(pool._greenlets) <= 2
    submit(pool, "next")
    assert work.begun[-1] == "next"
    work.let_go("next")


def test_growing_wakes_those_that_rest_before_it_makes_new_ones(work: Work) -> None:
    pool = make_pool(work, 2)
    submit(pool, "a", "b", "c", "d", "e")
    work.let_go("a")
    assert pool.waiting == 2

    pool.resize(4)
    settle()

    assert (pool.running, pool.waiting) == (4, 0)
    assert len(pool._greenlets) == 4
    work.let_go("b", "c", "d", "e")


NAME: ContextVar[str] = ContextVar("NAME", default="none")


def test_each_request_has_a_context_of_its_own() -> None:
    seen: list[str] = []

    def run(request: str) -> None:
        seen.append(NAME.get())
        NAME.set(request)
        if request.startswith("waits"):
            gevent.sleep(0)
        seen.append(NAME.get())

    before = NAME.set("caller")
    pool = make_pool(run, 1)
    NAME.reset(before)
    submit(pool, "a", "waits b", "c")
    submit(pool, "d")

    assert seen == ["caller", "a", "caller", "waits b", "caller", "c", "caller", "d"]
    assert NAME.get() == "none"


def test_greenlet_local_values_are_gone_before_the_next_request() -> None:
    values = local()
    seen: list[str] = []

    def run(request: str) -> None:
        seen.append(getattr(values, "last", "none"))
        values.last = request
        if request.startswith("waits"):
            gevent.sleep(0)

    pool = make_pool(run, 2)
    submit(pool, *[f"waits {n}" for n in range(10)], *map(str, range(10)))
    assert seen == ["none"] * 20
    assert pool.room == 2


def test_greenlet_local_values_last_if_they_are_kept() -> None:
    values = local()
    seen: list[str] = []

    def run(request: str) -> None:
        seen.append(getattr(values, "last", "none"))
        values.last = request

    submit(make_pool(run, 1, keep_locals=True), "a", "b")

    assert seen == ["none", "a"]


def test_greenlet_whose_requests_touch_nothing_lasts() -> None:
    idents: set[int] = set()
    kept: list[object] = []

    def run(request: str) -> None:
        kept.append(gevent.getcurrent())
        idents.add(id(gevent.getcurrent()))
        # As each log line does.
        threading.current_thread()

    submit(make_pool(run, 1), *map(str, range(100)))
    assert len(idents) == 1


def test_what_was_local_is_let_go_of_before_the_next_request_begins() -> None:
    values = local()
    alive: list[int] = []
    connections: list[weakref.ref[Thing]] = []

    def run(request: str) -> None:
        alive.append(sum(1 for connection in connections if connection() is not None))
        values.connection = Thing()
        connections.append(weakref.ref(values.connection))
        gevent.sleep(0)

    pool = make_pool(run, 1)
    submit(pool, *map(str, range(50)))
    assert pool.wait_empty(DEADLINE_S)
    assert alive == [0] * 50


# In a process of its own, as a worker is: the standard library is patched.
_LEAVE_AND_LOOK = """
from greenq.hub import patch
patch()
import threading, sys
from contextvars import ContextVar
import gevent
from greenq.pool import Pool

values, name = threading.local(), ContextVar("name", default="none")
seen, looked = set(), []

class Request(str):
    greenlet = None

def run(request):
    thread, greenlet = threading.current_thread(), gevent.getcurrent()
    if request.startswith("look"):
        looked.append(request)
        mine = [getattr(each, "tenant", "none") for each in (values, thread, greenlet)]
        seen.add((*mine, name.get(), thread.name.startswith("Dummy-")))
    if "local" in request:
        values.tenant = "acme"
    if "context" in request:
        name.set("acme")
    if "thread" in request:
        thread.tenant = "acme"
    if "greenlet" in request:
        greenlet.tenant = "acme"
    if "name" in request:
        thread.name = "acme"
    if "waits" in request:
        gevent.sleep(0)

pool = Pool(50, run)
kinds = ["local", "context", "thread", "greenlet", "name", "local waits", "thread local name"]
for number in range(10_000):
    pool.submit(Request(kinds[number % len(kinds)]))
    pool.submit(Request("look waits" if number % 3 else "look"))
assert pool.wait_empty(200)
print(len(looked), seen)
"""


@pytest.mark.slow
def test_of_ten_thousand_that_leave_something_ten_thousand_see_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LEAVE_AND_LOOK],
        cwd=ROOT, capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert done.stdout == "10000 {('none', 'none', 'none', 'none', True)}\n", done.stderr


class Thing:
    """Something that a request refers to."""


@pytest.mark.parametrize("how", ["returns", "raises", "keeps it in its context"])
def test_nothing_of_a_request_is_kept_while_its_greenlet_rests(how: str) -> None:
    context: ContextVar[object] = ContextVar("context")
    things: list[weakref.ref[object]] = []

    def run(request: Name) -> None:
        thing = Thing()
        things.append(weakref.ref(thing))
        things.append(weakref.ref(request))
        gevent.sleep(0)
        if how == "keeps it in its context":
            context.set((thing, request))
        if how == "raises":
            raise ValueError(thing, request)

    pool = make_pool(run, 4)
    # A kept record of the log would keep the exception.
    logging.disable(logging.CRITICAL)
    try:
        for number in range(4):
            pool.submit(Name(number))  # type: ignore[arg-type]
        settle()
    finally:
        logging.disable(logging.NOTSET)
    assert len(pool._resting) == len(pool._greenlets)
    gc.collect()

    assert len(things) == 8
    assert [each() for each in things] == [None] * 8


# --- interrupts -----------------------------------------------------------------------------------


class Interrupted:
    """Stands for a request: notes what is thrown into it, and goes on."""

    def __init__(self) -> None:
        self.in_code = True
        self.hits: list[BaseException] = []

    def interrupt(self, exc: BaseException) -> bool:
        self.hits.append(exc)
        return True


def interrupt(request: Any, after_s: float, **options: Any) -> Interrupt:
    return Interrupt(request, lambda: ValueError(len(request.hits)), after_s, **options)


def after(seconds: float) -> None:
    """Wait until timers of the loop that were started before, of so many seconds, have been due."""
    due = Event()
    gevent.get_hub().loop.timer(seconds).start(due.set, update=True)
    assert due.wait(DEADLINE_S)


def test_interrupt_throws_once_when_it_is_due() -> None:
    request = Interrupted()
    interrupt(request, 0.002)
    assert request.hits == []

    after(0.002)
    after(0.002)

    assert [exc.args for exc in request.hits] == [(0,)]


@pytest.mark.parametrize("after_s", [1e300, float("inf"), 10**400], ids=["far", "never", "huge"])
def test_interrupt_may_be_later_than_any_timer(after_s: float) -> None:
    request = Interrupted()

    late = interrupt(request, after_s)
    after(0.0)
    late.cancel()

    assert request.hits == []


def test_no_number_as_the_time_of_interrupts_keeps_no_other_timer_from_going_off() -> None:
    request = Interrupted()
    naps = [gevent.spawn(gevent.sleep, 0.001 * number) for number in range(1, 20)]
    none = [interrupt(request, float("nan")) for _ in range(20)]
    naps += [gevent.spawn(gevent.sleep, 0.001 * number) for number in range(1, 20)]

    ended = gevent.joinall(naps, DEADLINE_S)
    for each in none:
        each.cancel()

    assert len(ended) == len(naps)
    assert request.hits == []


def test_cancelled_interrupt_throws_nothing_and_may_be_cancelled_twice() -> None:
    request = Interrupted()
    one, late = interrupt(request, 0.002), interrupt(request, 0.0)
    again = interrupt(request, 0.0, again_s=0.002)
    one.cancel()
    after(0.0)
    assert len(request.hits) == 2

    for each in (one, late, again, again):
        each.cancel()
    after(0.004)

    assert len(request.hits) == 2


def test_interrupt_is_repeated_with_new_exceptions_as_long_as_the_code_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("greenq.pool.AGAIN_S", 0.001)
    request = Interrupted()

    interrupt(request, 0.0, again_s=0.002)
    wait_for(lambda: len(request.hits) == 4)
    request.in_code = False
    after(0.002)
    seen = len(request.hits)
    after(0.004)

    assert [exc.args for exc in request.hits[:4]] == [(0,), (1,), (2,), (3,)]
    assert len(request.hits) == seen <= 6


# --- what tasks leave behind ----------------------------------------------------------------------


def leave_timeout(seconds: float) -> None:
    """Start a timeout that nobody cancels."""
    gevent.Timeout(seconds).start()


def test_timeout_left_behind_by_a_task_hits_no_later_one_in_its_greenlet(
    caplog: pytest.LogCaptureFixture,
) -> None:
    greenlets, ended = set(), []
    fired = Event()

    def run(request: Name) -> None:
        greenlets.add(request.greenlet)
        if request == "leaves":
            leave_timeout(0.001)
            gevent.get_hub().loop.timer(0.002).start(fired.set)
        elif request == "own":
            # Timeouts of the task itself do what they should.
            with gevent.Timeout(0.001, False):
                Event().wait(DEADLINE_S)
                pytest.fail("the timeout did not go off")
        else:
            assert fired.wait(DEADLINE_S)
        ended.append(str(request))

    pool = make_pool(run, 1)
    submit(pool, "leaves", "waits", "own")
    wait_for(lambda: len(ended) == 3)

    assert len(greenlets) == 1
    assert ended == ["leaves", "waits", "own"]
    assert not caplog.text
    assert len(pool._resting) == 1


def test_timeout_left_behind_does_no_harm_at_rest(caplog: pytest.LogCaptureFixture) -> None:
    pool = make_pool(lambda _: leave_timeout(0.001), 1)
    submit(pool, "leaves")
    fired = Event()
    gevent.get_hub().loop.timer(0.002).start(fired.set)
    assert fired.wait(DEADLINE_S)

    assert not caplog.text
    assert len(pool._resting) == len(pool._greenlets) == 1


def test_timeout_left_behind_does_no_harm_to_a_greenlet_that_was_just_sent_for(
    work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a greenlet at rest that was sent for, but has not been switched to.
    pool = make_pool(work, 1)
    submit(pool, "first")
    work.let_go("first")
    (greenlet,) = pool._greenlets
    # What was left behind comes first: the loop calls back in this order.
    gevent.get_hub().loop.run_callback(greenlet.throw, gevent.Timeout(1))
    pool.submit(Name("a"))  # type: ignore[arg-type]
    pool.submit(Name("b"))  # type: ignore[arg-type]
    assert pool._coming
    assert not pool._resting

    settle()
    work.let_go("a", "b")

    assert "was raised after the task" in caplog.text
    assert work.ended == ["first", "a", "b"]
    assert set(pool._greenlets) == {greenlet}
    assert (pool.running, pool.waiting, len(pool._resting)) == (0, 0, 1)


def spin(seconds: float) -> None:
    """Compute for a while without letting anybody else run."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        pass


def test_timeout_left_behind_does_no_harm_while_others_are_let_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ran: list[str] = []
    pool = make_pool(ran.append, 1)
    strays = [gevent.Timeout(1), gevent.Timeout(1)]

    def run(request: str) -> None:
        ran.append(request)
        # Due when the greenlet pauses between this one and the next.
        (greenlet,) = pool._greenlets
        if strays:
            gevent.get_hub().loop.run_callback(greenlet.throw, strays.pop())
        spin(0.006)

    pool._run = run  # type: ignore[assignment]
    # With room for no other, which would send for another greenlet.
    for number in range(5):
        pool.submit(Name(number))  # type: ignore[arg-type]
    wait_for(lambda: len(ran) == 5)
    settle()

    assert caplog.text.count("was raised after the task") == 2
    assert (pool.running, pool.waiting, len(pool._resting)) == (0, 0, 1)


@pytest.mark.parametrize("timer", [False, True], ids=["plain", "each starts a timer"])
def test_tasks_that_never_wait_let_timers_and_sockets_have_their_turns(timer: bool) -> None:
    # Given somebody else who waits for a moment, again and again, and not merely for his turn.
    turns = 0
    at_start: list[int] = []

    def other() -> None:
        nonlocal turns
        while True:
            gevent.sleep(0.0001)
            turns += 1

    def run(_request: str) -> None:
        at_start.append(turns)
        if timer:
            # It corrects the loop's clock, without letting anybody run.
            with gevent.Timeout(10):
                spin(0.001)
        else:
            spin(0.001)

    pool = make_pool(run, 1)
    somebody = gevent.spawn(other)
    wait_for(lambda: turns)

    # When tasks of 1 ms follow one another.
    for number in range(200):
        pool.submit(Name(number))  # type: ignore[arg-type]
    wait_for(lambda: len(at_start) == 200)
    somebody.kill()

    # Then he has a turn after every few of them.
    most = max(at_start.count(turn) for turn in set(at_start))
    assert most <= 25
    assert len(set(at_start)) >= 10


# --- the end --------------------------------------------------------------------------------------


def test_end_of_the_pool_ends_all_its_greenlets(
    work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    # Given greenlets that run, that rest, and that were sent for.
    pool = make_pool(work, 5, grace_s=0.0)
    submit(pool, "a", "b", "c", "d")
    work.let_go("a", "b")
    pool.submit(Name("e"))  # type: ignore[arg-type]
    assert pool._coming

    pool.terminate()

    assert sorted(work.ended) == ["a", "b", "c killed", "d killed"]
    assert len(pool._greenlets) == 0
    assert (pool.running, pool.take_back()) == (0, ["e"])
    # That is no fault of anybody.
    assert not caplog.records


def test_nothing_begins_after_the_end(work: Work) -> None:
    pool = make_pool(work, 2, grace_s=0.0)
    submit(pool, "a")
    pool.stop()

    submit(pool, "b")
    pool.resize(5)
    settle()

    assert work.begun == ["a"]
    assert pool.take_back() == ["b"]


def test_task_that_is_killed_alone_leaves_its_greenlet_to_the_next(work: Work) -> None:
    pool = make_pool(work, 1)
    submit(pool, "a", "b")
    (greenlet,) = pool._greenlets

    greenlet.kill(block=False)
    settle()

    assert work.ended == ["a killed"]
    assert work.begun == ["a", "b"]
    work.let_go("b")
    assert pool.running == 0


# --- no wake-up gets lost -------------------------------------------------------------------------

STEPS = 3000


class Chaos:
    """Submits, finishes and resizes at random, in whatever state the pool is."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.pool = make_pool(self.run, 3)
        self.number = 0
        self.ran = 0
        self.at_once = 0
        self.gates: list[Event] = []
        # How many ran when one began that should have waited.
        self.breaches: list[int] = []

    def run(self, _request: str) -> None:
        self.ran += 1
        self.at_once += 1
        if self.at_once > self.pool.size:
            self.breaches.append(self.at_once)
        how = self.chance.randrange(6)
        try:
            if how == 0:
                gate = Event()
                self.gates.append(gate)
                assert gate.wait(DEADLINE_S)
            elif how == 1:
                gevent.sleep(0)
            elif how == 2:
                gevent.sleep(0.0001)
            elif how == 3:
                raise ValueError("stray")
            elif how == 4:
                self.submit(self.chance.randrange(3))
        finally:
            self.at_once -= 1

    def submit(self, count: int) -> None:
        for _ in range(count):
            if self.number < STEPS:
                self.number += 1
                self.pool.submit(Name(self.number))  # type: ignore[arg-type]

    def step(self) -> None:
        match self.chance.randrange(8):
            case 0 | 1 | 2:
                self.submit(self.chance.choice([1, 1, 2, 10]))
            case 3 | 4:
                if self.gates:
                    self.gates.pop(self.chance.randrange(len(self.gates))).set()
            case 5:
                self.pool.resize(self.chance.choice([1, 2, 3, 5, 20]))
            case 6:
                gevent.get_hub().loop.run_callback(self.disturb)
            case _:
                gevent.sleep(self.chance.choice([0, 0, 0.0001]))

    def disturb(self) -> None:
        """In the hub: have something that was left behind reach a greenlet that runs nothing."""
        runs = {request.greenlet for request in self.pool.active}
        rests = [each for each in self.pool._greenlets if each.gr_frame and each not in runs]
        if rests:
            self.chance.choice(rests).throw(gevent.Timeout(1))

    def finish(self) -> None:
        while self.gates:
            self.gates.pop().set()
        let_others_run()


@pytest.mark.parametrize("seed", range(3))
def test_everything_runs_whatever_happens_in_whatever_order(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if seed:
        # Greenlets that run one request after the other pause between them as often as they can.
        monkeypatch.setattr("greenq.pool._TURN_S", 0.0)
    chaos = Chaos(seed)
    logging.disable(logging.CRITICAL)
    try:
        while chaos.number < STEPS:
            chaos.step()
        with gevent.Timeout(6 * DEADLINE_S):
            while chaos.ran < STEPS or chaos.pool.running:
                chaos.finish()
    finally:
        logging.disable(logging.NOTSET)

    pool = chaos.pool
    wait_for(lambda: len(pool._resting) == len(pool._greenlets) <= pool.size)
    assert chaos.ran == STEPS
    assert chaos.breaches == []
    assert (pool.running, pool.waiting, chaos.at_once) == (0, 0, 0)
    assert not pool._coming
    pool.stop()
    wait_for(lambda: not len(pool._greenlets))
