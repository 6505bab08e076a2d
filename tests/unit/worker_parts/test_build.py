"""Parts: what is chosen for a worker, what is switched off, and parts that are handed in."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from greenq import Greenq, Queue
from greenq.errors import ConfigError
from greenq.worker import Worker
from greenq.worker_parts.options import WorkerOptions
from greenq.worker_parts.parts import Parts
from tests.unit.rig import NOWHERE, KeptOutbox


def parts_of(options: WorkerOptions | None = None, /, given: Any = None, **settings: Any) -> Parts:
    app = Greenq("parts", broker=NOWHERE, set_as_current=False, **settings)
    return Worker(app, options or WorkerOptions(), **(given or {})).parts


def test_part_that_is_handed_in_reaches_those_that_use_it() -> None:
    outbox: Any = KeptOutbox()

    parts = parts_of(given={"outbox": outbox})

    assert parts.outbox is outbox
    assert parts.events._outbox is outbox


def test_parts_cannot_be_replaced_later() -> None:
    parts: Any = parts_of()
    with pytest.raises(dataclasses.FrozenInstanceError):
        parts.outbox = KeptOutbox()


def test_steps_that_are_switched_off_are_not_built() -> None:
    parts = parts_of(WorkerOptions(mingle=False, gossip=False, heartbeat=False, control=False))
    assert (parts.mingle, parts.gossip, parts.heart, parts.control) == (None, None, None, None)
    assert parts.autoscaler is None


def test_options_come_before_settings() -> None:
    settings = {"worker_concurrency": 7, "worker_send_task_events": True}
    assert parts_of(**settings).pool.size == 7
    assert parts_of(**settings).events.tasks is True

    parts = parts_of(WorkerOptions(concurrency=3, task_events=False), **settings)
    assert (parts.pool.size, parts.events.tasks) == (3, False)


def test_autoscaled_pool_begins_small() -> None:
    parts = parts_of(WorkerOptions(autoscale=(20, 4)))
    assert parts.pool.size == 4
    assert parts.autoscaler is not None
    assert (parts.autoscaler.most, parts.autoscaler.least) == (20, 4)


def test_worker_has_a_queue_of_its_own_with_worker_direct() -> None:
    parts = parts_of(WorkerOptions(hostname="me@host"), worker_direct=True)
    assert parts.queues.names == ("celery", "me@host.dq2")
    assert parts.queues.bindings_of("me@host.dq2")[0].exchange.name == "C.dq2"


@pytest.mark.parametrize(
    ("strategy", "turns"), [("round_robin", ("a", "a", "b", "a")), ("priority", ("a", "b"))]
)
def test_weights_count_if_queues_have_turns(strategy: str, turns: tuple[str, ...]) -> None:
    options = {"queue_order_strategy": strategy}
    queues = [Queue("a", weight=3), "b"]
    parts = parts_of(WorkerOptions(), task_queues=queues, broker_transport_options=options)
    assert parts.fetcher._plan.turns == turns
    assert parts.fetcher.queues == ("a", "b")


def test_worker_without_queues_is_refused() -> None:
    with pytest.raises(ConfigError, match="all of them are excluded"):
        parts_of(WorkerOptions(exclude_queues=("celery",)))
