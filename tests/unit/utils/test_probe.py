"""``greenq health``: what it reads, what it returns, and how little it loads."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from greenq.utils import probe
from greenq.utils.probe import Address, parse_address
from tests.servers import free_port

ENTRY = "import sys; from greenq.__main__ import main; sys.exit(main())"
SHOWN = "import sys; from greenq.__main__ import main; main(); print(*sys.modules, file=sys.stderr)"


@contextmanager
def answering(*answers: bytes) -> Iterator[int]:
    """Answer one connection after another; the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            for each in answers:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(each)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(10)


def http(status: int, text: str = "{}\n") -> bytes:
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()


@pytest.mark.parametrize(
    ("text", "address", "written"),
    [
        ("9808", Address("127.0.0.1", 9808), "127.0.0.1:9808"),
        ("0.0.0.0:9808", Address("0.0.0.0", 9808), "0.0.0.0:9808"),
        (" localhost:1 ", Address("localhost", 1), "localhost:1"),
        ("[::1]:9808", Address("::1", 9808), "[::1]:9808"),
        ("unix:/run/a.sock", Address(path="/run/a.sock"), "unix:/run/a.sock"),
        ("unix:///run/a.sock", Address(path="/run/a.sock"), "unix:/run/a.sock"),
    ],
)
def test_an_address_is_read(text: str, address: Address, written: str) -> None:
    assert parse_address(text) == address
    assert str(address) == written
    assert parse_address(written) == address


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "must be a port"),
        ("localhost", "must be a port"),
        ("65536", "must be a port"),
        ("-1", "must be a port"),
        ("http://x:80/", "must be a port"),
        (":9808", "0.0.0.0:9808"),
        ("::1:9808", "brackets"),
        ("unix:run/a.sock", "begins with /"),
        ("unix:", "begins with /"),
    ],
)
def test_what_is_no_address_is_explained(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=r"must be a port") as caught:
        parse_address(text)
    assert hint in str(caught.value)


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (404, 1)])
def test_the_exit_code_is_a_healthcheck_s(
    status: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(http(status, '{"reasons": []}\n'), http(status)) as port:
        assert probe.main([str(port)]) == code
        assert capsys.readouterr() == ('{"reasons": []}\n', "")
        assert probe.main([str(port), "--quiet", "--probe", "ready"]) == code
        assert capsys.readouterr() == ("", "")


def test_nobody_there_is_unhealthy_and_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    assert probe.main([str(port)]) == 1
    assert f"no worker answers at 127.0.0.1:{port}: Connection refused" in capsys.readouterr().err
    assert probe.main([f"unix:{tmp_path}/none.sock"]) == 1
    assert "No such file" in capsys.readouterr().err


def test_a_stranger_is_not_a_worker(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(b"SSH-2.0-x\r\n") as port:
        assert probe.main([str(port)]) == 1
    assert "not a greenq worker" in capsys.readouterr().err


def test_a_silent_server_is_not_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert probe.main([str(port), "-t", "0.1"]) == 1
    assert f"no answer from 127.0.0.1:{port} within 0.1 s" in capsys.readouterr().err


def test_the_address_is_the_worker_s_setting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("GREENQ_WORKER_HEALTH_ADDRESS", "GREENQ_WORKER_METRICS_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert probe.main([]) == 1
    assert "set GREENQ_WORKER_HEALTH_ADDRESS" in capsys.readouterr().err
    with answering(http(200)) as port:
        monkeypatch.setenv("GREENQ_WORKER_HEALTH_ADDRESS", str(port))
        assert probe.main([]) == 0


def test_a_probe_is_cheap_and_loads_nothing_of_the_worker() -> None:
    with answering(http(200), http(200)) as port:
        loaded = subprocess.run(
            [sys.executable, "-c", SHOWN, "health", str(port)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        modules = set(loaded.stderr.split())
        ours = {name for name in modules if name.startswith("greenq")}
        assert ours == {"greenq", "greenq.__main__", "greenq.utils", "greenq.utils.probe"}
        assert modules.isdisjoint({"gevent", "redis", "ssl", "logging", "socket", "shutil"})
        assert json.loads(loaded.stdout) == {}
        spent_s = cpu_s([sys.executable, "-c", ENTRY, "health", str(port)])
    # Beyond the interpreter itself, which takes half of it.
    assert spent_s - cpu_s([sys.executable, "-c", "pass"]) < 0.05


def cpu_s(command: list[str]) -> float:
    """Run a command; return the processor time that it took."""
    pid = os.spawnv(os.P_NOWAIT, command[0], command)
    _pid, status, used = os.wait4(pid, 0)
    assert status == 0
    return used.ru_utime + used.ru_stime
