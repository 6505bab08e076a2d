from __future__ import annotations

import base64
import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenq.errors import DecodeError, EncodeError
from greenq.protocol import envelope

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
FIELDS = st.dictionaries(st.text(), JSON)
PROPERTIES = {"delivery_tag": "t"}


def element(**changes):
    fields = {
        "body": "W10=",
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {},
        "properties": {"body_encoding": "base64", "delivery_info": {}, "delivery_tag": "t"},
    }
    fields.update({name.replace("_", "-"): value for name, value in changes.items()})
    return json.dumps(fields).encode()


@given(st.binary(), FIELDS, FIELDS)
def test_unwrap_gives_back_what_was_wrapped(body, headers, properties):
    properties.pop("delivery_info", None)
    headers.pop("__type__", None)
    text = envelope.wrap(
        body,
        content_type="application/json",
        content_encoding="utf-8",
        headers=headers,
        properties=properties,
    )
    assert text.isascii()
    assert envelope.unwrap(text.encode()) == (
        body,
        "application/json",
        "utf-8",
        headers,
        {**properties, "body_encoding": "base64"},
    )


def test_wrap_refuses_a_header_that_is_no_json():
    with pytest.raises(EncodeError, match="set"):
        envelope.wrap(
            b"", content_type="", content_encoding="", headers={"x": {1}}, properties=PROPERTIES
        )


@pytest.mark.parametrize(
    ("properties", "body"),
    [
        ({"body_encoding": "base64"}, base64.b64encode(b"caf\xc3\xa9").decode()),
        ({}, "café"),
        ({"body_encoding": None}, "café"),
        ({"body_encoding": "utf-8"}, "café"),
    ],
)
def test_body_is_read_in_every_encoding(properties, body):
    assert envelope.unwrap(element(properties=properties, body=body)).body == "café".encode()


def test_absent_headers_and_types_get_their_defaults():
    raw = b'{"body": "W10=", "properties": {}, "headers": null, "content-type": null}'
    assert envelope.unwrap(raw) == (b"W10=", "application/data", "utf-8", {}, {})


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"not json",
        b"\xff\xfe",
        b"null",
        b"[]",
        b'"text"',
        b"{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"body": "W10=", "properties": {"body_encoding": "base64"}',
        element(body=None),
        element(body=5),
        element(body="W"),
        element(body="\ud800", properties={}),
        element(body="é"),
        element(headers=[]),
        element(headers="x"),
        element(properties=None),
        element(properties=[]),
        element(properties={"body_encoding": "rot13"}),
        element(properties={"body_encoding": ["base64"]}),
        element(properties={"body_encoding": "base64", "delivery_info": "q"}),
        element(properties={"body_encoding": "base64", "delivery_info": None}),
        element(content_type=5),
        element(content_encoding=[]),
        element(headers={"x": {"__type__": "mine", "__value__": 1}}),
        element(headers={"__type__": "date", "__value__": "2024-01-01"}),
    ],
    ids=lambda raw: str(raw[:60]),
)
def test_what_is_no_envelope_is_a_decode_error_with_its_bytes(raw):
    with pytest.raises(DecodeError) as caught:
        envelope.unwrap(raw)
    assert caught.value.raw == raw
    assert caught.value.reason


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_random_bytes_raise_nothing_but_decode_errors(raw):
    for reader in (envelope.unwrap, envelope.unhold, envelope.mark_redelivered):
        with contextlib.suppress(DecodeError):
            reader(raw)


@given(FIELDS, st.text(), st.text())
def test_unhold_gives_back_the_text_that_was_held(message, exchange, routing_key):
    text = json.dumps(message, separators=(",", " :  "))
    held = envelope.hold(text, exchange, routing_key)
    read = (text, exchange, routing_key, json.loads(text))
    assert envelope.unhold(held) == read
    assert envelope.unhold(held.encode()) == read
    assert json.loads(held) == [message, exchange, routing_key]


def test_unhold_reads_any_layout():
    read = envelope.unhold(' [ {"a": 1.0}\n,"ex" ,"rk"] ')
    assert read == ('{"a": 1.0}', "ex", "rk", {"a": 1.0})


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff",
        "[]",
        "{}",
        "[{}]",
        '[{}, "ex"]',
        '[{}, "ex", "rk", 1]',
        '[{}, "ex", 5]',
        '["x", "ex", "rk"]',
        '[not json, "ex", "rk"]',
        '[{} "ex", "rk"]',
        "[" * 100_000,
    ],
    ids=lambda value: str(value[:30]),
)
def test_what_is_no_held_message_is_a_decode_error(value):
    with pytest.raises(DecodeError):
        envelope.unhold(value)


def test_mark_redelivered_sets_both_marks_and_changes_nothing_else():
    raw = element(headers={"n": 2**70, "list": []}, properties={"delivery_info": {"exchange": ""}})
    marked = json.loads(envelope.mark_redelivered(raw))
    assert marked["headers"].pop("redelivered") is True
    assert marked["properties"]["delivery_info"].pop("redelivered") is True
    assert json.dumps(marked).encode() == raw
    again = envelope.mark_redelivered(envelope.mark_redelivered(raw))
    assert again == envelope.mark_redelivered(raw)


def test_mark_redelivered_adds_what_is_missing():
    marked = json.loads(envelope.mark_redelivered('{"body": "", "properties": {}}'))
    assert marked["headers"] == {"redelivered": True}
    assert marked["properties"] == {"delivery_info": {"redelivered": True}}


@pytest.mark.parametrize("raw", ["", "[]", "{}", "5", '{"headers": 5}', '{"properties": []}'])
def test_mark_redelivered_refuses_what_is_no_envelope(raw):
    with pytest.raises(DecodeError) as caught:
        envelope.mark_redelivered(raw)
    assert caught.value.raw == raw.encode()


def test_task_properties_put_extras_and_expiration_in_their_places():
    properties = envelope.task_properties(
        queue="q",
        priority=3,
        correlation_id="c",
        reply_to="r",
        delivery_tag="t",
        delivery_mode=1,
        expiration="500",
        origin="gen1@h",
    )
    assert list(properties) == [
        "correlation_id",
        "reply_to",
        "origin",
        "delivery_mode",
        "expiration",
        "delivery_info",
        "priority",
        "body_encoding",
        "delivery_tag",
    ]
    assert properties["delivery_info"] == {"exchange": "", "routing_key": "q"}
