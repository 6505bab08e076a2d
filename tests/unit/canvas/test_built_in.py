"""Celery's built-in tasks, which every worker has."""

from __future__ import annotations

import json
from typing import Any

import pytest

from greenq import Greenq
from greenq.canvas.built_in import BUILT_IN
from greenq.errors import NotRegistered
from tests.unit.canvas.outgoing import Outgoing


def called(app: Greenq, sig: Any) -> Any:
    """Run the message of a signature as a worker would."""
    data = json.loads(json.dumps(sig))
    return app.tasks[data["task"]](*data["args"], **data["kwargs"])


def test_maps_call_the_task_with_each_item(app: Greenq) -> None:
    add = app.tasks["add"]
    assert called(app, app.tasks["total"].map([[1, 2], [3]])) == [3, 3]
    assert called(app, add.starmap([(1, 1), (2, 2)])) == [2, 4]


def test_accumulate_returns_its_arguments(app: Greenq) -> None:
    accumulate = app.tasks["celery.accumulate"]
    assert accumulate([1, 2], index=0) == [1, 2]
    assert accumulate(1, 2) == (1, 2)


def test_chunks_send_their_parts(app: Greenq, outgoing: Outgoing) -> None:
    handle = called(app, app.tasks["add"].chunks([(1, 1), (2, 2), (3, 3)], 2))
    assert len(handle) == len(outgoing.messages) == 2


def test_nothing_needs_cleaning_up(app: Greenq) -> None:
    assert app.tasks["celery.backend_cleanup"]() is None


def test_they_are_made_for_workers_and_when_they_are_named(app: Greenq) -> None:
    assert sorted(app.tasks) == ["add", "total"]
    assert app.tasks["celery.map"] is app.tasks["celery.map"]
    assert len(app.tasks) == 3
    assert app.tasks.with_built_in().keys() == BUILT_IN.keys() | {"add", "total"}
    assert app.tasks.get("celery.nothing") is None
    with pytest.raises(NotRegistered):
        app.tasks["celery.nothing"]
