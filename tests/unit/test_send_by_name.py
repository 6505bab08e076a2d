"""`send_task` of a task that is registered here takes along what Celery's takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from greenq import Greenq
from greenq.protocol.envelope import unwrap
from tests.unit.rig import NOWHERE

OWN = {
    "queue": "own",
    "priority": 3,
    "expires": 60,
    "time_limit": 5,
    "soft_time_limit": 4,
    "ignore_result": True,
    "max_retries": 9,
}


@pytest.fixture
def app() -> Iterator[Greenq]:
    made = Greenq("proj", broker=NOWHERE, set_as_current=False)
    yield made
    made.close()


@pytest.fixture
def pushed(app: Greenq, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return what is pushed: the queue, and the message."""
    told: list[Any] = []

    def publish(queue: str, texts: list[str], *_rest: Any, **_options: Any) -> None:
        told.extend((queue, unwrap(text.encode())) for text in texts)

    monkeypatch.setattr(app.transport.broker, "publish", publish)
    return told


def sent(pushed: list[Any]) -> Any:
    queue, message = pushed.pop()
    headers = message.headers
    return (
        queue, message.properties["priority"], headers["timelimit"], bool(headers["expires"]),
        bool(headers["ignore_result"]),
    )  # fmt: skip


def test_options_of_the_task_hold(app: Greenq, pushed: list[Any]) -> None:
    app.task(name="t.add", **OWN)(lambda: None)

    app.send_task("t.add")
    # The worker knows whether a result is wanted.
    assert sent(pushed) == ("own", 3, [5, 4], True, False)
    app.send_task_many("t.add", [((), {})])
    assert sent(pushed) == ("own", 3, [5, 4], True, False)


def test_what_the_caller_says_comes_first(app: Greenq, pushed: list[Any]) -> None:
    app.task(name="t.add", **OWN)(lambda: None)

    app.send_task("t.add", queue="other", priority=0, time_limit=50, ignore_result=True)
    assert sent(pushed) == ("other", 0, [50, 4], True, True)


def test_a_name_that_is_not_registered_has_none(app: Greenq, pushed: list[Any]) -> None:
    app.send_task("t.elsewhere")
    assert sent(pushed) == ("celery", 0, [None, None], False, False)
