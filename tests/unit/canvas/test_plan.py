"""What a signature sends, for every shape: the right values, each id once, and no more bytes."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from greenq.canvas import plan
from greenq.canvas.signature import Signature
from tests.unit.canvas.shapes import SHAPES, Cluster, count, evaluate, values_of


def task(name: str, *args: Any, **options: Any) -> Signature:
    return Signature(name, args, options=options)


def sendable(shape: Any) -> bool:
    """Tell whether there is something to send: a chain without steps has no end."""
    with suppress(ValueError):
        return bool(plan.plan(shape))
    return False


@given(SHAPES, st.integers(0, 1000), st.booleans())
def test_every_shape_returns_what_it_says(shape: Any, seed: int, is_frozen: bool) -> None:
    assume(sendable(shape))
    cluster = Cluster(seed)
    sig = plan.freeze(shape)[0] if is_frozen else plan.plain(shape)
    made = plan.plan(json.loads(json.dumps(sig)), ("first",))
    cluster.send(made)
    cluster.run()

    assert values_of(made.handle, cluster.values) == evaluate(shape, "first")
    assert not cluster.waits


@given(SHAPES)
def test_frozen_signature_has_an_id_for_each_task_and_no_copies(shape: Any) -> None:
    assume(sendable(shape))
    frozen, handle = plan.freeze(shape)
    text = json.dumps(frozen)

    never = [each.task_id for each in plan.ids_of(frozen)]
    assert len(set(never)) == len(never) <= count(shape)
    assert len(text) <= 800 * (count(shape) + text.count('"subtask_type": "') + 1)
    # Frozen again, after travelling, it is the same.
    again, same = plan.freeze(json.loads(text))
    assert json.dumps(again) == text
    assert json.dumps(same) == json.dumps(handle)


@given(SHAPES)
def test_what_never_runs_is_what_would_have_run(shape: Any) -> None:
    assume(sendable(shape))
    frozen = plan.freeze(shape)[0]
    cluster = Cluster()
    cluster.send(plan.plan(frozen))
    cluster.run()

    assert {each.task_id for each in plan.ids_of(frozen)} == set(cluster.values)
