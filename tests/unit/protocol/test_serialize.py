from __future__ import annotations

import contextlib
import enum
import gc
import json
import pickle
import subprocess
import sys
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenq.errors import ContentDisallowed, DecodeError, EncodeError, Reject, Retry
from greenq.protocol import serialize

ALL = serialize.accepted(serialize.SERIALIZERS)
EXTENDED = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.datetimes(timezones=st.none() | st.just(UTC) | st.just(timezone(timedelta(hours=5.5))))
    | st.dates()
    | st.times()
    | st.decimals(allow_nan=False)
    | st.uuids()
)
DOCUMENTS = st.recursive(
    EXTENDED, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abc é☃"), inner),
    max_leaves=20,
)


class Color(enum.Enum):
    RED = 1


class Signature:
    def __json__(self):
        return {"task": "t"}


class Broken:
    def __json__(self):
        raise RuntimeError("no")

    def __reduce__(self):
        raise RuntimeError("no")


def nested(depth):
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


@given(DOCUMENTS)
def test_json_gives_back_every_extended_value(value):
    assert serialize.json_loads(serialize.json_dumps(value)) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC),
            '"datetime", "__value__": "2024-05-06T07:08:09+00:00"',
        ),
        (date(2024, 5, 6), '"date", "__value__": "2024-05-06"'),
        (time(7, 8, 9, 10), '"time", "__value__": "07:08:09.000010"'),
        (Decimal("1.10"), '"decimal", "__value__": "1.10"'),
        (UUID(int=1), '"uuid", "__value__": {"hex": "00000000000000000000000000000001"}'),
        (b"text", '"bytes", "__value__": "text"'),
        (b"\xff\xfe\x00", '"base64", "__value__": "//4A"'),
    ],
)
def test_json_tag_is_written_as_celery_does(value, text):
    assert serialize.json_dumps(value) == '{"__type__": ' + text + "}"


def test_json_writes_what_an_object_returns_for_itself():
    assert serialize.json_dumps([Signature()]) == '[{"task": "t"}]'


def test_json_writes_djangos_lazy_text_as_text():
    promise = type("Promise", (), {"__module__": "django.utils.functional"})
    lazy = type("__proxy__", (promise,), {"__str__": lambda self: "late"})
    assert serialize.json_dumps(lazy()) == '"late"'


def test_json_keeps_nan_and_infinity_bare():
    assert serialize.json_dumps([float("inf"), float("nan")]) == "[Infinity, NaN]"


def test_json_leaves_an_object_alone_that_only_resembles_a_tag():
    like = {"__type__": "date", "__value__": "x", "more": 1}
    assert serialize.json_loads(json.dumps(like)) == like


@pytest.mark.parametrize("serializer", ["json", "msgpack", "yaml", "pickle"])
@given(value=PLAIN)
def test_every_serializer_gives_back_plain_values(serializer, value):
    data, content_type, encoding = serialize.dumps(value, serializer)
    assert serialize.loads(data, content_type, encoding, ALL) == value


@pytest.mark.parametrize("value", [b"\xff\x00", "text ☃"])
def test_raw_gives_back_bytes_and_text(value):
    assert serialize.loads(*serialize.dumps(value, "raw"), ALL) == value


@pytest.mark.parametrize(
    ("value", "serializer"),
    [
        ({1, 2}, "json"),
        (Color.RED, "json"),
        (object, "json"),
        (timedelta(5), "json"),
        (Broken(), "json"),
        ({(1, 2): 3}, "json"),
        (nested(100_000), "json"),
        (object(), "msgpack"),
        (2**70, "msgpack"),
        (object(), "yaml"),
        (Broken(), "pickle"),
        (lambda: None, "pickle"),
        (nested(100_000), "pickle"),
        (5, "raw"),
        ("\ud800", "raw"),
        (1, "bson"),
    ],
)
def test_what_cannot_be_serialized_is_an_encode_error(value, serializer):
    with pytest.raises(EncodeError, match=serializer if serializer != "raw" else "raw|Unicode"):
        serialize.dumps(value, serializer)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
        lambda inner: (
            st.lists(inner)
            | st.tuples(inner, inner)
            | st.dictionaries(st.text() | st.integers() | st.booleans() | st.none(), inner)
        ),
    )
)
def test_json_is_written_as_the_standard_library_does(value):
    assert serialize.json_dumps(value) == json.dumps(value, default=serialize._default)


@pytest.mark.parametrize("end", ["", "x"], ids=["good", "broken"])
def test_large_json_is_read_without_collecting_garbage(end):
    collections = []
    gc.callbacks.append(lambda *_: collections.append(1))
    try:
        with contextlib.suppress(DecodeError):
            serialize.json_loads("[" + "{}," * 50_000 + "{}]" + end)
    finally:
        gc.callbacks.pop()
    assert len(collections) < 10
    assert gc.isenabled()


PADDING = '"' + "x" * serialize._LARGE + '"'


@pytest.mark.parametrize(
    "text",
    [
        *("0", "-0", "-0.0", "0.1", "1E5", "1e400", "-1e400", "5e-324", "1.7976931348623159e308"),
        *("9007199254740993", "18446744073709551616", "-9223372036854775809", "9" * 400 + ".5"),
        *("1" * 4300, "1" * 4301, "01", "+1", ".5", "1.", "-", "NaN", "-Infinity", "nul", "tru"),
        *('"\\ud800"', '"\\u00e9"', '"é"', '"\t"', '"\0"', '"\\/"', '"\\x"', '"\x7f"'),
        *('{"a": 1, "a": 2}', '{"": 1}', "{1: 2}", "[1,]", "[1 2]", "\u00a01", "1\f", "\ufeff1"),
        '{"__type__": "date", "__value__": "2026-01-02"}',
        '{"\\u005f_type__": "date", "__value__": "2026-01-02"}',
    ],
    ids=lambda text: ascii(text)[:20],
)
def test_large_json_is_read_as_small_json_is(text):
    def read(text: str) -> str:
        try:
            return repr(serialize.json_loads(text))
        except DecodeError:
            return "refused"

    small, large = read(f"[{text}]"), read(f"[{PADDING}, {text}]")
    assert large.replace(f"{PADDING}, ".replace('"', "'"), "") == small


@given(EXTENDED)
def test_large_json_of_any_value_is_read_as_small_json_is(value):
    small, large = (serialize.json_dumps(each) for each in ([value], [PADDING, value]))
    assert repr(serialize.json_loads(large)[1:]) == repr(serialize.json_loads(small))


def test_json_dumps_refuses_a_circle():
    circle: list = []
    circle.append(circle)
    with pytest.raises(EncodeError, match="Circular"):
        serialize.json_dumps(circle)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"1" * 5000,
        '{"__type__": "mine", "__value__": 1}',
        '{"__type__": [], "__value__": 1}',
        '{"__type__": "datetime", "__value__": 1}',
        '{"__type__": "datetime", "__value__": "never"}',
        '{"__type__": "decimal", "__value__": "x"}',
        '{"__type__": "uuid", "__value__": {}}',
        '{"__type__": "uuid", "__value__": "x"}',
        '{"__type__": "bytes", "__value__": 1}',
        '{"__type__": "bytes", "__value__": "\\ud800"}',
        '{"__type__": "base64", "__value__": "x"}',
    ],
    ids=lambda text: str(text[:40]),
)
def test_what_is_no_json_is_a_decode_error_with_its_bytes(text):
    with pytest.raises(DecodeError, match="not readable as JSON") as caught:
        serialize.json_loads(text)
    assert caught.value.raw == (text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize(
    ("data", "serializer"),
    [
        (b"\x80", "pickle"),
        (b"", "pickle"),
        (b"cos\nno_such_name\n.", "pickle"),
        (b"\xc1", "msgpack"),
        (b"\x91" * 100_000, "msgpack"),
        (b"a: [", "yaml"),
        (b"\xff", "yaml"),
        (b"!!python/object/apply:os.getcwd []", "yaml"),
        (b"[" * 200_000, "yaml"),
        (b"- " * 200_000, "yaml"),
        (b"{a: " * 200_000, "yaml"),
        (b"x", "json"),
    ],
)
def test_damaged_bytes_are_a_decode_error(data, serializer):
    content_type = serialize.content_type_of(serializer)
    with pytest.raises(DecodeError) as caught:
        serialize.loads(data, content_type, "utf-8", ALL)
    assert caught.value.raw == data


@pytest.mark.parametrize("encoding", ["utf-8", "no-such-codec"])
def test_raw_text_in_another_encoding_is_a_decode_error(encoding):
    with pytest.raises(DecodeError, match=encoding):
        serialize.loads(b"\xff", "application/data", encoding, ALL)


@given(st.binary(), st.sampled_from(sorted(ALL - {"application/x-python-serialize"})))
def test_random_bytes_raise_nothing_but_decode_errors(data, content_type):
    with contextlib.suppress(DecodeError):
        serialize.loads(data, content_type, "utf-8", ALL)


def test_pickle_is_not_read_unless_accepted():
    bomb = b"cos\n_exit\n(I1\ntR."
    with pytest.raises(ContentDisallowed, match="x-python-serialize"):
        serialize.loads(
            bomb, "application/x-python-serialize", "binary", serialize.accepted(["json"])
        )


@pytest.mark.parametrize("exc", [Reject("why", True), Retry("why", ValueError("x"), 5)])
def test_celerys_own_exceptions_are_unpickled_as_ours(exc):
    theirs = pickle.dumps(exc, 0).replace(b"cgreenq.errors\n", b"ccelery.exceptions\n")
    assert b"celery.exceptions" in theirs
    again = serialize.loads(theirs, "application/x-python-serialize", "binary", ALL)
    assert type(again) is type(exc)
    assert str(again) == str(exc)


def test_accepted_takes_names_and_content_types():
    assert serialize.accepted(["json", "application/x-yaml", "text/plain"]) == {
        "application/data",
        "application/json",
        "application/x-yaml",
        "text/plain",
    }


def test_accepted_names_the_known_serializers_when_one_is_unknown():
    with pytest.raises(ValueError, match=r"'jsno'.*json, pickle, yaml, msgpack, raw"):
        serialize.accepted(["jsno"])


@pytest.mark.parametrize(("module", "name"), [("yaml", "yaml"), ("msgpack", "msgpack")])
def test_missing_package_says_what_to_install(monkeypatch, module, name):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EncodeError, match=rf"pip install greenq\[{name}\]"):
        serialize.dumps(1, name)
    with pytest.raises(DecodeError, match=rf"pip install greenq\[{name}\]"):
        serialize.loads(b"1", serialize.content_type_of(name), "utf-8", ALL)


def test_import_loads_no_optional_package_and_no_input_or_output():
    code = (
        "import sys, greenq.protocol.meta, greenq.protocol.keys;"
        "unwanted = {'yaml', 'msgpack', 'redis', 'gevent', 'socket', 'logging', 'celery', 'kombu'};"
        "sys.exit(','.join(unwanted & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


LEAVES = st.none() | st.booleans() | st.integers() | st.text()


class BrokenRepr:
    def __repr__(self):
        raise RuntimeError("no")


class BrokenDict(dict):
    def __iter__(self):
        raise RuntimeError("no")


class Point(tuple):
    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ((), "()"),
        ((1,), "(1,)"),
        ([1, 2.5, None, True], "[1, 2.5, None, True]"),
        ({"k": "v"}, "{'k': 'v'}"),
        ("it's", r"'it\'s'"),
        (b"ab", "b'ab'"),
        (b"\xff\x00", "b'ff00'"),
        ({1}, "{1}"),
        (set(), "set()"),
        (frozenset([1]), "frozenset({1})"),
        (Point((1, 2)), "(1, 2)"),
        ([[[[1]]]], "[[[[...]]]]"),
        ({"a": {"b": {"c": {}}}}, "{'a': {'b': {'c': {...}}}}"),
        (BrokenRepr(), "<unrepresentable BrokenRepr: RuntimeError>"),
        ([BrokenRepr(), 1], "[<unrepresentable BrokenRepr: RuntimeError>, 1]"),
        (BrokenDict(a=1), "<unrepresentable BrokenDict: RuntimeError>"),
    ],
)
def test_saferepr_describes(value, text):
    assert serialize.saferepr(value) == text


def test_saferepr_ends_in_a_circle():
    circle: list = [1]
    circle.append(circle)
    assert serialize.saferepr(circle) == "[1, [1, [1, [...]]]]"


def test_saferepr_is_short_however_much_there_is():
    assert serialize.saferepr(list(range(1000)), max_chars=20) == "[0, 1, 2, 3, 4, 5, 6, ...]"
    assert serialize.saferepr("word " * 100, max_chars=12) == "'word word...'"
    assert serialize.saferepr(b"x" * 100, max_chars=5) == "b'xxxxx...'"
    assert len(serialize.saferepr([{"k": "x" * 500} for _ in range(1000)])) < 2 * 1024


SIMPLE = (
    LEAVES | st.floats() | st.sampled_from(["it's", '"x"', "a\\b", "x" * 1030, "ü", "\n", "a b"])
)


@given(
    st.lists(SIMPLE) | st.lists(SIMPLE).map(tuple) | st.dictionaries(SIMPLE, SIMPLE),
    st.sampled_from([1, 20, 21, 40, 1024]),
)
def test_saferepr_says_of_simple_values_what_it_says_of_all(value, max_chars):
    pieces = []
    serialize._describe(value, pieces, max_chars, 3)
    assert serialize.saferepr(value, max_chars) == "".join(pieces)


@pytest.mark.parametrize("max_chars", range(1, 40))
@pytest.mark.parametrize("value", [[None], ("x" * 20, 1), {1: "x" * 9, "k": None}, [1.5] * 6, ()])
def test_saferepr_leaves_out_the_same_of_simple_values_as_of_all(value, max_chars):
    pieces = []
    serialize._describe(value, pieces, max_chars, 3)
    assert serialize.saferepr(value, max_chars) == "".join(pieces)


@given(st.recursive(LEAVES | st.binary(), lambda inner: st.lists(inner) | st.tuples(inner, inner)))
def test_saferepr_stays_near_its_limit(value):
    assert len(serialize.saferepr(value, max_chars=64)) < 4 * 64
