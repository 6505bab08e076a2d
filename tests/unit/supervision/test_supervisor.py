"""Talking to supervisord: addresses, the environment, refusals and silence."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from socketserver import StreamRequestHandler, TCPServer, ThreadingMixIn

import pytest

from greenq.errors import SupervisorError
from greenq.supervision.supervisor import Supervisor, membership

ENVIRONMENT = {
    "SUPERVISOR_GROUP_NAME": "g",
    "SUPERVISOR_PROCESS_NAME": "p",
    "SUPERVISOR_SERVER_URL": "unix:///tmp/s.sock",
}


@pytest.mark.parametrize("url", ["", "s.sock", "unix://", "https://h", "http://", "redis://h"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(SupervisorError, match="is not an address of supervisord"):
        Supervisor(url)


@pytest.mark.parametrize("missing", ENVIRONMENT)
def test_what_supervisord_did_not_set_is_named(missing: str) -> None:
    with pytest.raises(SupervisorError, match=missing):
        membership({name: ENVIRONMENT[name] for name in ENVIRONMENT if name != missing})


def test_the_place_under_supervisord_is_read_from_the_environment() -> None:
    place = membership(ENVIRONMENT)

    assert (place.group, place.process, place.supervisor.url) == ("g", "p", "unix:///tmp/s.sock")
    assert place.fingerprint("here") == membership(ENVIRONMENT).fingerprint("here")
    assert place.fingerprint("here") != place.fingerprint("there")
    other = membership(ENVIRONMENT | {"SUPERVISOR_GROUP_NAME": "h"})
    assert place.fingerprint("here") != other.fingerprint("here")


def test_a_missing_socket_is_an_error_in_words(tmp_path: Path) -> None:
    with pytest.raises(SupervisorError, match=r"supervisord at unix:.*does not answer"):
        Supervisor(f"unix://{tmp_path}/none.sock").group("g")


class Refusing(StreamRequestHandler):
    """Answers every request with the server's text."""

    def handle(self) -> None:
        self.request.recv(65536)
        self.wfile.write(self.server.answer)  # type: ignore[attr-defined]


class Port(ThreadingMixIn, TCPServer):
    allow_reuse_address = True
    daemon_threads = True
    answer = b""


@pytest.fixture
def port() -> Iterator[Port]:
    with Port(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.0 401 Unauthorized\r\n\r\n", "SUPERVISOR_USERNAME"),
        (b"HTTP/1.0 500 Oh\r\n\r\n", "answered 500 Oh"),
        (b"HTTP/1.0 200 OK\r\nContent-Type: text/xml\r\n\r\n<x", "does not answer"),
        (b"garbage\r\n\r\n", "does not answer"),
        (b"", "does not answer"),
    ],
)
def test_whatever_answers_is_an_error_in_words(port: Port, answer: bytes, said: str) -> None:
    port.answer = answer

    with pytest.raises(SupervisorError, match=said):
        Supervisor(f"http://127.0.0.1:{port.server_address[1]}").group("g")
