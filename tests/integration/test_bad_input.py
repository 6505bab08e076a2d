"""What a worker cannot run is set aside with the reason, and nothing behind it waits."""

from __future__ import annotations

import base64
import json
import uuid
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from greenq import Greenq
from greenq.errors import ContentDisallowed, DecodeError, NotRegistered
from tests.servers import Process, Server, greenq_worker
from tests.support import wait_until

WAIT_S = 15
MAX_BODY_BYTES = 1_000_000

Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def worker(shared_server: Server) -> Iterator[Process]:
    shared_server.flush()
    settings = {"task_max_body_bytes": MAX_BODY_BYTES}
    with greenq_worker(shared_server.url, settings=settings) as process:
        yield process


@pytest.fixture
def client(worker: Process, server: Server) -> Iterator[Greenq]:
    app = Greenq("client", broker=server.url, set_as_current=False)
    yield app
    app.close()


def assert_buried(
    client: Greenq, worker: Process, server: Server, raw: bytes, reason: str
) -> str | None:
    """Send a bad message and a good one behind it; return the task id that could be read."""
    server.client.lpush("celery", raw)
    # A good task behind it runs, in the same process
    assert client.send_task("shared.add", (1, 2)).get(timeout=WAIT_S) == 3
    server.wait_settled()
    assert worker.alive
    # and the bad one is kept as it was, with the reason.
    (letter,) = client.transport.dead.list(["celery"])
    assert letter.raw == raw
    assert reason in letter.reason
    assert "@" in letter.worker
    assert "Traceback" not in worker.text
    return letter.task_id


# --- bytes that are no message at all -----------------------------------------------------------

GARBAGE = {
    "not utf-8": (b"\xff\xfe\x00", "not readable as JSON"),
    "empty": (b"", "not readable as JSON"),
    "not JSON": (b"{broken", "not readable as JSON"),
    "list": (b"[1, 2]", ""),
    "number": (b"17", ""),
    "null": (b"null", ""),
    "empty object": (b"{}", ""),
    "deep nesting": (b"[" * 100_000, "not readable as JSON"),
    "deep and closed": (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "not readable as JSON"),
    "zero bytes": (b"\0" * 1000, "not readable as JSON"),
}


@pytest.mark.parametrize(("raw", "reason"), GARBAGE.values(), ids=GARBAGE)
def test_bytes_that_are_no_message_are_set_aside(
    client: Greenq, worker: Process, server: Server, raw: bytes, reason: str
) -> None:
    assert assert_buried(client, worker, server, raw, reason) is None


# --- messages that are wrong somewhere ----------------------------------------------------------


class Bad(NamedTuple):
    """A change to a good message, and part of the reason that is given for the refusal."""

    change: Change
    reason: str = ""


def _without(key: str) -> Change:
    return lambda message: message.pop(key)


def _set(*path_and_value: Any) -> Change:
    *path, last, value = path_and_value

    def change(message: dict[str, Any]) -> None:
        place = message
        for key in path:
            place = place[key]
        place[last] = value

    return change


def _body(value: Any) -> Change:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return _set("body", base64.b64encode(data).decode())


def _compressed(name: str, data: bytes) -> Change:
    def change(message: dict[str, Any]) -> None:
        message["headers"]["compression"] = name
        message["body"] = base64.b64encode(data).decode()

    return change


EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}

# Those whose task id cannot be read: nobody can be told.
UNREADABLE = {
    "no body": Bad(_without("body"), "body"),
    "no properties": Bad(_without("properties"), "properties"),
    "no headers": Bad(_without("headers")),
    "headers are a list": Bad(_set("headers", []), "headers"),
    "properties are text": Bad(_set("properties", "x"), "properties"),
    "body is a number": Bad(_set("body", 5), "body"),
    "body is not base64": Bad(_set("body", "a"), "base64"),
    "unknown body encoding": Bad(_set("properties", "body_encoding", "rot13"), "rot13"),
    "content type is a number": Bad(_set("content-type", 5), "content-type"),
    "delivery info is text": Bad(_set("properties", "delivery_info", "x"), "delivery_info"),
    "no id": Bad(_set("headers", "id", None)),
    "id is a number": Bad(_set("headers", "id", 5), "id is int"),
}

READABLE = {
    "body is not JSON": Bad(_body(b"{broken")),
    "body is not utf-8": Bad(_body(b'["\xff"]')),
    "body is a number": Bad(_body(5), "body is not"),
    "body has two parts": Bad(_body([[], {}]), "body is not"),
    "args are text": Bad(_body(["text", {}, EMBED]), "args"),
    "args are an object": Bad(_body([{}, {}, EMBED]), "args"),
    "kwargs are a list": Bad(_body([[], [], EMBED]), "kwargs"),
    "embed is text": Bad(_body([[], {}, "text"]), "embed"),
    "deeply nested arguments": Bad(_body(b"[[" + b"[" * 50_000 + b"]" * 50_000 + b"], {}, {}]")),
    "body is too large": Bad(_body([["x" * MAX_BODY_BYTES], {}, EMBED]), "larger than"),
    "a bomb": Bad(_compressed("application/x-gzip", zlib.compress(bytes(10**8))), "expands beyond"),
    "compression is a lie": Bad(_compressed("application/x-gzip", b"no gzip")),
    "unknown compression": Bad(_compressed("application/x-none", b"[]")),
    "no task": Bad(_set("headers", "task", None), "task"),
    "task is a number": Bad(_set("headers", "task", 5), "task is int"),
    "eta is no time": Bad(_set("headers", "eta", "tomorrow"), "tomorrow"),
    "eta is a number": Bad(_set("headers", "eta", 5), "eta"),
    "expires is no time": Bad(_set("headers", "expires", "never"), "never"),
    "retries are text": Bad(_set("headers", "retries", "x"), "retries"),
    "time limits are three": Bad(_set("headers", "timelimit", [1, 2, 3]), "timelimit"),
    "time limit is text": Bad(_set("headers", "timelimit", ["x", None]), "timelimit"),
    "root id is a list": Bad(_set("headers", "root_id", []), "root_id"),
    "a callback": Bad(
        _body([[1, 2], {}, EMBED | {"callbacks": [{"task": "shared.add"}]}]), "not supported"
    ),
}


def good_message(client: Greenq) -> dict[str, Any]:
    outgoing = client.producer.prepare("shared.add", (1, 2), {}, {})
    message: dict[str, Any] = json.loads(outgoing["text"])
    return message


@pytest.mark.parametrize("bad", UNREADABLE.values(), ids=UNREADABLE)
def test_a_message_without_a_readable_id_is_set_aside(
    client: Greenq, worker: Process, server: Server, bad: Bad
) -> None:
    message = good_message(client)
    bad.change(message)
    assert_buried(client, worker, server, json.dumps(message).encode(), bad.reason)


@pytest.mark.parametrize("bad", READABLE.values(), ids=READABLE)
def test_whoever_waits_for_a_wrong_message_is_told(
    client: Greenq, worker: Process, server: Server, bad: Bad
) -> None:
    message = good_message(client)
    bad.change(message)
    result = client.AsyncResult(message["headers"]["id"])
    told = assert_buried(client, worker, server, json.dumps(message).encode(), bad.reason)
    assert told == result.id
    error = result.get(timeout=WAIT_S, propagate=False)
    assert result.state == "FAILURE"
    # A reader that has no such class gets one of that name.
    assert type(error).__name__ == DecodeError.__name__
    assert bad.reason in str(error)


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
