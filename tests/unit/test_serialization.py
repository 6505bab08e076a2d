"""Serializers and compressions of one's own, as kombu's: the same names on the wire."""

from __future__ import annotations

import base64
import codecs
import json
from collections.abc import Iterator
from typing import Any

import kombu.compression
import kombu.serialization
import pytest

from greenq import Greenq, compression, serialization
from greenq.config import validators
from greenq.errors import ConfigError, ContentDisallowed, DecodeError
from greenq.execution.reader import MessageReader
from greenq.protocol import compress, serialize
from tests.servers import Server

ROT = "application/x-rot13"
TURNED = "application/x-turned"


def rot_dumps(value: Any) -> str:
    return codecs.encode(json.dumps(value), "rot13")


def rot_loads(data: bytes) -> Any:
    return json.loads(codecs.decode(data.decode(), "rot13"))


def turned(data: bytes) -> bytes:
    return data[::-1]


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Register both, here and with kombu, and forget them afterwards."""
    monkeypatch.setattr(serialize, "_FORMATS", dict(serialize._FORMATS))
    monkeypatch.setattr(serialize, "_LOADERS", dict(serialize._LOADERS))
    monkeypatch.setattr(serialize, "_CONTENT_TYPES", dict(serialize._CONTENT_TYPES))
    monkeypatch.setattr(compress, "_CONTENT_TYPES", dict(compress._CONTENT_TYPES))
    monkeypatch.setattr(compress, "_added", {})
    serialization.register("rot13", rot_dumps, rot_loads, ROT, "utf-8")
    serialization.register("rot13", rot_dumps, rot_loads, ROT, "utf-8")
    compression.register(turned, turned, TURNED, aliases=["turned"])
    kombu.serialization.register("rot13", rot_dumps, rot_loads, ROT, "utf-8")
    kombu.compression.register(turned, turned, TURNED, aliases=["turned"])
    yield
    kombu.serialization.unregister("rot13")
    validators.SERIALIZERS.remove("rot13")
    for name in (TURNED, "turned"):
        validators.COMPRESSIONS.remove(name)


@pytest.mark.usefixtures("registered")
def test_message_says_how_to_read_it_and_kombu_can(server: Server) -> None:
    app = Greenq(
        "own", broker=server.url, task_serializer="rot13", accept_content=["rot13"],
        task_compression="turned", set_as_current=False,
    )  # fmt: skip
    app.send_task("proj.add", (1, 2))
    app.close()
    [element] = server.queued()
    message = json.loads(element)
    assert (message["content-type"], message["content-encoding"]) == (ROT, "utf-8")
    assert message["headers"]["compression"] == TURNED
    body = kombu.compression.decompress(base64.b64decode(message["body"]), TURNED)
    read = kombu.serialization.loads(body, ROT, "utf-8", accept=[ROT])
    assert read[0] == [1, 2]
    # A worker with these settings reads it; one that does not accept it refuses.
    config = app.config.task
    ours = MessageReader(config, serialize.accepted(config.accept_content)).read(element)
    assert (ours.task, list(ours.args)) == ("proj.add", [1, 2])
    with pytest.raises(ContentDisallowed, match=ROT):
        MessageReader(config, serialize.accepted(["json"])).read(element)
    other = Greenq("other", broker=server.url, set_as_current=False).config.task
    with pytest.raises(DecodeError, match="is not accepted"):
        MessageReader(other, serialize.accepted(["rot13"])).read(element)


@pytest.mark.usefixtures("registered")
def test_message_of_kombu_is_read() -> None:
    content_type, encoding, data = kombu.serialization.dumps([[1], {}, {}], "rot13")
    assert serialize.loads(data.encode(), content_type, encoding, frozenset([ROT])) == [[1], {}, {}]
    packed, kind = kombu.compression.compress(b"abc", "turned")
    assert compress.decompress(packed, kind, 10, compress.accepted("turned")) == b"abc"
    with pytest.raises(DecodeError, match="expands beyond 2 bytes"):
        compress.decompress(packed, kind, 2, compress.accepted("turned"))
    with pytest.raises(DecodeError, match="not accepted"):
        compress.decompress(packed, kind, 10)


@pytest.mark.usefixtures("registered")
def test_results_are_written_with_it(server: Server) -> None:
    app = Greenq(
        "own", broker=server.url, result_serializer="rot13", result_compression="turned",
        accept_content=["json", "rot13"], set_as_current=False,
    )  # fmt: skip
    app.backend.store("a", "SUCCESS", {"n": 1})
    assert app.AsyncResult("a").get(timeout=10) == {"n": 1}
    app.GroupResult("g", [app.AsyncResult("a")]).save()
    assert app.GroupResult.restore("g").get(timeout=10) == [{"n": 1}]
    assert b"status" not in server.client.get("celery-task-meta-a")
    app.close()


@pytest.mark.usefixtures("registered")
def test_route_may_name_them() -> None:
    route = {"serializer": "rot13", "compression": "turned"}
    app = Greenq(broker="redis://nowhere", task_routes={"t": route}, set_as_current=False)
    assert app.conf.task_routes == ({"t": route},)
    with pytest.raises(ConfigError, match="rot13"):
        Greenq(broker="redis://nowhere", task_routes={"t": {"serializer": "rot14"}}).finalize()


@pytest.mark.usefixtures("registered")
def test_bytes_and_errors_of_its_own() -> None:
    serialization.register("rot13", bytes, bytes, ROT, "binary")
    assert serialize.dumps([1, 2], "rot13") == (b"\x01\x02", ROT, "binary")
    assert serialize.loads(b"\x01", ROT, "binary", frozenset([ROT])) == b"\x01"
    serialization.register("rot13", str, rot_loads, ROT)
    assert serialize.dumps("é", "rot13").data == "é".encode()
    with pytest.raises(DecodeError, match="not readable as application/x-rot13"):
        serialize.loads(b"\xff", ROT, "utf-8", frozenset([ROT]))


def test_what_is_built_in_stays() -> None:
    with pytest.raises(ValueError, match="built-in"):
        serialization.register("json", rot_dumps, rot_loads, ROT)
    with pytest.raises(ValueError, match="built-in"):
        serialization.register("mine", rot_dumps, rot_loads, "application/json")
    with pytest.raises(ValueError, match="built-in"):
        compression.register(turned, turned, TURNED, aliases=["gzip"])
    with pytest.raises(ValueError, match="built-in"):
        compression.register(turned, turned, "application/x-gzip")
    assert "mine" not in validators.SERIALIZERS
    with pytest.raises(ConfigError, match="must be one of json"):
        Greenq("own", task_serializer="rot13", set_as_current=False)
