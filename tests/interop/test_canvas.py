"""Workflows sent by greenq, run by Celery's workers, by greenq's, and by both together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from greenq import Greenq, chain, chord, chunks, group, signature, xstarmap
from greenq.result import GroupResult
from tests.interop.conftest import greenq_client
from tests.servers import Server, celery_worker, greenq_worker
from tests.support import wait_until

pytestmark = [pytest.mark.interop]

WAIT_S = 30


@pytest.fixture(scope="module", params=["celery", "greenq", "both"])
def app(shared_server: Server, request: pytest.FixtureRequest) -> Iterator[Greenq]:
    """A greenq client, with workers of one kind or of both."""
    shared_server.flush()
    with ExitStack() as stack:
        if request.param != "greenq":
            stack.enter_context(celery_worker(shared_server.url))
        if request.param != "celery":
            stack.enter_context(greenq_worker(shared_server.url))
        yield stack.enter_context(greenq_client(shared_server.url))


class Tasks:
    """Signatures of the worker's tasks, which the client knows by name only."""

    def __init__(self, app: Greenq) -> None:
        self.app = app

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **options: self.app.signature(f"shared.{name}", args, **options)


def values(handle: Any) -> Any:
    if isinstance(handle, GroupResult):
        return [values(each) for each in handle.results]
    return handle.get(timeout=WAIT_S)


SHAPES: dict[str, tuple[Callable[[Tasks], Any], Any]] = {
    "task": (lambda t: t.add(1, 2), 3),
    "chain": (lambda t: t.add(1, 1) | t.add(2) | t.add(3), 7),
    "immutable step": (lambda t: t.add(1, 1) | t.add(2, 3, immutable=True), 5),
    "group": (lambda t: group(t.add(i, i) for i in range(3)), [0, 2, 4]),
    "nested group": (
        lambda t: group(t.add(0, 0), group(t.add(1, 1), t.add(2, 2)), t.add(3, 3) | t.add(1)),
        [0, 2, 4, 7],
    ),
    "chord": (lambda t: chord([t.add(i, i) for i in range(4)], t.total()), 12),
    "chord of a generator": (lambda t: chord((t.add(i, i) for i in range(450)), t.total()), 202050),
    "chord without header": (lambda t: chord([], t.echo()), [[[]], {}]),
    "ordered": (
        lambda t: chord([t.sleep(0.3, 1), t.add(1, 1), group(t.add(1, 2), t.add(2, 2))], t.echo()),
        [[[1, 2, 3, 4]], {}],
    ),
    "group in the middle": (
        lambda t: t.add(1, 1) | group(t.add(10), t.add(20)) | t.total() | t.add(1),
        35,
    ),
    "two groups in the middle": (
        lambda t: t.add(1, 1) | group(t.add(10), t.add(20)) | group(t.total(), t.echo()) | t.echo(),
        [[[34, [[[12, 22]], {}]]], {}],
    ),
    "ends in a group": (lambda t: t.add(1, 1) | group(t.add(1), t.add(2)), [3, 4]),
    "body is a chain": (
        lambda t: chord([t.add(1, 1), t.add(2, 2) | t.add(5)], t.total() | t.add(1) | t.add(1)),
        13,
    ),
    "body is a group": (
        lambda t: chord([t.add(1, 1), t.add(2, 2)], group(t.total(), t.echo())),
        [6, [[[2, 4]], {}]],
    ),
    "chord in a header": (
        lambda t: chord([chord([t.add(1, 1), t.add(2, 2)], t.total()), t.add(1, 0)], t.total()),
        7,
    ),
    "chord of groups in a header": (
        lambda t: chord([chord([t.add(1, 1)], group(t.total(), t.total())), t.add(1, 0)], t.echo()),
        [[[[2, 2], 1]], {}],
    ),
    "chain with a group in a header": (
        lambda t: chord([t.add(1, 1) | group(t.add(1), t.add(2)), t.add(1, 0)], t.echo()),
        [[[[3, 4], 1]], {}],
    ),
    "chords in a chain": (
        lambda t: chain(
            chord([t.add(1, 1), t.add(1, 1)], t.total()),
            t.add(1),
            group(t.add(1), t.add(2)),
            t.total(),
            group(t.add(1), t.add(2)),
            t.total(),
        ),
        29,
    ),
    "group of one": (lambda t: t.add(1, 1) | group(t.add(1)) | t.add(1), 4),
    "map": (
        lambda t: signature("celery.map", (), {"task": t.total(), "it": [[1], [1, 2]]}),
        [1, 3],
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_it_is_run(app: Greenq, name: str) -> None:
    build, expected = SHAPES[name]
    sig = build(Tasks(app))
    sig._app = app
    assert values(sig.apply_async()) == expected


@pytest.mark.parametrize("name", SHAPES)
def test_it_is_run_frozen_and_from_json(app: Greenq, name: str) -> None:
    build, expected = SHAPES[name]
    sig = build(Tasks(app))
    sig._app = app
    handle = sig.freeze()
    signature(dict(sig), app=app).apply_async()
    assert values(handle) == expected


def test_maps_and_chunks(app: Greenq) -> None:
    add = Tasks(app).add()
    assert values(xstarmap(add, [(1, 1), (2, 2)], app=app).apply_async()) == [2, 4]
    parts = chunks(add, [(i, i) for i in range(5)], 2, app=app)
    assert values(parts.apply_async()) == [[0, 2], [4, 6], [8]]
    assert values((parts.group() | Tasks(app).echo()).apply_async()) == [
        [[[0, 2], [4, 6], [8]]],
        {},
    ]


def test_links_are_called(app: Greenq, shared_server: Server) -> None:
    t = Tasks(app)
    sig = t.add(1, 1)
    sig.link(t.add(10))
    handle = sig.apply_async()
    wait_until(lambda: handle.get(timeout=WAIT_S) == 2 and handle.children)
    (child,) = handle.children
    assert child.get(timeout=WAIT_S) == 12


def test_once_and_done_are_called_once(app: Greenq) -> None:
    t = Tasks(app)
    noted = t.fail_key().set(task_id="on-error-once")
    done = t.echo("done").set(task_id="on-done-once")
    members = [t.fail_value("no", n) for n in range(3)]
    failing = group([*members, t.add(1, 1)]).on_error(noted, once=True)
    failing._app = app
    failing.apply_async()
    with pytest.raises(KeyError):
        app.AsyncResult("on-error-once").get(timeout=WAIT_S)

    well = group(t.add(1, 1), t.add(2, 2)).on_done(done)
    well._app = app
    assert values(well.apply_async()) == [2, 4]
    assert app.AsyncResult("on-done-once").get(timeout=WAIT_S) == [["done"], {}]
