"""What the quick reader reads, it reads as the careful ones do; the rest it leaves to them."""

from __future__ import annotations

import json
import random
from base64 import b64encode
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import fields, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import pytest

from greenq.config.settings import TaskConfig
from greenq.errors import ContentDisallowed, DecodeError
from greenq.protocol import envelope, fast_decode, message, serialize
from greenq.protocol.keys import Keys
from greenq.protocol.message import TaskMessage
from greenq.sending.producer import Producer
from tests.vectors import load

ACCEPT = serialize.accepted(["json"])
MAX_BYTES = 1 << 20

HEADERS: dict[str, Any] = {
    "lang": "py", "task": "proj.add", "id": "id-1", "shadow": None, "eta": None, "expires": None,
    "group": None, "group_index": None, "retries": 0, "timelimit": [None, None], "root_id": "id-1",
    "parent_id": None, "argsrepr": "(1, 2)", "kwargsrepr": "{}", "origin": "gen1@host",
    "ignore_result": False, "replaced_task_nesting": 0, "stamped_headers": None, "stamps": {},
}  # fmt: skip
PROPERTIES: dict[str, Any] = {
    "correlation_id": "id-1", "reply_to": "client", "delivery_mode": 2,
    "delivery_info": {"exchange": "", "routing_key": "celery"}, "priority": 0,
    "body_encoding": "base64", "delivery_tag": "tag",
}  # fmt: skip
EMBED: dict[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
ELEMENT: dict[str, Any] = {
    "body": "", "content-encoding": "utf-8", "content-type": "application/json",
    "headers": HEADERS, "properties": PROPERTIES,
}  # fmt: skip
BODY: list[Any] = [[1, 2], {"k": "v"}, EMBED]


def element(
    body: bytes = b"[[1, 2], {}, {}]",
    *,
    headers: dict[str, Any] | None = None,
    properties: dict[str, Any] | None = None,
    **changes: Any,
) -> bytes:
    """Write a list element; `changes` are of its own keys, with _ for -."""
    whole = ELEMENT | {
        "body": b64encode(body).decode(),
        "headers": HEADERS | (headers or {}),
        "properties": PROPERTIES | (properties or {}),
        **{name.replace("_", "-"): value for name, value in changes.items()},
    }
    return json.dumps(whole).encode()


def read_quickly(raw: bytes) -> TaskMessage | None:
    return fast_decode.read(raw, accept=ACCEPT, max_body_bytes=MAX_BYTES)


def read_carefully(raw: bytes) -> TaskMessage:
    return message.decode(envelope.unwrap(raw), accept=ACCEPT, max_body_bytes=MAX_BYTES)


def check_same(raw: bytes, read: TaskMessage) -> None:
    careful = read_carefully(raw)
    for field in fields(TaskMessage):
        # The reprs tell 1 from 1.0 and True, -0.0 from 0.0, a list from a tuple, and the order of
        # keys.
        ours, theirs = getattr(read, field.name), getattr(careful, field.name)
        if isinstance(ours, MappingProxyType):
            ours = dict(ours)
        assert repr(ours) == repr(theirs), (field.name, raw)


# --- the two readers side by side ----------------------------------------------------------------

CASES = 6000

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 1.0, 2.5, "", "x", "é", "\u2028", "\ud800", "\x00", [], [1], {},
    {"a": 1}, [None, None], [1, 2], [1, 2.5], [1, 2, 3], [True, None], ["a", 1],
    {"__type__": "date", "__value__": "2020-01-01"}, 10**30, -(2**63) - 1, 1e308, 5e-324,
    float("nan"), float("inf"), {"_": 1}, {"redelivered": True}, {"redelivered": 1}, "base64",
    "utf-8", {"exchange": "e", "routing_key": "r", "redelivered": True},
]  # fmt: skip


def spoil(chance: random.Random, whole: dict[str, Any], body: list[Any]) -> None:
    """Change one thing somewhere in a message."""
    value = deepcopy(chance.choice(VALUES))
    headers, properties = whole["headers"], whole["properties"]
    match chance.randrange(8):
        case 0:
            headers[chance.choice([*HEADERS, "redelivered", "own", "compression"])] = value
        case 1:
            properties[chance.choice([*PROPERTIES, "redelivered", "deliveries", "own"])] = value
        case 2:
            whole[chance.choice([*ELEMENT, "own"])] = value
        case 3:
            gone = chance.choice([whole, headers, properties])
            gone.pop(chance.choice(list(gone)), None)
        case 4:
            body[chance.randrange(len(body))] = value
        case 5:
            body.append(value)
        case 6:
            body.pop()
        case _:
            body[2][chance.choice([*EMBED, "own"])] = value


def random_element(chance: random.Random) -> bytes:
    whole, body = deepcopy(ELEMENT), deepcopy(BODY)
    for _ in range(chance.choice([0, 1, 1, 1, 2])):
        try:
            spoil(chance, whole, body)
        except (TypeError, KeyError, IndexError, AttributeError):
            # A first change has left no place for a second.
            break
    if whole.get("body") == "":
        text = json.dumps(body, ensure_ascii=chance.random() < 0.5)
        whole["body"] = b64encode(text.encode("utf-8", "surrogatepass")).decode()
    raw = json.dumps(whole, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
    if chance.random() < 0.1:
        place = chance.randrange(len(raw))
        raw = raw[:place] + bytes([chance.randrange(256)]) + raw[place + 1 :]
    return raw


def test_quick_and_careful_readers_agree_on_random_messages() -> None:
    chance = random.Random(20310102)
    read_count = refused_count = 0
    for _ in range(CASES):
        raw = random_element(chance)
        read = read_quickly(raw)
        if read is not None:
            read_count += 1
            check_same(raw, read)
            continue
        try:
            read_carefully(raw)
        except (DecodeError, ContentDisallowed):
            refused_count += 1

    # All three happen often: read by both, by the careful ones alone, and by neither.
    assert read_count > CASES / 5
    assert refused_count > CASES / 5
    assert CASES - read_count - refused_count > CASES / 20


@pytest.mark.parametrize(
    "value",
    [
        *("0", "-0", "-0.0", "1E5", "1.0e+5", "1e-400", "5e-324", "2.2250738585072011e-308"),
        *("1e23", "9007199254740993.0", "0.1234567890123456789012345", "18446744073709551616"),
        *("-9223372036854775809", "123456789012345678901234567890"),
        *(r'"\ud83d\ude00"', r'"\u00e9\/\b\f\n\r\t\"\\"', '"\x7f"', '"😀\uffff"', '{"a":1,"a":2}'),
        " [ 1 ,\t2\r\n] ",
    ],
)
def test_value_is_read_quickly_and_the_same(value: str) -> None:
    raw = element(f'[[{value}], {{"key": {value}}}, {{}}]'.encode())

    read = read_quickly(raw)

    assert read is not None
    check_same(raw, read)


@pytest.mark.parametrize(
    "value",
    [
        *("NaN", "Infinity", "-Infinity", "1e400", "01", "1.", ".5", "+1", "-", "1e", "tru", "'a'"),
        *(r'"\ud800"', r'"\ude00\ud83d"', r'"\x"', '"\n"', '"\x00"', "[" * 50_000 + "]" * 50_000),
        *('{"__type__": "date", "__value__": "2031-01-02"}', '{"__type__": 1}', '"__type__"'),
        r'{"\u005f_type__": "date", "__value__": "2031-01-02"}',
        r'{"\u005F_type__": "date", "__value__": "2031-01-02"}',
        r'{"__t\u0079pe__": "date", "__value__": "2031-01-02"}',
        r'{"__ty\u0070e__": "date", "__value__": "2031-01-02"}',
        r'{"__typ\u0065__": "date", "__value__": "2031-01-02"}',
    ],
)
def test_value_is_left_to_the_careful_readers(value: str) -> None:
    assert read_quickly(element(f"[[{value}], {{}}, {{}}]".encode())) is None


@pytest.mark.parametrize("text", [b"\xed\xa0\x80", b"\xc0\xaf", b"\xff", b"\xf4\x90\x80\x80"])
def test_text_that_is_no_utf_8_is_left_to_the_careful_readers(text: bytes) -> None:
    assert read_quickly(element(b'[["%b"], {}, {}]' % text)) is None
    assert read_quickly(element().replace(b"proj.add", text)) is None


# --- what is left to the careful readers ---------------------------------------------------------

V1_BODY = json.dumps({"task": "proj.add", "id": "id-1", "args": [1], "kwargs": {}}).encode()


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(element(V1_BODY), id="protocol 1"),
        pytest.param(element(headers={"compression": "gzip"}), id="compression"),
        pytest.param(element(headers={"compression": None}), id="no compression, but named"),
        pytest.param(element(headers={"own": 1}), id="own header"),
        pytest.param(element(headers={"stamps": {"a": 1}}), id="stamps"),
        pytest.param(element(headers={"stamped_headers": ["a"]}), id="stamped headers"),
        pytest.param(element(headers={"task": ""}), id="no name"),
        pytest.param(element(headers={"task": "\ud800"}), id="lone surrogate in a name"),
        pytest.param(element(headers={"retries": True}), id="retries of another type"),
        pytest.param(element(headers={"timelimit": [1]}), id="half a time limit"),
        pytest.param(
            element(headers={"eta": {"__type__": "datetime", "__value__": "2031-01-02T00:00:00"}}),
            id="extended type in a header",
        ),
        pytest.param(element(properties={"own": 1}), id="own property"),
        pytest.param(element(properties={"body_encoding": "utf-8"}), id="body not in base64"),
        pytest.param(element(properties={"delivery_info": None}), id="no delivery_info"),
        pytest.param(
            element(properties={"delivery_info": PROPERTIES["delivery_info"] | {"own": 1}}),
            id="own part of delivery_info",
        ),
        pytest.param(element(content_type="application/x-yaml"), id="YAML"),
        pytest.param(element(content_type="application/x-python-serialize"), id="pickle"),
        pytest.param(element().replace(b'"body": "', b'"body": "W'), id="body is no base64"),
        pytest.param(element(b"[[], {}]"), id="body of two"),
        pytest.param(element(b"[{}, {}, {}]"), id="arguments are no list"),
        pytest.param(element(b'[[], {}, {"own": 1}]'), id="own part of embed"),
        pytest.param(element(b"[[], {}, null]"), id="no embed"),
        pytest.param(element() + b"x", id="more behind"),
        pytest.param(b"\xef\xbb\xbf" + element(), id="byte order mark"),
        pytest.param(b"[]", id="no object"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_message_is_left_to_the_careful_readers(raw: bytes) -> None:
    assert read_quickly(raw) is None


def test_json_is_not_read_quickly_unless_it_is_accepted() -> None:
    accept = serialize.accepted(["pickle"])

    assert fast_decode.read(element(), accept=accept, max_body_bytes=MAX_BYTES) is None


def test_body_may_be_as_long_as_the_limit_and_no_longer() -> None:
    body = b'[["%b"], {}, {}]' % (b"x" * 100)

    def read(most: int) -> TaskMessage | None:
        return fast_decode.read(element(body), accept=ACCEPT, max_body_bytes=most)

    assert read(len(body)) is not None
    assert read(len(body) - 1) is None


# --- what must be read quickly -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "properties", "redelivered"),
    [
        ({}, {}, False),
        ({"redelivered": True}, {}, True),
        ({"redelivered": False}, {}, False),
        ({}, {"delivery_info": PROPERTIES["delivery_info"] | {"redelivered": True}}, True),
        ({}, {"deliveries": 2}, False),
    ],
)
def test_redelivered_message_is_read_quickly(
    headers: dict[str, Any], properties: dict[str, Any], redelivered: bool
) -> None:
    raw = element(headers=headers, properties=properties)

    read = read_quickly(raw)

    assert read is not None
    check_same(raw, read)
    assert read.redelivered is redelivered


def test_message_that_a_dead_worker_held_is_read_quickly() -> None:
    raw = envelope.mark_redelivered(element(), 3).encode()

    read = read_quickly(raw)

    assert read is not None
    check_same(raw, read)
    assert read.redelivered


def is_common(raw: bytes) -> bool:
    """Tell by other means whether a recorded message is of the common kind."""
    try:
        wrapped = envelope.unwrap(raw)
        body = json.loads(wrapped.body)
    except (DecodeError, ValueError):
        return False
    return (
        wrapped.content_type == "application/json"
        and wrapped.headers.keys() <= HEADERS.keys() | {"redelivered"}
        and not wrapped.headers.get("stamps")
        and not wrapped.headers.get("stamped_headers")
        and wrapped.properties.keys() <= PROPERTIES.keys() | {"expiration"}
        and isinstance(body, list)
        and b"__type__" not in wrapped.body
    )


RECORDED = [
    command
    for command in load.sent("LPUSH", "RPUSH")
    if b'"lang": "py"' in command.args[2] and is_common(command.args[2])
]


def test_most_of_what_celery_sends_is_read_quickly_and_the_same() -> None:
    assert len(RECORDED) > 80
    for command in RECORDED:
        read = read_quickly(command.args[2])
        assert read is not None, command.label
        check_same(command.args[2], read)


class FakeBroker:
    """Keeps what is published."""

    def __init__(self) -> None:
        self.client = self
        self.call_timeout_s = 5.0
        self.keys = Keys()
        self.signer = None
        self.texts: list[str] = []

    def publish(self, _queue: str, texts: Sequence[str], _priority: object, **_: Any) -> None:
        self.texts += texts


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "countdown and expires": {"countdown": 10, "expires": 60},
    "eta": {"eta": datetime(2031, 1, 2, tzinfo=UTC)},
    "priority": {"priority": 6},
    "queue": {"queue": "mail"},
    "names": {"shadow": "shown", "task_id": "é😀", "correlation_id": "c", "reply_to": "r"},
    "limits": {"time_limit": 10, "soft_time_limit": 2.5},
    "no result": {"ignore_result": True},
    "family": {"group_id": "g", "group_index": 1, "root_id": "r", "parent_id": "p"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_what_our_own_sender_sends_is_read_quickly_and_the_same(options: dict[str, Any]) -> None:
    broker: Any = FakeBroker()
    producer = Producer(broker, TaskConfig())
    arguments = (1, 2.5, "é😀", None, [True], {"a": {"b": []}}), {"x": "y"}

    producer.send("proj.add", *arguments, options)
    producer.send_many("proj.add", [arguments, arguments], {})

    assert len(broker.texts) == 3
    for text in broker.texts:
        read = read_quickly(text.encode())
        assert read is not None
        check_same(text.encode(), read)
    # The next run of a retry, too, which is written from a message that was read.
    first = read_quickly(broker.texts[0].encode())
    assert first is not None
    following = producer.write(replace(first, retries=1), queue="celery", priority=0)["text"]
    read = read_quickly(following.encode())
    assert read is not None
    assert read.retries == 1
