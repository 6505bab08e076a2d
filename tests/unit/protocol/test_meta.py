from __future__ import annotations

import contextlib
import json
import pickle
import urllib.error
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenq import errors
from greenq.errors import ContentDisallowed, DecodeError, EncodeError, SecurityError
from greenq.protocol import meta as results
from greenq.protocol import serialize
from greenq.protocol.meta import (
    COMPRESSED_MARK,
    decode_result,
    encode_part,
    encode_result,
    encode_success,
    exception_from_wire,
    exception_to_wire,
    is_plain,
    utc_now,
)

ALL = serialize.accepted(serialize.SERIALIZERS)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text("abc☃"),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abc"), inner),
    max_leaves=10,
)


class Outer:
    class NestedError(Exception):
        pass


class NeedsTwoError(Exception):
    def __init__(self, first, second):
        self.second = second
        super().__init__(first)


class BrokenError(Exception):
    __module__ = None  # type: ignore[assignment]

    @property
    def args(self):
        raise RuntimeError("no args")

    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


class BrokenRepr:
    def __repr__(self):
        raise RuntimeError("no")


def roundtrip(result, status="FAILURE", **options):
    serializer = options.get("serializer", "json")
    payload = encode_result(task_id="i", status=status, result=result, **options)
    return decode_result(payload, serializer=serializer, accept=ALL).result


@pytest.mark.parametrize("serializer", ["json", "pickle", "yaml", "msgpack"])
@pytest.mark.parametrize("compression", [None, "gzip", "bzip2", "xz"])
@settings(max_examples=settings().max_examples // 4)
@given(value=VALUES, status=st.sampled_from(["SUCCESS", "STARTED", "PROGRESS"]))
def test_decode_gives_back_the_value(serializer, compression, value, status):
    assert roundtrip(value, status, serializer=serializer, compression=compression) == value


def test_fields_stand_in_celerys_order():
    payload = encode_result(
        task_id="i",
        status="SUCCESS",
        result=5,
        group_id="g",
        parent_id="p",
        extended={"name": "t", "args": [1]},
    )
    assert payload == (
        b'{"status": "SUCCESS", "result": 5, "traceback": null, "children": [], '
        b'"date_done": null, "group_id": "g", "parent_id": "p", "name": "t", "args": [1], '
        b'"task_id": "i"}'
    )
    assert decode_result(payload, accept=ALL).extra == {"name": "t", "args": [1]}


@pytest.mark.parametrize("serializer", ["json", "pickle", "yaml", "msgpack"])
def test_result_that_cannot_be_serialized_is_an_encode_error(serializer):
    with pytest.raises(EncodeError):
        encode_result(task_id="i", status="SUCCESS", result=lambda: 1, serializer=serializer)


def test_unknown_compression_and_serializer_are_encode_errors():
    with pytest.raises(EncodeError, match="snappy"):
        encode_result(task_id="i", status="SUCCESS", result=1, compression="snappy")
    with pytest.raises(EncodeError, match="bson"):
        encode_result(task_id="i", status="SUCCESS", result=1, serializer="bson")


@pytest.mark.parametrize("serializer", ["json", "pickle", "yaml", "msgpack"])
@pytest.mark.parametrize(
    "exc",
    [
        ValueError("boom", 42),
        KeyError("k"),
        Outer.NestedError("inner"),
        Exception(),
        ValueError({"nested": [1, None]}),
    ],
    ids=repr,
)
def test_exception_comes_back_as_itself(exc, serializer):
    again = roundtrip(exc, serializer=serializer)
    assert type(again) is type(exc)
    assert again.args == exc.args


@pytest.mark.parametrize("serializer", ["json", "pickle", "yaml", "msgpack"])
@pytest.mark.parametrize("cls", list(errors.CELERY_NAMES), ids=lambda cls: cls.__name__)
def test_our_twins_of_celerys_exceptions_travel_under_its_names(cls, serializer):
    module, name = errors.CELERY_NAMES[cls]
    payload = encode_result(task_id="i", status="FAILURE", result=cls("x"), serializer=serializer)
    stored = serialize.loads(payload, serialize.content_type_of(serializer), "utf-8", ALL)
    assert (stored["result"]["exc_module"], stored["result"]["exc_type"]) == (module, name)
    again = decode_result(payload, serializer=serializer, accept=ALL).result
    assert type(again) is cls
    assert str(again) == str(cls("x"))


def test_subclass_of_a_twin_keeps_its_own_name():
    class OwnRetry(errors.Retry):
        pass

    assert exception_to_wire(OwnRetry(), serialize.json_dumps)["exc_module"] == __name__


def test_argument_that_cannot_be_encoded_travels_as_its_repr():
    wire = exception_to_wire(ValueError(1, {2}, BrokenRepr()), serialize.json_dumps)
    assert wire["exc_message"] == [1, "{2}", "<unrepresentable BrokenRepr: RuntimeError>"]


@pytest.mark.parametrize("serializer", ["json", "pickle", "yaml", "msgpack"])
@pytest.mark.parametrize(
    "exc", [BrokenError(), NeedsTwoError(1, 2), ValueError(lambda: 1), ValueError(BrokenRepr())]
)
def test_misbehaving_exception_is_stored_all_the_same(exc, serializer):
    again = roundtrip(exc, serializer=serializer)
    assert isinstance(again, Exception)


def test_class_that_is_not_imported_is_a_remote_error():
    wire = {"exc_type": "Outer.Gone", "exc_message": ["m", 1], "exc_module": "no.such.module"}
    again = exception_from_wire(wire, "Traceback …\nno.such.module.Outer.Gone: gone: m\nfor good\n")
    assert type(again) is errors.RemoteError
    assert again.type == "no.such.module.Outer.Gone"
    assert again.message == "gone: m\nfor good"
    assert again.traceback.startswith("Traceback")
    assert str(again) == "no.such.module.Outer.Gone: gone: m\nfor good"
    assert exception_to_wire(again, serialize.json_dumps) == wire
    assert str(pickle.loads(pickle.dumps(again))) == str(again)


@pytest.mark.parametrize("module", [None, "builtins"])
def test_class_that_its_module_does_not_have_is_a_remote_error(module):
    again = exception_from_wire({"exc_type": "Gone", "exc_message": "m", "exc_module": module})
    assert (type(again), again.type, again.message) == (errors.RemoteError, "Gone", "m")


@pytest.mark.parametrize("serializer", ["json", "yaml", "msgpack"])
def test_constructor_that_refuses_its_arguments_leaves_class_and_text(serializer):
    again = roundtrip(NeedsTwoError(1, 2), serializer=serializer)
    assert type(again) is errors.RemoteError
    assert again.type == f"{__name__}.NeedsTwoError"
    assert again.message == str(NeedsTwoError(1, 2))


class OwnText(Exception):
    """As those of many clients: the text is made of what is no argument."""

    def __init__(self, code):
        super().__init__(f"status {code}")


class Fixed(Exception):
    def __str__(self):
        return f"fixed {self.args[0]!r}" if self.args else "nothing"


@pytest.mark.parametrize(
    "exc",
    [
        OwnText(404), Fixed({1}), KeyError("x"), OSError(2, "no file", "name"), ValueError(),
        ValueError(1, 2), UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"),
        ExceptionGroup("g", [OSError()]),
    ],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("serializer", ["json", "yaml", "msgpack", "pickle"])
def test_class_and_text_come_back(exc, serializer):
    again = roundtrip(exc, serializer=serializer)
    if type(again) is errors.RemoteError:
        # Of what is no class of ours, its arguments may not travel.
        assert type(exc) is ExceptionGroup
        assert again.message == str(exc)
    else:
        assert type(again) is type(exc)
        noted = [note.partition(": ")[2] for note in getattr(again, "__notes__", ())]
        assert str(exc) in (str(again), *noted)


def test_arguments_stay_where_only_their_text_differs():
    again = roundtrip(ValueError("bad", BrokenRepr()))
    assert again.args == ("bad", "<unrepresentable BrokenRepr: RuntimeError>")


def test_http_error_keeps_its_text():
    exc = urllib.error.HTTPError("http://x", 404, "Not Found", {}, None)
    again = roundtrip(exc)
    assert type(again) is errors.RemoteError
    assert (again.type, again.message) == ("urllib.error.HTTPError", "HTTP Error 404: Not Found")


def test_text_of_what_celery_has_stored_without_is_in_its_traceback():
    data = {"exc_type": "HTTPError", "exc_message": [], "exc_module": "urllib.error"}
    trace = (
        "Traceback (most recent call last):\n  …\nurllib.error.HTTPError: HTTP Error 404: Gone\n"
    )
    again = exception_from_wire(data, trace)
    assert again.message == "HTTP Error 404: Gone"


@pytest.mark.parametrize(
    "cls", [SystemExit, KeyboardInterrupt, GeneratorExit, errors.TaskTerminated]
)
@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_what_is_raised_here_is_always_an_exception(cls, serializer):
    exc = cls("a", "b") if cls is errors.TaskTerminated else cls("a")
    again = roundtrip(exc, serializer=serializer)
    assert type(again) is errors.RemoteError
    assert again.type.endswith(cls.__name__)


@pytest.mark.parametrize(
    ("module", "name"),
    [("os", "system"), ("builtins", "eval"), ("builtins", "dict"), ("os", "path")],
)
def test_name_of_something_else_is_a_security_error(module, name):
    with pytest.raises(SecurityError, match=name):
        exception_from_wire({"exc_type": name, "exc_message": ["true"], "exc_module": module})


@pytest.mark.parametrize(
    "data",
    [
        5,
        "text",
        [],
        {},
        {"exc_type": None},
        {"exc_type": "X", "exc_module": 5},
        {"exc_type": "X\0", "exc_module": None},
        {"exc_type": "\ud800", "exc_module": "m"},
    ],
    ids=str,
)
def test_what_is_no_stored_exception_is_a_decode_error(data):
    with pytest.raises(DecodeError):
        exception_from_wire(data)


def test_failure_without_an_exception_is_read_as_none():
    assert roundtrip(None) is None


def test_exception_that_celery_could_not_pickle_is_made_again():
    wrapped = serialize.UnpicklableException("no.such", "GoneError", ("a", 1), "GoneError('a', 1)")
    theirs = pickle.dumps({"status": "FAILURE", "task_id": "i", "result": wrapped}, 0).replace(
        b"cgreenq.protocol.serialize\nUnpicklableException\n",
        b"ccelery.utils.serialization\nUnpickleableExceptionWrapper\n",
    )
    assert b"greenq" not in theirs
    again = decode_result(theirs, serializer="pickle", accept=ALL).result
    assert (again.type, again.message) == ("no.such.GoneError", "GoneError('a', 1)")


def meta(**changes):
    return json.dumps({"status": "SUCCESS", "result": 1, "task_id": "i", **changes}).encode()


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        meta(status=None),
        meta(status=5),
        meta(task_id=None),
        meta(children={}),
        meta(traceback=5),
        meta(date_done=[]),
        meta(group_id=1),
        meta(parent_id=1),
        meta(status="FAILURE", result=5),
        COMPRESSED_MARK,
        COMPRESSED_MARK + b"\xff\x00",
        COMPRESSED_MARK + b"application/x-gzip\x00junk",
    ],
    ids=lambda payload: str(payload[:60]),
)
def test_what_is_no_result_is_a_decode_error(payload):
    with pytest.raises(DecodeError):
        decode_result(payload, accept=ALL)


def test_result_larger_than_allowed_is_refused():
    payload = encode_result(task_id="i", status="SUCCESS", result="x" * 1000)
    with pytest.raises(DecodeError, match="exceeds 1000 bytes"):
        decode_result(payload, accept=ALL, max_bytes=1000)
    bomb = encode_result(task_id="i", status="SUCCESS", result="x" * 10_000, compression="gzip")
    with pytest.raises(DecodeError, match="expands beyond 1000"):
        decode_result(bomb, accept=ALL, max_bytes=1000)


def test_pickled_result_is_refused_unless_accepted():
    payload = encode_result(task_id="i", status="SUCCESS", result=1, serializer="pickle")
    with pytest.raises(ContentDisallowed):
        decode_result(payload, serializer="pickle", accept=serialize.accepted(["json"]))


@given(st.binary() | st.binary().map(COMPRESSED_MARK.__add__), VALUES)
def test_random_payloads_raise_nothing_but_protocol_errors(data, value):
    for payload in (
        data,
        json.dumps({"status": "FAILURE", "task_id": "i", "result": value}).encode(),
    ):
        with contextlib.suppress(DecodeError, SecurityError):
            decode_result(payload, accept=ALL)


@pytest.mark.parametrize("result", [None, True, 1.5, 'x"\u00e9\n', [1, {"a": None}], {}])
def test_a_plain_success_is_written_as_any_other_state_is(result: object) -> None:
    plain = encode_success("4f9e-1", result)

    done = json.loads(plain)["date_done"]
    assert plain == encode_result(task_id="4f9e-1", status="SUCCESS", result=result, date_done=done)


@pytest.mark.parametrize("children", [(), ((("child", None), None),)])
@pytest.mark.parametrize("group_id", [None, "", "4f9e", 'a"\u00e9'])
@pytest.mark.parametrize("parent_id", [None, "", "4f9e", 'a"\u00e9'])
def test_a_success_in_a_workflow_is_written_as_any_other_state_is(
    children: tuple[object, ...], group_id: str | None, parent_id: str | None
) -> None:
    places = {"children": children, "group_id": group_id, "parent_id": parent_id}

    written = encode_success("4f9e-1", 1, **places)

    done = json.loads(written)["date_done"]
    assert written == encode_result(
        task_id="4f9e-1", status="SUCCESS", result=1, date_done=done, **places
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("__type__"),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
ODD = st.none() | st.integers(-1, 1) | st.text(max_size=3) | st.text(min_size=256) | st.lists(JSON)


@settings(max_examples=1000)
@given(
    st.fixed_dictionaries(
        {"status": st.sampled_from(["SUCCESS", "FAILURE", 7]), "task_id": st.text() | ODD},
        optional={
            "result": JSON,
            "traceback": st.none() | ODD,
            "children": st.lists(JSON) | ODD,
            "date_done": st.just("2026-01-01T00:00:00+00:00") | ODD,
            "group_id": ODD,
            "parent_id": ODD,
            "worker": ODD,
        },
    ),
    st.booleans(),
)
def test_a_result_is_read_the_same_in_both_ways(fields: dict[str, Any], escapes: bool) -> None:
    payload = json.dumps(fields, ensure_ascii=escapes).encode(errors="surrogatepass")

    def read() -> object:
        try:
            return repr(decode_result(payload, accept=ALL))
        except (DecodeError, SecurityError) as exc:
            return str(exc)

    fast = read()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "_read_success", msgspec.json.Decoder(int).decode)
        assert read() == fast


@pytest.mark.parametrize(
    "result", ["-0", "1e400", "NaN", "1.0", "123456789012345678901234567890", '{"a": 1, "a": 2}']
)
def test_a_result_from_elsewhere_is_read_the_same_in_both_ways(result: str) -> None:
    payload = encode_success("i", "here").replace(b'"here"', result.encode())

    fast = decode_result(payload, accept=ALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "_read_success", msgspec.json.Decoder(int).decode)
        assert repr(decode_result(payload, accept=ALL)) == repr(fast)


def test_json_is_refused_unless_accepted() -> None:
    with pytest.raises(ContentDisallowed):
        decode_result(encode_success("i", 1), accept=serialize.accepted(["pickle"]))


@given(st.text(), VALUES)
def test_a_part_of_a_chord_is_a_list_of_four(task_id: str, value: object) -> None:
    expected = serialize.json_dumps([1, task_id, "SUCCESS", value])

    assert encode_part(task_id, "SUCCESS", value).decode() == expected


@pytest.mark.parametrize("task_id", ['a"b', "\u00e9", "a\n", ""])
def test_an_id_that_json_escapes_is_not_plain(task_id: str) -> None:
    assert is_plain("4f9e-1_B")
    assert not is_plain(task_id)


def test_now_is_written_as_celery_writes_it() -> None:
    before = datetime.now(UTC)
    texts = [utc_now() for _ in range(100)]
    after = datetime.now(UTC)

    read = [datetime.fromisoformat(text) for text in texts]
    assert read == sorted(read)
    assert before.replace(microsecond=0) <= read[0] <= read[-1] <= after
    assert all(len(text) == len("2026-01-01T00:00:00.000000+00:00") for text in texts)
