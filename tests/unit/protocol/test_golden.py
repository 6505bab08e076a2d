"""What a real Celery 5.7 put on the wire is read, and written again byte for byte."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import pytest
import yaml

from greenq.errors import ContentDisallowed, DecodeError
from greenq.protocol import compress, envelope, message, serialize
from greenq.protocol.keys import Keys, binding_member, topic_pattern
from greenq.protocol.meta import COMPRESSED_MARK, decode_result, encode_result
from greenq.protocol.template import Template
from tests.vectors import load

ACCEPT = serialize.accepted(["json", "pickle", "yaml", "msgpack"])
MAX_BYTES = 1 << 20
SERIALIZERS = {serialize.content_type_of(name): name for name in serialize.SERIALIZERS}
# The elements that are no envelope, or no readable task call, in captures made to show just that.
NO_ENVELOPE = {
    command.label
    for command in load.commands("malformed_element")
    if command.args[0] == b"LPUSH" and b"delivery_tag" not in command.args[2]
}
ELEMENTS = [
    command
    for command in load.sent("LPUSH", "RPUSH", "PUBLISH")
    if b"task-meta" not in command.args[1]
    and b"taskset-meta" not in command.args[1]
    and command.label not in NO_ENVELOPE
]
TASKS = [command for command in ELEMENTS if b'"lang": "py"' in command.args[2]]
RESULTS = [
    command for command in load.sent("SETEX") if command.args[1].find(b"celery-task-meta-") >= 0
]


def by_label(commands):
    return [pytest.param(command, id=command.label) for command in commands]


def read(command):
    return envelope.unwrap(command.args[2])


def test_captures_are_as_many_as_the_tests_rely_on():
    assert len(TASKS) > 100
    assert len(RESULTS) > 60
    assert len(ELEMENTS) > 200
    assert len(NO_ENVELOPE) == 6


@pytest.mark.parametrize("command", by_label(ELEMENTS))
def test_element_is_written_again_byte_for_byte(command):
    wrapped = read(command)
    again = envelope.wrap(
        wrapped.body,
        content_type=wrapped.content_type,
        content_encoding=wrapped.content_encoding,
        headers=wrapped.headers,
        properties=wrapped.properties,
    )
    assert again.encode() == command.args[2]


@pytest.mark.parametrize("command", by_label(TASKS))
def test_task_properties_are_built_in_the_recorded_order(command):
    recorded = read(command).properties
    given = dict(recorded)
    info = given.pop("delivery_info")
    info_names = list(info)
    given.pop("body_encoding")
    built = envelope.task_properties(
        queue="unused", exchange=info["exchange"], routing_key=info["routing_key"], **given
    )
    if "redelivered" in info_names:
        built["delivery_info"]["redelivered"] = True
    assert json.dumps(built) == json.dumps(recorded)


@pytest.mark.parametrize("command", by_label(TASKS))
def test_task_is_encoded_again_byte_for_byte(command):
    wrapped = read(command)
    if wrapped.content_type not in ACCEPT:
        with pytest.raises(ContentDisallowed):
            message.decode(wrapped, accept=ACCEPT, max_body_bytes=MAX_BYTES)
        return
    if command.args[2].find(b"\"argsrepr\": \"({'__type__': 'mine'") >= 0:
        with pytest.raises(DecodeError, match="unknown __type__ 'mine'"):
            message.decode(wrapped, accept=ACCEPT, max_body_bytes=MAX_BYTES)
        return
    call = message.decode(wrapped, accept=ACCEPT, max_body_bytes=MAX_BYTES)
    serializer = SERIALIZERS[wrapped.content_type]
    compression = wrapped.headers.get("compression")
    encoded = message.encode(call, serializer=serializer, compression=compression)

    assert json.dumps(encoded.headers) == json.dumps(wrapped.headers)
    assert encoded.content_type == wrapped.content_type
    assert encoded.content_encoding == wrapped.content_encoding
    if compression:
        # The bytes of a compressed body depend on the version of the compressor.
        expanded = [
            compress.decompress(body, compression, MAX_BYTES)
            for body in (encoded.body, wrapped.body)
        ]
        assert expanded[0] == expanded[1]
    elif serializer == "pickle":
        assert pickle.loads(encoded.body) == pickle.loads(wrapped.body)
    else:
        assert encoded.body == wrapped.body


def is_template_comparable(command):
    """Tell whether a message is as its sender wrote it, its body with nothing but JSON's types."""
    wrapped = read(command)
    return (
        wrapped.content_type == "application/json"
        and not wrapped.headers.keys() & {"compression", "redelivered"}
        and b"__type__" not in wrapped.body
    )


@pytest.mark.parametrize("command", by_label(filter(is_template_comparable, TASKS)))
def test_template_is_filled_byte_for_byte(command):
    wrapped = read(command)
    call = message.decode(wrapped, accept=ACCEPT, max_body_bytes=MAX_BYTES)
    given = dict(wrapped.properties)
    info, tag, _ = (given.pop(name) for name in ("delivery_info", "delivery_tag", "body_encoding"))
    filled = Template(call, queue="unused", **info, **given).fill(
        call.id,
        call.args,
        call.kwargs,
        delivery_tag=tag,
        root_id=call.root_id,
        parent_id=call.parent_id,
        group_index=call.group_index,
    )
    assert filled.encode() == command.args[2]


def is_repr_comparable(command):
    """Tell whether the arguments can be had back: JSON loses which lists were tuples."""
    wrapped = read(command)
    headers = wrapped.headers
    return headers["argsrepr"].startswith("(") and not (
        "(" in headers["kwargsrepr"]
        or b"__type__" in wrapped.body
        or wrapped.content_type not in ACCEPT
    )


@pytest.mark.parametrize("command", by_label(filter(is_repr_comparable, TASKS)))
def test_reprs_are_made_as_recorded(command):
    wrapped = read(command)
    call = message.decode(wrapped, accept=ACCEPT, max_body_bytes=MAX_BYTES)
    made = message.encode(replace(call, args=tuple(call.args), argsrepr=None, kwargsrepr=None))
    assert made.headers["argsrepr"] == wrapped.headers["argsrepr"]
    assert made.headers["kwargsrepr"] == wrapped.headers["kwargsrepr"]


def test_repr_of_every_extended_type_is_as_recorded():
    (command,) = [c for c in TASKS if c.capture == "json_types" and b"datetime" in c.args[2]]
    wrapped = read(command)
    call = message.decode(wrapped, accept=ACCEPT, max_body_bytes=MAX_BYTES)
    as_sent = [tuple(value) if value == [1, 2] else value for value in call.args]
    as_sent[-1] = {5: "int key"}
    assert serialize.saferepr(tuple(as_sent)) == wrapped.headers["argsrepr"]


def test_version_1_task_is_read():
    pushed = [c for c in load.commands("protocol1") if c.args[0] == b"LPUSH"]
    plain, later, *_ = [
        message.decode(read(c), accept=ACCEPT, max_body_bytes=MAX_BYTES)
        for c in pushed
        if not read(c).headers
    ]
    assert (plain.task, plain.args, plain.kwargs) == ("wireapp.add", [2, 2], {})
    assert (plain.retries, plain.timelimit, plain.eta) == (0, (None, None), None)
    assert plain.id == read(pushed[0]).properties["correlation_id"]
    assert later.eta == "2026-11-21T00:09:36.976762+00:00"
    assert later.callbacks[0]["task"] == "wireapp.mul"


@pytest.mark.parametrize("label", sorted(NO_ENVELOPE))
def test_element_that_is_no_envelope_is_refused(label):
    (command,) = [c for c in load.commands("malformed_element") if c.label == label]
    with pytest.raises(DecodeError) as caught:
        message.decode(read(command), accept=ACCEPT, max_body_bytes=MAX_BYTES)
    # Where the element is an envelope of sorts, the error carries its body.
    assert caught.value.raw in (command.args[2], b"W10=")


@pytest.mark.parametrize("command", by_label(load.sent("HSET")))
def test_held_message_is_written_again_byte_for_byte(command):
    text, exchange, routing_key, element = envelope.unhold(command.args[3])
    assert text == json.dumps(json.loads(text))
    assert element == json.loads(text)
    assert envelope.hold(text, exchange, routing_key).encode() == command.args[3]


@pytest.mark.parametrize("capture", ["kill9_restore", "reject_ignore"])
def test_restored_message_is_marked_as_recorded(capture):
    commands = load.commands(capture)
    restored = 0
    for at, command in enumerate(commands):
        if command.args[0] != b"HGET" or command.args[1] != b"unacked" or not command.reply:
            continue
        held = envelope.unhold(command.reply)
        pushed = next(c for c in commands[at:] if c.args[0] in (b"LPUSH", b"RPUSH"))
        assert envelope.mark_redelivered(held.text).encode() == pushed.args[2]
        assert held.redelivered().encode() == pushed.args[2]
        restored += 1
    assert restored


@pytest.mark.parametrize("command", by_label(RESULTS))
def test_result_is_written_again_byte_for_byte(command):
    payload = recorded_payload(command)
    serializer = recorded_serializer(payload)
    meta = decode_result(payload, serializer=serializer, accept=ACCEPT)
    compressed = payload.startswith(COMPRESSED_MARK)
    again = encode_result(
        task_id=meta.task_id,
        status=meta.status,
        result=meta.result,
        traceback=meta.traceback,
        children=meta.children,
        date_done=meta.date_done,
        group_id=meta.group_id,
        parent_id=meta.parent_id,
        extended=meta.extra,
        serializer=serializer,
        compression="gzip" if compressed else None,
    )
    if compressed:
        assert again.startswith(COMPRESSED_MARK + b"application/x-gzip\x00")
        assert expand(again) == expand(payload)
    elif serializer == "pickle":
        assert comparable(pickle.loads(again)) == comparable(pickle.loads(payload))
    elif serializer == "yaml" and meta.traceback:
        # Where its long lines are folded depends on the paths, which are not the recorded ones.
        assert yaml.safe_load(again) == yaml.safe_load(payload)
    else:
        assert again == payload


def recorded_payload(command):
    """Correct the length of the one text in MessagePack that was shortened after recording."""
    payload = command.args[3]
    head, mark, rest = payload.partition(b"\xa9traceback\xda")
    if not mark:
        return payload
    size = rest.index(b"\xa8children") - 2
    return head + mark + size.to_bytes(2, "big") + rest[2:]


def recorded_serializer(payload):
    if payload.startswith(b"children:"):
        return "yaml"
    return {0x80: "pickle", 0x86: "msgpack"}.get(payload[0], "json")


def expand(payload):
    kind, _, data = payload.removeprefix(COMPRESSED_MARK).partition(b"\x00")
    return compress.decompress(data, kind.decode(), MAX_BYTES)


def comparable(meta):
    result = meta["result"]
    if isinstance(result, BaseException):
        meta["result"] = (type(result), result.args)
    return list(meta.items())


def test_all_recorded_keys_are_named():
    keys = Keys()
    assert recorded("ZADD", 1, "kill9_restore") == {keys.unacked_index}
    assert recorded("HSET", 1, "kill9_restore") == {keys.unacked}
    assert keys.binding("celery") in recorded("SADD", 1, "kill9_restore")
    assert keys.permanent_binding("celery") in recorded("SADD", 1, "kill9_restore")
    assert recorded("BRPOP", slice(1, -1), "kill9_restore") >= {keys.queue_steps("celery")}
    assert all(
        keys.result(decode_any(c)).encode() == c.args[1]
        for c in RESULTS
        if c.capture != "other_db_prefix"
    )


def test_all_recorded_keys_are_named_under_a_prefix():
    keys = Keys(prefix="pre:", result_prefix="res")
    capture = "other_db_prefix"
    assert recorded("ZADD", 1, capture) == {keys.unacked_index}
    assert recorded("HSET", 1, capture) == {keys.unacked}
    assert recorded("SADD", 1, capture) == {
        keys.binding("celery"),
        keys.permanent_binding("celery"),
    }
    assert keys.queue_steps("celery") in recorded("BRPOP", slice(1, -1), capture)
    (result,) = [c for c in RESULTS if c.capture == capture]
    assert keys.result(decode_any(result)).encode() == result.args[1]


def recorded(verb, at, capture):
    commands = [c for c in load.commands(capture) if c.args[0] == verb.encode()]
    if isinstance(at, slice):
        return {tuple(arg.decode() for arg in c.args[at]) for c in commands}
    return {c.args[at].decode() for c in commands}


def decode_any(command):
    payload = recorded_payload(command)
    serializer = recorded_serializer(payload)
    return decode_result(payload, serializer=serializer, accept=ACCEPT).task_id


@pytest.mark.parametrize("command", by_label(c for c in ELEMENTS if c.args[0] != b"PUBLISH"))
def test_message_is_pushed_on_the_list_of_its_priority(command):
    keys = Keys(prefix="pre:" if command.capture == "other_db_prefix" else "")
    pushed_on = command.args[1].decode()
    queue = pushed_on.removeprefix(keys.prefix).partition(keys.sep)[0]
    priority = read(command).properties["priority"]
    assert keys.queue(queue, keys.step_of(priority)) == pushed_on


@pytest.mark.parametrize("command", by_label(load.sent("SADD")))
def test_binding_member_is_built_as_recorded(command):
    routing_key, pattern, queue = command.args[2].decode().split("\x06\x16")
    # What Celery writes for "#" does not match as AMQP says: see `topic_pattern`.
    made = pattern if "#" in routing_key else topic_pattern(routing_key) if pattern else ""
    assert binding_member(routing_key, made, queue).encode() == command.args[2]
