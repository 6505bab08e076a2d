"""Messages that receivers see and change before they are sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from greenq.config.settings import TaskConfig
from greenq.errors import ConnectFailed, EncodeError, NotAllSent, OperationalError
from greenq.protocol import envelope
from greenq.protocol.message import decode
from greenq.protocol.serialize import accepted
from greenq.sending.producer import Producer
from greenq.signals import after_task_publish, before_task_publish
from tests.unit.sending.test_producer import NO_PAUSE, FakeBroker

CONFIG = TaskConfig()


@pytest.fixture
def broker() -> FakeBroker:
    return FakeBroker()


@pytest.fixture
def producer(broker: FakeBroker) -> Producer:
    return Producer(broker, CONFIG)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def no_receivers_left() -> Iterator[None]:
    yield
    before_task_publish.receivers = []
    after_task_publish.receivers = []


def read(text: str) -> Any:
    return decode(envelope.unwrap(text.encode()), accept=accepted(["json"]), max_body_bytes=10**6)


def without_what_is_random(text: str) -> Any:
    element = json.loads(text)
    del element["properties"]["delivery_tag"]
    return element


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"queue": "other", "priority": 6, "headers": {"a": 1}, "root_id": "r", "parent_id": "p"},
        {"compression": "gzip", "ignore_result": True, "time_limit": 3, "shadow": "s"},
    ],
)
def test_a_message_that_nobody_changes_is_as_it_would_be_without_receivers(
    producer: Producer, broker: FakeBroker, options: dict[str, Any]
) -> None:
    calls: list[Any] = []

    def look(**kwargs: Any) -> None:
        calls.append(kwargs)

    sent = options | {"task_id": "i"}
    producer.send("t.add", (1, "x"), {"y": [2]}, sent)
    before_task_publish.connect(look)
    producer.send("t.add", (1, "x"), {"y": [2]}, sent)
    del look
    (queue, plain, priority), (queue2, announced, priority2) = broker.pushed
    assert (queue, priority) == (queue2, priority2)
    assert without_what_is_random(announced) == without_what_is_random(plain)
    assert list(json.loads(announced)["headers"]) == list(json.loads(plain)["headers"])
    (call,) = calls
    assert call["sender"] == "t.add"
    assert (call["exchange"], call["routing_key"], call["declare"]) == ("", queue, [queue])
    assert call["body"] == (
        (1, "x"), {"y": [2]}, dict.fromkeys(("callbacks", "errbacks", "chain", "chord"))
    )  # fmt: skip
    assert call["headers"]["id"] == call["properties"]["correlation_id"] == "i"
    assert call["retry_policy"]["max_retries"] == 3


def test_receiver_changes_headers_body_properties_and_policy(
    producer: Producer, broker: FakeBroker
) -> None:
    def change(body: Any, headers: Any, properties: Any, retry_policy: Any, **_: Any) -> None:
        headers["traceparent"] = "00-1"
        headers["timelimit"] = [9, None]
        headers["shadow"] = "shown"
        body[0].append(3)
        body[1]["more"] = True
        properties["priority"] = 12
        properties["app_id"] = "mine"
        retry_policy["max_retries"] = 0

    before_task_publish.connect(change)
    kwargs: dict[str, Any] = {}
    producer.send("t.add", [1, 2], kwargs, {})
    ((_queue, text, priority),) = broker.pushed
    message = read(text)
    assert message.headers == {"traceparent": "00-1"}
    assert (message.timelimit, message.shadow) == ((9, None), "shown")
    assert (message.args, message.kwargs) == ([1, 2, 3], {"more": True})
    properties = json.loads(text)["properties"]
    assert properties["priority"] == priority == 9
    assert properties["app_id"] == "mine"
    # The caller's own are left alone.
    assert kwargs == {}

    broker.failures = [ConnectFailed("no")]
    with pytest.raises(OperationalError):
        producer.send("t.add", [1, 2], {}, {"retry_policy": NO_PAUSE})
    assert broker.tries == 2


def test_after_publish_is_sent_after_the_push_alone(producer: Producer, broker: FakeBroker) -> None:
    pushed: list[Any] = []

    def look(sender: str, body: Any, headers: Any, **places: Any) -> None:
        del places["signal"]
        pushed.append((sender, len(broker.pushed), body[0], headers["task"], places))

    after_task_publish.connect(look)
    producer.send("t.add", (1,), {}, {})
    places = {"exchange": "", "routing_key": "celery"}
    assert pushed == [("t.add", 1, (1,), "t.add", places)]
    broker.failures = [ConnectFailed("no")]
    with pytest.raises(OperationalError):
        producer.send("t.add", (1,), {}, {"retry": False})
    assert len(pushed) == 1


def test_each_message_of_a_bulk_is_announced(producer: Producer, broker: FakeBroker) -> None:
    after: list[Any] = []

    def number(headers: Any, body: Any, properties: Any, **_: Any) -> None:
        headers["number"] = body[0][0] * 10
        # All messages of a push go to one list.
        properties["priority"] = 9

    def look(headers: Any, **_: Any) -> None:
        after.append((len(broker.pushes), headers["id"]))

    before_task_publish.connect(number)
    after_task_publish.connect(look)
    ids = producer.send_many("t.add", (((n,), {}) for n in range(250)), {})
    assert [read(text).headers["number"] for _, text, _ in broker.pushed] == [
        n * 10 for n in range(250)
    ]
    assert {priority for _, _, priority in broker.pushed} == {0}
    assert {json.loads(text)["properties"]["priority"] for _, text, _ in broker.pushed} == {0}
    assert after == [(1 if n < 200 else 2, task_id) for n, task_id in enumerate(ids)]


def test_of_a_bulk_that_fails_only_what_was_sent_is_told(
    producer: Producer, broker: FakeBroker
) -> None:
    after: list[Any] = []

    def look(body: Any, **_: Any) -> None:
        after.append(body[0])

    after_task_publish.connect(look)
    with pytest.raises(NotAllSent):
        producer.send_many("t.add", [((1,), {}), ((object(),), {})], {})
    assert after == [(1,)]


def test_what_a_receiver_adds_must_be_writable(producer: Producer, broker: FakeBroker) -> None:
    def spoil(headers: Any, **_: Any) -> None:
        headers["bad"] = object()

    before_task_publish.connect(spoil)
    with pytest.raises(EncodeError) as caught:
        producer.send("t.add", (), {}, {})
    assert not broker.pushed
    notes = [
        *getattr(caught.value, "__notes__", ()),
        *getattr(caught.value.__cause__, "__notes__", ()),
    ]
    assert any("receivers of before_task_publish" in note for note in notes)


def test_error_of_a_receiver_does_not_stop_the_sending(
    producer: Producer, broker: FakeBroker
) -> None:
    def fail(**_: Any) -> None:
        raise ValueError("no")

    before_task_publish.connect(fail)
    after_task_publish.connect(fail)
    producer.send("t.add", (), {}, {})
    assert len(broker.pushed) == 1


def test_wrong_arguments_are_refused_as_without_receivers(producer: Producer) -> None:
    def look(**_: Any) -> None: ...

    for _ in range(2):
        with pytest.raises(EncodeError, match="must be a list or tuple"):
            producer.send("t.add", "text", {}, {})
        with pytest.raises(TypeError, match="task_id"):
            producer.send("t.add", (), {}, {"task_id": 3})
        before_task_publish.connect(look)


def test_limit_of_the_body_holds_for_what_receivers_make_of_it(broker: FakeBroker) -> None:
    producer = Producer(broker, TaskConfig(task_max_body_bytes=2000))  # type: ignore[arg-type]

    def swell(body: Any, **_: Any) -> None:
        body[1]["x"] = "x" * 3000

    before_task_publish.connect(swell)
    with pytest.raises(EncodeError, match="task_max_body_bytes"):
        producer.send("t.add", (), {}, {})
