"""A request is settled once, and names itself as the log does."""

from __future__ import annotations

from typing import Any

import pytest

from greenq.errors import SoftTimeLimitExceeded, TaskTerminated, TimeLimitExceeded
from greenq.protocol.envelope import wrap
from greenq.protocol.message import TaskMessage
from greenq.running.request import Request
from greenq.transport.fetch import Delivery


def make_request(*, shadow: str | None = None, **properties: Any) -> Request:
    message = TaskMessage(task="proj.add", id="id-1", args=[], kwargs={}, shadow=shadow)
    raw = wrap(b"", content_type="", content_encoding="", headers={}, properties=properties)
    task: Any = None
    return Request(Delivery("tag:1", "mail", raw.encode()), message, task, acks_late=True)


def test_only_the_first_may_settle() -> None:
    request = make_request()

    assert [request.settle() for _ in range(3)] == [True, False, False]


@pytest.mark.parametrize(
    ("shadow", "text"), [(None, "proj.add[id-1]"), ("nicer name", "nicer name[id-1]")]
)
def test_request_reads_as_task_and_id(shadow: str | None, text: str) -> None:
    assert str(make_request(shadow=shadow)) == text


def test_delivery_info_falls_back_on_the_queue() -> None:
    assert make_request().delivery_info == {
        "exchange": "",
        "routing_key": "mail",
        "priority": 0,
        "redelivered": False,
    }
    given = make_request(priority=6, delivery_info={"exchange": "e", "routing_key": "k"})
    assert given.delivery_info["exchange"] == "e"
    assert given.delivery_info["routing_key"] == "k"
    assert given.delivery_info["priority"] == 6


class Greenlet:
    """Stands for the one that runs a request."""

    def __init__(self) -> None:
        self.thrown: list[BaseException] = []

    def throw(self, exc: BaseException) -> None:
        self.thrown.append(exc)


@pytest.mark.parametrize("in_code", [None, False])
def test_only_the_tasks_own_code_is_interrupted(in_code: bool | None) -> None:
    request, greenlet = make_request(), Greenlet()
    request.greenlet, request.in_code = greenlet, in_code  # type: ignore[assignment]

    assert not request.interrupt(TaskTerminated(TimeLimitExceeded(1)))

    assert greenlet.thrown == []
    assert request.killed is None


def test_what_ends_the_code_first_decides() -> None:
    request, greenlet = make_request(), Greenlet()
    request.greenlet, request.in_code = greenlet, True  # type: ignore[assignment]
    soft = SoftTimeLimitExceeded(1)
    kills = [TaskTerminated(TimeLimitExceeded(number)) for number in range(2)]

    assert request.interrupt(soft)
    assert request.killed is None
    assert [request.interrupt(kill) for kill in kills] == [True, True]

    assert greenlet.thrown == [soft, *kills]
    assert request.killed is kills[0]


def test_nothing_in_a_name_or_an_id_breaks_a_line() -> None:
    message = TaskMessage(task="t", id="i\n\x1b[2J", shadow="s\u202e\r")
    task: Any = None
    request = Request(Delivery("", "q", b""), message, task, acks_late=False)

    assert str(request) == r"s\u202e\r[i\n\x1b[2J]"
