"""From a call to the message on its queue, with a broker that only notes what it is given."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from greenq.config import TaskConfig
from greenq.errors import ConnectFailed, EncodeError, OperationalError, ServerError
from greenq.producer import Producer
from greenq.protocol import envelope
from greenq.protocol.keys import Keys
from greenq.protocol.message import TaskMessage, decode
from greenq.protocol.serialize import accepted

NO_PAUSE = {"interval_start": 0, "interval_step": 0, "interval_max": 0}


class FakeBroker:
    """Notes what is published; fails as often as it is told to."""

    def __init__(self, *, failures: list[OperationalError] | None = None) -> None:
        self.client = self
        self.call_timeout_s = 5.0
        self.keys = Keys()
        self.pushed: list[tuple[str, str, object]] = []
        self.tries = 0
        self.bindings: dict[tuple[str, str], list[str]] = {}
        self._failures = failures or []

    def publish(
        self, queue: str, text: str, priority: object = 0, *, timeout_s: float | None = None
    ) -> None:
        assert timeout_s is not None
        self.tries += 1
        if self._failures:
            raise self._failures.pop(0)
        self.pushed.append((queue, text, priority))

    @contextmanager
    def pooled(self, _timeout_s: float) -> Iterator[None]:
        yield None

    def bound_queues(self, _connection: object, exchange: str, routing_key: str) -> list[str]:
        return self.bindings.get((exchange, routing_key), [])


@pytest.fixture
def broker() -> FakeBroker:
    return FakeBroker()


def producer(broker: FakeBroker, **settings: Any) -> Producer:
    return Producer(broker, TaskConfig(**settings))  # type: ignore[arg-type]


def send(broker: FakeBroker, options: dict[str, Any] | None = None, **settings: Any) -> str:
    return producer(broker, **settings).send("proj.add", (2, 2), {"x": 1}, options or {})


def sent(broker: FakeBroker) -> tuple[TaskMessage, dict[str, Any]]:
    ((_, text, _),) = broker.pushed
    unwrapped = envelope.unwrap(text.encode())
    message = decode(unwrapped, accept=accepted(["json", "msgpack"]), max_body_bytes=1 << 20)
    return message, dict(unwrapped.properties)


def test_message_carries_the_call(broker: FakeBroker) -> None:
    task_id = send(broker)

    message, properties = sent(broker)
    assert (message.task, message.id, list(message.args), message.kwargs) == (
        "proj.add", task_id, [2, 2], {"x": 1},
    )  # fmt: skip
    assert (message.root_id, message.parent_id, message.retries) == (task_id, None, 0)
    assert (message.argsrepr, message.kwargsrepr) == ("(2, 2)", "{'x': 1}")
    assert properties["correlation_id"] == task_id
    assert properties["delivery_info"]["routing_key"] == "celery"
    assert broker.pushed[0][0] == "celery"


@pytest.mark.parametrize(
    ("settings", "options", "queue", "priority"),
    [
        ({}, {}, "celery", 0),
        ({"task_default_queue": "main"}, {}, "main", 0),
        ({}, {"queue": "q", "priority": 6}, "q", 6),
        ({}, {"routing_key": "key"}, "key", 0),
        ({"task_default_priority": 3}, {}, "celery", 3),
        ({"task_default_priority": 3}, {"priority": 0}, "celery", 0),
        ({"task_routes": {"proj.*": {"queue": "r", "priority": 9}}}, {}, "r", 9),
        ({"task_routes": {"proj.*": {"queue": "r", "priority": 9}}}, {"queue": "q"}, "q", 9),
    ],
)
def test_queue_and_priority(
    broker: FakeBroker,
    settings: dict[str, Any],
    options: dict[str, Any],
    queue: str,
    priority: int,
) -> None:
    send(broker, options, **settings)

    ((to, _, with_priority),) = broker.pushed
    assert (to, with_priority) == (queue, priority)
    assert sent(broker)[1]["priority"] == priority


def test_times_are_written_with_their_zone(broker: FakeBroker) -> None:
    before = datetime.now(UTC)
    send(broker, {"countdown": 60, "expires": 120.0}, timezone="Europe/Berlin")
    after = datetime.now(UTC)

    message, properties = sent(broker)
    eta = datetime.fromisoformat(message.eta or "")
    expires = datetime.fromisoformat(message.expires or "")
    assert before <= eta - timedelta(seconds=60) <= after
    assert before <= expires - timedelta(seconds=120) <= after
    assert eta.utcoffset() in {timedelta(hours=1), timedelta(hours=2)}
    assert int(properties["expiration"]) == 120_000


def test_moments_are_written_as_given(broker: FakeBroker) -> None:
    moment = datetime(2031, 1, 2, 3, 4, 5, tzinfo=UTC)
    send(broker, {"eta": moment, "expires": moment - timedelta(days=9000)})

    message, properties = sent(broker)
    assert message.eta == "2031-01-02T03:04:05+00:00"
    # Over already: whoever takes it discards it.
    assert properties["expiration"] == "0"


@pytest.mark.parametrize("args", ["text", {"a": 1}, 5, {1, 2}])
def test_arguments_must_be_a_list(broker: FakeBroker, args: Any) -> None:
    with pytest.raises(EncodeError, match="must be a list or tuple"):
        producer(broker).send("proj.add", args, {}, {})

    assert broker.tries == 0


def test_what_cannot_be_serialized_is_not_sent(broker: FakeBroker) -> None:
    with pytest.raises(EncodeError):
        producer(broker).send("proj.add", (object(),), {}, {})

    assert broker.tries == 0


def test_exchange_leads_to_every_bound_queue(broker: FakeBroker) -> None:
    broker.bindings["news", "sport"] = ["a", "b"]

    send(broker, {"exchange": "news", "routing_key": "sport"})

    assert [queue for queue, _, _ in broker.pushed] == ["a", "b"]
    assert len({text for _, text, _ in broker.pushed}) == 1


def test_exchange_without_a_bound_queue_is_refused(broker: FakeBroker) -> None:
    with pytest.raises(OperationalError, match="no queue is bound to exchange 'news'"):
        send(broker, {"exchange": "news", "routing_key": "sport"})


@pytest.mark.parametrize(
    ("failures", "options", "tries"),
    [
        pytest.param(2, {"max_retries": 3}, 3, id="until it works"),
        pytest.param(3, {"max_retries": 3}, 4, id="the last try works"),
        pytest.param(9, {"max_retries": None}, 10, id="without end"),
    ],
)
def test_sending_is_tried_again_while_the_server_is_away(
    failures: int, options: dict[str, Any], tries: int
) -> None:
    broker = FakeBroker(failures=[ConnectFailed("away")] * failures)

    send(broker, {"retry_policy": NO_PAUSE | options})

    assert broker.tries == tries
    assert len(broker.pushed) == 1


@pytest.mark.parametrize(
    ("options", "settings", "tries"),
    [
        pytest.param({"retry_policy": NO_PAUSE | {"max_retries": 2}}, {}, 3, id="policy spent"),
        pytest.param({"retry": False}, {}, 1, id="retry=False"),
        pytest.param({}, {"task_publish_retry": False}, 1, id="setting"),
    ],
)
def test_sending_gives_up_with_the_task_s_id(
    options: dict[str, Any], settings: dict[str, Any], tries: int
) -> None:
    broker = FakeBroker(failures=[ConnectFailed("server is away")] * 99)

    with pytest.raises(OperationalError, match=r"task id-7 could not be sent.*server is away"):
        send(broker, {"task_id": "id-7", **options}, **settings)

    assert broker.tries == tries


def test_refusal_is_not_tried_again() -> None:
    broker = FakeBroker(failures=[ServerError("LPUSH", "WRONGTYPE no list")])

    with pytest.raises(ServerError, match="WRONGTYPE"):
        send(broker, {"retry_policy": NO_PAUSE})

    assert broker.tries == 1


def test_serializer_and_headers_go_along(broker: FakeBroker) -> None:
    send(broker, {"serializer": "msgpack", "headers": {"trace": "t1"}})

    ((_, text, _),) = broker.pushed
    assert json.loads(text)["content-type"] == "application/x-msgpack"
    message, _ = sent(broker)
    assert message.headers["trace"] == "t1"
