"""A filled template is, to the byte, what encoding and wrapping the same message writes."""

from __future__ import annotations

import pickle
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenq.errors import EncodeError
from greenq.protocol import envelope, serialize
from greenq.protocol.message import TaskMessage, encode
from greenq.protocol.template import Template

TEXT = st.text(max_size=12)
MAYBE_TEXT = st.none() | TEXT
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(
        ["it's", 'say "x"', "back\\slash", "%s {0} \x00", "é🙂", "\ud800", "x" * 1100]
    )
)
TYPED = st.sampled_from(
    [Decimal("1.10"), datetime(2031, 1, 2, tzinfo=UTC), date(2031, 1, 2), b"x", b"\xff"]
)
VALUES = st.recursive(
    SCALARS | TYPED,
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
ARGS = st.lists(VALUES) | st.lists(VALUES).map(tuple)
CALLS = st.builds(
    TaskMessage,
    task=TEXT,
    id=TEXT,
    args=ARGS,
    kwargs=st.dictionaries(st.text(), VALUES),
    shadow=MAYBE_TEXT,
    eta=MAYBE_TEXT,
    expires=MAYBE_TEXT,
    group=MAYBE_TEXT,
    group_index=st.none() | st.integers(0),
    retries=st.integers(0),
    timelimit=st.tuples(st.none() | st.integers(0), st.none() | st.floats(0, 1e6)),
    root_id=MAYBE_TEXT,
    parent_id=MAYBE_TEXT,
    argsrepr=MAYBE_TEXT,
    kwargsrepr=MAYBE_TEXT,
    origin=MAYBE_TEXT,
    ignore_result=st.none() | st.booleans(),
    # Callers may give headers the names that greenq's own have.
    headers=st.dictionaries(st.sampled_from(["x-a", "id", "root_id", "argsrepr", "stamps"]), TEXT),
    callbacks=st.none() | st.lists(st.dictionaries(TEXT, TEXT), max_size=1),
    redelivered=st.booleans(),
)
PROPERTIES = st.fixed_dictionaries(
    {"queue": TEXT, "priority": st.integers(0, 255), "reply_to": TEXT},
    optional={
        "exchange": TEXT,
        "routing_key": TEXT,
        "correlation_id": TEXT,
        "delivery_mode": st.sampled_from([1, 2]),
        "expiration": TEXT,
        "own": TEXT,
    },
)
TAG = "the-tag"


def written(call: TaskMessage, properties: dict[str, Any], **options: Any) -> str:
    """Write a message without a template."""
    encoded = encode(call, **options)
    named = {"correlation_id": call.id, "delivery_tag": TAG} | properties
    return envelope.wrap(
        encoded.body,
        content_type=encoded.content_type,
        content_encoding=encoded.content_encoding,
        headers=encoded.headers,
        properties=envelope.task_properties(**named),
    )


def filled(template: Template, call: TaskMessage, chain: list[Any] | None = None) -> str:
    return template.fill(
        call.id,
        call.args,
        call.kwargs,
        delivery_tag=TAG,
        root_id=call.root_id,
        parent_id=call.parent_id,
        group_index=call.group_index,
        chain=chain,
    )


@given(CALLS, PROPERTIES, st.sampled_from([None, "gzip"]))
def test_filled_template_is_what_is_written_without_one(
    call: TaskMessage, properties: dict[str, Any], compression: str | None
) -> None:
    template = Template(call, compression=compression, **properties)

    text = written(call, properties, compression=compression)
    assert filled(template, call) == text
    # A second time, too: filling leaves no trace.
    assert filled(template, call) == text


@given(CALLS, ARGS, st.dictionaries(st.text(), VALUES), TEXT)
def test_template_of_one_call_is_filled_with_another(
    call: TaskMessage, args: Any, kwargs: dict[str, Any], other_id: str
) -> None:
    properties = {"queue": "q", "reply_to": "r"}
    other = replace(call, args=args, kwargs=kwargs, id=other_id, root_id=None, parent_id=None)
    template = Template(call, **properties)
    filled(template, call)

    assert filled(template, other) == written(other, properties)


@pytest.mark.parametrize("serializer", ["json", "pickle", "msgpack", "yaml"])
def test_the_rest_of_a_chain_fills_a_gap(serializer: str) -> None:
    properties = {"queue": "q", "reply_to": "r"}
    call = TaskMessage(task="t", id="i", root_id="i", callbacks=[{"task": "c"}])
    template = Template(call, serializer=serializer, **properties)

    for chain in ([{"task": "b"}, {"task": "a"}], [{"task": "b"}], None):
        expected = written(replace(call, chain=chain), properties, serializer=serializer)
        assert filled(template, call, chain) == expected


@pytest.mark.parametrize("serializer", ["pickle", "msgpack", "yaml"])
def test_every_serializer_has_its_template(serializer: str) -> None:
    call = TaskMessage(task="t", id="i", args=(1, "a"), kwargs={"k": [2]})
    properties = {"queue": "q", "reply_to": "r"}
    if serializer == "yaml":
        call = replace(call, args=[1, "a"])

    text = filled(Template(call, serializer=serializer, **properties), call)

    if serializer == "pickle":
        # Equal objects may be pickled with other references between them.
        made, plain = (
            envelope.unwrap(each.encode())
            for each in (text, written(call, properties, serializer=serializer))
        )
        assert pickle.loads(made.body) == pickle.loads(plain.body)
        assert made._replace(body=b"") == plain._replace(body=b"")
    else:
        assert text == written(call, properties, serializer=serializer)


def test_filled_template_is_its_own_root_by_default() -> None:
    template = Template(TaskMessage(task="t", id="", root_id="other"), queue="q", reply_to="r")

    headers = envelope.unwrap(template.fill("i", (), {}, delivery_tag=TAG).encode()).headers

    assert (headers["id"], headers["root_id"], headers["parent_id"]) == ("i", "i", None)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"serializer": "jason"}, "unknown serializer 'jason'"),
        ({"serializer": "raw"}, "the raw serializer takes bytes or text"),
        ({"compression": "snappy"}, "unknown compression 'snappy'"),
        ({"priority": {1}}, "set is not JSON"),
    ],
)
def test_wrong_option_is_refused_before_anything_is_filled(
    options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(EncodeError, match=reason):
        Template(TaskMessage(task="t", id=""), **{"queue": "q", "reply_to": "r"} | options)


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_wrong_argument_is_refused(compression: str | None) -> None:
    template = Template(
        TaskMessage(task="t", id=""), compression=compression, queue="q", reply_to="r"
    )

    with pytest.raises(EncodeError, match="set is not JSON"):
        template.fill("i", ({1},), {}, delivery_tag=TAG)
    with pytest.raises(EncodeError, match="args of t must be a list or tuple, not str"):
        template.fill("i", "ab", {}, delivery_tag=TAG)
    text = template.fill("i", (1,), {}, delivery_tag=TAG)
    wrapped = envelope.unwrap(text.encode())
    assert compression or serialize.json_loads(wrapped.body)[0] == [1]
