"""The description of all greenlets and threads."""

from __future__ import annotations

import re

import gevent
from gevent.event import Event

from greenq.hub import NativeThread, spawn
from greenq.pool import Pool
from greenq.request import Request
from greenq.stacks import all_stacks
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

    assert "the hub's; it is writing this\n" in text
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
