"""What a worker cannot run is set aside with the reason, and nothing behind it waits."""

from __future__ import annotations

import base64
import bz2
import functools
import json
import lzma
import os
import pickle
import random
import re
import sys
import tempfile
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import pytest

from greenq import Greenq
from greenq.errors import ContentDisallowed, NotRegistered
from tests.servers import Process, Server, greenq_worker
from tests.support import wait_until

WAIT_S = 15
# A good task right behind a bad message has its result in this time, usually in milliseconds.
BEHIND_S = 3
MAX_BODY_BYTES = 1_000_000
BOMB_BYTES = 10**8
# What many copies of the largest body may cost, and far less than one bomb.
MAX_GROWTH_BYTES = 50 << 20
DEPTH = 10_000
SETTINGS = {
    "task_max_body_bytes": MAX_BODY_BYTES,
    "accept_content": ["json", "yaml", "msgpack"],
    "accept_compression": ["gzip", "bzip2", "lzma"],
}
JSON, YAML = "application/json", "application/x-yaml"
MSGPACK, PICKLE = "application/x-msgpack", "application/x-python-serialize"
GZIP, BZIP2, LZMA = "application/x-gzip", "application/x-bz2", "application/x-lzma"
EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}

Write = Callable[[dict[str, Any]], bytes]


class Kind(NamedTuple):
    """How to make a good message bad, part of the reason, and the error of who waits for it.

    Attributes:
        write: gets the good message, returns what is pushed.
        reason: part of what the dead letter gives as the reason.
        told: name of the error that is the task's result; None when no id can be read.
    """

    write: Write
    reason: str
    told: str | None = "DecodeError"


def _raw(data: bytes) -> Write:
    return lambda _message: data


def _dump(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode()


def _without(key: str) -> Write:
    return lambda message: _dump({name: message[name] for name in message if name != key})


def _set(*path_and_value: Any) -> Write:
    *path, last, value = path_and_value

    def write(message: dict[str, Any]) -> bytes:
        place = message
        for key in path:
            place = place[key]
        place[last] = value
        return _dump(message)

    return write


def _header(name: str, value: Any) -> Write:
    return _set("headers", name, value)


def _spelled(before: str, after: str) -> Write:
    """Change the message's text, into what no JSON encoder writes."""

    def write(message: dict[str, Any]) -> bytes:
        text = json.dumps(message)
        assert text.count(before) == 1
        return text.replace(before, after).encode()

    return write


def _body(value: Any, content_type: str = JSON, compression: str | None = None) -> Write:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()

    def write(message: dict[str, Any]) -> bytes:
        message["content-type"] = content_type
        message["headers"]["compression"] = compression
        message["body"] = base64.b64encode(data).decode()
        return _dump(message)

    return write


def _arg(value: Any) -> Write:
    return _body([[value], {}, EMBED])


def _tagged(kind: Any, value: Any) -> Write:
    return _arg({"__type__": kind, "__value__": value})


def _version_1(**changes: Any) -> Write:
    """Write task protocol 1: everything is in the body."""

    def write(message: dict[str, Any]) -> bytes:
        call = {"task": "shared.add", "id": message["headers"]["id"], "args": [1, 2], "kwargs": {}}
        return _body({**call, **changes})(message | {"headers": {}})

    return write


def _bomb(compress: Callable[[bytes], bytes], compression: str) -> Write:
    # Made when it is used: collecting the tests must not take its time.
    packed = functools.cache(lambda: compress(bytes(BOMB_BYTES)))
    return lambda message: _body(packed(), compression=compression)(message)


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.open, (self.path, os.O_CREAT)


# Whoever loads one of these has run what a stranger sent.
TOUCHED = Path(tempfile.gettempdir()) / f"greenq-test-{uuid.uuid4().hex}"
EVIL_PICKLE = pickle.dumps([[Touch(str(TOUCHED))], {}, EMBED])
EVIL_YAML = f"[[!!python/object/apply:os.open [{TOUCHED}, 64]], {{}}, {{}}]".encode()

GOOD_BODY = json.dumps([[1, 2], {}, EMBED]).encode()
GOOD_MSGPACK = msgpack.packb([[1, 2], {}, EMBED])
# Each level names the one before nine times.
YAML_ALIASES = "- &a0 [x]\n" + "".join(
    f"- &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
)
# Each level merges the one before twice: the pairs are copied, 2**40 of them.
YAML_MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 41)
)

NOT_JSON = "not readable as JSON"

GARBAGE = {
    "bytes: not utf-8": Kind(_raw(b"\xff\xfe\x00"), NOT_JSON, None),
    "bytes: empty": Kind(_raw(b""), NOT_JSON, None),
    "bytes: not JSON": Kind(_raw(b"{broken"), NOT_JSON, None),
    "bytes: list": Kind(_raw(b"[1, 2]"), "not a JSON object", None),
    "bytes: number": Kind(_raw(b"17"), "not a JSON object", None),
    "bytes: null": Kind(_raw(b"null"), "not a JSON object", None),
    "bytes: NaN": Kind(_raw(b"NaN"), "not a JSON object", None),
    "bytes: huge integer": Kind(_raw(b"9" * 10_000), NOT_JSON, None),
    "bytes: lone surrogate": Kind(_raw(rb'"\ud800"'), "not a JSON object", None),
    "bytes: empty object": Kind(_raw(b"{}"), "properties", None),
    "bytes: open lists": Kind(_raw(b"[" * DEPTH), NOT_JSON, None),
    "bytes: deep objects": Kind(_raw(b'{"a":' * DEPTH + b"1" + b"}" * DEPTH), "deeply", None),
    "bytes: NULs": Kind(_raw(b"\0" * 1000), NOT_JSON, None),
    "bytes: 1 MB at random": Kind(_raw(random.Random(1).randbytes(1 << 20)), NOT_JSON, None),
    "bytes: a pickle": Kind(_raw(EVIL_PICKLE), NOT_JSON, None),
    "bytes: cut off": Kind(lambda message: _dump(message)[:-1], NOT_JSON, None),
    "bytes: utf-16": Kind(lambda message: _dump(message).decode().encode("utf-16"), NOT_JSON),
}

ENVELOPE = {
    "no headers": Kind(_without("headers"), "no task name or no id", None),
    "headers are a list": Kind(_set("headers", []), "headers", None),
    "no body": Kind(_without("body"), "body"),
    "no properties": Kind(_without("properties"), "properties"),
    "properties are text": Kind(_set("properties", "x"), "properties"),
    "properties twice": Kind(
        _spelled('"properties": ', '"properties": {}, "properties": 5, "x": '), "properties"
    ),
    "body is a number": Kind(_set("body", 5), "body"),
    "body is not base64": Kind(_set("body", "a"), "base64"),
    "body has a lone surrogate": Kind(_set("body", "\ud800"), "base64"),
    "unknown body_encoding": Kind(_set("properties", "body_encoding", "rot13"), "rot13"),
    "body_encoding is a list": Kind(_set("properties", "body_encoding", []), "body_encoding"),
    "body_encoding is not true": Kind(_set("properties", "body_encoding", "utf-8"), ""),
    "delivery info is text": Kind(_set("properties", "delivery_info", "x"), "delivery_info"),
    "content type is a number": Kind(_set("content-type", 5), "content-type"),
    "content encoding is a list": Kind(_set("content-encoding", []), "content-encoding"),
    "unknown content type": Kind(_set("content-type", "text/x"), "accept", "ContentDisallowed"),
    "unknown tag in a header": Kind(_header("x", {"__type__": "x", "__value__": 1}), "__type__"),
}

HEADERS = {
    "no id": Kind(_header("id", None), "id is NoneType", None),
    "id is a number": Kind(_header("id", 5), "id is int", None),
    "id is a list": Kind(_header("id", ["x"]), "id is list", None),
    "id is a lone surrogate": Kind(_header("id", "\ud800"), "Unicode", None),
    "no task": Kind(_header("task", None), "task is NoneType"),
    "task is a number": Kind(_header("task", 5), "task is int"),
    "task twice": Kind(
        _spelled('"task": ', '"task": 5, "x": 1, "task": [], "y": '), "task is list"
    ),
    "task is empty": Kind(_header("task", ""), "no task name"),
    "task is a lone surrogate": Kind(_header("task", "\udfff"), "Unicode"),
    "task has a NUL": Kind(_header("task", "shared.add\0"), "unregistered", "NotRegistered"),
    "task of 1 MB": Kind(_header("task", "shared." * 150_000), "task is a text of 1,050,000"),
    "id of 1 MB": Kind(_header("id", "i" * 1_000_000), "id is a text of 1,000,000", None),
    "shadow of 1 MB": Kind(_header("shadow", "s" * 1_000_000), "shadow is a text of 1,000,000"),
    "lang is a number": Kind(_header("lang", 5), "lang is int"),
    "shadow is a number": Kind(_header("shadow", 5), "shadow is int"),
    "eta is no time": Kind(_header("eta", "tomorrow"), "tomorrow"),
    "eta is no moment": Kind(_header("eta", "9999-12-31T23:59:59-23:59"), "9999"),
    "eta has a NUL": Kind(_header("eta", "2030-01-01\0"), "ISO 8601"),
    "eta is a lone surrogate": Kind(_header("eta", "\ud800"), "ISO 8601"),
    "eta is a number": Kind(_header("eta", 5), "eta is int"),
    "expires is no time": Kind(_header("expires", "never"), "never"),
    "expires is a list": Kind(_header("expires", [2030]), "expires is list"),
    "retries are text": Kind(_header("retries", "x"), "retries is str"),
    "retries are true": Kind(_header("retries", True), "retries is bool"),
    "retries are NaN": Kind(_header("retries", float("nan")), "retries is float"),
    "retries are infinite": Kind(_spelled('"retries": 0', '"retries": 1e999'), "retries is float"),
    "retries are negative": Kind(_header("retries", -1), "retries is -1"),
    "retries have 400 digits": Kind(_header("retries", 10**400), "retries is a number of 1329"),
    "time limit is NaN": Kind(_header("timelimit", [float("nan"), None]), "timelimit[0] is nan"),
    "time limit is infinite": Kind(
        _header("timelimit", [None, float("inf")]), "timelimit[1] is inf"
    ),
    "time limit is negative": Kind(_header("timelimit", [-1, None]), "timelimit[0] is -1"),
    "time limit has 400 digits": Kind(_header("timelimit", [10**400, 1]), "timelimit[0] is a num"),
    "group index is negative": Kind(_header("group_index", -1), "group_index is -1"),
    "nesting is negative": Kind(_header("replaced_task_nesting", -1), "replaced_task_nesting is"),
    "a stamped header is a list": Kind(_header("stamped_headers", [[]]), "stamped_headers[0] is"),
    "retries are huge": Kind(
        _spelled('"retries": 0', f'"retries": {"9" * 10_000}'), NOT_JSON, None
    ),
    "time limits are three": Kind(_header("timelimit", [1, 2, 3]), "timelimit"),
    "time limits are text": Kind(_header("timelimit", "12"), "timelimit is str"),
    "time limit is text": Kind(_header("timelimit", ["x", None]), "timelimit"),
    "root id is a list": Kind(_header("root_id", []), "root_id"),
    "parent id is an object": Kind(_header("parent_id", {}), "parent_id"),
    "group is a number": Kind(_header("group", 5), "group is int"),
    "group is a lone surrogate": Kind(_header("group", "\ud800"), "Unicode"),
    "group index is text": Kind(_header("group_index", "0"), "group_index"),
    "argsrepr is a list": Kind(_header("argsrepr", [1]), "argsrepr"),
    "kwargsrepr is an object": Kind(_header("kwargsrepr", {}), "kwargsrepr"),
    "origin is a number": Kind(_header("origin", 5), "origin"),
    "ignore_result is text": Kind(_header("ignore_result", "no"), "ignore_result"),
    "nesting is text": Kind(_header("replaced_task_nesting", "0"), "replaced_task_nesting"),
    "stamped headers are text": Kind(_header("stamped_headers", "x"), "stamped_headers"),
    "stamps are a list": Kind(_header("stamps", [1]), "stamps"),
    "redelivered is a number": Kind(_header("redelivered", 1), "redelivered"),
    "compression is a number": Kind(_header("compression", 5), "compression is int"),
}

JSON_BODIES = {
    "JSON: empty": Kind(_body(b""), NOT_JSON),
    "JSON: broken": Kind(_body(b"{broken"), NOT_JSON),
    "JSON: not utf-8": Kind(_body(b'["\xff"]'), NOT_JSON),
    "JSON: NULs": Kind(_body(b"\0" * 1000), NOT_JSON),
    "JSON: a pickle": Kind(_body(EVIL_PICKLE), NOT_JSON),
    "JSON: a number": Kind(_body(5), "body is not"),
    "JSON: NaN": Kind(_body(b"NaN"), "body is not"),
    "JSON: huge integer": Kind(_body(b"[[" + b"9" * 10_000 + b"], {}, {}]"), NOT_JSON),
    "JSON: two parts": Kind(_body([[], {}]), "body is not"),
    "JSON: four parts": Kind(_body([[], {}, EMBED, 1]), "body is not"),
    "JSON: args are text": Kind(_body(["text", {}, EMBED]), "args"),
    "JSON: args are an object": Kind(_body([{}, {}, EMBED]), "args"),
    "JSON: kwargs are a list": Kind(_body([[], [], EMBED]), "kwargs"),
    "JSON: embed is text": Kind(_body([[], {}, "text"]), "embed"),
    "JSON: embed is a list of four": Kind(_body([[], {}, [None] * 4]), "embed"),
    "JSON: callbacks are text": Kind(_body([[], {}, EMBED | {"callbacks": "x"}]), "callbacks"),
    "JSON: chain is a number": Kind(_body([[], {}, EMBED | {"chain": 5}]), "chain"),
    "JSON: chord is a list": Kind(_body([[], {}, EMBED | {"chord": [1]}]), "chord"),
    "JSON: a callback": Kind(_body([[], {}, {"callbacks": [{"task": "x"}]}]), "is not a signature"),
    "JSON: deep": Kind(_body(b"[[" + b"[" * DEPTH + b"]" * DEPTH + b"], {}, {}]"), "deeply"),
    "JSON: too large": Kind(_arg("x" * MAX_BODY_BYTES), "bytes exceeds"),
    "tag: unknown": Kind(_tagged("complex", "1j"), "complex"),
    "tag: name is a list": Kind(_tagged([], 1), NOT_JSON),
    "tag: datetime of text": Kind(_tagged("datetime", "tomorrow"), NOT_JSON),
    "tag: datetime of number": Kind(_tagged("datetime", 5), NOT_JSON),
    "tag: date of list": Kind(_tagged("date", []), NOT_JSON),
    "tag: time of text": Kind(_tagged("time", "25:00"), NOT_JSON),
    "tag: uuid of text": Kind(_tagged("uuid", "x"), NOT_JSON),
    "tag: uuid of bad hex": Kind(_tagged("uuid", {"hex": "x" * 32}), NOT_JSON),
    "tag: uuid without hex": Kind(_tagged("uuid", {}), "hex"),
    "tag: decimal of text": Kind(_tagged("decimal", "much"), NOT_JSON),
    "tag: decimal of object": Kind(_tagged("decimal", {}), NOT_JSON),
    "tag: bytes of number": Kind(_tagged("bytes", 5), NOT_JSON),
    "tag: bytes of a lone surrogate": Kind(_tagged("bytes", "\ud800"), NOT_JSON),
    "tag: base64 of text": Kind(_tagged("base64", "a"), NOT_JSON),
}

OTHER_BODIES = {
    "msgpack: empty": Kind(_body(b"", MSGPACK), MSGPACK),
    "msgpack: cut off": Kind(_body(GOOD_MSGPACK[:-1], MSGPACK), MSGPACK),
    "msgpack: more behind": Kind(_body(GOOD_MSGPACK + b"\0", MSGPACK), MSGPACK),
    "msgpack: wrong shape": Kind(_body(msgpack.packb([1, 2, 3]), MSGPACK), "args"),
    "msgpack: deep": Kind(_body(b"\x91" * DEPTH + b"\xc0", MSGPACK), MSGPACK),
    "msgpack: claims 4 G items": Kind(_body(b"\xdd\xff\xff\xff\xff", MSGPACK), MSGPACK),
    "msgpack: claims 4 GB of text": Kind(_body(b"\xdb\xff\xff\xff\xff", MSGPACK), MSGPACK),
    "msgpack: list as a key": Kind(_body(b"\x81\x90\xc0", MSGPACK), MSGPACK),
    "msgpack: text is not utf-8": Kind(_body(b"\xa1\xff", MSGPACK), MSGPACK),
    "msgpack: is JSON": Kind(_body(GOOD_BODY, MSGPACK), MSGPACK),
    "yaml: cut off": Kind(_body(GOOD_BODY[:-1], YAML), YAML),
    "yaml: not utf-8": Kind(_body(b"\xff", YAML), YAML),
    "yaml: NUL": Kind(_body(b"[\0]", YAML), YAML),
    "yaml: wrong shape": Kind(_body(b"- 1\n- 2\n", YAML), "body is not"),
    "yaml: two documents": Kind(_body(b"--- 1\n--- 2\n", YAML), YAML),
    "yaml: deep": Kind(_body(b"[" * DEPTH + b"]" * DEPTH, YAML), "deeply"),
    "yaml: unknown alias": Kind(_body(b"[*x]", YAML), YAML),
    "yaml: list as a key": Kind(_body(b"? [1]\n: 2\n", YAML), YAML),
    "yaml: no such day": Kind(_body(b"2001-02-31", YAML), YAML),
    "yaml: Python object": Kind(_body(EVIL_YAML, YAML), YAML),
    "yaml: nested aliases": Kind(_body(YAML_ALIASES.encode(), YAML), "body is not"),
    "yaml: nested merges": Kind(_body(YAML_MERGES.encode(), YAML), YAML),
    "pickle": Kind(_body(EVIL_PICKLE, PICKLE), "accept_content", "ContentDisallowed"),
    "pickle: cut off": Kind(_body(EVIL_PICKLE[:-5], PICKLE), "accept", "ContentDisallowed"),
    "pickle: compressed": Kind(
        _body(zlib.compress(EVIL_PICKLE), PICKLE, GZIP), "accept_content", "ContentDisallowed"
    ),
}

BOMBS = {
    "bomb: zlib": Kind(_bomb(zlib.compress, GZIP), "expands beyond"),
    "bomb: bzip2": Kind(_bomb(bz2.compress, BZIP2), "expands beyond"),
    "bomb: lists": Kind(
        lambda message: _body(bz2.compress(b"[[" + b"[]," * 300_000 + b"1],{},{}]"), JSON, BZIP2)(
            message
        ),
        "values",
    ),
    "bomb: lzma": Kind(_bomb(functools.partial(lzma.compress, preset=0), LZMA), "expands beyond"),
}

COMPRESSED = {
    "gzip: a lie": Kind(_body(b"no gzip", JSON, GZIP), "damaged"),
    "gzip: empty": Kind(_body(b"", JSON, GZIP), "truncated"),
    "gzip: cut off": Kind(_body(zlib.compress(GOOD_BODY)[:-6], JSON, GZIP), "truncated"),
    "gzip: more behind": Kind(_body(zlib.compress(GOOD_BODY) + b"x", JSON, GZIP), "other bytes"),
    "gzip: bad checksum": Kind(
        _body(zlib.compress(GOOD_BODY)[:-4] + b"xxxx", JSON, GZIP), "damaged"
    ),
    "bzip2: cut off": Kind(_body(bz2.compress(GOOD_BODY)[:-6], JSON, BZIP2), "truncated"),
    "bzip2: a lie": Kind(_body(b"no bzip2", JSON, BZIP2), "damaged"),
    "lzma: cut off": Kind(_body(lzma.compress(GOOD_BODY)[:-6], JSON, LZMA), "truncated"),
    "lzma: a lie": Kind(_body(b"no lzma", JSON, LZMA), "damaged"),
    "gzip: deep inside": Kind(_body(zlib.compress(b"[" * DEPTH), JSON, GZIP), "deeply"),
    "unknown compression": Kind(_body(b"[]", JSON, "application/x-none"), "unknown compression"),
    "compression is empty": Kind(_body(b"[]", JSON, ""), "unknown compression"),
}

VERSION_1 = {
    "version 1: args are text": Kind(_version_1(args="text"), "args"),
    "version 1: args are null": Kind(_version_1(args=None), "args"),
    "version 1: kwargs are a list": Kind(_version_1(kwargs=[]), "kwargs"),
    "version 1: task is a number": Kind(_version_1(task=5), "task is int"),
    "version 1: retries are text": Kind(_version_1(retries="x"), "retries is str"),
    "version 1: eta is no time": Kind(_version_1(eta="x"), "ISO 8601"),
    "version 1: callbacks are text": Kind(_version_1(callbacks="x"), "callbacks"),
    "version 1: chord is text": Kind(_version_1(chord="x"), "chord"),
    "version 1: id is a number": Kind(_version_1(id=5), "id is int", None),
    "version 1: unknown task": Kind(_version_1(task="no"), "unregistered", "NotRegistered"),
}

KINDS = {
    **GARBAGE,
    **ENVELOPE,
    **HEADERS,
    **JSON_BODIES,
    **OTHER_BODIES,
    **BOMBS,
    **COMPRESSED,
    **VERSION_1,
}


@pytest.fixture
def server(shared_server: Server) -> Server:
    """The shared Valkey, empty but for what it knows of the worker."""
    shared_server.clear()
    return shared_server


@pytest.fixture(scope="module")
def worker(shared_server: Server) -> Iterator[Process]:
    shared_server.flush()
    with greenq_worker(shared_server.url, settings=SETTINGS) as process:
        yield process


@pytest.fixture
def client(worker: Process, server: Server) -> Iterator[Greenq]:
    app = Greenq("client", broker=server.url, set_as_current=False)
    yield app
    app.close()


def good_message(client: Greenq) -> dict[str, Any]:
    outgoing = client.producer.prepare("shared.add", (1, 2), {}, {})
    message: dict[str, Any] = json.loads(outgoing["text"])
    return message


def assert_buried(
    client: Greenq, worker: Process, server: Server, raw: bytes, reason: str
) -> str | None:
    """Send a bad message and a good one behind it; return the task id of the dead letter."""
    server.client.lpush("celery", raw)
    # A good task behind it runs, in the same process, which has not even connected again
    assert client.send_task("shared.add", (1, 2)).get(timeout=BEHIND_S) == 3
    server.wait_settled()
    assert worker.alive
    assert worker.text.count("Connected to ") == 1
    # and the bad one is kept as it was, with the reason.
    (letter,) = client.transport.dead.list(["celery"])
    # Of bytes that name no task, the beginning is enough.
    assert letter.raw == (raw if letter.task is not None else raw[:65_536])
    assert reason in letter.reason
    assert "@" in letter.worker
    assert "Traceback" not in worker.text
    return letter.task_id


def assert_told(client: Greenq, task_id: str, kind: Kind) -> None:
    """Whoever waits for a bad message's result gets the failure and the same reason."""
    result = client.AsyncResult(task_id)
    error = result.get(timeout=WAIT_S, propagate=False)
    assert result.state == "FAILURE"
    # A reader that has no such class gets one of that name.
    assert type(error).__name__ == kind.told
    if kind.told != NotRegistered.__name__:
        assert kind.reason in str(error)


def test_the_kinds_are_many_and_differ() -> None:
    assert len(KINDS) >= 53
    message = {
        **{"body": "W10=", "content-type": JSON, "content-encoding": "utf-8"},
        **{"headers": {"id": "1", "task": "shared.add", "retries": 0}, "properties": {}},
    }
    cheap = {name: kind for name, kind in KINDS.items() if name not in BOMBS}
    assert len({kind.write(json.loads(json.dumps(message))) for kind in cheap.values()}) == len(
        cheap
    )


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_bad_message_is_set_aside_and_who_waits_for_it_is_told(
    client: Greenq, worker: Process, server: Server, kind: Kind
) -> None:
    message = good_message(client)
    task_id = message["headers"]["id"]
    named = assert_buried(client, worker, server, kind.write(message), kind.reason)
    if kind.told is not None:
        assert named in (task_id, None)
        assert_told(client, task_id, kind)
    else:
        # Only the good one's result is there.
        assert len(server.client.keys("celery-task-meta-*")) == 1
    assert not TOUCHED.exists()


def _peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text("utf-8")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads a process's peak memory from /proc")
def test_bombs_do_not_reach_the_workers_memory(server: Server) -> None:
    with (
        greenq_worker(server.url, settings=SETTINGS) as worker,
        closing(Greenq("client", broker=server.url, set_as_current=False)) as client,
    ):
        assert client.send_task("shared.add", (1, 2)).get(timeout=WAIT_S) == 3
        before = _peak_bytes(worker.pid)
        yaml = [OTHER_BODIES["yaml: nested aliases"], OTHER_BODIES["yaml: nested merges"]]
        for kind in [*BOMBS.values(), *yaml]:
            server.clear()
            assert_buried(client, worker, server, kind.write(good_message(client)), kind.reason)
        assert _peak_bytes(worker.pid) - before < MAX_GROWTH_BYTES


def test_an_unknown_task_is_set_aside_and_named(
    client: Greenq, worker: Process, server: Server
) -> None:
    result = client.send_task("shared.ad")
    error = result.get(timeout=WAIT_S, propagate=False)
    assert type(error) is NotRegistered
    server.wait_settled()
    (letter,) = client.transport.dead.list(["celery"])
    assert (letter.task, letter.task_id) == ("shared.ad", result.id)
    assert "unregistered" in letter.reason
    worker.wait_text("did you mean shared.add?")


def test_content_that_is_not_accepted_is_set_aside_unread(
    client: Greenq, worker: Process, server: Server
) -> None:
    result = client.send_task("shared.add", (1, 2), serializer="pickle")
    error = result.get(timeout=WAIT_S, propagate=False)
    assert type(error).__name__ == ContentDisallowed.__name__
    server.wait_settled()
    (letter,) = client.transport.dead.list(["celery"])
    assert (letter.task, letter.task_id) == ("shared.add", result.id)
    assert "accept_content" in letter.reason
    assert worker.alive


def test_a_dead_letter_can_be_sent_again_as_it_is(
    client: Greenq, worker: Process, server: Server
) -> None:
    message = good_message(client)
    task_id = message["headers"]["id"] = str(uuid.uuid4())
    message["headers"]["task"] = "shared.unknown"
    raw = json.dumps(message).encode()
    assert assert_buried(client, worker, server, raw, "unregistered") == task_id
    (letter,) = client.transport.dead.list(["celery"])
    server.client.lpush("celery", letter.raw)
    wait_until(lambda: len(list(client.transport.dead.list(["celery"]))) == 2)


SPOOFS: dict[str, Write] = {
    "unregistered": _header("task", "shared.unknown"),
    "unreadable": _header("retries", -1),
    "another task": _body([["other"], {}, EMBED]),
}


@pytest.mark.parametrize("spoof", SPOOFS.values(), ids=SPOOFS)
def test_a_message_with_the_id_of_a_task_that_succeeded_does_not_change_its_result(
    client: Greenq, worker: Process, server: Server, spoof: Write
) -> None:
    message = good_message(client)
    task_id = message["headers"]["id"]
    server.client.lpush("celery", _dump(message))
    assert client.AsyncResult(task_id).get(timeout=WAIT_S) == 3

    server.client.lpush("celery", spoof(message))
    assert client.send_task("shared.add", (1, 2)).get(timeout=WAIT_S) == 3
    server.wait_settled()

    result = client.AsyncResult(task_id)
    assert (result.state, result.result) == ("SUCCESS", 3)


@pytest.mark.parametrize("kind", ["unregistered", "unreadable"])
def test_a_message_that_cannot_run_does_not_change_the_failure_of_another_one_with_its_id(
    client: Greenq, worker: Process, server: Server, kind: str
) -> None:
    message = good_message(client)
    task_id = message["headers"]["id"]
    server.client.lpush("celery", _body([["only one"], {}, EMBED])(message))
    error = client.AsyncResult(task_id).get(timeout=WAIT_S, propagate=False)
    assert type(error) is TypeError

    server.client.lpush("celery", SPOOFS[kind](message))
    wait_until(server.dead_letters, WAIT_S)

    assert type(client.AsyncResult(task_id).result) is TypeError
