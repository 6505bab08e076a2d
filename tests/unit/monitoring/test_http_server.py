"""The HTTP server of a worker: what it answers, and what strangers cannot do to it."""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from greenq.monitoring import http_server
from greenq.monitoring.http_server import (
    MOST_CONNECTIONS,
    MOST_REQUEST_BYTES,
    CannotListen,
    HttpServer,
    Response,
    json_response,
)
from greenq.utils.probe import Address, ask
from tests.support import wait_until

WAIT_S = 10
LARGE = b"x" * 5_000_000


class Slow:
    """An answer that takes until it is released."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.times = 0

    def __call__(self) -> Response:
        self.times += 1
        self.go.wait(WAIT_S)
        return json_response(200, {"times": self.times})


def fail() -> Response:
    raise RuntimeError("on purpose")


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def server(slow: Slow) -> Iterator[HttpServer]:
    quick = {
        "/quick": lambda: json_response(200, {"so": "quick"}),
        "/red": lambda: json_response(503, {}),
        "/large": lambda: Response(200, LARGE, "text/plain"),
        "/broken": fail,
    }
    server = HttpServer([Address("127.0.0.1", 0)], quick=quick, slow={"/slow": slow})
    server.start()
    yield server
    slow.go.set()
    server.stop()


def port_of(server: HttpServer) -> int:
    return server.bound[0].port


def get(server: HttpServer, path: str, method: str = "GET") -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port_of(server), timeout=WAIT_S)
    connection.request(method, path)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body, dict(answer.getheaders())


def raw(server: HttpServer, data: bytes) -> bytes:
    """Send bytes, return all that comes back."""
    with socket.create_connection(("127.0.0.1", port_of(server)), WAIT_S) as client:
        client.sendall(data)
        found = b""
        while part := client.recv(100_000):
            found += part
    return found


def test_fixed_paths_are_answered(server: HttpServer) -> None:
    status, body, headers = get(server, "/quick")
    assert (status, json.loads(body)) == (200, {"so": "quick"})
    assert headers["Content-Type"] == "application/json"
    assert headers["Connection"] == "close"
    assert get(server, "/red")[0] == 503
    assert get(server, "/quick?with=query")[0] == 200


def test_head_has_no_body(server: HttpServer) -> None:
    status, body, headers = get(server, "/quick", "HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 0


def test_a_large_answer_arrives_whole(server: HttpServer) -> None:
    assert get(server, "/large")[1] == LARGE


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /nothing HTTP/1.1\r\n\r\n", 404),
        (b"GET /quick/../quick HTTP/1.1\r\n\r\n", 404),
        (b"POST /quick HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi", 405),
        (b"hello\r\n\r\n", 400),
        (b"GET http://elsewhere/ HTTP/1.1\r\n\r\n", 400),
        (b"GET /quick SPDY/3\r\n\r\n", 400),
        (b"\x16\x03\x01\x00\xa5\x01\x00\n\n", 400),
        (b"GET /" + b"x" * MOST_REQUEST_BYTES, 431),
    ],
)
def test_other_requests_are_refused(server: HttpServer, request_bytes: bytes, status: int) -> None:
    assert raw(server, request_bytes).startswith(f"HTTP/1.1 {status} ".encode())
    assert get(server, "/quick")[0] == 200


def test_an_error_in_an_answer_is_one_client_s(
    server: HttpServer, caplog: pytest.LogCaptureFixture
) -> None:
    status, body, _ = get(server, "/broken")
    assert status == 500
    assert b"RuntimeError" in body
    assert b"on purpose" not in body
    assert "/broken could not be answered" in caplog.text
    assert get(server, "/quick")[0] == 200


def test_a_request_may_come_byte_by_byte(server: HttpServer) -> None:
    with socket.create_connection(("127.0.0.1", port_of(server)), WAIT_S) as client:
        for byte in b"GET /quick HTTP/1.0\r\n\r\n":
            client.sendall(bytes([byte]))
        assert client.recv(1000).startswith(b"HTTP/1.1 200")


def test_silent_clients_do_not_keep_others_waiting(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Their time does not run out.
    monkeypatch.setattr(http_server, "CLIENT_S", 3600.0)
    with ExitStack() as open_clients:
        silent = [
            open_clients.enter_context(
                socket.create_connection(("127.0.0.1", port_of(server)), WAIT_S)
            )
            for _ in range(3 * MOST_CONNECTIONS)
        ]
        assert get(server, "/quick")[0] == 200
        wait_until(lambda: len(server._exchanges) <= MOST_CONNECTIONS)
        # The oldest had to go.
        assert silent[0].recv(1) == b""


def test_a_client_that_is_too_slow_is_dropped(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "CLIENT_S", 0.05)
    assert raw(server, b"GET /quick HTT") == b""
    with socket.create_connection(("127.0.0.1", port_of(server)), WAIT_S) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(b"GET /large HTTP/1.0\r\n\r\n")
        # It reads nothing.
        wait_until(lambda: not server._exchanges)


def test_slow_answers_hold_up_nobody_and_are_shared(server: HttpServer, slow: Slow) -> None:
    answers: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: answers.append(get(server, "/slow")[1])) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: [each.path for each in server._exchanges] == ["/slow"] * 3)
    assert get(server, "/quick")[0] == 200
    slow.go.set()
    for thread in threads:
        thread.join()
    assert [json.loads(answer)["times"] for answer in answers] == [1, 1, 1]
    assert json.loads(get(server, "/slow")[1]) == {"times": 2}


def test_an_answer_that_takes_too_long_is_given_up(
    server: HttpServer, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "ANSWER_S", 0.05)
    assert get(server, "/slow")[0] == 503
    slow.go.set()


def test_no_thread_runs_while_nobody_asks(server: HttpServer) -> None:
    get(server, "/quick")
    wait_until(lambda: not server._exchanges)
    thread: Any = server._thread
    clock = time.pthread_getcpuclockid(thread._number)
    before_s = time.clock_gettime(clock)
    get(server, "/quick")
    wait_until(lambda: not server._exchanges)
    assert server._pause_s() == http_server._IDLE_S
    assert time.clock_gettime(clock) - before_s < 0.1


def test_a_port_in_use_is_named(server: HttpServer) -> None:
    address = Address("127.0.0.1", port_of(server))
    other = HttpServer([Address("127.0.0.1", 0), address], quick={}, slow={})
    with pytest.raises(CannotListen, match=rf"cannot listen on {address}: Address already in use"):
        other.start()
    assert other.bound == []


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(CannotListen, match=r"203\.0\.113\.1:0"):
        HttpServer([Address("203.0.113.1", 0)], quick={}, slow={}).start()


def test_a_unix_socket_is_its_user_s_and_goes_with_the_worker(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    quick = {"/quick": lambda: json_response(200, {})}
    server = HttpServer([Address(path=str(path))], quick=quick, slow={})
    server.start()
    assert path.stat().st_mode & 0o777 == 0o600
    assert ask(Address(path=str(path)), "/quick", WAIT_S) == (200, "{}\n")
    with pytest.raises(CannotListen, match="in use"):
        HttpServer([Address(path=str(path))], quick={}, slow={}).start()
    assert ask(Address(path=str(path)), "/quick", WAIT_S)[0] == 200
    server.stop()
    assert not path.exists()


def test_a_socket_left_behind_by_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    server = HttpServer([Address(path=str(path))], quick={}, slow={})
    server.start()
    server.stop()


def test_a_file_is_not_replaced_by_a_socket(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(CannotListen, match="is not a socket"):
        HttpServer([Address(path=str(path))], quick={}, slow={}).start()
    assert path.read_text() == "data"


def test_a_forked_child_keeps_no_port(server: HttpServer) -> None:
    address = Address("127.0.0.1", port_of(server))
    reader, writer = os.pipe()
    ready, forked = os.pipe()
    with warnings.catch_warnings():
        # Later Pythons warn of the threads that the child lacks.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        os.close(writer)
        os.write(forked, b"!")
        # Until the parent has closed its end.
        os.read(reader, 1)
        os._exit(0)
    os.read(ready, 1)
    server.stop()
    again = HttpServer([address], quick={}, slow={})
    again.start()
    again.stop()
    for each in (reader, writer, ready, forked):
        os.close(each)
    assert os.waitpid(pid, 0)[1] == 0


def test_what_slow_answers_use_is_closed_at_the_end() -> None:
    closed: list[bool] = []
    slow = {"/slow": lambda: json_response(200, {})}
    server = HttpServer(
        [Address("127.0.0.1", 0)], quick={}, slow=slow, finish=lambda: closed.append(True)
    )
    server.start()
    get(server, "/slow")
    server.stop()
    assert closed == [True]


def test_it_ends_with_its_clients(server: HttpServer) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    with socket.create_connection(("127.0.0.1", port_of(server)), WAIT_S) as client:
        wait_until(lambda: len(server._exchanges) == 1)
        server.stop()
        assert client.recv(1) == b""
    assert len(os.listdir("/proc/self/fd")) < descriptors
