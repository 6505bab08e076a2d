"""Many canvas shapes at once: by greenq alone, from Celery, and between workers of both kinds."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import celery
import pytest
from celery.result import GroupResult as CeleryGroup

import greenq
from tests.interop.conftest import celery_client, greenq_client
from tests.interop.shapes import (
    SHAPES,
    Builder,
    Many,
    Queues,
    collects_ends_of_groups,
    flat,
    unordered,
    value,
)
from tests.servers import Server, celery_worker, greenq_worker

pytestmark = [pytest.mark.interop, pytest.mark.slow]

WAIT_S = 45
# What Celery's workers run, too.
COMMON = [name for name, shape in SHAPES.items() if not collects_ends_of_groups(shape)]
OURS, THEIRS = "for-greenq", "for-celery"


class Flow(NamedTuple):
    """A client of each kind, and the server, where a worker of each kind has its own queue."""

    ours: greenq.Greenq
    theirs: celery.Celery
    server: Server


@pytest.fixture(scope="module")
def flow(shared_server: Server) -> Iterator[Flow]:
    shared_server.flush()
    with ExitStack() as stack:
        stack.enter_context(greenq_worker(shared_server.url, "-Q", f"celery,{OURS}"))
        stack.enter_context(celery_worker(shared_server.url, "-Q", THEIRS))
        theirs = stack.enter_context(celery_client(shared_server.url))
        theirs.set_current()
        yield Flow(stack.enter_context(greenq_client(shared_server.url)), theirs, shared_server)


def values(handle: Any, until_s: float) -> Any:
    if isinstance(handle, greenq.GroupResult | CeleryGroup):
        return Many(flat([values(each, until_s) for each in handle.results]))
    return handle.get(timeout=max(0.5, until_s - time.monotonic()))


def run(
    app: Any, canvas: Any, queues: Queues, names: Iterable[str], *, ordered: bool = True
) -> dict[str, str]:
    """Send all these shapes, then join them; return those that went wrong, and how."""
    sent = {name: Builder(app, canvas, queues).build(SHAPES[name]).apply_async() for name in names}
    until_s = time.monotonic() + WAIT_S
    wrong = {}
    for name, handle in sent.items():
        expected = value(SHAPES[name])
        if isinstance(expected, Many):
            expected = flat(expected)
        try:
            got = values(handle, until_s)
        except Exception as exc:
            wrong[name] = f"{type(exc).__name__}: {exc}"
        else:
            if got != expected and (ordered or unordered(got) != unordered(expected)):
                wrong[name] = f"{got} instead of {expected}"
    return wrong


def test_there_are_enough() -> None:
    assert len(COMMON) >= 150


@pytest.mark.parametrize(
    "queues",
    [(OURS, OURS), (OURS, THEIRS), (THEIRS, OURS)],
    ids=["greenq alone", "header on greenq, body on Celery", "header on Celery, body on greenq"],
)
def test_sent_by_greenq(flow: Flow, queues: Queues) -> None:
    names = SHAPES if queues == (OURS, OURS) else COMMON
    assert run(flow.ours, greenq, queues, names) == {}
    flow.server.wait_settled()


def test_sent_by_celery_to_greenq(flow: Flow) -> None:
    assert run(flow.theirs, celery, (OURS, OURS), SHAPES, ordered=False) == {}
    flow.server.wait_settled()


def test_what_celery_loses_without_greenq(flow: Flow) -> None:
    lost = {"chord to a group, first", "chord to a group, on both sides"}
    assert run(flow.theirs, celery, (THEIRS, THEIRS), lost, ordered=False).keys() == lost
