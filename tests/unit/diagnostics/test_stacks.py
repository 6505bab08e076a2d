"""What greenlets and threads are told to do: as text, and as data."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import gevent
import gevent.lock
import gevent.monkey
import gevent.queue
import gevent.subprocess
import gevent.thread
import pytest
from gevent.event import AsyncResult, Event

from greenq.diagnostics.stacks import all_stacks, describe, waits_on
from greenq.hub import NativeThread, spawn
from greenq.pool import Pool
from greenq.running.request import Request
from tests.support import wait_until

DEADLINE_S = 5.0


def wait_here(event: Event, _secret: str) -> None:
    event.wait(DEADLINE_S)


def test_greenlets_at_the_same_lines_are_told_together_with_their_names() -> None:
    event = Event()
    greenlets = [spawn(wait_here, event, "hidden", name=f"waiter {n}") for n in range(3)]
    gevent.sleep(0)

    text = all_stacks({greenlets[1]: "proj.add[id-1]"})

    event.set()
    gevent.joinall(greenlets)
    (head,) = (line for line in text.splitlines() if "waiter 0" in line)
    assert head.endswith("3 greenlets: proj.add[id-1], waiter 0, waiter 2")
    assert text.count("in wait_here") == 1
    assert "event.wait(DEADLINE_S)" in text
    assert "hidden" not in text


def test_greenlets_of_a_pool_at_rest_are_counted_not_listed() -> None:
    event = Event()

    def run(_request: object) -> None:
        event.wait(DEADLINE_S)

    pool = Pool(5, run)
    for _ in range(5):
        pool.submit(Request(None, None, None, acks_late=True))  # type: ignore[arg-type]
    with gevent.Timeout(DEADLINE_S):
        while pool.running < 5:
            gevent.sleep(0)
        event.set()
        while pool.running:
            gevent.sleep(0)

    text = all_stacks({})

    pool.stop()
    # Those of pools that other tests have left may stand at the same line.
    counted = re.search(r"--- (\d+) greenlets: \1 × pool\n", text)
    assert counted is not None
    assert int(counted[1]) >= 5


def test_threads_are_told_with_their_names_where_they_have_one() -> None:
    # Put together, so that the source lines in the text do not hold them.
    name = "-".join(("some", "thread"))
    thread = NativeThread(lambda own: own.wait(DEADLINE_S) or None, name=name)
    try:
        wait_until(lambda: f", {name}\n" in all_stacks({}), DEADLINE_S)
        text = all_stacks({})
    finally:
        thread.stop()

    assert "the hub's thread, which is writing this\n" in text
    assert text.startswith("stacks of ")


def test_ended_greenlets_are_not_told() -> None:
    name = "-".join(("soon", "gone"))
    event = Event()
    greenlet = spawn(wait_here, event, "", name=name)
    gevent.sleep(0)
    assert name in all_stacks({})

    event.set()
    greenlet.join(DEADLINE_S)

    assert name not in all_stacks({})


# --- what a greenlet waits for --------------------------------------------------------------------


class Holder:
    """Has what tasks wait for, as code in use has it."""

    def __init__(self) -> None:
        self.done = Event()
        self.results = [gevent.queue.Queue[object]()]
        self.lock = gevent.lock.BoundedSemaphore(1)
        self.lock.acquire()

    def queue(self, _name: str) -> Any:
        return self.results[0]

    def wait_done(self) -> None:
        self.done.wait(len(self.results))

    def wait_item(self) -> None:
        self.results[0].get(timeout=DEADLINE_S)

    def wait_called(self) -> None:
        self.queue("secret").get(True, timeout=DEADLINE_S)

    def wait_with(self) -> None:
        with self.lock:
            pass

    def wait_loop(self) -> None:
        for _ in self.queue("secret"):
            pass

    def wait_local(self) -> None:
        result: AsyncResult[None] = AsyncResult()
        result.get(*[True, DEADLINE_S])

    def wait_function(self) -> None:
        gevent.joinall([gevent.spawn(self.done.wait, DEADLINE_S)])

    def wait_text(self) -> None:
        "secret".join(self.queue("secret"))

    def wait_generator(self) -> None:
        list(str(each) for each in self.queue("secret"))  # noqa: C400  # it has a frame

    def sleep(self) -> None:
        gevent.sleep(30.25)

    def sleep_strangely(self) -> None:
        gevent.sleep(Seconds(30))

    def lock_thread(self) -> None:
        lock = gevent.thread.allocate_lock()
        lock.acquire()
        lock.acquire()

    def call_in_thread(self) -> None:
        gevent.get_hub().threadpool.apply(native_sleep, (0.2,))

    def process(self) -> None:
        gevent.subprocess.run(["sleep", "30"], check=False)


class Seconds(int):
    """A number that does not like to be shown."""

    def __format__(self, _spec: str) -> str:
        return "secret"


def native_sleep(seconds: float) -> None:
    gevent.monkey.get_original("time", "sleep")(seconds)


@pytest.fixture
def start() -> Iterator[Callable[[Callable[[], object]], Any]]:
    """Start greenlets and return each when it waits; end them afterwards."""
    started: list[Any] = []

    def start_one(run: Callable[[], object]) -> Any:
        started.append(gevent.spawn(run))
        gevent.sleep(0.01)
        return started[-1]

    yield start_one
    gevent.killall(started, timeout=DEADLINE_S)


@pytest.mark.parametrize(
    ("run", "told"),
    [
        ("sleep", "sleep 30.25"),
        ("sleep_strangely", "sleep"),
        ("wait_done", "self.done.wait()"),
        ("wait_item", "self.results[].get()"),
        ("wait_called", "self.queue().get()"),
        ("wait_with", "with self.lock"),
        ("wait_loop", "for … in self.queue()"),
        ("wait_local", "result.get()"),
        ("wait_function", "gevent.joinall()"),
        ("wait_text", "join()"),
        ("wait_generator", "Holder.wait_generator.<locals>.<genexpr>()"),
        ("lock_thread", "lock"),
        ("call_in_thread", "gevent.get_hub().threadpool.apply()"),
        ("process", "subprocess"),
    ],
)
def test_a_wait_is_told_by_what_it_is_for_without_values(
    start: Callable[..., Any], run: str, told: str
) -> None:
    assert waits_on(start(getattr(Holder(), run)).gr_frame) == told


def test_what_runs_waits_for_nothing() -> None:
    assert waits_on(gevent.getcurrent().gr_frame) == "running"


# --- the running tasks ----------------------------------------------------------------------------


def a_request(greenlet: Any, number: int = 1, *, started_s: float | None = 0.0) -> Any:
    message = SimpleNamespace(id=f"id-{number}", task="proj.wait", shadow=None)
    return SimpleNamespace(greenlet=greenlet, message=message, started_s=started_s, hub_s=0.0)


def test_running_tasks_are_counted_by_wait_and_the_oldest_told(start: Callable[..., Any]) -> None:
    # Given seven tasks that wait for one event, the first is the oldest, and two that sleep
    holder = Holder()
    requests = [a_request(start(holder.wait_done), n, started_s=10 + n) for n in range(7)]
    requests += [a_request(start(holder.sleep), n, started_s=20) for n in (7, 8)]

    told: Any = describe(reversed(requests), limit=3, now=30, hub_s_of=lambda request: 0.125)

    # Then all are counted, and three told
    assert told["running"] == 9
    assert told["groups"] == [
        {"waits_on": "self.done.wait()", "count": 7},
        {"waits_on": "sleep ~30", "count": 2},
    ]
    assert [each["id"] for each in told["greenlets"]] == ["id-0", "id-1", "id-2"]
    oldest = told["greenlets"][0]
    line = Holder.wait_done.__code__.co_firstlineno + 1
    assert oldest == {
        "id": "id-0",
        "name": "proj.wait",
        "age_s": 20,
        "hub_s": 0.125,
        "waits_on": "self.done.wait()",
        "stack": [f"{__file__}:{line} wait_done"],
    }


def test_kinds_of_wait_beyond_the_limit_are_counted_together(start: Callable[..., Any]) -> None:
    holder = Holder()
    runs = [holder.sleep, holder.sleep, holder.wait_done, holder.wait_with, holder.wait_item]
    told: Any = describe([a_request(start(run)) for run in runs], limit=2, now=1)

    assert told["groups"] == [
        {"waits_on": "sleep ~30", "count": 2},
        {"waits_on": "self.done.wait()", "count": 1},
        {"waits_on": "others", "count": 2},
    ]


def test_time_in_the_hub_that_nobody_has_measured_is_not_told_as_zero(
    start: Callable[..., Any],
) -> None:
    told: Any = describe([a_request(start(Holder().sleep))], limit=1, now=1)

    assert told["greenlets"][0]["hub_s"] is None


def test_the_task_that_asks_is_running_and_its_stack_ends_where_it_asks() -> None:
    def ask() -> Any:
        return describe([a_request(gevent.getcurrent())], limit=1, now=1)

    told = gevent.spawn(ask).get(timeout=DEADLINE_S)

    (only,) = told["greenlets"]
    assert only["waits_on"] == "running"
    assert only["stack"][-1].endswith(" ask")


def test_a_task_that_has_ended_meanwhile_or_not_yet_begun_does_no_harm(
    start: Callable[..., Any],
) -> None:
    requests = [a_request(None), a_request(start(Holder().sleep), 2, started_s=None)]

    told: Any = describe(requests, limit=5, now=1)

    assert told["running"] == 1
    assert told["greenlets"][0]["age_s"] == 0


def test_requests_that_begin_while_others_are_described_do_no_harm() -> None:
    requests: set[Any] = set()

    class Switching:
        """A request whose description lets another one begin."""

        started_s = None

        @property
        def greenlet(self) -> None:
            requests.add(object())

    requests.add(Switching())
    told: Any = describe(requests, limit=5, now=1)
    assert told["running"] == 0
    assert len(requests) == 2


def test_a_stack_has_no_frames_of_the_worker_at_its_outer_end() -> None:
    # Given a task in a pool, whose frames are below it
    event = Event()
    pool = Pool(1, lambda _request: wait_here(event, "hidden"))
    request: Any = Request(None, None, None, acks_late=True)  # type: ignore[arg-type]
    request.message = SimpleNamespace(id="id", task="proj.wait", shadow="called")
    pool.submit(request)
    with gevent.Timeout(DEADLINE_S):
        while not request.greenlet:
            gevent.sleep(0)

    told: Any = describe(pool.active, limit=1, now=time.monotonic())

    event.set()
    pool.stop()
    (only,) = told["greenlets"]
    assert only["name"] == "called"
    assert [line.rpartition(" ")[2] for line in only["stack"]] == ["<lambda>", "wait_here"]


def test_a_task_that_has_not_reached_its_own_code_has_its_whole_stack() -> None:
    # Given a greenlet that rests in the pool's own code
    pool = Pool(1, lambda _request: None)
    pool.submit(Request(None, None, None, acks_late=True))  # type: ignore[arg-type]
    with gevent.Timeout(DEADLINE_S):
        while not pool._resting:
            gevent.sleep(0)
    (resting,) = pool._greenlets

    told: Any = describe([a_request(resting)], limit=1, now=1)

    pool.stop()
    names = [line.rpartition(" ")[2] for line in told["greenlets"][0]["stack"]]
    assert names[0] == "_work"
