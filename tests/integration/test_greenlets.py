"""What greenlets that wait on sockets, or in the patched standard library, are told to wait for."""

from __future__ import annotations

import ast
import os
import select as native_select
import socket as native_socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import gevent.event
import gevent.select
import gevent.selectors
import gevent.socket
import gevent.ssl
import gevent.threadpool
import pytest
import trustme

from greenq.diagnostics.stacks import waits_on

pytestmark = pytest.mark.smoke

DEADLINE_S = 10.0

# For the kernel to queue no connection beyond the first few.
FULL = 16


def listening(address: Any, family: int = gevent.socket.AF_INET) -> Any:
    """Return a listener whose accept waits in the hub; `create_server` would make a native one."""
    listener = gevent.socket.socket(family)
    listener.bind(address)
    listener.listen()
    return listener


def told(run: Callable[[], object]) -> str:
    """Run something until it waits, end it, and return what it waits for."""
    greenlet: Any = gevent.spawn(run)
    with gevent.Timeout(DEADLINE_S):
        while greenlet.gr_frame is None and not greenlet.dead:
            gevent.sleep(0)
        # What is ready at once must not be taken for a wait.
        gevent.sleep(0.05)
    try:
        assert not greenlet.dead, repr(greenlet.value or greenlet.exception)
        return waits_on(greenlet.gr_frame)
    finally:
        greenlet.kill(timeout=DEADLINE_S)


class Silent:
    """A server of the kernel's alone: it takes connections and says nothing."""

    def __init__(self) -> None:
        self.listener = native_socket.create_server(("127.0.0.1", 0), backlog=FULL)
        self.address = self.listener.getsockname()
        self.name = f"127.0.0.1:{self.address[1]}"
        self._opened: list[Any] = [self.listener]

    def connect(self) -> Any:
        self._opened.append(gevent.socket.create_connection(self.address))
        return self._opened[-1]

    def udp(self) -> Any:
        self._opened.append(gevent.socket.socket(type=gevent.socket.SOCK_DGRAM))
        self._opened[-1].bind(("127.0.0.1", 0))
        return self._opened[-1]

    def close(self) -> None:
        for each in self._opened:
            each.close()


@pytest.fixture
def silent() -> Iterator[Silent]:
    server = Silent()
    yield server
    server.close()


def test_receiving_is_told_with_the_peer(silent: Silent) -> None:
    connection = silent.connect()

    for receive in (
        lambda: connection.recv(1),
        lambda: connection.recv_into(bytearray(1)),
        lambda: connection.recvmsg(1),
        lambda: connection.makefile("rb").readline(),
    ):
        assert told(receive) == f"recv {silent.name}"


def test_sending_is_told_with_the_peer(silent: Silent) -> None:
    connection = silent.connect()

    assert told(lambda: connection.sendall(bytes(100_000_000))) == f"send {silent.name}"


def test_accepting_is_told_with_the_own_address() -> None:
    with listening(("127.0.0.1", 0)) as listener:
        assert told(listener.accept) == f"accept at 127.0.0.1:{listener.getsockname()[1]}"


def test_connecting_is_told_with_the_address() -> None:
    # Given a listener that has as many connections waiting as it may
    with native_socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        waiting = []
        for _ in range(8):
            each = native_socket.socket()
            each.setblocking(False)
            each.connect_ex(address)
            waiting.append(each)
        try:
            connecting = told(lambda: gevent.socket.create_connection(address))
        finally:
            for each in waiting:
                each.close()

    assert connecting == f"connect 127.0.0.1:{address[1]}"


def test_a_datagram_socket_is_told_with_its_own_address(silent: Silent) -> None:
    unconnected = silent.udp()

    assert (
        told(lambda: unconnected.recvfrom(1)) == f"recv at 127.0.0.1:{unconnected.getsockname()[1]}"
    )


def test_unix_and_ipv6_addresses_are_written_as_people_do(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with listening(path, gevent.socket.AF_UNIX) as listener:
        assert told(listener.accept) == f"accept at {path}"
        with gevent.socket.socket(gevent.socket.AF_UNIX) as client:
            client.connect(path)
            assert told(lambda: client.recv(1)) == f"recv {path}"
    with listening("\0greenq-test-abstract", gevent.socket.AF_UNIX) as listener:
        assert told(listener.accept) == "accept at @greenq-test-abstract"
    if native_socket.has_dualstack_ipv6():
        with listening(("::1", 0), gevent.socket.AF_INET6) as listener:
            assert told(listener.accept) == f"accept at [::1]:{listener.getsockname()[1]}"


def test_a_pair_without_addresses_is_told_without() -> None:
    one, other = gevent.socket.socketpair()
    with one, other:
        assert told(lambda: one.recv(1)) == "recv"


def test_tls_is_told_with_the_peer(silent: Silent) -> None:
    authority = trustme.CA()
    served = gevent.ssl.SSLContext(gevent.ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(served)
    asking = gevent.ssl.SSLContext(gevent.ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(asking)
    with asking.wrap_socket(
        silent.connect(), server_hostname="localhost", do_handshake_on_connect=False
    ) as connection:
        assert told(connection.do_handshake) == f"handshake {silent.name}"

    with listening(("127.0.0.1", 0)) as listener:

        def serve() -> Any:
            connection, _ = listener.accept()
            return served.wrap_socket(connection, server_side=True)

        serving = gevent.spawn(serve)
        address = listener.getsockname()
        plain = gevent.socket.create_connection(address)
        with asking.wrap_socket(plain, server_hostname="localhost") as connection:
            name = f"127.0.0.1:{address[1]}"
            assert told(lambda: connection.recv(1)) == f"recv {name}"
            assert told(lambda: connection.sendall(bytes(100_000_000))) == f"send {name}"
        serving.get(timeout=DEADLINE_S).close()


def test_a_lookup_is_told_with_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a resolver whose only thread is busy
    busy = threading.Event()
    pool = gevent.threadpool.ThreadPool(1)
    pool.spawn(busy.wait, DEADLINE_S)
    monkeypatch.setattr(gevent.get_hub().resolver, "pool", pool)
    try:
        for look_up in (
            lambda: gevent.socket.getaddrinfo("localhost", 80),
            lambda: gevent.socket.create_connection(("localhost", 80)),
            lambda: gevent.socket.gethostbyname("localhost"),
        ):
            assert told(look_up) == "getaddrinfo localhost"
    finally:
        busy.set()
        pool.kill()


def test_select_poll_and_selectors_are_told_with_the_peers(silent: Silent) -> None:
    connection = silent.connect()
    assert told(lambda: gevent.select.select([connection], [], [])) == f"select {silent.name}"
    assert (
        told(lambda: gevent.select.select([connection.fileno()], [], [])) == f"select {silent.name}"
    )

    poll = gevent.select.poll()
    poll.register(connection, native_select.POLLIN)
    assert told(poll.poll) == f"select {silent.name}"

    with gevent.selectors.GeventSelector() as selector:
        selector.register(connection, 1)
        assert told(selector.select) == f"select {silent.name}"
    # And the descriptor is still the connection's own.
    assert connection.getpeername() == silent.address


def test_many_peers_are_told_by_the_first_and_a_pipe_without(silent: Silent) -> None:
    servers = [Silent() for _ in range(5)]
    names = sorted(each.name for each in servers)
    connections = [each.connect() for each in servers]
    assert (
        told(lambda: gevent.select.select(connections, [], []))
        == f"select {', '.join(names[:3])}, +2"
    )
    for each in servers:
        each.close()

    reader, writer = os.pipe()
    assert told(lambda: gevent.select.select([reader], [], [])) == "select"
    os.close(reader)
    os.close(writer)


def test_a_database_connection_that_waits_by_psycogreen_is_told_with_its_server(
    silent: Silent,
) -> None:
    class Connection:
        """Has of a psycopg2 connection what its wait callback uses."""

        def __init__(self, number: int) -> None:
            self.number = number

        def fileno(self) -> int:
            if self.number < 0:
                raise RuntimeError("connection already closed")
            return self.number

    # The module's callback has this shape and this name; it is imported under no other.
    source = "def gevent_wait_callback(conn, timeout=None):\n    wait()\n"
    names: dict[str, Any] = {
        "__name__": "psycogreen.gevent",
        "wait": gevent.event.Event().wait,
    }
    exec(compile(source, "psycogreen/gevent.py", "exec"), names)
    callback = names["gevent_wait_callback"]
    connection = silent.connect()

    assert told(lambda: callback(Connection(connection.fileno()))) == f"select {silent.name}"
    assert told(lambda: callback(Connection(-1))) == "select"


def test_a_socket_that_is_closed_meanwhile_is_told_without_its_address(silent: Silent) -> None:
    connection = silent.connect()
    greenlet: Any = gevent.spawn(connection.recv, 1)
    with gevent.Timeout(DEADLINE_S):
        while greenlet.gr_frame is None:
            gevent.sleep(0)

    connection.close()

    # It has been told to end, and has not had its turn yet.
    assert waits_on(greenlet.gr_frame) == "recv"
    greenlet.kill(timeout=DEADLINE_S)


# Only patching makes the standard library's waits gevent's; that is for a process of its own.
PATCHED = """
import gevent.monkey
gevent.monkey.patch_all()
import concurrent.futures, queue, subprocess, threading, time, urllib.request, socket, sys
import gevent
from greenq.diagnostics.stacks import waits_on

def condition():
    it = threading.Condition()
    with it:
        it.wait(60)

def lock():
    it = threading.Lock()
    it.acquire()
    with it:
        pass

def rlock():
    it = threading.RLock()
    gevent.spawn(it.acquire).join()
    with it:
        pass

def thread():
    it = threading.Thread(target=time.sleep, args=(60,), daemon=True)
    it.start()
    it.join()

def future():
    concurrent.futures.ThreadPoolExecutor(1).submit(time.sleep, 60).result()

def process():
    # It ends with its parent.
    subprocess.Popen(["cat"], stdin=subprocess.PIPE).wait()

listener = socket.create_server(("127.0.0.1", 0))
url = "http://127.0.0.1:%d/secret" % listener.getsockname()[1]
items = queue.Queue()
runs = {
    "condition": condition,
    "lock": lock,
    "rlock": rlock,
    "thread": thread,
    "future": future,
    "semaphore": lambda: threading.Semaphore(0).acquire(),
    "barrier": lambda: threading.Barrier(2).wait(),
    "queue": lambda: items.get(),
    "sleep": lambda: time.sleep(60),
    "process": process,
    "http": lambda: urllib.request.urlopen(url),
}
started = {name: gevent.spawn(run) for name, run in runs.items()}
gevent.sleep(0.2)
told = {name: waits_on(each.gr_frame) for name, each in started.items()}
told["url"] = url
gevent.killall(list(started.values()), block=False)
print(told, flush=True)
import os
os._exit(0)
"""


def test_waits_of_the_patched_standard_library_are_told_by_kind() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PATCHED],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    found = ast.literal_eval(ran.stdout)

    server = found.pop("url").split("/")[2]
    assert found == {
        "condition": "condition",
        "lock": "lock",
        "rlock": "lock",
        "thread": "thread",
        "future": "future",
        "semaphore": "semaphore",
        "barrier": "barrier",
        "queue": "items.get()",
        "sleep": "sleep 60",
        "process": "subprocess",
        "http": f"recv {server}",
    }
