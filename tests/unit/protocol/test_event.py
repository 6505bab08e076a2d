"""Events as a real Celery 5.7 published them are read, and written again the same."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from unittest.mock import create_autospec, patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenq.errors import ContentDisallowed, DecodeError, EncodeError
from greenq.protocol import envelope
from greenq.protocol.clock import LamportClock
from greenq.protocol.event import (
    EXCHANGE,
    MULTI,
    EventWriter,
    NullEventSender,
    read_events,
    routing_key,
    utcoffset,
)
from greenq.protocol.keys import Keys
from greenq.protocol.message import TaskMessage
from greenq.protocol.serialize import accepted, dumps
from tests.vectors import load

JSON = accepted(["json"])
CAPTURES = (
    *("events_life", "events_life_prefork", "custom_event", "events_receiver"),
    *("mingle_gossip", "election"),
)
PUBLISHED = [
    command
    for capture in CAPTURES
    for command in load.commands(capture)
    if command.args[0] == b"PUBLISH" and b"/0.celeryev/" in command.args[1]
]
# What the writer adds to an event's own fields.
ADDED = ("hostname", "utcoffset", "pid", "clock", "timestamp", "type")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def by_label(commands):
    return [pytest.param(command, id=command.label) for command in commands]


def wrapped(body, content_type="application/json"):
    return envelope.wrap(
        body, content_type=content_type, content_encoding="utf-8", headers={}, properties={}
    ).encode()


def event(**fields):
    return {"type": "task-started", "hostname": "w@h", "clock": 1, "timestamp": 2.0} | fields


def read(element):
    return read_events(element, JSON)


def writer():
    return EventWriter("w1@wire", LamportClock())


# --- the recordings -------------------------------------------------------------------------------


def test_recordings_hold_every_kind_of_event():
    kinds = {event["type"] for command in PUBLISHED for event in read(command.args[2])}
    assert kinds >= {
        *("task-sent", "task-received", "task-started", "task-succeeded", "task-failed"),
        *("task-retried", "worker-online", "worker-heartbeat", "worker-offline"),
        *("worker-elect", "worker-elect-ack"),
    }
    assert len(PUBLISHED) > 80


def stamp(writer, kind, own, *, is_batch):
    """Stamp an event in the way in which a worker does."""
    if is_batch and kind == "task-received":
        call = dict(own)
        call["id"], call["task"] = call.pop("uuid"), call.pop("name")
        call["argsrepr"], call["kwargsrepr"] = call.pop("args"), call.pop("kwargs")
        return writer.received(TaskMessage(**call))
    if is_batch and kind in ("task-started", "task-succeeded"):
        return getattr(writer, kind.removeprefix("task-"))(**own)
    return writer.stamp(kind, own)


@pytest.mark.parametrize("command", by_label(PUBLISHED))
def test_event_is_written_again_as_recorded(command):
    recorded = read(command.args[2])
    first = recorded[0]
    clock = create_autospec(LamportClock, instance=True)
    clock.forward.side_effect = [old["clock"] for old in recorded]
    with (
        patch("greenq.protocol.event.os.getpid", return_value=first["pid"]),
        patch("greenq.protocol.event.utcoffset", return_value=first["utcoffset"]),
    ):
        again = EventWriter(first["hostname"], clock)
    stamped = []
    is_batch = command.args[1].endswith(MULTI.encode())
    for old in recorded:
        own = {name: value for name, value in old.items() if name not in ADDED}
        with patch("greenq.protocol.event.time.time", return_value=old["timestamp"]):
            stamped.append(stamp(again, old["type"], own, is_batch=is_batch))
    text = again.write_batch(stamped) if is_batch else again.write(stamped[0])

    ours, theirs = (envelope.unwrap(raw) for raw in (text, command.args[2]))
    assert list(ours.properties) == list(theirs.properties)
    tag = {"delivery_tag": ours.properties["delivery_tag"]}
    assert ours._replace(body=b"") == theirs._replace(
        body=b"", properties={**theirs.properties, **tag}
    )
    # The same keys and values in the same order; only the blanks differ.
    assert json.dumps(json.loads(ours.body)) == json.dumps(json.loads(theirs.body))


@pytest.mark.parametrize("command", by_label(PUBLISHED))
def test_event_is_published_on_the_recorded_channel(command):
    key = MULTI
    if not command.args[1].endswith(MULTI.encode()):
        key = routing_key(read(command.args[2])[0]["type"])
    assert Keys().fanout(EXCHANGE, key).encode() == command.args[1]


# --- writing --------------------------------------------------------------------------------------


def test_list_element_is_what_an_envelope_is():
    text = writer().write(writer().stamp("worker-online", {"freq": 2.0}))
    parts = envelope.unwrap(text)
    assert text.decode() == envelope.wrap(
        parts.body,
        content_type=parts.content_type,
        content_encoding=parts.content_encoding,
        headers=parts.headers,
        properties=parts.properties,
    )


def test_clock_moves_with_every_event():
    one = writer()
    batch = [one.stamp("task-started", {"uuid": str(number)}) for number in range(3)]
    assert [each["clock"] for each in read(one.write_batch(batch))] == [1, 2, 3]


@pytest.mark.parametrize("kind", ["task-failed", "task-progress"])
def test_half_of_a_surrogate_pair_spoils_no_batch(kind):
    one = writer()
    batch = [one.stamp(kind, {"uuid": "1", "exception": "\ud800"}), one.started("2")]
    events = read(one.write_batch(batch))
    assert [(each["uuid"], each.get("exception")) for each in events] == [
        ("1", "\ud800"),
        ("2", None),
    ]
    assert read(one.write(batch[0]))[0]["exception"] == "\ud800"


def test_half_of_a_surrogate_pair_spoils_no_batch_of_quick_events():
    one = writer()
    call = TaskMessage(task="proj.add", id="1", argsrepr="('\\ud800',)", kwargsrepr="{}")
    batch = [one.received(call), one.started("1"), one.succeeded("1", "\ud800", 0.5)]
    received, started, succeeded = read(one.write_batch(batch))
    assert (received["args"], received["name"]) == ("('\\ud800',)", "proj.add")
    assert (started["clock"], succeeded["result"]) == (2, "\ud800")


def test_programs_own_event_holds_what_json_has_celerys_tags_for():
    one, at = writer(), datetime(2031, 1, 2, tzinfo=UTC)
    stamped = one.stamp("task-progress", {"at": at, "raw": b"\xff", "deep": [{"at": at}]})
    (event,) = read(one.write(stamped))
    assert (event["at"], event["raw"], event["deep"]) == (at, b"\xff", [{"at": at}])


def test_own_fields_do_not_replace_what_every_event_has():
    one = writer()
    wrong = dict.fromkeys(ADDED, "wrong")
    (event,) = read(one.write(one.stamp("task-progress", {"a": 1, **wrong, "b": 2})))
    assert (event["type"], event["hostname"], event["clock"]) == ("task-progress", "w1@wire", 1)
    assert list(event) == ["hostname", "utcoffset", "pid", "clock", "a", "b", "timestamp", "type"]


def test_programs_own_event_that_is_no_json_is_refused_at_once():
    clock = LamportClock()
    with pytest.raises(EncodeError, match="object"):
        EventWriter("w@h", clock).stamp("task-progress", {"what": object()})
    assert clock.value == 0


@given(st.text(), st.dictionaries(st.text(), VALUES))
def test_any_event_that_is_written_is_read(kind, fields):
    one = writer()
    stamped = one.stamp(kind, fields)
    for element in (one.write(stamped), one.write_batch([stamped])):
        (again,) = read_events(element, JSON)
        assert again["type"] == kind
        assert set(again) == {*fields, *ADDED}


@pytest.mark.parametrize(
    ("zone", "hours"), [("UTC", 0), ("Asia/Kolkata", -5.5), ("America/New_York", 5)]
)
def test_utcoffset_is_positive_west(monkeypatch, zone, hours):
    seconds = -hours * 3600

    class Local:
        tm_gmtoff = seconds

    monkeypatch.setattr("greenq.protocol.event.time.localtime", Local)
    assert (utcoffset(), zone) == (hours, zone)


def test_silence_wants_no_events():
    assert not NullEventSender.tasks
    assert NullEventSender().send("task-started", {}) is None


# --- reading --------------------------------------------------------------------------------------


def test_one_event_and_a_batch_are_read():
    one = json.dumps(event()).encode()
    assert read(wrapped(one)) == [event()]
    assert read(wrapped(b"[%b, %b]" % (one, one))) == [event(), event()]
    assert read(wrapped(b"[]")) == []


def test_fields_that_every_reader_needs_are_there():
    assert read(wrapped(b'{"type": "x"}')) == [
        {"type": "x", "clock": 0, "hostname": "", "timestamp": 0.0}
    ]


@pytest.mark.parametrize(
    "body",
    [
        b"1",
        b'"task-started"',
        b"[[]]",
        b"{}",
        b"not JSON",
        json.dumps(event(type=1)).encode(),
        json.dumps(event(clock="1")).encode(),
        json.dumps(event(clock=True)).encode(),
        json.dumps(event(clock=-1)).encode(),
        json.dumps(event(clock=10**30)).encode(),
        json.dumps(event(clock=None)).encode(),
        json.dumps(event(hostname=None)).encode(),
        json.dumps(event(timestamp="now")).encode(),
        json.dumps(event(timestamp=10**400)).encode(),
        json.dumps(event(timestamp=float("nan"))).encode(),
        json.dumps(event(timestamp=float("inf"))).encode(),
        json.dumps([event(), event(clock="1")]).encode(),
    ],
)
def test_what_is_no_event_is_refused(body):
    with pytest.raises(DecodeError):
        read(wrapped(body))


def test_content_type_that_is_not_accepted_is_refused():
    element = wrapped(dumps(event(), "pickle").data, "application/x-python-serialize")
    with pytest.raises(ContentDisallowed):
        read(element)


@given(st.binary())
def test_bytes_that_are_anything_are_refused_in_our_words(raw):
    with pytest.raises(DecodeError):
        read(raw)


ODD = st.one_of(VALUES, st.integers(-(10**40), 10**40))


@given(
    ODD
    | st.lists(st.fixed_dictionaries({"type": ODD}, optional=dict.fromkeys(ADDED[:-1], ODD)))
    | st.fixed_dictionaries({"type": st.text()}, optional=dict.fromkeys(ADDED[:-1], ODD)),
    st.sampled_from(["json", "yaml", "msgpack"]),
)
def test_any_value_is_events_or_refused_in_our_words(value, serializer):
    try:
        data = dumps(value, serializer)
    except EncodeError:
        return
    try:
        events = read_events(wrapped(data.data, data.content_type), accepted(["json", "msgpack"]))
    except (DecodeError, ContentDisallowed):
        return
    for each in events:
        assert isinstance(each["type"], str)
        assert isinstance(each["hostname"], str)
        assert 0 <= each["clock"] < 1 << 63
        datetime.fromtimestamp(max(0, each["timestamp"]), UTC)
