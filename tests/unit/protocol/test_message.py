from __future__ import annotations

import contextlib
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenq.errors import ContentDisallowed, DecodeError, EncodeError
from greenq.protocol import serialize
from greenq.protocol.compress import compress
from greenq.protocol.envelope import Envelope
from greenq.protocol.message import TaskMessage, decode, encode, parse_time

JSON = serialize.accepted(["json"])
HEADERS = {"task": "t", "id": "i"}
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
MAYBE_TEXT = st.none() | TEXT
# As long as decode reads one.
MAYBE_TIME = st.none() | st.text(max_size=100)
VALUES = st.none() | st.booleans() | st.integers() | st.text()
SIGNATURES = st.none() | st.lists(st.dictionaries(st.text(), VALUES))
CALLS = st.builds(
    TaskMessage,
    task=TEXT.filter(bool),
    id=TEXT,
    args=st.lists(VALUES),
    kwargs=st.dictionaries(st.text(), VALUES),
    shadow=MAYBE_TEXT,
    eta=MAYBE_TIME,
    expires=MAYBE_TIME,
    group=MAYBE_TEXT,
    group_index=st.none() | st.integers(0, 1 << 53),
    retries=st.integers(0, 1 << 53),
    timelimit=st.tuples(st.none() | st.integers(0, 10**9), st.none() | st.floats(0, 1e6)),
    root_id=TEXT,
    parent_id=MAYBE_TEXT,
    argsrepr=TEXT,
    kwargsrepr=TEXT,
    origin=st.none() | st.text(max_size=200),
    ignore_result=st.none() | st.booleans(),
    replaced_task_nesting=st.integers(0, 1 << 53),
    stamped_headers=st.none() | st.lists(st.text()),
    stamps=st.dictionaries(st.text(), VALUES),
    headers=st.dictionaries(st.text().map("x-{}".format), VALUES),
    callbacks=SIGNATURES,
    errbacks=SIGNATURES,
    chain=SIGNATURES,
    chord=st.none() | st.dictionaries(st.text(), VALUES),
    redelivered=st.booleans(),
)


def envelope_of(body, headers=HEADERS, properties=None, content_type="application/json"):
    data = body if isinstance(body, bytes) else serialize.json_dumps(body).encode()
    return Envelope(data, content_type, "utf-8", headers, properties or {})


def read(envelope, max_body_bytes=1 << 20, accept=JSON):
    return decode(envelope, accept=accept, max_body_bytes=max_body_bytes)


@given(CALLS, st.sampled_from(["json", "pickle"]), st.sampled_from([None, "gzip", "xz"]))
def test_decode_gives_back_the_call_that_was_encoded(call, serializer, compression):
    encoded = encode(call, serializer=serializer, compression=compression)
    envelope = Envelope(*encoded, properties={})
    assert read(envelope, accept=serialize.accepted([serializer])) == call


def test_encode_makes_what_was_left_out():
    encoded = encode(TaskMessage(task="t", id="i", args=(1, "a"), kwargs={"k": b"x"}))
    assert encoded.headers["root_id"] == "i"
    assert encoded.headers["argsrepr"] == "(1, 'a')"
    assert encoded.headers["kwargsrepr"] == "{'k': b'x'}"
    assert encoded.body.startswith(b'[[1, "a"], {"k": {"__type__": "bytes"')


def test_encode_writes_the_callers_headers_before_the_compression():
    call = TaskMessage(task="t", id="i", headers={"mine": 1}, redelivered=True)
    assert list(encode(call, compression="gzip").headers)[-4:] == [
        "stamps",
        "mine",
        "compression",
        "redelivered",
    ]


def test_encode_refuses_what_cannot_be_serialized():
    with pytest.raises(EncodeError, match="set is not JSON"):
        encode(TaskMessage(task="t", id="i", args=[{1}]))
    with pytest.raises(EncodeError, match="snappy"):
        encode(TaskMessage(task="t", id="i"), compression="snappy")


def test_decode_takes_version_2_without_most_headers():
    call = read(envelope_of([[1], {}, None]))
    assert call == TaskMessage(task="t", id="i", args=[1], kwargs={}, ignore_result=None)


def test_decode_takes_times_that_came_as_tags():
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    call = read(envelope_of([[], {}, {}], {**HEADERS, "eta": moment, "expires": moment}))
    assert call.eta == call.expires == "2026-01-02T00:00:00+00:00"


def test_decode_takes_version_1():
    body = {
        "task": "t",
        "id": "i",
        "args": [1],
        "kwargs": {"k": 2},
        "retries": 3,
        "taskset": "g",
        "expires": "2026-01-01T00:00:00",
        "timelimit": [5, 3],
        "errbacks": [{"task": "e"}],
        "chord": {"task": "b"},
        "unknown": 1,
    }
    call = read(envelope_of(body, {"mine": 1}))
    assert call == TaskMessage(
        task="t",
        id="i",
        args=[1],
        kwargs={"k": 2},
        retries=3,
        group="g",
        expires="2026-01-01T00:00:00",
        timelimit=(5, 3),
        errbacks=[{"task": "e"}],
        chord={"task": "b"},
        ignore_result=None,
        headers={"mine": 1},
    )


def test_decode_lets_the_headers_win_in_a_hybrid():
    body = {"task": "old", "id": "old", "args": [1], "retries": 1, "group": "g"}
    call = read(envelope_of(body, {**HEADERS, "retries": 2}))
    assert (call.task, call.id, call.args, call.kwargs, call.retries, call.group) == (
        "t",
        "i",
        [1],
        {},
        2,
        "g",
    )


@pytest.mark.parametrize(
    ("headers", "info"),
    [({"redelivered": True}, {}), ({}, {"redelivered": True})],
)
def test_decode_finds_either_mark_of_redelivery(headers, info):
    envelope = envelope_of([[], {}, {}], {**HEADERS, **headers}, {"delivery_info": info})
    assert read(envelope).redelivered is True


@pytest.mark.parametrize(
    "change",
    [
        {"task": None},
        {"task": 5},
        {"task": ""},
        {"task": "\ud800"},
        {"id": None},
        {"id": 5},
        {"id": "\ud800"},
        {"shadow": 5},
        {"eta": 5},
        {"expires": 5.5},
        {"group": 5},
        {"group": "\udfff"},
        {"group_index": "1"},
        {"retries": "1"},
        {"retries": 1.5},
        {"retries": True},
        {"timelimit": 5},
        {"timelimit": [1]},
        {"timelimit": ["1", None]},
        {"timelimit": [None, True]},
        {"root_id": 1},
        {"parent_id": []},
        {"argsrepr": {}},
        {"kwargsrepr": 1},
        {"origin": 1},
        {"ignore_result": 1},
        {"replaced_task_nesting": None, "retries": {}},
        {"stamped_headers": "x"},
        {"stamps": []},
        {"compression": 5},
        {"redelivered": "yes"},
    ],
    ids=str,
)
def test_wrong_header_is_a_decode_error(change):
    with pytest.raises(DecodeError, match="not a task call"):
        read(envelope_of([[], {}, {}], {**HEADERS, **change}))
    body = {"args": [], "kwargs": {}, **HEADERS, **change}
    if "compression" not in change:
        with pytest.raises(DecodeError, match="not a task call"):
            read(envelope_of(body, {}))


@pytest.mark.parametrize(
    "body",
    [
        [],
        None,
        5,
        "abc",
        [[], {}],
        [[], {}, {}, {}],
        ["ab", {}, {}],
        [[], [], {}],
        [None, {}, {}],
        [[], {}, []],
        [[], {}, {"callbacks": {}}],
        [[], {}, {"errbacks": "x"}],
        [[], {}, {"chain": 5}],
        [[], {}, {"chord": []}],
        {"args": 5},
        {"kwargs": []},
    ],
    ids=str,
)
def test_wrong_body_is_a_decode_error_with_its_bytes(body):
    envelope = envelope_of(body)
    with pytest.raises(DecodeError, match="task 'i' is not a task call") as caught:
        read(envelope)
    assert caught.value.raw == envelope.body


def test_body_larger_than_allowed_is_refused_before_it_is_read():
    with pytest.raises(DecodeError, match="11 bytes exceeds 10 bytes"):
        read(envelope_of(b"x" * 11), max_body_bytes=10)


def test_bomb_is_refused():
    body, kind = compress(bytes(10_000_000), "gzip")
    with pytest.raises(DecodeError, match="expands beyond"):
        read(envelope_of(body, {**HEADERS, "compression": kind}), max_body_bytes=100_000)


def test_content_type_that_is_not_accepted_is_refused():
    with pytest.raises(ContentDisallowed, match="python-serialize"):
        read(envelope_of(b"", content_type="application/x-python-serialize"))


@given(
    st.binary() | st.from_type(str).map(lambda t: serialize.json_dumps([[t], {}, {}]).encode()),
    st.dictionaries(
        st.sampled_from(["task", "id", "timelimit", "retries", "compression", "stamps", "group"]),
        VALUES | st.lists(VALUES) | st.sampled_from(["gzip", "xz", "bzip2"]),
    ),
    st.sampled_from(["application/json", "application/data", "application/x-yaml", "x"]),
)
def test_random_messages_raise_nothing_but_protocol_errors(body, headers, content_type):
    envelope = Envelope(body, content_type, "utf-8", headers, {})
    with contextlib.suppress(DecodeError, ContentDisallowed):
        read(envelope, accept=serialize.accepted(["json", "yaml"]))


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2026-11-21T00:08:19.872141+00:00", "2026-11-21T00:08:19.872141+00:00"),
        ("2026-11-21T05:38:19+05:30", "2026-11-21T00:08:19+00:00"),
        ("2026-11-21T00:08:19Z", "2026-11-21T00:08:19+00:00"),
        ("2026-11-21T00:08:19", "2026-11-21T00:08:19+00:00"),
        ("2026-11-21 00:08", "2026-11-21T00:08:00+00:00"),
        ("20261121T000819", "2026-11-21T00:08:19+00:00"),
    ],
)
def test_parse_time_gives_utc_and_takes_naive_text_as_utc(text, utc):
    assert parse_time(text).isoformat() == utc


@pytest.mark.parametrize("text", ["", "soon", "2026-13-01", "0001-01-01T00:00:00+10:00", None, 5])
def test_parse_time_refuses_what_is_no_moment(text):
    with pytest.raises(DecodeError, match="ISO 8601"):
        parse_time(text)
