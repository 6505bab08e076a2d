"""Requests and replies of remote control: what Celery sent is read and written again the same."""

from __future__ import annotations

import base64
import json
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenq.errors import ContentDisallowed, DecodeError, EncodeError
from greenq.protocol.mailbox import (
    EXCHANGE,
    REPLY_EXCHANGE,
    ControlRequest,
    Reply,
    ReplyTo,
    read_reply,
    read_request,
    write_reply,
    write_request,
)
from greenq.protocol.serialize import accepted
from tests.vectors import load

JSON = accepted(["json"])
EVERY = accepted(["json", "pickle", "yaml", "msgpack"])

REQUESTS = [
    command for command in load.sent("PUBLISH") if command.args[1].endswith(EXCHANGE.encode())
]
REPLIES = [
    command for command in load.sent("LPUSH") if command.args[1].endswith(REPLY_EXCHANGE.encode())
]

# Halves of characters, which JSON can write, included.
anything = st.text(alphabet=st.characters(), max_size=5)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
REQUEST_FIELDS = [
    "method", "arguments", "destination", "pattern", "matcher", "ticket", "reply_to",
]  # fmt: skip
bodies = values | st.dictionaries(st.sampled_from(REQUEST_FIELDS), values)
headers = values | st.dictionaries(st.sampled_from(["clock", "expires", "ticket"]), values)
# Most of a request is right, so that the tests of each of its fields are reached.
nearly_right = st.fixed_dictionaries(
    {"method": st.text(), "arguments": st.none() | st.dictionaries(st.text(), values, max_size=2)},
    optional={
        "destination": values,
        "pattern": st.none() | st.text(alphabet="ab*?[]!(){}|+\\.^$#@1", max_size=20),
        "matcher": st.sampled_from([None, "glob", "pcre", "regex"]),
        "ticket": st.none() | anything,
        "reply_to": st.fixed_dictionaries({"exchange": anything, "routing_key": anything}) | values,
    },
)


def by_label(commands):
    return [pytest.param(command, id=command.label) for command in commands]


def with_tag_of(written, recorded):
    """Return the element with the delivery tag of another, all that may differ."""
    tag = re.search(rb'"delivery_tag": "[^"]*"', recorded)[0]
    return re.sub(rb'"delivery_tag": "[^"]*"', tag, written.encode())


def element(body, headers=None, content_type="application/json"):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return json.dumps(
        {
            "body": base64.b64encode(data).decode(),
            "content-encoding": "utf-8" if content_type.endswith("json") else "binary",
            "content-type": content_type,
            "headers": headers,
            "properties": {"body_encoding": "base64", "delivery_tag": "t"},
        }
    ).encode()


def request(**fields):
    return read_request(element({"method": "ping", **fields}), JSON)


# --- recordings -----------------------------------------------------------------------------------


def test_recordings_are_as_many_as_the_tests_rely_on():
    methods = {read_request(command.args[2], JSON).method for command in REQUESTS}
    assert len(methods) >= 25
    assert len(REPLIES) >= 40


@pytest.mark.parametrize("command", by_label(REQUESTS))
def test_request_is_written_again_byte_for_byte(command):
    read = read_request(command.args[2], JSON)
    assert with_tag_of(write_request(read), command.args[2]) == command.args[2]


@pytest.mark.parametrize("command", by_label(REPLIES))
def test_reply_is_written_again_byte_for_byte(command):
    read = read_reply(command.args[2], JSON)
    ((node, reply),) = read.replies.items()
    key = command.args[1].decode().removeprefix("pre:")
    to = ReplyTo(REPLY_EXCHANGE, key.partition(".")[0])
    written = write_reply(node, reply, ticket=read.ticket, clock=read.clock, to=to)
    assert with_tag_of(written, command.args[2]) == command.args[2]
    assert key == to.queue


def test_recorded_ping_is_read():
    (command,) = (each for each in load.commands("inspect") if each.n == 144)
    assert read_request(command.args[2], JSON) == ControlRequest(
        method="ping",
        arguments={},
        destination=["w1@wire"],
        ticket="efe724f0-6815-4d99-90a2-1b93c66d5a97",
        reply_to=ReplyTo("reply.celery.pidbox", "18de9d36-d8ff-3fdb-88ea-b9e4cc296ad4"),
        clock=1,
        expires=1795220642.4534152,
    )
    (command,) = (each for each in load.commands("inspect") if each.n == 169)
    assert read_reply(command.args[2], JSON) == Reply(
        "efe724f0-6815-4d99-90a2-1b93c66d5a97", 3, {"w1@wire": {"ok": "pong"}}
    )


# --- serializers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("serializer", ["json", "pickle", "yaml", "msgpack"])
def test_both_come_through_in_each_serializer(serializer):
    accept = accepted([serializer])
    asked = ControlRequest(
        method="rate_limit",
        arguments={"task_name": "a", "rate_limit": "10/m"},
        destination=["w1@a", "w2@a"],
        ticket="t",
        reply_to=ReplyTo(REPLY_EXCHANGE, "o"),
        clock=7,
        expires=1.5,
    )
    raw = write_request(asked, serializer=serializer).encode()
    assert read_request(raw, accept) == asked

    to = ReplyTo(REPLY_EXCHANGE, "o")
    text = write_reply("w@a", {"ok": [1]}, ticket="t", clock=3, to=to, serializer=serializer)
    assert read_reply(text.encode(), accept) == Reply("t", 3, {"w@a": {"ok": [1]}})


def test_a_content_type_that_is_not_accepted_is_refused():
    body = {"method": "ping", "arguments": {}}
    raw = element(pickle.dumps(body), content_type="application/x-python-serialize")
    with pytest.raises(ContentDisallowed):
        read_request(raw, JSON)
    with pytest.raises(ContentDisallowed):
        read_reply(raw, JSON)


def test_a_destination_may_be_a_pickled_tuple():
    body = {"method": "ping", "arguments": {}, "destination": ("w1@a",)}
    raw = element(pickle.dumps(body), content_type="application/x-python-serialize")
    assert read_request(raw, EVERY).destination == ["w1@a"]


def test_what_has_no_form_is_not_written():
    with pytest.raises(EncodeError):
        write_request(ControlRequest(method="m", arguments={"a": object()}))
    with pytest.raises(EncodeError):
        write_reply("w@a", object(), ticket="t", clock=1, to=ReplyTo("e", "o"))


# --- who is meant ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "is_for"),
    [
        ({}, True),
        ({"destination": ["w1@a", "w2@a"]}, True),
        ({"destination": "w1@a"}, True),
        ({"destination": ["w2@a"]}, False),
        ({"destination": []}, True),
        ({"destination": ""}, True),
        # The destination comes first, as in Celery.
        ({"destination": ["w1@a"], "pattern": "x*", "matcher": "glob"}, True),
        ({"pattern": "w?@*", "matcher": "glob"}, True),
        ({"pattern": "w", "matcher": "glob"}, False),
        ({"pattern": "W?@*", "matcher": "glob"}, False),
        # Without a matcher a pattern says nothing.
        ({"pattern": "x"}, True),
    ],
)
def test_request_is_for_those_it_names(fields, is_for):
    assert request(**fields).is_for("w1@a") is is_for


@pytest.mark.parametrize(("pattern", "is_for"), [("w", True), ("1", False)])
def test_regular_expression_counts_only_where_it_is_accepted(pattern, is_for):
    # It begins at the start and need not reach the end.
    asked = request(pattern=pattern, matcher="pcre")

    assert asked.is_for("w1@a", accept_pcre=True) is is_for
    with pytest.raises(ValueError, match="worker_remote_control_pcre"):
        asked.is_for("w1@a")


def test_long_glob_is_refused():
    with pytest.raises(ValueError, match="longer than 200 characters"):
        request(pattern="*" * 201, matcher="glob").is_for("w1@a")


# --- what is wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        [],
        "text",
        {},
        {"method": 1},
        {"method": "m", "arguments": []},
        {"method": "m", "destination": 1},
        {"method": "m", "destination": {"w1@a": 1}},
        {"method": "m", "pattern": 1},
        {"method": "m", "matcher": []},
        {"method": "m", "ticket": 1},
        {"method": "m", "reply_to": "o"},
        {"method": "m", "reply_to": {"exchange": "e"}},
        {"method": "m", "reply_to": {"exchange": "e", "routing_key": None}},
        # Half a character cannot be part of a key.
        {"method": "m", "reply_to": {"exchange": "e", "routing_key": "\ud800"}},
    ],
)
def test_what_is_no_request_is_refused(body):
    with pytest.raises(DecodeError):
        read_request(element(body), JSON)


def test_names_of_arguments_and_nodes_are_texts():
    wrong = {"method": "m", "arguments": {1: 2}}
    pickled = "application/x-python-serialize"
    with pytest.raises(DecodeError, match="arguments of control request 'm'"):
        read_request(element(pickle.dumps(wrong), content_type=pickled), EVERY)
    with pytest.raises(DecodeError, match="node names"):
        read_reply(element(pickle.dumps({1: 2}), content_type=pickled), EVERY)


@pytest.mark.parametrize(
    "expires",
    [None, "soon", [], pytest.param(10**400, id="huge"), float("nan"), float("-inf"), 1e308],
)
@pytest.mark.parametrize("clock", [None, "1", True, -1, 1.5, 1 << 62])
def test_headers_that_say_nothing_sensible_count_as_missing(clock, expires):
    raw = element({"method": "m"}, {"clock": clock, "expires": expires})
    read = read_request(raw, JSON)
    assert (read.clock, read.expires) == (0, 0.0)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(raw):
    with pytest.raises(DecodeError):
        read_request(raw, EVERY)
    with pytest.raises(DecodeError):
        read_reply(raw, EVERY)


@given(st.binary(max_size=60), st.sampled_from(sorted(EVERY)), headers)
def test_any_body_is_read_or_refused(body, content_type, headers):
    raw = element(body, headers, content_type)
    for read in (read_request, read_reply):
        try:
            read(raw, EVERY)
        except DecodeError:
            continue


@given(bodies | nearly_right, headers)
def test_any_json_is_read_or_refused(body, headers):
    raw = element(body, headers)
    try:
        read = read_request(raw, JSON)
    except DecodeError:
        pass
    else:
        # What was read can be used without a further test.
        assert read.needs_regex or read.is_for("w1@a") in (True, False)
        assert all(isinstance(name, str) for name in read.arguments)
        if read.reply_to is not None:
            assert read.reply_to.queue.encode()
            text = write_reply("w1@a", None, ticket=read.ticket, clock=read.clock, to=read.reply_to)
            assert read_reply(text.encode(), JSON).ticket == read.ticket
    try:
        reply = read_reply(raw, JSON)
    except DecodeError:
        return
    assert all(isinstance(node, str) for node in reply.replies)
    assert reply.clock >= 0
