"""From a call to the message on its queue, with a broker that only notes what it is given."""

from __future__ import annotations

import json
import tracemalloc
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count, repeat
from typing import Any

import pytest

from greenq.config.queues import Broadcast
from greenq.config.settings import TaskConfig
from greenq.errors import (
    AccessRefused,
    ConfigError,
    ConnectFailed,
    ConnectionLost,
    EncodeError,
    NotAllSent,
    OperationalError,
    QueueFull,
    ServerError,
    Unroutable,
)
from greenq.protocol import envelope
from greenq.protocol.keys import Keys
from greenq.protocol.message import TaskMessage, decode
from greenq.protocol.serialize import accepted
from greenq.sending.producer import Producer

NO_PAUSE = {"interval_start": 0, "interval_step": 0, "interval_max": 0}


class FakeBroker:
    """Notes what is published; fails as often as it is told to."""

    def __init__(self, *, failures: list[OperationalError] | None = None) -> None:
        self.client = self
        self.call_timeout_s = 5.0
        self.keys = Keys()
        self.signer = None
        self.pushed: list[tuple[str, str, object]] = []
        self.pushes: list[int] = []
        self.asked_for: list[list[str]] = []
        self.tries = 0
        self.listeners = 1
        self.bindings: dict[tuple[str, str], list[str]] = {}
        self.published: list[tuple[str, str, str]] = []
        self.failures = failures or []

    def publish(
        self, queue: str, texts: Sequence[str], priority: object = 0, *, timeout_s: float
    ) -> None:
        self.tries += 1
        if self.failures:
            raise self.failures.pop(0)
        self.pushes.append(len(texts))
        self.pushed += [(queue, text, priority) for text in texts]

    def publish_once(
        self,
        queue: str,
        texts: Sequence[str],
        priority: object = 0,
        *,
        new_ids: Iterable[str],
        timeout_s: float,
    ) -> None:
        self.asked_for.append(list(new_ids))
        self.publish(queue, texts, priority, timeout_s=timeout_s)

    def broadcast(
        self, queue: str, texts: Sequence[str], routing_key: str, *, timeout_s: float
    ) -> int:
        self.tries += 1
        if self.failures:
            raise self.failures.pop(0)
        self.published += [(queue, routing_key, text) for text in texts]
        return self.listeners

    @contextmanager
    def pooled(self, _timeout_s: float, *, patient: bool) -> Iterator[None]:
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


def test_send_whose_answer_got_lost_is_not_said_to_have_failed() -> None:
    broker = FakeBroker(failures=[ConnectionLost("gone")] * 99)

    with pytest.raises(
        ConnectionLost, match=r"task id-7 may or may not have been sent to queue .*gone"
    ):
        send(broker, {"task_id": "id-7"})


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


# --- many ----------------------------------------------------------------------------------------


def send_many(
    broker: FakeBroker,
    calls: Iterable[Any],
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> Sequence[str]:
    return producer(broker, **settings).send_many("proj.add", calls, options or {})


def pairs(number: int) -> Iterator[tuple[tuple[int], dict[str, int]]]:
    return (((n,), {"x": n}) for n in range(number))


def messages(broker: FakeBroker) -> list[TaskMessage]:
    accept = accepted(["json"])
    return [
        decode(envelope.unwrap(text.encode()), accept=accept, max_body_bytes=1 << 20)
        for _, text, _ in broker.pushed
    ]


def test_many_are_sent_in_their_order_under_ids_of_their_own(broker: FakeBroker) -> None:
    ids = send_many(broker, pairs(450))

    sent = messages(broker)
    assert [(message.args, message.kwargs) for message in sent] == [
        ([n], {"x": n}) for n in range(450)
    ]
    assert [message.id for message in sent] == list(ids)
    assert len(set(ids)) == len(ids) == 450
    assert {uuid.UUID(task_id).version for task_id in ids} == {4}
    assert [message.root_id for message in sent] == list(ids)
    assert [message.argsrepr for message in sent[:2]] == ["(0,)", "(1,)"]


def test_pushes_are_bounded_in_count_and_in_size(broker: FakeBroker) -> None:
    send_many(broker, pairs(450))
    assert broker.pushes == [200, 200, 50]

    broker.pushes.clear()
    send_many(broker, ((("x" * 60_000,), {}) for _ in range(9)))
    assert broker.pushes == [4, 4, 1]


def test_messages_of_many_have_properties_of_their_own(broker: FakeBroker) -> None:
    ids = send_many(broker, pairs(3))

    found = [envelope.unwrap(text.encode()).properties for _, text, _ in broker.pushed]
    assert [each["correlation_id"] for each in found] == list(ids)
    assert len({each["delivery_tag"] for each in found}) == 3
    assert {each["reply_to"] for each in found} == {found[0]["reply_to"]}


def test_nothing_is_sent_for_no_call(broker: FakeBroker) -> None:
    assert len(send_many(broker, [])) == 0
    assert broker.tries == 0


def test_options_hold_for_all(broker: FakeBroker) -> None:
    send_many(
        broker,
        pairs(3),
        {"queue": "q", "priority": 6, "headers": {"trace": "t1"}, "root_id": "r", "parent_id": "p"},
    )

    assert [(queue, priority) for queue, _, priority in broker.pushed] == [("q", 6)] * 3
    for message in messages(broker):
        assert (message.headers["trace"], message.root_id, message.parent_id) == ("t1", "r", "p")


def test_expiry_counts_from_when_a_message_is_written(broker: FakeBroker) -> None:
    seen: list[datetime] = []

    def calls() -> Iterator[Any]:
        for call in pairs(401):
            seen.append(datetime.now(UTC))
            yield call

    send_many(broker, calls(), {"expires": 60.0})

    last = datetime.fromisoformat(messages(broker)[-1].expires or "") - timedelta(seconds=60)
    # The 201st item was asked for when the first push was over.
    assert seen[200] < last <= datetime.now(UTC)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        pytest.param(((object(),), {}), EncodeError, id="argument"),
        pytest.param(("text", {}), EncodeError, id="args are text"),
        pytest.param(((1,), 5), TypeError, id="kwargs are a number"),
        pytest.param(5, TypeError, id="no pair"),
        pytest.param(((1,), {}, 3), ValueError, id="three"),
    ],
)
@pytest.mark.parametrize("index", [0, 1, 199, 200, 205])
def test_wrong_item_is_named_and_all_before_it_are_sent(
    broker: FakeBroker, wrong: object, reason: type[Exception], index: int
) -> None:
    calls: list[Any] = [*pairs(index), wrong, *pairs(5)]

    with pytest.raises(NotAllSent, match=rf"proj\.add: {index} items were sent, and no") as caught:
        send_many(broker, calls)

    assert isinstance(caught.value.__cause__, reason)
    assert [message.args for message in messages(broker)] == [[n] for n in range(index)]
    assert list(caught.value.ids) == [message.id for message in messages(broker)]
    assert list(caught.value.unknown) == []


def test_error_of_the_iterable_comes_after_what_it_gave(broker: FakeBroker) -> None:
    def calls() -> Iterator[Any]:
        yield from pairs(3)
        raise LookupError("no more rows")

    with pytest.raises(NotAllSent, match=r"3 items were sent.*LookupError: no more") as caught:
        send_many(broker, calls())

    assert isinstance(caught.value.__cause__, LookupError)
    assert len(broker.pushed) == len(caught.value.ids) == 3


def test_wrong_option_is_an_error_before_anything_is_asked_for(broker: FakeBroker) -> None:
    asked: list[int] = []
    calls = ((asked.append(n) or (), {}) for n in range(3))  # type: ignore[func-returns-value]

    with pytest.raises(EncodeError, match="unknown serializer 'jason'"):
        send_many(broker, calls, {"serializer": "jason"})
    with pytest.raises(ConfigError, match="task_queues has only celery"):
        send_many(broker, calls, {"queue": "q"}, task_create_missing_queues=False)

    assert (asked, broker.tries) == ([], 0)


def test_push_whose_answer_is_lost_is_looked_for_as_a_whole(broker: FakeBroker) -> None:
    def calls() -> Iterator[Any]:
        for number, call in enumerate(pairs(250)):
            if number == 220:
                broker.failures += [ConnectionLost("cut"), ConnectFailed("away")]
            yield call

    ids = send_many(broker, calls(), {"retry_policy": NO_PAUSE})

    # Once lost, always looked for: that it could not be asked about says nothing.
    assert broker.asked_for == [list(ids[200:250])] * 2
    assert [message.id for message in messages(broker)] == list(ids)


@pytest.mark.parametrize(
    ("failures", "options", "unknown"),
    [
        pytest.param([ConnectFailed("away")] * 9, {}, 0, id="never reached"),
        pytest.param([ConnectionLost("cut")] * 9, {}, 50, id="lost"),
        pytest.param(
            [ConnectionLost("cut"), *[ConnectFailed("away")] * 9], {}, 50, id="lost at first"
        ),
        pytest.param([ConnectionLost("cut")], {"retry": False}, 50, id="lost, no retry"),
        pytest.param([AccessRefused("no")], {}, 0, id="refused"),
        pytest.param([ConnectionLost("cut"), AccessRefused("no")], {}, 50, id="lost, then refused"),
    ],
)
def test_server_that_goes_away_is_told_with_what_was_sent(
    broker: FakeBroker, failures: list[OperationalError], options: dict[str, Any], unknown: int
) -> None:
    def calls() -> Iterator[Any]:
        for number, call in enumerate(pairs(250)):
            if number == 220:
                broker.failures += failures
            yield call

    with pytest.raises(NotAllSent, match="200 items were sent") as caught:
        send_many(broker, calls(), {"retry_policy": NO_PAUSE | {"max_retries": 3}, **options})

    assert [message.id for message in messages(broker)] == list(caught.value.ids)
    assert (len(caught.value.ids), len(caught.value.unknown)) == (200, unknown)
    assert isinstance(caught.value.__cause__, OperationalError)
    assert ("the next 50 may have been" in str(caught.value)) is bool(unknown)


def test_slow_source_does_not_keep_what_it_gave(broker: FakeBroker) -> None:
    # A source that takes for ever to fill a push is helped by time, not by count.
    clock = count(0.0, 0.3)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("greenq.sending.producer.time.monotonic", lambda: next(clock))
        send_many(broker, pairs(10))

    assert len(broker.pushes) > 2
    assert sum(broker.pushes) == 10


@pytest.mark.slow
def test_many_take_no_memory() -> None:
    class Nowhere(FakeBroker):
        def publish(self, _queue: str, texts: Sequence[str], *_: Any, timeout_s: float) -> None:
            self.tries += len(texts)

    def peak_bytes(number: int) -> int:
        broker = Nowhere()
        tracemalloc.start()
        try:
            ids = send_many(broker, zip(((n, "text") for n in range(number)), repeat({})))
            assert (len(ids), broker.tries) == (number, number)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak_bytes(1_000)
    assert peak_bytes(40_000) < 1.1 * peak_bytes(2_000)


# --- one and many --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option",
    [
        {"priority": 1},
        {"ignore_result": True},
        {"time_limit": 5},
        {"serializer": "msgpack"},
        {"compression": "gzip"},
        {"queue": "q"},
        {"headers": {"a": 1}},
        {"shadow": "s"},
        {"correlation_id": "c"},
        {"argsrepr": "(...)"},
        {"countdown": 60},
        {"parent_id": "p"},
    ],
    ids=str,
)
def test_what_is_kept_of_one_sending_does_not_reach_another(option: dict[str, Any]) -> None:
    def shown(broker: FakeBroker, made: Producer, options: dict[str, Any]) -> list[Any]:
        broker.pushed.clear()
        made.send("proj.add", (1,), {}, {"task_id": "id-1", **options})
        ((queue, text, priority),) = broker.pushed
        element = json.loads(text)
        for gone in ("reply_to", "delivery_tag"):
            element["properties"].pop(gone)
        return [queue, priority, element]

    fresh, used = FakeBroker(), FakeBroker()
    made = producer(used)
    plain = shown(used, made, {})
    varied = shown(used, made, option)

    assert shown(used, made, {}) == plain == shown(fresh, producer(fresh), {})
    if "countdown" not in option:
        assert varied == shown(fresh, producer(fresh), option)
    assert varied != plain


def test_equal_options_of_other_types_are_written_as_they_are(broker: FakeBroker) -> None:
    made = producer(broker)

    for limit in (1, 1.0):
        made.send("proj.add", (), {}, {"time_limit": limit})

    written = [text.partition('"timelimit": ')[2].partition("]")[0] for _, text, _ in broker.pushed]
    assert written == ["[1, null", "[1.0, null"]


def test_whether_a_result_is_stored_is_left_to_the_task_unless_the_sender_says(
    broker: FakeBroker,
) -> None:
    made = producer(broker)

    for said in (None, True, False):
        options = {} if said is None else {"ignore_result": said}
        made.send("proj.add", (), {}, options)

    headers = [envelope.unwrap(text.encode()).headers for _, text, _ in broker.pushed]
    assert [each["ignore_result"] for each in headers] == [None, True, False]


def test_what_is_kept_is_bounded(broker: FakeBroker) -> None:
    made = producer(broker)

    for number in range(1000):
        made.send("proj.add", (), {}, {"queue": f"q{number}"})

    assert 0 < len(made._kept) <= 256
    assert [queue for queue, _, _ in broker.pushed] == [f"q{number}" for number in range(1000)]


@pytest.mark.parametrize("count", [1, 2])
def test_a_router_function_sees_each_message_of_many(broker: FakeBroker, count: int) -> None:
    def by_number(_task: str, args: Any, *_rest: Any, **_named: Any) -> Any:
        return f"q{args[0] // count}"

    calls = [((number,), {}) for number in range(6)]
    ids = producer(broker, task_routes=by_number).send_many("proj.add", calls, {"priority": 3})

    queues = [f"q{number // count}" for number in range(6)]
    assert [queue for queue, _, _ in broker.pushed] == queues
    assert [json.loads(text)["headers"]["id"] for _, text, _ in broker.pushed] == list(ids)
    assert {priority for _, _, priority in broker.pushed} == {3}


def test_what_a_router_function_cannot_route_ends_a_bulk_send(broker: FakeBroker) -> None:
    def picky(_task: str, args: Any, *_rest: Any, **_named: Any) -> Any:
        return {"queue": "q"} if args[0] < 3 else {"quue": "q"}

    calls = [((number,), {}) for number in range(6)]
    with pytest.raises(NotAllSent, match=r"(?s)3 items were sent.*must return a route") as caught:
        producer(broker, task_routes=picky).send_many("proj.add", calls, {})

    assert len(broker.pushed) == len(caught.value.ids) == 3


def test_a_router_function_is_asked_once_a_message(broker: FakeBroker) -> None:
    asked: list[Any] = []

    def note(*given: Any, **_named: Any) -> None:
        asked.append(given)

    sender = producer(broker, task_routes=[note])
    for number in range(3):
        sender.send("proj.add", (number,), {"x": 1}, {"priority": 2})

    assert asked == [("proj.add", (number,), {"x": 1}, {"priority": 2}) for number in range(3)]


def test_what_is_pushed_straight_to_a_queue_says_so(broker: FakeBroker) -> None:
    send(broker, {"queue": "q", "exchange": "news", "routing_key": "sport"})

    _, properties = sent(broker)
    # By this a Celery worker puts it back.
    assert properties["delivery_info"] == {"exchange": "", "routing_key": "q"}


def test_a_broadcast_that_no_one_listens_to_is_an_error(broker: FakeBroker) -> None:
    broker.listeners = 0

    with pytest.raises(Unroutable, match="no worker listens to exchange 'all'"):
        send(broker, {"queue": "all"}, **BROADCAST)
    assert broker.tries == 1


def test_a_full_queue_is_an_error_at_once(broker: FakeBroker) -> None:
    broker.failures = [QueueFull("queue 'q' has 5 waiting messages")]

    with pytest.raises(QueueFull, match="5 waiting messages"):
        send(broker, {"queue": "q"})
    assert broker.tries == 1


def test_a_message_to_be_pushed_by_others_needs_one_queue(broker: FakeBroker) -> None:
    broker.bindings = {("news", "sport"): ["a", "b"], ("news", "art"): ["a"]}
    sender = producer(broker, **BROADCAST)

    def prepare(**options: Any) -> Any:
        return sender.prepare("proj.add", (), {}, options)

    assert prepare(exchange="news", routing_key="art")["queue"] == "a"
    with pytest.raises(ValueError, match="leads to a, b"):
        prepare(exchange="news", routing_key="sport")
    with pytest.raises(ValueError, match="goes to every worker that listens"):
        prepare(queue="all")


# --- broadcast queues -----------------------------------------------------------------------------

BROADCAST: dict[str, Any] = {"task_queues": ["celery", Broadcast("all")]}


@pytest.mark.parametrize(
    ("options", "settings", "routing_key"),
    [
        ({"queue": "all"}, {}, "celery"),
        ({}, {"task_routes": {"proj.*": "all"}}, "celery"),
        ({}, {"task_default_queue": "all"}, "all"),
        ({"queue": "all"}, {"task_default_queue": "main"}, "main"),
        ({"queue": "all", "routing_key": "some"}, {}, "some"),
        ({"queue": "all", "routing_key": "all"}, {}, "celery"),
        ({"routing_key": "all"}, {}, "celery"),
        ({"exchange": "all"}, {}, "celery"),
        ({"exchange": "all", "routing_key": "some"}, {}, "some"),
        ({"queue": "all"}, {"task_create_missing_queues": False}, "celery"),
    ],
)
def test_messages_for_a_broadcast_queue_are_published(
    broker: FakeBroker, options: dict[str, Any], settings: dict[str, Any], routing_key: str
) -> None:
    send(broker, options, **BROADCAST | settings)

    ((queue, key, text),) = broker.published
    assert (queue, key) == ("all", routing_key)
    # As a Celery sender that has declared the exchange writes it.
    properties = json.loads(text)["properties"]
    assert properties["delivery_info"] == {"exchange": "all", "routing_key": routing_key}
    assert not broker.pushed


@pytest.mark.parametrize("options", [{}, {"queue": "other"}, {"queue": "celery"}])
def test_other_messages_are_pushed_beside_a_broadcast_queue(
    broker: FakeBroker, options: dict[str, Any]
) -> None:
    send(broker, options, **BROADCAST)

    assert len(broker.pushed) == 1
    assert not broker.published


def test_many_are_published_to_a_broadcast_queue_in_order(broker: FakeBroker) -> None:
    calls = [((number,), {}) for number in range(3)]

    ids = producer(broker, **BROADCAST).send_many("proj.add", calls, {"queue": "all"})

    sent_ids = [json.loads(text)["headers"]["id"] for _, _, text in broker.published]
    assert sent_ids == list(ids)


@pytest.mark.parametrize(
    ("failure", "tries", "published"),
    [
        # Nobody has heard it.
        (ConnectFailed("away"), 2, 1),
        # All may have: once more would be a second run on each.
        (ConnectionLost("cut"), 1, 0),
    ],
)
def test_broadcast_is_tried_again_only_if_nobody_can_have_heard_it(
    failure: OperationalError, tries: int, published: int
) -> None:
    broker = FakeBroker(failures=[failure])
    options = {"queue": "all", "retry_policy": NO_PAUSE}

    try:
        send(broker, options, **BROADCAST)
    except ConnectionLost:
        assert not published

    assert (broker.tries, len(broker.published)) == (tries, published)
